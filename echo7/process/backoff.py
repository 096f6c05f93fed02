"""When a worker that has ended is started again, and when that has no sense any more. Pure policy: no process, no time.

Law: what fails for good isn't tried in a hurry: each wait is twice the one before, up to a limit. A worker that has
lived for long failed for some other reason than the last one did, so its slot begins afresh.
"""

from __future__ import annotations

from collections.abc import Callable

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 10.0
HEALTHY_AFTER_S = 30.0  # who has lived so long was well
STILLBIRTHS_LIMIT = 5  # so many ends in a row before it was ready, in every slot: it will never be


class BackOff:
    """The history of one worker's slot, as far as it matters."""

    __slots__ = ("_clock", "_delay_s", "_served", "_started_s", "stillbirths")

    def __init__(self, clock: Callable[[], float]) -> None:
        self.stillbirths = 0  # ends in a row without a `ready` between them
        self._clock = clock  # monotonic seconds
        self._delay_s = FIRST_DELAY_S
        self._started_s = 0.0
        self._served = False

    @property
    def hopeless(self) -> bool:
        """Whether this slot alone would be given up."""
        return self.stillbirths >= STILLBIRTHS_LIMIT

    def started(self) -> None:
        """Note the start of a process. `ended` comes next, whatever happens."""
        self._started_s = self._clock()
        self._served = False

    def ready(self) -> None:
        """Note that it serves."""
        self._served = True
        self.stillbirths = 0

    def ended(self) -> float:
        """Return how many seconds to wait before the next start."""
        if not self._served:
            self.stillbirths += 1
        if self._clock() - self._started_s >= HEALTHY_AFTER_S:
            self._delay_s = FIRST_DELAY_S
        delay_s, self._delay_s = self._delay_s, min(2 * self._delay_s, LONGEST_DELAY_S)
        return delay_s
