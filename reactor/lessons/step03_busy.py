"""Lesson 3: one thread, non-blocking sockets, and a loop that asks them all again and again.

Does    after `setblocking(False)`, a call that would sleep raises BlockingIOError instead: "there is nothing here". So
        one thread goes round and asks: is there a new client? Has this client sent something? And this one?
Fixes   lesson 2, where each client cost a thread: now it costs a socket and a place in a list.
Breaks  when all clients are silent. The loop never sleeps, so even then it takes a whole processor. Each round costs
        one system call for each silent client, and one to look for new clients.
"""

import contextlib
import socket
import sys

RECEIVE_BYTES = 4096


def serve(listener: socket.socket) -> None:
    """Echo forever, asking every socket in turn."""
    listener.setblocking(False)
    clients: list[socket.socket] = []
    while True:
        with contextlib.suppress(BlockingIOError):  # no new client
            client, _address = listener.accept()
            client.setblocking(False)
            clients.append(client)
        for client in clients[:]:  # a copy, because clients that leave are removed from the list
            with contextlib.suppress(BlockingIOError):  # it has sent nothing
                if data := client.recv(RECEIVE_BYTES):
                    client.send(data)
                else:
                    clients.remove(client)
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
