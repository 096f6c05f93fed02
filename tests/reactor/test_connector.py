"""Connector: the loop calls either `connection_made` or `failed(error)`."""

from __future__ import annotations

import errno
import selectors
import socket
from collections.abc import Iterator
from socket import socket as Socket

import pytest

from reactor import Connection, Limits, Reactor, connect_tcp
from reactor.limits import SHORTAGE_RETRY_S
from reactor.sockets.errors import os_error
from tests.support.basics import PATIENCE_S, open_descriptors, silent_address
from tests.support.clients import receive_exactly
from tests.support.faults import FlakySockets
from tests.support.loops import SELECTORS, ManualClock, Recorder, RecordingSelector, turn_idle, turn_until


class ClientSocket(socket.socket):
    """A socket that can fail in connect(2), or bind itself to its destination first."""

    code = 0
    meets_itself = False

    def connect_ex(self, address: tuple[str, int]) -> int:  # type: ignore[override]
        if self.meets_itself:
            self.bind(address)
        return self.code or super().connect_ex(address)


class Client:
    """A loop with a manual clock, and the outcome of an attempt."""

    def __init__(self, selector_class: type[selectors.BaseSelector] = selectors.DefaultSelector) -> None:
        self.clock = ManualClock()
        self.selector = RecordingSelector(selector_class())
        self.reactor = Reactor(selector=self.selector, clock=self.clock, sockets=self)
        self.protocol = Recorder()
        self.errors: list[OSError] = []
        self.code, self.meets_itself = 0, False

    def socket(self, family: int, type: int) -> Socket:
        """Be the factory, too."""
        sock = ClientSocket(family, type)
        sock.code, sock.meets_itself = self.code, self.meets_itself
        return sock

    def socketpair(self) -> tuple[Socket, Socket]:
        """For the waker."""
        return socket.socketpair()

    def outcomes(self) -> int:
        """The number of outcomes reported."""
        return len(self.protocol.connections) + len(self.errors)


@pytest.fixture(params=SELECTORS, ids=lambda selector_class: str(selector_class.__name__))
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """One per selector class. At the end nothing is open."""
    before = open_descriptors()
    made = Client(request.param)
    with made.reactor:
        yield made
    assert open_descriptors() == before


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """A listening socket; the kernel completes handshakes by itself."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(PATIENCE_S)
        yield made


def free_port() -> int:
    """A port without a listener."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def test_successful_connect_is_reported_through_the_loop(client: Client, server: socket.socket) -> None:
    """The connection can be written to at once, and has the requested limits."""
    limits = Limits(receive_bytes=3)
    connect_tcp(client.reactor, server.getsockname(), client.protocol, client.errors.append, limits=limits)
    assert client.outcomes() == 0
    turn_until(client.reactor, client.outcomes)
    (connection,) = client.protocol.connections
    accepted, _ = server.accept()
    with accepted:
        accepted.settimeout(PATIENCE_S)
        connection.write(b"hello")
        assert receive_exactly(accepted, 5) == b"hello"
    assert connection.limits is limits


def test_connected_attempt_leaves_no_timer(client: Client, server: socket.socket) -> None:
    """Ten thousand connects a second must not leave a hundred thousand timers."""
    connect_tcp(client.reactor, server.getsockname(), client.protocol, client.errors.append, timeout_s=5.0)
    client.reactor.turn()  # blocks until it is connected
    accepted, _ = server.accept()
    accepted.send(b"x")
    client.reactor.turn()
    accepted.close()
    assert client.protocol.received == b"x"
    assert client.selector.timeouts == [5.0, None]


