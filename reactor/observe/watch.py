"""Watch: an `Observer` that measures turns, the lateness of timers, and callbacks that block the loop.

    select returns ─► handler ─► handler ─► timer ─► call ─► select is called
                    └── each is timed, slow ones named ──┘
                    └─────────── one turn's work ────────┘

Law: two wrappers, chosen at construction, see everything. A turn begins and ends at the selector, whose list of ready
handlers notices when each handler begins and ends. Timers and calls go through `Reactor.guard`. If a slow callback
calls another, each is charged with its own time. All slow callbacks are counted; at most one a second is logged.
"""

from __future__ import annotations

import bisect
import functools
import logging
import selectors
from collections.abc import Callable, Iterator

from reactor.doors import NOTHING_OBSERVED, Observer
from reactor.handler import Handler
from reactor.loop import Reactor
from reactor.observe.describe import callback_name, handler_name, timer_of
from reactor.sockets.seconds import check_s
from reactor.sockets.wrapped_selector import Ready, WrappedSelector
from reactor.timers import Callback

__all__ = ["Spread", "Watch"]

BOUNDS_S = tuple(round(step * 10.0**power, 6) for power in range(-5, 1) for step in (1.0, 2.5, 5.0))  # 10 µs … 5 s
SLOW_QUIET_S = 1.0  # between two log lines about slow callbacks
TICK_S = 0.25  # between timers set by `tick`

logger = logging.getLogger("reactor")


class Spread:
    """A histogram of durations, as in Prometheus: a count for each bound, and the sum. Pure."""

    __slots__ = ("bounds_s", "counts", "total_s")

    def __init__(self, bounds_s: tuple[float, ...] = BOUNDS_S) -> None:
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)  # the last one: above all bounds
        self.total_s = 0.0

    def add(self, duration_s: float) -> None:
        """Count one duration. A bound is inclusive."""
        self.counts[bisect.bisect_left(self.bounds_s, duration_s)] += 1
        self.total_s += duration_s


class Watch(Observer):
    """Measures one loop: `Reactor(observer=Watch(slow_s=0.05))`. It may wrap another observer (`inner`).

    A callback is slow if it takes `slow_s` or longer (None: never). Raise ValueError if no clock can measure that.
    """

    __slots__ = (
        "_blamed_s", "_inner", "_logged_s", "_reactor", "_unsaid",
        "buffer", "detach", "lags", "slow_callbacks", "slow_s", "socket", "tell", "timers", "turns",
    )  # fmt: skip

    def __init__(self, slow_s: float | None = None, inner: Observer = NOTHING_OBSERVED) -> None:
        if slow_s is not None:
            check_s("slow_s", slow_s)
        self.turns = Spread()  # how long turns work, without sleep
        self.lags = Spread()  # how late timers fire
        self.slow_callbacks = 0
        self.slow_s = slow_s
        self._inner = inner
        self.detach, self.timers, self.tell = inner.detach, inner.timers, inner.tell  # type: ignore[method-assign]
        self.socket, self.buffer = inner.socket, inner.buffer  # type: ignore[method-assign]
        self._blamed_s = 0.0  # the sum of the slow callbacks' own times
        self._logged_s: float | None = None
        self._unsaid = 0

    def attach(self, reactor: Reactor) -> None:
        """Measure this loop. Raise RuntimeError for a second one."""
        if hasattr(self, "_reactor"):
            raise RuntimeError("this Watch belongs to another loop: make a Watch for each")
        self._reactor = reactor
        self._inner.attach(reactor)

    def selector(self, selector: selectors.BaseSelector) -> selectors.BaseSelector:
        """Return a selector that notices when turns and handlers begin and end."""
        return self._inner.selector(TimedSelector(self, selector))

    def guard(self, guard: Callable[..., None]) -> Callable[..., None]:
        """Return a guard that measures callbacks and the lateness of timers."""
        inner = self._inner.guard(guard)

        def timed(callback: Callback, *args: object, owner: Handler | None = None) -> None:
            timer, real, begun = timer_of(callback), callback, self.begin()
            if timer is not None and timer.callback is not None:
                real = timer.callback
                self.lags.add(max(0.0, begun[0] - timer.deadline_s))
            inner(callback, *args, owner=owner)
            self.end(begun, lambda: callback_name(real))

        return timed

    def now(self) -> float:
        """Return the time on the loop's clock."""
        return self._reactor.now()

    def tick(self) -> None:
        """Set a timer every TICK_S from now on, so that lateness is measured even without other timers."""
        self._reactor.call_later(TICK_S, self.tick)

    def begin(self) -> tuple[float, float]:
        """Begin to time a callback. Pass the result to `end`."""
        return self.now(), self._blamed_s

    def end(self, begun: tuple[float, float], name: Callable[[], str]) -> None:
        """End the timing of a callback. If it was slow, count and log it."""
        began_s, blamed_s = begun
        took_s = self.now() - began_s - (self._blamed_s - blamed_s)
        if self.slow_s is not None and took_s >= self.slow_s:
            self._blamed_s += took_s
            self.slow_callbacks += 1
            self._log(took_s, name)

    def _log(self, took_s: float, name: Callable[[], str]) -> None:
        now_s = self.now()
        if self._logged_s is not None and now_s - self._logged_s < SLOW_QUIET_S:
            self._unsaid += 1
            return
        callback, others = name(), f"; {self._unsaid} more since the last such line" if self._unsaid else ""
        self._logged_s, self._unsaid = now_s, 0
        fields = {"callback": callback, "seconds": round(took_s, 6)}
        text = f"slow callback: {callback} blocked the loop for {took_s * 1e3:.1f} ms{others}"
        logger.warning("%s", text, extra={"event": "slow_callback", "fields": fields})


class TimedSelector(WrappedSelector):
    """Measures turns and the handlers in them, for a Watch."""

    def __init__(self, watch: Watch, inner: selectors.BaseSelector) -> None:
        super().__init__(inner)
        self._watch = watch
        self._returned_s: float | None = None  # when the turn's work began

    def select(self, timeout: float | None = None) -> Ready:
        """Return what is ready, as the inner selector does."""
        watch = self._watch
        if self._returned_s is not None:
            watch.turns.add(watch.now() - self._returned_s)
        ready = self.inner.select(timeout)
        self._returned_s = watch.now()
        return ready if watch.slow_s is None else TimedReady(ready, watch, watch.slow_s)


class TimedReady(list[tuple[selectors.SelectorKey, int]]):
    """A list of ready handlers. While the loop iterates over it, each handler runs between two items."""

    def __init__(self, ready: Ready, watch: Watch, slow_s: float) -> None:
        super().__init__(ready)
        self._watch, self._slow_s = watch, slow_s

    def __iter__(self) -> Iterator[tuple[selectors.SelectorKey, int]]:
        """Yield the items and time each handler. One reading of the clock ends one and begins the next."""
        clock, slow_s, begun = self._watch.now, self._slow_s, self._watch.begin()
        for ready in super().__iter__():
            yield ready
            ended_s = clock()
            if ended_s - begun[0] < slow_s:  # then no callback within it was slow
                begun = ended_s, begun[1]
            else:
                self._watch.end(begun, functools.partial(handler_name, ready[0].data))
                begun = self._watch.begin()
