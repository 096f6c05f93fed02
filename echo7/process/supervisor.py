"""The work of a service with workers: it starts them, replaces those that end, and answers for them.

Law: the sockets outlive the workers. All are opened before the first fork, and each slot has a set of its own, which
every process that ever fills the slot inherits. So a client that waits in the kernel's queue isn't lost with a worker,
nor is a UDP peer; only what that worker had taken in already is.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from echo7.logs import log, report
from echo7.process import worker
from echo7.process.backoff import FAILED_STARTS_LIMIT, BackOff
from echo7.process.channel import Channel, Message
from echo7.process.child import Child, how_it_ended, run_child, signals_held
from echo7.server import Counters, ServingAddress
from echo7.sockets.binding import Bound
from reactor.fork import disown
from reactor.loop import Reactor
from reactor.sockets.opening import Socket, closed_on_error
from reactor.timers import Timer

if TYPE_CHECKING:
    from echo7.metrics.service import WorkersMetrics
    from echo7.process.service import OptionalPart, Service
    from echo7.settings import Settings

# for a worker that doesn't answer; then the counters that it told last count
ANSWER_PATIENCE_S = 1.0

logger = logging.getLogger("echo7")


@dataclass(slots=True, eq=False)
class Slot:
    """A place for one worker process, and the sockets that belong to the place."""

    number: int  # from 1
    bound: Bound
    backoff: BackOff
    process: Process | None = None
    restart: Timer | None = None

    @property
    def sockets(self) -> list[Socket]:
        """Every socket of the set."""
        return self.bound.tcp + self.bound.udp


@dataclass(slots=True, eq=False)
class Process:
    """One worker process, as the supervisor knows it."""

    slot: Slot
    child: Child = field(init=False)
    channel: Channel = field(init=False)
    ready: bool = False
    counters: Counters = field(default_factory=Counters)  # as told last
    log_lines_dropped: int = 0

    def __str__(self) -> str:
        """Name it as the log does."""
        return f"worker {self.slot.number} (pid {self.child.pid})"

    @property
    def fields(self) -> dict[str, int]:
        """Name it as JSON does."""
        return {"worker": self.slot.number, "pid": self.child.pid}


class Supervisor:
    """Looks after the workers of `echo7 serve --workers N`."""

    def __init__(
        self, service: Service, reactor: Reactor, settings: Settings, handler: log.StderrHandler, descriptors: int
    ) -> None:
        self.status = 0
        self._service, self._reactor, self._settings = service, reactor, settings
        self._handler, self._descriptors = handler, descriptors
        self._slots: list[Slot] = []
        # to be started as soon as the loop has returned
        self._due: collections.deque[Slot] = collections.deque()
        self._announced = self._aborting = False
        # set by `stop`
        self._stopped: Callable[[], object] | None = None
        # of the processes that have ended
        self._past, self._past_dropped = Counters(), 0
        self._round = 0
        # the workers that haven't answered this round; None: no round is under way
        self._awaited: set[Process] | None = None
        self._asked_again = False
        self._metrics: WorkersMetrics | None = None

    def open(self, sets: Sequence[Bound], optional: OptionalPart) -> None:
        """Open everything that may need privileges. Raise BindError."""
        if self._settings.metrics is not None:
            from echo7.metrics.service import WorkersMetrics

            with optional():
                self._metrics = WorkersMetrics(self._reactor, self._handler, self._health)
                self._metrics.start(self._settings.metrics)
        self._slots = [Slot(number, each, BackOff(self._reactor.now)) for number, each in enumerate(sets, 1)]

    def _health(self) -> str:
        return "" if self._stopped is None else "stopping"

    def start(self) -> None:
        """Have every worker started when the loop returns."""
        self._due.extend(self._slots)

    def _live(self) -> list[Process]:
        return [slot.process for slot in self._slots if slot.process is not None]

    def _order(self, what: str, **details: object) -> None:
        for process in self._live():
            process.channel.say(what, **details)

    def dump(self) -> None:
        """Have each worker log what its loop has."""
        self._order("dump")

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
                pid = os.fork()
                if pid == 0:  # pragma: no cover - in a child the measuring begins with the next call
                    main = functools.partial(self._be_worker, slot, ours, theirs, mask)
                    run_child(f"worker {slot.number}", main)
        except OSError as error:
            self._try_again(slot, f"cannot start worker {slot.number}: {error.strerror}", {"worker": slot.number})
            return
        process = slot.process = Process(slot)
        process.child = Child(pid, functools.partial(self._ended, process), stream=True)
        heard = functools.partial(self._heard, process)
        process.channel = Channel(self._reactor, ours, heard, process.child.stream_ended)

    def _be_worker(self, slot: Slot, parents: Socket, control: Socket, mask: set[int]) -> int:
        """Be the child. What runs here belongs to another process than the rest of this class."""
        try:
            disown(self._reactor)
            self._service.let_go()
            parents.close()
            mine = slot.sockets
            for sock in [sock for other in self._slots for sock in other.sockets]:
                # systemd's sockets are in every slot
                if sock not in mine:
                    sock.close()
            return worker.run(slot.number, self._settings, self._descriptors, slot.bound, control, mask)
        except OSError as error:
            log.event(logger, logging.ERROR, "start_failed", f"cannot start: {error.strerror}; raise 'ulimit -n'")
            return 1

    def _heard(self, process: Process, message: Message) -> None:
        if message["say"] == "ready":
            self._ready(process, message["addresses"])
            return
        process.counters = Counters(**message["counters"])
        process.log_lines_dropped = message["log_lines_dropped"]
        if self._metrics is not None:
            self._metrics.heard(process.slot.number, message["told"])
        if message["round"] == self._round:
            self._answered(process)

    def _ready(self, process: Process, addresses: list[Any]) -> None:
        process.ready = True
        process.slot.backoff.ready()
        live = self._live()
        if self._announced:
            log.event(logger, logging.INFO, "worker_ready", f"{process} serves", **process.fields)
        elif sum(each.ready for each in live) == len(self._slots):
            self._announced = True
            pids = [each.child.pid for each in live]
            text = f"{len(pids)} workers serve, pids {', '.join(map(str, pids))}"
            log.event(logger, logging.INFO, "workers", text, workers=len(pids), pids=pids)
            report.log_addresses(ServingAddress(*each) for each in addresses)
            self._service.serving()

    # ---- a worker ends

    def reap(self) -> None:
        """Look which workers have ended."""
        for process in self._live():
            process.child.reap()

    def _ended(self, process: Process, exit_code: int) -> None:
        slot = process.slot
        slot.process = None
        self._past = report.total([self._past, process.counters._replace(connections_open=0)])
        self._past_dropped += process.log_lines_dropped
        if self._metrics is not None:
            self._metrics.ended(slot.number)
        self._answered(process)
        text, fields = f"{process} ended {how_it_ended(exit_code)}", process.fields | {"exit_code": exit_code}
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
        """Have the workers drain; call `stopped` when all have ended."""
        self._stopped = stopped
        self._due.clear()
        for slot in self._slots:
            # or the kernel would queue clients that nothing will serve
            slot.bound.close()
            if slot.restart is not None:
                slot.restart.cancel()
        self._order("drain")
        self._check_over()

    def abort(self) -> None:
        """Have the workers end at once."""
        self._aborting = True
        self._order("abort")

    def kill(self) -> None:
        """Kill the workers that hang."""
        for process in self._live():
            if process.child.exit_code is None:
                log.event(logger, logging.WARNING, "worker_killed", f"{process} hangs: killed", **process.fields)
                process.child.send(signal.SIGKILL)

    def _check_over(self) -> None:
        if self._stopped is not None and not self._live():
            self._stopped()

    @contextlib.contextmanager
    def left_behind(self) -> Iterator[tuple[list[int], list[int]]]:
        """Tell the workers that they are the previous generation; yield their pids, and our ends of their channels."""
        self._order("restart")
        live = [process for process in self._live() if process.child.exit_code is None]
        ended = [process.counters for process in self._live() if process.child.exit_code is not None]
        report.log_counters("ended_before", report.total([self._past, *ended]), self._past_dropped)
        try:
            yield (
                [process.child.pid for process in live],
                [process.channel.fileno() for process in live if process.child.stream_open],
            )
        except BaseException:
            self._order("stay")
            raise

    # ---- counters

    def log_counters(self, name: str) -> None:
        """Log what all workers together have done so far, including those that have ended."""
        live = self._live()
        dropped = self._past_dropped + self._handler.dropped + sum(process.log_lines_dropped for process in live)
        report.log_counters(name, report.total([self._past, *(process.counters for process in live)]), dropped)

    def ask_for_counters(self) -> None:
        """Begin a round, on SIGUSR1: ask every worker, and log the sum. During one, have another follow."""
        if self._awaited is not None:
            self._asked_again = True
            return
        self._round += 1
        self._awaited = set(self._live())
        self._reactor.call_later(ANSWER_PATIENCE_S, self._conclude, self._round)
        self._order("counters", round=self._round)
        if not self._awaited:
            self._conclude(self._round)

    def _answered(self, process: Process) -> None:
        if self._awaited is not None:
            self._awaited.discard(process)
            if not self._awaited:
                self._conclude(self._round)

    def _conclude(self, of_round: int) -> None:
        if self._awaited is None or of_round != self._round:
            return
        self._awaited = None
        self.log_counters("counters")
        if self._asked_again:
            self._asked_again = False
            self.ask_for_counters()