def test_connection_that_cannot_be_watched_is_lost_and_not_failed(
    client: Client, server: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """For example EPERM from epoll_ctl(2): the connection was made, so `connection_lost` gets the error."""
    connect_tcp(client.reactor, server.getsockname(), client.protocol, client.errors.append)
    client.selector.failures.append(os_error(errno.EPERM))
    turn_until(client.reactor, lambda: "lost" in client.protocol.kinds())
    assert (client.protocol.kinds(), client.errors) == (["made", "lost"], [])
    assert len(caplog.records) == 1


def test_refused_connection_is_reported_through_the_loop(client: Client) -> None:
    """The error is what connect(2) would raise."""
    connector = connect_tcp(client.reactor, ("127.0.0.1", free_port()), client.protocol, client.errors.append)
    assert client.outcomes() == 0
    turn_until(client.reactor, client.outcomes)
    assert [type(error) for error in client.errors] == [ConnectionRefusedError]
    assert connector.closed
    assert connector not in client.reactor.handlers


def test_error_known_at_once_is_reported_through_the_loop(client: Client) -> None:
    """Law: "the loop calls", not the function that starts the attempt."""
    client.code = errno.ENETUNREACH
    connect_tcp(client.reactor, ("127.0.0.1", 9), client.protocol, client.errors.append)
    assert client.outcomes() == 0
    turn_idle(client.reactor)
    assert [error.errno for error in client.errors] == [errno.ENETUNREACH]


@pytest.mark.parametrize("code", [errno.EINPROGRESS, errno.EINTR])
def test_a_connect_under_way_is_no_error(client: Client, server: socket.socket, code: int) -> None:
    """connect(2): after EINTR, too, "the connection will be established asynchronously"."""
    connect_tcp(client.reactor, server.getsockname(), client.protocol, client.errors.append)
    turn_until(client.reactor, client.outcomes)
    assert client.errors == []


def test_silence_ends_at_the_deadline_and_not_before(client: Client) -> None:
    """The error is ETIMEDOUT, after `timeout_s`."""
    with silent_address() as address:
        connect_tcp(client.reactor, address, client.protocol, client.errors.append, timeout_s=5.0)
        client.clock.advance(4.9)
        turn_idle(client.reactor)
        assert client.outcomes() == 0
        client.clock.advance(0.2)
        turn_idle(client.reactor)
    assert [error.errno for error in client.errors] == [errno.ETIMEDOUT]
    assert isinstance(client.errors[0], TimeoutError)
    assert client.protocol.connections == []


def test_connect_that_succeeds_at_its_deadline_is_reported_once(client: Client, server: socket.socket) -> None:
    """Exactly one outcome: readiness comes before due timers."""
    connect_tcp(client.reactor, server.getsockname(), client.protocol, client.errors.append, timeout_s=5.0)
    accepted, _ = server.accept()
    client.clock.advance(60.0)
    turn_idle(client.reactor)
    accepted.close()
    assert (len(client.protocol.connections), client.errors) == (1, [])


def test_self_connect_is_refused(client: Client) -> None:
    """The kernel may choose a local port without a listener as the source port; the socket would echo itself."""
    client.meets_itself = True
    connect_tcp(client.reactor, ("127.0.0.1", free_port()), client.protocol, client.errors.append)
    turn_until(client.reactor, client.outcomes)
    assert [type(error) for error in client.errors] == [ConnectionRefusedError]
    assert client.protocol.connections == []


def test_abort_calls_nothing(client: Client) -> None:
    """A second call does nothing."""
    with silent_address() as address:
        connector = connect_tcp(client.reactor, address, client.protocol, client.errors.append, timeout_s=5.0)
        connector.abort()
        connector.abort()
        client.clock.advance(60.0)
        turn_idle(client.reactor)
    assert client.outcomes() == 0
    assert connector not in client.reactor.handlers


def test_abort_before_a_queued_error_calls_nothing(client: Client) -> None:
    """The error is queued on the loop when `abort` is called."""
    client.code = errno.ENETUNREACH
    connect_tcp(client.reactor, ("127.0.0.1", 9), client.protocol, client.errors.append).abort()
    turn_idle(client.reactor)
    assert client.outcomes() == 0


def test_abort_with_an_oserror_reports_it_through_the_loop(client: Client) -> None:
    """`abort(OSError)` reports it, but not inside the call."""
    with silent_address() as address:
        connector = connect_tcp(client.reactor, address, client.protocol, client.errors.append)
        reason = os_error(errno.ENETDOWN)
        connector.abort(reason)
        assert client.outcomes() == 0
        turn_idle(client.reactor)
    assert client.errors == [reason]


def test_abort_after_success_leaves_the_connection_alone(client: Client, server: socket.socket) -> None:
    """The socket belongs to the connection then."""
    connector = connect_tcp(client.reactor, server.getsockname(), client.protocol, client.errors.append)
    turn_until(client.reactor, client.outcomes)
    connector.abort()
    assert not client.protocol.connections[0].closed
    assert client.protocol.connections[0].socket.getpeername() == server.getsockname()


def test_error_in_connection_made_does_not_call_failed(
    client: Client, server: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """The attempt succeeded; `connection_lost` gets the error. One traceback."""

    class Bad(Recorder):
        def connection_made(self, connection: Connection) -> None:
            super().connection_made(connection)
            raise RuntimeError("not ready")

    bad = Bad()
    connect_tcp(client.reactor, server.getsockname(), bad, client.errors.append)
    turn_until(client.reactor, lambda: "lost" in bad.kinds())
    assert client.errors == []
    assert [bool(record.exc_info) for record in caplog.records] == [True]


@pytest.mark.parametrize("host", ["localhost", "example.org", ""])
def test_a_name_is_refused(client: Client, host: str) -> None:
    """Promise 22: "`connect_tcp` takes numeric addresses"."""
    with pytest.raises(ValueError, match="numeric"):
        connect_tcp(client.reactor, (host, 7), client.protocol, client.errors.append)


@pytest.mark.parametrize("timeout_s", [float("nan"), float("inf")])
def test_non_finite_timeout_is_refused_and_leaves_nothing(client: Client, timeout_s: float) -> None:
    """Raise ValueError for a time-out that isn't finite."""
    before = open_descriptors()
    with pytest.raises(ValueError, match="finite"):
        connect_tcp(client.reactor, ("127.0.0.1", 9), client.protocol, client.errors.append, timeout_s=timeout_s)
    assert open_descriptors() == before
    assert len(client.reactor.handlers) == 1  # the waker


def assert_nothing_is_left(client: Client) -> None:
    """The call raised, and that is the only outcome."""
    client.clock.advance(60.0)
    turn_idle(client.reactor)
    assert client.outcomes() == 0
    assert len(client.reactor.handlers) == 1  # the waker


@pytest.mark.parametrize(
    ("address", "error"),
    [(("127.0.0.1", 70_000), OverflowError), (("fe80::1%no-such-interface", 9), OSError)],
    ids=["port", "scope"],
)
def test_connect_that_raises_leaves_nothing(client: Client, address: tuple[str, int], error: type[Exception]) -> None:
    """Python refuses the address; `failed` must not be called ten seconds later."""
    with pytest.raises(error):
        connect_tcp(client.reactor, address, client.protocol, client.errors.append)
    assert_nothing_is_left(client)


def test_temporary_selector_refusal_only_delays(client: Client, server: socket.socket) -> None:
    """epoll_ctl(2), ENOSPC: the attempt continues when there is room, and has one outcome."""
    client.selector.failures.append(os_error(errno.ENOSPC))
    connect_tcp(client.reactor, server.getsockname(), client.protocol, client.errors.append)
    turn_idle(client.reactor)
    assert client.outcomes() == 0
    client.clock.advance(SHORTAGE_RETRY_S)
    turn_idle(client.reactor)
    client.clock.advance(60.0)
    turn_idle(client.reactor)
    assert client.protocol.kinds() == ["made"]
    assert client.errors == []


def test_missing_socket_is_raised_at_once() -> None:
    """Raise OSError if there is no socket (EMFILE, EAFNOSUPPORT)."""
    sockets = FlakySockets()
    sockets.faults.always["socket"] = os_error(errno.EMFILE)
    with Reactor(sockets=sockets) as reactor:
        with pytest.raises(OSError, match="open files"):
            connect_tcp(reactor, ("127.0.0.1", 9), Recorder(), lambda error: None)
        assert len(reactor.handlers) == 1
