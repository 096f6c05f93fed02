"""Lesson 4: ask the kernel who is ready. The first event loop.

Does    register every socket with a selector, and sleep in `select` until one of them is readable. What must be done
        then is registered with it, as its `data`: so the loop is three lines long, whatever is on it.
Fixes   lesson 3, which burned a processor to learn that nothing had happened: now the kernel tells.
Breaks  a client that reads slowly. Its answers fill the kernel's buffer, and then `send` takes only a part, or
        nothing. This program hopes that it doesn't come to that. What the kernel didn't take is lost.
"""

import contextlib
import functools
import selectors
import socket
import sys
from selectors import EVENT_READ as READ

RECEIVE_BYTES = 4096


def serve(listener: socket.socket) -> None:
    """Echo for ever, and sleep when nobody says anything."""
    selector = selectors.DefaultSelector()
    listener.setblocking(False)
    selector.register(listener, READ, functools.partial(accept, selector, listener))
    while True:
        for key, _mask in selector.select():  # sleeps until somebody is ready
            key.data()


def accept(selector: selectors.BaseSelector, listener: socket.socket) -> None:
    """Take one caller in."""
    client, _address = listener.accept()
    client.setblocking(False)
    selector.register(client, READ, functools.partial(echo, selector, client))


def echo(selector: selectors.BaseSelector, client: socket.socket) -> None:
    """Send back what has come."""
    if data := client.recv(RECEIVE_BYTES):
        with contextlib.suppress(BlockingIOError):
            client.send(data)  # hope that it takes everything
    else:
        selector.unregister(client)
        client.close()


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
