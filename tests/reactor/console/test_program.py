"""A program ends with everything that it has started."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading

import pytest

from reactor.console import program
from tests.support.basics import PATIENCE_S, PROJECT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems adopt no orphans")
RELAY = "import os\nif os.fork(): os._exit(0)\nos.setsid()\nprint('ready', flush=True)\nwhile os.fork() == 0: pass"
PROGRAMS = {
    "no child": ["sh", "-c", "echo ready; exec sleep 1000"],
    "children": ["sh", "-c", "sleep 1000 & sleep 1000 & echo ready; wait"],
    "a program that has ended": ["sh", "-c", "sleep 1000 & echo ready"],
    "another session": ["sh", "-c", "setsid sleep 1000 & echo ready; wait"],
    "a daemon": ["sh", "-c", "setsid sh -c 'sleep 1000 & sleep 1000 & exit' & wait; echo ready"],
    "a daemon's daemon": ["sh", "-c", "setsid sh -c 'setsid sleep 1000 & exec sleep 1000' & echo ready"],
    "programs that ignore signals": [
        "sh",
        "-c",
        "trap '' HUP INT TERM; setsid sh -c 'echo ready; while :; do sleep 1000; done'",
    ],
    "a relay": [sys.executable, "-c", RELAY],
}


@pytest.mark.skipif(shutil.which("setsid") is None, reason="needs setsid(1)")
@pytest.mark.parametrize("command", PROGRAMS.values(), ids=PROGRAMS)
def test_no_descendant_is_alive_after_the_block(command: list[str]) -> None:
    """Each holds the writing end of a pipe, which ends when all have ended."""
    before = program.children()
    reading, writing = os.pipe()
    with open(reading, "rb") as alive:
        with program.running(command, stdout=subprocess.PIPE, pass_fds=[writing]) as process:
            os.close(writing)
            assert process.stdout is not None
            with process.stdout as out:
                assert out.readline() == b"ready\n"
        overdue = threading.Timer(PATIENCE_S, os._exit, [1])
        overdue.start()
        assert alive.read() == b""
        overdue.cancel()
    assert program.children() == before, "none is a zombie either"


def test_programs_of_an_outer_block_and_other_children_live_on() -> None:
    """This process's own children don't belong to the program."""
    sleep = ["sleep", "1000"]
    with subprocess.Popen(sleep) as other, program.running(sleep) as outer:
        with contextlib.suppress(KeyError), program.running(["true"]):
            raise KeyError
        assert (other.poll(), outer.poll()) == (None, None)
        other.kill()


def test_process_of_another_user_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set-user-ID program can't be killed; that is no reason to wait for it."""

    def refuse(pid: int, signum: int) -> None:
        raise PermissionError

    before = program.children()
    with monkeypatch.context() as patch:
        with program.running(["sh", "-c", "setsid sleep 1000 & echo ready"], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            with process.stdout as out:
                assert out.readline() == b"ready\n"
            patch.setattr(os, "kill", refuse)
        patch.undo()
        [spared] = program.children() - before
        os.kill(spared, 9)
        os.waitpid(spared, 0)


IGNORING = """
import signal, subprocess, sys
from reactor.console import program
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
daemon = ["sh", "-c", "setsid sh -c 'setsid sleep 1000 & exec sleep 1000' & echo ready"]
with program.running(daemon, stdout=subprocess.PIPE) as process:
    assert process.stdout.readline() == b"ready\\n"
print(program.children())
"""


def test_descendants_end_when_sigchld_is_ignored_too() -> None:
    """A parent may have set that; the kernel then reaps for us."""
    command = [sys.executable, "-c", IGNORING]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")
