"""The real service under its restrictions: everything works, and an attacker who controls a process can do little."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator

import pytest

from tests.echo7.process.test_restart import Phoenix
from tests.support.basics import PATIENCE_S, PROJECT, until
from tests.support.clients import echo_and_close, receive_exactly
from tests.support.daemon import MEASURED, METRICS_PACKAGES, EchoProcess, Installation

if sys.platform != "linux":
    pytest.skip("only Linux has Landlock and seccomp", allow_module_level=True)

from tests.echo7.process.sandbox import attacks
from tests.echo7.process.sandbox.test_restrictions import COMPLETE, version

pytestmark = pytest.mark.long

if not version():
    pytest.skip("this kernel has no Landlock for us", allow_module_level=True)

HOST = ("--host", "127.0.0.1")
OBEY = f"from {attacks.__name__} import take_over; take_over()"
METRICS = all(importlib.util.find_spec(name) for name in METRICS_PACKAGES)


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restricted process can't write what coverage has measured."""
    for name in [name for name in os.environ if name.startswith("COVERAGE_")]:
        monkeypatch.delenv(name)


# ---------------------------------------------------------------- an attacker controls a process


def attack(client: socket.socket, name: str) -> str:
    """Let the process that serves this client attack; return the result."""
    client.sendall(name.encode())
    return client.recv(100).decode()


@pytest.fixture
def victim(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    path = tmp_path / "victim"
    path.write_text("x")
    monkeypatch.setenv("VICTIM", str(path))
    return path


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["single", "workers"])
def test_process_that_is_taken_over_can_do_nothing_but_serve(workers: tuple[str, ...], victim: pathlib.Path) -> None:
    """Before a restart and after it. A process in charge may read files and run programs, to restart."""
    if version() < COMPLETE:
        pytest.skip(f"Landlock has version {version()} here, and {COMPLETE} is needed for all of it")
    alone = attacks.EVERY if workers else attacks.ALWAYS
    with Phoenix(*workers, "--sandbox", "require", code=OBEY) as echo:
        echo.wait_until_ready()
        with echo.connect() as before:
            found = {name: attack(before, name) for name in alone}
            assert {name: result for name, result in found.items() if result not in attacks.REFUSALS} == {}
            echo.restart()
            with echo.connect() as after:
                for client, expected in ((before, attacks.EVERY), (after, alone)):
                    found = {name: attack(client, name) for name in expected}
                    assert {name: result for name, result in found.items() if result not in attacks.REFUSALS} == {}
        assert echo.finish() == 0
    assert len(echo.restrictions) == 2
    assert victim.read_text() == "x"
    assert [path.name for path in victim.parent.iterdir()] == ["victim"]


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["single", "workers"])
def test_error_in_a_restricted_process_is_logged_with_its_traceback(
    workers: tuple[str, ...], victim: pathlib.Path
) -> None:
    """Python reads a module for its first traceback, and looks for the source, which it can't read."""
    with Phoenix(*workers, code=OBEY) as echo:
        echo.wait_until_ready()
        with echo.connect() as before:
            before.sendall(b"hello")
            assert receive_exactly(before, 5) == b"hello"
            echo.restart()
            with echo.connect() as after:
                for client in (before, after):
                    client.sendall(b"raise")
                    said = echo.next_line("callback_raised")["message"]
                    assert said.endswith("RuntimeError: an error of the program")
                    assert "Traceback (most recent call last):" in said
                    assert "in obey" in said
        assert echo.finish() == 0


def restricted(pid: int) -> tuple[int, int, bool]:
    """Return how many filters a process has, its set of new privileges, and whether its user can't trace it."""
    folder = pathlib.Path(f"/proc/{pid}")
    status = dict(line.split(":\t") for line in (folder / "status").read_text().splitlines())
    # proc(5): the files of such a process are root's
    return int(status["Seccomp_filters"]), int(status["NoNewPrivs"]), (folder / "environ").stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("sandbox", ["auto", "off"])
