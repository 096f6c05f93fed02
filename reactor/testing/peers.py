"""Peers: the other end of each connection, outside the program under test.

Law: a scenario says what a peer does. The peer does it as fast as the connection allows, a bounded piece per move,
whenever the loop calls select. It has no descriptor and meets no faults of its own.
"""

from __future__ import annotations

import collections
import random
import socket
from collections.abc import Callable
from typing import TypeVar

from reactor.sockets.addresses import Address, family_of
from reactor.sockets.opening import RESET_ON_CLOSE
from reactor.testing.kernel.datagram import DatagramSocket
from reactor.testing.kernel.endpoint import POLLERR, POLLIN
from reactor.testing.kernel.link import CONNECTED, CONNECTING, Link
from reactor.testing.kernel.stream import StreamSocket
from reactor.testing.world import World

S = TypeVar("S", StreamSocket, DatagramSocket)
EAGER_BYTES = 65_536
PEER_HOSTS: dict[int, str] = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


class Peer:
    """The other end of a TCP connection, a client (`SimulatedNetwork.peer`) or a server (`peer_server`).

    `received` and `sent` are the bytes so far. `eof`: the program has sent FIN. `lost`: the connection ended without
    FIN, and `received` may be short. `cut_short`: the peer sent FIN before it had sent everything. `read_bytes` and
    `write_bytes` are what it moves at once.
    """

    __slots__ = (
        "_finishing", "_outbox", "answer", "cut_short", "eof", "error", "link", "paused", "read_bytes", "received",
        "sent", "socket", "write_bytes",
    )  # fmt: skip

    def __init__(self, sock: StreamSocket) -> None:
        self.socket = sock
        self.link: Link | None = sock.link
        self.received, self.sent = bytearray(), bytearray()
        self.eof = False
        self.error: OSError | None = None
        self.paused = False
        self.cut_short = False
        self.answer: Callable[[Peer, bytes], object] | None = None
        self.read_bytes = self.write_bytes = EAGER_BYTES
        self._outbox: collections.deque[tuple[bytes, int]] = collections.deque()
        self._finishing = False

    @property
    def lost(self) -> bool:
        """Whether the connection ended without FIN, so that bytes may be missing."""
        return bool(self.error or (self.link is not None and self.link.fate))

    @property
    def finished(self) -> bool:
        """Whether everything was sent, FIN too."""
        return self._finishing and not self._outbox and bool(self.socket.outgoing and self.socket.outgoing.fin)

    @property
    def over(self) -> bool:
        """Whether this peer will do nothing more."""
        return self.socket.closed or self.error is not None

    def send(self, data: bytes, *, urgent: bool = False) -> None:
        """Send bytes when there is room; with `urgent`, the last one as urgent data."""
        if data:  # empty data would be no move
            self._outbox.append((data, socket.MSG_OOB if urgent else 0))

    def finish(self) -> None:
        """Send FIN after everything is sent; close when the program has sent FIN too."""
        self._finishing = True

    def finish_now(self) -> None:
        """Send FIN now, and discard what isn't sent yet."""
        self.cut_short = self.cut_short or bool(self._outbox)
        self._outbox.clear()
        self._finishing = True
        self.move()

    def reset(self) -> None:
        """Send RST now."""
        if not self.over:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.close()

    def close(self) -> None:
        """Close now, even with bytes unread or unsent."""
        self.socket.close()

    def vanish(self) -> None:
        """Fall silent forever, as in a power cut: no FIN, no RST, no answer."""
        self.link = self.link or self.socket.link
        if self.link is None:
            self.socket.close()  # the handshake never finishes
        elif not self.over:
            self.link.cut = True
            self.link.fate = self.link.fate or "the peer vanished"
            self.link.fall_silent()
        self.error = self.error or ConnectionError("vanished")

    def pause(self) -> None:
        """Stop reading until `resume`, like a slow or stuck reader."""
        self.paused = True

    def resume(self) -> None:
        """Read again."""
        self.paused = False

    def move(self) -> bool:
        """Send one piece and receive one; return whether anything has moved."""
        if self.over or self.socket.state == CONNECTING:
            return False
        self.link = self.link or self.socket.link
        try:
            wrote = self._write()
            return self._read() or wrote
        except OSError as error:
            self.error = error
            self.socket.close()
            return True

    def _write(self) -> bool:
        sock = self.socket
        if self._outbox:
            if sock.outgoing is None or (sock.state == CONNECTED and sock.outgoing.room_bytes <= 0):
                return False
            data, flags = self._outbox.popleft()
            piece = data[: self.write_bytes]
            taken = sock.send(piece, flags if len(piece) == len(data) and len(data) <= sock.outgoing.room_bytes else 0)
            self.sent += data[:taken]
            if taken < len(data):
                self._outbox.appendleft((data[taken:], flags))
            return taken > 0
        if self._finishing and sock.state == CONNECTED and sock.outgoing is not None and not sock.outgoing.fin:
            sock.shutdown(socket.SHUT_WR)
            if self.eof:
                self.close()
            return True
        return False

    def _read(self) -> bool:
        if self.paused or self.eof or not self.socket.poll() & (POLLIN | POLLERR):
            return False
        data = self.socket.recv(self.read_bytes)
        self.received += data
        if data and self.answer is not None:
            self.answer(self, data)
        if not data:
            self.eof = self.socket.incoming is not None and self.socket.incoming.fin_arrived
            if self.eof and not (self.socket.outgoing and self.socket.outgoing.fin):
                return True  # half-closed: the peer may go on sending
            self.close()
        return True


