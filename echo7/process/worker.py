"""One worker process: an EchoServer on a loop of its own, with sockets from the supervisor and orders over a channel.

Law: a worker ends in order, once, whatever tells it to: the supervisor's order, the supervisor's end (else it would
serve on with nobody to stop it), or SIGTERM sent to it. ^C and the end of a whole process group reach the supervisor
too, so a worker takes no notice of SIGINT, nor of a SIGTERM after the first: what a second signal means, only the
supervisor says.

When the supervisor starts afresh, the worker is an elder (see `restart`): it serves on until the new workers do, which
is when its channel ends, and then its callers to their own end. It has nobody to report to then, and logs for itself.
"""

from __future__ import annotations

import functools
import logging
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from echo7 import assembly
from echo7.logs import log, report
from echo7.process.channel import Channel, Message
from echo7.sockets.binding import Bound
from reactor.loop import Reactor
from reactor.sockets.opening import Socket

if TYPE_CHECKING:
    from echo7.metrics.snapshot import Snapshot
    from echo7.settings import Settings

REPORT_INTERVAL_S = 1.0  # so old are the counters of a worker that crashes, at the most

logger = logging.getLogger("echo7")


def run(number: int, config: Settings, descriptors: int, bound: Bound, control: Socket, mask: set[int]) -> int:
    """Be worker `number` until it ends; return the exit status. Signals come in (`mask`) when it is ready for them."""
    for signum in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    handler = log.set_up(config.log_level, config.log_format, number)
    with assembly.new_reactor(config) as reactor:
        worker = Worker(reactor, config, descriptors, handler)
        worker.start(bound, control)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        reactor.run()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # all is done, and none shall spoil the exit status now
        worker.say_farewell()
        return worker.status


class Worker:
    """One run of a worker process."""

    def __init__(self, reactor: Reactor, config: Settings, descriptors: int, handler: log.StderrHandler) -> None:
        self.status = 0
        self._reactor = reactor
        self._handler = handler
        self._server = assembly.new_server(config, descriptors, self._failed)
        self._tell: Callable[[], Snapshot] | None = None  # None: nobody asks for more than the counters
        if config.metrics is not None:
            from echo7.metrics.snapshot import snapshot_maker

            self._tell = snapshot_maker(reactor, self._server, handler)
        self._channel: Channel | None = None  # None before the start, and when the supervisor has gone
        self._leaving = False
        self._finished = False
        self._left_behind = False  # the supervisor starts afresh, without this worker

    def start(self, bound: Bound, control: Socket) -> None:
        """Serve, and say so."""
        self._server.start(self._reactor, bound)
        self._reactor.add_signal_handler(signal.SIGTERM, self._asked_to_leave)
        self._reactor.add_signal_handler(signal.SIGQUIT, self._abort)
        report.dump_on_signal(self._reactor)
        self._channel = Channel(self._reactor, control, self._heard, self._supervisor_gone)
        self._channel.say("ready", addresses=self._server.addresses)
        self._report_regularly()

    def _heard(self, message: Message) -> None:
        orders: dict[str, Callable[[], None]] = {
            "counters": lambda: self._report(message["round"]),
            "restart": functools.partial(self._leave_behind, True),
            "stay": functools.partial(self._leave_behind, False),
            "dump": lambda: report.log_dump(self._reactor),
            "drain": self._leave,
            "abort": self._abort,
        }
        orders[message["say"]]()

    def say_farewell(self) -> None:
        """Log what was done, if there is nobody else to do it."""
        if self._left_behind:
            report.log_counters("drained", self._server.counters, self._handler.dropped)

    def _leave_behind(self, so: bool) -> None:
        self._left_behind = so

    def _report(self, question: int = 0) -> None:
        if self._channel is not None:
            counters, dropped = self._server.counters._asdict(), self._handler.dropped
            more = {} if self._tell is None else {"snapshot": self._tell().as_message()}
            self._channel.say("counters", round=question, counters=counters, log_lines_dropped=dropped, **more)

    def _report_regularly(self) -> None:
        if self._channel is not None and not self._channel.busy:
            self._report()
        self._reactor.call_later(REPORT_INTERVAL_S, self._report_regularly)

    def _leave(self) -> None:
        if not self._leaving:
            self._leaving = True
            self._server.stop(self._all_done)

    def _abort(self) -> None:
        self._leave()
        self._server.abort()

    def _all_done(self) -> None:
        self._finished = True
        self._report()
        if self._channel is None:
            self._reactor.stop()
        else:
            self._channel.close()  # and when the supervisor has read it all, `_supervisor_gone`

    def _supervisor_gone(self) -> None:
        self._channel = None
        if self._finished:
            self._reactor.stop()
            return
        if self._left_behind:
            self._server.retire(self._all_done)
            return
        log.event(logger, logging.WARNING, "supervisor_gone", "the supervisor has gone: finishing in order")
        self._leave()

    def _asked_to_leave(self) -> None:
        if not self._leaving:
            log.event(logger, logging.INFO, "leaving", "finishing on SIGTERM", signal="SIGTERM")
        self._leave()

    def _failed(self) -> None:
        log.event(logger, logging.ERROR, "failed", "the last serving socket is broken: ending")
        self.status = 1
        self._leave()
