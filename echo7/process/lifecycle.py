"""What a service does at its beginning and its end, whichever serves: sockets, rights, signals, the word to systemd.

Law: the order is everything. First whatever needs privilege, then the privilege goes, and only then is anything
served; that we serve is said when it is so. Whatever is wrong on the way costs one line, and nothing has been served.
No signal is lost: what comes before there is a handler is held back until there is one.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from echo7.logs import log, report
from echo7.process import handover
from echo7.process.restart import Check, Elders, RestartError, become
from echo7.process.signals import signals_held
from echo7.sockets import activation, reuseport
from echo7.sockets.binding import BindError, Bound, bind_all
from reactor.loop import Reactor
from reactor.sockets.opening import set_buffers

if TYPE_CHECKING:
    from echo7.process.notify import Notifier
    from echo7.settings import Settings

ENDING_SIGNALS = [signal.SIGTERM, signal.SIGINT]
COUNTERS_SIGNALS = [signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []  # Windows has none of these
RESTART_SIGNALS = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []
ABORT_SIGNALS = [signal.SIGQUIT] if hasattr(signal, "SIGQUIT") else []
CHILD_SIGNALS = [signal.SIGCHLD] if hasattr(signal, "SIGCHLD") else []
KILL_GRACE_S = 10.0  # beyond the drain timeout, which an elder keeps by itself: then it hangs, and is killed
Leaving = Callable[[], AbstractContextManager[tuple[Sequence[int], Sequence[int]]]]  # elders' pids, and their leashes

logger = logging.getLogger("echo7")


class StartError(Exception):
    """One line: what can't be had, why not, and what to do."""


def hold_signals() -> None:
    """Have the kernel hold back what would end us as long as we have no handler for it, and lose none."""
    if hasattr(signal, "pthread_sigmask"):  # pragma: no branch - Windows, where none of these is
        signal.pthread_sigmask(signal.SIG_BLOCK, COUNTERS_SIGNALS + RESTART_SIGNALS + report.DUMP_SIGNALS)


