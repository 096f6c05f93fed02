"""SimulatedClock: time that passes only on request.

Law: it never goes back. A loop that sleeps until its next timer wakes at once, at that time. A run takes as long as its
work, not as long as its waits: a day of timers takes milliseconds.
"""


class SimulatedClock:
    """Monotonic seconds, for `Reactor(clock=…)`."""

    __slots__ = ("_now_s",)

    def __init__(self, now_s: float = 1000.0) -> None:
        self._now_s = now_s

    def __call__(self) -> float:
        """Return the time, as `time.monotonic` would."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass. Raise ValueError for a negative number: monotonic clocks don't go back."""
        if not seconds >= 0:
            raise ValueError(f"a monotonic clock can't be moved by {seconds!r} s")
        self._now_s += seconds

    def reach(self, at_s: float) -> None:
        """Let time pass until `at_s`. If that is past, do nothing."""
        self._now_s = max(self._now_s, at_s)
