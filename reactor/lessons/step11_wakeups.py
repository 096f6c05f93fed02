"""Lesson 11: signals, and calls from other threads.

Does    a socket pair is one more readable descriptor. The loop watches one end, and a byte written to the other end
        wakes it. The byte only wakes; the work itself is in `calls`. A thread writes the byte in
        `call_soon_threadsafe`; for a signal, Python writes it (`set_wakeup_fd`). SIGTERM and SIGINT end the service in
        order: it accepts no more clients, reads nothing more, and answers all that it has received.
Fixes   lesson 10: SIGTERM killed it with answers in its buffers, and no thread could wake it.
Breaks  when something fails. With no descriptor left, `accept` raises, and the service ends for all clients. A call
        that raises ends it too. And if the server closes while a client still sends, the kernel sends a reset, which
        destroys the last answers.
"""

import collections
import contextlib
import enum
import heapq
import itertools
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from selectors import EVENT_READ as READ
from selectors import EVENT_WRITE as WRITE

Call = Callable[[], object]
RECEIVE_BYTES = 64 * 1024
HIGH_WATER_BYTES = 64 * 1024
DATAGRAM_BYTES = 65_536
DATAGRAMS_PER_TURN = 16
GRACE_S = 5.0  # the longest wait at the end for clients that read slowly


