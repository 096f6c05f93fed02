"""Supervisor, Worker and Channel without any process: the test holds the other end of each channel."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from echo7.logs import log
from echo7.logs.report import total
from echo7.process.child import how_it_ended
from echo7.process.service import Service
from echo7.process.supervisor import ANSWER_PATIENCE_S
from echo7.process.worker import REPORT_INTERVAL_S, Worker
from echo7.server import Counters
from echo7.sockets import reuseport
from echo7.sockets.binding import bind_all
from reactor import Reactor
from reactor.sockets.opening import Socket
from tests.support.basics import PATIENCE_S
from tests.support.daemon import serve_config
from tests.support.loops import ManualClock, turn_idle

pytestmark = pytest.mark.skipif(not reuseport.AVAILABLE, reason="Linux alone balances")
FIRST_PID = 1_000_000_000  # no process has it: pid_max is four millions
CONFIG = serve_config("--host", "127.0.0.1", "--port", "0", "--workers", "2", "--sandbox", "off")


class Pairs:
    """A SocketFactory that keeps a copy of the second end of each pair."""

    def __init__(self) -> None:
        self.seconds: list[Socket] = []
        self.socket = socket.socket

    def socketpair(self) -> tuple[Socket, Socket]:
        first, second = socket.socketpair()
        self.seconds.append(second.dup())
        return first, second


class Rig:
    """A supervisor; the test plays its two workers."""

    def __init__(self) -> None:
        self.clock, pairs = ManualClock(), Pairs()
        self.reactor = Reactor(clock=self.clock, sockets=pairs)
        pairs.seconds.pop().close()  # the waker's
        service = Service(self.reactor, CONFIG, log.StderrHandler(), 1024)
        service.start()
        self.supervisor = service.work
        self.supervisor.fork_due()
        self.workers = pairs.seconds
        self.heard: list[bytes] = [b"", b""]
        for worker in self.workers:
            worker.setblocking(False)

    def say(self, index: int, **message: object) -> None:
        """Send a message from a worker to the supervisor."""
        self.workers[index].sendall(json.dumps(message).encode() + b"\n")
        turn_idle(self.reactor)

    def answer(self, index: int, question: int, connections: int) -> None:
        self.say(index, say="counters", round=question, counters={"connections": connections}, log_lines_dropped=index)

    def orders(self, index: int) -> list[dict[str, Any]]:
        """Return the orders that a worker has got since."""
        turn_idle(self.reactor)
        try:
            data = self.workers[index].recv(1 << 16)
        except BlockingIOError:
            return []
        return [json.loads(line) for line in data.splitlines()]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Rig]:
    caplog.set_level(logging.INFO)
    pids = iter(range(FIRST_PID, FIRST_PID + 100))
    monkeypatch.setattr(os, "fork", lambda: next(pids))
    made = Rig()
    with made.reactor:
        yield made
    made.supervisor.stop(int)
    for worker in made.workers:
        worker.close()


def told(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    """The fields of each log line of this event."""
    return [vars(record)["fields"] for record in caplog.records if vars(record)["event"] == event]


# ---------------------------------------------------------------- the supervisor


def test_request_for_counters_during_a_round_starts_one_more_round(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Several requests count as one, like pending signals."""
    for _ in range(3):
        rig.supervisor.ask_for_counters()
    assert [rig.orders(index) for index in (0, 1)] == [[{"say": "counters", "round": 1}]] * 2
    rig.answer(0, 1, connections=3)
    assert told(caplog, "counters") == []
    rig.answer(1, 1, connections=4)
    assert [line["connections"] for line in told(caplog, "counters")] == [7]
    assert [rig.orders(index) for index in (0, 1)] == [[{"say": "counters", "round": 2}]] * 2
    rig.answer(0, 2, connections=5)
    rig.answer(1, 2, connections=6)
    assert [line["connections"] for line in told(caplog, "counters")] == [7, 11]
    assert told(caplog, "counters")[-1]["log_lines_dropped"] == 1
    rig.clock.advance(ANSWER_PATIENCE_S)
    assert rig.orders(0) == []
    assert len(told(caplog, "counters")) == 2, "both rounds were over"


