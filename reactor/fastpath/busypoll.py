"""Busy poll: look again and again for a moment before going to sleep. A room beside the simple path; off by default.

Law: it changes when the loop looks, never what it sees. After activity the selector is asked with timeout 0 until
`busy_poll_s` have passed without any, and only then does it block. What it saves is the wake-up: a thread that sleeps
in epoll_wait(2) is woken by another processor, and on a virtual one that takes tens of microseconds, more than the
echo itself. What it costs is a processor for as long as callers are busy; an idle server sleeps as ever.

Timers are as punctual as before: the polling ends where the sleep would have ended.
"""

from __future__ import annotations

import math
import selectors
from collections.abc import Callable

Ready = list[tuple[selectors.SelectorKey, int]]
Select = Callable[[float | None], Ready]


def busy_select(select: Select, clock: Callable[[], float], busy_poll_s: float) -> Select:
    """Return `select` itself for 0 seconds, else one that polls before it blocks. Raise ValueError for nonsense."""
    return BusyPoll(select, clock, busy_poll_s).select if busy_poll_s else select


class BusyPoll:
    """A selector's `select` that polls before it blocks. Pure: selector and clock come in.

    `busy_poll_s`: how long without activity until it blocks, in seconds of `clock`.
    """

    __slots__ = ("_busy_until_s", "_clock", "_select", "busy_poll_s")

    def __init__(self, select: Select, clock: Callable[[], float], busy_poll_s: float) -> None:
        if not 0 < busy_poll_s < math.inf:
            raise ValueError(f"busy_poll_s must be a number of seconds, 0 for none, not {busy_poll_s!r}")
        self._select, self._clock, self.busy_poll_s = select, clock, busy_poll_s
        self._busy_until_s = clock()  # nothing has happened yet, so the first wait blocks

    def select(self, timeout_s: float | None = None) -> Ready:
        """Return what is ready, as `BaseSelector.select` does."""
        ready = self._select(0)
        if not ready and (timeout_s is None or timeout_s > 0):
            ready = self._wait(timeout_s)
        if ready:
            self._busy_until_s = self._clock() + self.busy_poll_s
        return ready

    def _wait(self, timeout_s: float | None) -> Ready:
        select, clock = self._select, self._clock
        now_s = clock()
        end_s = None if timeout_s is None else now_s + timeout_s
        poll_until_s = self._busy_until_s if end_s is None else min(self._busy_until_s, end_s)
        while now_s < poll_until_s:
            ready = select(0)
            if ready:
                return ready
            now_s = clock()
        return select(None if end_s is None else max(0.0, end_s - now_s))
