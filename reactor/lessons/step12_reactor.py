"""Lesson 12: the same server on the real loop, `reactor`.

Does    the same as lesson 11. The loop, the buffers, the states and the interest come from `reactor`. What is left here
        is the service itself: what to answer, when to give up on a client, how to end.
Fixes   three faults of lesson 11. Without a free descriptor, clients wait in the kernel's queue until there is one. A
        call that raises costs a log line. After our FIN a connection lingers until the client's FIN, so that no reset
        destroys the last answers.
Breaks  with a dialogue, as all callbacks do: three questions become three methods, and `self` holds what the dialogue
        must remember between them.
"""

import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from reactor import Address, Connection, Datagram, DatagramProtocol, Listener, Reactor, StreamProtocol

GRACE_S = 5.0  # the longest wait at the end for clients that read slowly
LOOKS = 4  # how often to look for moved bytes within `idle_s`


class Echo(StreamProtocol):
    """One for each connection: send back what arrives, and close when no byte moves for `idle_s`."""

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.moved_bytes, self.moved_s = 0, server.loop.now()

    def connection_made(self, connection: Connection) -> None:
        """Remember the connection, and start to look for idleness."""
        self.server.connections.add(connection)
        self.server.loop.call_later(self.server.idle_s / LOOKS, self.check_idle, connection)

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Echo. The connection keeps what the kernel doesn't take; above its high-water mark it stops reading."""
        connection.write(data)

    def check_idle(self, connection: Connection) -> None:
        """Give up if no byte has moved, either way, for `idle_s`. A slow reader stays; one that never reads doesn't."""
        if connection.closed:
            return
        moved_bytes, now_s = connection.bytes_received + connection.bytes_sent, self.server.loop.now()
        if moved_bytes != self.moved_bytes:
            self.moved_bytes, self.moved_s = moved_bytes, now_s
        if now_s - self.moved_s < self.server.idle_s:
            self.server.loop.call_later(self.server.idle_s / LOOKS, self.check_idle, connection)
        elif connection.pending_bytes:
            connection.abort()  # `close` would wait forever for the client to read
        else:
            connection.close()

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Forget the connection, however it ended. This is always the last callback."""
        self.server.forget(connection)


class EchoDatagrams(DatagramProtocol):
    """The same for UDP."""

    def datagram_received(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        """Echo from the address that was asked: `path` names it."""
        endpoint.send(data, source, path)


class Server:
    """The echo service on a loop: its connections, and how it ends."""

    def __init__(self, loop: Reactor, listener: socket.socket, datagrams: socket.socket, idle_s: float) -> None:
        self.loop, self.idle_s = loop, idle_s
        self.connections: set[Connection] = set()
        self.stopping = False
        listener.setblocking(False)
        datagrams.setblocking(False)
        self.listener = Listener(loop, listener, lambda: Echo(self))
        self.endpoint = Datagram(loop, datagrams, EchoDatagrams())

    def stop(self) -> None:
        """Accept no more clients, and end when all have their answers, or after GRACE_S."""
        self.stopping = True
        self.listener.close()
        self.endpoint.close()
        for connection in self.connections:
            connection.close()
        self.loop.call_later(GRACE_S, self.loop.stop)
        if not self.connections:
            self.loop.stop()

    def forget(self, connection: Connection) -> None:
        """Remove a closed connection. If we are stopping and it was the last one, end."""
        self.connections.discard(connection)
        if self.stopping and not self.connections:
            self.loop.stop()


def serve(
    listener: socket.socket, datagrams: socket.socket, idle_s: float, ready: Callable[[Callable[..., None]], Any]
) -> None:
    """Echo until a signal. `ready` is called once, with the function through which other threads queue calls."""
    with Reactor() as loop:
        server = Server(loop, listener, datagrams, idle_s)
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
