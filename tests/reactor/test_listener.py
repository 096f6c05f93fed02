"""Listener: a bounded number of clients per turn, and every errno of accept(2)."""

from __future__ import annotations

import errno
import selectors
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from reactor import Connection, Limits, Listener, Reactor, StreamProtocol, bind_tcp, format_address, listen_tcp
from reactor.limits import ACCEPTS_PER_TURN, SHORTAGE_QUIET_S, SHORTAGE_RETRY_S
from reactor.sockets.errors import os_error
from tests.support.basics import PATIENCE_S, open_descriptors
from tests.support.clients import receive_exactly
from tests.support.faults import EAGAIN, EINTR, FlakySockets
from tests.support.loops import SELECTORS, ManualClock, Recorder, RecordingSelector, turn_idle, turn_until


def codes(names: str) -> list[int]:
    """Return errnos by name, without those that the platform lacks."""
    return [getattr(errno, name) for name in names.split() if hasattr(errno, name)]


ONE_CALLER = codes(
    "ECONNABORTED EPROTO EPERM ENETDOWN ENOPROTOOPT EHOSTDOWN ENONET EHOSTUNREACH EOPNOTSUPP ENETUNREACH"
)  # accept(2): "treat them like EAGAIN by retrying"
SHORTAGE = codes("EMFILE ENFILE ENOBUFS ENOMEM")
UNKNOWN = [*codes("EIO ENOSR EFAULT ESRCH ENOSPC"), 4321]
BROKEN = codes("EBADF EINVAL ENOTSOCK")


class Door:
    """A listener on loopback with a manual clock and faults."""

    def __init__(self, selector_class: type[selectors.BaseSelector] = selectors.DefaultSelector) -> None:
        self.clock, self.sockets = ManualClock(), FlakySockets()
        self.faults = self.sockets.faults
        self.selector = RecordingSelector(selector_class())
        self.reactor = Reactor(selector=self.selector, clock=self.clock, sockets=self.sockets)
        self.protocol = Recorder(echo=True)
        self.factory: Callable[[], StreamProtocol] = lambda: self.protocol
        self.lost: list[OSError] = []
        sock = bind_tcp(self.sockets, ("127.0.0.1", 0))
        sock.listen(200)
        self.listener = Listener(
            self.reactor, sock, lambda: self.factory(), lost=lambda listener, error: self.lost.append(error)
        )
        self.clients: list[socket.socket] = []

    def call(self, count: int = 1) -> socket.socket:
        """Connect clients that wait in the kernel's queue. Return the last one."""
        for _ in range(count):
            self.clients.append(socket.create_connection(self.listener.address, PATIENCE_S))
        return self.clients[-1]

    def turn(self, turns: int = 1) -> None:
        turn_idle(self.reactor, turns)

    @property
    def served(self) -> list[Connection]:
        return self.protocol.connections

    def pass_time(self, seconds: float, steps: int = 1000) -> None:
        """Advance the clock in small steps, with a turn after each."""
        for _ in range(steps):
            self.clock.advance(seconds / steps)
            self.turn()


@pytest.fixture
def door() -> Iterator[Door]:
    """One on the platform's best selector."""
    yield from open_door(Door())


def open_door(door: Door) -> Iterator[Door]:
    """Clean up afterwards."""
    yield door
    door.reactor.close()
    for client in door.clients:
        client.close()


@pytest.fixture(params=SELECTORS, ids=lambda selector_class: str(selector_class.__name__))
def every_door(request: pytest.FixtureRequest) -> Iterator[Door]:
    """One per selector class."""
    yield from open_door(Door(request.param))


def assert_serves(door: Door) -> None:
    """Check that a new client is served."""
    client = door.call()
    client.send(b"ping")
    turn_until(door.reactor, lambda: door.protocol.received.endswith(b"ping"))
    assert receive_exactly(client, 4) == b"ping"


def test_turn_accepts_a_bounded_number_of_clients_and_the_next_turn_the_rest(every_door: Door) -> None:
    """Law 7: every step is bounded."""
    every_door.call(ACCEPTS_PER_TURN + 5)
    every_door.turn()
    assert len(every_door.served) == ACCEPTS_PER_TURN
    every_door.turn()
    assert len(every_door.served) == ACCEPTS_PER_TURN + 5


def test_accepted_connections_are_non_blocking_and_have_the_listeners_limits() -> None:
    """One blocking socket would stop the loop."""
    limits = Limits(high_water_bytes=7)
    protocol = Recorder()
    with Reactor() as reactor:
        listener = listen_tcp(reactor, ("127.0.0.1", 0), lambda: protocol, limits=limits)
        with socket.create_connection(listener.address) as client:
            turn_until(reactor, lambda: protocol.connections)
            (connection,) = protocol.connections
            assert connection.socket.gettimeout() == 0.0
            assert connection.limits is limits
            assert connection.socket.getpeername() == client.getsockname()
            assert connection.socket.getsockname() == listener.address


