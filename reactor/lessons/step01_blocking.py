"""Lesson 1: a blocking echo server, one client at a time.

Does    accept a client, send back whatever it sends until it leaves, then accept the next.
Fixes   nothing: it is the first step, and the shortest echo server there is.
Breaks  whoever comes second. `recv` blocks until this client says something, and while this program sleeps there,
        nobody is in `accept`.
"""

import contextlib
import socket
import sys

RECEIVE_BYTES = 4096


def serve(listener: socket.socket) -> None:
    """Echo for ever, one client after the other."""
    while True:
        client, _address = listener.accept()  # sleeps until somebody calls
        with client:
            while data := client.recv(RECEIVE_BYTES):  # sleeps until this one says something; b"" means it has left
                client.sendall(data)  # sleeps until the kernel has taken everything


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
