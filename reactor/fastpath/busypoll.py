"""Busy polling: ask the selector again and again for a moment before going to sleep. Off unless asked for.

Law: it changes when the loop looks, never what it sees. After activity the inner selector is asked with timeout 0
until `busy_poll_s` have passed without any, and only then does it block. It saves the wake-up: a thread that sleeps in
epoll_wait(2) is woken by another processor, and on a virtual one that takes tens of microseconds, more than the echo
itself. It costs a processor for as long as clients are busy; an idle server sleeps as ever.

Timers are as punctual as before: polling ends where the sleep would have ended.
"""

from __future__ import annotations

import math
import selectors
from collections.abc import Callable

from reactor.sockets.wrapped_selector import Ready, WrappedSelector


class BusyPollSelector(WrappedSelector):
    """Another selector that polls before it blocks, for `Reactor(selector=…)`.

    `busy_poll_s`: how long without activity until it blocks, in seconds of `clock`. Raise ValueError for nonsense.
    """

    def __init__(self, inner: selectors.BaseSelector, clock: Callable[[], float], busy_poll_s: float) -> None:
        if not 0 < busy_poll_s < math.inf:
            raise ValueError(f"busy_poll_s must be a positive number of seconds, not {busy_poll_s!r}")
        super().__init__(inner)
        self._clock, self.busy_poll_s = clock, busy_poll_s
        self._busy_until_s = clock()  # nothing has happened yet, so the first wait blocks

    def select(self, timeout: float | None = None) -> Ready:
        """Return what is ready, as `BaseSelector.select` does."""
        ready = self.inner.select(0)
        if not ready and (timeout is None or timeout > 0):
            ready = self._wait(timeout)
        if ready:
            self._busy_until_s = self._clock() + self.busy_poll_s
        return ready

    def _wait(self, timeout_s: float | None) -> Ready:
        select, clock = self.inner.select, self._clock
        now_s = clock()
        end_s = None if timeout_s is None else now_s + timeout_s
        poll_until_s = self._busy_until_s if end_s is None else min(self._busy_until_s, end_s)
        while now_s < poll_until_s:
            ready = select(0)
            if ready:
                return ready
            now_s = clock()
        return select(None if end_s is None else max(0.0, end_s - now_s))
