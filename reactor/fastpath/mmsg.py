"""The memory of a batch: many datagrams in one system call, recvmmsg(2) and sendmmsg(2), which Python lacks.

    header i ──► name i      the source: the answer goes there
             ├─► iovec i ──► payload i
             └─► control i   the address that was asked: the answer leaves from it
             length i, flags i

Law: sendmmsg needs what recvmmsg has filled in, except for two numbers. So one array of headers serves both calls, and
no datagram is copied or handled alone. Two strided assignments change the numbers for a whole batch: the received
length becomes the length to send (and full size again before the next batch), and the interface in the control data
becomes 0 (`pktinfo.py` says why).

Each slot holds the largest datagram. Slots that were never filled cost address space, not memory.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import sys
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, cast

from reactor.limits import DATAGRAM_BYTES, DATAGRAMS_PER_TURN
from reactor.sockets.addresses import Address
from reactor.sockets.errors import os_error
from reactor.sockets.pktinfo import IPV4_INFO_BYTES, IPV6_INFO_BYTES, MSG_TRUNC

if TYPE_CHECKING:
    from reactor.fastpath.datagrams import Screen, Suspect

STAGGER_BYTES = 4096 + 576  # slots a power of two apart would evict each other from the processor's caches
MSG_DONTWAIT: int = getattr(socket, "MSG_DONTWAIT", 0)
IPV4_NAME_BYTES, IPV6_NAME_BYTES = 16, 28  # struct sockaddr_in, struct sockaddr_in6
ZEROS = memoryview(bytes(4 * DATAGRAMS_PER_TURN)).cast("I")
NOT_TRUNCATED = bytes(flags for flags in range(256) if not flags & MSG_TRUNC)
NO_SUSPECTS: Sequence[Suspect] = ()
IPV6_UNICAST = bytes(range(255))  # first bytes of addresses that aren't multicast (ff00::/8)

Receive = Callable[[], int]  # → slots filled; raises OSError
Send = Callable[[int, int], int]  # first slot, count → datagrams sent; raises OSError if none was


class Iovec(ctypes.Structure):
    """struct iovec: one piece of memory."""

    _fields_ = (("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


class Message(ctypes.Structure):
    """struct msghdr: the argument of recvmsg(2) and sendmsg(2)."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_bytes", ctypes.c_uint32),
        ("iovecs", ctypes.c_void_p),
        ("iovecs_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_bytes", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class Header(ctypes.Structure):
    """struct mmsghdr: a message and the number of bytes received or sent."""

    _fields_ = (("message", Message), ("length", ctypes.c_uint))


HEADER_BYTES, IOVEC_BYTES = ctypes.sizeof(Header), ctypes.sizeof(Iovec)
LENGTH_AT, FLAGS_AT = Header.length.offset, Message.flags.offset
LOW_BYTE = 0 if sys.byteorder == "little" else 3  # of an int
LOW_WORD = 0 if sys.byteorder == "little" else ctypes.sizeof(ctypes.c_size_t) - 4  # of a size_t
ROOM_AT = Iovec.bytes.offset + LOW_WORD


class Slots:
    """Memory for one batch of an IPv4 or IPv6 socket, with control data (`paths`) or without. A `Batch`.

    `lengths[i]` is the number of bytes received in slot i. The kernel writes `names` and `controls`.
    """

    __slots__ = (
        "_answering", "_asked", "_exported", "_full", "_hosts", "_interfaces", "_rooms", "_senders",
        "control_bytes", "controls",
        "headers", "info_at", "iovecs", "is_ipv6", "lengths", "name_bytes", "names", "payloads", "slot_bytes",
        "stride_bytes",
    )  # fmt: skip

    def __init__(self, is_ipv6: bool, paths: bool) -> None:
        self.is_ipv6 = is_ipv6
        self.slot_bytes, self.stride_bytes = DATAGRAM_BYTES, DATAGRAM_BYTES + STAGGER_BYTES
        self.name_bytes = IPV6_NAME_BYTES if is_ipv6 else IPV4_NAME_BYTES
        self.control_bytes = socket.CMSG_SPACE(_info_bytes(is_ipv6)) if paths else 0
        self.info_at = socket.CMSG_LEN(0)  # offset of the pktinfo in a datagram's control data
        self.payloads = mmap.mmap(-1, DATAGRAMS_PER_TURN * self.stride_bytes)
        self.headers = bytearray(DATAGRAMS_PER_TURN * HEADER_BYTES)
        self.iovecs = bytearray(DATAGRAMS_PER_TURN * IOVEC_BYTES)
        self.names = bytearray(DATAGRAMS_PER_TURN * self.name_bytes)
        self.controls = bytearray(DATAGRAMS_PER_TURN * self.control_bytes)
        self._exported = [_address_of(self.headers)]  # no array can move while these are referenced
        self._lay_out()
        self.lengths = _column(self.headers, LENGTH_AT, HEADER_BYTES)
        self._rooms = _column(self.iovecs, ROOM_AT, IOVEC_BYTES)
        self._full = memoryview(self._rooms.tobytes()).cast("I")
        host_at = range(8, 24, 4) if is_ipv6 else range(4, 8, 4)  # in struct sockaddr_in6 or sockaddr_in
        self._hosts = [_column(self.names, at, self.name_bytes) for at in host_at]
        # family and port are the first word; over IPv4, the host is the second
        words = memoryview(self.names).cast("I" if is_ipv6 else "Q")
        self._senders = words[:: self.name_bytes // words.itemsize]
        self._interfaces = _column(self.controls, self.info_at + (16 if is_ipv6 else 0), self.control_bytes)
        # ipi_spec_dst and ipi_addr of struct in_pktinfo, unused on IPv6.
        self._answering = _column(self.controls, self.info_at + 4, self.control_bytes)
        self._asked = _column(self.controls, self.info_at + 8, self.control_bytes)

    def turn_round(self, count: int) -> None:
        """Turn the first `count` datagrams into answers in place: to their sources, from the addresses asked."""
        self._rooms[:count] = self.lengths[:count]
        if self.control_bytes:
            self._interfaces[:count] = ZEROS[:count]
            if not self.is_ipv6:  # ipi_spec_dst is 0 if the datagram was queued before `report_paths`
                self._answering[:count] = self._asked[:count]

    def make_room(self, count: int) -> None:
        """Restore the full size of the first `count` slots."""
        self._rooms[:count] = self._full[:count]

    def truncated(self, count: int) -> list[int]:
        """Return the slots among the first `count` that were too small."""
        flags = self.headers[FLAGS_AT + LOW_BYTE : count * HEADER_BYTES : HEADER_BYTES]
        return _standing_out(flags, NOT_TRUNCATED) if flags.translate(None, NOT_TRUNCATED) else []

    def suspects(self, count: int, screen: Screen) -> Sequence[Suspect]:
        """Return those that `screen` finds and those that may have been sent to many hosts.

        For nearly every batch, one C call per column is enough: deleting the harmless bytes leaves nothing.
        """
        names, record_bytes = self.names, self.name_bytes
        end = count * record_bytes
        found: set[int] = set()
        for start, harmless in screen.columns[self.is_ipv6]:
            column = names[start:end:record_bytes]
            if column.translate(None, harmless):
                found.update(_standing_out(column, harmless))
        if self.control_bytes and self.is_ipv6:  # destinations that may not be unicast: `pktinfo.is_unicast`
            column = self.controls[self.info_at : count * self.control_bytes : self.control_bytes]
            if column.translate(None, IPV6_UNICAST):
                found.update(_standing_out(column, IPV6_UNICAST))
        elif self.control_bytes and (answering := self._answering[:count]) != (asked := self._asked[:count]):
            found.update(i for i in range(count) if answering[i] != asked[i])
        return [(i, self.source(i), self.path(i)) for i in found] if found else NO_SUSPECTS

    def source(self, index: int) -> Address:
        """Return a datagram's source address, in the form of socket.recvmsg."""
        name = bytes(self.names[index * self.name_bytes : (index + 1) * self.name_bytes])
        port = int.from_bytes(name[2:4], "big")
        if not self.is_ipv6:
            return socket.inet_ntop(socket.AF_INET, name[4:8]), port
        flow, scope_id = int.from_bytes(name[4:8], "big"), int.from_bytes(name[24:28], sys.byteorder)
        return socket.inet_ntop(socket.AF_INET6, name[8:24]), port, flow, scope_id

    def sender(self, index: int) -> bytes:
        """Return a source's port and host."""
        start = index * self.name_bytes
        if not self.is_ipv6:
            return bytes(self.names[start + 2 : start + 8])
        return bytes(self.names[start + 2 : start + 4] + self.names[start + 8 : start + 24])

    def senders(self, count: int) -> Sequence[Hashable]:
        """Return where the first `count` are from: as hosts, with family and port in front."""
        if not self.is_ipv6:
            return self._senders[:count].tolist()
        return list(zip(self._senders[:count].tolist(), self.hosts(count), strict=True))

    def hosts(self, count: int) -> Sequence[Any]:
        """Return the hosts of the first `count` sources, each as one 32-bit word or a tuple of four."""
        if not self.is_ipv6:
            return self._hosts[0][:count].tolist()
        return list(zip(*(words[:count].tolist() for words in self._hosts), strict=True))

    def packed(self, host: Any) -> bytes:
        """Return the 4 or 16 bytes of an address from `hosts`."""
        words = cast("tuple[int, ...]", host if self.is_ipv6 else (host,))
        return b"".join([word.to_bytes(4, sys.byteorder) for word in words])

    def path(self, index: int) -> bytes:
        """Return a datagram's path, b"" if the socket doesn't report it."""
        start = index * self.control_bytes + self.info_at
        return bytes(self.controls[start : start + _info_bytes(self.is_ipv6)]) if self.control_bytes else b""

    def payload(self, index: int) -> memoryview:
        """Return a view of a datagram's bytes, valid until the next batch."""
        start = index * self.stride_bytes
        return memoryview(self.payloads)[start : start + self.lengths[index]]

    def kernel_calls(self, descriptor: int) -> tuple[Receive, Send]:
        """Return recvmmsg(2) and sendmmsg(2) for these slots.

        Raise AttributeError if the C library lacks one, OSError if the kernel lacks or forbids one.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        recvmmsg, sendmmsg, get_errno = libc.recvmmsg, libc.sendmmsg, ctypes.get_errno
        begin = ctypes.addressof(self._exported[0])
        places = [ctypes.c_void_p(begin + i * HEADER_BYTES) for i in range(DATAGRAMS_PER_TURN)]
        first_place, most, flags = places[0], DATAGRAMS_PER_TURN, MSG_DONTWAIT

        # A call without datagrams fails if the kernel lacks or forbids it.
        if recvmmsg(descriptor, first_place, 0, flags, None) or sendmmsg(descriptor, first_place, 0, flags):
            raise os_error(get_errno())

        def receive() -> int:
            count: int = recvmmsg(descriptor, first_place, most, flags, None)
            if count < 0:
                raise os_error(get_errno())
            return count

        def send(first: int, count: int) -> int:
            sent: int = sendmmsg(descriptor, places[first], count, flags)
            if sent < 0:
                raise os_error(get_errno())
            return sent

        return receive, send

    def _lay_out(self) -> None:
        """Point each header to its name, payload and control data. Only lengths change later."""
        arrays = [_address_of(memory) for memory in (self.payloads, self.iovecs, self.names, self.controls)]
        self._exported += arrays
        payloads, iovecs, names, controls = map(ctypes.addressof, arrays)
        for i in range(DATAGRAMS_PER_TURN):
            iovec = Iovec.from_buffer(self.iovecs, i * IOVEC_BYTES)
            iovec.base, iovec.bytes = payloads + i * self.stride_bytes, self.slot_bytes
            message = Header.from_buffer(self.headers, i * HEADER_BYTES).message
            message.name, message.name_bytes = names + i * self.name_bytes, self.name_bytes
            message.iovecs, message.iovecs_count = iovecs + i * IOVEC_BYTES, 1
            message.control, message.control_bytes = controls + i * self.control_bytes, self.control_bytes


def _standing_out(column: bytearray, harmless: bytes) -> list[int]:
    """Return the indexes of the bytes that aren't harmless."""
    return [i for i, byte in enumerate(column) if byte not in harmless]


def _info_bytes(is_ipv6: bool) -> int:
    return IPV6_INFO_BYTES if is_ipv6 else IPV4_INFO_BYTES


def _address_of(memory: bytearray | mmap.mmap) -> ctypes.Array[ctypes.c_char]:
    """Return an object that has the address of `memory` and keeps it in place."""
    return (ctypes.c_char * len(memory)).from_buffer(memory)


def _column(memory: bytearray, at: int, stride_bytes: int) -> memoryview:
    """Return the 32-bit numbers at offset `at` of each record of `stride_bytes`."""
    words = memoryview(memory).cast("I")
    return words[at // 4 :: stride_bytes // 4] if stride_bytes else words
