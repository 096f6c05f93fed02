"""Connector: one attempt to connect over TCP.

Law: the loop calls either the protocol's `connection_made` or `failed(error)`, at the latest when the deadline is over.
Only `abort()` ends an attempt without a call.
"""

import errno
from collections.abc import Callable

from reactor.connection import Connection, StreamProtocol
from reactor.limits import Limits
from reactor.loop import WRITE, Reactor
from reactor.sockets.addresses import Address
from reactor.sockets.errors import CONNECTING, os_error
from reactor.sockets.opening import Socket, close_socket, connect_result


class Connector:
    """One attempt. `connect_tcp` makes one."""

    __slots__ = (
        "_failed", "_limits", "_reactor", "_socket", "_timer", "closed", "detach", "fileno", "interest", "protocol",
    )  # fmt: skip

    def __init__(
        self, reactor: Reactor, sock: Socket, protocol: StreamProtocol, failed: Callable[[OSError], object],
        timeout_s: float, limits: Limits,
    ) -> None:  # fmt: skip
        self.interest, self.closed = 0, False
        self._reactor, self._socket, self.fileno, self.detach = reactor, sock, sock.fileno, sock.detach
        self.protocol, self._failed, self._limits = protocol, failed, limits
        self._timer = reactor.call_later(timeout_s, self.abort, os_error(errno.ETIMEDOUT))
        reactor.register(self)

    def start(self, address: Address) -> None:
        """Call connect(2). The loop reports the result, even if it is known at once."""
        try:
            code = self._socket.connect_ex(address)
        except Exception:  # not an address: OverflowError, gaierror
            self.abort()
            raise
        if code in CONNECTING:
            self._reactor.set_interest(self, WRITE)
        else:
            self._reactor.call_soon(self.abort, os_error(code))

    def on_event(self, mask: int) -> None:
        """Get the result from the kernel."""
        if code := connect_result(self._socket):
            self.abort(os_error(code))
            return
        self._release()
        connection = Connection(self._reactor, self._socket, self.protocol, self._limits)
        connection.open()

    def abort(self, error: Exception | None = None) -> None:
        """Give up and close. Call `failed(error)` only for an OSError."""
        if not self.closed:
            self._release(error)
            close_socket(self._socket)
            if isinstance(error, OSError):
                self._reactor.call_soon(self._failed, error)

    def _release(self, error: Exception | None = None) -> None:
        self.closed = True
        self._timer.cancel()
        self._reactor.unregister(self, error)
