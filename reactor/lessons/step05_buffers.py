"""Lesson 5: a buffer for each connection, and sends that take only a part.

Does    what the kernel won't take waits in a buffer. As long as something waits, the selector is asked to say when the
        socket is writable too, and then the rest goes on. A byte leaves the buffer only after `send` has taken it.
Fixes   lesson 4, which lost what a slow reader's kernel buffer couldn't hold.
Breaks  against a client that sends and never reads. All that it sends waits in the buffer, for ever: one client can
        take all of the machine's memory.
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
    """A client, and what has yet to be sent to it."""

    def __init__(self, selector: selectors.BaseSelector, sock: socket.socket) -> None:
        self.selector, self.sock = selector, sock
        self.waiting = bytearray()
        self.closed = False
        sock.setblocking(False)
        selector.register(sock, READ, self.on_event)

    def on_event(self, mask: int) -> None:
        """Do what the socket is ready for, and say what to watch for from now on."""
        if mask & READ:
            self.receive()
        if mask & WRITE and not self.closed:
            self.flush()
        if not self.closed:
            self.selector.modify(self.sock, READ | (WRITE if self.waiting else 0), self.on_event)

    def receive(self) -> None:
        """Take all that has come, and send back what the kernel takes."""
        with contextlib.suppress(BlockingIOError):  # raised when there is no more
            while data := self.sock.recv(RECEIVE_BYTES):
                self.waiting += data
                self.flush()
            self.close()  # b"": the client has left

    def flush(self) -> None:
        """Send what waits, as far as the kernel takes it."""
        with contextlib.suppress(BlockingIOError):  # it takes nothing now
            sent = self.sock.send(self.waiting)
            del self.waiting[:sent]

    def close(self) -> None:
        """Forget the client."""
        self.closed = True
        self.selector.unregister(self.sock)
        self.sock.close()


def serve(listener: socket.socket) -> None:
    """Echo for ever."""
    selector = selectors.DefaultSelector()
    listener.setblocking(False)
    selector.register(listener, READ, functools.partial(accept, selector, listener))
    while True:
        for key, mask in selector.select():
            key.data(mask)


def accept(selector: selectors.BaseSelector, listener: socket.socket, _mask: int) -> None:
    """Take one caller in. The selector keeps its connection: `on_event` is the data."""
    Connection(selector, listener.accept()[0])


def main() -> None:
    """Serve 127.0.0.1 on the port that is given, or 7007, until Ctrl-C."""
    try:
        listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 7007))
    except (ValueError, OverflowError, OSError) as error:
        sys.exit(f"can't serve there: {error}")
    with listener, contextlib.suppress(KeyboardInterrupt):
        print("serving", *listener.getsockname(), flush=True)
        serve(listener)


if __name__ == "__main__":
    main()
