"""Lesson 3: one thread, sockets that don't block, and a loop that asks them all again and again.

Does    with `setblocking(False)`, a call that would sleep raises BlockingIOError instead: "nothing here, go on".
        So one thread goes round: is there a caller? Has this client said something? And this one?
Fixes   lesson 2, where each client cost a thread: now it costs a socket and a place in a list.
Breaks  the machine's peace. The loop never sleeps: with nobody saying anything it takes all of a processor, and each
        round costs a system call for each client that has nothing to say, and one to ask for callers.
"""

import contextlib
import socket
import sys

RECEIVE_BYTES = 4096


def serve(listener: socket.socket) -> None:
    """Echo for ever, asking everybody in turn."""
    listener.setblocking(False)
    clients: list[socket.socket] = []
    while True:
        with contextlib.suppress(BlockingIOError):  # nobody is calling
            client, _address = listener.accept()
            client.setblocking(False)
            clients.append(client)
        for client in clients[:]:  # a copy, as those that leave are taken out of the list
            with contextlib.suppress(BlockingIOError):  # this one has said nothing
                if data := client.recv(RECEIVE_BYTES):
                    client.send(data)
                else:
                    clients.remove(client)
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
