"""Landlock: what a process may do with files, TCP ports and signals (landlock(7)).

A ruleset names the rights that it handles. The process loses these, except where a rule gives them back. Open
files stay open.
Each version of the kernel's interface added rights, and a kernel refuses the names of rights that it doesn't know.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence
from typing import NamedTuple

from echo7.process.sandbox.kernel import Kernel

# The same numbers on every processor.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
CREATE_RULESET_VERSION, RULE_PATH_BENEATH = 1, 1

# Rights about files. Those of version 1 are the bits 0 to 12.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = (1 << bit for bit in range(4))
FIRST_FILE_RIGHTS = (1 << 13) - 1
# Version → the right that it added: REFER (rename to another folder), TRUNCATE, IOCTL_DEV.
LATER_FILE_RIGHTS = {2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
TRUNCATE, IOCTL_DEV = LATER_FILE_RIGHTS[3], LATER_FILE_RIGHTS[5]
FOR_READING = EXECUTE | READ_FILE | READ_DIR | IOCTL_DEV
FOR_WRITING = WRITE_FILE | TRUNCATE

NETWORK_VERSION, BIND_TCP, CONNECT_TCP = 4, 1, 2
SCOPE_VERSION, ABSTRACT_UNIX_SOCKETS, SIGNALS = 6, 1, 2


class Ruleset(ctypes.Structure):
    """struct landlock_ruleset_attr. Earlier versions have only the first fields."""

    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class PathBeneath(ctypes.Structure):
    """struct landlock_path_beneath_attr."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version(kernel: Kernel) -> int:
    """Return the version of the kernel's interface, or 0."""
    with contextlib.suppress(OSError):
        return kernel.syscall(CREATE_RULESET, 0, 0, CREATE_RULESET_VERSION)
    return 0


class Taken(NamedTuple):
    """The rights to take away: about TCP ports, about other processes, and all about files except `kept`.

    The files in `written` may still be written.
    """

    network: int = BIND_TCP | CONNECT_TCP
    scopes: int = ABSTRACT_UNIX_SOCKETS | SIGNALS
    kept: int = 0
    written: Sequence[str] = ()


def restrict(kernel: Kernel, taken: Taken) -> int:
    """Take rights from this thread, permanently. Return the version of the interface, or 0 if that is impossible."""
    found = version(kernel)
    every = FIRST_FILE_RIGHTS | sum(right for since, right in LATER_FILE_RIGHTS.items() if found >= since)
    ruleset = Ruleset(every & ~taken.kept, taken.network, taken.scopes)
    size = 8 + 8 * (found >= NETWORK_VERSION) + 8 * (found >= SCOPE_VERSION)
    # no Landlock, a filter around this process, or too many layers
    with contextlib.suppress(OSError):
        descriptor = kernel.syscall(CREATE_RULESET, ctypes.addressof(ruleset), size, 0)
        try:
            for path in taken.written:
                _allow(kernel, descriptor, path, every & FOR_WRITING)
            kernel.syscall(RESTRICT_SELF, descriptor, 0)
        finally:
            os.close(descriptor)
        return found
    return 0


def _allow(kernel: Kernel, ruleset: int, path: str, rights: int) -> None:
    # The file may be missing, or nothing that Landlock handles, such as a pipe.
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            rule = PathBeneath(rights, descriptor)
            kernel.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, ctypes.addressof(rule), 0)
        finally:
            os.close(descriptor)
