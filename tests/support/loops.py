"""Loops turned by hand or in a thread, and protocols that record their callbacks."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeGuard

from reactor import Connection, DatagramProtocol, Handler, Listener, Reactor, StreamProtocol
from reactor.datagram import Datagram
from reactor.fastpath.batch import DatagramBatch
from reactor.fastpath.epoll import LeanEpollSelector
from reactor.limits import DEFAULT_LIMITS, Limits
from tests.support.basics import PATIENCE_S
from tests.support.clients import tcp_pair
from tests.support.faults import Faults, adopt_socket

MOST_TURNS = 200_000


SELECTORS: list[type[selectors.BaseSelector]] = [
    getattr(selectors, name)
    for name in ("SelectSelector", "PollSelector", "EpollSelector", "KqueueSelector", "DevpollSelector")
    if hasattr(selectors, name)
] + ([LeanEpollSelector] if hasattr(select, "epoll") else [])


def turn_until(reactor: Reactor, condition: Callable[[], object], turns: int = MOST_TURNS) -> None:
    """Turn the loop until `condition()` is true. A wake-up timer keeps a turn from blocking for ever."""
    patience_ends_s = time.monotonic() + PATIENCE_S
    for _ in range(turns):
        if condition():
            return
        assert time.monotonic() < patience_ends_s, f"the condition is still false after {PATIENCE_S} s: {condition}"
        waker = reactor.call_later(0.005, int)
        reactor.turn()
        waker.cancel()
    raise AssertionError(f"the condition is still false after {turns} turns: {condition}")


def turn_idle(reactor: Reactor, turns: int = 20) -> None:
    """Turn the loop a few times without blocking, so that everything that is ready is done."""
    for _ in range(turns):
        reactor.call_soon(int)
        reactor.turn()


def is_endpoint(handler: Handler) -> TypeGuard[Datagram | DatagramBatch]:
    """Tell whether a handler is a UDP endpoint, on either path."""
    return isinstance(handler, Datagram | DatagramBatch)


class Recorder(StreamProtocol):
    """A protocol that records its callbacks, and echoes if `echo`."""

    def __init__(self, echo: bool = False, keep_open_on_eof: bool = False) -> None:
        self.echo = echo
        self.keep_open_on_eof = keep_open_on_eof
        self.events: list[tuple[Any, ...]] = []
        self.connections: list[Connection] = []
        self.received = bytearray()

    def connection_made(self, connection: Connection) -> None:
        self.connections.append(connection)
        self.events.append(("made",))

    def data_received(self, connection: Connection, data: bytes) -> None:
        self.events.append(("data", data))
        self.received += data
        if self.echo:
            connection.write(data)

    def drained(self, connection: Connection) -> None:
        self.events.append(("drained",))

    def eof_received(self, connection: Connection) -> bool:
        self.events.append(("eof",))
        return self.keep_open_on_eof

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        self.events.append(("lost", error))

    def kinds(self) -> list[str]:
        """Return the names of the events, with runs of `data` folded into one."""
        names: list[str] = []
        for event in self.events:
            if not (names and names[-1] == event[0] == "data"):
                names.append(event[0])
        return names


class DatagramRecorder(DatagramProtocol):
    """A UDP protocol that records datagrams, and echoes if `echo`."""

    def __init__(self, echo: bool = False) -> None:
        self.echo = echo
        self.received: list[tuple[bytes, Any, bytes]] = []
        self.lost: list[Exception | None] = []

    def datagram_received(self, endpoint: Datagram, data: bytes, source: Any, path: bytes) -> None:
        self.received.append((data, source, path))
        if self.echo:
            endpoint.send(data, source, path)

    def endpoint_lost(self, endpoint: Datagram, error: Exception | None) -> None:
        self.lost.append(error)


def server_side(reactor: Reactor, client: socket.socket) -> Connection:
    """Turn the loop until it has accepted this client, and return the connection that serves it."""
    found: list[Connection] = []
    both_ends = client.getpeername(), client.getsockname()  # clients of two listeners may have the same port

    def look() -> bool:
        for handler in reversed(reactor.handlers):
            with contextlib.suppress(OSError):  # its client has gone
                if isinstance(handler, Connection) and both_ends == (
                    handler.socket.getsockname(),
                    handler.socket.getpeername(),
                ):
                    found.append(handler)
                    return True
        return False

    turn_idle(reactor, 1)  # the new connection is usually the last handler then
    turn_until(reactor, look)
    return found[0]


def wait_readable(handler: socket.socket | Connection | Listener) -> None:
    """Return when the kernel has something to read or accept. Reads nothing, and turns no loop."""
    ready, _, _ = select.select([handler], [], [], PATIENCE_S)
    assert ready, f"nothing has arrived within {PATIENCE_S} s"


class CountingSelector(selectors.DefaultSelector):
    """Counts select calls."""

    def __init__(self) -> None:
        super().__init__()
        self.selects = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.selects += 1
        return super().select(timeout)


class ManualClock:
    """A monotonic clock that moves only by `advance`."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


