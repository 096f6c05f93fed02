"""The work of a service with workers: start them, replace those that end, and report for all.

Law: the sockets outlive the workers. All are opened before the first fork, and each slot has a set of its own, which
every process in the slot inherits. So a client that waits in the kernel's queue survives a worker that ends, and so
does the flow of a UDP source. Only what the worker had accepted or received is lost with it.

No worker is trusted. One that hangs, or sends what no worker sends, is killed and replaced. Silence is counted in the
supervisor's own looks, one a second, so a supervisor or a machine that was stopped for an hour blames no worker for it.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from echo7 import assembly
from echo7.logs import log, report
from echo7.process import worker
from echo7.process.backoff import FAILED_STARTS_LIMIT, BackOff
from echo7.process.channel import Channel, Message, reports
from echo7.process.child import Child, forked, how_it_ended, signals_held
from echo7.server import Counters, serving_address
from echo7.sockets.binding import Bound
from reactor.sockets.opening import Socket, closed_on_error
from reactor.timers import Timer

if TYPE_CHECKING:
    from echo7.metrics.service import WorkersMetrics
    from echo7.process.service import Service

# for a worker that doesn't answer; then its last report counts
ANSWER_PATIENCE_S = 1.0
# A worker reports once a second. After so many looks without a message it is unhealthy; then it is killed.
LOOK_INTERVAL_S = 1.0
SILENT_LOOKS, HUNG_LOOKS = 5, 10
# More between two looks is a flood: a report has a few kilobytes, and what waits in the kernel is bounded.
FLOOD_BYTES = 1 << 20
REPORTS_WAITING_BYTES = 64 * 1024
# of orders that a worker doesn't read
ORDERS_WAITING_BYTES = 64 * 1024
# why a worker was killed: the values of the metric's label
SILENT, BROKEN, STOPPING = "silent", "broken", "stopping"

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
        # leaving: it drains, and will be replaced
        self.live = self.leaving = self.killed = False
        # of its last report
        self.counters, self.log_lines_dropped = Counters(), 0
        # looks since its last message, and how much it had sent at the last look
        self.silent_looks = self.seen_bytes = 0

    def __str__(self) -> str:
        """Name the process as the log does."""
        return f"worker {self.number} (pid {self.child.pid})"

    @property
    def problem(self) -> str:
        """Why its clients aren't served now; empty if they are."""
        if not self.live or self.leaving or self.killed or not self.backoff.ready:
            return f"worker {self.number} doesn't serve"
        silent = self.silent_looks >= SILENT_LOOKS
        return f"worker {self.number} has been silent for {self.silent_s:g} s" if silent else ""

    @property
    def silent_s(self) -> float:
        """How long it has said nothing, as the supervisor has seen it."""
        return self.silent_looks * LOOK_INTERVAL_S

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
        # the number of the last round, and how many have begun since the last look
        self._round = self._rounds = 0
        self._asked_again = False
        self._patience: Timer
        self._metrics: WorkersMetrics | None = None
        self._forms = reports(None)
        self.killed = dict.fromkeys((SILENT, BROKEN, STOPPING), 0)
        self.dump = functools.partial(self._order, "dump")

    def open(self, sets: Sequence[Bound]) -> None:
        """Open everything that may need privileges, the workers' code too. Raise BindError."""
        assembly.import_parts(self._settings)
        if self._settings.metrics is not None:
            from echo7.metrics.service import WorkersMetrics
            from echo7.metrics.snapshot import Snapshot

            self._forms = reports(Snapshot().as_message())
            with self._service.optional():
                self._metrics = WorkersMetrics(self._reactor, self._service.handler, self)
                self._metrics.start(self._settings.metrics)
        self._slots = [Slot(number, bound, self._reactor.now) for number, bound in enumerate(sets, 1)]

    def start(self) -> None:
        """Start every worker, when the loop returns."""
        self._due.extend(self._slots)
        self._reactor.call_later(LOOK_INTERVAL_S, self._look)

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
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, REPORTS_WAITING_BYTES)
            with theirs, closed_on_error(ours), signals_held() as mask:
                be_worker = functools.partial(self._be_worker, slot, ours, theirs, mask)
                pid = forked(f"worker {slot.number}", be_worker)
        except OSError as error:
            self._try_again(slot, f"cannot start worker {slot.number}: {error.strerror}", {"worker": slot.number})
            return
        slot.live, slot.child = True, self._service.children.add(pid, functools.partial(self._ended, slot), stream=True)
        heard, lost = functools.partial(self._heard, slot), functools.partial(self._lost, slot)
        slot.channel = Channel(self._reactor, ours, self._forms, heard, lost)

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
        slot.silent_looks = 0
        if message["say"] == "ready":
            self._ready(slot)
            return
        slot.counters, slot.log_lines_dropped = Counters(**message["counters"]), message["log_lines_dropped"]
        slot.leaving = message["leaving"] > 0
        if self._metrics is not None:
            self._metrics.heard(slot.number, message["snapshot"])
        if message["round"] == self._round:
            self._answered(slot)

    def _ready(self, slot: Slot) -> None:
        if slot.backoff.ready:
            self._kill(slot, BROKEN, "it has begun twice")
            return
        slot.backoff.serves()
        if self._announced:
            log.event(logger, logging.INFO, "worker_ready", f"{slot} serves", **slot.fields)
        elif all(each.live and each.backoff.ready for each in self._slots):
            self._announced = True
            pids = [each.child.pid for each in self._slots]
            text = f"{len(pids)} workers serve, pids {', '.join(map(str, pids))}"
            log.event(logger, logging.INFO, "workers", text, workers=len(pids), pids=pids)
            report.log_addresses(serving_address("tcp", sock.getsockname()) for sock in slot.bound.tcp)
            report.log_addresses(serving_address("udp", sock.getsockname()) for sock in slot.bound.udp)
            self._service.serving()

    # ---- a worker is looked after

    def _look(self) -> None:
        """Kill the workers that hang or don't keep to the rules."""
        for slot in self._live():
            slot.silent_looks += 1
            sent, slot.seen_bytes = slot.channel.received_bytes - slot.seen_bytes, slot.channel.received_bytes
            if slot.child.exit_code is not None and slot.silent_looks > 1:
                # it has ended, and a descendant of it holds the other end of the channel
                slot.channel.abort()
            elif slot.silent_looks >= HUNG_LOOKS:
                self._kill(slot, SILENT, f"it has been silent for {slot.silent_s:g} s")
            elif sent > FLOOD_BYTES * (1 + self._rounds):
                self._kill(slot, BROKEN, f"it has sent {sent} bytes in a second")
            elif slot.channel.pending_bytes > ORDERS_WAITING_BYTES:
                self._kill(slot, BROKEN, "it doesn't read its orders")
        self._rounds = 0
        self._reactor.call_later(LOOK_INTERVAL_S, self._look)

    def _lost(self, slot: Slot, why: str) -> None:
        if why:
            self._kill(slot, BROKEN, why)
        slot.child.stream_ended()

    def _kill(self, slot: Slot, reason: str, why: str) -> None:
        if slot.child.exit_code is None and not slot.killed:
            slot.killed = True
            self.killed[reason] += 1
            log.event(logger, logging.WARNING, "worker_killed", f"{slot} killed: {why}", reason=reason, **slot.fields)
            slot.child.send(signal.SIGKILL)

    @property
    def problem(self) -> str:
        """Why the service isn't healthy; empty if it is."""
        return "stopping" if self._stopped else "; ".join(filter(None, (slot.problem for slot in self._slots)))

    @property
    def silences_s(self) -> dict[int, float]:
        """How long each worker has said nothing."""
        return {slot.number: slot.silent_s for slot in self._live()}

    # ---- a worker ends

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
            self._kill(slot, STOPPING, "it hasn't ended in time")

    def _check_over(self) -> None:
        if self._stopped is not None and not self._live():
            self._stopped()

    @contextlib.contextmanager
    def left_behind(self) -> Iterator[tuple[list[int], list[int]]]:
        """Order the workers to be the previous generation. Yield their pids, and our ends of their channels."""
        self._order("restart")
        for slot in self._live():
            if slot.silent_looks >= SILENT_LOOKS:
                # it would never retire
                self._kill(slot, SILENT, f"it has been silent for {slot.silent_s:g} s")
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
            self._rounds += 1
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
