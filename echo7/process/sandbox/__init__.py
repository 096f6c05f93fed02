"""`--sandbox`: take away from a process, permanently, what it doesn't need.

Law: an attacker who controls a process can do what the process may do, so that must be little. A process that only
serves (a worker, a previous generation) keeps its open sockets and nothing else. The process in charge must be able to
become another program at a restart, so it may read files and run programs, which inherit its restrictions.

| file | what |
|---|---|
| `kernel.py` | the system calls that Python lacks |
| `landlock.py` | no file, no TCP connection, no signal to others (landlock(7)) |
| `seccomp.py`, `calls.py` | which system calls are answered at all (seccomp(2)) |
| `linux.py` | what each kind of process gets of both |
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from echo7.logs import log
from echo7.process import StartError

if TYPE_CHECKING:
    from echo7.process.sandbox.linux import Linux

AUTO, REQUIRE, OFF = MODES = ("auto", "require", "off")

logger = logging.getLogger("echo7")


class Held(NamedTuple):
    """What restricts a process: the version of Landlock (0: none), and whether it has a seccomp filter."""

    landlock: int = 0
    seccomp: bool = False

    @property
    def lacks(self) -> str:
        """Name what is missing."""
        return " and no ".join(name for name, holds in zip(("Landlock", "seccomp"), self, strict=True) if not holds)

    def __str__(self) -> str:
        """Say what restricts the process, then what is missing."""
        names = [f"Landlock {self.landlock}"] * bool(self.landlock) + ["seccomp"] * self.seccomp
        holds = f"restricted by {' and '.join(names)}" if names else "not restricted"
        return holds + (f"; this system has no {self.lacks}" if self.lacks else "")


class Sandbox:
    """The restrictions of one process. Make it before privileges are dropped, because it may import modules."""

    __slots__ = ("_mode", "_system")

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._system: Linux | None = None
        # imported only where it may be used
        if mode != OFF and sys.platform == "linux":
            # a Python without ctypes, or a C library without prctl
            with contextlib.suppress(ImportError, OSError, AttributeError):
                from echo7.process.sandbox.linux import Linux

                self._system = Linux()

    def restrict_in_charge(self, written: Iterable[str], children: bool) -> None:
        """Restrict the process in charge, and log what restricts it. Raise StartError.

        It may still write to the files in `written`. With `children`, it may still signal earlier generations.
        """
        if self._mode == OFF:
            return
        held = Held() if self._system is None else self._system.restrict_in_charge(written, children)
        self._check(held)
        log.event(logger, logging.INFO, "sandbox", str(held), landlock=held.landlock, seccomp=held.seccomp)

    def restrict_serving(self) -> None:
        """Restrict a process that only serves to its open sockets. Raise StartError."""
        if self._mode != OFF:
            self._check(Held() if self._system is None else self._system.restrict_serving(os.getpid()))

    def _check(self, held: Held) -> None:
        if self._mode == REQUIRE and held.lacks:
            raise StartError(
                f"cannot restrict this process: this system has no {held.lacks}; use one that has, or --sandbox auto"
            )
