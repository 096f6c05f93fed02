"""One generation of a service, from its sockets to its exit status. README.md here has the picture.

Law: the order matters. The service opens what needs privileges, drops them, and only then serves and says so. No signal
is lost: a signal that comes before its handler is held back. fork(2) and exec(2) happen between two runs of the loop,
never in a callback.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from echo7 import assembly
from echo7.logs import log, report
from echo7.process import StartError, child, handover, is_root, limits, previous
from echo7.process.restart import NoNotifier, Restart
from echo7.process.sandbox import Sandbox
from echo7.sockets.binding import BindError, Bound, on_loopback
from reactor.loop import Reactor

if TYPE_CHECKING:
    from echo7.metrics.service import Metrics
    from echo7.process.notify import Notifier
    from echo7.process.privileges import Identity
    from echo7.process.supervisor import Supervisor
    from echo7.settings import Settings
    from echo7.tracing import Tracing

SIGNALS = child.END_SIGNALS + child.COUNTERS_SIGNALS + child.RESTART_SIGNALS + report.DUMP_SIGNALS
# Every process keeps the drain timeout itself. A process that runs for longer than this beyond it hangs, and is killed.
DRAIN_GRACE_S = 10.0
ABORT_GRACE_S = 1.0

logger = logging.getLogger("echo7")


def serve(settings: Settings) -> int:
    """Serve until a signal ends it; return the exit status."""
    _mask("SIG_BLOCK", set(SIGNALS) - set(child.END_SIGNALS))
    handler = log.set_up(settings.log_level, settings.log_format)
    descriptors = limits.raise_descriptor_limit()
    if descriptors < limits.LEAST_DESCRIPTORS:
        why = f"{descriptors} open descriptors are too few: there must be at least {limits.LEAST_DESCRIPTORS}"
        log.event(logger, logging.ERROR, "start_failed", f"cannot start: {why}; raise 'ulimit -n'")
        return 1
    tracing = assembly.new_tracing(settings)
    try:
        # a supervisor carries no traffic: the plain loop will do
        reactor = assembly.new_reactor(settings, tracing) if settings.workers == 1 else Reactor()
    except OSError as error:
        log.event(logger, logging.ERROR, "start_failed", f"cannot start: {error.strerror}; raise 'ulimit -n'")
        return 1
    with tracing or contextlib.nullcontext(), reactor:
        service = Service(reactor, settings, handler, descriptors, tracing)
        try:
            service.start()
        except (BindError, StartError) as error:
            name = "bind_failed" if isinstance(error, BindError) else "start_failed"
            log.event(logger, logging.ERROR, name, str(error))
            return 1
        status = service.run()
        # the exit status is decided: a late signal must not change it
        child.ignore(SIGNALS)
        service.work.log_counters("stopped")
        return status


class Service:
    """The process in charge: its pid is the service's, and it starts, restarts and ends everything.

    `Single` or `Supervisor` does the work: serving in this process, or in workers.
    """

    def __init__(
        self,
        reactor: Reactor,
        settings: Settings,
        handler: log.StderrHandler,
        descriptors: int,
        tracing: Tracing | None = None,
    ) -> None:
        self.reactor, self.settings, self.handler, self.descriptors = reactor, settings, handler, descriptors
        self._tracing = tracing
        self.children = child.Children()
        self._previous = previous.PreviousGenerations(self.children)
        self._notifier: Notifier | NoNotifier = NoNotifier()
        if os.environ.get("NOTIFY_SOCKET"):
            # imported only under systemd
            from echo7.process.notify import Notifier

            self._notifier = Notifier(reactor)
        self._restart = Restart(reactor, self.children, settings.fixed(), self._notifier)
        self._sets: list[Bound] = []
        self._stopping = self._work_done = False
        self._aborted_by = 0
        self.work: Single | Supervisor
        if settings.workers == 1:
            self.work = Single(self, tracing)
        else:
            # imported only when there are workers
            from echo7.process.supervisor import Supervisor

            self.work = Supervisor(self)

    # ---- start

    def start(self) -> None:
        """Open the sockets, drop privileges, install signal handlers, start the work. Raise BindError, StartError."""
        before = handover.received()
        if before is not None:
            self._previous.take_over(before.previous, before.watches)
        self._sets, bound_here = handover.open_sockets(self.settings, self.reactor.sockets, before)
        self.work.open(self._sets)
        restrictions = Sandbox(self.settings.sandbox)
        drop_privileges(self.settings.user, self._sets)
        if self._tracing is not None:
            # not earlier: root would follow the user's links
            with self.optional():
                self._tracing.open()
        written = [] if self.settings.trace is None else [self.settings.trace]
        restrictions.restrict_in_charge(written, children=bool(self._previous.pids))
        report.dump_on_signal(self.reactor, self.work.dump)
        self._install_signal_handlers()
        report.log_hints(self._sets[0].left_out, bound_here and not self.settings.hosts)
        assembly.log_limits(self.settings, self.descriptors, self._sets[0])
        self.work.start()

    @contextlib.contextmanager
    def optional(self) -> Iterator[None]:
        """After a restart, optional parts (such as metrics) may fail without stopping the service."""
        try:
            yield
        except (BindError, StartError) as error:
            if not self._previous.watches:
                raise
            log.event(logger, logging.ERROR, "left_out", f"{error}; serving without it")

    def _install_signal_handlers(self) -> None:
        callbacks: dict[signal.Signals, Callable[[], object]] = {
            **{signum: functools.partial(self._end, signum) for signum in child.END_SIGNALS},
            **dict.fromkeys(child.COUNTERS_SIGNALS, self.work.ask_for_counters),
            **dict.fromkeys(child.RESTART_SIGNALS, self._restart.ask),
            **dict.fromkeys(child.CHILD_SIGNALS, self._reap),
        }
        for signum, callback in callbacks.items():
            self.reactor.add_signal_handler(signum, callback)
        if self._previous.watches:
            # the old generation has told systemd that it is ready, so the watchdog is running
            self._notifier.watch()
        self._reap()
        # all signals, because the old generation has held back every one
        _mask("SIG_UNBLOCK")

    def serving(self) -> None:
        """Report that the service serves, and retire the previous generation. Called by the work."""
        self._notifier.ready()
        if self._previous.watches:
            pids = self._previous.pids
            text = f"restarted; open connections are served to their end by {', '.join(map(str, pids))}"
            log.event(logger, logging.INFO, "restarted", text, previous=pids)
        self._previous.release()

    # ---- run

    def run(self) -> int:
        """Run until the service and previous generations have ended; return the exit status. No return in a child."""
        while self._previous.pids or not self._work_done:
            self.work.fork_due()
            if self._restart.due:
                self.become_next_generation()
            self.reactor.run()
        return 128 + self._aborted_by if self._aborted_by else self.work.status

    def become_next_generation(self) -> None:
        """Become the new program. Return if that fails: then nothing has changed."""
        if any(sock.fileno() < 0 for bound in self._sets for sock in bound.sockets):
            # the new generation can serve no other sockets than these
            self._restart.refuse("a serving socket is broken; start the service again to open it anew")
            return
        try:
            with child.signals_held():
                if self.reactor.snapshot().signals_pending:
                    # handle them first, because exec(2) would forget them
                    self.reactor.call_soon(self.reactor.stop)
                    return
                with self.work.left_behind() as (pids, watches):
                    for handler in logger.handlers:
                        handler.flush()
                    before = self._previous
                    given = handover.prepared(self._sets, [*before.pids, *pids], [*before.watches, *watches])
                    handover.become(given, self._notifier.variables)
        except OSError as error:
            why = f"cannot start the new program: {error.strerror}; free what it needs, and send SIGHUP again"
            self._restart.refuse(why)
        except previous.RestartError as error:
            self._restart.refuse(str(error))

    def let_go(self) -> None:
        """Close, in a child of fork(2), what belongs to the process in charge. Called by the work."""
        self._previous.release()
        # the child's siblings: it must not signal them
        self._previous = previous.PreviousGenerations(child.Children())
        self._notifier.close()

    # ---- end

    def stop(self) -> None:
        """Stop in order, previous generations too. Called by the work when it can't go on."""
        self._stopping = True
        self._restart.cancel()
        self._notifier.stopping()
        self._previous.release()
        self._previous.send(signal.SIGTERM)
        self.reactor.call_later(self.settings.drain_timeout_s + DRAIN_GRACE_S, self._kill)
        self.work.stop(self._work_stopped)

    def _end(self, signum: signal.Signals) -> None:
        if self._stopping:
            self._aborted_by = signum
            self._previous.send(*child.ABORT_SIGNALS)
            self.reactor.call_later(ABORT_GRACE_S, self._kill)
            self.work.abort()
            return
        text = f"stopping on {signum.name}: delivering for up to {self.settings.drain_timeout_s:g} s"
        log.event(logger, logging.INFO, "stopping", text, signal=signum.name)
        self.stop()

    def _kill(self) -> None:
        self._previous.send(*child.KILL_SIGNALS)
        self.work.kill()

    def _reap(self) -> None:
        self.children.reap()
        # `run` looks whether all is over
        self.reactor.stop()

    def _work_stopped(self) -> None:
        self._work_done = True
        self.reactor.stop()


