"""Supervisor, Worker and Channel without any process: the test holds the other end of each channel."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from echo7.logs import log
from echo7.logs.report import total
from echo7.metrics.snapshot import Snapshot
from echo7.process.child import how_it_ended
from echo7.process.service import Service
from echo7.process.slot import FLOOD_BYTES, HUNG_LOOKS, LOOK_INTERVAL_S, ORDERS_WAITING_BYTES, SILENT_LOOKS
from echo7.process.supervisor import ANSWER_PATIENCE_S, Supervisor
from echo7.process.worker import REPORT_INTERVAL_S, Worker
from echo7.server import Counters
from echo7.sockets import reuseport
from echo7.sockets.binding import Bound, bind_all
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
        assert isinstance(service.work, Supervisor)
        self.supervisor, self.children = service.work, service.children
        self.supervisor.fork_due()
        self.workers = pairs.seconds
        self.heard: list[bytes] = [b"", b""]
        for worker in self.workers:
            worker.setblocking(False)

    def say(self, index: int, **message: object) -> None:
        """Send a message from a worker to the supervisor."""
        self.workers[index].sendall(json.dumps(message).encode() + b"\n")
        turn_idle(self.reactor)

    def answer(self, index: int, question: int, connections: int, leaving: int = 0) -> None:
        snapshot = Snapshot(Counters(connections=connections), log_lines_dropped=index)
        self.say(index, say="counters", round=question, leaving=leaving, snapshot=snapshot.as_message())

    def look(self, times: int = 1) -> None:
        """Let the supervisor look at its workers."""
        for _ in range(times):
            self.clock.advance(LOOK_INTERVAL_S)
            turn_idle(self.reactor)

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
    rig.children.reap()


def test_worker_has_ended_when_it_is_reaped_and_its_channel_has_ended(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGCHLD may come before its last words have been read."""
    monkeypatch.setattr(os, "waitpid", lambda pid, options: (pid, 0) if pid == FIRST_PID else (0, 0))
    for _ in range(2):
        rig.children.reap()
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


