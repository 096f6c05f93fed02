"""The callback that raises.

A user's code has a bug. One naive loop lets the exception out of `run`, so a client that can cause it stops the service
for all. Another swallows the exception and leaves a connection that is never served again. A third logs it at every
turn, because the socket is still ready.

What prevents it: the exception closes the handler of that callback, is logged once with its traceback, and the loop
goes on.
"""

import contextlib
import functools
import logging
import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from echo7.logs.log import JsonFormatter, StderrHandler, TextFormatter
from reactor import Connection, Datagram, DatagramProtocol, Limits, Reactor, StreamProtocol, connect_tcp, listen_tcp
from reactor import open_udp as open_udp_endpoint
from reactor.sockets.addresses import Address
from tests.support.basics import PATIENCE_S
from tests.support.clients import receive_exactly
from tests.support.faults import EAGAIN, FlakySockets
from tests.support.loops import Recorder, server_side, turn_idle, turn_until

SMALL = Limits(high_water_bytes=64, receive_bytes=1024, linger_timeout_s=PATIENCE_S)
BLOB = bytes(1024)


class BugError(Exception):
    """The bug in a user's code."""


class Buggy(Recorder):
    """Echoes, and raises in the callback named `where`."""

    def __init__(self, raises_in: str) -> None:
        super().__init__(echo=True)
        self.raises_in = raises_in

    def _stumble(self, name: str) -> None:
        if name == self.raises_in:
            raise BugError(name)

    def connection_made(self, connection: Connection) -> None:
        super().connection_made(connection)
        self._stumble("connection_made")

    def data_received(self, connection: Connection, data: bytes) -> None:
        super().data_received(connection, data)
        self._stumble("data_received")

    def drained(self, connection: Connection) -> None:
        super().drained(connection)
        self._stumble("drained")

    def eof_received(self, connection: Connection) -> bool:
        super().eof_received(connection)
        self._stumble("eof_received")
        return False

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        super().connection_lost(connection, error)
        self._stumble("connection_lost")


class Neighbour:
    """Another connection on the same loop, which must not be affected."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.recorder = Recorder(echo=True)
        self.listener = listen_tcp(reactor, ("127.0.0.1", 0), lambda: self.recorder)
        self.client = socket.create_connection(self.listener.address, PATIENCE_S)
        self.connection = server_side(reactor, self.client)

    def assert_goes_on(self) -> None:
        before = self.connection.bytes_sent
        self.client.sendall(b"still there?")
        turn_until(self.reactor, lambda: self.connection.bytes_sent == before + 12)
        assert receive_exactly(self.client, 12) == b"still there?"

    def close(self) -> None:
        self.client.close()


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    with Reactor(sockets=FlakySockets()) as running:
        yield running


@pytest.fixture
def neighbour(reactor: Reactor) -> Iterator[Neighbour]:
    with contextlib.closing(Neighbour(reactor)) as made:
        yield made


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[BaseException | None]:
    """Return the exceptions that were logged with a traceback."""
    return [record.exc_info[1] for record in caplog.records if record.exc_info]


def assert_logged_once(caplog: pytest.LogCaptureFixture, where: str) -> None:
    logged = tracebacks(caplog)
    assert [(type(error), str(error)) for error in logged] == [(BugError, where)]
    assert logged[0] is not None
    assert logged[0].__traceback__ is not None
    assert len(caplog.records) == 1


def provoke(reactor: Reactor, client: socket.socket, callback: str) -> None:
    """Do what makes the loop call this callback."""
    if callback == "connection_lost":
        client.shutdown(socket.SHUT_WR)
    elif callback == "eof_received":
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
    elif callback == "drained":
        sockets = reactor.sockets
        assert isinstance(sockets, FlakySockets)
        sockets.faults.add("send", EAGAIN, 1)  # nothing, then one byte at first
        client.sendall(b"drained")
    else:
        client.sendall(b"anything")


CALLBACKS = ["connection_made", "data_received", "drained", "eof_received", "connection_lost"]


@pytest.mark.parametrize("callback", CALLBACKS)
def test_raising_callback_closes_only_its_connection(
    reactor: Reactor, neighbour: Neighbour, callback: str, caplog: pytest.LogCaptureFixture
) -> None:
    """'A callback that raises takes down its own connection only, with one traceback logged' (promise 17)."""
    buggy = Buggy(callback)
    port = listen_tcp(reactor, ("127.0.0.1", 0), lambda: buggy, limits=SMALL).address[1]
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client:
        provoke(reactor, client, callback)
        turn_until(reactor, lambda: "lost" in buggy.kinds())
        turn_idle(reactor)
        assert buggy.kinds().count("lost") == 1
        error = buggy.events[-1][1]
        assert (error is None) if callback == "connection_lost" else isinstance(error, BugError)
        assert buggy.connections[0].closed
        with contextlib.suppress(ConnectionResetError):
            while client.recv(100):
                pass  # what was echoed before, then FIN or a reset
        neighbour.assert_goes_on()
    assert_logged_once(caplog, callback)


@pytest.mark.parametrize("callback", CALLBACKS)
def test_next_client_of_a_raising_protocol_is_accepted(
    reactor: Reactor, callback: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The listener isn't affected: the next client is accepted, and its exception is logged too."""
    protocols: list[Buggy] = []

    def factory() -> Buggy:
        protocols.append(Buggy(callback))
        return protocols[-1]

    def is_over(number: int) -> bool:
        return len(protocols) == number and "lost" in protocols[-1].kinds()

    port = listen_tcp(reactor, ("127.0.0.1", 0), factory, limits=SMALL).address[1]
    for number in range(1, 4):
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client:
            provoke(reactor, client, callback)
            turn_until(reactor, functools.partial(is_over, number))
        turn_idle(reactor)
        assert len(tracebacks(caplog)) == number


