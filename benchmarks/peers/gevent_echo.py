"""Echo on gevent: a greenlet for each connection. `python3 gevent_echo.py tcp|udp HOST PORT`."""

import socket
import sys

from gevent.server import DatagramServer, StreamServer


def echo(client: socket.socket, _address: tuple[str, int]) -> None:
    """Write received bytes back until the client closes."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        while data := client.recv(65_536):
            client.sendall(data)
    except OSError:
        pass  # the client has closed
    finally:
        client.close()


class DatagramEcho(DatagramServer):
    """Answer every datagram."""

    def do_read(self) -> tuple[bytes, tuple[str, int]] | None:
        """Receive whole datagrams; gevent's own buffer holds 8 KiB."""
        try:
            data, source = self._socket.recvfrom(65_535)
        except BlockingIOError:
            return None
        return data, source

    def handle(self, data: bytes, source: tuple[str, int]) -> None:
        """Echo."""
        self.sendto(data, source)


kind, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
if kind == "tcp":
    StreamServer((host, port), echo, backlog=4096).serve_forever()
else:
    DatagramEcho((host, port)).serve_forever()
