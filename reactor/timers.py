"""Timers: a heap of (deadline, sequence, timer). Pure: the time comes in as a number.

Law: all due timers are taken out before any of them is called. A timer that a callback sets, even with no delay, waits
for a later turn, so timers can't starve I/O. Equal deadlines fire in the order in which they were set. Cancelling is
O(1): the timer is marked, and stays in the heap until it comes up or the marked ones outnumber the live ones.
"""

import heapq
import math
from collections.abc import Callable

from reactor.limits import LONGEST_SLEEP_S, SWEEP_ABOVE_TIMERS

Callback = Callable[..., object]
Arguments = tuple[object, ...]


class Timer:
    """One callback at one time. Made by `Reactor.call_later` and `call_at`."""

    __slots__ = ("_timers", "args", "callback", "deadline_s", "queued")

    def __init__(self, timers: "Timers", deadline_s: float, callback: Callback, args: Arguments) -> None:
        self.deadline_s = deadline_s  # on the loop's monotonic clock
        self.callback: Callback | None = callback  # None once fired or cancelled
        self.args = args
        self.queued = True  # in the heap
        self._timers = timers

    def cancel(self) -> None:
        """Make sure that the callback isn't called any more. Harmless when it has been, or twice."""
        if self.callback is not None:
            self._timers.cancel(self)

    def fire(self) -> None:
        """Call the callback, unless a timer due at the same time has cancelled it meanwhile."""
        callback, args = self.callback, self.args
        if callback is not None:
            self.callback, self.args = None, ()
            callback(*args)


class Timers:
    """All timers of one loop."""

    __slots__ = ("_sequence", "cancelled", "heap")

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Timer]] = []  # always this one list: the loop looks at it in every turn
        self.cancelled = 0  # timers in the heap that are marked
        self._sequence = 0

    def add(self, deadline_s: float, callback: Callback, args: Arguments = ()) -> Timer:
        """Set a timer. Raise ValueError for a deadline that is no time (NaN, infinity)."""
        if not math.isfinite(deadline_s):
            raise ValueError(f"a timer's deadline must be a finite number of seconds, not {deadline_s!r}")
        timer = Timer(self, deadline_s, callback, args)
        heapq.heappush(self.heap, (deadline_s, self._sequence, timer))
        self._sequence += 1
        return timer

    def cancel(self, timer: Timer) -> None:
        """Mark a timer that has its callback still, and let go of everything that it keeps alive."""
        timer.callback, timer.args = None, ()
        if timer.queued:
            self.cancelled += 1
            if self.cancelled > SWEEP_ABOVE_TIMERS and self.cancelled * 2 > len(self.heap):
                self.heap[:] = [entry for entry in self.heap if entry[2].callback is not None]
                heapq.heapify(self.heap)
                self.cancelled = 0

    def sleep_s(self, now_s: float) -> float | None:
        """Return how long to sleep until a live timer is due, a day at the most; None when there is none."""
        heap = self.heap
        while heap and heap[0][2].callback is None:
            heapq.heappop(heap)
            self.cancelled -= 1
        return min(max(0.0, heap[0][0] - now_s), LONGEST_SLEEP_S) if heap else None

    def pop_due(self, now_s: float) -> list[Timer]:
        """Take out every timer with a deadline of at most `now_s`, in firing order."""
        heap, due = self.heap, []
        while heap and heap[0][0] <= now_s:
            timer = heapq.heappop(heap)[2]
            timer.queued = False
            if timer.callback is None:
                self.cancelled -= 1
            else:
                due.append(timer)
        return due