def test_worker_that_does_not_answer_counts_with_its_last_report(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.answer(1, 0, connections=2)  # unasked, as every second
    rig.supervisor.ask_for_counters()
    rig.answer(0, 1, connections=3)
    rig.answer(1, 0, connections=4)
    assert told(caplog, "counters") == [], "an unasked report is no answer"
    rig.clock.advance(ANSWER_PATIENCE_S)
    turn_idle(rig.reactor)
    assert [line["connections"] for line in told(caplog, "counters")] == [7]
    rig.answer(1, 1, connections=5)
    assert len(told(caplog, "counters")) == 1, "too late"


def test_request_for_counters_without_workers_is_answered_at_once(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.answer(0, 0, connections=3)
    die(rig, monkeypatch, signal.SIGKILL)
    rig.supervisor.ask_for_counters()
    assert [line["connections"] for line in told(caplog, "counters")] == [3]


def die(rig: Rig, monkeypatch: pytest.MonkeyPatch, wait_status: int) -> None:
    """End every worker."""
    for worker in rig.workers:
        worker.shutdown(socket.SHUT_RDWR)
    turn_idle(rig.reactor)
    monkeypatch.setattr(os, "waitpid", lambda pid, options: (pid, wait_status))
    rig.supervisor.reap()


def test_worker_has_ended_when_it_is_reaped_and_its_channel_has_ended(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGCHLD may come before its last words have been read."""
    monkeypatch.setattr(os, "waitpid", lambda pid, options: (pid, 0) if pid == FIRST_PID else (0, 0))
    for _ in range(2):
        rig.supervisor.reap()
    assert told(caplog, "worker_ended") == []
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, signum: killed.append(pid))
    rig.supervisor.kill()
    assert killed == [FIRST_PID + 1], "the pid of a reaped worker may belong to another process"
    rig.answer(0, 0, connections=9)
    rig.workers[0].sendall(b'{"say": "coun')  # cut short
    rig.workers[0].shutdown(socket.SHUT_RDWR)
    turn_idle(rig.reactor)
    assert [line["pid"] for line in told(caplog, "worker_ended")] == [FIRST_PID]
    rig.supervisor.log_counters("counters")
    assert told(caplog, "counters")[-1]["connections"] == 9


@pytest.mark.parametrize(
    ("code", "words"), [(0, "with status 0"), (3, "with status 3"), (-9, "by SIGKILL"), (-40, "by signal 40")]
)
def test_exit_code_is_put_into_words(code: int, words: str) -> None:
    assert how_it_ended(code) == words


def test_total_adds_up_counters_and_drops() -> None:
    one = Counters(connections=1, tcp_bytes_sent=2, drops={"truncated": 1, "busy": 2})
    other = Counters(connections=10, udp_bytes_sent=3, drops={"busy": 1, "accept_EMFILE": 1})
    assert total([one, other]) == Counters(
        connections=11, tcp_bytes_sent=2, udp_bytes_sent=3, drops={"accept_EMFILE": 1, "busy": 3, "truncated": 1}
    )
    assert one.drops == {"truncated": 1, "busy": 2}


# ---------------------------------------------------------------- a worker


class WorkerRig:
    """A worker on a loop turned by hand; the test is its supervisor."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.reactor = Reactor(clock=self.clock)
        self.supervisor, control = socket.socketpair()
        self.supervisor.settimeout(PATIENCE_S)
        self.worker = Worker(self.reactor, CONFIG, 1024, log.StderrHandler())
        self.worker.start(bind_all(socket, ["127.0.0.1"], 0), control)
        self.lines = self.supervisor.makefile("rb")

    def __enter__(self) -> WorkerRig:
        assert self.next()["say"] == "ready"
        assert self.next()["say"] == "counters"
        return self

    def __exit__(self, *exception: object) -> None:
        self.reactor.close()
        self.lines.close()
        self.supervisor.close()

    def next(self) -> dict[str, Any]:
        """Return the next message of the worker."""
        message: dict[str, Any] = json.loads(self.lines.readline())
        return message


def test_worker_reports_its_counters_every_second() -> None:
    """A crash loses at most one second of counters."""
    with WorkerRig() as rig:
        for _ in range(3):
            rig.clock.advance(REPORT_INTERVAL_S)
            rig.reactor.turn()
            message = rig.next()
            assert (message["say"], message["round"]) == ("counters", 0)
            assert Counters(**message["counters"]) == Counters()


def test_supervisor_that_does_not_read_gets_no_more_reports() -> None:
    """Otherwise the worker would grow."""
    with WorkerRig() as rig:
        channel = rig.worker.channel
        assert channel is not None
        while not channel.pending_bytes:
            rig.worker.report()
        pending_bytes = channel.pending_bytes
        for _ in range(3):
            rig.clock.advance(REPORT_INTERVAL_S)
            rig.reactor.turn()
        assert channel.pending_bytes == pending_bytes


def test_worker_with_a_broken_last_socket_ends_with_status_1() -> None:
    with WorkerRig() as rig:
        rig.worker.fail()
        turn_idle(rig.reactor)
        assert rig.next()["say"] == "counters"
        assert rig.lines.readline() == b""
        rig.supervisor.shutdown(socket.SHUT_WR)
        rig.reactor.run()
        assert rig.worker.status == 1
