"""Timers: a heap of (deadline, sequence, timer). Pure: the time comes in as a number.

Law: all due timers leave the heap before the first one fires. A timer set by a callback, even with no delay, waits for
a later turn, so timers can't starve I/O. Equal deadlines fire in the order of setting. Cancelling is O(1): a cancelled
timer stays in the heap until it is due, or until cancelled timers outnumber the live ones.
"""

import heapq
import math
from collections.abc import Callable

from reactor.limits import LONGEST_SLEEP_S, SWEEP_ABOVE_TIMERS

Callback = Callable[..., object]
Arguments = tuple[object, ...]


class Timer:
    """One callback at one time. `Reactor.call_later` and `call_at` make it."""

    __slots__ = ("_timers", "args", "callback", "deadline_s", "queued")

    def __init__(self, timers: "Timers", deadline_s: float, callback: Callback, args: Arguments) -> None:
        self.deadline_s = deadline_s  # on the loop's monotonic clock
        self.callback: Callback | None = callback  # None once fired or cancelled
        self.args = args
        self.queued = True  # in the heap
        self._timers = timers

    def cancel(self) -> None:
        """Don't call the callback. Does nothing if it was called or cancelled before."""
        if self.callback is not None:
            self._timers.cancel(self)

    def fire(self) -> None:
        """Call the callback, unless another timer of the same turn has cancelled it."""
        callback, args = self.callback, self.args
        if callback is not None:
            self.callback, self.args = None, ()
            callback(*args)


class Timers:
    """All timers of one loop."""

    __slots__ = ("_sequence", "cancelled", "heap")

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Timer]] = []  # never replaced: the loop keeps a reference
        self.cancelled = 0  # cancelled timers in the heap
        self._sequence = 0

    def add(self, deadline_s: float, callback: Callback, args: Arguments = ()) -> Timer:
        """Set a timer. Raise ValueError if the deadline is NaN or infinite."""
        if not math.isfinite(deadline_s):
            raise ValueError(f"a timer's deadline must be a finite number of seconds, not {deadline_s!r}")
        timer = Timer(self, deadline_s, callback, args)
        heapq.heappush(self.heap, (deadline_s, self._sequence, timer))
        self._sequence += 1
        return timer

    def cancel(self, timer: Timer) -> None:
        """Mark a live timer as cancelled and drop its references."""
        timer.callback, timer.args = None, ()
        if timer.queued:
            self.cancelled += 1
            if self.cancelled > SWEEP_ABOVE_TIMERS and self.cancelled * 2 > len(self.heap):
                self.heap[:] = [entry for entry in self.heap if entry[2].callback is not None]
                heapq.heapify(self.heap)
                self.cancelled = 0

    def sleep_s(self, now_s: float) -> float | None:
        """Return the time until the next live timer is due, at most a day; None if there is no timer."""
        heap = self.heap
        while heap and heap[0][2].callback is None:
            heapq.heappop(heap)
            self.cancelled -= 1
        return min(max(0.0, heap[0][0] - now_s), LONGEST_SLEEP_S) if heap else None

    def pop_due(self, now_s: float) -> list[Timer]:
        """Remove and return every timer that is due at `now_s`, in firing order."""
        heap, due = self.heap, []
        while heap and heap[0][0] <= now_s:
            timer = heapq.heappop(heap)[2]
            timer.queued = False
            if timer.callback is None:
                self.cancelled -= 1
            else:
                due.append(timer)
        return due
