"""What one process tells of itself beside its counters, and the sum over several. No package needed.

Law: what is told can go through a channel and come out the same, so it is numbers and lists of numbers. What is so at
one moment (Gauges) ends with the process; what has been counted stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from echo7.logs import log, report
from echo7.server import Counters, EchoServer
from reactor.connection import State
from reactor.loop import READ, Reactor
from reactor.observe.describe import is_resting
from reactor.observe.snapshot import pending_bytes
from reactor.observe.watch import BOUNDS_S, Spread, WatchedReactor


class Gauges(NamedTuple):
    """How full a server is at one moment."""

    listeners_full: int = 0  # take nobody in: as many are here as may be
    listeners_short: int = 0  # take nobody in: the system is out of descriptors or memory
    connections_held: int = 0  # aren't read from until they have read
    buffer_bytes: int = 0  # that the kernel hasn't taken yet


class Durations(NamedTuple):
    """A Spread at one moment."""

    counts: list[int] = [0] * (len(BOUNDS_S) + 1)
    total_s: float = 0.0


class Told(NamedTuple):
    """What one process has told, or several together."""

    counters: Counters = Counters()
    gauges: Gauges = Gauges()
    log_lines_dropped: int = 0
    slow_callbacks: int = 0
    turns: Durations = Durations()
    lags: Durations = Durations()

    def as_message(self) -> dict[str, Any]:
        """Return it in a form for a channel."""
        return self._asdict() | {"counters": self.counters._asdict()}

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Told:
        """Return what `as_message` was made of."""
        counters, gauges = Counters(**message["counters"]), Gauges(*message["gauges"])
        turns, lags = Durations(*message["turns"]), Durations(*message["lags"])
        return cls(counters, gauges, message["log_lines_dropped"], message["slow_callbacks"], turns, lags)

    def after_the_end(self) -> Told:
        """Return what is left of it when the process has ended."""
        return self._replace(counters=self.counters._replace(connections_open=0), gauges=Gauges())


def teller(reactor: Reactor, server: EchoServer, handler: log.StderrHandler) -> Callable[[], Told]:
    """Have timers measured; return what returns what there is to tell in this process."""
    if not isinstance(reactor, WatchedReactor):
        raise AssertionError("unreachable: who is asked for metrics makes no other")
    watch = reactor.watch
    reactor.tick()

    def tell() -> Told:
        gauges, turns, lags = gauges_of(server, reactor), durations(watch.turns), durations(watch.lags)
        return Told(server.counters, gauges, handler.dropped, watch.slow_callbacks, turns, lags)

    return tell


def gauges_of(server: EchoServer, reactor: Reactor) -> Gauges:
    """Look at every socket of a server."""
    listeners, endpoints, connections = server.handlers
    short = sum(is_resting(reactor, listener) for listener in listeners)
    full = sum(not (listener.interest or listener.closed) for listener in listeners)
    held = sum(1 for each in connections if each.state is State.OPEN and not each.interest & READ)
    return Gauges(full, short, held, sum(map(pending_bytes, [*endpoints, *connections])))


def total(every: Iterable[Told]) -> Told:
    """Add up what several processes have told."""
    everyone = list(every)
    return Told(
        report.total(told.counters for told in everyone),
        Gauges(*(sum(values) for values in zip(*(told.gauges for told in everyone), strict=True))),
        sum(told.log_lines_dropped for told in everyone),
        sum(told.slow_callbacks for told in everyone),
        _total_durations(told.turns for told in everyone),
        _total_durations(told.lags for told in everyone),
    )


def _total_durations(every: Iterable[Durations]) -> Durations:
    everyone = list(every)
    counts = [sum(counts) for counts in zip(*(each.counts for each in everyone), strict=True)]
    return Durations(counts, sum(each.total_s for each in everyone))


def durations(spread: Spread) -> Durations:
    """Return a Spread as it is now."""
    return Durations(list(spread.counts), spread.total_s)
