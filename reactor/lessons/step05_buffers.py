"""Lesson 5: a buffer for each connection, and partial writes.

Does    keep in a buffer what the kernel doesn't take. While bytes wait there, the selector also reports when the socket
        is writable, and then the program sends the rest. A byte leaves the buffer only after `send` has taken it.
Fixes   lesson 4, which lost the bytes that didn't fit into the kernel's buffer.
Breaks  with a client that sends and never reads. All that it sends waits in the buffer, so one client can take all of
        the machine's memory.
"""

import contextlib
import functools
import selectors
import socket
import sys
from selectors import EVENT_READ as READ
from selectors import EVENT_WRITE as WRITE

RECEIVE_BYTES = 4096


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
            self.selector.modify(self.sock, READ | (WRITE if self.waiting else 0), self.on_event)

    def receive(self) -> None:
        """Receive all that has arrived, and send back what the kernel takes."""
        with contextlib.suppress(BlockingIOError):  # nothing is left to receive
            while data := self.sock.recv(RECEIVE_BYTES):
                self.waiting += data
                self.flush()
            self.close()  # b"": the client has left

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
