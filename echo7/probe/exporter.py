"""`echo7 ping HOST... --metrics HOST:PORT`: probe several targets on one loop, and serve the numbers to Prometheus.

Law: targets don't affect each other. Each has its own prober; a target that can't be probed now (no route) is logged
and tried again. Targets take turns within the interval, so that probes aren't sent in bursts. Counters never get
smaller, even if the answer to a lost probe comes late.
"""

from __future__ import annotations

import functools
import logging
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
from reactor.loop import Reactor
from reactor.sockets.addresses import Address, format_address

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
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.targets = targets
        self._reactor, self._plan, self._ended, self._clock_ns = reactor, plan, ended, clock_ns

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

    def _start(self, target: Target) -> None:
        told, over = functools.partial(self._told, target), functools.partial(self._over, target)
        prober = Prober(self._reactor, target.address, self._plan, told=told, ended=over, clock_ns=self._clock_ns)
        try:
            prober.start()
        except CannotProbe as error:
            said = f"cannot probe {target.name}: {error}; trying again every {RETRY_S:g} s"
            log.event(logger, logging.WARNING, "cannot_probe", said, target=target.name)
            self._reactor.call_later(RETRY_S, self._start, target)
            return
        target.prober = prober
        where = f"{target.name} ({format_address(target.address)}) over {self._plan.transport}"
        log.event(logger, logging.INFO, "probing", f"probing {where}", target=target.name)

    def _told(self, target: Target, event: Event) -> None:
        if event.word is Word.REPLY and event.rtt_ns is not None:
            target.rtts.add(event.rtt_ns / NS_PER_S)

    def _over(self, target: Target) -> None:
        target.is_over = True
        if all(each.is_over for each in self.targets):
            self._ended()


def run(where: Where, plan: Plan, hosts: Sequence[str], addresses: Sequence[Address]) -> int:
    """Probe and serve the pages until a signal or the count ends the run. Return the exit status."""
    targets = [Target(host, address) for host, address in zip(hosts, addresses, strict=True)]
    handler = log.set_up("info", "text")
    try:
        with new_reactor(plan.flows * len(targets) + PAGES_DESCRIPTORS) as reactor:
            exporter = Exporter(reactor, plan, targets, reactor.stop)
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
