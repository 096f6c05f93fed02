"""Lesson 2: a thread for each client.

Does    accept a client, start a thread that serves it, accept the next.
Fixes   lesson 1, where the second client waited until the first had left: now each has somebody to wait for it.
Breaks  when clients are many. Each thread has a stack and a place in the kernel's scheduler, even if its client
        says nothing all day: ten thousand clients are ten thousand sleepers.
"""

import contextlib
import socket
import sys
import threading

RECEIVE_BYTES = 4096


def serve(listener: socket.socket) -> None:
    """Echo for ever, each client in a thread of its own."""
    while True:
        client, _address = listener.accept()
        threading.Thread(target=echo, args=(client,), daemon=True).start()


def echo(client: socket.socket) -> None:
    """Serve one client until it leaves. Blocking is harmless here: nobody else is in this thread."""
    with client, contextlib.suppress(ConnectionError):  # a client that is torn away ends its own thread only
        while data := client.recv(RECEIVE_BYTES):
            client.sendall(data)


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
