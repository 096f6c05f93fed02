"""Busy polling: call select with timeout 0 for a while before blocking. Off by default.

Law: it changes when the loop looks, never what it sees. After activity, the inner selector is polled until
`busy_poll_s` pass without any; only then does it block. That saves the wake-up from epoll_wait(2), which on a virtual
processor takes tens of microseconds, more than the echo itself. It uses a whole processor while clients are busy; an
idle server sleeps. Timers stay punctual: polling ends when the sleep would have ended.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable

from reactor.sockets.seconds import check_s
from reactor.sockets.wrapped_selector import Ready, WrappedSelector


class BusyPollSelector(WrappedSelector):
    """A selector that polls `inner` before it blocks, for `Reactor(selector=…)`.

    It blocks after `busy_poll_s` seconds of `clock` without activity. Raise ValueError if that isn't positive.
    """

    def __init__(self, inner: selectors.BaseSelector, clock: Callable[[], float], busy_poll_s: float) -> None:
        check_s("busy_poll_s", busy_poll_s, zero=False)
        super().__init__(inner)
        self._clock, self.busy_poll_s = clock, busy_poll_s
        self._busy_until_s = clock()  # the first wait blocks

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
