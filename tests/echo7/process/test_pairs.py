"""Faults in pairs: workers, a hanging worker, a lost socket, a restart, metrics, fast paths, SIGCHLD ignored,
restrictions, another user.

Each row of the array is one service. Every two values of two columns meet in a row, where they can.
"""

from __future__ import annotations

import itertools
import os
import signal
from typing import Any, NamedTuple

import pytest

from echo7.sockets import reuseport
from tests.echo7.metrics.test_service import fetch
from tests.echo7.process.test_workers import HOST, clients_of
from tests.support.basics import until
from tests.support.daemon import WorkersProcess

pytest.importorskip("h11", reason="the extra `metrics` isn't installed")
pytest.importorskip("prometheus_client", reason="the extra `metrics` isn't installed")
pytestmark = pytest.mark.skipif(not reuseport.AVAILABLE, reason="Linux alone balances")


class Row(NamedTuple):
    """One service. `hangs`: when a worker is stopped. `loses`: a UDP socket breaks in the first generation."""

    workers: int
    hangs: str
    loses: bool
    restarts: bool
    metrics: bool
    plain: bool
    ignored: bool
    sandbox: bool
    user: bool

    def __str__(self) -> str:
        """Name what is unusual."""
        words = [name if value is True else f"{value}" for name, value in self._asdict().items() if value]
        return " ".join(words)


VALUES = {
    "workers": (1, 2),
    "hangs": ("", "hangs", "hangs at the restart"),
    "loses": (False, True),
    "restarts": (False, True),
    "metrics": (False, True),
    "plain": (False, True),
    "ignored": (False, True),
    "sandbox": (False, True),
    "user": (False, True),
}
ARRAY = [
    Row(1, "", False, True, True, False, True, False, False),
    Row(1, "", True, True, False, True, False, False, True),
    Row(1, "", True, False, True, False, False, True, False),
    Row(1, "", False, False, False, True, True, True, True),
    Row(2, "", True, True, True, True, True, False, True),
    Row(2, "", False, False, False, False, False, True, True),
    Row(2, "hangs", False, True, False, True, True, False, False),
    Row(2, "hangs", True, False, True, False, False, True, True),
    Row(2, "hangs", False, False, True, True, False, False, False),
    Row(2, "hangs", True, True, False, False, True, True, False),
    Row(2, "hangs at the restart", True, True, True, False, True, True, True),
    Row(2, "hangs at the restart", False, True, False, True, False, False, False),
]
CODE = """
import os, sys
from echo7 import cli, server
from echo7.process import service, slot, supervisor, worker
slot.LOOK_INTERVAL_S = supervisor.LOOK_INTERVAL_S = worker.REPORT_INTERVAL_S = 0.1
# a process that writes what coverage has measured takes longer to end
service.DRAIN_GRACE_S = 5.0 if any(name.startswith("COVERAGE_") for name in os.environ) else 0.5
start, first = server.EchoServer.start, 'ECHO7_HANDOVER' not in os.environ
def start_and_lose(self, reactor, bound):
    start(self, reactor, bound)
    if {loses} and first:
        reactor.call_soon(self.handlers[1][0].abort, OSError(9, "Bad file descriptor"))
server.EchoServer.start = start_and_lose
sys.exit(cli.main(sys.argv[1:]))
"""


class Service(WorkersProcess):
    """The service of a row."""

    def __init__(self, row: Row, **options: Any) -> None:
        # restricted by default, except where coverage is measured
        words = ["--drain-timeout", "0", *["--sandbox", "off"] * (not row.sandbox), *["--plain"] * row.plain]
        words += [*["--metrics", "127.0.0.1:0"] * row.metrics, *["--user", "4711:4711"] * row.user]
        super().__init__(
            *HOST,
            *words,
            count=row.workers,
            program=["-c", CODE.format(loses=row.loses)],
            preexec_fn=(lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)) if row.ignored else None,
            **options,
        )


def excluded(first: tuple[str, object], second: tuple[str, object]) -> bool:
    """Whether two values can't meet: only a worker hangs, and at a restart only if there is one."""
    pair = dict([first, second])
    if pair.get("hangs"):
        return pair.get("workers") == 1 or (pair["hangs"] != "hangs" and pair.get("restarts") is False)
    return False


def test_every_two_values_meet_in_a_row() -> None:
    columns = [[(name, value) for value in values] for name, values in VALUES.items()]
    rows = [set(row._asdict().items()) for row in ARRAY]
    missing = [
        pair
        for first, second in itertools.combinations(columns, 2)
        for pair in itertools.product(first, second)
        if not excluded(*pair) and not any(set(pair) <= row for row in rows)
    ]
    assert missing == []


@pytest.mark.long
@pytest.mark.parametrize("row", ARRAY, ids=str)
def test_service_recovers_from_every_pair(row: Row, request: pytest.FixtureRequest, packages: str) -> None:
    """Only root can become another user; others leave that column out."""
    row = row._replace(user=row.user and os.geteuid() == 0)
    installation = request.getfixturevalue("installation") if row.user else None
    with Service(row, installation=installation, env={**os.environ, "PYTHONPATH": packages}) as echo:
        if row.hangs == "hangs":
            recover_from_a_hanging_worker(echo, row)
        refused = row.loses and row.workers == 1
        if row.restarts:
            if row.hangs == "hangs at the restart":
                echo.halt(1)
            echo.process.send_signal(signal.SIGHUP)
            if refused:
                assert "a serving socket is broken" in echo.next_line("restart_refused")["message"]
            else:
                echo.next_line("restarted")
        whole = not row.loses or (row.restarts and not refused)
        for transport in ("tcp", "udp") if whole else ("tcp",):
            with clients_of(echo.port, transport) as clients:
                for client in clients:
                    client.send(b"hello")
                    assert client.recv(5) == b"hello"
        if row.metrics:
            until(lambda: (fetch(echo, "/healthz")[0] == 200) == whole)
        assert echo.finish() == 0
        assert {line["level"] for line in echo.lines if line["event"] not in {"socket_broken", "restart_refused"}} <= {
            "info",
            "warning",
        }


def recover_from_a_hanging_worker(echo: Service, row: Row) -> None:
    pid = echo.halt(1)
    if row.metrics:
        until(lambda: "worker 1 has been silent for " in fetch(echo, "/healthz")[1])
    killed = echo.next_line("worker_killed")
    assert (killed["pid"], killed["reason"]) == (pid, "silent")
    assert echo.next_line("worker_ready")["worker"] == 1
