"""The memory of a batch: many datagrams in one system call, recvmmsg(2) and sendmmsg(2), which Python lacks.

    header i ──► name i      the source, and so where the answer goes
             ├─► iovec i ──► payload i
             └─► control i   the address that was asked, and so where the answer comes from
             length i, flags i

Law: what recvmmsg fills in is what sendmmsg needs, but for two numbers. So one array of headers serves both calls, and
no datagram is copied or touched one by one. The two numbers change for a whole batch, each by a strided assignment:
the length received goes where the kernel reads the length to send (and back to full size before the next batch), and
the interface in the control data becomes 0 (why: `pktinfo.py`).

Each datagram has a slot that holds the largest one. Slots that were never filled cost address space, not memory.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from reactor.limits import DATAGRAM_BYTES, DATAGRAMS_PER_TURN
from reactor.sockets.addresses import Address
from reactor.sockets.errors import os_error
from reactor.sockets.pktinfo import IPV4_INFO_BYTES, IPV6_INFO_BYTES, MSG_TRUNC

if TYPE_CHECKING:
    from reactor.fastpath.datagrams import Screen, Suspect

# Slots a power of two apart would share a few sets of the processor's caches, and evict each other.
STAGGER_BYTES = 4096 + 576
MSG_DONTWAIT: int = getattr(socket, "MSG_DONTWAIT", 0)
IPV4_NAME_BYTES, IPV6_NAME_BYTES = 16, 28  # struct sockaddr_in, struct sockaddr_in6
ZEROS = memoryview(bytes(4 * DATAGRAMS_PER_TURN)).cast("I")
NOT_TRUNCATED = bytes(flags for flags in range(256) if not flags & MSG_TRUNC)
NO_SUSPECTS: Sequence[Suspect] = ()
# What an IPv6 address begins with, if it isn't multicast (ff00::/8).
IPV6_UNICAST = bytes(range(255))

# → slots filled. Raises OSError.
Receive = Callable[[], int]
# First slot, count → datagrams sent. Raises OSError if there are none.
Send = Callable[[int, int], int]


class Iovec(ctypes.Structure):
    """struct iovec: one piece of memory."""

    _fields_ = (("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


class Message(ctypes.Structure):
    """struct msghdr: what recvmsg(2) and sendmsg(2) are given."""

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
    """struct mmsghdr: a message, and how many bytes of it were received or sent."""

    _fields_ = (("message", Message), ("length", ctypes.c_uint))


HEADER_BYTES, IOVEC_BYTES = ctypes.sizeof(Header), ctypes.sizeof(Iovec)
LENGTH_AT, FLAGS_AT = Header.length.offset, Message.flags.offset
LOW_BYTE = 0 if sys.byteorder == "little" else 3  # of an int
LOW_WORD = 0 if sys.byteorder == "little" else ctypes.sizeof(ctypes.c_size_t) - 4  # of a size_t
ROOM_AT = Iovec.bytes.offset + LOW_WORD


class Slots:
    """Memory for one batch of an IPv4 or an IPv6 socket, with control data (`paths`) or without. A `Batch`.

    `lengths[i]` is how many bytes were received in slot i. `names` and `controls` are arrays as the kernel writes them.
    """

    __slots__ = (
        "_answering", "_asked", "_exported", "_full", "_hosts", "_interfaces", "_rooms", "control_bytes", "controls",
        "headers", "info_at", "iovecs", "is_ipv6", "lengths", "name_bytes", "names", "payloads", "slot_bytes",
        "stride_bytes",
    )  # fmt: skip

    def __init__(self, is_ipv6: bool, paths: bool) -> None:
        self.is_ipv6 = is_ipv6
        self.slot_bytes, self.stride_bytes = DATAGRAM_BYTES, DATAGRAM_BYTES + STAGGER_BYTES
        self.name_bytes = IPV6_NAME_BYTES if is_ipv6 else IPV4_NAME_BYTES
        self.control_bytes = socket.CMSG_SPACE(_info_bytes(is_ipv6)) if paths else 0
        # Where the pktinfo begins in a datagram's control data.
        self.info_at = socket.CMSG_LEN(0)
        self.payloads = mmap.mmap(-1, DATAGRAMS_PER_TURN * self.stride_bytes)
        self.headers = bytearray(DATAGRAMS_PER_TURN * HEADER_BYTES)
        self.iovecs = bytearray(DATAGRAMS_PER_TURN * IOVEC_BYTES)
        self.names = bytearray(DATAGRAMS_PER_TURN * self.name_bytes)
        self.controls = bytearray(DATAGRAMS_PER_TURN * self.control_bytes)
        # While these are referenced, no array can move.
        self._exported = [_address_of(self.headers)]
        self._lay_out()
        self.lengths = _column(self.headers, LENGTH_AT, HEADER_BYTES)
        self._rooms = _column(self.iovecs, ROOM_AT, IOVEC_BYTES)
        self._full = memoryview(self._rooms.tobytes()).cast("I")
        # An address's words in a struct sockaddr_in6 or sockaddr_in.
        host_at = range(8, 24, 4) if is_ipv6 else range(4, 8, 4)
        self._hosts = [_column(self.names, at, self.name_bytes) for at in host_at]
        self._interfaces = _column(self.controls, self.info_at + (16 if is_ipv6 else 0), self.control_bytes)
        # ipi_spec_dst and ipi_addr of struct in_pktinfo: not used on IPv6.
        self._answering = _column(self.controls, self.info_at + 4, self.control_bytes)
        self._asked = _column(self.controls, self.info_at + 8, self.control_bytes)

    def turn_round(self, count: int) -> None:
        """Make answers of the first `count` datagrams where they lie: to their sources, from the addresses asked."""
        self._rooms[:count] = self.lengths[:count]
        if self.control_bytes:
            self._interfaces[:count] = ZEROS[:count]
            # ipi_spec_dst is empty when the datagram was queued before `report_paths`.
            if not self.is_ipv6:
                self._answering[:count] = self._asked[:count]

    def make_room(self, count: int) -> None:
        """Restore the full size of the first `count` slots."""
        self._rooms[:count] = self._full[:count]

    def truncated(self, count: int) -> list[int]:
        """Return those of the first `count` slots that were too small."""
        flags = self.headers[FLAGS_AT + LOW_BYTE : count * HEADER_BYTES : HEADER_BYTES]
        return _standing_out(flags, NOT_TRUNCATED) if flags.translate(None, NOT_TRUNCATED) else []

    def suspects(self, count: int, screen: Screen) -> Sequence[Suspect]:
        """Return those that `screen` doesn't clear or that may have been sent to many hosts.

        Deleting the harmless bytes from a column leaves nothing in nearly every batch, at the cost of one C call.
        """
        names, record_bytes = self.names, self.name_bytes
        end = count * record_bytes
        found: set[int] = set()
        for start, harmless in screen.columns[self.is_ipv6]:
            column = names[start:end:record_bytes]
            if column.translate(None, harmless):
                found.update(_standing_out(column, harmless))
        # A destination that may not be unicast: see `pktinfo.is_unicast`.
        if self.control_bytes and self.is_ipv6:
            column = self.controls[self.info_at : count * self.control_bytes : self.control_bytes]
            if column.translate(None, IPV6_UNICAST):
                found.update(_standing_out(column, IPV6_UNICAST))
        elif self.control_bytes and (answering := self._answering[:count]) != (asked := self._asked[:count]):
            found.update(i for i in range(count) if answering[i] != asked[i])
        return [(i, self.source(i), self.path(i)) for i in found] if found else NO_SUSPECTS

    def source(self, index: int) -> Address:
        """Return the address that a datagram came from, as recvmsg(2) would in Python."""
        name = bytes(self.names[index * self.name_bytes : (index + 1) * self.name_bytes])
        port = int.from_bytes(name[2:4], "big")
        if not self.is_ipv6:
            return socket.inet_ntop(socket.AF_INET, name[4:8]), port
        flow, scope_id = int.from_bytes(name[4:8], "big"), int.from_bytes(name[24:28], sys.byteorder)
        return socket.inet_ntop(socket.AF_INET6, name[8:24]), port, flow, scope_id

    def hosts(self, count: int) -> Sequence[Any]:
        """Return the hosts of the first `count` sources, each as one 32-bit word or a tuple of four."""
        if not self.is_ipv6:
            return self._hosts[0][:count].tolist()
        return list(zip(*(words[:count].tolist() for words in self._hosts), strict=True))

    def packed(self, host: Any) -> bytes:
        """Return the 4 or 16 bytes of an address that `hosts` has returned."""
        words = cast("tuple[int, ...]", host if self.is_ipv6 else (host,))
        return b"".join([word.to_bytes(4, sys.byteorder) for word in words])

    def path(self, index: int) -> bytes:
        """Return a datagram's path, b"" on a socket that doesn't report it."""
        start = index * self.control_bytes + self.info_at
        return bytes(self.controls[start : start + _info_bytes(self.is_ipv6)]) if self.control_bytes else b""

    def payload(self, index: int) -> memoryview:
        """Return a view of a datagram's bytes. They change with the next batch."""
        start = index * self.stride_bytes
        return memoryview(self.payloads)[start : start + self.lengths[index]]

    def kernel_calls(self, descriptor: int) -> tuple[Receive, Send]:
        """Return recvmmsg(2) and sendmmsg(2) for these slots.

        Raise AttributeError if the C library lacks one, OSError if the kernel lacks or forbids one. To find out, both
        are called once with no datagram.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        recvmmsg, sendmmsg, get_errno = libc.recvmmsg, libc.sendmmsg, ctypes.get_errno
        begin = ctypes.addressof(self._exported[0])
        places = [ctypes.c_void_p(begin + i * HEADER_BYTES) for i in range(DATAGRAMS_PER_TURN)]
        first_place, most, flags = places[0], DATAGRAMS_PER_TURN, MSG_DONTWAIT

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
        """Point each header to its name, payload and control data. After this, only lengths change."""
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
    """Return the places of the bytes that aren't harmless."""
    return [i for i, byte in enumerate(column) if byte not in harmless]


def _info_bytes(is_ipv6: bool) -> int:
    return IPV6_INFO_BYTES if is_ipv6 else IPV4_INFO_BYTES


def _address_of(memory: bytearray | mmap.mmap) -> ctypes.Array[ctypes.c_char]:
    """Return an object at the address of `memory` that keeps it there."""
    return (ctypes.c_char * len(memory)).from_buffer(memory)


def _column(memory: bytearray, at: int, stride_bytes: int) -> memoryview:
    """Return the 32-bit numbers at offset `at` of each record of `stride_bytes`."""
    words = memoryview(memory).cast("I")
    return words[at // 4 :: stride_bytes // 4] if stride_bytes else words
