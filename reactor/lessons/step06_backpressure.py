"""Lesson 6: backpressure, by interest that is computed.

Does    while more than HIGH_WATER_BYTES wait in the buffer, the program doesn't read from the client. Then the kernel's
        buffers fill, TCP tells the client's kernel to stop, and a client that never reads stops itself. No code
        switches READ or WRITE on and off: one method, `interest`, computes them from the connection.
Fixes   lesson 5, where one client could take all of the memory.
Breaks  with a client that has finished sending: it closes its sending half, and waits for the rest of the answer. This
        program takes the end of the input for the end of everything. It closes, and the bytes that waited are lost. And
        when a client resets its connection, `recv` raises, and the service ends for all clients.
"""

import contextlib
import functools
import selectors
import socket
import sys
from selectors import EVENT_READ as READ
from selectors import EVENT_WRITE as WRITE

RECEIVE_BYTES = 4096
HIGH_WATER_BYTES = 64 * 1024


class Connection:
    """One client, and the bytes that wait to be sent to it."""

    def __init__(self, selector: selectors.BaseSelector, sock: socket.socket) -> None:
        self.selector, self.sock = selector, sock
        self.waiting = bytearray()
        self.closed = False
        sock.setblocking(False)
        selector.register(sock, READ, self.on_event)

    def on_event(self, mask: int) -> None:
        """Do what the socket is ready for, then update what the selector watches."""
        if mask & READ:
            self.receive()
        if mask & WRITE and not self.closed:
            self.flush()
        if not self.closed:
            self.selector.modify(self.sock, self.interest(), self.on_event)

    def interest(self) -> int:
        """Return what to watch for. Only this method decides it."""
        reading = READ if len(self.waiting) <= HIGH_WATER_BYTES else 0
        writing = WRITE if self.waiting else 0
        return reading | writing

    def receive(self) -> None:
        """Receive all that has arrived, unless too much waits, and send back what the kernel takes."""
        with contextlib.suppress(BlockingIOError):  # nothing is left to receive
            while self.interest() & READ:
                data = self.sock.recv(RECEIVE_BYTES)
                if not data:
                    self.close()  # the client has left
                    return
                self.waiting += data
                self.flush()

    def flush(self) -> None:
        """Send what waits, as much of it as the kernel takes."""
        with contextlib.suppress(BlockingIOError):  # the kernel takes nothing now
            sent = self.sock.send(self.waiting)
            del self.waiting[:sent]

    def close(self) -> None:
        """Unregister and close the socket."""
        self.closed = True
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
