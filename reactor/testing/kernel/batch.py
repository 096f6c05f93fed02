"""Batches: recvmmsg(2) and sendmmsg(2), made of a simulated socket's recvmsg and sendmsg.

Law: a batch moves its datagrams one after another, through the same memory that the real kernel gets. An error ends it.
At the first datagram, the call raises it; at a later one, the call returns how many were moved before. Linux then keeps
a receive error for the next call (SO_ERROR), and forgets a send error.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Callable

from reactor.fastpath.mmsg import HEADER_BYTES, Header, Iovec, Slots
from reactor.limits import DATAGRAMS_PER_TURN
from reactor.sockets.addresses import Address
from reactor.sockets.pktinfo import Control

RecvMsg = Callable[[int, int], tuple[bytes, Control, int, Address]]
SendMsg = Callable[[tuple[bytes], Control, int, Address], int]
CONTROL_HEADER = "@Nii"  # struct cmsghdr: length, level, type
CONTROL_HEADER_BYTES = struct.calcsize(CONTROL_HEADER)
IPV4_NAME, IPV6_NAME = "!2xH4s8x", "!2xHI16s4x"  # without the parts that aren't in network byte order


def receive(recvmsg: RecvMsg, keep_error: Callable[[int], None], slots: Slots) -> int:
    """Receive datagrams into slots until no more wait, and return how many: recvmmsg(2)."""
    for index in range(DATAGRAMS_PER_TURN):
        header = Header.from_buffer(slots.headers, index * HEADER_BYTES)
        iovec = Iovec.from_address(header.message.iovecs)
        try:
            data, control, flags, source = recvmsg(iovec.bytes, header.message.control_bytes)
        except OSError as error:
            if not index:
                raise
            if error.errno != errno.EAGAIN:
                keep_error(error.errno or 0)
            return index
        _write(header, data, pack_control(control), pack_name(source))
        header.message.flags = flags
    return DATAGRAMS_PER_TURN


def _write(header: Header, data: bytes, control: bytes, name: bytes) -> None:
    message = header.message
    ctypes.memmove(Iovec.from_address(message.iovecs).base, data, len(data))
    ctypes.memmove(message.control, control, len(control))
    ctypes.memmove(message.name, name, len(name))
    header.length, message.control_bytes, message.name_bytes = len(data), len(control), len(name)


def send(sendmsg: SendMsg, slots: Slots, first: int, count: int) -> int:
    """Send the datagrams in `count` slots, and return how many were sent: sendmmsg(2)."""
    for index in range(first, first + count):
        header = Header.from_buffer(slots.headers, index * HEADER_BYTES)
        message, iovec = header.message, Iovec.from_address(header.message.iovecs)
        control = unpack_control(ctypes.string_at(message.control, message.control_bytes))
        name = unpack_name(ctypes.string_at(message.name, message.name_bytes))
        try:
            header.length = sendmsg((ctypes.string_at(iovec.base, iovec.bytes),), control, 0, name)
        except OSError:
            if index == first:
                raise
            return index - first
    return count


def pack_name(address: Address) -> bytes:
    """Return an address as a struct sockaddr_in or sockaddr_in6."""
    if len(address) == 2:
        record = struct.pack(IPV4_NAME, address[1], socket.inet_pton(socket.AF_INET, address[0]))
        return _number(socket.AF_INET, 2) + record[2:]
    host, port, flow, scope_id = address
    record = struct.pack(IPV6_NAME, port, flow, socket.inet_pton(socket.AF_INET6, host))
    return _number(socket.AF_INET6, 2) + record[2:-4] + _number(scope_id, 4)


def _number(value: int, size_bytes: int) -> bytes:
    return value.to_bytes(size_bytes, sys.byteorder)


def unpack_name(name: bytes) -> Address:
    """Return the address in a struct sockaddr."""
    if len(name) == struct.calcsize(IPV4_NAME):
        port, host = struct.unpack(IPV4_NAME, name)
        return socket.inet_ntop(socket.AF_INET, host), port
    port, flow, host = struct.unpack(IPV6_NAME, name)
    return socket.inet_ntop(socket.AF_INET6, host), port, flow, int.from_bytes(name[-4:], sys.byteorder)


def pack_control(control: Control) -> bytes:
    """Return control data as the kernel writes it (cmsg(3))."""
    packed = b""
    for level, kind, data in control:
        header = struct.pack(CONTROL_HEADER, socket.CMSG_LEN(len(data)), level, kind)
        packed += (header.ljust(socket.CMSG_LEN(0), b"\0") + data).ljust(socket.CMSG_SPACE(len(data)), b"\0")
    return packed


def unpack_control(packed: bytes) -> Control:
    """Return control data as Python's recvmsg gives it."""
    found: Control = []
    while packed:
        size_bytes, level, kind = struct.unpack(CONTROL_HEADER, packed[:CONTROL_HEADER_BYTES])
        found.append((level, kind, packed[socket.CMSG_LEN(0) : size_bytes]))
        packed = packed[socket.CMSG_SPACE(size_bytes - socket.CMSG_LEN(0)) :]
    return found
