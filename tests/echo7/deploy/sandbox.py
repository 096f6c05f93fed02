"""Become another program under the filters of a unit, as systemd makes them.

    python -m tests.echo7.deploy.sandbox JSON PROGRAM …

The JSON object has `calls`, the names of the system calls that are allowed (all others get `errno`), `families`, those
that socket(2) may be asked for, and `no_new_code`: memory is never executable that was writable.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000  # SCMP_ACT_…
EQUAL, MASKED_EQUAL = 4, 7  # SCMP_CMP_…
PROT_WRITE, PROT_EXEC = 2, 4
FAMILIES = 46  # more than exist


class Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def library() -> Any:
    """Return libseccomp. Raise OSError if it is missing."""
    found = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    found.seccomp_init.restype = ctypes.c_void_p
    for name in ("seccomp_load", "seccomp_release"):
        getattr(found, name).argtypes = [ctypes.c_void_p]
    found.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Comparison)
    ]  # fmt: skip
    return found


class Filter:
    """One seccomp filter."""

    def __init__(self, default: int) -> None:
        self._library = library()
        self._context = self._library.seccomp_init(default)
        assert self._context

    def add(self, action: int, name: str, *comparisons: tuple[int, int, int, int]) -> None:
        """Set the action for a call with such arguments. Ignore a call that this processor lacks."""
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            array = (Comparison * len(comparisons))(*(Comparison(*each) for each in comparisons))
            done = self._library.seccomp_rule_add_array(self._context, action, number, len(comparisons), array)
            assert done == 0, (name, os.strerror(-done))

    def load(self) -> None:
        """Apply the filter to this process and its children, permanently."""
        done = self._library.seccomp_load(self._context)
        assert done == 0, os.strerror(-done)


def enter(calls: Sequence[str], families: Sequence[int], no_new_code: bool, refusal: int) -> None:
    """Load the filters; that of the calls last, because it may forbid the others."""
    sockets = Filter(ALLOW)
    for family in set(range(FAMILIES)) - set(families):
        sockets.add(ERRNO | errno.EAFNOSUPPORT, "socket", (0, EQUAL, family, 0))
    sockets.load()
    if no_new_code:
        code = Filter(ALLOW)
        both = PROT_WRITE | PROT_EXEC
        code.add(ERRNO | errno.EPERM, "mmap", (2, MASKED_EQUAL, both, both))
        for name in ("mprotect", "pkey_mprotect"):
            code.add(ERRNO | errno.EPERM, name, (2, MASKED_EQUAL, PROT_EXEC, PROT_EXEC))
        code.load()
    main = Filter(refusal)
    for name in calls:
        main.add(ALLOW, name)
    main.load()


if __name__ == "__main__":
    what = json.loads(sys.argv[1])
    enter(what["calls"], what["families"], what["no_new_code"], ERRNO | what["errno"] if what["errno"] else KILL)
    os.execv(sys.argv[2], sys.argv[2:])