def test_pause_and_resume(every_door: Door) -> None:
    """Clients wait in the kernel's queue; the loop sleeps meanwhile."""
    every_door.listener.pause()
    every_door.call(2)
    every_door.turn(5)
    assert every_door.served == []
    assert not any(every_door.selector.batches)
    every_door.listener.resume()
    every_door.turn()
    assert len(every_door.served) == 2


def test_pause_works_in_the_middle_of_a_batch(door: Door) -> None:
    """This makes `--max-connections` exact: the last client's protocol pauses the listener."""

    class Last(Recorder):
        def connection_made(self, connection: Connection) -> None:
            super().connection_made(connection)
            if len(self.connections) == 3:
                door.listener.pause()

    door.protocol = Last()
    door.call(5)
    door.turn(3)
    assert len(door.served) == 3
    assert door.faults.calls["accept"] == 3
    door.listener.resume()
    door.turn()
    assert len(door.served) == 5


def test_a_listener_closed_in_the_middle_of_a_batch_accepts_no_more(door: Door) -> None:
    """A factory may close its listener."""

    def factory() -> StreamProtocol:
        door.listener.close()
        return door.protocol

    door.factory = factory
    door.call(3)
    door.turn(2)
    assert len(door.served) == 1
    assert door.faults.calls["accept"] == 1


def test_accepting_stops_at_the_first_eagain(door: Door) -> None:
    """One client costs two calls of accept(2), not ACCEPTS_PER_TURN."""
    door.call()
    door.turn()
    assert len(door.served) == 1
    assert door.faults.calls["accept"] == 2


@pytest.mark.parametrize("error", [EAGAIN, EINTR])
def test_readiness_without_a_client_is_no_error(door: Door, error: OSError) -> None:
    """The client may have disconnected before accept(2)."""
    door.faults.add("accept", error)
    assert_serves(door)
    assert door.listener.errors == {}


@pytest.mark.parametrize("code", ONE_CALLER, ids=errno.errorcode.get)
def test_error_of_one_client_is_skipped(door: Door, code: int, caplog: pytest.LogCaptureFixture) -> None:
    """Promise 16: "those of one client are skipped": counted, and the next one is served in the same turn."""
    door.faults.add("accept", os_error(code), os_error(code))
    door.call()
    door.turn()
    assert len(door.served) == 1
    assert door.listener.errors == {errno.errorcode[code]: 2}
    assert caplog.records == []


