"""Echo with a thread for each connection and blocking sockets. `python3 threads_echo.py tcp|udp HOST PORT`."""

import contextlib
import socket
import sys
import threading


def echo(client: socket.socket) -> None:
    """Write received bytes back until the client closes."""
    with client, contextlib.suppress(OSError):  # the client may close at any time
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := client.recv(65_536):
            client.sendall(data)


def serve_tcp(host: str, port: int) -> None:
    """Start a thread for each connection."""
    with socket.create_server((host, port), backlog=4096) as listener:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=echo, args=(client,), daemon=True).start()


def serve_udp(host: str, port: int) -> None:
    """Answer every datagram, in one thread because UDP has no connections."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, port))
        while True:
            data, source = sock.recvfrom(65_535)
            sock.sendto(data, source)


if __name__ == "__main__":
    # small stacks, so that a thousand threads fit on any machine
    threading.stack_size(256 * 1024)
    (serve_tcp if sys.argv[1] == "tcp" else serve_udp)(sys.argv[2], int(sys.argv[3]))
