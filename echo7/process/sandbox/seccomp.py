"""seccomp: a filter, in the kernel's own small language (BPF), that decides for each system call (seccomp(2)).

    is it another processor's call?   refuse
    number == 45?                     allow
    number == 62?                     argument 0 == 4711? allow, else refuse
    …
    else                              what the filter says of all others

Law: a filter looks at numbers only, because a pointer may mean something else by the time the kernel reads it. A call
whose arguments are in memory (clone3) can't be checked, so it is said not to exist; the C library then uses the older
one. A refusal is EPERM.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from echo7.process.sandbox.calls import NEWEST, NUMBERS, PROCESSORS
from echo7.process.sandbox.kernel import Kernel

# struct sock_filter: code, jump if true, jump if false, constant
Instruction = tuple[int, int, int, int]
LOAD, EQUAL, AT_LEAST, AND, JUMP, RETURN = 0x20, 0x15, 0x35, 0x54, 0x05, 0x06
# of struct seccomp_data; the low half of an argument comes first on these processors
NUMBER, PROCESSOR, ARGUMENTS = 0, 4, 16
ARGUMENT_BYTES = 8

ALLOW, ERROR = 0x7FFF0000, 0x00050000
REFUSE, UNKNOWN = ERROR | errno.EPERM, ERROR | errno.ENOSYS
# The numbers of the calls with 32-bit pointers (x32) begin here.
X32_BIT = 0x4000_0000

# its own numbers, by processor
SECCOMP = (317, 277)
SET_MODE_FILTER = 1
# for every thread; without a mitigation of Spectre, which is slow, and is for programs that run others' code
FLAG_TSYNC, FLAG_SPEC_ALLOW = 1, 4


class Argument(NamedTuple):
    """A condition: the low half of argument `place`, masked, is one of `values`, or is none of them."""

    place: int
    values: tuple[int, ...]
    mask: int = 0xFFFF_FFFF
    wanted: bool = True


# An action, or what must hold for a call to be allowed: all conditions of one row.
Rule = int | Sequence[Sequence[Argument]]


def program(processor: str, rules: Mapping[str, Rule], others: int, question: int = 0, answer: int = 0) -> bytes:
    """Return a filter: `rules` by name, and the action for all other calls.

    With a `question`, the filter gives `answer` as the error of prctl(question).
    """
    column, token = PROCESSORS[processor]
    found = [
        (LOAD, 0, 0, PROCESSOR), (EQUAL, 1, 0, token), _return(REFUSE),
        (LOAD, 0, 0, NUMBER), (AT_LEAST, 0, 1, X32_BIT), _return(REFUSE),
        (AT_LEAST, 0, 1, NEWEST + 1), _return(UNKNOWN),
    ]  # fmt: skip
    for name, rule in rules.items():
        found += _for_call(NUMBERS[name][column], [_return(rule)] if isinstance(rule, int) else _checked(rule))
    if question:
        known = [(LOAD, 0, 0, ARGUMENTS), (EQUAL, 0, 1, question), _return(ERROR | answer), _return(ALLOW)]
        found += _for_call(NUMBERS["prctl"][column], known)
    return b"".join(struct.pack("=HBBI", *each) for each in [*found, _return(others)])


def _for_call(number: int | None, body: list[Instruction]) -> list[Instruction]:
    """Return instructions for one call; `body` must end it. None for a call that the processor doesn't have."""
    return [] if number is None else [(EQUAL, 0, len(body), number), *body]


def _return(action: int) -> Instruction:
    return (RETURN, 0, 0, action)


def _checked(rows: Sequence[Sequence[Argument]]) -> list[Instruction]:
    """Return instructions that allow or refuse the call. They end it in any case."""
    return [*(each for row in rows for each in _row(row)), _return(REFUSE)]


def _row(conditions: Sequence[Argument]) -> list[Instruction]:
    """Return instructions that allow the call, or jump behind themselves."""
    found = [_return(ALLOW)]
    for place, values, mask, wanted in reversed(conditions):
        tests: list[Instruction] = [(LOAD, 0, 0, ARGUMENTS + ARGUMENT_BYTES * place), (AND, 0, 0, mask)]
        for left, value in zip(range(len(values) - 1, -1, -1), values, strict=True):
            # over the other values, and over the jump if this value is wanted
            tests.append((EQUAL, left + wanted, 0 if wanted or left else 1, value))
        found = [*tests, (JUMP, 0, 0, len(found)), *found]
    return found


def load(kernel: Kernel, processor: str, filtered: bytes) -> bool:
    """Put a filter on every thread of this process, permanently. Return False if the kernel can't."""
    memory = ctypes.create_string_buffer(filtered, len(filtered))
    # struct sock_fprog
    head = ctypes.create_string_buffer(struct.pack("@HP", len(filtered) // 8, ctypes.addressof(memory)))
    number = SECCOMP[PROCESSORS[processor][0]]
    try:
        # a positive result: a thread that has another filter
        return kernel.syscall(number, SET_MODE_FILTER, FLAG_TSYNC | FLAG_SPEC_ALLOW, ctypes.addressof(head)) == 0
    except OSError:
        return False