class LoopThread:
    """A Reactor that runs in its own thread. `call` runs a function there and returns its result."""

    def __init__(self, **options: Any) -> None:
        self.reactor = Reactor(**options)
        self._thread = threading.Thread(target=self.reactor.run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.reactor.call_soon_threadsafe(self.reactor.stop)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the loop didn't stop"
        self.reactor.close()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run `function(*args)` on the loop; return its result, or raise its exception."""
        done = threading.Event()
        box: list[tuple[Any, Exception | None]] = []

        def run() -> None:
            try:
                box.append((function(*args), None))
            except Exception as error:
                box.append((None, error))
            done.set()

        self.reactor.call_soon_threadsafe(run)
        assert done.wait(PATIENCE_S), "the loop is stuck"
        result, error = box[0]
        if error is not None:
            raise error
        return result

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Return when `condition()` is true on the loop, which checks every two milliseconds."""
        done = threading.Event()

        def look() -> None:
            if condition():
                done.set()
            else:
                self.reactor.call_later(0.002, look)

        self.reactor.call_soon_threadsafe(look)
        assert done.wait(PATIENCE_S), f"the condition is still false after {PATIENCE_S} s: {condition}"


def connections_of(reactor: Reactor) -> list[Connection]:
    """Every open Connection of a loop, oldest first."""
    return [handler for handler in reactor.handlers if isinstance(handler, Connection)]


@contextlib.contextmanager
def kernel_socket(handler: Handler) -> Iterator[socket.socket]:
    """Yield a duplicate of a handler's socket, to read or set its options."""
    with socket.socket(fileno=os.dup(handler.fileno())) as sock:
        yield sock


class RecordingSelector(selectors.BaseSelector):
    """Wraps a selector, and records timeouts and batches. Each entry of `failures` fails one change of interest."""

    def __init__(
        self, inner: selectors.BaseSelector | None = None, on_select: Callable[[], object] | None = None
    ) -> None:
        self.inner = inner if inner is not None else selectors.DefaultSelector()
        self.on_select = on_select
        self.timeouts: list[float | None] = []
        self.batches: list[list[tuple[selectors.SelectorKey, int]]] = []
        self.failures: list[OSError] = []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if self.failures:
            raise self.failures.pop(0)
        return self.inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self.inner.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if self.failures:
            self.inner.unregister(fileobj)  # as the standard library's selectors do
            raise self.failures.pop(0)
        return self.inner.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.timeouts.append(timeout)
        if self.on_select is not None:
            self.on_select()
        batch = self.inner.select(timeout)
        self.batches.append(batch)
        return batch

    def close(self) -> None:
        self.inner.close()

    def get_map(self) -> Any:
        return self.inner.get_map()


class Stage:
    """One Connection on a loop turned by hand, with `peer` at its other end, a manual clock and scripted faults."""

    def __init__(
        self,
        protocol: Recorder | None = None,
        selector_class: type[selectors.BaseSelector] = selectors.DefaultSelector,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.protocol = protocol if protocol is not None else Recorder()
        self.clock, self.faults = ManualClock(), Faults()
        self.selector = RecordingSelector(selector_class())
        self.reactor = Reactor(selector=self.selector, clock=self.clock)
        ours, self.peer = tcp_pair()
        self.peer.settimeout(PATIENCE_S)
        self.connection = Connection(self.reactor, adopt_socket(ours, self.faults), self.protocol, limits)

    def __enter__(self) -> Stage:
        self.connection.open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.reactor.close()
        self.peer.close()

    def until(self, condition: Callable[[], object]) -> None:
        """Turn until `condition()` is true. Time stands still."""
        turn_until(self.reactor, condition)

    def idle(self) -> None:
        """Turn until everything that is ready is done."""
        turn_idle(self.reactor)
