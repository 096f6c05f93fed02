"""Control data: which local address a datagram was sent to, and how to answer from it.

Law: an answer leaves from the address that was asked (RFC 1122 §4.1.3.5). The kernel reports it in a `pktinfo` beside
each datagram (ip(7), RFC 3542 §6), here an opaque `path` of 0, 12 or 20 bytes. It goes back with the answer, but with
interface 0: a named interface bypasses routing, and a machine with several would lose answers. A link-local address
keeps its scope in the peer's address.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Any

# Some Pythons lack these names; 8 is Linux's IP_PKTINFO (<bits/in.h>).
IP_PKTINFO: int = getattr(socket, "IP_PKTINFO", 8 if sys.platform == "linux" else -1)
IPV6_RECVPKTINFO: int = getattr(socket, "IPV6_RECVPKTINFO", -1)
IPV6_PKTINFO: int = getattr(socket, "IPV6_PKTINFO", -1)
IPV4_INFO_BYTES, IPV6_INFO_BYTES = 12, 20  # struct in_pktinfo, struct in6_pktinfo
MSG_TRUNC: int = getattr(socket, "MSG_TRUNC", 0)
MSG_ERRQUEUE: int = getattr(socket, "MSG_ERRQUEUE", 0)  # Linux

Control = list[tuple[int, int, bytes]]  # (level, type, data), as in recvmsg and sendmsg
Receive = Callable[[int], tuple[bytes, Control, int, Any]]  # size → data, control data, flags, source


def report_paths(sock: socket.socket) -> None:
    """Make the kernel report the address asked with each datagram.

    An inherited IPv6 socket may carry IPv4 too (v4-mapped), so both reports are turned on. On a platform with neither,
    answers leave from the address that routing chooses.
    """
    if not hasattr(sock, "recvmsg"):
        return
    if sock.family == socket.AF_INET6 and IPV6_RECVPKTINFO >= 0:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
        if sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            return
    if IP_PKTINFO >= 0:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)


def receiver(sock: socket.socket) -> Receive:
    """Return `sock.recvmsg` with room for control data, or an equivalent on `recvfrom` (Windows)."""
    if hasattr(sock, "recvmsg"):
        recvmsg, room_bytes = sock.recvmsg, socket.CMSG_SPACE(IPV4_INFO_BYTES) + socket.CMSG_SPACE(IPV6_INFO_BYTES)
        return lambda size_bytes: recvmsg(size_bytes, room_bytes)

    def receive(size_bytes: int) -> tuple[bytes, Control, int, Any]:
        data, source = sock.recvfrom(size_bytes)
        return data, [], 0, source

    return receive


def path_of(control: Control) -> bytes:
    """Return the path in a datagram's control data, b"" for none."""
    path = b""
    for level, kind, data in control:
        if kind == IP_PKTINFO and level == socket.IPPROTO_IP:
            return data  # a v4-mapped datagram has both; only this one shows broadcast
        if kind == IPV6_PKTINFO and level == socket.IPPROTO_IPV6:
            path = data
    return path


def reply_control(path: bytes) -> Control:
    """Return the control data that makes an answer leave from the address in `path`."""
    if len(path) == IPV4_INFO_BYTES:
        asked = path[8:12]  # path[4:8] is 0 if the datagram was queued before `report_paths`
        return [(socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + asked + asked)]
    return [(socket.IPPROTO_IPV6, IPV6_PKTINFO, path[:16] + bytes(4))]


def is_unicast(path: bytes) -> bool:
    """Tell whether the datagram that came with `path` was sent to this host alone.

    For IPv4 the kernel reports the address asked and the one it would answer from; they are equal for unicast only.
    A datagram queued before `report_paths` has only the first. It shows multicast and 255.255.255.255, and the kernel
    refuses to answer from a subnet's broadcast address. An IPv6 address shows it itself (RFC 4291 §2.7). Without a
    path, return True.
    """
    if len(path) == IPV4_INFO_BYTES:
        answering, asked = path[4:8], path[8:12]
        if answering == asked:
            return True
        return answering == bytes(4) and not 224 <= asked[0] <= 239 and asked != b"\xff\xff\xff\xff"
    return path[:1] != b"\xff"
