"""The descriptor that other code has closed.

A library closes a socket twice, a helper closes "all others", a wrong number is passed to os.close. The kernel gives
the number to the next client at once. epoll silently forgets the old one, poll(2) reports it for ever, and select(2)
fails for all. A naive loop then resets the new client, spins, or dies.

What prevents it: each descriptor has one owner in the loop. When a new handler comes with its number, or the selector
reports it, the old owner gets its last callback and is released, and the number isn't closed. If neither happens,
the end of the old owner may close whatever has its number.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from reactor import READ, WRITE, Connection, Connector, Datagram, Handler, Listener, Reactor
from reactor.doors import NOTHING_OBSERVED, Observer
from reactor.fastpath.batch import BatchProtocol, DatagramBatch, batch_on
from reactor.fastpath.busypoll import BusyPollSelector
from reactor.fastpath.epoll import LeanEpollSelector
from reactor.limits import DEFAULT_LIMITS, SHORTAGE_RETRY_S
from reactor.observe.trace import Trace
from reactor.observe.watch import Watch
from reactor.signals import Waker
from reactor.sockets.errors import os_error
from reactor.sockets.opening import bind_tcp, bind_udp, new_client
from tests.support.basics import PATIENCE_S, silent_address
from tests.support.clients import receive_exactly, tcp_pair
from tests.support.loops import (
    SELECTORS,
    DatagramRecorder,
    ManualClock,
    Recorder,
    RecordingSelector,
    turn_idle,
    turn_until,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="closed descriptors' numbers are reused at once")
LOCAL = ("127.0.0.1", 0)
LOOPS: dict[str, Callable[[], Reactor]] = {
    **{selector.__name__: lambda selector=selector: Reactor(selector=selector()) for selector in SELECTORS},  # type: ignore[misc]
    "busy": lambda: Reactor(selector=BusyPollSelector(selectors.DefaultSelector(), time.monotonic, 1e-6)),
    "traced": lambda: Reactor(observer=Trace(id)),
    "watched": lambda: Reactor(selector=selectors.PollSelector(), observer=Watch(0.0, Trace(id))),
}


class Told(Recorder, DatagramRecorder, BatchProtocol):  # type: ignore[misc]
    """Records the end of a handler of any kind."""

    def __init__(self) -> None:
        Recorder.__init__(self)
        self.ends: list[Any] = []

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        self.ends.append(error)

    def endpoint_lost(self, endpoint: Any, error: Exception | None) -> None:
        self.ends.append(error)


class Scene:
    """A loop with one handler under test, and its socket."""

    def __init__(self, loop: Reactor, kind: str) -> None:
        self.loop, self.told = loop, Told()
        self.stack = contextlib.ExitStack()
        self.sock: socket.socket
        self.handler: Handler = getattr(self, kind)()

    def connection(self) -> Connection:
        self.sock, far = tcp_pair()
        self.stack.enter_context(far)
        made = Connection(self.loop, self.sock, self.told)
        made.open()
        return made

    def paused(self) -> Connection:
        made = self.connection()
        made.pause_reading()
        return made

    def suspended(self) -> Connection:
        made = self.connection()
        self.loop.suspend(made, 0.01)
        return made

    def writing(self) -> Connection:
        made = self.connection()
        made.write(bytes(10_000_000))
        assert made.interest & WRITE
        return made

    def listener(self) -> Listener:
        self.sock = bind_tcp(socket, LOCAL)
        self.sock.listen()
        return Listener(self.loop, self.sock, Recorder, lost=lambda _, error: self.told.ends.append(error))

    def datagram(self) -> Datagram:
        self.sock = bind_udp(socket, LOCAL)
        return Datagram(self.loop, self.sock, self.told)

    def batch(self) -> DatagramBatch:
        self.sock = bind_udp(socket, LOCAL)
        made = batch_on(self.loop, self.sock, self.told)
        assert made is not None
        return made

    def connector(self) -> Connector:
        address = self.stack.enter_context(silent_address())
        self.sock = new_client(socket, address)
        made = Connector(self.loop, self.sock, self.told, self.told.ends.append, 100.0, DEFAULT_LIMITS)
        made.start(address)
        return made

    def waker(self) -> Waker:
        [made] = self.loop.handlers
        assert isinstance(made, Waker)
        self.sock = socket.socket(fileno=made.detach())
        made.fileno = self.sock.fileno
        made.detach = self.sock.detach
        self.told.ends.append(os_error(errno.EBADF))  # it has no protocol that could be called
        return made


KINDS = "connection paused suspended writing listener datagram batch connector waker".split()


CLOSES: dict[str, Callable[[socket.socket], None]] = {
    "close": socket.socket.close,
    "os.close": lambda sock: os.close(sock.fileno()),
}


def take_the_number(loop: Reactor, number: int) -> tuple[Recorder, Connection, socket.socket]:
    """Give the number to a new client's connection, as accept(2) would."""
    near, far = tcp_pair()
    if near.fileno() != number:
        os.dup2(near.fileno(), number, inheritable=False)
        near.close()
        near = socket.socket(fileno=number)
    recorder = Recorder(echo=True)
    connection = Connection(loop, near, recorder)
    connection.open()
    far.settimeout(PATIENCE_S)
    return recorder, connection, far


