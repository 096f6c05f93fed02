"""One interface for datagrams, whether recvmsg(2) returns one or recvmmsg(2) returns 64.

    Datagram      ─► Single ─────┐
                                 ├─► BatchProtocol.batch_received ─► drop reasons by index
    DatagramBatch ─► mmsg.Slots ─┘

Law: a protocol sees only a `Batch`, so its decisions can't depend on the system call. Every datagram that it doesn't
refuse is sent back unchanged to its source.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from reactor.buffer import Bytes
from reactor.sockets.addresses import Address, pack_host

NOTHING_REFUSED: Mapping[int, str] = {}
EVERY_BYTE = bytes(range(256))
PORT_AT, IPV4_ADDRESS_AT, IPV6_ADDRESS_AT = 2, 4, 8  # offsets in struct sockaddr_in and sockaddr_in6
Suspect = tuple[int, Address, bytes]  # index, source, path (`reactor.sockets.pktinfo`)


class Screen:
    """Finds suspicious sources in a batch by single bytes, so that a policy checks only a few datagrams.

    `port`: suspicious high bytes of a source's port. `ipv4`, `ipv6`: suspicious bytes by their place in its address.
    `columns`: is IPv6? → offsets in a struct sockaddr, each with the bytes that aren't suspicious there.
    """

    __slots__ = ("columns",)

    def __init__(
        self, port: Iterable[int], ipv4: Mapping[int, Iterable[int]], ipv6: Mapping[int, Iterable[int]]
    ) -> None:
        self.columns: dict[bool, list[tuple[int, bytes]]] = {}
        for is_ipv6, start, places in ((False, IPV4_ADDRESS_AT, ipv4), (True, IPV6_ADDRESS_AT, ipv6)):
            suspicious = {PORT_AT: port, **{start + place: values for place, values in places.items()}}
            self.columns[is_ipv6] = [
                (offset, EVERY_BYTE.translate(None, bytes(values))) for offset, values in suspicious.items()
            ]


class Batch(Protocol):
    """Datagrams 0 … `count` - 1, valid until `batch_received` returns."""

    def suspects(self, count: int, screen: Screen) -> Iterable[Suspect]:
        """Return at least those that `screen` finds and those that may have been sent to many hosts."""

    def payload(self, index: int) -> Bytes:
        """Return a datagram's bytes."""

    def sender(self, index: int) -> bytes:
        """Return where a datagram is from: the 2 bytes of its port, then the 4 or 16 bytes of its host."""

    def senders(self, count: int) -> Sequence[Hashable]:
        """Return where the first `count` are from, in a form that is cheap to compare, with the port."""

    def hosts(self, count: int) -> Sequence[Any]:
        """Return the hosts of the first `count` sources, in a form that is cheap to compare."""

    def packed(self, host: Any) -> bytes:
        """Return the 4 or 16 bytes of a host from `hosts`."""


class Single(tuple[Bytes, Address, bytes]):
    """A batch of one: payload, source, path."""

    __slots__ = ()

    def suspects(self, count: int, screen: Screen) -> Iterable[Suspect]:
        """Return the datagram: screening one costs more than it saves."""
        return ((0, self[1], self[2]),)

    def payload(self, index: int) -> Bytes:
        """Return its bytes."""
        return self[0]

    def sender(self, index: int) -> bytes:
        """Return its source's port and host."""
        host, port = self[1][:2]
        return int(port).to_bytes(2) + pack_host(host)

    def senders(self, count: int) -> Sequence[Hashable]:
        """Return its source."""
        return self[1:2]

    def hosts(self, count: int) -> Sequence[Any]:
        """Return its source's host."""
        return self[1][:1]

    packed = staticmethod(pack_host)
