"""Connector: one attempt to connect over TCP.

Law: either the protocol's `connection_made` or `failed(error)` is called, never inside the call that asked for it. A
deadline makes sure of it. Only `abort` ends an attempt silently.
"""

import errno
from collections.abc import Callable

from reactor.connection import Connection, StreamProtocol
from reactor.limits import Limits
from reactor.loop import WRITE, Reactor
from reactor.sockets.addresses import Address
from reactor.sockets.errors import CONNECTING, os_error
from reactor.sockets.opening import Socket, connect_result

Failed = Callable[[OSError], object]


class Connector:
    """One attempt. `connect_tcp` makes one."""

    __slots__ = ("_failed", "_limits", "_reactor", "_socket", "_timer", "closed", "fileno", "interest", "protocol")

    def __init__(
        self, reactor: Reactor, sock: Socket, protocol: StreamProtocol, failed: Failed, timeout_s: float, limits: Limits
    ) -> None:
        self.interest, self.closed = 0, False
        self._reactor, self._socket, self.fileno = reactor, sock, sock.fileno
        self.protocol, self._failed, self._limits = protocol, failed, limits
        self._timer = reactor.call_later(timeout_s, self.abort, os_error(errno.ETIMEDOUT))
        reactor.register(self)

    def start(self, address: Address) -> None:
        """Call connect(2); the answer comes through the loop, even if it is known at once."""
        try:
            code = self._socket.connect_ex(address)
        except Exception:  # not an address at all: OverflowError, gaierror
            self.abort()
            raise
        if code in CONNECTING:
            self._reactor.set_interest(self, WRITE)
        else:
            self._reactor.call_soon(self.abort, os_error(code))

    def on_event(self, mask: int) -> None:
        """Ask the kernel how it ended."""
        code = connect_result(self._socket)
        if code:
            self.abort(os_error(code))
            return
        self._let_go()
        connection = Connection(self._reactor, self._socket, self.protocol, self._limits)
        self._reactor.guard(connection.open, owner=connection)

    def abort(self, error: Exception | None = None) -> None:
        """Give up: close without a word, unless it is because of an OSError, which is told."""
        if not self.closed:
            self._let_go(error)
            self._socket.close()
            if isinstance(error, OSError):
                self._reactor.call_soon(self._failed, error)

    def _let_go(self, error: Exception | None = None) -> None:
        self.closed = True
        self._timer.cancel()
        self._reactor.unregister(self, error)
