"""Ports and descriptors: a kernel's small integers, and the sockets behind them.

Law: as in a kernel, the lowest free descriptor is taken first, so a freed number comes back at once. A program that
looks up owners by number soon finds the wrong one.
"""

from __future__ import annotations

import errno
import heapq
import socket
from typing import TYPE_CHECKING

from reactor.sockets.addresses import Address
from reactor.sockets.errors import os_error
from reactor.testing.kernel.routing import Routing

if TYPE_CHECKING:
    from reactor.testing.kernel.endpoint import SimulatedSocket

FIRST_DESCRIPTOR = 3  # 0, 1 and 2 are open in every process
EPHEMERAL = (32_768, 60_999)  # ip(7), ip_local_port_range


class Descriptors:
    """The descriptor table of the program under test."""

    __slots__ = ("_free", "_lost", "_next", "limit", "open")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open: dict[int, SimulatedSocket] = {}
        self._free: list[int] = []
        self._lost: list[int] = []  # free too, but a handler still has the number
        self._next = FIRST_DESCRIPTOR

    @property
    def is_full(self) -> bool:
        """Whether no number is left."""
        return len(self.open) + FIRST_DESCRIPTOR >= self.limit

    def take(self, owner: SimulatedSocket, *, is_socket: bool = True) -> int:
        """Return the lowest free number. Raise EMFILE when none is left.

        A pipe gets no lost one: the loop can't always tell that a number is no socket's (`watchlist.py`).
        """
        if self.is_full:
            raise os_error(errno.EMFILE)
        free = self._free
        if is_socket and self._lost and self._lost[0] < (free[0] if free else self._next):
            free = self._lost
        if free:
            number = heapq.heappop(free)
        else:
            number = self._next
            self._next += 1
        self.open[number] = owner
        return number

    def give_back(self, number: int, *, lost: bool = False) -> None:
        """Free a number, perhaps one that its owner has `lost` and doesn't know it."""
        del self.open[number]
        heapq.heappush(self._lost if lost else self._free, number)


class Ports:
    """The addresses and ports that sockets are bound to."""

    __slots__ = ("_bound", "_next", "_routing")

    def __init__(self, routing: Routing) -> None:
        self._routing = routing
        self._bound: dict[tuple[int, int], dict[str, SimulatedSocket]] = {}  # (type, port) → host → socket
        self._next = EPHEMERAL[0]

    def bind(self, sock: SimulatedSocket, address: Address) -> Address:
        """Bind a socket to (host, port), port 0 for any. Return the full address. Raise as bind(2) does."""
        host, port, *rest = self._routing.canonical(sock.family, address)
        if sock.inside and not (self._routing.is_local(host) or self._routing.is_wildcard(host)):
            raise os_error(errno.EADDRNOTAVAIL)
        port = port or self._ephemeral(sock, host)
        if self._taken(sock, host, port):
            raise os_error(errno.EADDRINUSE)
        self._bound.setdefault((sock.type, port), {})[host] = sock
        return (host, port, *rest)

    def release(self, sock: SimulatedSocket) -> None:
        """Free the port of a socket."""
        if sock.local is not None:
            hosts = self._bound.get((sock.type, sock.local[1]), {})
            if hosts.get(sock.local[0]) is sock:
                del hosts[sock.local[0]]

    def find(self, kind: int, family: int, host: str, port: int) -> SimulatedSocket | None:
        """Return the socket that receives for (host, port): one bound to it, else one bound to the wildcard."""
        hosts = self._bound.get((kind, port), {})
        if host in hosts:
            return hosts[host]
        wildcard = hosts.get(str(self._routing.any_address(family)[0]))
        return wildcard if wildcard is not None and self._routing.is_local(host) else None

    def listeners_to_all(self, port: int) -> list[SimulatedSocket]:
        """Return the sockets that an IPv4 broadcast reaches."""
        hosts = self._bound.get((socket.SOCK_DGRAM, port), {})
        everywhere = self._routing.any_address(socket.AF_INET)[0]
        return [sock for host, sock in hosts.items() if host == everywhere]

    def knows(self, host: str) -> bool:
        """Tell whether a machine has this address."""
        return self._routing.is_local(host) or any(host in hosts for hosts in self._bound.values())

    def _taken(self, sock: SimulatedSocket, host: str, port: int) -> bool:
        hosts = self._bound.get((sock.type, port), {})
        for other_host, other in hosts.items():
            if other.family == sock.family:
                everywhere = self._routing.is_wildcard(host) or self._routing.is_wildcard(other_host)
                if host == other_host or (everywhere and sock.inside == other.inside):
                    return True
        return False

    def _ephemeral(self, sock: SimulatedSocket, host: str) -> int:
        first, last = EPHEMERAL
        for _ in range(last - first + 1):
            port, self._next = self._next, self._next + 1 if self._next < last else first
            if not self._taken(sock, host, port):
                return port
        raise os_error(errno.EADDRINUSE)
