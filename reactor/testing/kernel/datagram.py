"""Datagrams: the simulated kernel's UDP.

Law: a datagram arrives whole or not at all, perhaps twice, perhaps late; never changed. A full receive buffer drops new
datagrams. With IP_PKTINFO or IPV6_RECVPKTINFO, each datagram comes with the address that it was sent to.
"""

from __future__ import annotations

import collections
import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from reactor.sockets.addresses import Address
from reactor.sockets.errors import os_error
from reactor.sockets.pktinfo import IP_PKTINFO, IPV6_PKTINFO, IPV6_RECVPKTINFO, MSG_ERRQUEUE, MSG_TRUNC, Control
from reactor.testing.chance import Fault
from reactor.testing.kernel.endpoint import POLLERR, POLLIN, POLLOUT, Buffer, SimulatedSocket
from reactor.testing.kernel.routing import ROUTED_INTERFACE
from reactor.testing.world import World

if TYPE_CHECKING:
    from reactor.fastpath.mmsg import Slots

MOST_BYTES = {socket.AF_INET: 65_507, socket.AF_INET6: 65_527}
OVERHEAD_BYTES = 64  # what an empty datagram takes of the receive buffer; Linux counts more


class Packet(NamedTuple):
    """One datagram in a receive buffer."""

    data: bytes
    source: Address
    asked: str  # the address to which it was sent
    answering: str  # the address from which the kernel would answer; differs from `asked` after a broadcast
    interface: int