@pytest.mark.parametrize("code", SHORTAGE + UNKNOWN, ids=lambda code: errno.errorcode.get(code, "no name"))
def test_shortage_suspends_the_listener_until_it_recovers(
    door: Door, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Promise 15: "no spin: fewer than 20 accept calls a second; few log lines". An unknown errno is one, too."""
    door.faults.always["accept"] = os_error(code)
    door.call()
    door.pass_time(1.0)
    calls = door.faults.calls["accept"]
    assert 1 <= calls < 20
    assert door.listener.errors == {errno.errorcode.get(code, str(code)): calls}
    assert len(caplog.records) == 1
    door.faults.always.clear()
    door.pass_time(2 * SHORTAGE_RETRY_S, 10)
    assert len(door.served) == 1
    assert_serves(door)


@pytest.mark.parametrize("uptime_s", [0.0, 7.0, 1000.0])
def test_shortage_is_logged_again_after_the_quiet_time(
    door: Door, uptime_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator must see it again later, even soon after boot, when the monotonic clock is near 0."""
    door.clock.now_s = uptime_s
    door.faults.always["accept"] = os_error(errno.EMFILE)
    door.call()
    door.pass_time(2.5 * SHORTAGE_QUIET_S)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3


def test_shortage_is_logged_once_per_quiet_time(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """SHORTAGE_QUIET_S is the time between two log lines."""
    door.faults.always["accept"] = os_error(errno.EMFILE)
    door.call()
    door.turn()
    for share, lines in ((0.75, 1), (0.25, 2), (0.75, 2), (0.25, 3)):  # the sums are exact in binary
        door.clock.advance(share * SHORTAGE_QUIET_S)
        door.turn(2)
        assert len(caplog.records) == lines


def test_shortage_within_a_batch_keeps_accepted_clients(door: Door) -> None:
    """Descriptors may run out at any client."""
    door.faults.add("accept", None, None, os_error(errno.EMFILE))
    door.call(4)
    door.turn(5)
    assert len(door.served) == 2
    door.pass_time(2 * SHORTAGE_RETRY_S, 10)
    assert len(door.served) == 4


def test_resume_during_a_shortage_does_not_end_the_suspension(door: Door) -> None:
    """Each closed connection calls `resume`; the loop must not spin."""
    door.faults.always["accept"] = os_error(errno.EMFILE)
    door.call()
    for _ in range(50):
        door.listener.pause()
        door.listener.resume()
        door.turn()
    assert door.faults.calls["accept"] == 1


def test_pause_outlasts_a_shortage(door: Door) -> None:
    """The retry timer must not resume a paused listener."""
    door.faults.add("accept", os_error(errno.EMFILE))
    door.call()
    door.turn()
    door.listener.pause()
    door.pass_time(1.0, 10)
    assert door.served == []
    door.listener.resume()
    door.turn()
    assert len(door.served) == 1


def test_listener_recovers_from_a_selector_without_memory_at_its_retry(door: Door) -> None:
    """epoll_ctl(2) may fail as well as accept(2). The listener must accept again later."""
    door.faults.add("accept", os_error(errno.ENOMEM))
    door.call()
    door.turn()
    door.selector.failures.append(os_error(errno.ENOMEM))
    door.pass_time(5.0)
    assert len(door.served) == 1


@pytest.mark.parametrize("code", BROKEN, ids=errno.errorcode.get)
def test_broken_socket_closes_the_listener_with_one_line_and_calls_lost(
    door: Door, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Promise 16: "EBADF, EINVAL, ENOTSOCK close it with one line"; connections live on."""
    assert_serves(door)
    door.faults.always["accept"] = os_error(code)
    door.call()
    door.turn(5)
    assert door.listener.closed
    assert door.listener not in door.reactor.handlers
    assert [error.errno for error in door.lost] == [code]
    assert len(caplog.records) == 1
    assert caplog.records[0].exc_info is None
    door.clients[0].send(b"pong")
    turn_until(door.reactor, lambda: door.protocol.received.endswith(b"pong"))


def test_broken_socket_without_a_lost_callback_closes_the_listener(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """`lost` is optional; the loop serves its other handlers."""
    other = listen_tcp(door.reactor, ("127.0.0.1", 0), lambda: door.protocol)
    door.faults.add("accept", os_error(errno.EBADF))
    with socket.create_connection(other.address, PATIENCE_S):
        turn_until(door.reactor, lambda: other.closed)
    assert [record.getMessage() for record in caplog.records] == [
        f"listener {format_address(other.address)} is broken and closed: Bad file descriptor"
    ]
    assert_serves(door)


def test_factory_that_raises_costs_only_its_client(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """Promise 17: the client's connection is closed, one traceback logged, and the others of the batch are served."""
    mistake = ZeroDivisionError("no protocol today")
    outcomes: list[Any] = [door.protocol, mistake, door.protocol]

    def factory() -> StreamProtocol:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        protocol: StreamProtocol = outcome
        return protocol

    door.factory = factory
    door.call(3)
    before = open_descriptors()
    door.turn()
    assert len(door.served) == 2
    assert open_descriptors() == before + 2
    assert door.clients[1].recv(1) == b""
    assert [record.exc_info and record.exc_info[1] for record in caplog.records] == [mistake]
    door.factory = lambda: door.protocol
    assert_serves(door)


def test_factory_that_returns_no_protocol_costs_only_its_client(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """The error appears when the connection is made; no socket may be left."""
    nothing: Any = None
    door.factory = lambda: nothing
    door.call()
    before = open_descriptors()
    door.turn()
    assert open_descriptors() == before
    assert len(caplog.records) == 1
    door.factory = lambda: door.protocol
    assert_serves(door)


def test_connection_made_that_raises_costs_only_its_connection(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """The connection was made, so `connection_lost` is called."""

    class Bad(Recorder):
        def connection_made(self, connection: Connection) -> None:
            super().connection_made(connection)
            raise RuntimeError("not ready")

    bad = Bad()
    door.factory = lambda: bad
    door.call()
    door.turn()
    assert bad.kinds() == ["made", "lost"]
    assert isinstance(bad.events[-1][1], RuntimeError)
    assert len(caplog.records) == 1
    door.factory = lambda: door.protocol
    assert_serves(door)


def test_client_that_cannot_be_watched_is_lost_alone(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """For example EPERM from epoll_ctl(2): an unwatched connection would stay for ever."""
    door.selector.failures.append(os_error(errno.EPERM))
    client = door.call()
    door.turn(3)
    assert door.protocol.kinds() == ["made", "lost"]
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert len(caplog.records) == 1
    assert_serves(door)


def test_close_resets_waiting_clients_and_frees_the_port(door: Door) -> None:
    """The kernel resets the clients in its queue. A second call does nothing."""
    door.listener.pause()
    client = door.call()
    before = open_descriptors()
    door.listener.close()
    door.listener.close()
    assert open_descriptors() == before - 1
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        door.call()
    door.listener.pause()
    door.listener.resume()
    door.turn()
    assert door.lost == []


def test_close_during_a_shortage_leaves_no_timer(door: Door) -> None:
    """A later retry would use a closed socket."""
    door.faults.add("accept", os_error(errno.EMFILE))
    door.call()
    door.turn()
    door.listener.close()
    door.pass_time(1.0, 10)
    assert door.listener not in door.reactor.handlers
