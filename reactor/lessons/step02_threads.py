"""Lesson 2: a thread for each client.

Does    accept a client, start a thread that serves it, accept the next.
Fixes   lesson 1, where the second client waited until the first had left: now a thread waits for each client.
Breaks  with many clients. Each thread has a stack and a place in the kernel's scheduler, even while its client is
        silent: ten thousand clients are ten thousand sleeping threads.
"""

import contextlib
import socket
import sys
import threading

RECEIVE_BYTES = 4096


def serve(listener: socket.socket) -> None:
    """Echo forever, each client in a thread of its own."""
    while True:
        client, _address = listener.accept()
        threading.Thread(target=echo, args=(client,), daemon=True).start()


def echo(client: socket.socket) -> None:
    """Serve one client until it leaves. Blocking is harmless here: the thread serves no other client."""
    with client, contextlib.suppress(ConnectionError):  # a reset ends this thread only
        while data := client.recv(RECEIVE_BYTES):
            client.sendall(data)


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
