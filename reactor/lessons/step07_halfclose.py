"""Lesson 7: half-close, and states.

Does    TCP has two directions, and each ends on its own. When `recv` returns b"", the client will send no more, but it
        may still read. So a connection has a state, and one table says which state follows which:

            state     means                                      goes to
            OPEN      reading and writing                        DRAINING  the client has sent its end (FIN)
            DRAINING  reading no more, delivering what waits     CLOSED    all is delivered
            CLOSED    the socket is closed                       any state gets here when the socket raises

Fixes   lesson 6, which lost the waiting bytes when the client had finished sending. A reset ended it for all clients.
Breaks  with UDP. The echo service serves UDP too (RFC 862), and a thread that sleeps in `select` for TCP can't sleep in
        `recvfrom` at the same time.
"""

import contextlib
import enum
import functools
import selectors
import socket
import sys
from selectors import EVENT_READ as READ
from selectors import EVENT_WRITE as WRITE

RECEIVE_BYTES = 4096
HIGH_WATER_BYTES = 64 * 1024


class State(enum.Enum):
    """OPEN: reading and writing. DRAINING: the client has finished, we deliver what waits. CLOSED: the end."""

    OPEN = enum.auto()
    DRAINING = enum.auto()
    CLOSED = enum.auto()


class Connection:
    """One client, and the bytes that wait to be sent to it."""

    def __init__(self, selector: selectors.BaseSelector, sock: socket.socket) -> None:
        self.selector, self.sock = selector, sock
        self.waiting = bytearray()
        self.state = State.OPEN
        sock.setblocking(False)
        selector.register(sock, READ, self.on_event)

    def on_event(self, mask: int) -> None:
        """Do what the socket is ready for, then update what the selector watches."""
        try:
            if mask & READ:
                self.receive()
            if mask & WRITE:
                self.flush()
        except OSError:  # a reset, or the network has failed: it ends this connection only
            self.close()
        if self.state is State.DRAINING and not self.waiting:
            self.close()
        if self.state is not State.CLOSED:
            self.selector.modify(self.sock, self.interest(), self.on_event)

    def interest(self) -> int:
        """Return what to watch for. Only this method decides it."""
        reading = READ if self.state is State.OPEN and len(self.waiting) <= HIGH_WATER_BYTES else 0
        writing = WRITE if self.waiting else 0
        return reading | writing

    def receive(self) -> None:
        """Receive all that has arrived, unless too much waits, and send back what the kernel takes."""
        with contextlib.suppress(BlockingIOError):  # nothing is left to receive
            while self.interest() & READ:
                data = self.sock.recv(RECEIVE_BYTES)
                if not data:
                    self.state = State.DRAINING
                self.waiting += data
                self.flush()

    def flush(self) -> None:
        """Send what waits, as much of it as the kernel takes."""
        with contextlib.suppress(BlockingIOError):  # the kernel takes nothing now
            if self.waiting:
                sent = self.sock.send(self.waiting)
                del self.waiting[:sent]

    def close(self) -> None:
        """Unregister and close the socket. The kernel sends our FIN after the bytes that it has taken."""
        self.state = State.CLOSED
        self.selector.unregister(self.sock)
        self.sock.close()


def serve(listener: socket.socket) -> None:
    """Echo forever."""
    selector = selectors.DefaultSelector()
    listener.setblocking(False)
    selector.register(listener, READ, functools.partial(accept, selector, listener))
    while True:
        for key, mask in selector.select():
            key.data(mask)


def accept(selector: selectors.BaseSelector, listener: socket.socket, _mask: int) -> None:
    """Accept one client. The selector keeps the connection: `on_event` is its data."""
    Connection(selector, listener.accept()[0])


def main() -> None:
    """Serve 127.0.0.1 on the given port, or 7007, until Ctrl-C."""
    try:
        listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 7007))
    except (ValueError, OverflowError, OSError) as error:
        sys.exit(f"can't serve there: {error}")
    with listener, contextlib.suppress(KeyboardInterrupt):
        print("serving", *listener.getsockname(), flush=True)
        serve(listener)


if __name__ == "__main__":
    main()
