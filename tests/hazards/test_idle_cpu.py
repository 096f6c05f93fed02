"""The loop that burns a core over nothing.

poll and epoll are level-triggered, and report a hang-up or an error even without interest. A naive server leaves a
connection registered when it has nothing to do for it. A half-closed socket stays readable for ever; a reset one stays
in error for ever; a socket with room stays writable when there is nothing to write. Then `select` returns at once,
every time, with an event that no handler acts upon.

What prevents it: interest is computed from the state, and a handler without interest is unregistered.
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
STRAGGLERS = 50  # selects that may find something, while the kernel still moves bytes between small buffers
BUFFER_BYTES = 32 * 1024  # soon full; with much less, the kernel drops packets and waits before it sends again
LIMITS = Limits(linger_timeout_s=3600.0)
BLOB = bytes(16 * 1024)


class Paused(Recorder):
    """Pauses reading at once."""

    def connection_made(self, connection: Connection) -> None:
        super().connection_made(connection)
        connection.pause_reading()


class Closing(Recorder):
    """Closes every connection at once, so that it lingers."""

    def connection_made(self, connection: Connection) -> None:
        super().connection_made(connection)
        connection.close()


class Stage:
    """A loop with an echo server and further listeners, and their clients."""

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
        """Let the client send without reading until `condition()` is true."""

        def send_and_look() -> object:
            with contextlib.suppress(BlockingIOError):
                client.send(BLOB)
            return condition()

        turn_until(self.reactor, send_and_look)

    def port_of(self, factory: Callable[[], StreamProtocol]) -> int:
        """Listen with this protocol factory, and return the port."""
        port: int = listen_tcp(self.reactor, ("127.0.0.1", 0), factory, limits=LIMITS).address[1]
        return port

    def close(self) -> None:
        for client in self.clients:
            client.close()


def half_closed(stage: Stage, count: int) -> None:
    """The client's FIN was read, and the protocol may still write: the socket stays readable."""
    recorder = Recorder(keep_open_on_eof=True)
    port = stage.port_of(lambda: recorder)
    for _ in range(count):
        stage.client(port)[0].shutdown(socket.SHUT_WR)
    turn_until(stage.reactor, lambda: recorder.events.count(("eof",)) == count)


def half_closed_then_reset(stage: Stage, count: int) -> None:
    """The same, then the client resets: hang-up and error for a handler without interest."""
    first = len(stage.clients)
    half_closed(stage, count)
    for client in stage.clients[first:]:
        reset(client)


def reset_while_paused(stage: Stage, count: int) -> None:
    """The protocol has paused reading, and the client resets."""
    port = stage.port_of(Paused)
    for _ in range(count):
        client, _ = stage.client(port)
        client.send(b"never read")
        reset(client)


def holds_more(connection: Connection, count: int) -> bool:
    return connection.pending_bytes > count


def stuck(stage: Stage, count: int) -> None:
    """The client sends until the kernel takes no more, and never reads."""
    for _ in range(count):
        client, connection = stage.client(stage.echo_port)
        stage.stuff(client, functools.partial(holds_more, connection, LIMITS.high_water_bytes))


def stuck_then_half_closed(stage: Stage, count: int) -> None:
    """The client has sent data and FIN, and never reads: pending output can't be delivered."""
    for _ in range(count):
        client, connection = stage.client(stage.echo_port)
        stage.stuff(client, functools.partial(holds_more, connection, 0))
        client.shutdown(socket.SHUT_WR)


def stuck_then_reset(stage: Stage, count: int) -> None:
    """The client was stuck, then resets."""
    first = len(stage.clients)
    stuck(stage, count)
    for client in stage.clients[first:]:
        reset(client)


def lingering(stage: Stage, count: int) -> None:
    """The server has sent FIN, the client doesn't: the connection lingers for up to an hour."""
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
    """When all work is done, the kernel reports nothing more: 'no idle CPU' (promise 9)."""
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
    """Raise the soft limit to `count` descriptors, or skip the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"needs {count} descriptors, and the hard limit is {hard}")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.long
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
