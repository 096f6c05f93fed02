"""When to start the next process in a worker's slot, and when to give up. Pure policy: no process, no time.

Law: each delay is twice the one before, up to a limit. The delays begin again after a worker that has lived for long,
because it failed for another reason than the one before.
"""

from __future__ import annotations

from collections.abc import Callable

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 10.0
HEALTHY_AFTER_S = 30.0
FAILED_STARTS_LIMIT = 5


class BackOff:
    """The history of one worker's slot. `ready`: whether the last process has served."""

    def __init__(self, clock: Callable[[], float]) -> None:
        # ends in a row, of processes that have never served
        self.failed_starts = 0
        self._clock, self._delay_s = clock, FIRST_DELAY_S
        self._started_s, self.ready = 0.0, False

    @property
    def hopeless(self) -> bool:
        """Whether this slot alone would be given up."""
        return self.failed_starts >= FAILED_STARTS_LIMIT

    def started(self) -> None:
        """Note the start of a process. `ended` must come next."""
        self._started_s, self.ready = self._clock(), False

    def serves(self) -> None:
        """Note that the process serves."""
        self.ready, self.failed_starts = True, 0

    def ended(self) -> float:
        """Return how many seconds to wait before the next start."""
        if not self.ready:
            self.failed_starts += 1
        if self._clock() - self._started_s >= HEALTHY_AFTER_S:
            self._delay_s = FIRST_DELAY_S
        delay_s, self._delay_s = self._delay_s, min(2 * self._delay_s, LONGEST_DELAY_S)
        return delay_s