def assert_echoes(loop: Reactor, recorder: Recorder, far: socket.socket) -> None:
    before = len(recorder.received)
    far.sendall(b"hello")
    turn_until(loop, lambda: len(recorder.received) == before + 5)
    assert receive_exactly(far, 5) == b"hello"


@pytest.fixture
def neighbour_of() -> Iterator[Callable[[Reactor], tuple[Recorder, socket.socket]]]:
    sockets: list[socket.socket] = []

    def make(loop: Reactor) -> tuple[Recorder, socket.socket]:
        near, far = tcp_pair()
        far.settimeout(PATIENCE_S)
        recorder = Recorder(echo=True)
        Connection(loop, near, recorder).open()
        sockets.append(far)
        return recorder, far

    yield make
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize("how", [*CLOSES, "dup2"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loop_name", LOOPS)
def test_new_client_with_the_number_of_a_lost_descriptor_is_served(
    loop_name: str, kind: str, how: str, neighbour_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The old owner's last callback gets EBADF, once. The new one isn't touched, then or at any later close."""
    with LOOPS[loop_name]() as loop:
        scene = Scene(loop, kind)
        neighbour = neighbour_of(loop)
        number = scene.sock.fileno()
        if how != "dup2":
            CLOSES[how](scene.sock)
        recorder, connection, far = take_the_number(loop, number)
        turn_idle(loop)
        assert scene.handler.closed
        assert scene.handler not in loop.handlers
        assert [error.errno for error in scene.told.ends] == [errno.EBADF]
        scene.handler.abort()
        for _ in range(3):
            assert_echoes(loop, recorder, far)
            assert_echoes(loop, *neighbour)
        connection.pause_reading()
        connection.resume_reading()
        assert_echoes(loop, recorder, far)
        far.shutdown(socket.SHUT_WR)
        turn_until(loop, lambda: connection.closed)
        assert far.recv(1) == b""
        assert len(scene.told.ends) == 1
        assert sum(record.levelname == "ERROR" for record in caplog.records) == 1
        far.close()
        scene.stack.close()
        if how != "close":
            scene.sock.detach()


@pytest.mark.long
@pytest.mark.parametrize("how", CLOSES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loop_name", LOOPS)
def test_lost_descriptor_makes_no_loop_spin_or_end(
    loop_name: str, kind: str, how: str, neighbour_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """epoll says nothing, so the handler ends at the latest with the loop, which closes nothing that isn't its own."""
    loop = LOOPS[loop_name]()
    scene = Scene(loop, kind)
    neighbour = neighbour_of(loop)
    number = scene.sock.fileno()
    CLOSES[how](scene.sock)
    turn_idle(loop, 5)
    assert_echoes(loop, *neighbour)
    if isinstance(scene.handler, Connection) and not scene.handler.closed:
        scene.handler.resume_reading()
        scene.handler.write(b"never raises")
    turns = 0
    over: list[int] = []
    loop.call_later(0.05, over.append, 1)
    while not over and turns < 60:
        loop.turn()
        turns += 1
    assert turns < 60 or loop_name == "busy", "the loop spins"
    assert_echoes(loop, *neighbour)
    assert sum(record.levelname == "ERROR" for record in caplog.records) <= 1
    loop.close()
    assert scene.handler.closed
    assert len(scene.told.ends) <= 1
    assert scene.told.ends or kind in ("listener", "connector"), "an orderly close calls neither `lost` nor `failed`"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    scene.stack.close()
    with contextlib.suppress(OSError):
        scene.sock.close()


@pytest.mark.parametrize("selector_class", [selectors.SelectSelector, selectors.PollSelector])
def test_file_under_the_number_of_a_lost_socket_is_not_closed(
    selector_class: type[selectors.BaseSelector], tmp_path: Any
) -> None:
    """By now the number may belong to a log file. recv(2) reports ENOTSOCK."""
    with Reactor(selector=selector_class()) as loop, open(tmp_path / "log", "w+b") as file:
        scene = Scene(loop, "connection")
        number = scene.sock.fileno()
        os.dup2(file.fileno(), number, inheritable=False)
        turn_until(loop, lambda: scene.told.ends)
        assert scene.told.ends[0].errno == errno.ENOTSOCK
        assert os.fstat(number).st_ino == os.fstat(file.fileno()).st_ino, "still open"
        os.close(number)
        scene.stack.close()


# ---------------------------------------------------------------- interest that the kernel refuses


class Refusing(RecordingSelector):
    """A selector whose next changes fail as `selectors` would: the kernel keeps what it had after a failed modify."""

    def __init__(self, inner: selectors.BaseSelector) -> None:
        super().__init__(inner)
        self.on_modify: list[OSError] = []

    def fileno(self) -> int:
        number: int = self.inner.fileno()  # type: ignore[attr-defined]
        return number

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if not self.on_modify:
            return super().modify(fileobj, events, data)
        key = self.inner.unregister(fileobj)
        if hasattr(self.inner, "fileno"):
            with select.epoll.fromfd(os.dup(self.fileno())) as epoll:
                epoll.register(key.fd, key.events)  # READ is EPOLLIN
        raise self.on_modify.pop(0)


CODES = [errno.ENOMEM, errno.ENOSPC, errno.EPERM, errno.EEXIST, errno.ENOENT, errno.EBADF, errno.EINVAL]


def names(code: int) -> str:
    return errno.errorcode[code]


def read_to_the_end(sock: socket.socket) -> None:
    while sock.recv(1 << 20):
        pass


@pytest.mark.long
@pytest.mark.parametrize("observer", [lambda: NOTHING_OBSERVED, lambda: Trace(id)], ids=["plain", "traced"])
@pytest.mark.parametrize("call", ["register", "modify"])
@pytest.mark.parametrize("code", CODES, ids=names)
@pytest.mark.parametrize("selector_class", SELECTORS)
def test_refused_interest_leaves_no_connection_silent(
    selector_class: type[selectors.BaseSelector], code: int, call: str, observer: Callable[[], Observer]
) -> None:
    """After a shortage the connection goes on, with every byte. After any other error its client sees a reset."""
    clock = ManualClock()
    selector = Refusing(selector_class())
    with Reactor(selector=selector, clock=clock, observer=observer()) as loop:
        near, far = tcp_pair()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
        far.settimeout(PATIENCE_S)
        recorder = Recorder()
        connection = Connection(loop, near, recorder)
        connection.open()
        blob = bytes(range(256)) * 4_000
        if call == "register":
            connection.pause_reading()
            selector.failures.append(os_error(code))
            connection.resume_reading()
        else:
            selector.on_modify.append(os_error(code))
            connection.write(blob)
            assert not selector.on_modify
        selects = len(selector.timeouts)
        loop.call_later(SHORTAGE_RETRY_S / 2, int)
        turn_idle(loop, 3)
        assert sum(bool(batch) for batch in selector.batches[selects:]) <= 1, "the loop spins"
        if connection.closed:
            assert code not in (errno.ENOMEM, errno.ENOSPC, errno.EEXIST)
            assert connection not in loop.handlers
            turn_idle(loop)
            assert [getattr(error, "errno", 0) for _, error in recorder.events[-1:]] == [code]
            with pytest.raises(ConnectionResetError):
                read_to_the_end(far)
        else:
            clock.advance(2 * SHORTAGE_RETRY_S)
            if call == "modify":
                received = bytearray()
                far.setblocking(False)

                def read() -> bool:
                    with contextlib.suppress(BlockingIOError):
                        received.extend(far.recv(1 << 20))
                    return len(received) == len(blob)

                turn_until(loop, read)
                assert received == blob
            far.sendall(b"still there?")
            turn_until(loop, lambda: recorder.received == b"still there?")
            assert connection.interest == READ
        far.close()


def test_handler_with_a_closed_descriptor_is_refused() -> None:
    near, far = tcp_pair()
    near.close()
    with Reactor() as loop, far:
        with pytest.raises(OSError, match="Bad file descriptor"):
            Connection(loop, near, Recorder())
        assert len(loop.handlers) == 1


def test_number_that_is_free_by_now_is_left_alone() -> None:
    """recv(2) said ENOTSOCK, and the file under the number has been closed since."""
    with Reactor() as loop:
        scene = Scene(loop, "connection")
        os.close(scene.sock.fileno())
        scene.handler.abort(os_error(errno.ENOTSOCK))
        turn_idle(loop)
        assert [error.errno for error in scene.told.ends] == [errno.ENOTSOCK]
        scene.stack.close()


def test_descriptor_that_other_code_has_replaced_stays_open() -> None:
    """epoll doesn't know it: it forgot the number when the first descriptor was closed."""
    ours, peer = tcp_pair()
    other, end = tcp_pair()
    with Reactor(selector=LeanEpollSelector()) as reactor, peer, end:
        connection = Connection(reactor, ours, Recorder())
        connection.open()
        number = ours.fileno()
        os.dup2(other.fileno(), number)
        reactor.set_interest(connection, READ | WRITE)
        assert connection.closed
        assert os.fstat(number).st_ino == os.fstat(other.fileno()).st_ino
        os.close(number)
    other.close()


@pytest.mark.parametrize("selector_class", SELECTORS)
def test_number_of_a_paused_connection_is_not_watched_for_it_when_its_socket_is_closed(
    selector_class: type[selectors.BaseSelector],
) -> None:
    """The number is a socket's that the loop doesn't know, so nothing has released the connection before."""
    ours, peer = tcp_pair()
    with Reactor(selector=selector_class()) as loop, peer:
        recorder = Told()
        connection = Connection(loop, ours, recorder)
        connection.open()
        connection.pause_reading()
        number = ours.fileno()
        ours.close()
        other, end = tcp_pair()
        os.dup2(other.fileno(), number)
        with other, end:
            connection.resume_reading()
            assert connection.closed
            turn_idle(loop)
            assert [error.errno for error in recorder.ends] == [errno.EBADF]
            assert os.fstat(number).st_ino == os.fstat(other.fileno()).st_ino, "still open"
            end.sendall(b"not the loop's")
            turn_idle(loop)
            assert receive_exactly(other, 14) == b"not the loop's"
        os.close(number)
