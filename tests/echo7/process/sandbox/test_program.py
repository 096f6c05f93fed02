"""The filters, run by an interpreter of BPF: which call gets which answer on which processor."""

from __future__ import annotations

import ctypes
import errno
import struct
import sys

import pytest

from echo7.process.sandbox import seccomp
from echo7.process.sandbox.calls import CHECKED, NEVER, NEWEST, NUMBERS, PROCESSORS, SERVING
from echo7.process.sandbox.seccomp import ALLOW, ERROR, REFUSE, UNKNOWN, Argument, program
from tests.echo7.deploy import sandbox as libseccomp

if sys.platform != "linux":
    pytest.skip("seccomp is Linux's", allow_module_level=True)

from echo7.process.sandbox import linux  # its constants are Linux's

PID = 4711
FILTERS = {"serving": (linux.serving(PID), REFUSE), "in charge": (linux.IN_CHARGE, ALLOW)}
EVERY_PROCESSOR = pytest.mark.parametrize("processor", PROCESSORS)
THREAD = 0x3D0F00  # what pthread_create(3) asks for
ABSENT = 0xFFFF_0000  # neither a descriptor nor a process


def answer(filtered: bytes, number: int, *arguments: int, token: int) -> int:
    """Run a filter, as the kernel does (Documentation/networking/filter)."""
    data = struct.pack("<IIQ6Q", number, token, 0, *(*arguments, *[0] * 6)[:6])
    instructions = list(struct.iter_unpack("=HBBI", filtered))
    accumulator = place = 0
    while True:
        code, if_true, if_false, constant = instructions[place]
        place += 1
        if code == seccomp.LOAD:
            (accumulator,) = struct.unpack_from("<I", data, constant)
        elif code == seccomp.AND:
            accumulator &= constant
        elif code == seccomp.JUMP:
            place += constant
        elif code in (seccomp.EQUAL, seccomp.AT_LEAST):
            holds = accumulator == constant if code == seccomp.EQUAL else accumulator >= constant
            place += if_true if holds else if_false
        else:
            assert code == seccomp.RETURN
            return int(constant)


class Processor:
    """Asks a filter about calls by name."""

    def __init__(self, kind: str, processor: str) -> None:
        self.column, self.token = PROCESSORS[processor]
        self.filtered = program(processor, *FILTERS[kind])

    def asked(self, name: str, *arguments: int) -> int:
        number = NUMBERS[name][self.column]
        assert number is not None
        return answer(self.filtered, number, *arguments, token=self.token)

    def has(self, name: str) -> bool:
        return NUMBERS[name][self.column] is not None


@EVERY_PROCESSOR
def test_serving_process_gets_an_answer_only_to_the_calls_that_serve(processor: str) -> None:
    serving = Processor("serving", processor)
    allowed = {number for name, pair in SERVING.items() if (number := pair[serving.column]) is not None}
    checked = {pair[serving.column] for pair in CHECKED.values()}
    for number in set(range(NEWEST + 1)) - checked:
        expected = ALLOW if number in allowed else REFUSE
        assert answer(serving.filtered, number, token=serving.token) == expected, number


@EVERY_PROCESSOR
def test_process_in_charge_is_refused_what_it_never_needs(processor: str) -> None:
    in_charge = Processor("in charge", processor)
    never = {pair[in_charge.column] for pair in NEVER.values()}
    checked = {pair[in_charge.column] for pair in CHECKED.values()}
    for number in set(range(NEWEST + 1)) - checked:
        expected = REFUSE if number in never else ALLOW
        assert answer(in_charge.filtered, number, token=in_charge.token) == expected, number


@EVERY_PROCESSOR
@pytest.mark.parametrize("kind", FILTERS)
def test_calls_of_other_processors_are_refused_and_later_ones_unknown(kind: str, processor: str) -> None:
    asked = Processor(kind, processor)
    number = NUMBERS["read"][asked.column] or 0
    for token in (0x4000_0003, 0x4000_0028, *{token for _, token in PROCESSORS.values()} - {asked.token}):
        assert answer(asked.filtered, number, token=token) == REFUSE
    for number in (NEWEST + 1, 1000, 0x3FFF_FFFF):
        assert answer(asked.filtered, number, token=asked.token) == UNKNOWN
    for number in (0x4000_0000, 0x4000_0000 + 59, 0xFFFF_FFFF):
        assert answer(asked.filtered, number, token=asked.token) == REFUSE, "32-bit pointers (x32)"


