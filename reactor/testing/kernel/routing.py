"""Routing: the addresses of this machine, their spelling, and the source address of a packet.

Law: pure. An address has one spelling, that of getsockname(2).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Sequence

from reactor.sockets.addresses import WILDCARDS, Address, family_of

BROADCASTS = ("255.255.255.255", "10.0.0.255")
LOOPBACK_INTERFACE, ROUTED_INTERFACE = 1, 2


class Routing:
    """The addresses of this machine. All other addresses are outside."""

    __slots__ = ("addresses",)

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = tuple(addresses)

    def is_local(self, host: str) -> bool:
        """Tell whether an address is this machine's."""
        return host in self.addresses or host.startswith("127.")

    def is_wildcard(self, host: str) -> bool:
        """Tell whether an address stands for all addresses of this machine."""
        return host in WILDCARDS

    def is_broadcast(self, host: str) -> bool:
        """Tell whether an address stands for all machines of a network."""
        return host in BROADCASTS

    def interface_of(self, host: str) -> int:
        """Return the index of the interface that has this address, or that leads to it if it is outside.

        The first address of a family is on the interface that leads outside; each other address has its own.
        """
        if host.startswith("127.") or host == "::1":
            return LOOPBACK_INTERFACE
        own = self._reachable(family_of((host,)))
        return ROUTED_INTERFACE + (own.index(host) if host in own else 0)

    def _reachable(self, family: int) -> list[str]:
        """Return our addresses of a family that other machines can reach."""
        routed = (own for own in self.addresses if not own.startswith("127.") and own != "::1")
        return [own for own in routed if family_of((own,)) == family]

    def any_address(self, family: int) -> Address:
        """Return the wildcard of a family, without a port."""
        return ("0.0.0.0", 0) if family == socket.AF_INET else ("::", 0, 0, 0)  # noqa: S104

    def canonical(self, family: int, address: Address) -> Address:
        """Return an address as getsockname(2) gives it. Raise EINVAL for one of another family."""
        host = str(address[0]).partition("%")[0]
        if family_of((host,)) != family:
            raise OSError(errno.EINVAL, "an address of another family")
        host = ipaddress.ip_address(host).compressed
        return (host, address[1]) if family == socket.AF_INET else (host, address[1], *(*address[2:], 0, 0)[:2])

    def source_for(self, family: int, destination: Address) -> Address:
        """Return the source address, without a port, that routing picks for `destination`."""
        host = str(destination[0])
        if not self.is_local(host):
            usable = self._reachable(family)
            host = usable[0] if usable else host
        return self.canonical(family, (host, 0))
