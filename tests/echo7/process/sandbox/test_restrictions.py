"""What a restricted process can still do, on this kernel; and what happens on kernels that have less."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from echo7.process import StartError, sandbox
from echo7.process.sandbox import Held, Sandbox
from reactor.sockets.errors import os_error
from tests.support.basics import PATIENCE_S, PROJECT

if sys.platform != "linux":
    pytest.skip("only Linux has Landlock and seccomp", allow_module_level=True)

from echo7.process.sandbox import landlock, seccomp
from echo7.process.sandbox.kernel import Kernel
from echo7.process.sandbox.linux import HELD, IN_CHARGE, Linux
from tests.echo7.process.sandbox import attacks

COMPLETE = 6  # the first version of Landlock that knows all that we take


def version() -> int:
    return landlock.version(Kernel())


def attacked(tmp_path: pathlib.Path, kind: str) -> dict[str, str]:
    """Restrict a child as the service does, and attack in it; return the result of each attack."""
    (tmp_path / "victim").write_text("x")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-m", attacks.__name__, kind], cwd=PROJECT, capture_output=True, text=True, check=False,
        env={**environment, "VICTIM": str(tmp_path / "victim")}, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(line.split("\t") for line in done.stdout.splitlines())


@pytest.mark.parametrize("kind", ["serving", "in charge"])
def test_every_attack_of_a_restricted_process_is_refused(kind: str, tmp_path: pathlib.Path) -> None:
    if kind == "in charge" and version() < COMPLETE:
        pytest.skip(f"Landlock has version {version()} here, and {COMPLETE} is needed for all of it")
    found = attacked(tmp_path, kind)
    assert found.keys() == (attacks.EVERY if kind == "serving" else attacks.ALWAYS).keys()
    assert {name: result for name, result in found.items() if result not in attacks.REFUSALS} == {}
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel refuses some to other users")
def test_attacks_of_a_process_without_restrictions_are_not_refused(tmp_path: pathlib.Path) -> None:
    """So the test above can fail."""
    found = attacked(tmp_path, "none")
    assert {name for name, result in found.items() if result in attacks.REFUSALS} <= {
        "call with 32-bit pointers", "handle page faults", "profile", "make a user namespace",
        "load a program into the kernel",
        "use the second system call interface", "put input into a terminal",
    }  # fmt: skip


# ---------------------------------------------------------------- kernels that have less


class Ruleset(NamedTuple):
    """What a kernel was told to take."""

    files: int
    network: int = 0
    scopes: int = 0


class OldKernel(Kernel):
    """A kernel with a certain version of Landlock, or none; it may have seccomp. `limits` are errors by call."""

    __slots__ = ("answers", "found", "limits", "prctls", "rules", "rulesets")

    def __init__(self, found: int, answers: int | None = 0, **limits: int) -> None:
        self.found, self.answers = found, answers
        self.limits = limits
        self.rulesets: list[Ruleset] = []
        self.rules: list[int] = []
        self.prctls: list[tuple[int, ...]] = []

    def syscall(self, number: int, *arguments: int) -> int:
        numbers = {landlock.CREATE_RULESET: "create", landlock.ADD_RULE: "add", landlock.RESTRICT_SELF: "restrict"}
        name = numbers.get(number, "seccomp")
        if name in self.limits:
            raise os_error(self.limits[name])
        if name == "seccomp":
            if self.answers is None:
                raise os_error(errno.ENOSYS)
            return self.answers
        if not self.found:
            raise os_error(errno.EOPNOTSUPP)
        if name == "create" and arguments[2]:
            return self.found
        if name == "create":
            values = (ctypes.c_uint64 * (arguments[1] // 8)).from_address(arguments[0])
            self.rulesets.append(Ruleset(*values))
            return os.open(os.devnull, os.O_RDONLY)
        if name == "add":
            self.rules.append(ctypes.c_uint64.from_address(arguments[2]).value)
        return 0

    def prctl(self, option: int, *arguments: int) -> int:
        self.prctls.append((option, *arguments))
        raise os_error(errno.EINVAL)


RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1, 6: (1 << 16) - 1}


@pytest.mark.parametrize("found", [*RIGHTS, 7, 99])
def test_kernel_is_told_only_the_rights_that_its_version_knows(found: int) -> None:
    kernel = OldKernel(found)
    assert landlock.restrict(kernel, landlock.Taken()) == found
    every = RIGHTS[min(found, 6)]
    expected = (every, 3, 3) if found >= 6 else (every, 3) if found >= 4 else (every,)
    assert kernel.rulesets == [Ruleset(*expected)]


@pytest.mark.parametrize(("found", "rights"), [(2, 1 << 1), (3, 1 << 1 | 1 << 14)])
def test_file_to_write_gets_a_rule_and_a_missing_one_is_skipped(
    found: int, rights: int, tmp_path: pathlib.Path
) -> None:
    there = tmp_path / "there"
    there.touch()
    kernel = OldKernel(found)
    landlock.restrict(kernel, landlock.Taken(written=(str(there), str(tmp_path / "missing"), "a\0b")))
    assert kernel.rules == [rights]


@pytest.mark.parametrize("call", ["create", "restrict"])
def test_landlock_that_a_filter_forbids_counts_as_missing(call: str) -> None:
    """EPERM: a container. E2BIG: sixteen layers."""
    before = len(os.listdir("/dev/fd"))
    for code in (errno.EPERM, errno.E2BIG, errno.ENOSYS):
        assert landlock.restrict(OldKernel(7, **{call: code}), landlock.Taken()) == 0
    assert landlock.restrict(OldKernel(0), landlock.Taken()) == 0
    assert len(os.listdir("/dev/fd")) == before, "no descriptor is left open"


@pytest.mark.parametrize(("answers", "loaded"), [(0, True), (4711, False), (None, False)])
def test_filter_that_a_thread_or_the_kernel_refuses_counts_as_missing(answers: int | None, loaded: bool) -> None:
    program = seccomp.program("x86_64", IN_CHARGE, seccomp.ALLOW)
    assert seccomp.load(OldKernel(0, answers), "x86_64", program) is loaded


def on(kernel: OldKernel, machine: str, monkeypatch: pytest.MonkeyPatch) -> Linux:
    """Return what restricts a process on another kernel. The guard against restricting pytest doesn't matter then."""
    monkeypatch.setattr("echo7.process.sandbox.linux.Kernel", lambda: kernel)
    uname = os.uname_result(("Linux", "host", "5.4", "#1", machine))
    monkeypatch.setattr(os, "uname", lambda: uname)
    monkeypatch.setattr(Linux, "restrict", ORIGINAL)
    return Linux()


