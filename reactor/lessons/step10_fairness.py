"""Lesson 10: fairness.

Does    every piece of work is bounded, so each client gets its turn. The server receives once for each readiness, a
        larger piece: a client that has sent more is still readable in the next turn (the selector is level-triggered)
        and waits behind the others. The number of datagrams in a turn is bounded too. All due timers leave the heap
        before the first is called: a timer that sets itself again is called in the next turn, after the sockets.
Fixes   lesson 9, where a client that never paused kept the loop to itself.
Breaks  with signals and threads. SIGTERM kills the server at once, and what it has received and not yet answered is
        lost. A thread that has a result for the loop can't wake it from its sleep in `select`.
"""

import contextlib
import enum
import heapq
import itertools
import selectors
import socket
import sys
import time
from collections.abc import Callable
from selectors import EVENT_READ as READ
from selectors import EVENT_WRITE as WRITE

RECEIVE_BYTES = 64 * 1024
HIGH_WATER_BYTES = 64 * 1024
DATAGRAM_BYTES = 65_536
DATAGRAMS_PER_TURN = 16


class Loop:
    """A selector, and a heap of calls for later."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.timers: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()  # of two timers with the same deadline, the older comes first

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call `callback()` once, after `delay_s` seconds."""
        heapq.heappush(self.timers, (time.monotonic() + delay_s, next(self.numbers), callback))

    def run(self) -> None:
        """Turn forever: sleep, sockets, timers."""
        while True:
            sleep_s = max(0.0, self.timers[0][0] - time.monotonic()) if self.timers else None
            for key, mask in self.selector.select(sleep_s):
                key.data(mask)
            for callback in self.pop_due(time.monotonic()):
                callback()

    def pop_due(self, now_s: float) -> list[Callable[[], None]]:
        """Remove all due timers and return their callbacks, before any is called."""
        due = []
        while self.timers and self.timers[0][0] <= now_s:
            due.append(heapq.heappop(self.timers)[2])
        return due


class State(enum.Enum):
    """OPEN: reading and writing. DRAINING: the client has finished, we deliver what waits. CLOSED: the end."""

    OPEN = enum.auto()
    DRAINING = enum.auto()
    CLOSED = enum.auto()


class Connection:
    """One client, the bytes that wait to be sent to it, and when a byte last moved."""

    def __init__(self, loop: Loop, sock: socket.socket, idle_s: float) -> None:
        self.loop, self.sock, self.idle_s = loop, sock, idle_s
        self.waiting = bytearray()
        self.state = State.OPEN
        self.moved_s = time.monotonic()
        sock.setblocking(False)
        loop.selector.register(sock, READ, self.on_event)
        loop.call_later(idle_s, self.check_idle)

    def check_idle(self) -> None:
        """Close if no byte has moved for `idle_s`; else look again at the earliest time when that may be so."""
        left_s = self.moved_s + self.idle_s - time.monotonic()
        if self.state is State.CLOSED:
            return
        if left_s <= 0:
            self.close()
        else:
            self.loop.call_later(left_s, self.check_idle)

    def on_event(self, mask: int) -> None:
        """Do what the socket is ready for, then update what the selector watches."""
        self.moved_s = time.monotonic()
        try:
            if mask & READ:
                self.receive()
            if mask & WRITE:
                self.flush()
        except OSError:
            self.close()
        if self.state is State.DRAINING and not self.waiting:
            self.close()
        if self.state is not State.CLOSED:
            self.loop.selector.modify(self.sock, self.interest(), self.on_event)

    def interest(self) -> int:
        """Return what to watch for. Only this method decides it."""
        reading = READ if self.state is State.OPEN and len(self.waiting) <= HIGH_WATER_BYTES else 0
        writing = WRITE if self.waiting else 0
        return reading | writing

    def receive(self) -> None:
        """Receive once, and send back what the kernel takes."""
        with contextlib.suppress(BlockingIOError):  # readiness is a hint: nothing may be there after all
            data = self.sock.recv(RECEIVE_BYTES)
            if not data:
                self.state = State.DRAINING
            self.waiting += data
            self.flush()

    def flush(self) -> None:
        """Send what waits, as much of it as the kernel takes."""
        with contextlib.suppress(BlockingIOError):
            if self.waiting:
                sent = self.sock.send(self.waiting)
                del self.waiting[:sent]

    def close(self) -> None:
        """Unregister and close the socket."""
        self.state = State.CLOSED
        self.loop.selector.unregister(self.sock)
        self.sock.close()


def serve(listener: socket.socket, datagrams: socket.socket, idle_s: float) -> None:
    """Echo forever, TCP and UDP; close clients that have been idle for `idle_s` seconds."""
    loop = Loop()
    listener.setblocking(False)
    datagrams.setblocking(False)

    def accept(_mask: int) -> None:
        Connection(loop, listener.accept()[0], idle_s)

    def echo_datagrams(_mask: int) -> None:
        with contextlib.suppress(OSError):  # no datagram is left, or one failed
            for _ in range(DATAGRAMS_PER_TURN):
                data, source = datagrams.recvfrom(DATAGRAM_BYTES)
                datagrams.sendto(data, source)

    loop.selector.register(listener, READ, accept)
    loop.selector.register(datagrams, READ, echo_datagrams)
    loop.run()


def main() -> None:
    """Serve 127.0.0.1 on the given port, or 7007, until Ctrl-C."""
    try:
        listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 7007))
        datagrams = socket.socket(type=socket.SOCK_DGRAM)
        datagrams.bind(listener.getsockname())
    except (ValueError, OverflowError, OSError) as error:
        sys.exit(f"can't serve there: {error}")
    with listener, datagrams, contextlib.suppress(KeyboardInterrupt):
        print("serving", *listener.getsockname(), flush=True)
        serve(listener, datagrams, idle_s=60.0)


if __name__ == "__main__":
    main()
