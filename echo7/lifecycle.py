"""What a service does at its beginning and its end, whichever serves: the sockets, the rights, the word to systemd.

Law: the order is everything. First whatever needs privilege, then the privilege goes, and only then is anything
served; that we serve is said when it is so. Whatever is wrong on the way costs one line, and nothing has been served.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from echo7 import activation, log, reuseport
from echo7.binding import Bound, bind_all
from reactor.loop import Reactor

if TYPE_CHECKING:
    from echo7.notify import Notifier
    from echo7.serve import ServeConfig

logger = logging.getLogger("echo7")


class StartError(Exception):
    """One line: what can't be had, why not, and what to do."""


class Lifecycle:
    """One image of the service, from its sockets to its end."""

    def __init__(self, reactor: Reactor, config: ServeConfig) -> None:
        self._reactor, self._config = reactor, config
        self._notifier: Notifier | None = None  # None: nobody wants to know
        self.loopback_only = False  # by default, not because somebody asked for it

    def open(self) -> list[Bound]:
        """Return a set of sockets for each worker: those handed in by systemd, or bound now. Raise BindError."""
        config, sockets = self._config, self._reactor.sockets
        given = activation.inherited(
            tcp=config.tcp, udp=config.udp, backlog=config.backlog, buffer_bytes=config.socket_buffer_bytes
        )
        if given is not None:  # one socket for each address, so workers take turns at it
            return [given] * config.workers
        self.loopback_only = not config.hosts
        bound = bind_all(
            sockets, config.hosts, config.port, tcp=config.tcp, udp=config.udp,
            backlog=config.backlog, buffer_bytes=config.socket_buffer_bytes,
        )  # fmt: skip
        if config.workers == 1:
            return [bound]
        return reuseport.share(sockets, bound, config.workers, config.backlog, config.socket_buffer_bytes)

    def drop_privileges(self, sets: Sequence[Bound]) -> None:
        """Be nobody but who we were asked to be, from now on. Raise StartError; then serve nothing."""
        if self._config.user is not None:
            from echo7 import privileges

            try:
                privileges.become(self._config.user)
            except privileges.PrivilegeError as error:
                raise StartError(str(error)) from None
        elif is_root() and any(map(reaches_beyond, sets)):
            text = "serving other machines as root, which nothing needs once the port is bound; use --user nobody"
            log.event(logger, logging.WARNING, "serving_as_root", text)

    def serving(self) -> None:
        """Say that we serve."""
        if self._notifier is None and os.environ.get("NOTIFY_SOCKET"):
            from echo7.notify import Notifier

            self._notifier = Notifier(self._reactor)
        if self._notifier is not None:
            self._notifier.ready()

    def stopping(self) -> None:
        """Say that we end."""
        if self._notifier is not None:
            self._notifier.stopping()


def is_root() -> bool:
    """Tell whether we may do everything."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def reaches_beyond(bound: Bound) -> bool:
    """Tell whether other machines can call one of these sockets."""
    hosts = [str(sock.getsockname()[0]) for sock in bound.tcp + bound.udp]
    return not all(host.startswith("127.") or host == "::1" for host in hosts)
