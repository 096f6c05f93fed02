"""TCP clients and socket pairs."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from tests.support.basics import PATIENCE_S


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """Receive `count` bytes. Fail when the stream ends before."""
    received = bytearray()
    while len(received) < count:
        piece = sock.recv(min(1 << 16, count - len(received)))
        assert piece, f"the stream ended after {len(received)} of {count} bytes"
        received += piece
    return bytes(received)


def receive_to_end(sock: socket.socket) -> bytes:
    """Receive until FIN. A reset raises ConnectionResetError."""
    received = bytearray()
    while piece := sock.recv(1 << 16):
        received += piece
    return bytes(received)


def send_in_background(sock: socket.socket, data: bytes, then: Callable[[], object] = int) -> threading.Thread:
    """Send everything from a thread, so that the test can read meanwhile; then call `then`."""

    def run() -> None:
        with contextlib.suppress(OSError):  # the receiving side shows what went wrong
            sock.sendall(data)
            then()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def echo_and_close(sock: socket.socket, data: bytes) -> bytes:
    """Send all, half-close, and return everything that comes back before FIN."""
    sender = send_in_background(sock, data, lambda: sock.shutdown(socket.SHUT_WR))
    received = receive_to_end(sock)
    sender.join(PATIENCE_S)
    sock.close()
    return received


def fill(sock: socket.socket, most_bytes: int = 1 << 28) -> bytes:
    """Send a non-repeating pattern until the kernel takes no more; return what it took. Backpressure without sleep."""
    sock.setblocking(False)
    sent = bytearray()
    number = 0
    while len(sent) < most_bytes:
        piece = b"".join((number + i).to_bytes(8, "big") for i in range(512))
        try:
            count = sock.send(piece)
        except BlockingIOError:
            break
        sent += piece[:count]
        number += 512
    return bytes(sent)


def drain(sock: socket.socket) -> bytes:
    """Receive everything that has arrived, without waiting."""
    sock.setblocking(False)
    received = bytearray()
    with contextlib.suppress(BlockingIOError):
        while piece := sock.recv(1 << 16):
            received += piece
    return bytes(received)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected TCP sockets on loopback, non-blocking."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    one.setblocking(False)
    other.setblocking(False)
    return one, other


def reset(sock: socket.socket) -> None:
    """Close a TCP socket with RST instead of FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    sock.close()


def whole_dribbled_trailing(data: bytes) -> Iterator[list[bytes]]:
    """Yield three ways to send the same bytes: in one piece, byte by byte, and with the last byte on its own."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    yield [data[:-1], data[-1:]]


def connect_small(address: tuple[str, int], buffer_bytes: int | None) -> socket.socket:
    """Return a connected TCP client with kernel buffers of at most `buffer_bytes` (None: the system's)."""
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    sock.settimeout(PATIENCE_S)
    if buffer_bytes is not None:  # before connecting, because the handshake fixes the window
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock
