"""Listener: accepts connections from the kernel's queue, a bounded number per turn.

Law: no error of accept(2) ends the service unless the listening socket itself is broken. After a shortage (descriptors,
memory) the listener is suspended: clients wait in the kernel's queue, and the loop doesn't spin.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from reactor.connection import Connection, StreamProtocol
from reactor.limits import ACCEPTS_PER_TURN, DEFAULT_LIMITS, SHORTAGE_QUIET_S, Limits
from reactor.loop import READ, Reactor
from reactor.sockets.addresses import Address, format_address
from reactor.sockets.errors import WOULD_BLOCK, errno_name
from reactor.sockets.opening import Socket, close_socket

Factory = Callable[[], StreamProtocol]

logger = logging.getLogger("reactor")


class Listener:
    """A listening TCP socket on a loop. `listen_tcp` makes one. `lost(listener, error)` is called if it breaks."""

    __slots__ = (
        "_factory", "_limits", "_lost", "_quiet_until_s", "_reactor", "_room", "_socket",
        "address", "closed", "detach", "errors", "fileno", "interest",
    )  # fmt: skip

    def __init__(
        self, reactor: Reactor, sock: Socket, factory: Factory, limits: Limits = DEFAULT_LIMITS,
        lost: Callable[[Listener, OSError], object] | None = None, room: Callable[[], int] = lambda: ACCEPTS_PER_TURN,
    ) -> None:  # fmt: skip
        self.interest, self.closed = 0, False
        self.address: Address = sock.getsockname()  # with the port that the kernel chose for port 0
        self.errors: dict[str, int] = {}  # of accept(2), by errno name
        self._reactor, self._socket = reactor, reactor.observer.socket(self, sock)
        self.fileno, self.detach = sock.fileno, sock.detach
        self._factory, self._limits, self._lost = factory, limits, lost
        self._room = room  # returns how many may be accepted now; for 0, it pauses the listener
        self._quiet_until_s = -math.inf
        reactor.register(self)
        reactor.set_interest(self, READ)

    def pause(self) -> None:
        """Stop accepting until `resume`, also within a batch. Clients wait in the kernel's queue."""
        self._reactor.set_interest(self, 0)

    def resume(self) -> None:
        """Undo `pause`."""
        if not self.closed:
            self._reactor.set_interest(self, READ)

    def abort(self, error: Exception | None = None) -> None:
        """Close. The kernel resets the clients in its queue. A second call does nothing."""
        if not self.closed:
            self.closed = True
            self._reactor.unregister(self, error)
            close_socket(self._socket)
            if isinstance(error, OSError) and self._lost is not None:
                self._reactor.call_soon(self._lost, self, error)

    close = abort

    def on_event(self, mask: int) -> None:
        """Accept until the queue is empty, ACCEPTS_PER_TURN is reached, or the listener is paused."""
        failures = 0
        for _ in range(min(ACCEPTS_PER_TURN, self._room())):
            if not self.interest:
                return
            try:
                sock, _peer = self._socket.accept()
            except WOULD_BLOCK:
                return
            except OSError as error:
                failures += 1
                if not self._goes_on_after(error, failures):
                    return
            else:
                self._reactor.guard(self._welcome, sock)

    def _welcome(self, sock: Socket) -> None:
        try:
            sock.setblocking(False)
            connection = Connection(self._reactor, sock, self._factory(), self._limits)
        except BaseException:
            close_socket(sock)
            raise
        connection.open()

    def _goes_on_after(self, error: OSError, failures: int) -> bool:
        name, where, now_s = errno_name(error), format_address(self.address), self._reactor.now()
        self.errors[name] = self.errors.get(name, 0) + 1
        goes_on = self._reactor.goes_on_after(self, error, failures)
        if self.closed:
            text = f"listener {where} is broken and closed: {error.strerror}"
            logger.error(text, extra={"event": "socket_broken"})
        elif not goes_on and now_s >= self._quiet_until_s:
            self._quiet_until_s = now_s + SHORTAGE_QUIET_S
            text = f"listener {where} is suspended, clients queue: {error.strerror}"
            logger.warning(text, extra={"event": "accept_waits"})
        return goes_on