FAST_OPEN = 0x2000_0000
HIGH_HALF = 1 << 32  # the kernel looks at the low half
ARGUMENTS = [
    ("serving", "clone", [(THREAD,), (THREAD | HIGH_HALF,)], [(17,), (0,), (0x0120_0011,), (THREAD | 0x1000_0000,)]),
    ("serving", "clone", [], [(0x1_0000 | 1 << bit,) for bit in (17, 25, 26, 27, 28, 29, 30)]),
    ("serving", "kill", [(PID, 9), (PID | HIGH_HALF, 15)], [(1, 9), (0, 9), (ABSENT, 9), (0xFFFF_FFFF, 9)]),
    ("serving", "tgkill", [(PID, PID, 6)], [(1, 1, 6), (0xFFFF_FFFF, PID, 6)]),
    ("serving", "prlimit64", [(0, 7), (PID, 7)], [(1, 7)]),
    ("serving", "prctl", [(15,)], [(4, 1), (38,), (0,), (22,)]),
    ("serving", "ioctl", [(3, each) for each in (0x541B, 0x5421, 0x5411, 0x5401)], [(0, 0x5412), (0, 0x8901)]),
    ("serving", "socket", [], [(2, 1, 0), (1, 1, 0)]),
    ("serving", "fcntl", [(3, 4), (3, 0), (3, 1031)], [(3, 8), (3, 10), (3, 15)]),
    ("in charge", "fcntl", [(3, 4)], [(3, 8), (3, 10), (3, 15)]),
    ("in charge", "clone", [(17,), (THREAD,), (0x4111,)], [(17 | 1 << bit,) for bit in (17, 25, 26, 27, 28, 29, 30)]),
    ("in charge", "socket", [(1, 2, 0), (2, 1, 6), (10, 2, 17), (16, 3, 0), (2, 0x80801, 0)], [
        (1, 1, 0), (1, 5, 0), (1, 0x80801, 0), (17, 3, 0), (2, 1, 262), (2, 3, 17), (10, 3, 58), (16, 3, 6)]),
    ("in charge", "prlimit64", [(0, 7)], [(1, 7), (PID, 0)]),
    *((kind, name, [(0, 0, 0, 0), (0, 0, 0x4000, 0x4000)], [(0, 0, FAST_OPEN | 0x4000, FAST_OPEN)])
      for kind in FILTERS for name in ("sendto", "sendmsg", "sendmmsg")),
    ("in charge", "ioctl", [(0, 0x5401)], [(0, 0x5412), (0, 0x541C)]),
    ("in charge", "kill", [(1, 15)], []),
    ("in charge", "prctl", [(4, 0), (38, 1)], []),
]  # fmt: skip


@EVERY_PROCESSOR
@pytest.mark.parametrize(("kind", "name", "allowed", "refused"), ARGUMENTS)
def test_arguments_decide(
    kind: str, name: str, allowed: list[tuple[int, ...]], refused: list[tuple[int, ...]], processor: str
) -> None:
    asked = Processor(kind, processor)
    assert [arguments for arguments in allowed if asked.asked(name, *arguments) != ALLOW] == []
    assert [arguments for arguments in refused if asked.asked(name, *arguments) != REFUSE] == []
    assert asked.asked("clone3", 0, 88) == UNKNOWN, "its flags are in memory"


@EVERY_PROCESSOR
def test_question_gets_the_answer_and_nothing_else_does(processor: str) -> None:
    column, token = PROCESSORS[processor]
    filtered = program(processor, linux.IN_CHARGE, ALLOW, 0x4000_4711, 1007)
    number = NUMBERS["prctl"][column] or 0
    assert answer(filtered, number, 0x4000_4711, token=token) == ERROR | 1007
    assert answer(filtered, number, 0x4000_4712, token=token) == ALLOW
    assert answer(filtered, number + 1, 0x4000_4711, token=token) != ERROR | 1007


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("values", [(3,), (3, 5), (3, 5, 8)])
def test_condition_holds_for_each_of_its_values(values: tuple[int, ...], wanted: bool) -> None:
    filtered = program("x86_64", {"read": [[Argument(1, values, mask=0xFF, wanted=wanted)]]}, UNKNOWN)
    for value in range(10):
        found = answer(filtered, 0, 0, 0x100 + value, token=0xC000_003E)
        assert found == (ALLOW if (value in values) is wanted else REFUSE), value
    assert answer(filtered, 1, token=0xC000_003E) == UNKNOWN


def test_filter_is_short_enough_for_the_kernel() -> None:
    """4096 instructions (BPF_MAXINSNS); and a jump is one byte."""
    for rules, others in FILTERS.values():
        assert len(program("x86_64", rules, others)) // 8 < 500


@EVERY_PROCESSOR
def test_numbers_are_those_of_libseccomp(processor: str) -> None:
    try:
        library = libseccomp.library()
    except OSError:
        pytest.skip("no libseccomp.so.2 here")
    resolve = library.seccomp_syscall_resolve_name_arch
    resolve.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    column, token = PROCESSORS[processor]
    known = 0
    for name, pair in NUMBERS.items():
        number = resolve(token, name.encode())
        # -1: newer than the library; less: another processor's
        if number != -1:
            known += 1
            assert pair[column] == (number if number >= 0 else None), name
    assert known > 140
    assert library.seccomp_syscall_resolve_name_arch(token, b"no_such_call") == -1


def test_every_refusal_is_the_error_that_python_calls_permission() -> None:
    assert (REFUSE & 0xFFFF, UNKNOWN & 0xFFFF) == (errno.EPERM, errno.ENOSYS)
