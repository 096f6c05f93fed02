"""A signal at any moment of the start, from our first line on: one that is handled later neither kills nor is lost."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys

import pytest

from tests.support.basics import PATIENCE_S, PROJECT
from tests.support.daemon import MEASURED, EchoProcess

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="holds signals back")

# Runs `echo7` as `python -m` does, and sends itself a signal at the n-th moment (audit event) after `hold_signals`.
# The variable: only the first process of a service does so, not the next generation or its check.
HARNESS = """
import os, runpy, sys, signal
signum, wanted = int(sys.argv[1]), int(sys.argv[2])
sys.argv[1:3] = []
sys.path.insert(0, os.getcwd())
moments = -1
def at(event, arguments):
    global moments
    if moments >= 0 or (event == "import" and arguments[0] == "echo7.cli"):
        moments += 1
        if moments == wanted and not os.environ.get("SENT"):
            os.environ["SENT"] = "yes"
            os.kill(os.getpid(), signum)
        if event == "socket.bind" and wanted == -1:
            print(moments)
            os._exit(0)
sys.addaudithook(at)
runpy.run_module("echo7", run_name="__main__", alter_sys=True)
"""
SHARES = (0.0, 0.03, 0.2, 0.5, 0.8, 0.99, 1.0)
SOME = [pytest.param(share, marks=[pytest.mark.long] if share in SHARES[1:-1] else []) for share in SHARES]


@functools.cache
def moments_up_to_bind() -> int:
    command = [sys.executable, "-c", HARNESS, "0", "-1", "serve", *MEASURED, "--host", "127.0.0.1", "--port", "0"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    return int(done.stdout)


def harnessed(signum: int, share: float) -> list[str]:
    """Return what Python runs: the moment is at this share of the way to the first bind(2)."""
    return ["-c", HARNESS, str(signum), str(int(share * moments_up_to_bind()))]


@pytest.mark.long
@pytest.mark.parametrize("share", SOME)
@pytest.mark.parametrize(("name", "event"), [("SIGHUP", "restarted"), ("SIGUSR1", "counters"), ("SIGUSR2", "dump")])
def test_signal_during_the_start_is_handled_once_the_service_serves(name: str, event: str, share: float) -> None:
    """Story: in the first 40 ms, SIGHUP and SIGUSR1 killed the service."""
    with EchoProcess(program=harnessed(signal.Signals[name], share), wait=False) as daemon:
        daemon.next_line(event)
        assert daemon.finish() == 0
        assert "listening" in {line["event"] for line in daemon.lines}


@pytest.mark.parametrize("share", SOME)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signal_that_ends_the_start_costs_no_traceback(name: str, share: float) -> None:
    signum = signal.Signals[name]
    command = [sys.executable, *harnessed(signum, share), "serve", *MEASURED, "--host", "127.0.0.1", "--port", "0"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode in (-signum, 128 + signum)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_other_commands_hold_no_signal_back(name: str) -> None:
    signum = signal.Signals[name]
    command = [sys.executable, "-c", HARNESS, str(signum), "5", "check", "serve"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == -signum


def test_ignored_sigint_stays_ignored_during_the_start() -> None:
    """Shells start background jobs like this. The service itself handles SIGINT anyway."""
    command = [sys.executable, *harnessed(signal.SIGINT, 0.5), "--version"]
    done = subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("echo7 ")
