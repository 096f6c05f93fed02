"""One set of sockets for each worker, all on the same addresses (SO_REUSEPORT, socket(7)).

Law: the first set is bound without SO_REUSEPORT, so that a port in use is refused, and gets the option afterwards; the
other sets are bound with it. So a second daemon is always refused, even one with workers of its own. (The kernel admits
another program of the same user that sets SO_REUSEPORT from the start.)

The kernel chooses a client's socket by a hash over the addresses and the number of sockets. All sockets are made here,
once, and stay open until the service ends, so the choice never changes: all datagrams of a client reach the set of the
same worker, and connections wait in that set while the worker is replaced.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable

from echo7.sockets.binding import BindError, Bound
from reactor.sockets.addresses import Address, format_address
from reactor.sockets.factory import SocketFactory
from reactor.sockets.opening import Socket, bind_tcp, bind_udp, closed_on_error

# Linux balances among the sockets. On the BSDs and macOS, the last one gets everything (FreeBSD balances with
# SO_REUSEPORT_LB). Windows has neither the option nor fork(2).
AVAILABLE = sys.platform == "linux"


def share(sockets: SocketFactory, first: Bound, count: int, backlog: int, buffer_bytes: int | None) -> list[Bound]:
    """Return `count` sets of sockets, `first` among them. Raise BindError; then all are closed, `first` too.

    `first` listens already, and its clients wait. Only a shortage of descriptors or memory can still fail here.
    """
    sets = [first, *(Bound(is_prepared=True) for _ in range(count - 1))]
    factory = _Sharing(sockets)
    try:
        for sock in first.sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for bound in sets[1:]:
            for address in _addresses(first.tcp):
                bound.tcp.append(bind_tcp(factory, address, buffer_bytes=buffer_bytes))
            for address in _addresses(first.udp):
                bound.udp.append(bind_udp(factory, address))
        for sock in [sock for bound in sets[1:] for sock in bound.tcp]:
            sock.listen(backlog)
    except OSError as error:
        where = format_address(_addresses(first.sockets)[0])
        for bound in sets:
            bound.close()
        raise BindError(
            f"cannot bind {where} for {count} workers: {error.strerror}; try fewer --workers, or raise 'ulimit -n'"
        ) from None
    return sets


class _Sharing:
    """A SocketFactory: its sockets share their port."""

    def __init__(self, sockets: SocketFactory) -> None:
        self._sockets = sockets
        self.socketpair = sockets.socketpair

    def socket(self, family: int, type: int) -> Socket:
        with closed_on_error(self._sockets.socket(family, type)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            return sock


def _addresses(bound: Iterable[Socket]) -> list[Address]:
    return [sock.getsockname() for sock in bound]
