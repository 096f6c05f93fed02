"""System calls that Python lacks, through the C library."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable

from reactor.sockets.errors import os_error

# prctl(2)
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38


class Kernel:
    """Calls functions of the C library with integers. Its methods raise OSError as those of `os` do."""

    __slots__ = ("_prctl", "_syscall")

    def __init__(self) -> None:
        """Raise OSError or AttributeError where there are no such functions."""
        library = ctypes.CDLL(None, use_errno=True)
        self._syscall, self._prctl = library.syscall, library.prctl

    def syscall(self, number: int, *arguments: int) -> int:
        """Call by number (syscall(2)). A pointer is an address."""
        return _called(self._syscall, number, *arguments)

    def prctl(self, option: int, *arguments: int) -> int:
        """Change this process (prctl(2))."""
        return _called(self._prctl, option, *arguments)

    def protect(self) -> None:
        """Forbid programs started from here to gain privileges, and processes of the same user to trace this one.

        A process may be traced again after exec(2) (PR_SET_DUMPABLE). A kernel that lacks one of the two ignores it.
        """
        for option, value in ((PR_SET_NO_NEW_PRIVS, 1), (PR_SET_DUMPABLE, 0)):
            with contextlib.suppress(OSError):
                self.prctl(option, value, 0, 0, 0)


def _called(function: Callable[..., int], *arguments: int) -> int:
    # C's `...`: each argument has a whole register
    result = function(*map(ctypes.c_long, arguments))
    if result == -1:
        raise os_error(ctypes.get_errno())
    return result
