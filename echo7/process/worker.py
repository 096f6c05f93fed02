"""A worker process: an EchoServer on its own loop, with sockets and orders from the supervisor.

Law: a worker drains once: by an order, by TERM, or when the supervisor has gone, because nothing else could stop it
then. After a restart it belongs to the previous generation: when its channel ends, the new workers serve, so it
retires. No supervisor reads its counters then, so it logs them itself.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from echo7 import assembly
from echo7.logs import log, report
from echo7.metrics.snapshot import Snapshot, snapshot_maker
from echo7.process.channel import ORDERS, Channel, Message
from echo7.process.child import COUNTERS_SIGNALS, Drain, ignore
from echo7.process.sandbox import Sandbox
from echo7.sockets.binding import Bound
from reactor.loop import Reactor
from reactor.sockets.opening import Socket

if TYPE_CHECKING:
    from echo7.settings import Settings

# the counters of a worker that crashes are no older than this
REPORT_INTERVAL_S = 1.0

logger = logging.getLogger("echo7")


def run(number: int, settings: Settings, descriptors: int, bound: Bound, control: Socket, mask: set[int]) -> int:
    """Run worker `number` to its end; return the exit status. Signals are held until it is ready for `mask`."""
    ignore(COUNTERS_SIGNALS)
    handler = log.set_up(settings.log_level, settings.log_format, number)
    with assembly.new_reactor(settings) as reactor:
        worker = Worker(reactor, settings, descriptors, bound, handler)
        channel, sandbox = worker.start(bound, control), Sandbox(settings.sandbox)

        def begin() -> None:
            sandbox.restrict_serving()
            worker.ready(channel)

        worker.drain.run(mask, begin)
        if worker.replaced:
            worker.log_counters("drained")
        return worker.status


class Worker:
    """One run of a worker process."""

    def __init__(
        self, reactor: Reactor, settings: Settings, descriptors: int, bound: Bound, handler: log.StderrHandler
    ) -> None:
        self.status = 0
        self._reactor = reactor
        self._server = assembly.new_server(settings, descriptors, bound, self.fail)
        self.log_counters = report.counters_logger(self._server, handler)
        leaving = functools.partial(
            log.event, logger, logging.INFO, "leaving", "finishing on SIGTERM", signal="SIGTERM"
        )
        self.drain = Drain(reactor, self._server, self._drained, leaving)
        self._snapshot: Callable[[], Snapshot] = lambda: Snapshot(
            self._server.counters, log_lines_dropped=handler.dropped
        )
        # only metrics need more than the counters
        if settings.metrics is not None:
            self._snapshot = snapshot_maker(reactor, self._server, handler)
        # None before the start, and when the supervisor has gone
        self.channel: Channel | None = None
        # replaced: a worker of a new generation is taking over
        self._finished = self.replaced = False

    def start(self, bound: Bound, control: Socket) -> Channel:
        """Open everything, to serve from the loop's first turn on. Return the channel to the supervisor."""
        self._server.start(self._reactor, bound)
        report.dump_on_signal(self._reactor)
        channel = Channel(self._reactor, control, ORDERS, self._heard, self._supervisor_gone)
        self.channel = channel
        return channel

    def ready(self, channel: Channel) -> None:
        """Tell the supervisor that this worker serves, and report to it from now on."""
        channel.say("ready")
        self._report_regularly()

    def report(self, question: int = 0) -> None:
        """Send the counters to the supervisor."""
        if self.channel is not None:
            leaving, snapshot = int(self._server.stopping), self._snapshot().as_message()
            self.channel.say("counters", round=question, leaving=leaving, snapshot=snapshot)

    def fail(self) -> None:
        """End with status 1: the last serving socket is broken."""
        log.event(logger, logging.ERROR, "failed", "the last serving socket is broken: ending")
        self.status = 1
        self.drain.stop()

    def _heard(self, message: Message) -> None:
        what = message["say"]
        if what == "counters":
            self.report(message["round"])
        elif what in ("restart", "stay"):
            self.replaced = what == "restart"
        elif what == "dump":
            report.log_dump(self._reactor)
        else:
            (self.drain.abort if what == "abort" else self.drain.stop)()

    def _report_regularly(self) -> None:
        # a supervisor that doesn't read must not make a worker grow
        if self.channel is not None and not self.channel.pending_bytes:
            self.report()
        self._reactor.call_later(REPORT_INTERVAL_S, self._report_regularly)

    def _drained(self) -> None:
        self._finished = True
        self.report()
        if self.channel is None:
            self._reactor.stop()
        else:
            # `_supervisor_gone` comes when the supervisor has read everything
            self.channel.finish()

    def _supervisor_gone(self, _why: str) -> None:
        self.channel = None
        if self._finished:
            self._reactor.stop()
        elif self.replaced:
            self.drain.retire()
        else:
            log.event(logger, logging.WARNING, "supervisor_gone", "the supervisor has gone: finishing in order")
            self.drain.stop()
