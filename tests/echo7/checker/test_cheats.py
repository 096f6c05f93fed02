"""The checker isn't fooled: every cheat is caught, and honest servers pass, however slow they are."""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from echo7.checker import CASES, NORMAL, QUICK, Checker, Finding, Report, Verdict, check
from echo7.checker.checker import chosen
from echo7.checker.effort import THOROUGH, Effort, left_out
from reactor import Connection, Reactor
from reactor.testing import SimulatedNetwork
from tests.echo7.checker.cheats import CHEATS, HONEST, Cheat, World
from tests.support.basics import PATIENCE_S, quiet_port

HOST, PORT, TIMEOUT_S = "10.0.0.1", 7, 3.0
LOOPBACK = "127.0.0.1"
SMALL = NORMAL._replace(clients=70, connections=80, resets=2, exchanges=500, datagrams=1200, stream_mib=2)
# Ten of ten takes more than an hour: CHECKER_RUNS=10. Without it, a few servers are checked once.
RUNS = int(os.environ.get("CHECKER_RUNS", "0"))
ALL = pytest.mark.parametrize("cheat", CHEATS, ids=[cheat.name for cheat in CHEATS])
FOLDER = pathlib.Path(__file__).resolve().parent / "honest"


def report_on(cheat: Cheat, *, seed: int = 862, effort: Effort = SMALL, only: list[str]) -> Report:
    """Check a server in the simulation, where waiting takes no time."""
    reports: list[Report] = []
    network = SimulatedNetwork(seed)
    with network.reactor() as loop:
        World(loop, HOST, PORT).serve(cheat)
        Checker(
            loop, "server.test", [(HOST, PORT)], chosen(("tcp", "udp"), only),
            timeout_s=TIMEOUT_S, done=reports.append, effort=effort, seed=seed,
        ).start()  # fmt: skip
        network.run(loop, until=lambda: reports)
    return reports[0]


def lines(report: Report) -> str:
    return "\n".join(f"{f.case.name} {f.verdict.value}: {f.seen}" for f in report.findings)


def test_at_least_thirty_servers_cheat_in_one_way_each() -> None:
    assert len({cheat.name for cheat in CHEATS}) == len(CHEATS) >= 30


@ALL
def test_cheat_fails_one_of_its_cases(cheat: Cheat) -> None:
    names = cheat.cases.split()
    report = report_on(cheat, only=names)
    failed = {f.case.name for f in report.findings if f.verdict is Verdict.FAIL}
    assert failed & set(names), lines(report)
    assert report.status == 1


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
def test_honest_server_passes_in_any_order(seed: int) -> None:
    names = [
        "tcp-many",
        "tcp-again",
        "tcp-reset",
        "tcp-idle",
        "tcp-count",
        "udp-count",
        "udp-clients",
        "udp-one-answer",
    ]
    report = report_on(HONEST, seed=seed, only=names)
    assert (report.status, report.seed) == (0, seed), lines(report)


def slow(cases: str, delay_s: float) -> Report:
    """Check a server that answers everything correctly, but late."""

    def late(world: World) -> None:
        def close_later(connection: Connection) -> bool:
            world.loop.call_later(delay_s + 0.001, connection.close)
            return True

        world.stream.eof = close_later
        world.stream.answer = lambda connection, data: world.loop.call_later(delay_s, connection.write, data)
        world.datagrams.answer = lambda data, source: world.loop.call_later(delay_s, world.datagrams.send, data, source)

    return report_on(Cheat("slow", "", late), only=cases.split(), effort=SMALL._replace(connections=20, datagrams=200))


def test_slow_server_passes() -> None:
    report = slow("tcp-1 tcp-64k tcp-many tcp-again tcp-count udp-1 udp-one-answer udp-count", 0.4)
    assert report.status == 0, lines(report)


def test_server_that_is_too_slow_for_the_time_out_is_not_called_wrong() -> None:
    """It answers after 3.5 s, and the time-out is 3 s."""
    report = slow("tcp-1 tcp-64k tcp-many tcp-again udp-1 udp-one-answer udp-count", 3.5)
    assert Verdict.FAIL not in {finding.verdict for finding in report.findings}, lines(report)
    assert report.status == 4


def test_smaller_effort_says_what_it_leaves_out() -> None:
    assert left_out(NORMAL) == left_out(THOROUGH) == ""
    assert left_out(QUICK).startswith("1 instead of 2 rounds, 50 instead of 150 clients at once, ")
    assert left_out(QUICK).endswith(", no client that stays idle")


# ---------------------------------------------------------------- on real sockets


