"""Numeric addresses: family, packed form and text. Law: names are refused, because looking one up blocks."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

Address = tuple[Any, ...]  # (host, port) for IPv4; (host, port, flow, scope id) for IPv6
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - to recognise them
MAPPED_PREFIX, MAPPED_WILDCARD = bytes(10) + b"\xff\xff", "::ffff:0.0.0.0"


def family_of(address: Address) -> socket.AddressFamily:
    """Return AF_INET or AF_INET6 for a numeric address. Raise ValueError for a name.

    Resolve names before the loop runs, or in a thread that passes the result to `call_soon_threadsafe`.
    """
    host = address[0]
    number, percent, scope = host.partition("%")
    for family in (socket.AF_INET, socket.AF_INET6):
        if bool(percent) == bool(scope) and not (percent and family == socket.AF_INET):
            with contextlib.suppress(OSError):
                socket.inet_pton(family, number)
                return family
    raise ValueError(f"{host!r} is not a numeric IPv4 or IPv6 address; resolve names before they reach the loop")


def unspecified(address: Address) -> Address:
    """Return the wildcard of an address's family, with port 0. A socket bound to it gets both when it connects."""
    if is_mapped(address):
        return MAPPED_WILDCARD, 0
    return WILDCARDS[family_of(address) == socket.AF_INET6], 0


def is_mapped(address: Address) -> bool:
    """Tell whether an IPv6 address stands for an IPv4 one, `::ffff:192.0.2.1` (RFC 4291 §2.5.5.2)."""
    return family_of(address) == socket.AF_INET6 and pack_host(address[0])[:12] == MAPPED_PREFIX


def unmapped(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 one stands for, or the address itself."""
    if not is_mapped(address):
        return address
    return socket.inet_ntop(socket.AF_INET, pack_host(address[0])[12:]), address[1]


def pack_host(host: str) -> bytes:
    """Return the 4 or 16 bytes of a numeric address, without its scope. Raise OSError for a name."""
    return socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host.partition("%")[0])


def format_address(address: Address) -> str:
    """Return `127.0.0.1:7` or `[fe80::1%eth0]:7`."""
    host, port = address[0], address[1]
    if ":" not in host:
        return f"{host}:{port}"
    scope = address[3] if len(address) > 3 and "%" not in host else 0
    return f"[{host}%{_interface_name(scope)}]:{port}" if scope else f"[{host}]:{port}"


def _interface_name(scope_id: int) -> str:
    with contextlib.suppress(OSError, AttributeError):
        return socket.if_indextoname(scope_id)
    return str(scope_id)
