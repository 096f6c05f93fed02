"""Echo as a Twisted protocol, on its epoll reactor. `python3 twisted_echo.py tcp|udp HOST PORT`."""

import sys

from twisted.internet import epollreactor

epollreactor.install()

from twisted.internet import reactor  # noqa: E402  (after the choice of the reactor)
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol  # noqa: E402


class Echo(Protocol):
    """Write received bytes back."""

    def connectionMade(self) -> None:
        """Set TCP_NODELAY, so that small answers leave at once."""
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        """Echo."""
        self.transport.write(data)


class DatagramEcho(DatagramProtocol):
    """Answer every datagram."""

    def datagramReceived(self, data: bytes, source: tuple[str, int]) -> None:
        """Echo."""
        self.transport.write(data, source)


kind, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
if kind == "tcp":
    reactor.listenTCP(port, Factory.forProtocol(Echo), backlog=4096, interface=host)
else:
    reactor.listenUDP(port, DatagramEcho(), interface=host, maxPacketSize=65_535)
reactor.run()
