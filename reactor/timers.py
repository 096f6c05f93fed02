"""Timers: a heap of (deadline, sequence, timer). Pure: the time comes in as a number.

Law: a turn fires only timers that were set before its step 4, so timers can't starve I/O. Each leaves the heap just
before it fires, so none is lost if a callback ends the run. Equal deadlines fire in the order of setting. A cancelled
timer stays until it is due, or until these outnumber the live ones: then each `cancel` moves a few to a new heap.
"""

import heapq
import math
from collections.abc import Callable, Iterator

from reactor.limits import LONGEST_SLEEP_S, MOVES_PER_CANCEL, SWEEP_ABOVE_TIMERS, TIMERS_PER_TURN

Callback = Callable[..., object]
Arguments = tuple[object, ...]
Heap = list[tuple[float, int, "Timer"]]


class Timer:
    """One callback at one time. `Reactor.call_later` and `call_at` make it."""

    __slots__ = ("_timers", "args", "callback", "deadline_s")

    def __init__(self, timers: "Timers", deadline_s: float, callback: Callback, args: Arguments) -> None:
        self.deadline_s = deadline_s  # on the loop's monotonic clock
        self.callback: Callback | None = callback  # None once fired or cancelled
        self.args = args
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

    __slots__ = ("_heap", "_old", "_sequence", "cancelled", "size")

    def __init__(self) -> None:
        self._heap: Heap = []
        self._old: Heap = []  # half of it was cancelled: its live timers move to `_heap`, from the end
        self._sequence = 0
        self.size = self.cancelled = 0  # all timers in both heaps; the cancelled ones among them

    def add(self, deadline_s: float, callback: Callback, args: Arguments = (), now_s: float = -math.inf) -> Timer:
        """Set a timer, for `now_s` if the deadline is earlier. Raise ValueError if it is NaN or infinite."""
        if not math.isfinite(deadline_s):
            raise ValueError(f"a timer's deadline must be a finite number of seconds, not {deadline_s!r}")
        timer = Timer(self, max(deadline_s, now_s), callback, args)
        heapq.heappush(self._heap, (timer.deadline_s, self._sequence, timer))
        self._sequence += 1
        self.size += 1
        return timer

    def cancel(self, timer: Timer) -> None:
        """Mark a live timer as cancelled and drop its references."""
        timer.callback, timer.args = None, ()
        self.cancelled += 1
        if not self._old and self.cancelled > max(SWEEP_ABOVE_TIMERS, self.size // 2):
            self._heap, self._old = [], self._heap
        for _ in range(min(MOVES_PER_CANCEL, len(self._old))):
            entry = self._old.pop()  # the last entry of a heap has no children, so the rest is still a heap
            if entry[2].callback is None:
                self._count_out(entry[2])
            else:
                heapq.heappush(self._heap, entry)

    def sleep_s(self, now_s: float) -> float | None:
        """Return the time until the next live timer is due, at most a day; None if there is no timer."""
        for _ in range(TIMERS_PER_TURN):
            heap = self._first()
            if not heap:
                return None
            if heap[0][2].callback is not None:
                return min(max(0.0, heap[0][0] - now_s), LONGEST_SLEEP_S)
            self._count_out(heapq.heappop(heap)[2])
        return 0.0  # look again after the next turn

    def pop_due(self, now_s: float) -> Iterator[Timer]:
        """Yield the timers that are due at `now_s`, in firing order, but none that is set meanwhile."""
        end = self._sequence
        for _ in range(TIMERS_PER_TURN):
            heap = self._first()
            if not heap or heap[0][0] > now_s or heap[0][1] >= end:
                return
            timer = self._count_out(heapq.heappop(heap)[2])
            if timer.callback is not None:
                yield timer

    def live(self) -> tuple[Timer, ...]:
        """Return the timers that are neither fired nor cancelled, unordered."""
        return tuple(timer for _, _, timer in (*self._heap, *self._old) if timer.callback is not None)

    def _first(self) -> Heap:
        """Return the heap with the earliest timer."""
        heap, old = self._heap, self._old
        return old if old and (not heap or old[0] < heap[0]) else heap

    def _count_out(self, timer: Timer) -> Timer:
        self.size -= 1
        self.cancelled -= timer.callback is None
        return timer
