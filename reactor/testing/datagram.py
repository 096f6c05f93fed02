"""Datagrams: UDP as a simulated kernel speaks it.

Law: a datagram arrives whole or not at all, perhaps twice, perhaps late; never changed. A receive buffer that is full
loses what comes. Which address was asked comes with each one, if the socket wants to know (IP_PKTINFO,
IPV6_RECVPKTINFO).
"""

from __future__ import annotations

import collections
import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from reactor.sockets.addresses import Address
from reactor.sockets.errors import os_error
from reactor.sockets.pktinfo import IP_PKTINFO, IPV6_PKTINFO, IPV6_RECVPKTINFO, MSG_ERRQUEUE, MSG_TRUNC
from reactor.testing.endpoint import POLLERR, POLLIN, POLLOUT, SimulatedSocket
from reactor.testing.stream import Buffer

if TYPE_CHECKING:
    from reactor.fastpath.mmsg import Slots
    from reactor.testing.chance import Fault
    from reactor.testing.network import SimulatedNetwork

Control = list[tuple[int, int, bytes]]
MOST_BYTES = {socket.AF_INET: 65_507, socket.AF_INET6: 65_527}
OVERHEAD_BYTES = 64  # what an empty datagram costs of the receive buffer; the kernel's is more


class Packet(NamedTuple):
    """One datagram as it lies in a receive buffer."""

    data: bytes
    source: Address
    asked: str  # the address to which it was sent
    answering: str  # the address from which the kernel would answer: another one if `asked` was for many
    interface: int


