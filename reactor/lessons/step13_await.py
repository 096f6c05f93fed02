"""Lesson 13: `async` and `await` on top of `reactor`, in under a hundred lines.

Does    a coroutine is a function that can stop in the middle and continue later. `await` stops it and hands a Future to
        its Task; when the future is done, the Task continues the coroutine. Nothing more is needed, and asyncio is
        built the same way. A handler can then be written from top to bottom: `echo` has two lines.
Fixes   lesson 12, where a dialogue is split into callbacks.
Breaks  no promise. asyncio adds more: cancelling a task that waits, exceptions that reach the code that awaits a task,
        groups and locks and queues, TLS, child processes, name look-ups in threads, Windows' IOCP, and a debug mode.
        Both share one rule: no code may block. A task that never awaits delays all others.
"""

import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from reactor import Address, Connection, Datagram, DatagramProtocol, Listener, Reactor, StreamProtocol

HIGH_WATER_BYTES = 64 * 1024
GRACE_S = 5.0


class Future:
    """A result that comes later. One task may await it."""

    def __init__(self) -> None:
        self.done = False
        self.result: Any = None
        self.wake: Callable[[], None] = lambda: None  # the waiting task stores its next step here

    def resolve(self, result: Any = None) -> None:
        """Set the result, and wake the waiting task. Only the first result counts."""
        if not self.done:
            self.done, self.result = True, result
            self.wake()

    def __await__(self) -> Generator["Future", None, Any]:
        """Give this future to the task that runs the coroutine. `await` is made of generators; this is the yield."""
        if not self.done:
            yield self
        return self.result


class Task:
    """Runs a coroutine until it awaits a future, then continues it when the future is done."""

    def __init__(self, loop: Reactor, coroutine: Coroutine[Future, None, None]) -> None:
        self.loop, self.coroutine = loop, coroutine
        loop.call_soon(self.step)

    def step(self) -> None:
        """Continue to the next await, or to the end. The loop logs what the coroutine raises."""
        with contextlib.suppress(StopIteration):
            self.coroutine.send(None).wake = lambda: self.loop.call_soon(self.step)


class Stream(StreamProtocol):
    """A connection as a coroutine sees it. When the handler that serves it returns, the connection is closed."""

    def __init__(self, server: "Server") -> None:
        self.server, self.loop = server, server.loop
        self.received, self.ended = bytearray(), False
        self.moved = Future()

    async def read(self) -> bytes:
        """Return what has arrived, as soon as there is something; b"" at the end. Raise TimeoutError when idle."""
        while not (self.received or self.ended):
            await self.movement()
        data = bytes(self.received)
        self.received.clear()
        if not self.ended:
            self.connection.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        """Send; return when not too much waits. Raise TimeoutError if the client takes nothing."""
        self.connection.write(data)
        while self.connection.pending_bytes > HIGH_WATER_BYTES:
            await self.movement()

    async def sleep(self, delay_s: float) -> None:
        """Return after `delay_s` seconds. The loop does other work meanwhile."""
        awake = Future()
        self.loop.call_later(delay_s, awake.resolve)
        await awake

    async def movement(self) -> None:
        """Return when something has happened on the connection. A timeout resolves the future too."""
        self.moved, moved_bytes = Future(), self.connection.bytes_received + self.connection.bytes_sent
        timer = self.loop.call_later(self.server.idle_s, self.moved.resolve, False)
        if await self.moved:
            timer.cancel()
        elif moved_bytes == self.connection.bytes_received + self.connection.bytes_sent:  # a slow reader moves some
            raise TimeoutError

    async def run(self) -> None:
        """Serve, deliver, close: the whole life of a connection, in one place."""
        with contextlib.suppress(TimeoutError):
            await self.server.handler(self)
            while self.connection.pending_bytes:
                await self.movement()
        if self.connection.pending_bytes:
            self.connection.abort()  # `close` would wait forever for the client to read
        self.connection.close()

    def connection_made(self, connection: Connection) -> None:
        """Start the handler's task."""
        self.connection = connection
        self.server.streams.add(self)
        Task(self.loop, self.run())

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Keep the data for `read`. When there is too much, stop reading, and TCP stops the client."""
        self.received += data
        if len(self.received) > HIGH_WATER_BYTES:
            connection.pause_reading()
        self.moved.resolve(True)

    def end(self) -> None:
        """Receive no more: `read` returns what has arrived, then b""."""
        self.ended = True
        self.connection.pause_reading()
        self.moved.resolve(True)

    def eof_received(self, connection: Connection) -> bool:
        """Let the handler read to the end and go on writing: `run` closes."""
        self.end()
        return True

    def drained(self, connection: Connection) -> None:
        """Let `write` go on."""
        self.moved.resolve(True)

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Wake the handler: nothing more will arrive, and nothing more can be sent."""
        self.end()
        self.server.forget(self)


Handler = Callable[[Stream], Coroutine[Future, None, None]]


async def echo(stream: Stream) -> None:
    """Send back what arrives, up to the end."""
    while data := await stream.read():
        await stream.write(data)


class EchoDatagrams(DatagramProtocol):
    """UDP needs no coroutine: a datagram is a dialogue of one line."""

    def datagram_received(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        """Send it back."""
        endpoint.send(data, source, path)


class Server:
    """The same as in lesson 12, with a handler for each connection."""

    def __init__(self, loop: Reactor, listener: socket.socket, idle_s: float, handler: Handler) -> None:
        self.loop, self.idle_s, self.handler = loop, idle_s, handler
        self.streams: set[Stream] = set()
        self.stopping = False
        listener.setblocking(False)
        self.listener = Listener(loop, listener, lambda: Stream(self))

    def stop(self) -> None:
        """Accept no more clients, let each handler finish, and wait for them GRACE_S at most."""
        self.stopping = True
        self.listener.close()
        for stream in self.streams:
            stream.end()
        self.loop.call_later(GRACE_S, self.loop.stop)
        if not self.streams:
            self.loop.stop()

    def forget(self, stream: Stream) -> None:
        """Remove a closed connection. If we are stopping and it was the last one, end."""
        self.streams.discard(stream)
        if self.stopping and not self.streams:
            self.loop.stop()


def serve(
    listener: socket.socket,
    datagrams: socket.socket,
    idle_s: float,
    ready: Callable[[Callable[..., None]], Any],
    handler: Handler = echo,
) -> None:
    """Have `handler` serve each connection, and echo datagrams, until a signal. `ready` is as in lesson 12."""
    datagrams.setblocking(False)
    with Reactor() as loop:
        server = Server(loop, listener, idle_s, handler)
        Datagram(loop, datagrams, EchoDatagrams())
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, server.stop)
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
