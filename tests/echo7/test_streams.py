"""Commands whose standard streams are closed, full or broken: no traceback, no hang, and the right status."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.support.basics import PATIENCE_S, PROJECT
from tests.support.commands import Done
from tests.support.echo import EchoThread

pty = pytest.importorskip("pty")
termios = pytest.importorskip("termios")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform == "win32", reason="descriptors are inherited otherwise there"),
]

# Each closes its part of 0, 1, 2: together every pair of states of two descriptors.
CLOSED = [(1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
ECHO7, LESSONS, PLAYER = ("-m", "echo7"), ("-m", "reactor.lessons"), ("-m", "reactor.player")
# name → the command; PORT stands for a server's
COMMANDS: dict[str, Sequence[str]] = {
    "check": (*ECHO7, "check", "127.0.0.1", "--port", "PORT", "--only", "udp-0"),
    "check json": (*ECHO7, "check", "127.0.0.1", "--port", "PORT", "--only", "udp-0", "--json"),
    "check list": (*ECHO7, "check", "--list"),
    "ping": (*ECHO7, "ping", "127.0.0.1", "--port", "PORT", "-c", "1"),
    "help": (*ECHO7, "--help"),
    "version": (*ECHO7, "--version"),
    "lessons": LESSONS,
    "source": (*LESSONS, "2", "--source"),
    "lessons help": (*LESSONS, "--help"),
    "player": (*PLAYER, "--gallery", "-o", "-"),
}
USAGE = (*ECHO7, "serve", "--prot")
LOST = {"ping": 74}
NO_READER = {"ping": 128 + signal.SIGPIPE}


@pytest.fixture(scope="module")
def port() -> Iterator[str]:
    with EchoThread() as server:
        yield str(server.port)


def run(command: Sequence[str], port: str, closed: Sequence[int] = (), **streams: Any) -> Done:
    def close() -> None:
        for number in closed:
            os.close(number)

    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | streams
    words = [port if word == "PORT" else word for word in command]
    return subprocess.run(
        [sys.executable, *words], cwd=PROJECT, text=True, preexec_fn=close, timeout=PATIENCE_S, check=False, **streams
    )


# a covering choice: every command, every set; all pairs are a long test
PAIRS = list(zip(COMMANDS, itertools.cycle(CLOSED), strict=False))
ALL = [
    pytest.param(name, closed, marks=[] if (name, closed) in PAIRS or closed == (1,) else pytest.mark.long)
    for name, closed in itertools.product(COMMANDS, CLOSED)
]


@pytest.mark.parametrize(("name", "closed"), ALL)
def test_closed_streams_are_as_dev_null(name: str, closed: tuple[int, ...], port: str) -> None:
    """Story: `check >&-` ended in AttributeError, and `check 2>&-` hung."""
    done = run(COMMANDS[name], port, closed)
    assert done.returncode == 0
    assert done.stderr == ""
    assert (done.stdout == "") == (1 in closed)


@pytest.mark.parametrize("closed", CLOSED, ids=str)
def test_usage_error_keeps_its_status_with_streams_closed(closed: tuple[int, ...], port: str) -> None:
    assert run(USAGE, port, closed).returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
def test_full_disk_costs_one_line_and_a_status(name: str, buffered: bool, port: str) -> None:
    """Story: `--help >/dev/full` exited 0."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    with open("/dev/full", "w") as full:
        done = run(COMMANDS[name], port, stdout=full, env=environment)
    assert done.returncode == LOST.get(name, 1)
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_reader_that_has_gone_is_no_error(name: str, port: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run(COMMANDS[name], port, stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (NO_READER.get(name, 0), "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
@pytest.mark.parametrize(("name", "status"), [("check", 0), ("usage", 2), ("player", 0)])
def test_stderr_on_a_full_disk_changes_no_status(name: str, status: int, port: str) -> None:
    with open("/dev/full", "w") as full:
        done = run(COMMANDS.get(name, USAGE), port, stderr=full)
    assert done.returncode == status


# ---------------------------------------------------------------- terminals


def on_terminal(command: Sequence[str], port: str, columns: int, **environment: str) -> bytes:
    """Run a command with stdout and stderr on a terminal of this width; return what it writes."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, columns))
    shown = bytearray()
    words = [port if word == "PORT" else word for word in command]
    with subprocess.Popen(
        [sys.executable, *words], cwd=PROJECT, stdout=its, stderr=its, stdin=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", **environment},
    ) as process:  # fmt: skip
        os.close(its)
        # EIO: the last process has closed it
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 1 << 16):
                shown += piece
        os.close(ours)
        assert process.wait(PATIENCE_S) == 0
    return bytes(shown)


LIVE = {
    "check": (*ECHO7, "check", "127.0.0.1", "--port", "PORT", "--only", "udp-0", "tcp-half-close", "udp-largest"),
    "ping": (*ECHO7, "ping", "127.0.0.1", "--port", "PORT", "-q", "-c", "3", "-i", "0.2"),
}


@pytest.mark.parametrize("columns", [20, 40, 60])
@pytest.mark.parametrize("name", LIVE)
def test_live_line_fits_into_one_row(name: str, columns: int, port: str) -> None:
    """Story: at 40 and 60 columns a longer line was wrapped, and each update left a row behind."""
    shown = on_terminal(LIVE[name], port, columns).decode()
    rows = [row for line in shown.split("\n") for row in line.split("\r") if row.endswith(("…", "\x1b[K"))]
    assert rows
    assert max(len(row.replace("\x1b[K", "")) for row in rows) < columns


@pytest.mark.parametrize("term", ["dumb", ""])
@pytest.mark.parametrize("name", LIVE)
def test_dumb_terminal_gets_no_escapes(name: str, term: str, port: str) -> None:
    assert b"\x1b" not in on_terminal(LIVE[name], port, 80, TERM=term)


def test_no_color_leaves_colours_out(port: str) -> None:
    assert b"\x1b[32m" in on_terminal(LIVE["check"], port, 80)
    assert b"\x1b[32m" not in on_terminal(LIVE["check"], port, 80, NO_COLOR="1")
