"""When to start the next process in a worker's slot, and when to give up. Pure policy: no process, no time.

Law: each wait is twice the one before, up to a limit. A worker that has lived for long failed for another reason than
the last one did, so the waits begin again.
"""

from __future__ import annotations

from collections.abc import Callable

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 10.0
HEALTHY_AFTER_S = 30.0
FAILED_STARTS_LIMIT = 5


class BackOff:
    """What matters of the history of one worker's slot."""

    __slots__ = ("_clock", "_delay_s", "_served", "_started_s", "failed_starts")

    def __init__(self, clock: Callable[[], float]) -> None:
        # ends in a row without a `ready` between them
        self.failed_starts = 0
        self._clock, self._delay_s = clock, FIRST_DELAY_S
        self._started_s, self._served = 0.0, False

    @property
    def hopeless(self) -> bool:
        """Whether this slot alone would be given up."""
        return self.failed_starts >= FAILED_STARTS_LIMIT

    def started(self) -> None:
        """Note the start of a process. `ended` must come next."""
        self._started_s, self._served = self._clock(), False

    def ready(self) -> None:
        """Note that it serves."""
        self._served, self.failed_starts = True, 0

    def ended(self) -> float:
        """Return how many seconds to wait before the next start."""
        if not self._served:
            self.failed_starts += 1
        if self._clock() - self._started_s >= HEALTHY_AFTER_S:
            self._delay_s = FIRST_DELAY_S
        delay_s, self._delay_s = self._delay_s, min(2 * self._delay_s, LONGEST_DELAY_S)
        return delay_s