class PeerServer:
    """A listening peer. `clients` are its accepted connections, each a Peer."""

    __slots__ = ("_add_peer", "_answer", "_socket", "address", "clients")

    def __init__(
        self, sock: StreamSocket, answer: Callable[[Peer, bytes], object] | None, add_peer: Callable[[Peer], Peer]
    ) -> None:
        self._socket, self._answer, self._add_peer = sock, answer, add_peer
        self.address = sock.getsockname()
        self.clients: list[Peer] = []

    def move(self) -> bool:
        """Accept the waiting connections; return whether there were any."""
        came = False
        while self._socket.queue:
            sock, _ = self._socket.accept()
            sock.setblocking(False)
            client = self._add_peer(Peer(sock))
            client.answer = self._answer
            self.clients.append(client)
            came = True
        return came

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    @property
    def over(self) -> bool:
        """Whether it has stopped listening."""
        return self._socket.closed


class DatagramPeer:
    """A UDP peer. `received` holds (data, source) in the order of arrival."""

    __slots__ = ("paused", "received", "socket")

    def __init__(self, sock: DatagramSocket) -> None:
        self.socket = sock
        self.received: list[tuple[bytes, Address]] = []
        self.paused = False

    @property
    def address(self) -> Address:
        """The peer's own address."""
        return self.socket.getsockname()

    @property
    def over(self) -> bool:
        """Whether it is closed."""
        return self.socket.closed

    def send(self, data: bytes, destination: Address) -> None:
        """Send one datagram."""
        self.socket.sendto(data, destination)

    def move(self) -> bool:
        """Receive everything that has arrived; return whether anything had."""
        moved = False
        while self.socket.inbox and not self.paused:
            self.received.append(self.socket.recvfrom(EAGER_BYTES))
            moved = True
        return moved

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def outside(kind: type[S], world: World, host: str, port: int = 0) -> S:
    """Return a socket outside the program, bound to `host`."""
    sock = kind(world, family_of((host,)), False)
    sock.setblocking(False)
    sock.bind((host, port))
    return sock


def pieces(source: random.Random, data: bytes) -> list[bytes]:
    """Cut bytes at random places, as writes may cut them."""
    found = []
    while data:
        size = min(len(data), int(2 ** (source.random() * 16)))
        found.append(data[:size])
        data = data[size:]
    return found
