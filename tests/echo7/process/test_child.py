"""Child processes: a forked child never gets into its parent's frames."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import signal
import subprocess
import sys
import types

import pytest

from echo7.process import child
from echo7.process.child import Children, forked
from tests.echo7.process.test_restart import Phoenix
from tests.support.basics import PATIENCE_S, PROJECT, until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork(2)")

FORKS = """
import logging, os, signal, sys, threading
from echo7.logs import log
from echo7.process import StartError
from echo7.process.child import forked

class Lost(logging.Handler):
    def emit(self, record): raise KeyboardInterrupt
    def flush(self): raise RuntimeError("can't start new thread")

def main(): return 0
def refused(self): raise RuntimeError("can't start new thread")
def fails(): raise KeyError("lost")
def ends(): sys.exit(7)
def cannot_start(): raise StartError("no")
def deep(): return deep() + 1
def interrupted(): os.kill(os.getpid(), signal.SIGINT); return 3
logger, parent = logging.getLogger("echo7"), os.getpid()
logger.handlers[:] = [logging.NullHandler()]
{trouble}
try:
    pid = forked("it", main)
finally:
    if os.getpid() != parent:
        print("got into the parent's frames", flush=True)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
COURIER = "log.set_up('info', 'text'); logger.handlers[0]._write = log.Courier(2); threading.Thread.start = refused\n"


CASES = {
    "it returns": ("main = lambda: 3", 3),
    "it returns nothing": ("main = lambda: None", 1),
    "its status is too large": ("main = lambda: 1 << 70", 1),
    "it raises": ("main = fails", 1),
    "it exits": ("main = ends", 1),
    "it can't start": ("main = cannot_start", 1),
    "it recurses": ("main = deep", 1),
    "it is interrupted": ("main = interrupted", 1),
    "the log's flush raises": ("logger.handlers[:] = [Lost()]", 0),
    "the log raises twice": ("logger.handlers[:] = [Lost()]; main = fails", 1),
    "no thread can be started": (COURIER, 0),
    "no thread can be started for its last words": (COURIER + "main = fails", 1),
}


@pytest.mark.long
@pytest.mark.parametrize(("trouble", "status"), CASES.values(), ids=CASES)
def test_child_never_gets_into_the_frames_of_its_parent(trouble: str, status: int) -> None:
    """Story: under a limit of processes, the thread for the last log line couldn't start, and the child went on."""
    command = [sys.executable, "-c", FORKS.format(trouble=trouble)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.stdout.splitlines() == [str(status)], done.stderr


ORPHANS = """
import os, subprocess, sys
from echo7 import cli
if not {"ECHO7_HANDOVER", "ECHO7_CHECK"} & {*os.environ}:
    subprocess.run(["sh", "-c", "sleep 1000 & sleep 1000 &"], check=True)
sys.exit(cli.main(sys.argv[1:]))
"""


class Init(Phoenix):
    """A service as process 1 of a pid namespace, with two orphans of another program."""

    def __init__(self, *arguments: str) -> None:
        super().__init__(*arguments, prefix=namespace(), program=["-c", ORPHANS])

    def inside(self) -> list[int]:
        """The pid of the service, as we see it, and those of its children."""
        [init] = self.children()
        return [init, *children_of(init)]


def namespace() -> list[str]:
    """Return a prefix that makes a command process 1, or skip."""
    new = ["--pid", "--fork", "--kill-child"]
    for prefix in (["unshare", *new], ["unshare", "-r", *new]):
        with contextlib.suppress(OSError):
            if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
                return prefix
    pytest.skip("needs a pid namespace (unshare)")


def children_of(pid: int) -> list[int]:
    return [int(each) for each in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_reaped(pid: int) -> bool:
    return not pathlib.Path("/proc", str(pid)).exists()


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="pid namespaces are for Linux")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_service_as_process_1_reaps_orphans_of_others(workers: str) -> None:
    """Story: in a container they stayed zombies. Before and after a restart."""
    with Init("--workers", workers) as echo:
        init, *children = echo.inside()
        orphans = [pid for pid in children if pathlib.Path(f"/proc/{pid}/comm").read_text() == "sleep\n"]
        assert len(orphans) == 2
        for orphan in orphans:
            os.kill(orphan, signal.SIGKILL)
            until(functools.partial(is_reaped, orphan))
            os.kill(init, signal.SIGHUP)
            echo.next_line("restarted")
        os.kill(init, signal.SIGTERM)
        echo.next_line("stopped")
        assert echo.process.wait(PATIENCE_S) == 0


def test_orphans_are_reaped_by_process_1_only_and_children_in_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A known child that has just ended is left alone: its own reaping reports its status."""
    known, orphan = forked("a child", lambda: 3), forked("an orphan", lambda: 4)
    for pid in (known, orphan):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    codes: list[int] = []
    children = Children()
    children.add(known, codes.append, stream=False)
    children.reap()
    assert (codes, is_reaped(orphan)) == ([3], False)
    looks = iter([types.SimpleNamespace(si_pid=orphan), None])
    monkeypatch.setattr(child, "INIT", os.getpid())
    monkeypatch.setattr(os, "waitid", lambda *what: next(looks))
    children.reap()
    assert is_reaped(orphan)
