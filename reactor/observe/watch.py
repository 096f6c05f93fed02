"""Watch: how long each turn works, how late timers fire, and which callbacks block the loop. It is an `Observer`.

    select returns ─► handler ─► handler ─► timer ─► call ─► select is entered
                    └─ each is timed, the slow ones named ─┘
                    └──────────── one turn's work ─────────┘

Law: two places see it all, and both are wrappers chosen at construction. The selector is the first and the last that a
turn calls, and gives out what is ready one by one, so it sees handlers begin and end. Timers and calls go through
`Reactor.guard`. Where one slow callback has called another, each is charged with its own time.

Slow callbacks are logged once a second at most; all are counted.
"""

from __future__ import annotations

import bisect
import functools
import logging
import selectors
from collections.abc import Callable, Iterator
from typing import Any

from reactor.buffer import Bytes, SendBuffer
from reactor.doors import NOTHING_OBSERVED, Handler, Observer
from reactor.loop import Reactor
from reactor.observe.describe import callback_name, handler_name, timer_of
from reactor.sockets.wrapped_selector import Ready, WrappedSelector
from reactor.timers import Callback, Timers

__all__ = ["Spread", "Watch"]

BOUNDS_S = tuple(round(step * 10.0**power, 6) for power in range(-5, 1) for step in (1.0, 2.5, 5.0))  # 10 µs … 5 s
SLOW_QUIET_S = 1.0  # between two log lines about slow callbacks
TICK_S = 0.25  # between two timers whose lateness is measured, if nobody else has any

logger = logging.getLogger("reactor")


class Spread:
    """How many durations fell below each bound, and their sum: a histogram as Prometheus has it. Pure."""

    __slots__ = ("bounds_s", "counts", "total_s")

    def __init__(self, bounds_s: tuple[float, ...] = BOUNDS_S) -> None:
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)  # the last one is of what is above all bounds
        self.total_s = 0.0

    def add(self, duration_s: float) -> None:
        """Count one. A bound belongs to what is below it."""
        self.counts[bisect.bisect_left(self.bounds_s, duration_s)] += 1
        self.total_s += duration_s


class Watch(Observer):
    """Measures one loop: `Reactor(observer=Watch(slow_s=0.05))`. It may stand around another observer (`inner`).

    `slow_s`: from when on a callback is slow (None: never).
    """

    __slots__ = (
        "_blamed_s", "_inner", "_logged_s", "_reactor", "_unsaid", "lags", "slow_callbacks", "slow_s", "turns",
    )  # fmt: skip

    def __init__(self, slow_s: float | None = None, inner: Observer = NOTHING_OBSERVED) -> None:
        self.turns = Spread()  # how long turns have worked; sleep isn't work
        self.lags = Spread()  # how late timers have fired
        self.slow_callbacks = 0
        self.slow_s = slow_s
        self._inner = inner
        self._blamed_s = 0.0  # what slow callbacks have taken, each its own
        self._logged_s: float | None = None
        self._unsaid = 0

    # ---- the doors

    def attach(self, reactor: Reactor) -> None:
        """Belong to this loop."""
        self._reactor = reactor
        self._inner.attach(reactor)

    def detach(self) -> None:
        """Go on measuring; the inner observer tells nothing more."""
        self._inner.detach()

    def selector(self, selector: selectors.BaseSelector) -> selectors.BaseSelector:
        """Return a selector that sees turns and handlers begin and end."""
        return self._inner.selector(TimedSelector(self, selector))

    def timers(self) -> Timers:
        """As `inner`."""
        return self._inner.timers()

    def guard(self, guard: Callable[..., None]) -> Callable[..., None]:
        """Return a guard that measures how long a callback takes, and how late a timer fires."""
        inner = self._inner.guard(guard)

        def timed(callback: Callback, *args: object, owner: Handler | None = None) -> None:
            timer, real, begun = timer_of(callback), callback, self.begin()
            if timer is not None and timer.callback is not None:
                real = timer.callback
                self.lags.add(max(0.0, begun[0] - timer.deadline_s))
            inner(callback, *args, owner=owner)
            self.end(begun, lambda: callback_name(real))

        return timed

    def socket(self, handler: Handler, sock: Any) -> Any:
        """As `inner`."""
        return self._inner.socket(handler, sock)

    def buffer(self, handler: Handler, pending: Bytes) -> SendBuffer:
        """As `inner`."""
        return self._inner.buffer(handler, pending)

    def tell(self, kind: str, who: object, **facts: Any) -> None:
        """As `inner`."""
        self._inner.tell(kind, who, **facts)

    # ---- measuring

    def now(self) -> float:
        """Return the time on the loop's clock."""
        return self._reactor.now()

    def tick(self) -> None:
        """From now on, set a timer each TICK_S, so that lateness is measured even if there are no other timers."""
        self._reactor.call_later(TICK_S, self.tick)

    def begin(self) -> tuple[float, float]:
        """Return what `end` needs: a callback begins."""
        return self.now(), self._blamed_s

    def end(self, begun: tuple[float, float], name: Callable[[], str]) -> None:
        """Note that a callback has ended; if it was slow, count it and log its name."""
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
    """Tells a Watch when a turn begins and ends, and each handler's part of it."""

    def __init__(self, watch: Watch, inner: selectors.BaseSelector) -> None:
        super().__init__(inner)
        self._watch = watch
        self._returned_s: float | None = None  # when the turn's work began

    def select(self, timeout: float | None = None) -> Ready:
        """Return what is ready, as the inner one does."""
        watch = self._watch
        if self._returned_s is not None:
            watch.turns.add(watch.now() - self._returned_s)
        ready = self.inner.select(timeout)
        self._returned_s = watch.now()
        return ready if watch.slow_s is None else TimedReady(ready, watch, watch.slow_s)


class TimedReady(list[tuple[selectors.SelectorKey, int]]):
    """What is ready. Between giving out one and the next, the first one's handler has run."""

    def __init__(self, ready: Ready, watch: Watch, slow_s: float) -> None:
        super().__init__(ready)
        self._watch, self._slow_s = watch, slow_s

    def __iter__(self) -> Iterator[tuple[selectors.SelectorKey, int]]:
        """Give out one by one, on the clock: one look for each, as one's end is the next one's beginning."""
        clock, slow_s, begun = self._watch.now, self._slow_s, self._watch.begin()
        for ready in super().__iter__():
            yield ready
            ended_s = clock()
            if ended_s - begun[0] < slow_s:  # so is whatever it has called, and nobody has been charged
                begun = ended_s, begun[1]
            else:
                self._watch.end(begun, functools.partial(handler_name, ready[0].data))
                begun = self._watch.begin()