class DatagramSocket(SimulatedSocket):
    """A UDP socket."""

    __slots__ = ("held_bytes", "inbox")

    def __init__(self, world: World, family: int, inside: bool) -> None:
        super().__init__(world, family, socket.SOCK_DGRAM, inside)
        self.inbox: collections.deque[Packet] = collections.deque()
        self.held_bytes = 0

    def connect(self, address: Address) -> None:
        """Choose the one peer for sending and receiving: connect(2). Raise EACCES for a broadcast address."""
        self.check_open("connect")
        self._check_destination(address)
        self.remote = self.world.routing.canonical(self.family, address)
        self._bind_for(address)

    def connect_ex(self, address: Address) -> int:
        """Connect, but return the errno instead of raising."""
        try:
            self.connect(address)
        except OSError as error:
            return error.errno or 0
        return 0

    def getpeername(self) -> Address:
        """Return the address of `connect`, or raise ENOTCONN."""
        if self.remote is None:
            raise os_error(errno.ENOTCONN)
        return self.remote

    # ------------------------------------------------------------ sending

    def send(self, data: Buffer, flags: int = 0) -> int:
        """Send to the peer of `connect`: send(2)."""
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
            raise self.world.inject(fault).error()
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
            self.world.observe("answer", self, data, destination, str(source[0]))
        self._carry(data, source, destination, interface)
        return len(data)

    def sendmmsg(self, slots: Slots, first: int, count: int) -> int:
        """Send the datagrams in `count` slots from `first` on, and return how many were sent: sendmmsg(2)."""
        from reactor.testing.kernel import batch

        return batch.send(self.sendmsg, slots, first, count)

    def _check_destination(self, destination: Address) -> None:
        if self.world.routing.is_broadcast(destination[0]) and not self.options.get(
            (socket.SOL_SOCKET, socket.SO_BROADCAST)
        ):
            raise os_error(errno.EACCES)

    def _bind_for(self, destination: Address) -> None:
        if self.local is None:
            self.local = self.world.ports.bind(self, self.world.routing.any_address(self.family))

    def _source(self, control: Iterable[tuple[int, int, bytes]], destination: Address) -> tuple[Address, int]:
        """Return the datagram's source address, and the interface that it must use (0: routing chooses)."""
        assert self.local is not None
        host, interface = str(self.local[0]), 0
        for level, kind, info in control:
            if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
                interface, answering, _ = struct.unpack("=i4s4s", info)
                host = str(ipaddress.IPv4Address(answering))
            elif (level, kind) == (socket.IPPROTO_IPV6, IPV6_PKTINFO):
                answering, interface = struct.unpack("=16si", info)
                host = str(ipaddress.IPv6Address(answering))
        if self.world.routing.is_wildcard(host):
            host = str(self.world.routing.source_for(self.family, destination)[0])
        elif not (host == self.local[0] or self.world.routing.is_local(host)):
            raise os_error(errno.EINVAL if self.family == socket.AF_INET6 else errno.ENETUNREACH)
        return (host, self.local[1], *self.local[2:]), interface

    def _carry(self, data: bytes, source: Address, destination: Address, interface: int) -> None:
        """Put a datagram on the wire, unless a partition, the wrong interface or a fault loses it."""
        world = self.world
        host, port = world.routing.canonical(self.family, destination)[:2]
        if interface and interface != world.routing.interface_of(host):
            return  # no route from this interface
        if not world.wire.is_open(str(source[0]), host):
            return

        def deliver() -> None:
            self._deliver(data, source, host, port)

        fault = world.chance.draw("packet")
        if fault is None:
            world.wire.call_later(world.latency_s, deliver) if world.latency_s else deliver()
            return
        world.inject(fault)
        if fault.kind == "duplicate":
            deliver()
        if fault.kind != "loss":
            world.wire.call_later(world.latency_s + fault.amount / 1e4, deliver)

    def _deliver(self, data: bytes, source: Address, host: str, port: int) -> None:
        ports, routing = self.world.ports, self.world.routing
        if routing.is_broadcast(host):
            for sock in ports.listeners_to_all(port):
                own = str(routing.source_for(sock.family, source)[0])
                cast(DatagramSocket, sock).arrive(Packet(data, source, host, own, ROUTED_INTERFACE))
            return
        found = ports.find(socket.SOCK_DGRAM, self.family, host, port)
        if isinstance(found, DatagramSocket):
            found.arrive(Packet(data, source, host, host, routing.interface_of(host)))
        elif ports.knows(host) and self.remote is not None:  # ICMP: reported to connected sockets only
            self.error = errno.ECONNREFUSED
            self.world.changed()

    # ------------------------------------------------------------ receiving

    def arrive(self, packet: Packet) -> None:
        """Put a datagram into the receive buffer. Drop it if that is full, or if the socket is connected elsewhere."""
        capacity_bytes = self.options[socket.SOL_SOCKET, socket.SO_RCVBUF]
        assert isinstance(capacity_bytes, int)
        cost_bytes = len(packet.data) + OVERHEAD_BYTES
        if self.remote is not None and packet.source[:2] != self.remote[:2]:
            return
        if self.inbox and self.held_bytes + cost_bytes > capacity_bytes:
            self.world.datagrams_lost += 1
            return
        self.inbox.append(packet)
        self.held_bytes += cost_bytes
        self.world.changed()

    def recvmsg(self, size: int, control_bytes: int = 0, flags: int = 0) -> tuple[bytes, Control, int, Address]:
        """Take one datagram, its control data, and MSG_TRUNC if it was longer than `size`: recvmsg(2).

        The error queue (MSG_ERRQUEUE) is always empty: errors come only as SO_ERROR.
        """
        if flags & MSG_ERRQUEUE:
            raise self.would_block()
        packet = self._next(self.enter("recvmsg"))
        if self.inside:
            self.world.observe("request", self, packet.data, packet.source, packet.asked)
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
        """Take the datagrams that wait, one into each slot, and return how many: recvmmsg(2)."""
        from reactor.testing.kernel import batch  # imports ctypes, which some Pythons lack

        return batch.receive(self.recvmsg, self._keep_error, slots)

    def _keep_error(self, code: int) -> None:
        self.error = code

    def _next(self, fault: Fault | None) -> Packet:
        if fault is not None:
            raise self.world.inject(fault).error()
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
        """Drop the unread datagrams."""
        self.inbox.clear()

    def poll(self) -> int:
        """Return the bits of poll(2)."""
        return (POLLIN if self.inbox else 0) | POLLOUT | (POLLERR if self.error else 0)
