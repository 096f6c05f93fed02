"""Wire: later events, and which hosts can reach each other.

Law: all later events are in one heap, ordered by time, and then by when they were scheduled. So a run is repeatable.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Callable

from reactor.testing.clock import SimulatedClock


class Wire:
    """The later events of a network, and the hosts that are cut off now."""

    __slots__ = ("_clock", "_events", "_healed", "_sequence", "cut_off")

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._sequence = 0
        self.cut_off: dict[str, float] = {}  # host → until when, in seconds
        self._healed: list[Callable[[], object]] = []  # callbacks that wait for a heal

    def call_later(self, delay_s: float, action: Callable[[], object]) -> None:
        """Call `action()` after `delay_s` seconds, while the loop sleeps or between its turns."""
        heapq.heappush(self._events, (self._clock() + delay_s, self._sequence, action))
        self._sequence += 1

    def next_s(self) -> float | None:
        """Return the time of the next event, or None without one."""
        return self._events[0][0] if self._events else None

    def run_due(self) -> bool:
        """Call what is due; return whether anything was."""
        ran = False
        while self._events and self._events[0][0] <= self._clock():
            _, _, action = heapq.heappop(self._events)
            action()
            ran = True
        return ran

    def is_open(self, one: str, other: str) -> bool:
        """Tell whether two hosts can reach each other."""
        return not self.cut_off or not (one in self.cut_off or other in self.cut_off)

    def when_healed(self, action: Callable[[], object]) -> None:
        """Call `action()` once, after the next heal. If its hosts are still cut off, it may wait again."""
        self._healed.append(action)

    def partition(self, host: str, for_s: float = math.inf) -> None:
        """Cut a host off: nothing from it or to it arrives. Of two partitions, the longer one counts."""
        until_s = self.cut_off[host] = max(self._clock() + for_s, self.cut_off.get(host, 0.0))
        if until_s < math.inf:
            self.call_later(for_s, functools.partial(self._heal_in_time, host))

    def _heal_in_time(self, host: str) -> None:
        if self._clock() >= self.cut_off.get(host, math.inf):
            self.heal(host)

    def heal(self, host: str) -> None:
        """Reconnect a host; its streams go on with what they have to send."""
        self.cut_off.pop(host, None)
        waiting, self._healed = self._healed, []
        for action in waiting:
            action()
