"""The process that serves nothing itself: it opens the sockets, starts the workers, and answers for them.

Law: the sockets outlive the workers. The supervisor opens all of them, before the first fork, and keeps them; each
worker's slot has a set of its own, which every process that ever fills the slot inherits. So no caller who waits in the
kernel's queue and no UDP peer is lost with a worker, only what that worker had taken in already.

A worker is over when both are true, in whichever order: its process is reaped, and its channel has ended, with all that
it had to say read. Forking is done in `run`, between two runs of the loop: a child never stands inside a callback.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from echo7.logs import log, report
from echo7.process import worker
from echo7.process.backoff import STILLBIRTHS_LIMIT, BackOff
from echo7.process.channel import Channel, Message
from echo7.process.lifecycle import Lifecycle
from echo7.process.signals import signals_held
from echo7.server import Counters, ServingAddress
from echo7.sockets.binding import Bound
from reactor.loop import Reactor
from reactor.sockets.opening import Socket, closed_on_error
from reactor.timers import Timer

if TYPE_CHECKING:
    from echo7.metrics.service import WorkersMetrics
    from echo7.settings import Settings

ANSWER_PATIENCE_S = 1.0  # for the counters of a worker that doesn't answer; then those that it told last count
DRAIN_GRACE_S = 10.0  # beyond the drain timeout, which a worker keeps by itself: then it hangs, and is killed
ABORT_GRACE_S = 1.0  # the same at a second signal

logger = logging.getLogger("echo7")


@dataclass(slots=True, eq=False)
class Slot:
    """A place for one worker process, and the sockets that belong to the place."""

    number: int  # from 1
    bound: Bound
    backoff: BackOff
    process: Process | None = None
    restart: Timer | None = None


@dataclass(slots=True, eq=False)
class Process:
    """One worker process, as the supervisor knows it."""

    slot: Slot
    pid: int
    channel: Channel = field(init=False)
    told_all: bool = False  # its channel has ended
    wait_status: int | None = None  # once it is reaped
    ready: bool = False
    counters: Counters = field(default_factory=Counters)  # as told last
    log_lines_dropped: int = 0

    def __str__(self) -> str:
        """Name it as the log does."""
        return f"worker {self.slot.number} (pid {self.pid})"


@dataclass(slots=True, eq=False)
class Inquiry:
    """One round of asking every worker for its counters."""

    awaited: set[Process]  # who have yet to answer, or to end
    patience: Timer = field(init=False)


class Supervisor:
    """One run of `echo7 serve --workers N`."""

    def __init__(self, reactor: Reactor, config: Settings, handler: log.StderrHandler, descriptors: int) -> None:
        self.status = 0
        self._life = Lifecycle(reactor, config)
        self._reactor, self._config, self._handler, self._descriptors = reactor, config, handler, descriptors
        self._slots: list[Slot] = []
        self._due: collections.deque[Slot] = collections.deque()  # to be started as soon as the loop has returned
        self._announced = self._stopping = self._aborting = self._over = False
        self._past: list[Counters] = [Counters()]  # the sum over the processes that have ended
        self._past_dropped = 0
        self._inquiries = 0
        self._inquiry: Inquiry | None = None  # under way
        self._asked_meanwhile = False
        self._metrics: WorkersMetrics | None = None

    def start(self) -> None:
        """Open every socket, drop what that needed, take the signals over. Raise BindError, StartError."""
        sets = self._life.open()
        if self._config.metrics is not None:
            with self._life.outages_forgiven():
                self._serve_metrics(self._config.metrics)
        self._life.drop_privileges()
        self._slots = [Slot(number, each, BackOff(self._reactor.now)) for number, each in enumerate(sets, 1)]
        self._due.extend(self._slots)
        report.dump_on_signal(self._reactor, lambda: self._order("dump"))
        self._life.take_signals(self._end, self._ask_for_counters, self._reap)
        report.log_hints(sets[0].left_out, self._life.loopback_only)

    def _serve_metrics(self, where: tuple[str, int]) -> None:
        from echo7.metrics.service import WorkersMetrics

        self._metrics = WorkersMetrics(self._reactor, self._handler, lambda: "stopping" if self._stopping else "")
        self._metrics.start(where)

    def run(self) -> None:
        """Run until all is over. Returns in the supervisor only."""
        while not self._over:
            while self._due:
                self._fork(self._due.popleft())
            self._life.restart(self._leaving)
            self._reactor.run()

    def log_counters(self, name: str) -> None:
        """Log what all workers together have done so far, those that have ended too."""
        live = self._live()
        dropped = self._past_dropped + self._handler.dropped + sum(process.log_lines_dropped for process in live)
        report.log_counters(name, report.total([*self._past, *(process.counters for process in live)]), dropped)

    def _live(self) -> list[Process]:
        return [slot.process for slot in self._slots if slot.process is not None]

    # ---- starting

    def _fork(self, slot: Slot) -> None:
        slot.backoff.started()
        try:
            ours, theirs = self._reactor.sockets.socketpair()
            with theirs, closed_on_error(ours), signals_held() as mask:
                pid = os.fork()
                if pid == 0:  # pragma: no cover - in a child the measuring begins with the next call
                    self._become_worker(slot, ours, theirs, mask)
        except OSError as error:
            self._try_again(slot, f"cannot start worker {slot.number}: {error.strerror}", worker=slot.number)
            return
        process = slot.process = Process(slot, pid)
        heard, lost = functools.partial(self._heard, process), functools.partial(self._channel_lost, process)
        process.channel = Channel(self._reactor, ours, heard, lost)

    def _become_worker(self, slot: Slot, parents: Socket, control: Socket, mask: set[int]) -> NoReturn:
        """Be the child, to its end. What runs here belongs to another process than the rest of this module."""
        status = 1
        try:
            self._reactor.abandon_after_fork()
            self._life.disown()
            parents.close()
            mine = slot.bound.tcp + slot.bound.udp
            for sock in [sock for other in self._slots for sock in other.bound.tcp + other.bound.udp]:
                if sock not in mine:
                    sock.close()
            status = worker.run(slot.number, self._config, self._descriptors, slot.bound, control, mask)
        except OSError as error:  # EMFILE before it has begun
            log.event(logger, logging.ERROR, "start_failed", f"cannot start: {error.strerror}; raise 'ulimit -n'")
        except BaseException as error:  # it must not get into the parent's frames, whatever it is
            logger.critical("worker %d failed: %r", slot.number, error, exc_info=error, extra={"event": "failed"})
        finally:
            for handler in logger.handlers:
                handler.flush()
            os._exit(status)

    def _heard(self, process: Process, message: Message) -> None:
        if message["say"] == "counters":
            process.counters = Counters(**message["counters"])
            process.log_lines_dropped = message["log_lines_dropped"]
            if self._metrics is not None:
                self._metrics.heard(process.slot.number, message["snapshot"])
            if message["round"] == self._inquiries:
                self._answered(process)
            return
        process.ready = True
        process.slot.backoff.ready()
        if self._announced:
            fields = {"worker": process.slot.number, "pid": process.pid}
            log.event(logger, logging.INFO, "worker_ready", f"{process} serves", **fields)
        elif sum(each.ready for each in self._live()) == len(self._slots):
            self._announced = True
            pids = [each.pid for each in self._live()]
            text = f"{len(pids)} workers serve, pids {', '.join(map(str, pids))}"
            log.event(logger, logging.INFO, "workers", text, workers=len(pids), pids=pids)
            report.log_addresses(ServingAddress(*each) for each in message["addresses"])
            self._life.serving()

    # ---- ends of workers

    def _reap(self) -> None:
        for process in self._live():
            if process.wait_status is None:
                pid, wait_status = os.waitpid(process.pid, os.WNOHANG)
                if pid:
                    process.wait_status = wait_status
                    self._check_ended(process)

    def _channel_lost(self, process: Process) -> None:
        process.told_all = True
        self._check_ended(process)

    def _check_ended(self, process: Process) -> None:
        if process.wait_status is None or not process.told_all:
            return
        slot, code = process.slot, os.waitstatus_to_exitcode(process.wait_status)
        slot.process = None
        self._past = [report.total([*self._past, process.counters._replace(connections_open=0)])]
        self._past_dropped += process.log_lines_dropped
        if self._metrics is not None:
            self._metrics.ended(slot.number)
        self._answered(process)
        text, fields = f"{process} ended {_how(code)}", {"worker": slot.number, "pid": process.pid, "exit_code": code}
        if not self._stopping:
            self._try_again(slot, text, **fields)
            return
        if code and not self._aborting:
            self.status = 1
            log.event(logger, logging.WARNING, "worker_ended", text, **fields)
        self._check_over()

    def _try_again(self, slot: Slot, text: str, **fields: object) -> None:
        delay_s = slot.backoff.ended()
        if all(each.backoff.hopeless for each in self._slots):
            log.event(logger, logging.WARNING, "worker_ended", text, **fields)
            text = f"every worker has ended {STILLBIRTHS_LIMIT} times in a row before it served: giving up"
            log.event(logger, logging.ERROR, "failed", text)
            self.status = 1
            self._stop()
            return
        text += f"; the next one starts in {delay_s:g} s"
        log.event(logger, logging.WARNING, "worker_ended", text, restart_delay_s=delay_s, **fields)
        slot.restart = self._reactor.call_later(delay_s, self._fall_due, slot)

    def _fall_due(self, slot: Slot) -> None:
        self._due.append(slot)
        self._reactor.stop()

    # ---- the end

    def _end(self, signum: int) -> None:
        if self._stopping:
            self._aborting = True
            self.status = 128 + signum
            self._order("abort")
            self._life.aborting()
            self._reactor.call_later(ABORT_GRACE_S, self._kill)
            return
        name, timeout_s = signal.Signals(signum).name, self._config.drain_timeout_s
        text = f"stopping on {name}: delivering for up to {timeout_s:g} s"
        log.event(logger, logging.INFO, "stopping", text, signal=name)
        self._stop()

    def _stop(self) -> None:
        self._stopping = True
        self._life.stopping()
        self._due.clear()
        for slot in self._slots:
            slot.bound.close()  # or callers would be queued whom nobody will serve
            if slot.restart is not None:
                slot.restart.cancel()
        self._order("drain")
        self._reactor.call_later(self._config.drain_timeout_s + DRAIN_GRACE_S, self._kill)
        self._check_over()

    def _order(self, what: str, **details: object) -> None:
        for process in self._live():
            process.channel.say(what, **details)

    def _kill(self) -> None:
        for process in self._live():
            if process.wait_status is None:  # else the number may be somebody else's by now
                fields = {"worker": process.slot.number, "pid": process.pid}
                log.event(logger, logging.WARNING, "worker_killed", f"{process} hangs: killed", **fields)
                os.kill(process.pid, signal.SIGKILL)

    def _check_over(self) -> None:
        if not self._live():
            self._life.when_alone(self._finish)

    def _finish(self) -> None:
        self._over = True
        self._reactor.stop()

    @contextlib.contextmanager
    def _leaving(self) -> Iterator[tuple[list[int], list[int]]]:
        """The workers go on without us; the ends of their channels tell them from when on."""
        self._order("restart")
        live = [process for process in self._live() if process.wait_status is None]
        ended = [process.counters for process in self._live() if process.wait_status is not None]
        report.log_counters("ended_before", report.total([*self._past, *ended]), self._past_dropped)
        try:
            yield (
                [process.pid for process in live],
                [process.channel.fileno() for process in live if not process.told_all],
            )
        except BaseException:
            self._order("stay")
            raise

    # ---- counters

    def _ask_for_counters(self) -> None:
        if self._inquiry is not None:
            self._asked_meanwhile = True
            return
        self._inquiries += 1
        inquiry = self._inquiry = Inquiry(set(self._live()))
        inquiry.patience = self._reactor.call_later(ANSWER_PATIENCE_S, self._conclude)
        self._order("counters", round=self._inquiries)
        self._check_complete(inquiry)

    def _answered(self, process: Process) -> None:
        if self._inquiry is not None:
            self._inquiry.awaited.discard(process)
            self._check_complete(self._inquiry)

    def _check_complete(self, inquiry: Inquiry) -> None:
        if not inquiry.awaited:
            inquiry.patience.cancel()
            self._conclude()

    def _conclude(self) -> None:
        self._inquiry = None
        self.log_counters("counters")
        if self._asked_meanwhile:
            self._asked_meanwhile = False
            self._ask_for_counters()


def _how(code: int) -> str:
    """Put into words how a process has ended, as os.waitstatus_to_exitcode says it."""
    names = {int(each): each.name for each in signal.Signals}  # the real-time ones have none
    return f"with status {code}" if code >= 0 else f"by {names.get(-code, f'signal {-code}')}"