@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["single", "workers"])
def test_restarts_add_no_layer_and_leave_no_process_traceable(
    workers: tuple[str, ...], sandbox: str, installation: Installation
) -> None:
    """exec(2) makes a process of another user than root traceable again."""
    options = [*HOST, *workers, "--user", "4711:4711", "--sandbox", sandbox]
    filters = 0 if sandbox == "off" else 1
    with Phoenix(*options, installation=installation) as echo:
        for _ in range(3):
            assert restricted(echo.process.pid) == (filters, 1, True)
            with echo.connect() as client:
                client.sendall(b"x")
                assert receive_exactly(client, 1) == b"x"
                pids = children(echo.process.pid)
                assert len(pids) == (2 if workers else 0)
                assert {restricted(pid) for pid in pids} <= {(2 * filters, 1, True)}
                echo.restart()
                if not workers:
                    (left,) = children(echo.process.pid)
                    until(functools.partial(is_restricted, left, 2 * filters))
            until(lambda: len(children(echo.process.pid)) == (2 if workers else 0))
        assert echo.finish() == 0


def is_restricted(pid: int, filters: int) -> bool:
    return restricted(pid) == (filters, 1, True)


def children(pid: int) -> list[int]:
    return [int(text) for text in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(bool(MEASURED), reason="coverage can't write its figures in a restricted process")
def test_restart_cannot_lift_a_restriction(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "echo7.toml"
    file.write_text("")
    with Phoenix("--config", str(file)) as echo:
        file.write_text('sandbox = "off"')
        assert "--sandbox was auto and is now off: that needs a restart" in echo.refuses()
        assert echo.finish() == 0


def test_trace_in_another_place_is_left_out_after_a_restart(tmp_path: pathlib.Path) -> None:
    """A restricted process can't make a file."""
    file = tmp_path / "echo7.toml"
    file.write_text("")
    with Phoenix("--sandbox", "require", "--config", str(file)) as echo:
        file.write_text(f'trace = "{tmp_path}/trace.jsonl"')
        echo.restart()
        (line,) = [line for line in echo.lines if line["event"] == "left_out"]
        assert "Permission denied" in line["message"]
        echo.answers()
        assert echo.finish() == 0


# ---------------------------------------------------------------- everything else goes on


def covering(factors: dict[str, list[tuple[str, ...]]]) -> Iterator[list[tuple[str, ...]]]:
    """Yield combinations of one value of each factor, so that every pair of values of two factors is in one of them."""
    values = list(factors.values())
    indexes = [range(len(each)) for each in values]
    wanted = {
        ((one, first), (other, second))
        for one, other in itertools.combinations(range(len(values)), 2)
        for first in indexes[one]
        for second in indexes[other]
    }

    def pairs(row: tuple[int, ...]) -> set[tuple[tuple[int, int], tuple[int, int]]]:
        found = itertools.combinations(enumerate(row), 2)
        return {(first, second) for first, second in found} & wanted

    every = list(itertools.product(*indexes))
    while wanted:
        best = max(every, key=lambda row: len(pairs(row)))
        wanted -= pairs(best)
        yield [each[index] for each, index in zip(values, best, strict=True)]


FACTORS: dict[str, list[tuple[str, ...]]] = {
    "sandbox": [("--sandbox", "require"), ("--sandbox", "auto"), ("--sandbox", "off")],
    "processes": [(), ("--workers", "2"), ("--trace", "FILE.jsonl"), ("--trace", "FILE.json"), ("--narrate",)],
    "user": [(), ("--user", "4711:4711")] if os.geteuid() == 0 else [()],
    "metrics": [(), ("--metrics", "localhost:0")] if METRICS else [()],
    "paths": [(), ("--plain",), ("--busy-poll", "50")],
    # other machines may come, so a full server makes room
    "hosts": [("--host", "127.0.0.1", "--port", "0"), ("--host", "0.0.0.0", "--port", "0")],
    "limits": [
        (),
        ("--idle-timeout", "60", "--udp-rate", "1000"),
        ("--allow", "127.0.0.0/8", "--udp-rate-total", "9"),
        ("--keep-silent", "--answer-loops", "--socket-buffer", "65536", "--max-connections", "100"),
    ],
    "watch": [(), ("--slow-callback", "500")],
    "log": [("--log-level", "info"), ("--log-level", "debug")],
}
ROWS = [list(itertools.chain(*row)) for row in covering(FACTORS)]


@pytest.mark.parametrize("options", ROWS, ids=" ".join)
def test_everything_works_with_and_without_restrictions(
    options: list[str], request: pytest.FixtureRequest, packages: str
) -> None:
    """Bulk and small data, datagrams, counters, dump, metrics, trace and narration; restarts; the end."""
    user = "--user" in options
    with tempfile.TemporaryDirectory() as folder:
        if user:
            os.chown(folder, 4711, 4711)
        options = [each.replace("FILE", f"{folder}/trace") for each in options]
        where = request.getfixturevalue("installation") if user else None
        with Phoenix(*options, where=(), installation=where, env={**os.environ, "PYTHONPATH": packages}) as echo:
            everything(echo, options)
            with echo.connect() as client:
                client.sendall(b"before")
                assert receive_exactly(client, 6) == b"before"
                echo.restart()
                client.sendall(b"after")
                assert receive_exactly(client, 5) == b"after"
            everything(echo, options)
            assert echo.finish() == 0
        assert [b"turn" in path.read_bytes() for path in pathlib.Path(folder).iterdir()] == (
            [True] if "--trace" in options else []
        )
    assert {line["event"] for line in echo.lines if line["level"] not in ("info", "debug")} <= {"serving_as_root"}


def everything(echo: EchoProcess, options: list[str]) -> None:
    data = bytes(range(256)) * 4096
    assert echo_and_close(echo.connect(), data) == data
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE_S)
        client.connect(("127.0.0.1", echo.port))
        client.send(b"datagram")
        assert client.recv(100) == b"datagram"
    echo.process.send_signal(signal.SIGUSR1)
    assert echo.next_line("counters")["log_lines_dropped"] == 0
    echo.process.send_signal(signal.SIGUSR2)
    assert "handlers" in echo.next_line("dump")["message"]
    if "--metrics" in options:
        address = [line for line in echo.lines if line["event"] == "metrics"][-1]["message"].split()[-1]
        with urllib.request.urlopen(address, timeout=PATIENCE_S) as answer:
            assert b"echo7_connections_total" in answer.read()


def log_ends(kind: str, folder: pathlib.Path) -> tuple[int, int]:
    """Return two descriptors: what is written to the second can be read from the first."""
    if kind == "file":
        writing = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return os.open(folder / "log", os.O_RDONLY), writing
    if kind == "socket":
        one, other = socket.socketpair()
        return one.detach(), other.detach()
    return os.openpty() if kind == "terminal" else os.pipe()


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("kind", ["pipe", "file", "socket", "terminal"])
@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["single", "workers"])
def test_log_continues_in_every_kind_of_file(
    kind: str, form: str, workers: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    """A restart opens a pipe or a terminal anew, for writing."""
    reading, writing = log_ends(kind, tmp_path)
    os.set_blocking(reading, False)
    said = bytearray()

    def heard(word: bytes) -> bool:
        with contextlib.suppress(BlockingIOError):
            said.extend(os.read(reading, 65_536))
        return word in said

    options = [*HOST, "--port", "0", "--sandbox", "require", "--log-format", form, *workers]
    with subprocess.Popen([sys.executable, "-m", "echo7", "serve", *options], cwd=PROJECT, stderr=writing) as process:
        try:
            until(lambda: heard(b"listening on udp"))
            for signum, word in (
                (signal.SIGHUP, b"restarted; "),
                (signal.SIGUSR2, b"what the loop has"),
                (signal.SIGTERM, b"stopped: "),
            ):
                said.clear()
                process.send_signal(signum)
                until(functools.partial(heard, word))
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
    os.close(reading)
    os.close(writing)


def test_require_without_the_kernels_help_ends_with_one_line_and_status_1() -> None:
    code = "from echo7.process.sandbox import linux; linux.PROCESSORS = {}"
    with Phoenix("--sandbox", "require", code=code, wait=False) as echo:
        assert echo.next_line("start_failed")["message"] == (
            "cannot restrict this process: this system has no seccomp; use one that has, or --sandbox auto"
        )
        assert echo.process.wait(PATIENCE_S) == 1
        assert len(echo.lines) == 1
    assert echo.restrictions == []


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["single", "workers"])
def test_require_without_help_for_a_process_that_only_serves_is_one_line(workers: tuple[str, ...]) -> None:
    """Linux allows 16 layers of Landlock; the process in charge may have got the last one."""
    code = "from echo7.process.sandbox import Held, linux; linux.Linux.restrict_serving = lambda self, pid: Held(7)"
    with Phoenix("--sandbox", "require", *workers, code=code, wait=False) as echo:
        if not workers:
            echo.wait_until_ready()
            echo.process.send_signal(signal.SIGHUP)
        line = echo.next_line("start_failed")
        assert (line["level"], "this system has no seccomp" in line["message"]) == ("error", True)
        echo.next_line("failed" if workers else "restarted")
        assert echo.finish() == (1 if workers else 0)
