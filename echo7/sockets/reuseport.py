"""One set of sockets for each worker, all on the same addresses (SO_REUSEPORT, socket(7)).

Law: the first set is bound without SO_REUSEPORT, so that any port in use is refused, and gets the option afterwards;
the others are bound with it. So a second daemon is refused at every moment, also one that shares its own ports.
(Another program of the same user that asks for SO_REUSEPORT from the start is let in by the kernel.)

The kernel chooses a client's socket by a hash over the addresses and the number of sockets. All are made here, once,
and stay open until the service ends, so the choice never changes: a client's datagrams all reach the same worker's
set, and connections wait in it while that worker is replaced.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable

from echo7.sockets.binding import BindError, Bound
from reactor.sockets.addresses import Address, format_address
from reactor.sockets.factory import SocketFactory
from reactor.sockets.opening import Socket, bind_tcp, bind_udp, closed_on_error

# Linux balances among the sockets. With the BSDs and macOS the last one gets everything (FreeBSD has another option
# for it, SO_REUSEPORT_LB), and Windows has no such thing, nor fork(2).
AVAILABLE = sys.platform == "linux"


def share(sockets: SocketFactory, first: Bound, count: int, backlog: int, buffer_bytes: int | None) -> list[Bound]:
    """Return `count` sets of sockets, `first` among them. Raise BindError; then all are closed, `first` too.

    `first` listens already, and its clients wait. What may still fail here is a shortage, of descriptors or memory.
    """
    sets = [first, *(Bound() for _ in range(count - 1))]
    factory = _Sharing(sockets)
    try:
        for sock in first.tcp + first.udp:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for bound in sets[1:]:
            for address in _addresses(first.tcp):
                bound.tcp.append(bind_tcp(factory, address, buffer_bytes=buffer_bytes))
            for address in _addresses(first.udp):
                bound.udp.append(bind_udp(factory, address, buffer_bytes=buffer_bytes))
        for sock in [sock for bound in sets[1:] for sock in bound.tcp]:
            sock.listen(backlog)
    except OSError as error:
        where = format_address(_addresses(first.tcp + first.udp)[0])
        for bound in sets:
            bound.close()
        raise BindError(
            f"cannot bind {where} for {count} workers: {error.strerror}; try fewer --workers, or raise 'ulimit -n'"
        ) from None
    return sets


class _Sharing:
    """Makes sockets that share their port."""

    def __init__(self, sockets: SocketFactory) -> None:
        self._sockets = sockets
        self.socketpair = sockets.socketpair

    def socket(self, family: int, type: int) -> Socket:
        with closed_on_error(self._sockets.socket(family, type)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            return sock


def _addresses(bound: Iterable[Socket]) -> list[Address]:
    return [sock.getsockname() for sock in bound]
