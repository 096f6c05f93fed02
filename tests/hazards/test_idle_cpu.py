"""The loop that burns a core over nothing.

poll and epoll are level-triggered and report a hang-up or an error whether it was asked for or not. A naive server
leaves a connection registered though it has nothing to do with it: one that is half-closed stays readable for ever, one
that was reset stays in error for ever, a stuck one is asked for room that it has but won't use. `select` then returns
at once, each time, with an event that no handler acts upon.

What prevents it: interest is computed from the state, and a handler that wants nothing is unregistered (law 2).
"""

import contextlib
import functools
import selectors
import socket
from collections.abc import Callable, Iterator

import pytest

from echo7.server import EchoServer
from reactor import Connection, Limits, Reactor, StreamProtocol, listen_tcp
from tests.support.basics import PATIENCE_S
from tests.support.clients import reset
from tests.support.loops import (
    SELECTORS,
    CountingSelector,
    Recorder,
    RecordingSelector,
    server_side,
    turn_idle,
    turn_until,
)

resource = pytest.importorskip("resource")

MANY = 1_000
QUIET_S = 1.0
MOST_SELECTS = 50  # a spinning loop makes hundreds of thousands
TURNS = 1_000
STRAGGLERS = 50  # so many may find something: the kernel still moves a byte or two between small buffers
BUFFER_BYTES = 32 * 1024  # so that a connection is soon full; much less, and the kernel drops and waits to send again
LIMITS = Limits(linger_timeout_s=3600.0)
BLOB = bytes(16 * 1024)


class Paused(Recorder):
    """Reads nothing, from the beginning."""

    def connection_made(self, connection: Connection) -> None:
        super().connection_made(connection)
        connection.pause_reading()


class Closing(Recorder):
    """Ends every connection at once; the peer is slow to agree."""

    def connection_made(self, connection: Connection) -> None:
        super().connection_made(connection)
        connection.close()


class Stage:
    """A loop with three kinds of listener, and the clients of them."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.clients: list[socket.socket] = []
        self.echo = EchoServer(("127.0.0.1",), 0, socket_buffer_bytes=BUFFER_BYTES, drain_timeout_s=3600.0)
        self.echo.start(reactor)
        self.echo_port = self.echo.addresses[0].port

    def client(self, port: int) -> tuple[socket.socket, Connection]:
        """Return a client with small buffers, non-blocking, and the connection that serves it."""
        client = socket.socket()
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            client.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        client.settimeout(PATIENCE_S)
        client.connect(("127.0.0.1", port))
        client.setblocking(False)
        self.clients.append(client)
        return client, server_side(self.reactor, client)

    def stuff(self, client: socket.socket, condition: Callable[[], object]) -> None:
        """Have the client send, and read nothing, until `condition()` is true."""

        def send_and_look() -> object:
            with contextlib.suppress(BlockingIOError):
                client.send(BLOB)
            return condition()

        turn_until(self.reactor, send_and_look)

    def port_of(self, factory: Callable[[], StreamProtocol]) -> int:
        """Return the port of a new listener of that kind."""
        port: int = listen_tcp(self.reactor, ("127.0.0.1", 0), factory, limits=LIMITS).address[1]
        return port

    def close(self) -> None:
        for client in self.clients:
            client.close()


def half_closed(stage: Stage, count: int) -> None:
    """The peer's FIN was read, and the protocol would still write: the socket stays readable."""
    recorder = Recorder(keep_open_on_eof=True)
    port = stage.port_of(lambda: recorder)
    for _ in range(count):
        stage.client(port)[0].shutdown(socket.SHUT_WR)
    turn_until(stage.reactor, lambda: recorder.events.count(("eof",)) == count)


def half_closed_then_reset(stage: Stage, count: int) -> None:
    """As before, and then the peer goes: hang-up and error on a handler that wants nothing."""
    first = len(stage.clients)
    half_closed(stage, count)
    for client in stage.clients[first:]:
        reset(client)


def reset_while_paused(stage: Stage, count: int) -> None:
    """The protocol has paused its reading, and the peer resets."""
    port = stage.port_of(Paused)
    for _ in range(count):
        client, _ = stage.client(port)
        client.send(b"never read")
        reset(client)


def holds_more(connection: Connection, count: int) -> bool:
    return connection.pending_bytes > count


def stuck(stage: Stage, count: int) -> None:
    """The peer sends until nothing more goes in, and reads nothing."""
    for _ in range(count):
        client, connection = stage.client(stage.echo_port)
        stage.stuff(client, functools.partial(holds_more, connection, LIMITS.high_water_bytes))


def stuck_then_half_closed(stage: Stage, count: int) -> None:
    """The peer has sent all and a FIN, and reads nothing: what is left to deliver can't go."""
    for _ in range(count):
        client, connection = stage.client(stage.echo_port)
        stage.stuff(client, functools.partial(holds_more, connection, 0))
        client.shutdown(socket.SHUT_WR)


def stuck_then_reset(stage: Stage, count: int) -> None:
    """The peer was stuck, and has gone: one connection to forget."""
    first = len(stage.clients)
    stuck(stage, count)
    for client in stage.clients[first:]:
        reset(client)


def lingering(stage: Stage, count: int) -> None:
    """We have ended, and the peer doesn't: for an hour, as far as the linger deadline goes."""
    port = stage.port_of(Closing)
    for _ in range(count):
        client, _ = stage.client(port)
        client.send(b"still here")


KINDS = [
    half_closed, half_closed_then_reset, reset_while_paused,
    stuck, stuck_then_half_closed, stuck_then_reset, lingering,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("selector_class", SELECTORS)
def test_connection_with_nothing_to_do_is_never_ready(
    selector_class: type[selectors.BaseSelector], kind: Callable[[Stage, int], None]
) -> None:
    """When all that can be done is done, the kernel reports nothing any more: 'no idle CPU' (promise 9)."""
    selector = RecordingSelector(selector_class())
    with Reactor(selector=selector) as reactor, contextlib.closing(Stage(reactor)) as stage:
        kind(stage, 3)
        turn_until(reactor, lambda: selector.batches and not selector.batches[-1], turns=1000)
        selector.batches.clear()
        turn_idle(reactor, TURNS)
        ready = [batch for batch in selector.batches if batch]
        assert len(ready) <= STRAGGLERS, "something stays ready, and no handler acts upon it"


@contextlib.contextmanager
def descriptors(count: int) -> Iterator[None]:
    """Have at least so many descriptors, or skip the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"needs {count} descriptors, and the hard limit is {hard}")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_thousand_idle_connections_cost_no_select_calls() -> None:
    """'With 1,000 connections that are half-closed, reset or stuck, select calls in a quiet second are near zero.'"""
    selector = CountingSelector()
    with descriptors(2 * MANY + 200), Reactor(selector=selector) as reactor:
        with contextlib.closing(Stage(reactor)) as stage:
            for kind in KINDS:
                kind(stage, MANY // len(KINDS) + 1)
            assert len(stage.clients) >= MANY
            turn_idle(reactor, TURNS)
            selects_before = selector.selects
            reactor.call_later(QUIET_S, reactor.stop)
            reactor.run()
            assert selector.selects - selects_before <= MOST_SELECTS
