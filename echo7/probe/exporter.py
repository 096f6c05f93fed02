"""`echo7 ping HOST... --metrics HOST:PORT`: probe several targets on one loop, and serve the numbers to Prometheus.

Law: targets don't affect each other. Each has its own prober; a target that can't be probed now (no route, or a name
that can't be resolved) is logged and tried again. Names are looked up in a thread, because a look-up blocks. Targets
take turns within the interval, so that probes aren't sent in bursts. Counters never get smaller, even if the answer to
a lost probe comes late.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence

from echo7.logs import log, report
from echo7.metrics.service import Metrics, Where
from echo7.probe.measure.words import Event, Word
from echo7.probe.once import handle_signals, new_reactor
from echo7.probe.plan import NS_PER_S, Plan
from echo7.probe.prober import CannotProbe, Prober
from echo7.probe.report import text
from echo7.probe.report.prometheus import Target, families
from echo7.probe.result import result_of
from echo7.sockets.binding import BindError
from echo7.sockets.resolve import UnresolvedName
from reactor.loop import Reactor
from reactor.sockets.addresses import Address

RETRY_S = 10.0
PAGES_DESCRIPTORS = 16  # for the listener, its connections and the loop

logger = logging.getLogger("echo7")


class Exporter:
    """The probers of all targets. Calls `ended` when the last one has ended, which needs a count."""

    def __init__(
        self,
        reactor: Reactor,
        plan: Plan,
        targets: Sequence[Target],
        ended: Callable[[], object],
        look_up: Callable[[str], Address],
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.targets = targets
        self._reactor, self._plan, self._ended, self._clock_ns = reactor, plan, ended, clock_ns
        self._look_up = look_up

    def start(self) -> None:
        """Start the probers, spread over the interval."""
        step_s = self._plan.interval_ns / NS_PER_S / len(self.targets)
        for place, target in enumerate(self.targets):
            self._reactor.call_later(place * step_s, self._start, target)

    def health(self) -> str:
        """Return which targets can't be probed now; empty: all can."""
        waiting = [target.name for target in self.targets if target.prober is None]
        return f"cannot probe {', '.join(waiting)}" if waiting else ""

    def log_summary(self) -> None:
        """Log the summary of every target so far."""
        found = [(target.prober, target.host) for target in self.targets if target.prober is not None]
        lines = [line for prober, host in found for line in text.summary(result_of(prober, host))]
        log.event(logger, logging.INFO, "summary", "\n".join(["summary:", *lines]))

    def _resolve(self, target: Target) -> None:
        try:
            threading.Thread(target=self._look_up_in_thread, args=[target], daemon=True).start()
        # a limit of processes
        except RuntimeError as error:
            self._put_off(target, str(error), self._resolve)

    def _look_up_in_thread(self, target: Target) -> None:
        try:
            address = self._look_up(target.host)
        except UnresolvedName as error:
            self._reactor.call_soon_threadsafe(self._put_off, target, str(error), self._resolve)
        else:
            self._reactor.call_soon_threadsafe(self._found, target, address)

    def _found(self, target: Target, address: Address) -> None:
        target.address = address
        self._start(target)

    def _put_off(self, target: Target, why: str, how: Callable[[Target], object]) -> None:
        said = f"cannot probe {target.name}: {why}; trying again every {RETRY_S:g} s"
        log.event(logger, logging.WARNING, "cannot_probe", said, target=target.name)
        self._reactor.call_later(RETRY_S, how, target)

    def _start(self, target: Target) -> None:
        if target.address is None:
            self._resolve(target)
            return
        told, over = functools.partial(self._told, target), functools.partial(self._over, target)
        prober = Prober(self._reactor, target.address, self._plan, told=told, ended=over, clock_ns=self._clock_ns)
        try:
            prober.start()
        except CannotProbe as error:
            self._put_off(target, str(error), self._start)
            return
        target.prober = prober
        where = f"{target.name} ({target.where}) over {self._plan.transport}"
        log.event(logger, logging.INFO, "probing", f"probing {where}", target=target.name)

    def _told(self, target: Target, event: Event) -> None:
        if event.word is Word.REPLY and event.rtt_ns is not None:
            target.rtts.add(event.rtt_ns / NS_PER_S)

    def _over(self, target: Target) -> None:
        target.is_over = True
        if all(each.is_over for each in self.targets):
            self._ended()


def run(where: Where, plan: Plan, targets: Sequence[Target], look_up: Callable[[str], Address]) -> int:
    """Probe and serve the pages until a signal or the count ends the run. Return the exit status.

    `look_up` is called in a thread, and returns an address or raises UnresolvedName.
    """
    handler = log.set_up("info", "text")
    try:
        with new_reactor(plan.flows * len(targets) + PAGES_DESCRIPTORS) as reactor:
            exporter = Exporter(reactor, plan, targets, reactor.stop, look_up)
            Metrics(reactor, lambda: families(targets), exporter.health).start(where)
            handle_signals(reactor, reactor.stop, exporter.log_summary)
            report.dump_on_signal(reactor)
            exporter.start()
            reactor.run()
            exporter.log_summary()
    except (BindError, CannotProbe) as error:
        log.event(logger, logging.ERROR, "start_failed", str(error))
        return 1
    finally:
        handler.flush()
    return 0