class DatagramSocket(SimulatedSocket):
    """A UDP socket."""

    __slots__ = ("held_bytes", "inbox", "remote")

    def __init__(self, network: SimulatedNetwork, family: int, inside: bool) -> None:
        super().__init__(network, family, socket.SOCK_DGRAM, inside)
        self.inbox: collections.deque[Packet] = collections.deque()
        self.held_bytes = 0
        self.remote: Address | None = None

    def connect(self, address: Address) -> None:
        """Choose the one peer to send to and to hear from: connect(2). EACCES for a broadcast address."""
        self.check_open("connect")
        self._check_destination(address)
        self.remote = self.network.canonical(self.family, address)
        self._bind_for(address)

    def connect_ex(self, address: Address) -> int:
        """Do the same, but return the errno."""
        try:
            self.connect(address)
        except OSError as error:
            return error.errno or 0
        return 0

    def getpeername(self) -> Address:
        """Return whom we are connected to, or raise ENOTCONN."""
        if self.remote is None:
            raise os_error(errno.ENOTCONN)
        return self.remote

    # ------------------------------------------------------------ sending

    def send(self, data: Buffer, flags: int = 0) -> int:
        """Send to the peer of `connect`."""
        return self.sendmsg([data])

    def sendto(self, data: Buffer, address: Address) -> int:
        """Send to `address`: sendto(2)."""
        return self.sendmsg([data], (), 0, address)

    def sendmsg(
        self,
        buffers: Sequence[Buffer],
        control: Iterable[tuple[int, int, bytes]] = (),
        flags: int = 0,
        address: Address | None = None,
    ) -> int:
        """Send one datagram, from the address that the control data names: sendmsg(2)."""
        fault = self.enter("sendmsg")
        data = b"".join(bytes(buffer) for buffer in buffers)
        destination = address if address is not None else self.remote
        if fault is not None:
            raise self.network.inject(fault).error()
        if destination is None:
            raise os_error(errno.EDESTADDRREQ)
        if self.error:
            raise self.take_error()
        self._check_destination(destination)
        if destination[1] == 0:
            raise os_error(errno.EINVAL)
        if len(data) > MOST_BYTES[self.family]:
            raise os_error(errno.EMSGSIZE)
        self._bind_for(destination)
        source, interface = self._source(control, destination)
        if self.inside:
            self.network.observe_datagram("answer", self, data, destination, source)
        self.network.carry(self, data, source, destination, interface)
        return len(data)

    def sendmmsg(self, slots: Slots, first: int, count: int) -> int:
        """Send what lies in slots, from `first` on, and return how many have gone: sendmmsg(2)."""
        from reactor.testing import batch

        return batch.send(self, slots, first, count)

    def _check_destination(self, destination: Address) -> None:
        if self.network.is_broadcast(destination[0]) and not self.options.get((socket.SOL_SOCKET, socket.SO_BROADCAST)):
            raise os_error(errno.EACCES)

    def _bind_for(self, destination: Address) -> None:
        if self.local is None:
            self.local = self.network.ports.bind(self, self.network.any_address(self.family))

    def _source(self, control: Iterable[tuple[int, int, bytes]], destination: Address) -> tuple[Address, int]:
        """Return the address that the datagram comes from, and the interface it is forced through (0: routing's)."""
        assert self.local is not None
        host, interface = str(self.local[0]), 0
        for level, kind, info in control:
            if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
                interface, answering, _ = struct.unpack("=i4s4s", info)
                host = str(ipaddress.IPv4Address(answering))
            elif (level, kind) == (socket.IPPROTO_IPV6, IPV6_PKTINFO):
                answering, interface = struct.unpack("=16si", info)
                host = str(ipaddress.IPv6Address(answering))
        if self.network.is_wildcard(host):
            host = str(self.network.source_for(self.family, destination)[0])
        elif not (host == self.local[0] or self.network.is_local(host)):
            raise os_error(errno.EINVAL if self.family == socket.AF_INET6 else errno.ENETUNREACH)
        return (host, self.local[1], *self.local[2:]), interface

    # ------------------------------------------------------------ receiving

    def arrive(self, packet: Packet) -> None:
        """Put a datagram into the receive buffer, or lose it if that is full or it comes from a stranger."""
        capacity_bytes = self.options[socket.SOL_SOCKET, socket.SO_RCVBUF]
        assert isinstance(capacity_bytes, int)
        cost_bytes = len(packet.data) + OVERHEAD_BYTES
        if self.remote is not None and packet.source[:2] != self.remote[:2]:
            return
        if self.inbox and self.held_bytes + cost_bytes > capacity_bytes:
            self.network.datagrams_lost += 1
            return
        self.inbox.append(packet)
        self.held_bytes += cost_bytes
        self.network.changed()

    def recvmsg(self, size: int, control_bytes: int = 0, flags: int = 0) -> tuple[bytes, Control, int, Address]:
        """Take one datagram, its control data, and MSG_TRUNC if it was longer than `size`: recvmsg(2).

        Of Linux's queue of errors (MSG_ERRQUEUE) there is nothing here: they come as SO_ERROR alone.
        """
        if flags & MSG_ERRQUEUE:
            raise self.would_block()
        packet = self._next(self.enter("recvmsg"))
        if self.inside:
            self.network.observe_datagram("request", self, packet.data, packet.source, (packet.asked, 0))
        cut = MSG_TRUNC if len(packet.data) > size else 0
        return packet.data[:size], self._control(packet) if control_bytes else [], cut, packet.source

    def recvfrom(self, size: int, flags: int = 0) -> tuple[bytes, Address]:
        """Take one datagram and its source: recvfrom(2)."""
        data, _, _, source = self.recvmsg(size)
        return data, source

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Take one datagram: recv(2)."""
        return self.recvmsg(size)[0]

    def recvmmsg(self, slots: Slots) -> int:
        """Take as many datagrams as there are slots, or as wait, and return how many: recvmmsg(2)."""
        from reactor.testing import batch  # it brings ctypes, which not every Python has

        return batch.receive(self, slots)

    def _next(self, fault: Fault | None) -> Packet:
        if fault is not None:
            raise self.network.inject(fault).error()
        if self.error:
            raise self.take_error()
        if not self.inbox:
            raise self.would_block()
        packet = self.inbox.popleft()
        self.held_bytes -= len(packet.data) + OVERHEAD_BYTES
        return packet

    def _control(self, packet: Packet) -> Control:
        if self.family == socket.AF_INET and self.options.get((socket.IPPROTO_IP, IP_PKTINFO)):
            answering, asked = (ipaddress.IPv4Address(host).packed for host in (packet.answering, packet.asked))
            return [(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=i4s4s", packet.interface, answering, asked))]
        if self.family == socket.AF_INET6 and self.options.get((socket.IPPROTO_IPV6, IPV6_RECVPKTINFO)):
            asked = ipaddress.IPv6Address(packet.asked).packed
            return [(socket.IPPROTO_IPV6, IPV6_PKTINFO, struct.pack("=16si", asked, packet.interface))]
        return []

    def ended(self) -> None:
        """Forget what nobody will read."""
        self.inbox.clear()

    def poll(self) -> int:
        """Return the bits of poll(2)."""
        return (POLLIN if self.inbox else 0) | POLLOUT | (POLLERR if self.error else 0)