@pytest.mark.parametrize("callback", ["connection_made", "data_received"])
def test_raising_callback_of_an_outgoing_connection_closes_only_that(
    reactor: Reactor, neighbour: Neighbour, callback: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The same for outgoing connections."""
    buggy = Buggy(callback)
    failures: list[OSError] = []
    connect_tcp(reactor, neighbour.listener.address, buggy, failures.append)
    turn_until(reactor, lambda: buggy.connections)
    buggy.connections[0].write(b"hello")
    turn_until(reactor, lambda: "lost" in buggy.kinds())
    turn_idle(reactor)
    assert failures == []
    neighbour.assert_goes_on()
    assert_logged_once(caplog, callback)


def test_raising_protocol_factory_costs_only_its_client(
    reactor: Reactor, neighbour: Neighbour, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no protocol yet: the accepted socket is closed, and the listener goes on."""
    protocols = [Recorder(echo=True)]

    def factory() -> StreamProtocol:
        if tracebacks(caplog):
            return protocols[0]
        raise BugError("factory")

    port = listen_tcp(reactor, ("127.0.0.1", 0), factory).address[1]
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as unlucky:
        turn_until(reactor, lambda: tracebacks(caplog))
        assert unlucky.recv(1) == b""
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as lucky:
            lucky.sendall(b"and me?")
            turn_until(reactor, lambda: protocols[0].received == b"and me?")
            assert receive_exactly(lucky, 7) == b"and me?"
    neighbour.assert_goes_on()
    assert_logged_once(caplog, "factory")


class BuggyDatagram(DatagramProtocol):
    """Raises for one datagram, and echoes every other."""

    def datagram_received(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        if data == b"bug":
            raise BugError("datagram_received")
        endpoint.send(data, source, path)

    def endpoint_lost(self, endpoint: Datagram, error: Exception | None) -> None:
        raise BugError("endpoint_lost")


def test_raising_datagram_callback_drops_only_that_datagram(
    reactor: Reactor, neighbour: Neighbour, caplog: pytest.LogCaptureFixture
) -> None:
    """One endpoint serves every client, so an exception drops the datagram and doesn't close the endpoint."""
    endpoint = open_udp_endpoint(reactor, ("127.0.0.1", 0), BuggyDatagram())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE_S)
        client.connect(endpoint.address)
        for data in (b"before", b"bug", b"after"):
            client.send(data)
        turn_until(reactor, lambda: endpoint.datagrams_received == 3)
        assert client.recv(100) == b"before"
        assert client.recv(100) == b"after"
    assert endpoint.drops == {"callback": 1}
    neighbour.assert_goes_on()
    assert_logged_once(caplog, "datagram_received")
    caplog.clear()
    endpoint.close()
    turn_idle(reactor)
    neighbour.assert_goes_on()
    assert_logged_once(caplog, "endpoint_lost")


def stumble(where: str) -> None:
    raise BugError(where)


def by_timer(reactor: Reactor) -> None:
    reactor.call_later(0.0, stumble, "loop")


def by_call_soon(reactor: Reactor) -> None:
    reactor.call_soon(stumble, "loop")


def by_call_from_a_thread(reactor: Reactor) -> None:
    reactor.call_soon_threadsafe(stumble, "loop")


def by_signal(reactor: Reactor) -> None:
    reactor.add_signal_handler(signal.SIGUSR1, lambda: stumble("loop"))
    signal.raise_signal(signal.SIGUSR1)


def by_failed_connect(reactor: Reactor) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        connect_tcp(reactor, unused.getsockname(), StreamProtocol(), lambda error: stumble("loop"))


WAYS = [by_timer, by_call_soon, by_call_from_a_thread, by_signal, by_failed_connect]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_raising_loop_callback_ends_nothing(
    reactor: Reactor, neighbour: Neighbour, way: Callable[[Reactor], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Timers, calls and signals belong to no connection: an exception is logged, and the loop goes on."""
    way(reactor)
    called: list[str] = []
    turn_until(reactor, lambda: tracebacks(caplog))
    reactor.call_later(0.0, called.append, "timer")
    reactor.call_soon(called.append, "call")
    turn_idle(reactor)
    assert sorted(called) == ["call", "timer"]
    neighbour.assert_goes_on()
    assert_logged_once(caplog, "loop")


def test_raising_callback_leaves_the_rest_of_its_turn_to_run(
    reactor: Reactor, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in the middle of the due timers or the queued calls doesn't lose the later ones."""
    called: list[str] = []
    for number in range(3):
        reactor.call_later(0.0, called.append, f"timer {number}")
        reactor.call_later(0.0, stumble, "timer")
        reactor.call_soon(called.append, f"call {number}")
        reactor.call_soon(stumble, "call")
    turn_idle(reactor, 1)
    assert called == [f"{kind} {number}" for kind in ("timer", "call") for number in range(3)]
    assert len(tracebacks(caplog)) == 6


def test_every_protocol_hears_the_end_although_the_first_raises(caplog: pytest.LogCaptureFixture) -> None:
    """`Reactor.close` calls every `connection_lost`, even when one of them raises."""
    protocols = [Buggy("connection_lost"), Buggy("connection_lost"), Buggy("")]
    with Reactor() as reactor:
        waiting = iter(protocols)
        port = listen_tcp(reactor, ("127.0.0.1", 0), lambda: next(waiting)).address[1]
        clients = [socket.create_connection(("127.0.0.1", port), PATIENCE_S) for _ in protocols]
        turn_until(reactor, lambda: all(protocol.connections for protocol in protocols))
    assert [protocol.kinds() for protocol in protocols] == [["made", "lost"]] * 3
    assert len(tracebacks(caplog)) == 2
    for client in clients:
        client.close()


class UnprintableError(Exception):
    """An exception whose `__str__` raises too."""

    def __repr__(self) -> str:
        raise BugError("__repr__")

    __str__ = __repr__


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_exception_that_cannot_be_printed_does_not_end_the_loop(
    reactor: Reactor, neighbour: Neighbour, formatter: logging.Formatter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log handler that can't print the exception doesn't stop the loop."""
    handler = StderrHandler()
    handler.setFormatter(formatter)
    logger = logging.getLogger("reactor")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)

    def unprintable() -> None:
        raise UnprintableError

    called: list[str] = []
    reactor.call_soon(unprintable)
    reactor.call_soon(called.append, "the next one")
    turn_idle(reactor, 2)
    assert called == ["the next one"]
    neighbour.assert_goes_on()
