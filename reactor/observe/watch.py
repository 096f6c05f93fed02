"""WatchedReactor: how long each turn works, how late timers fire, and who holds all others up. A room of its own.

    select returns ─► handler ─► handler ─► timer ─► call ─► select is entered
                    └─ each is timed, the slow ones named ─┘
                    └──────────── one turn's work ─────────┘

Law: `Reactor` knows nothing of this, and whoever doesn't ask pays nothing. Two places see it all. The selector is the
first and the last that a turn calls, and gives out what is ready one by one, so it sees handlers begin and end. Timers
and calls go through `guard`. Where one slow callback has called another, each is charged with its own time.

What a slow callback costs is told once a second at the most, whoever is slow how often; all are counted.
"""

from __future__ import annotations

import bisect
import functools
import logging
import selectors
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from reactor.doors import Handler
from reactor.fastpath.busypoll import Ready, Select, busy_select
from reactor.loop import Reactor
from reactor.observe.describe import callback_name, handler_name
from reactor.timers import Callback, Timer

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


class Watch:
    """What has been seen of one loop. Pure: the time comes in."""

    __slots__ = ("_blamed_s", "_logged_s", "_now", "_unsaid", "lags", "slow_callbacks", "slow_s", "turns")

    def __init__(self, now: Callable[[], float], slow_s: float | None) -> None:
        self.turns = Spread()  # how long turns have worked; sleep isn't work
        self.lags = Spread()  # how late timers have fired
        self.slow_callbacks = 0
        self.slow_s = slow_s
        self._now = now
        self._blamed_s = 0.0  # what slow callbacks have taken, each its own
        self._logged_s: float | None = None
        self._unsaid = 0

    def begin(self) -> tuple[float, float]:
        """Return what `end` needs: a callback begins."""
        return self._now(), self._blamed_s

    def end(self, begun: tuple[float, float], name: Callable[[], str]) -> None:
        """Note that it has ended; if it was slow, count it and say who it was."""
        began_s, blamed_s = begun
        took_s = self._now() - began_s - (self._blamed_s - blamed_s)
        if self.slow_s is not None and took_s >= self.slow_s:
            self._blamed_s += took_s
            self.slow_callbacks += 1
            self._tell(took_s, name)

    def _tell(self, took_s: float, name: Callable[[], str]) -> None:
        now_s = self._now()
        if self._logged_s is not None and now_s - self._logged_s < SLOW_QUIET_S:
            self._unsaid += 1
            return
        who, others = name(), f"; {self._unsaid} more since the last such line" if self._unsaid else ""
        self._logged_s, self._unsaid = now_s, 0
        fields = {"callback": who, "seconds": round(took_s, 6)}
        text = f"a slow callback held everybody up for {took_s * 1e3:.1f} ms: {who}{others}"
        logger.warning("%s", text, extra={"event": "slow_callback", "fields": fields})


class WatchedReactor(Reactor):
    """A Reactor that is watched: see `watch`. `slow_s`: from when on a callback is slow (None: never).

    The other arguments are those of a Reactor.
    """

    __slots__ = ("watch",)

    def __init__(
        self,
        *,
        selector: selectors.BaseSelector | None = None,
        clock: Callable[[], float] = time.monotonic,
        busy_poll_s: float = 0.0,
        slow_s: float | None = None,
        **seams: Any,
    ) -> None:
        self.watch = Watch(clock, slow_s)
        inner = selectors.DefaultSelector() if selector is None else selector
        select = busy_select(inner.select, clock, busy_poll_s)  # inside: to look again and again is no work
        super().__init__(selector=WatchedSelector(inner, select, clock, self.watch), clock=clock, **seams)

    def guard(self, callback: Callback, *args: object, owner: Handler | None = None) -> None:
        """As Reactor does, on the clock."""
        watch, timer = self.watch, getattr(callback, "__self__", None)
        begun = watch.begin()
        real: Callback = callback
        if isinstance(timer, Timer) and timer.callback is not None:
            real = timer.callback
            watch.lags.add(max(0.0, begun[0] - timer.deadline_s))
        super().guard(callback, *args, owner=owner)
        watch.end(begun, lambda: callback_name(real))

    def tick(self) -> None:
        """From now on, set a timer each TICK_S, so that lateness is measured even if nobody else has timers."""
        self.call_later(TICK_S, self.tick)


class WatchedSelector(selectors.BaseSelector):
    """Another selector, and a Watch that is told when a turn begins and ends, and each handler's part of it."""

    def __init__(self, inner: selectors.BaseSelector, select: Select, clock: Callable[[], float], watch: Watch) -> None:
        self._inner, self._select, self._clock, self._watch = inner, select, clock, watch
        self._returned_s: float | None = None  # when the turn's work began

    def select(self, timeout: float | None = None) -> Ready:
        """Return what is ready, as the inner one does."""
        if self._returned_s is not None:
            self._watch.turns.add(self._clock() - self._returned_s)
        ready = self._select(timeout)
        self._returned_s = self._clock()
        slow_s = self._watch.slow_s
        return ready if slow_s is None else TimedReady(ready, self._watch, self._clock, slow_s)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Hand on."""
        return self._inner.register(fileobj, events, data)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Hand on."""
        return self._inner.modify(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Hand on."""
        return self._inner.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Hand on."""
        return self._inner.get_map()

    def close(self) -> None:
        """Hand on."""
        self._inner.close()


class TimedReady(list[tuple[selectors.SelectorKey, int]]):
    """What is ready. Between giving out one and the next, the first one's handler has run."""

    def __init__(self, ready: Ready, watch: Watch, clock: Callable[[], float], slow_s: float) -> None:
        super().__init__(ready)
        self._watch, self._clock, self._slow_s = watch, clock, slow_s

    def __iter__(self) -> Iterator[tuple[selectors.SelectorKey, int]]:
        """Give out one by one, on the clock: one look for each, as one's end is the next one's beginning."""
        clock, slow_s, begun = self._clock, self._slow_s, self._watch.begin()
        for ready in super().__iter__():
            yield ready
            ended_s = clock()
            if ended_s - begun[0] < slow_s:  # so is whatever it has called, and nobody has been charged
                begun = ended_s, begun[1]
            else:
                self._watch.end(begun, functools.partial(handler_name, ready[0].data))
                begun = self._watch.begin()
