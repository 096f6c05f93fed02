"""Run a program, and end it with everything that it has started.

Law: after the block no descendant of the program is alive, not even one that has left its process group and session as
daemons do. On Linux this process adopts the program's orphans meanwhile (PR_SET_CHILD_SUBREAPER in prctl(2)).
Elsewhere only the process group ends. Any other process that is started inside the block must end before the block
does. Blocks may be nested.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37


@contextlib.contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program while the block lasts, in a session of its own; `options` are those of Popen. Raise OSError."""
    before = children()
    with _adopting_orphans():
        process = subprocess.Popen(command, start_new_session=True, **options)  # noqa: S603  (the caller's own)
        try:
            yield process
        finally:
            _kill_group(process)
            process.wait()
            _kill_until_none_is_left(before)


def children() -> set[int]:
    """Return the pids of this process's children (proc(5)); none where the system doesn't list them."""
    found: set[int] = set()
    for path in pathlib.Path("/proc/self/task").glob("*/children"):
        # the thread may have ended
        with contextlib.suppress(OSError):
            found.update(map(int, path.read_text().split()))
    return found


@contextlib.contextmanager
def _adopting_orphans() -> Iterator[None]:
    if sys.platform != "linux":  # pragma: no cover - other systems have nothing like it
        yield
        return
    prctl, before = ctypes.CDLL(None).prctl, ctypes.c_int()
    prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    if not hasattr(os, "killpg"):  # pragma: no cover - Windows has no process groups
        process.kill()
        return
    # ProcessLookupError: all have ended. PermissionError: what is left belongs to another user.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _kill_until_none_is_left(before: set[int]) -> None:
    """Kill orphans. The children of each become ours."""
    spared = set(before)
    while found := children() - spared:
        for pid in found:
            try:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            except PermissionError:
                # a program with another user's rights (set-user-ID): only root could end it
                spared.add(pid)
            else:
                # ChildProcessError: our own parent has made us ignore SIGCHLD, so the kernel has reaped it
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