@contextlib.contextmanager
def program(command: list[str], port: int) -> Iterator[None]:
    """Run a server, which prints a line when it is ready."""
    with subprocess.Popen(
        [*command, LOOPBACK, str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield
        finally:
            process.kill()


def first_failure(port: int) -> Finding | Report:
    """Check until something counts against the server."""
    results: list[Finding | Report] = []
    with Reactor() as loop:

        def note(case: object, address: str, finding: Finding | None) -> None:
            if finding is not None and finding.counts_against:
                over(finding)

        def over(result: Finding | Report) -> None:
            results.append(result)
            loop.stop()

        Checker(
            loop, LOOPBACK, [(LOOPBACK, port)], CASES,
            timeout_s=TIMEOUT_S, done=over, progress=note, seed=random.SystemRandom().randrange(1_000_000),
        ).start()  # fmt: skip
        loop.run()
    return results[0]


@pytest.mark.long
@pytest.mark.parametrize("cheat", CHEATS if RUNS else CHEATS[::10], ids=lambda cheat: cheat.name)
def test_cheat_is_caught_each_time_on_real_sockets(cheat: Cheat) -> None:
    for _ in range(RUNS or 1):
        port = quiet_port()
        with program([sys.executable, "-m", "tests.echo7.checker.cheats", cheat.name], port):
            result = first_failure(port)
        assert isinstance(result, Finding), lines(result)


def peers(command: str) -> str:
    """Return a shell command that starts a peer of the benchmarks for each transport."""
    return f"{command.format('tcp')} & {command.format('udp')} & wait"


PEERS = FOLDER.parents[3] / "benchmarks" / "peers"
# name → the program that must be there, the command to build, and the command to serve
SERVERS = {
    "echo7": ("python3", "", "{python} -m echo7 serve --host {host} --port {port} --log-level error"),
    "echo7 --plain": ("python3", "", "{python} -m echo7 serve --plain --host {host} --port {port} --log-level error"),
    "echo7, 2 workers": ("python3", "", "{python} -m echo7 serve --workers 2 --host {host} --port {port}"),
    "Python, threads": ("python3", "", peers("{{python}} {{peers}}/threads_echo.py {} {{host}} {{port}}")),
    "Python, forks": ("python3", "", "{python} {folder}/forks.py {host} {port}"),
    "Python, forks, slow": ("python3", "", "{python} {folder}/forks.py {host} {port} 0.02"),
    "Node": ("node", "", peers("node {{peers}}/echo.js {} {{host}} {{port}}")),
    "C": ("cc", "cc -O2 -o {made}/c {peers}/epoll_echo.c", peers("{{made}}/c {} {{host}} {{port}}")),
    "Go": ("go", "go build -o {made}/go {peers}/echo.go", peers("{{made}}/go {} {{host}} {{port}}")),
    "Perl, forks": ("perl", "", "perl {folder}/forks.pl {host} {port}"),
    "Java, threads": ("javac", "javac -d {made} {folder}/Echo.java", "java -cp {made} Echo {host} {port}"),
    "Rust, threads": ("rustc", "rustc -O -o {made}/rust {folder}/echo.rs", "{made}/rust {host} {port}"),
}


@contextlib.contextmanager
def honest(name: str, made: pathlib.Path) -> Iterator[int]:
    """Run an honest server, and yield its port. Skip the test when its language isn't installed."""
    needed, build, command = SERVERS[name]
    if shutil.which(needed) is None:
        pytest.skip(f"needs {needed!r}, which isn't on the PATH")
    port = quiet_port()
    words = {"python": sys.executable, "peers": PEERS, "folder": FOLDER, "made": made, "host": LOOPBACK, "port": port}
    if build:
        subprocess.run(build.format(**words), shell=True, check=True, capture_output=True)
    process = subprocess.Popen(command.format(**words), shell=True, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(port)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(port: int) -> None:
    """Wait until a server answers over both transports."""
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as udp:
            socket.create_connection((LOOPBACK, port)).close()
            udp.settimeout(0.2)
            udp.connect((LOOPBACK, port))
            udp.send(b"there?")
            assert udp.recv(100)
            return
    raise AssertionError("it doesn't start")


@pytest.mark.long
@pytest.mark.parametrize("name", list(SERVERS) if RUNS else list(SERVERS)[::6])
def test_honest_server_passes_each_time(name: str, tmp_path: pathlib.Path) -> None:
    with honest(name, tmp_path) as port:
        for _ in range(RUNS or 1):
            report = check(LOOPBACK, port)
            assert report.status == 0, lines(report)