class Single:
    """The work of a service without workers: an EchoServer in this process."""

    def __init__(self, service: Service, tracing: Tracing | None) -> None:
        self.status = 0
        self._service, self._reactor, self._settings = service, service.reactor, service.settings
        self._tracing = tracing
        self._metrics: Metrics | None = None

    def open(self, sets: list[Bound]) -> None:
        """Open everything that may need privileges. Raise BindError, StartError."""
        self._server = assembly.new_server(self._settings, self._service.descriptors, sets[0], self._failed)
        self.stop, self.abort = self._server.stop, self._server.abort
        self.log_counters = report.counters_logger(self._server, self._service.handler)
        self.ask_for_counters = functools.partial(self.log_counters, "counters")
        self._server.start(self._reactor, sets[0])
        if self._settings.metrics is not None:
            from echo7.metrics.service import serve_metrics

            with self._service.optional():
                places = limits.page_places(self._service.descriptors)
                self._metrics = serve_metrics(
                    self._reactor, self._settings.metrics, self._server, self._service.handler, places
                )

    def start(self) -> None:
        """Report where the service listens, and that it serves."""
        report.log_addresses(self._server.addresses)
        self._service.serving()

    def left_behind(self) -> contextlib.AbstractContextManager[tuple[list[int], list[int]]]:
        """Fork the previous generation; the block gets its pid, and our end of its parent watch."""
        main = functools.partial(previous.serve_on, self._reactor, self._server, self._settings, self._let_go)
        return previous.forked(self._reactor.sockets, main)

    def _let_go(self) -> None:
        self._service.let_go()
        if self._tracing is not None:
            self._tracing.leave()
        if self._metrics is not None:
            self._metrics.close()

    def _failed(self) -> None:
        log.event(logger, logging.ERROR, "failed", "the last serving socket is broken: ending")
        self.status = 1
        self._service.stop()

    def _no_workers(self) -> None:
        """Do nothing: there are no workers."""

    dump = fork_due = kill = _no_workers


def drop_privileges(user: Identity | None, sets: Iterable[Bound]) -> None:
    """Become `user` permanently; without one, warn if root serves other machines. Raise StartError: don't serve."""
    if user is not None:
        # imported only when --user is set
        from echo7.process import privileges

        privileges.become(user)
    elif is_root() and not all(on_loopback(sock) for bound in sets for sock in bound.sockets):
        text = "serving other machines as root, which isn't needed after binding; use --user nobody"
        log.event(logger, logging.WARNING, "serving_as_root", text)


def _mask(how: str, signums: Iterable[int] | None = None) -> None:
    """Hold signals back, or let them through; None means all."""
    # Windows has no signal masks
    if hasattr(signal, "pthread_sigmask"):  # pragma: no branch
        signal.pthread_sigmask(getattr(signal, how), signal.valid_signals() if signums is None else signums)
