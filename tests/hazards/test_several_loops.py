"""The second event loop in the process.

A library runs a loop of its own inside a callback, a test makes ten, another framework has one already. The table of
signal handlers and the wake-up descriptor belong to the whole process. A naive loop takes both when it is made, puts
back what it once saw, and so brings a closed loop's handler back to life, leaves a descriptor that is another's now, or
keeps the bytes that another loop waits for.

What prevents it: a handler knows what it replaced, and skips what was removed since. The wake-up descriptor is borrowed
for the time of a run, and bytes of other signals are passed on to its owner.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from reactor import Reactor
from reactor.sockets.signaltable import SignalHandler
from tests.support.basics import PATIENCE_S
from tests.support.loops import turn_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGUSR1")
SIGNALS = [getattr(signal, name, 0) for name in ("SIGUSR1", "SIGUSR2")]
USR1, USR2 = SIGNALS


@pytest.fixture(autouse=True)
def everything_is_put_back() -> Iterator[None]:
    """Check the process's two tables after each test."""
    before = [signal.getsignal(signum) for signum in SIGNALS]
    yield
    assert [signal.getsignal(signum) for signum in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def wait_for(loop: Reactor, heard: list[Any], expected: list[Any]) -> None:
    """Run the loop without a timer that could wake it, until it has heard a signal."""
    guard = threading.Timer(PATIENCE_S, loop.call_soon_threadsafe, (loop.stop,))
    guard.start()
    try:
        while heard != expected:
            assert guard.is_alive(), f"{heard} was heard, not {expected}"
            loop.call_soon(loop.stop) if heard else None
            loop.run()
    finally:
        guard.cancel()


def note(heard: list[str], what: str, then: Callable[[], object]) -> None:
    heard.append(what)
    then()


class Loops(RuleBasedStateMachine):
    """Three loops in any order: made, given handlers, run, run inside each other, closed, with a foreign descriptor."""

    def __init__(self) -> None:
        super().__init__()
        self.loops: dict[int, Reactor] = {}
        self.heard: list[tuple[int, int]] = []
        self.stacks: dict[int, list[int]] = {signum: [] for signum in SIGNALS}  # which loops handle it, the last first
        self.before = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self.foreign: dict[int, list[int]] = {signum: [] for signum in SIGNALS}
        for signum in SIGNALS:
            signal.signal(signum, lambda number, frame: self.foreign[number].append(number))
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        signal.set_wakeup_fd(self.theirs.fileno())
        self.due: set[int] = set()  # wake-up bytes for the descriptor's first owner

    @rule(which=st.integers(0, 2))
    def make(self, which: int) -> None:
        if which not in self.loops:
            self.loops[which] = Reactor()

    @rule(which=st.integers(0, 2), signum=st.sampled_from(SIGNALS))
    def add(self, which: int, signum: int) -> None:
        if which in self.loops:
            self.loops[which].add_signal_handler(signum, lambda: self.heard.append((which, signum)))
            if which in self.stacks[signum]:
                self.stacks[signum].remove(which)
            self.stacks[signum].insert(0, which)  # the last one that asked for it has it

    @rule(which=st.integers(0, 2), signum=st.sampled_from(SIGNALS))
    def remove(self, which: int, signum: int) -> None:
        if which in self.loops:
            self.loops[which].remove_signal_handler(signum)
            if which in self.stacks[signum]:
                self.stacks[signum].remove(which)

    @rule(which=st.integers(0, 2))
    def close(self, which: int) -> None:
        if which in self.loops:
            self.loops.pop(which).close()
            for stack in self.stacks.values():
                if which in stack:
                    stack.remove(which)

    @precondition(lambda self: self.loops)
    @rule(order=st.permutations(range(3)), signum=st.sampled_from(SIGNALS), at=st.integers(0, 3))
    def run(self, order: list[int], signum: int, at: int) -> None:
        """Run all loops inside each other, and send the signal to the process at one depth."""
        running = [which for which in order if which in self.loops]
        self.heard.clear()
        self.foreign[signum].clear()
        self._run(running, signum, at, 0)
        owner = self.stacks[signum][0] if self.stacks[signum] else None
        if owner is None:
            assert self.foreign[signum] == [signum]
            assert self.heard == []
            return
        turn_until(self.loops[owner], lambda: self.heard)
        assert self.heard == [(owner, signum)]

    def _run(self, running: list[int], signum: int, at: int, depth: int) -> None:
        if depth == min(at, len(running)):
            os.kill(os.getpid(), signum)
        if depth < len(running):
            loop = self.loops[running[depth]]
            loop.call_soon(self._run, running, signum, at, depth + 1)
            loop.call_soon(loop.stop)
            loop.run()

    @invariant()
    def the_descriptor_is_its_owners(self) -> None:
        current = signal.set_wakeup_fd(-1)
        assert current == self.theirs.fileno()
        signal.set_wakeup_fd(current)

    def teardown(self) -> None:
        try:
            for loop in self.loops.values():
                loop.close()
            self.the_descriptor_is_its_owners()
        finally:
            signal.set_wakeup_fd(-1)
            for signum, handler in self.before.items():
                signal.signal(signum, handler)
            self.ours.close()
            self.theirs.close()


TestLoops = Loops.TestCase
TestLoops.settings = settings(stateful_step_count=30)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_loops_closed_in_any_order_leave_the_live_ones_their_signals(order: tuple[int, ...]) -> None:
    """Three loops handle the same signal; the newest that is open gets it."""
    heard: list[int] = []
    loops = [Reactor() for _ in range(3)]
    for number, loop in enumerate(loops):
        loop.add_signal_handler(USR1, functools.partial(heard.append, number))
    for closing in order:
        newest = max(number for number, loop in enumerate(loops) if not loop.closed)
        signal.raise_signal(USR1)
        turn_until(loops[newest], lambda: heard)
        assert heard == [newest]
        heard.clear()
        loops[closing].close()


def test_loops_that_take_turns_keep_no_chain_of_removed_handlers() -> None:
    """Each change replaces a handler of the other loop. The removed ones must not be kept for ever."""
    with Reactor() as one, Reactor() as other:
        for _ in range(100):
            for loop in (one, other):
                loop.remove_signal_handler(USR1)
                loop.add_signal_handler(USR1, int)
        length, handler = 0, signal.getsignal(USR1)
        while isinstance(handler, SignalHandler):
            length, handler = length + 1, handler.previous
        assert length < 5


@pytest.mark.parametrize("inner_handles", [False, True])
def test_signal_during_a_run_inside_a_callback_wakes_the_outer_loop(inner_handles: bool) -> None:
    """Both loops have handlers, so the inner one has the wake-up descriptor. The outer one has no timer."""
    heard: list[str] = []

    def inside() -> None:
        with Reactor() as inner:
            if inner_handles:
                inner.add_signal_handler(USR2, lambda: heard.append("inner"))
            inner.call_soon(os.kill, os.getpid(), USR1)
            inner.call_later(0.01, inner.stop)
            inner.run()

    with Reactor() as outer:
        outer.add_signal_handler(USR1, lambda: note(heard, "outer", outer.stop))
        outer.call_soon(inside)
        wait_for(outer, heard, ["outer"])


def test_signal_for_asyncio_during_our_run_reaches_asyncio() -> None:
    """asyncio learns of a signal only by the byte in its own wake-up descriptor."""
    heard: list[str] = []

    def ours() -> None:
        with Reactor() as loop:
            loop.add_signal_handler(USR2, lambda: heard.append("ours"))
            loop.call_soon(os.kill, os.getpid(), USR1)
            loop.call_soon(os.kill, os.getpid(), USR2)
            loop.call_later(0.01, loop.stop)
            loop.run()

    async def main() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        loop.add_signal_handler(USR1, lambda: note(heard, "asyncio", done.set))
        loop.call_soon(ours)
        await asyncio.wait_for(done.wait(), PATIENCE_S)
        loop.remove_signal_handler(USR1)

    asyncio.run(main())
    assert heard == ["ours", "asyncio"]


def test_asyncio_inside_our_callback_leaves_the_descriptor_to_its_first_owner() -> None:
    """asyncio sets it to -1 at its end. After our run, the descriptor's owner before us has it again."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Reactor() as loop:
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno())
        loop.add_signal_handler(USR2, int)

        async def main() -> None:
            asyncio.get_running_loop().add_signal_handler(USR1, int)
            asyncio.get_running_loop().remove_signal_handler(USR1)

        loop.call_soon(lambda: asyncio.run(main()))
        loop.call_soon(loop.stop)
        loop.run()
        assert signal.set_wakeup_fd(-1) == theirs.fileno()


def test_bytes_of_other_signals_reach_the_descriptors_owner() -> None:
    """So do bytes that our loop had no turn to read."""
    ours, theirs = socket.socketpair()
    previous = signal.signal(USR1, lambda *_: None)
    try:
        with ours, theirs, Reactor() as loop:
            ours.settimeout(PATIENCE_S)
            theirs.setblocking(False)
            signal.set_wakeup_fd(theirs.fileno())
            loop.add_signal_handler(USR2, int)
            for moment in (0.0, 0.01):
                loop.call_later(moment, signal.raise_signal, USR1)
                loop.call_later(moment + 0.005, loop.stop if moment else int)
            loop.run()
            loop.call_soon(loop.stop)
            loop.call_soon(signal.raise_signal, USR1)
            loop.run()
            received = b""
            while len(received) < 3:
                received += ours.recv(10)
            assert received == bytes([USR1]) * 3
            assert signal.set_wakeup_fd(-1) == theirs.fileno()
    finally:
        signal.signal(USR1, previous)


def test_wake_up_descriptor_closed_meanwhile_is_forgotten() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno())
    with ours, Reactor() as loop:
        loop.add_signal_handler(USR2, int)
        loop.call_soon(theirs.close)
        loop.call_soon(signal.raise_signal, USR2)
        loop.call_soon(loop.stop)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loop.run()


def test_loop_with_signal_handlers_is_refused_in_another_thread_and_can_be_closed() -> None:
    """Python lets only the main thread set the wake-up descriptor."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            loop.run()
        except ValueError as error:
            errors.append(error)

    with Reactor() as loop:
        loop.add_signal_handler(USR1, int)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert len(errors) == 1
        loop.call_soon(loop.stop)
        loop.run()


def test_handler_added_during_a_run_is_heard_at_once() -> None:
    heard: list[str] = []
    with Reactor() as loop:
        loop.call_soon(loop.add_signal_handler, USR1, lambda: note(heard, "late", loop.stop))
        loop.call_soon(os.kill, os.getpid(), USR1)
        wait_for(loop, heard, ["late"])
