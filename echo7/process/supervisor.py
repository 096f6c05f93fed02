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
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from echo7 import assembly
from echo7.logs import log, report
from echo7.metrics.snapshot import Snapshot, total
from echo7.process import limits, worker
from echo7.process.backoff import FAILED_STARTS_LIMIT
from echo7.process.channel import REPORTS, Channel, Message
from echo7.process.child import forked, how_it_ended, signals_held
from echo7.process.slot import BROKEN, LOOK_INTERVAL_S, REPORTS_WAITING_BYTES, SILENT, STOPPING, Slot
from echo7.server import serving_address
from echo7.sockets.binding import Bound
from reactor.sockets.opening import Socket, closed_on_error
from reactor.timers import Timer

if TYPE_CHECKING:
    from echo7.metrics.service import Metrics
    from echo7.process.service import Service

# for a worker that doesn't answer; then its last report counts
ANSWER_PATIENCE_S = 1.0

logger = logging.getLogger("echo7")


class Supervisor:
    """One run of a service with workers, in the process in charge. It carries no traffic itself."""

    def __init__(self, service: Service) -> None:
        self.status = 0
        self._service, self._reactor, self._settings = service, service.reactor, service.settings
        self._slots: list[Slot] = []
        self._metrics: Metrics | None = None
        # slots whose worker starts when the loop returns
        self._due: collections.deque[Slot] = collections.deque()
        self._announced = self._aborting = False
        # set by `stop`
        self._stopped: Callable[[], object] | None = None
        # of the workers that have ended
        self.past = Snapshot()
        # slots that have yet to answer in this round; None: no round is under way
        self._awaited: set[Slot] | None = None
        # the number of the last round, and how many have begun since the last look
        self._round = self._rounds = 0
        self._asked_again = False
        self._patience: Timer
        self.killed = dict.fromkeys((SILENT, BROKEN, STOPPING), 0)
        self.dump = functools.partial(self._order, "dump")

    def open(self, sets: Sequence[Bound]) -> None:
        """Open everything that may need privileges, the workers' code too. Raise BindError."""
        assembly.import_parts(self._settings)
        if self._settings.metrics is not None:
            from echo7.metrics.service import serve_workers_metrics

            with self._service.optional():
                handler, places = self._service.handler, limits.page_places(self._service.descriptors)
                self._metrics = serve_workers_metrics(self._reactor, self._settings.metrics, handler, self, places)
        self._slots = [Slot(number, bound, self._reactor.now, self.killed) for number, bound in enumerate(sets, 1)]

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
        child = self._service.children.add(pid, functools.partial(self._ended, slot), stream=True)
        slot.occupy(child, Channel(self._reactor, ours, REPORTS, functools.partial(self._heard, slot), slot.lost))

    def _be_worker(self, slot: Slot, parents: Socket, control: Socket, mask: set[int]) -> int:
        """Run the child. This runs in another process than the rest of this class."""
        try:
            self._reactor.close()
            if self._metrics is not None:
                self._metrics.close()
            self._service.let_go()
            parents.close()
            # systemd's sockets are in every slot
            for sock in {sock for other in self._slots for sock in other.bound.sockets} - set(slot.bound.sockets):
                sock.close()
            return worker.run(slot.number, self._settings, self._service.descriptors, slot.bound, control, mask)
        except OSError as error:  # pragma: no cover - without descriptors, coverage can't write what it has measured
            log.event(logger, logging.ERROR, "start_failed", f"cannot start: {error.strerror}; raise 'ulimit -n'")
            return 1

    def _heard(self, slot: Slot, message: Message) -> None:
        slot.heard(message)
        if message["say"] == "ready" and not slot.backoff.ready:
            self._ready(slot)
        elif message.get("round") == self._round:
            self._answered(slot)

    def _ready(self, slot: Slot) -> None:
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

    # ---- workers are looked after

    def _look(self) -> None:
        for slot in self._live():
            slot.look(self._rounds)
        self._rounds = 0
        self._reactor.call_later(LOOK_INTERVAL_S, self._look)

    @property
    def problem(self) -> str:
        """Why the service isn't healthy; empty if it is."""
        return "stopping" if self._stopped else "; ".join(filter(None, (slot.problem for slot in self._slots)))

    @property
    def silences_s(self) -> dict[int, float]:
        """How long each worker has said nothing."""
        return {slot.number: slot.silent_s for slot in self._live()}

    @property
    def snapshots(self) -> dict[int, Snapshot]:
        """The last report of each worker."""
        return {slot.number: slot.snapshot for slot in self._live()}

    # ---- a worker ends

    def _ended(self, slot: Slot, exit_code: int) -> None:
        self.past = total([self.past, slot.snapshot.after_the_end()])
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
            slot.kill(STOPPING, "it hasn't ended in time")

    def _check_over(self) -> None:
        if self._stopped is not None and not self._live():
            self._stopped()

    @contextlib.contextmanager
    def left_behind(self) -> Iterator[tuple[list[int], list[int]]]:
        """Order the workers to be the previous generation. Yield their pids, and our ends of their channels."""
        self._order("restart")
        for slot in self._live():
            # it would never retire
            slot.kill_if_silent()
        ended = [slot.snapshot for slot in self._live() if slot.child.exit_code is not None]
        write_counters("ended_before", total([self.past, *ended]))
        left = [slot for slot in self._live() if slot.child.exit_code is None]
        try:
            yield [each.child.pid for each in left], [each.channel.fileno() for each in left if each.child.stream_open]
        except BaseException:
            self._order("stay")
            raise

    # ---- counters

    def log_counters(self, name: str) -> None:
        """Log the counters of all workers, including those that have ended."""
        own = Snapshot(log_lines_dropped=self._service.handler.dropped)
        write_counters(name, total([self.past, own, *(slot.snapshot for slot in self._slots)]))

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


def write_counters(name: str, snapshot: Snapshot) -> None:
    """Log the counters of a snapshot."""
    report.write_counters(name, snapshot.counters, snapshot.log_lines_dropped)
