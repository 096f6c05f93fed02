"""The work of a service with workers: start them, replace those that end, and report for all.

Law: the sockets outlive the workers. All are opened before the first fork, and each slot has a set of its own, which
every process in the slot inherits. So a client that waits in the kernel's queue survives a worker that ends, and so
does the flow of a UDP source. Only what the worker had accepted or received is lost with it.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from echo7 import assembly
from echo7.logs import log, report
from echo7.process import worker
from echo7.process.backoff import FAILED_STARTS_LIMIT, BackOff
from echo7.process.channel import Channel, Message
from echo7.process.child import Child, forked, how_it_ended, signals_held
from echo7.server import Counters, ServingAddress
from echo7.sockets.binding import Bound
from reactor.sockets.opening import Socket, closed_on_error
from reactor.timers import Timer

if TYPE_CHECKING:
    from echo7.metrics.service import WorkersMetrics
    from echo7.process.service import Service

# for a worker that doesn't answer; then its last report counts
ANSWER_PATIENCE_S = 1.0

logger = logging.getLogger("echo7")


class Slot:
    """A place for one worker: its sockets, its history, and while `live`, a process."""

    def __init__(self, number: int, bound: Bound, now: Callable[[], float]) -> None:
        self.number, self.bound, self.backoff = number, bound, BackOff(now)
        self.child: Child
        self.channel: Channel
        self.restart: Timer | None = None
        self.vacate()

    def vacate(self) -> None:
        """Forget the process that was here."""
        self.live = False
        # of its last report
        self.counters, self.log_lines_dropped = Counters(), 0

    def __str__(self) -> str:
        """Name the process as the log does."""
        return f"worker {self.number} (pid {self.child.pid})"

    @property
    def fields(self) -> dict[str, int]:
        """Name the process as JSON does."""
        return {"worker": self.number, "pid": self.child.pid}


class Supervisor:
    """One run of a service with workers, in the process in charge. It carries no traffic itself."""

    def __init__(self, service: Service) -> None:
        self.status = 0
        self._service, self._reactor, self._settings = service, service.reactor, service.settings
        self._slots: list[Slot] = []
        # slots whose worker starts when the loop returns
        self._due: collections.deque[Slot] = collections.deque()
        self._announced = self._aborting = False
        # set by `stop`
        self._stopped: Callable[[], object] | None = None
        # of the workers that have ended
        self._past, self._past_dropped = Counters(), 0
        # slots that have yet to answer in this round; None: no round is under way
        self._awaited: set[Slot] | None = None
        self._round, self._asked_again = 0, False
        self._patience: Timer
        self._metrics: WorkersMetrics | None = None
        self.dump = functools.partial(self._order, "dump")

    def open(self, sets: Sequence[Bound]) -> None:
        """Open everything that may need privileges, the workers' code too. Raise BindError."""
        assembly.import_parts(self._settings)
        if self._settings.metrics is not None:
            from echo7.metrics.service import WorkersMetrics

            with self._service.optional():
                handler = self._service.handler
                self._metrics = WorkersMetrics(self._reactor, handler, lambda: "stopping" if self._stopped else "")
                self._metrics.start(self._settings.metrics)
        self._slots = [Slot(number, bound, self._reactor.now) for number, bound in enumerate(sets, 1)]

    def start(self) -> None:
        """Start every worker, when the loop returns."""
        self._due.extend(self._slots)

    def _live(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.live]

    def _order(self, what: str, **details: object) -> None:
        for slot in self._live():
            slot.channel.say(what, **details)

    # ---- a worker starts

    def fork_due(self) -> None:
        """Fork the workers that are due. Returns in the supervisor only."""
        while self._due:
            self._fork(self._due.popleft())

    def _fork(self, slot: Slot) -> None:
        slot.backoff.started()
        try:
            ours, theirs = self._reactor.sockets.socketpair()
            with theirs, closed_on_error(ours), signals_held() as mask:
                be_worker = functools.partial(self._be_worker, slot, ours, theirs, mask)
                pid = forked(f"worker {slot.number}", be_worker)
        except OSError as error:
            self._try_again(slot, f"cannot start worker {slot.number}: {error.strerror}", {"worker": slot.number})
            return
        slot.live, slot.child = True, Child(pid, functools.partial(self._ended, slot), stream=True)
        slot.channel = Channel(self._reactor, ours, functools.partial(self._heard, slot), slot.child.stream_ended)

    def _be_worker(self, slot: Slot, parents: Socket, control: Socket, mask: set[int]) -> int:
        """Run the child. This runs in another process than the rest of this class."""
        try:
            self._reactor.abandon_after_fork()
            self._service.let_go()
            parents.close()
            # systemd's sockets are in every slot
            for sock in {sock for other in self._slots for sock in other.bound.sockets} - set(slot.bound.sockets):
                sock.close()
            return worker.run(slot.number, self._settings, self._service.descriptors, slot.bound, control, mask)
        except OSError as error:
            log.event(logger, logging.ERROR, "start_failed", f"cannot start: {error.strerror}; raise 'ulimit -n'")
            return 1

    def _heard(self, slot: Slot, message: Message) -> None:
        if message["say"] == "ready":
            self._ready(slot, message["addresses"])
            return
        slot.counters, slot.log_lines_dropped = Counters(**message["counters"]), message["log_lines_dropped"]
        if self._metrics is not None:
            self._metrics.heard(slot.number, message["snapshot"])
        if message["round"] == self._round:
            self._answered(slot)

    def _ready(self, slot: Slot, addresses: Sequence[Any]) -> None:
        slot.backoff.serves()
        if self._announced:
            log.event(logger, logging.INFO, "worker_ready", f"{slot} serves", **slot.fields)
        elif all(each.live and each.backoff.ready for each in self._slots):
            self._announced = True
            pids = [each.child.pid for each in self._slots]
            text = f"{len(pids)} workers serve, pids {', '.join(map(str, pids))}"
            log.event(logger, logging.INFO, "workers", text, workers=len(pids), pids=pids)
            report.log_addresses(ServingAddress(*each) for each in addresses)
            self._service.serving()

    # ---- a worker ends

    def reap(self) -> None:
        """Reap the workers that have ended."""
        for slot in self._live():
            slot.child.reap()

    def _ended(self, slot: Slot, exit_code: int) -> None:
        self._past = report.total([self._past, slot.counters._replace(connections_open=0)])
        self._past_dropped += slot.log_lines_dropped
        if self._metrics is not None:
            self._metrics.ended(slot.number)
        text, fields = f"{slot} ended {how_it_ended(exit_code)}", slot.fields | {"exit_code": exit_code}
        slot.vacate()
        self._answered(slot)
        if self._stopped is None:
            self._try_again(slot, text, fields)
            return
        if exit_code and not self._aborting:
            self.status = 1
            log.event(logger, logging.WARNING, "worker_ended", text, **fields)
        self._check_over()

    def _try_again(self, slot: Slot, text: str, fields: dict[str, int]) -> None:
        delay_s = slot.backoff.ended()
        if all(each.backoff.hopeless for each in self._slots):
            log.event(logger, logging.WARNING, "worker_ended", text, **fields)
            text = f"every worker has ended {FAILED_STARTS_LIMIT} times in a row before it served: giving up"
            log.event(logger, logging.ERROR, "failed", text)
            self.status = 1
            self._service.stop()
            return
        text += f"; the next one starts in {delay_s:g} s"
        log.event(logger, logging.WARNING, "worker_ended", text, restart_delay_s=delay_s, **fields)
        slot.restart = self._reactor.call_later(delay_s, self._fall_due, slot)

    def _fall_due(self, slot: Slot) -> None:
        self._due.append(slot)
        self._reactor.stop()

    # ---- the end

    def stop(self, stopped: Callable[[], object]) -> None:
        """Order the workers to drain; call `stopped` when all have ended."""
        self._stopped = stopped
        self._due.clear()
        for slot in self._slots:
            # otherwise the kernel would queue clients that no worker will serve
            slot.bound.close()
            if slot.restart is not None:
                slot.restart.cancel()
        self._order("drain")
        self._check_over()

    def abort(self) -> None:
        """Order the workers to end at once."""
        self._aborting = True
        self._order("abort")

    def kill(self) -> None:
        """Kill the workers that hang."""
        for slot in self._live():
            if slot.child.exit_code is None:
                log.event(logger, logging.WARNING, "worker_killed", f"{slot} hangs: killed", **slot.fields)
                slot.child.send(signal.SIGKILL)

    def _check_over(self) -> None:
        if self._stopped is not None and not self._live():
            self._stopped()

    @contextlib.contextmanager
    def left_behind(self) -> Iterator[tuple[list[int], list[int]]]:
        """Order the workers to be the previous generation. Yield their pids, and our ends of their channels."""
        self._order("restart")
        ended = [slot.counters for slot in self._live() if slot.child.exit_code is not None]
        report.write_counters("ended_before", report.total([self._past, *ended]), self._past_dropped)
        left = [slot for slot in self._live() if slot.child.exit_code is None]
        try:
            yield [each.child.pid for each in left], [each.channel.fileno() for each in left if each.child.stream_open]
        except BaseException:
            self._order("stay")
            raise

    # ---- counters

    def log_counters(self, name: str) -> None:
        """Log the counters of all workers, including those that have ended."""
        dropped = self._past_dropped + self._service.handler.dropped + sum(s.log_lines_dropped for s in self._slots)
        report.write_counters(name, report.total([self._past, *(slot.counters for slot in self._slots)]), dropped)

    def ask_for_counters(self) -> None:
        """Begin a round, on SIGUSR1: ask every worker, then log the sum. During a round, one more will follow."""
        self._asked_again = self._awaited is not None
        if self._awaited is None:
            self._round, self._awaited = self._round + 1, set(self._live())
            self._patience = self._reactor.call_later(ANSWER_PATIENCE_S, self._answered, *self._slots)
            self._order("counters", round=self._round)
            self._answered()

    def _answered(self, *slots: Slot) -> None:
        if self._awaited is None:
            return
        self._awaited.difference_update(slots)
        if not self._awaited:
            self._patience.cancel()
            self._awaited = None
            self.log_counters("counters")
            if self._asked_again:
                self.ask_for_counters()