# ---------------------------------------------------------------- the supervisor looks after its workers


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pids that were sent SIGKILL."""
    pids: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, signum: pids.append(pid) if signum == signal.SIGKILL else None)
    return pids


def begin(rig: Rig) -> None:
    """Let both workers serve."""
    for index in (0, 1):
        rig.say(index, say="ready")
    assert rig.supervisor.problem == ""


def test_silent_worker_is_unhealthy_then_killed_once(
    rig: Rig, caplog: pytest.LogCaptureFixture, killed: list[int]
) -> None:
    """Story: `kill -STOP` of one of two workers. Half of all clients timed out for ever, and health said ok."""
    assert rig.supervisor.problem == "worker 1 doesn't serve; worker 2 doesn't serve"
    begin(rig)
    for looks in range(HUNG_LOOKS):
        unhealthy = f"worker 2 has been silent for {looks} s" if looks >= SILENT_LOOKS else ""
        assert (rig.supervisor.problem, killed) == (unhealthy, [])
        assert rig.supervisor.silences_s[2] == looks
        rig.look()
        rig.answer(0, 0, connections=1)
    rig.look(2)
    assert killed == [FIRST_PID + 1]
    assert told(caplog, "worker_killed") == [{"reason": "silent", "worker": 2, "pid": FIRST_PID + 1}]
    assert rig.supervisor.killed == {"silent": 1, "broken": 0, "stopping": 0}
    assert rig.supervisor.problem == "worker 2 doesn't serve"


def test_draining_worker_is_unhealthy(rig: Rig) -> None:
    """TERM to one worker: new clients wait for the next one."""
    begin(rig)
    rig.answer(1, 0, connections=1, leaving=1)
    assert rig.supervisor.problem == "worker 2 doesn't serve"


def test_stopped_supervisor_or_jumping_clock_blames_no_worker(rig: Rig, killed: list[int]) -> None:
    """SIGSTOP and SIGCONT, or a machine that was suspended: everything was silent, and no worker is to blame."""
    begin(rig)
    for _ in range(3 * HUNG_LOOKS):
        rig.clock.advance(3600)
        turn_idle(rig.reactor)
        assert rig.supervisor.problem == ""
        for index in (0, 1):
            rig.answer(index, 0, connections=1)
    assert killed == []


def reported(**counters: object) -> dict[str, object]:
    """A snapshot with other counters."""
    return {"snapshot": SNAPSHOT | {"counters": SNAPSHOT["counters"] | counters}}


SNAPSHOT = Snapshot().as_message()
REPORT: dict[str, object] = {"say": "counters", "round": 0, "leaving": 0, "snapshot": SNAPSHOT}
CHANGES: dict[str, dict[str, object]] = {
    "text in place of a number": {"round": "0"},
    "text in place of a counter": reported(connections="many"),
    "an unknown counter": reported(more=1),
    "a negative counter": reported(connections=-1),
    "a fraction": reported(connections=1.5),
    "an invented drop reason": reported(drops={'busy"} 1\n': 1}),
    "a list of drops": reported(drops=[1]),
    "no counter": {"snapshot": SNAPSHOT | {"counters": {}}},
    "no snapshot": {"snapshot": None},
    "a snapshot as text": {"snapshot": "0"},
    "a truth": {"leaving": True},
    "infinity": {"round": float("inf")},
    "not a number": {"round": float("nan")},
    "a number too large": {"round": 1 << 64},
    "not a number of seconds": {"snapshot": SNAPSHOT | {"turns": [SNAPSHOT["turns"][0], float("nan")]}},
    "a gauge too many": {"snapshot": SNAPSHOT | {"gauges": [*SNAPSHOT["gauges"], 0]}},
    "a bucket too few": {"snapshot": SNAPSHOT | {"lags": [SNAPSHOT["lags"][0][1:], 0.0]}},
}
HOSTILE = {
    "no JSON": b"hello\n",
    "an empty line": b"\n",
    "no text": b"\xff\xfe\n",
    "no object": b"[1]\n",
    "too deeply nested": b"[" * 60_000 + b"\n",
    "a number of too many digits": b'{"say": ' + b"9" * 60_000 + b"}\n",
    "unknown": b'{"say": "kill"}\n',
    "an order": b'{"say": "drain"}\n',
    "unhashable": b'{"say": []}\n',
    "too many fields": b'{"say": "ready", "addresses": []}\n',
    "begun twice": b'{"say": "ready"}\n',
    "a line without an end": b"x" * 70_000,
    "a line too long": b"x" * 70_000 + b"\n",
} | {name: json.dumps(REPORT | change).encode() + b"\n" for name, change in CHANGES.items()}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_worker_that_breaks_the_rules_is_killed(
    rig: Rig, caplog: pytest.LogCaptureFixture, killed: list[int], data: bytes
) -> None:
    """Story: text in place of a counter raised in the supervisor, and the dead worker was never replaced."""
    begin(rig)
    rig.workers[0].setblocking(True)
    rig.workers[0].settimeout(PATIENCE_S)
    sending = threading.Thread(target=send_all, args=(rig.workers[0], data))
    sending.start()
    while not killed:
        rig.reactor.turn()
    sending.join()
    turn_idle(rig.reactor)
    assert killed == [FIRST_PID]
    assert [line["reason"] for line in told(caplog, "worker_killed")] == ["broken"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    rig.answer(1, 0, connections=2)
    rig.supervisor.log_counters("counters")
    assert told(caplog, "counters")[-1]["connections"] == 2


def send_all(sock: Socket, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        sock.sendall(data)


def test_flooding_worker_is_killed(rig: Rig, killed: list[int]) -> None:
    begin(rig)
    report = json.dumps(REPORT).encode() + b"\n"
    for _ in range(FLOOD_BYTES // len(report) + 1):
        rig.workers[1].sendall(report)
        rig.reactor.turn()
    assert killed == []
    rig.look()
    assert killed == [FIRST_PID + 1]


def test_answers_to_a_storm_of_questions_are_no_flood(rig: Rig, killed: list[int]) -> None:
    """SIGUSR1 again and again."""
    begin(rig)
    report = json.dumps(REPORT).encode() + b"\n"
    rig.supervisor.ask_for_counters()
    for _ in range(FLOOD_BYTES // len(report) + 1):
        rig.workers[1].sendall(report)
        rig.reactor.turn()
    rig.look()
    assert killed == []


def test_worker_that_reads_no_orders_is_killed(rig: Rig, killed: list[int]) -> None:
    """Otherwise the orders would fill the supervisor."""
    begin(rig)
    order = len(b'{"say": "dump"}\n')
    for _ in range(5):
        for _ in range(ORDERS_WAITING_BYTES // order // 4):
            rig.supervisor.dump()
        while rig.orders(0):
            pass
    rig.look()
    assert killed == [FIRST_PID + 1]


def test_descendant_of_an_ended_worker_does_not_keep_its_channel_open(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(rig)
    monkeypatch.setattr(os, "waitpid", lambda pid, options: (pid, 0) if pid == FIRST_PID else (0, 0))
    rig.children.reap()
    rig.look()
    assert told(caplog, "worker_ended") == []
    rig.look()
    assert [line["pid"] for line in told(caplog, "worker_ended")] == [FIRST_PID]


def test_worker_that_closes_its_channel_and_lives_on_is_killed(rig: Rig, killed: list[int]) -> None:
    begin(rig)
    rig.workers[0].shutdown(socket.SHUT_RDWR)
    for _ in range(HUNG_LOOKS):
        assert killed == []
        rig.look()
        rig.answer(1, 0, connections=1)
    assert killed == [FIRST_PID]


def test_hung_worker_is_not_left_behind_at_a_restart(rig: Rig, killed: list[int]) -> None:
    """It would never retire."""
    begin(rig)
    for _ in range(SILENT_LOOKS):
        rig.look()
        rig.answer(0, 0, connections=1)
    with rig.supervisor.left_behind() as (pids, watches):
        assert (pids, len(watches), killed) == ([FIRST_PID, FIRST_PID + 1], 2, [FIRST_PID + 1])


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
        self.worker = Worker(self.reactor, CONFIG, 1024, Bound(), log.StderrHandler())
        self.worker.ready(self.worker.start(bind_all(socket, ["127.0.0.1"], 0), control))
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
            assert Snapshot.from_message(message["snapshot"]) == Snapshot()


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