class Loop:
    """A selector, timers, and calls that may come from any thread."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.timers: list[tuple[float, int, Call]] = []
        self.numbers = itertools.count()
        self.calls: collections.deque[Call] = collections.deque()
        self.running = True
        self.reader, self.writer = socket.socketpair()
        self.reader.setblocking(False)
        self.writer.setblocking(False)
        self.selector.register(self.reader, READ, lambda _mask: self.reader.recv(4096))

    def call_later(self, delay_s: float, callback: Call) -> None:
        """Call `callback()` once, after `delay_s` seconds."""
        heapq.heappush(self.timers, (time.monotonic() + delay_s, next(self.numbers), callback))

    def call_soon_threadsafe(self, callback: Call) -> None:
        """Have the loop call `callback()`. Any thread may ask: first queue the call, then wake the loop."""
        self.calls.append(callback)
        with contextlib.suppress(BlockingIOError):  # the pair is full, so a wake-up is pending already
            self.writer.send(b"\0")

    def on_signals(self, callback: Call) -> None:
        """Call `callback()` after SIGTERM or SIGINT. C code writes the byte; our handler runs at the next bytecode."""
        signal.set_wakeup_fd(self.writer.fileno())
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: self.calls.append(callback))

    def run(self) -> None:
        """Turn until `running` is false: sleep, sockets, timers, calls."""
        while self.running:
            sleep_s = max(0.0, self.timers[0][0] - time.monotonic()) if self.timers else None
            for key, mask in self.selector.select(0.0 if self.calls else sleep_s):
                key.data(mask)
            for callback in self.pop_due(time.monotonic()):
                callback()
            for _ in range(len(self.calls)):  # a call that they add runs in the next turn
                self.calls.popleft()()

    def pop_due(self, now_s: float) -> list[Call]:
        """Remove all due timers and return their callbacks, before any is called."""
        due = []
        while self.timers and self.timers[0][0] <= now_s:
            due.append(heapq.heappop(self.timers)[2])
        return due


class State(enum.Enum):
    """OPEN: reading and writing. DRAINING: reading no more, we deliver what waits. CLOSED: the end."""

    OPEN = enum.auto()
    DRAINING = enum.auto()
    CLOSED = enum.auto()


class Connection:
    """One client, the bytes that wait to be sent to it, and when a byte last moved."""

    def __init__(self, server: "Server", sock: socket.socket) -> None:
        self.server, self.loop, self.sock = server, server.loop, sock
        self.waiting = bytearray()
        self.state = State.OPEN
        self.moved_s = time.monotonic()
        sock.setblocking(False)
        self.loop.selector.register(sock, READ, self.on_event)
        self.loop.call_later(server.idle_s, self.check_idle)

    def check_idle(self) -> None:
        """Close if no byte has moved for `idle_s`; else look again at the earliest time when that may be so."""
        left_s = self.moved_s + self.server.idle_s - time.monotonic()
        if self.state is State.CLOSED:
            return
        if left_s <= 0:
            self.close()
        else:
            self.loop.call_later(left_s, self.check_idle)

    def on_event(self, mask: int) -> None:
        """Do what the socket is ready for."""
        self.moved_s = time.monotonic()
        try:
            if mask & READ:
                self.receive()
            if mask & WRITE:
                self.flush()
        except OSError:
            self.close()
        self.update()

    def update(self) -> None:
        """Close if all is done, else update what the selector watches."""
        if self.state is State.DRAINING and not self.waiting:
            self.close()
        if self.state is not State.CLOSED:
            reading = READ if self.state is State.OPEN and len(self.waiting) <= HIGH_WATER_BYTES else 0
            writing = WRITE if self.waiting else 0
            self.loop.selector.modify(self.sock, reading | writing, self.on_event)

    def receive(self) -> None:
        """Receive once, and send back what the kernel takes."""
        with contextlib.suppress(BlockingIOError):
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

    def finish(self) -> None:
        """Stop reading, deliver what waits, then close."""
        self.state = State.DRAINING
        self.update()

    def close(self) -> None:
        """Unregister and close the socket."""
        self.state = State.CLOSED
        self.loop.selector.unregister(self.sock)
        self.sock.close()
        self.server.forget(self)


class Server:
    """The echo service on a loop: its connections, and how it ends."""

    def __init__(self, loop: Loop, listener: socket.socket, datagrams: socket.socket, idle_s: float) -> None:
        self.loop, self.listener, self.datagrams, self.idle_s = loop, listener, datagrams, idle_s
        self.connections: set[Connection] = set()
        self.stopping = False
        listener.setblocking(False)
        datagrams.setblocking(False)
        loop.selector.register(listener, READ, self.accept)
        loop.selector.register(datagrams, READ, self.echo_datagrams)

    def accept(self, _mask: int) -> None:
        """Accept one client."""
        self.connections.add(Connection(self, self.listener.accept()[0]))

    def echo_datagrams(self, _mask: int) -> None:
        """Send back the datagrams that have arrived, a bounded number of them."""
        with contextlib.suppress(OSError):
            for _ in range(DATAGRAMS_PER_TURN):
                data, source = self.datagrams.recvfrom(DATAGRAM_BYTES)
                self.datagrams.sendto(data, source)

    def stop(self) -> None:
        """Accept no more clients, and end when all have their answers, or after GRACE_S."""
        if self.stopping:  # a second signal came at the same time
            return
        self.stopping = True
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, signal.SIG_DFL)  # a second signal ends the process at once
        self.loop.selector.unregister(self.listener)
        self.listener.close()
        self.loop.call_later(GRACE_S, self.end)
        for connection in tuple(self.connections):
            connection.finish()
        self.loop.running = bool(self.connections)

    def forget(self, connection: Connection) -> None:
        """Remove a closed connection. If we are stopping and it was the last one, end."""
        self.connections.discard(connection)
        if self.stopping and not self.connections:
            self.end()

    def end(self) -> None:
        """Make this turn the loop's last."""
        self.loop.running = False


def serve(
    listener: socket.socket, datagrams: socket.socket, idle_s: float, ready: Callable[[Callable[[Call], None]], object]
) -> None:
    """Echo until a signal. `ready` is called once, with the function through which other threads queue calls."""
    loop = Loop()
    server = Server(loop, listener, datagrams, idle_s)
    loop.on_signals(server.stop)
    ready(loop.call_soon_threadsafe)
    loop.run()


def main() -> None:
    """Serve 127.0.0.1 on the given port, or 7007, until Ctrl-C."""
    try:
        listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 7007))
        datagrams = socket.socket(type=socket.SOCK_DGRAM)
        datagrams.bind(listener.getsockname())
    except (ValueError, OverflowError, OSError) as error:
        sys.exit(f"can't serve there: {error}")
    with listener, datagrams:
        print("serving", *listener.getsockname(), flush=True)
        serve(listener, datagrams, idle_s=60.0, ready=lambda call_soon_threadsafe: None)


if __name__ == "__main__":
    main()
