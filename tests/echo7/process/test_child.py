"""Child processes: a forked child never gets into its parent's frames."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.basics import PATIENCE_S, PROJECT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork(2)")

FORKS = """
import logging, os, signal, sys, threading
from echo7.logs import log
from echo7.process.child import forked

class Lost(logging.Handler):
    def emit(self, record): raise KeyboardInterrupt
    def flush(self): raise RuntimeError("can't start new thread")

def main(): return 0
def refused(self): raise RuntimeError("can't start new thread")
def fails(): raise KeyError("lost")
def ends(): sys.exit(7)
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
    "it recurses": ("main = deep", 1),
    "it is interrupted": ("main = interrupted", 1),
    "the log's flush raises": ("logger.handlers[:] = [Lost()]", 0),
    "the log raises twice": ("logger.handlers[:] = [Lost()]; main = fails", 1),
    "no thread can be started": (COURIER, 0),
    "no thread can be started for its last words": (COURIER + "main = fails", 1),
}


@pytest.mark.parametrize(("trouble", "status"), CASES.values(), ids=CASES)
def test_child_never_gets_into_the_frames_of_its_parent(trouble: str, status: int) -> None:
    """Story: under a limit of processes, the thread for the last log line couldn't start, and the child went on."""
    command = [sys.executable, "-c", FORKS.format(trouble=trouble)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.stdout.splitlines() == [str(status)], done.stderr
