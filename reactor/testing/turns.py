"""Turns: counts the turns of the loop, and finds a loop that spins.

Law: pure. A loop spins when nothing at all changes in several turns in a row. A loop that never rests is stopped after
a bounded number of turns, so that no test hangs.
"""

from __future__ import annotations

from reactor.testing.clock import SimulatedClock

POLLS = 4  # of a busy-polling loop before it sleeps
IDLE_TURNS = 8  # this many turns without a change are a spin
MOST_TURNS = 1_000_000
MOST_TURNS_AT_ONCE = 200_000  # while the clock stands still


class Turns:
    """The turns of one network. `changes` counts changes; a turn may take `looks_a_turn` calls of select."""

    __slots__ = (
        "_before", "_clock", "_count", "_count_at_once", "_idle_looks", "_turned_s", "changes", "found_ready",
        "looks_a_turn",
    )  # fmt: skip

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock
        self._turned_s = 0.0
        self._count = self._count_at_once = self._before = self._idle_looks = 0
        self.changes = 0
        self.found_ready = False  # by the last select
        self.looks_a_turn = 1

    def begin(self) -> None:
        """Begin a new run: count from 0 again."""
        self._count = 0

    def count(self) -> None:
        """Count a turn. Raise RuntimeError after too many."""
        self._count += 1
        self._count_at_once += 1
        if self._clock() != self._turned_s:
            self._turned_s, self._count_at_once = self._clock(), 1
        if self._count_at_once > MOST_TURNS_AT_ONCE or self._count > MOST_TURNS:
            raise RuntimeError(
                f"the loop hasn't come to rest in {self._count:,} turns, {self._count_at_once:,} at once"
            )

    def begin_to_spin(self) -> bool:
        """Tell whether this turn completes a spin. A select that finds ready sockets ends a turn of several selects."""
        before, idle = self._idle_looks, self.changes == self._before
        self._idle_looks = before + (self.looks_a_turn if self.found_ready else 1) if idle else 0
        self._before = self.changes
        return before < IDLE_TURNS * self.looks_a_turn <= self._idle_looks
