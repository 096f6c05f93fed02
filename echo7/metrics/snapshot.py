"""Snapshot: the numbers of one process, and the sum over several processes. Needs no package.

Law: a channel carries a snapshot unchanged, so it holds only numbers and lists of numbers. Gauges end with the process;
counters stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from echo7.logs import log, report
from echo7.server import Counters, EchoServer
from reactor.connection import State
from reactor.loop import READ, Reactor
from reactor.observe.snapshot import pending_bytes
from reactor.observe.watch import BOUNDS_S, Spread, Watch


class Gauges(NamedTuple):
    """How full a server is at one moment."""

    listeners_full: int = 0  # not accepting: at the connection limit
    listeners_short: int = 0  # not accepting: short of descriptors or memory
    connections_held: int = 0  # not read from: backpressure
    buffer_bytes: int = 0  # waiting to be sent
    connections_limit: int = 0  # as configured; 0: none
    connections_possible: int = 0  # as configured, but no more than the descriptors allow
    sockets_lost: int = 0  # serving sockets that broke


class Durations(NamedTuple):
    """A Spread at one moment."""

    counts: list[int] = [0] * (len(BOUNDS_S) + 1)
    total_s: float = 0.0


class Snapshot(NamedTuple):
    """The numbers of one process, or of several together."""

    counters: Counters = Counters()
    gauges: Gauges = Gauges()
    log_lines_dropped: int = 0
    slow_callbacks: int = 0
    turns: Durations = Durations()
    lags: Durations = Durations()

    def as_message(self) -> dict[str, Any]:
        """Return the snapshot in a form for a channel."""
        return self._asdict() | {"counters": self.counters._asdict()}

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Snapshot:
        """Return the snapshot that `as_message` was called on."""
        counters, gauges = Counters(**message["counters"]), Gauges(*message["gauges"])
        turns, lags = Durations(*message["turns"]), Durations(*message["lags"])
        return cls(counters, gauges, message["log_lines_dropped"], message["slow_callbacks"], turns, lags)

    def after_the_end(self) -> Snapshot:
        """Return the part that still counts when the process has ended."""
        return self._replace(counters=self.counters._replace(connections_open=0), gauges=Gauges())


def snapshot_maker(reactor: Reactor, server: EchoServer, handler: log.StderrHandler) -> Callable[[], Snapshot]:
    """Start measuring how late timers fire; return a function that takes a snapshot of this process."""
    watch = reactor.observer
    if not isinstance(watch, Watch):
        raise AssertionError("unreachable: with metrics, assembly makes a loop with a Watch")
    watch.tick()

    def take() -> Snapshot:
        turns, lags = _durations(watch.turns), _durations(watch.lags)
        return Snapshot(
            server.counters, gauges_of(server, reactor), handler.dropped, watch.slow_callbacks, turns, lags
        )  # fmt: skip

    return take


def gauges_of(server: EchoServer, reactor: Reactor) -> Gauges:
    """Return the gauges of a server, from its sockets."""
    listeners, endpoints, connections = server.handlers
    suspended = reactor.snapshot().suspended
    short = sum(listener in suspended for listener in listeners)
    full = sum(not (listener.interest or listener.closed) for listener in listeners)
    held = sum(1 for each in connections if each.state is State.OPEN and not each.interest & READ)
    pending = sum(pending_bytes(handler) for handler in (*endpoints, *connections))
    return Gauges(full, short, held, pending, *server.connection_limits, sockets_lost(server))


def sockets_lost(server: EchoServer) -> int:
    """Return how many serving sockets broke. A stopping server closes its sockets itself."""
    listeners, endpoints, _ = server.handlers
    return 0 if server.stopping else sum(each.closed for each in (*listeners, *endpoints))


def total(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Add up the snapshots of several processes."""
    every = list(snapshots)
    return Snapshot(
        report.total(each.counters for each in every),
        Gauges(*(sum(values) for values in zip(*(each.gauges for each in every), strict=True))),
        sum(each.log_lines_dropped for each in every),
        sum(each.slow_callbacks for each in every),
        _total_durations([each.turns for each in every]),
        _total_durations([each.lags for each in every]),
    )


def _total_durations(every: list[Durations]) -> Durations:
    counts = [sum(counts) for counts in zip(*(each.counts for each in every), strict=True)]
    return Durations(counts, sum(each.total_s for each in every))


def _durations(spread: Spread) -> Durations:
    return Durations(list(spread.counts), spread.total_s)
