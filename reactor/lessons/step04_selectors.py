"""Lesson 4: ask the kernel which sockets are ready. The first event loop.

Does    register every socket with a selector, and sleep in `select` until one is readable. The selector keeps with each
        socket, as its `data`, the function to call then. So the loop has three lines, whatever it serves.
Fixes   lesson 3, which used a whole processor to learn that nothing had happened: now the kernel reports readiness.
Breaks  with a client that reads slowly. Its answers fill the kernel's buffer, and then `send` takes only a part of
        them, or nothing. This program ignores that, and loses what the kernel doesn't take.
"""

import contextlib
import functools
import selectors
import socket
import sys
from selectors import EVENT_READ as READ

RECEIVE_BYTES = 4096


def serve(listener: socket.socket) -> None:
    """Echo forever, and sleep while all clients are silent."""
    selector = selectors.DefaultSelector()
    listener.setblocking(False)
    selector.register(listener, READ, functools.partial(accept, selector, listener))
    while True:
        for key, _mask in selector.select():  # sleeps until a socket is ready
            key.data()


def accept(selector: selectors.BaseSelector, listener: socket.socket) -> None:
    """Accept one client."""
    client, _address = listener.accept()
    client.setblocking(False)
    selector.register(client, READ, functools.partial(echo, selector, client))


def echo(selector: selectors.BaseSelector, client: socket.socket) -> None:
    """Send back what has arrived."""
    if data := client.recv(RECEIVE_BYTES):
        with contextlib.suppress(BlockingIOError):
            client.send(data)  # what the kernel doesn't take is lost
    else:
        selector.unregister(client)
        client.close()


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