class Lifecycle:
    """One image of the service, from its sockets to its end."""

    def __init__(self, reactor: Reactor, config: Settings) -> None:
        self._reactor, self._config = reactor, config
        self._notifier: Notifier | None = None  # None: nobody wants to know
        self._elders = Elders()
        self._check: Check | None = None  # under way
        self._asked_again = self._stopping = False
        self._alone: Callable[[], object] | None = None  # to be called when the last elder has ended
        self._sets: list[Bound] = []
        self.restart_due = False  # as soon as the loop has returned
        self.loopback_only = False  # by default, not because somebody asked for it

    # ---- the beginning

    def open(self) -> list[Bound]:
        """Return a set of sockets for each worker: handed over, handed in by systemd, or bound now. Raise BindError."""
        config = self._config
        before = handover.received()
        if before is not None:
            self._elders = Elders(before.elders, before.leashes)
            self._sets = before.sets(config.workers)
            for sock in [sock for bound in self._sets for sock in bound.tcp + bound.udp]:
                if config.socket_buffer_bytes is not None:
                    set_buffers(sock, config.socket_buffer_bytes)
            for sock in [sock for bound in self._sets for sock in bound.tcp]:
                sock.listen(config.backlog)
            return self._sets
        given = activation.inherited(
            tcp=config.tcp, udp=config.udp, backlog=config.backlog, buffer_bytes=config.socket_buffer_bytes
        )
        if given is not None:  # one socket for each address, so workers take turns at it
            self._sets = [given] * config.workers
            return self._sets
        self._sets = self._bind()
        return self._sets

    def _bind(self) -> list[Bound]:
        config, sockets = self._config, self._reactor.sockets
        self.loopback_only = not config.hosts
        bound = bind_all(
            sockets, config.hosts, config.port, tcp=config.tcp, udp=config.udp,
            backlog=config.backlog, buffer_bytes=config.socket_buffer_bytes,
        )  # fmt: skip
        if config.workers == 1:
            return [bound]
        return reuseport.share(sockets, bound, config.workers, config.backlog, config.socket_buffer_bytes)

    @contextlib.contextmanager
    def outages_forgiven(self) -> Iterator[None]:
        """Around what isn't the service itself: after a fresh start, callers shall not suffer for want of it.

        At the first start it raises what it may, BindError or StartError, as all else does.
        """
        try:
            yield
        except (BindError, StartError) as error:
            if not self._elders.leashes:
                raise
            log.event(logger, logging.ERROR, "left_out", f"{error}; serving without it")

    def drop_privileges(self) -> None:
        """Be nobody but who we were asked to be, from now on. Raise StartError; then serve nothing."""
        if self._config.user is not None:
            from echo7.process import privileges

            try:
                privileges.become(self._config.user)
            except privileges.PrivilegeError as error:
                raise StartError(str(error)) from None
        elif is_root() and any(map(reaches_beyond, self._sets)):
            text = "serving other machines as root, which nothing needs once the port is bound; use --user nobody"
            log.event(logger, logging.WARNING, "serving_as_root", text)

    def take_signals(
        self, end: Callable[[int], object], counters: Callable[[], object], reap: Callable[[], object] = int
    ) -> None:
        """Take the signals over, those too that have been held back. `reap` is for children that aren't elders."""
        add = self._reactor.add_signal_handler
        for signum in ENDING_SIGNALS:
            add(signum, functools.partial(end, signum))
        for signum in COUNTERS_SIGNALS:
            add(signum, counters)
        for signum in RESTART_SIGNALS:
            add(signum, self._restart_asked)
        for signum in CHILD_SIGNALS:
            add(signum, functools.partial(self._children_ended, reap))
        self._find_who_wants_to_know()
        self._reap()
        if hasattr(signal, "pthread_sigmask"):  # pragma: no branch - Windows
            # The image before us has held back all there are.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())

    def _find_who_wants_to_know(self) -> None:
        if os.environ.get("NOTIFY_SOCKET"):
            from echo7.process.notify import Notifier

            self._notifier = Notifier(self._reactor)
            if self._elders.leashes:  # the image before us has said already that it serves, so we are watched
                self._notifier.watch()

    def serving(self) -> None:
        """Say that we serve, and have the elders take no one new."""
        if self._notifier is not None:
            self._notifier.ready()
        if self._elders.leashes:
            pids = self._elders.pids
            text = f"started afresh; callers from before are served to their end by {', '.join(map(str, pids))}"
            log.event(logger, logging.INFO, "restarted", text, elders=pids)
        self._elders.release()

    # ---- the end

    def stopping(self) -> None:
        """Say that we end, and have the elders end in order too."""
        self._stopping = True
        if self._check is not None:
            self._check.kill()
        if self._notifier is not None:
            self._notifier.stopping()
        self._elders.release()
        self._elders.signal(signal.SIGTERM)
        if self._elders.pids:
            grace_s = self._config.drain_timeout_s + KILL_GRACE_S
            self._reactor.call_later(grace_s, lambda: self._elders.signal(signal.SIGKILL))

    def aborting(self) -> None:
        """Have the elders end at once."""
        for signum in ABORT_SIGNALS:
            self._elders.signal(signum)

    def when_alone(self, then: Callable[[], object]) -> None:
        """Call `then` when there are no elders (any more)."""
        self._alone = then
        self._reap()

    def disown(self) -> None:
        """In a worker: the elders are the parent's; a copy of their leash would hold them for as long as it lives."""
        self._elders.release()

    def leave(self) -> None:
        """In an elder: nothing of this is its own."""
        if self._notifier is not None:
            self._notifier.close()
        for signum in [signal.SIGINT, *RESTART_SIGNALS, *CHILD_SIGNALS]:
            self._reactor.remove_signal_handler(signum)

    def _children_ended(self, reap: Callable[[], object]) -> None:
        self._reap()
        reap()

    def _reap(self) -> None:
        if self._check is not None:
            self._check.reap()
        self._elders.reap()
        if self._alone is not None and not self._elders.pids:
            then, self._alone = self._alone, None
            then()

    # ---- a fresh start

    def _restart_asked(self) -> None:
        if self._stopping or self.restart_due:  # what is due will read everything anew
            return
        if self._check is not None:
            self._asked_again = True
            return
        log.event(logger, logging.INFO, "restarting", "starting afresh on SIGHUP: checking the configuration first")
        if self._notifier is not None:
            self._notifier.reloading()
        self._begin_check()

    def _begin_check(self) -> None:
        try:
            self._check = Check(self._reactor, self._config.fixed(), self._checked)
        except OSError as error:
            self._refuse(f"cannot run a check of the configuration: {error.strerror}")

    def _checked(self, why_not: str | None) -> None:
        self._check = None
        if self._stopping:
            return
        if self._asked_again:  # what has been read may have changed since
            self._asked_again = False
            self._begin_check()
        elif why_not is not None:
            self._refuse(why_not)
        else:
            self.restart_due = True
            self._reactor.stop()

    def _refuse(self, why: str) -> None:
        log.event(logger, logging.ERROR, "restart_refused", f"not starting afresh, serving on as before: {why}")
        if self._notifier is not None:
            self._notifier.ready()

    def restart(self, leaving: Leaving) -> None:
        """If it is due, be the new image. Returns when it isn't, or when that fails; then nothing has changed."""
        due, self.restart_due = self.restart_due, False
        if not due or self._stopping:
            return
        try:
            with signals_held():
                if self._reactor.snapshot().signals_pending:  # they come first; exec(2) would forget them
                    self.restart_due = True
                    self._reactor.call_soon(self._reactor.stop)
                    return
                with leaving() as (elders, leashes):
                    self._become(elders, leashes)
        except OSError as error:
            self._refuse(f"cannot start the new image: {error.strerror}; free what it needs, and send SIGHUP again")
        except RestartError as error:
            self._refuse(str(error))

    def _become(self, elders: Sequence[int], leashes: Sequence[int]) -> None:
        variables: Mapping[str, str] = {} if self._notifier is None else self._notifier.variables
        for handler in logger.handlers:
            handler.flush()
        before = self._elders
        become(handover.prepared(self._sets, [*before.pids, *elders], [*before.leashes, *leashes]), variables)


def is_root() -> bool:
    """Tell whether we may do everything."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def reaches_beyond(bound: Bound) -> bool:
    """Tell whether other machines can call one of these sockets."""
    hosts = [str(sock.getsockname()[0]) for sock in bound.tcp + bound.udp]
    return not all(host.startswith("127.") or host == "::1" for host in hosts)
