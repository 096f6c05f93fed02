"""Lesson 1: a blocking echo server, one client at a time.

Does    accept a client, send back what it sends until it leaves, then accept the next.
Fixes   nothing: this is the first step, and the shortest echo server there is.
Breaks  with a second client. `recv` blocks until the first client sends something. While this program sleeps there, it
        can't call `accept`, so the second client hangs.
"""

import contextlib
import socket
import sys

RECEIVE_BYTES = 4096


def serve(listener: socket.socket) -> None:
    """Echo forever, one client after the other."""
    while True:
        client, _address = listener.accept()  # sleeps until a client connects
        with client:
            while data := client.recv(RECEIVE_BYTES):  # sleeps until it sends; b"" means that it has left
                client.sendall(data)  # sleeps until the kernel has taken everything


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