ORIGINAL = Linux.restrict


@pytest.mark.parametrize(
    ("kernel", "machine", "held", "words"),
    [
        (OldKernel(7), "x86_64", Held(7, True), "restricted by Landlock 7 and seccomp"),
        (OldKernel(1), "aarch64", Held(1, True), "restricted by Landlock 1 and seccomp"),
        (OldKernel(0), "x86_64", Held(0, True), "restricted by seccomp; this system has no Landlock"),
        (OldKernel(3), "riscv64", Held(3), "restricted by Landlock 3; this system has no seccomp"),
        (OldKernel(0, None), "x86_64", Held(), "not restricted; this system has no Landlock and no seccomp"),
    ],
)
def test_restrictions_are_logged_and_required_only_on_request(
    kernel: OldKernel, machine: str, held: Held, words: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, "echo7")
    system = on(kernel, machine, monkeypatch)
    assert system.restrict_in_charge(["/no/such/trace"], children=True) == system.restrict_serving(os.getpid()) == held
    for mode in ("auto", "require"):
        refused = mode == "require" and held.lacks
        with pytest.raises(StartError, match=f"has no {held.lacks}; use one") if refused else contextlib.nullcontext():
            Sandbox(mode).restrict_in_charge([], children=False)
        with pytest.raises(StartError) if refused else contextlib.nullcontext():
            Sandbox(mode).restrict_serving()
    assert set(caplog.messages) == {words}
    assert vars(caplog.records[0])["fields"] == {"landlock": held.landlock, "seccomp": held.seccomp}


def test_without_children_of_before_signals_are_taken_and_abstract_sockets_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A previous generation that isn't restricted is outside; systemd may listen at an abstract address."""
    kernel = OldKernel(6)
    system = on(kernel, "x86_64", monkeypatch)
    for children in (False, True):
        system.restrict_in_charge([], children=children)
    assert [ruleset.scopes for ruleset in kernel.rulesets] == [landlock.SIGNALS, 0]
    assert {ruleset.network for ruleset in kernel.rulesets} == {landlock.CONNECT_TCP}
    assert not {ruleset.files & landlock.FOR_READING for ruleset in kernel.rulesets} - {0}


def test_new_generation_asks_and_adds_no_second_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = OldKernel(7)
    system = on(kernel, "x86_64", monkeypatch)
    system.restrict_in_charge([], children=False)
    (question, *_) = kernel.prctls[0]
    assert question >= 2**29, "no option of any kernel"

    class Restricted(OldKernel):
        def prctl(self, option: int, *arguments: int) -> int:
            self.prctls.append((option, *arguments))
            raise os_error(HELD + 5 if option == question else errno.EINVAL)

    again = Restricted(7)
    assert on(again, "x86_64", monkeypatch).restrict_in_charge([], children=False) == Held(5, True)
    assert again.rulesets == []
    assert (4, 0, 0, 0, 0) in again.prctls, "exec(2) has made the process traceable again"
    assert on(again, "aarch64", monkeypatch).restrict_in_charge([], children=False) == Held(7, True), "another filter"


# ---------------------------------------------------------------- systems that have nothing


def test_off_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "echo7")
    Sandbox("off").restrict_in_charge([], children=False)
    Sandbox("off").restrict_serving()
    assert caplog.messages == []


def no_ctypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "echo7.process.sandbox.linux", None)


def another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.sys, "platform", "freebsd15")  # type: ignore[attr-defined]


def no_prctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name, **options: object())


@pytest.mark.parametrize("less", [no_ctypes, another_system, no_prctl])
def test_system_without_restrictions_says_so(
    less: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "echo7")
    less(monkeypatch)
    Sandbox("auto").restrict_serving()
    Sandbox("auto").restrict_in_charge([], children=False)
    assert caplog.messages == ["not restricted; this system has no Landlock and no seccomp"]
    with pytest.raises(StartError, match="no Landlock and no seccomp; use one that has, or --sandbox auto"):
        Sandbox("require").restrict_in_charge([], children=False)


def test_process_stays_untraceable_by_others_of_its_user() -> None:
    code = "from echo7.process.sandbox.kernel import Kernel; k = Kernel(); k.protect()\n"
    code += "print(k.prctl(3), k.prctl(39, 0, 0, 0, 0))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "0 1\n"


def test_refused_call_raises_the_error_of_the_kernel() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        Kernel().prctl(2**29, 0, 0, 0, 0)
