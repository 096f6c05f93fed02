"""The names of all metrics: turns snapshots into Prometheus's families.

Law: names follow the conventions (prometheus.io/docs/practices/naming): base units, and `_total` for counters. Each
worker has families of its own (`echo7_worker_…`), apart from the sums, so a query can't add a sum to its parts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)  # fmt: skip
from prometheus_client.utils import floatToGoString

from echo7 import __version__
from echo7.metrics.snapshot import Durations, Snapshot
from reactor.observe.watch import BOUNDS_S

# prefixes of the drop reasons of connections; all other reasons are of datagrams
REFUSED, IDLE = ("accept_", "refused_"), ("idle_",)

Values = float | Mapping[Any, float]  # a mapping: by the value of one more label
Simple = CounterMetricFamily | GaugeMetricFamily


def drops(snapshot: Snapshot, *prefixes: str) -> Values:
    """Return the drops of which the reason has a prefix; without prefixes, those of datagrams."""
    every = snapshot.counters.drops.items()
    if prefixes:
        return {reason: count for reason, count in every if reason.startswith(prefixes)}
    return {reason: count for reason, count in every if not reason.startswith(REFUSED + IDLE)}


# name, help, label, values
COUNTERS: Sequence[tuple[str, str, str, Callable[[Snapshot], Values]]] = (
    ("connections", "Connections accepted", "", lambda s: s.counters.connections),
    ("connections_refused", "Failed calls of accept(2), and refused clients", "reason",
     lambda s: drops(s, *REFUSED)),
    ("connections_dropped", "Connections closed because they were idle or silent", "reason", lambda s: drops(s, *IDLE)),
    ("received_bytes", "Bytes of payload received", "transport",
     lambda s: {"tcp": s.counters.tcp_bytes_received, "udp": s.counters.udp_bytes_received}),
    ("sent_bytes", "Bytes of payload sent back", "transport",
     lambda s: {"tcp": s.counters.tcp_bytes_sent, "udp": s.counters.udp_bytes_sent}),
    ("datagrams_received", "Datagrams received", "", lambda s: s.counters.datagrams_received),
    ("datagrams_sent", "Datagrams sent back", "", lambda s: s.counters.datagrams_sent),
    ("datagrams_over_rate", "Datagrams answered though their source was over its rate (--rate-log-only)", "",
     lambda s: s.counters.datagrams_over_rate),
    ("datagrams_dropped", "Datagrams that got no answer", "reason", drops),
    ("log_lines_dropped", "Log lines dropped because stderr took no more", "", lambda s: s.log_lines_dropped),
    ("slow_callbacks", "Callbacks slower than --slow-callback", "", lambda s: s.slow_callbacks),
)  # fmt: skip
GAUGES: Sequence[tuple[str, str, str, Callable[[Snapshot], Values]]] = (
    ("connections_open", "Open connections", "", lambda s: s.counters.connections_open),
    ("connections_limit", "Connections that may be open (--max-connections); 0: no limit", "",
     lambda s: s.gauges.connections_limit),
    ("connections_limit_effective", "Connections that may be open and that the limit of descriptors allows", "",
     lambda s: s.gauges.connections_possible),
    ("connections_held", "Open connections under backpressure: not read from until their clients read", "",
     lambda s: s.gauges.connections_held),
    ("listeners_paused", "Listening sockets that don't accept, because of the limit or of a shortage", "reason",
     lambda s: {"full": s.gauges.listeners_full, "shortage": s.gauges.listeners_short}),
    ("buffer_bytes", "Bytes that wait to be sent", "", lambda s: s.gauges.buffer_bytes),
    ("sockets_lost", "Serving sockets that broke and were closed", "", lambda s: s.gauges.sockets_lost),
)  # fmt: skip
HISTOGRAMS: Sequence[tuple[str, str, Callable[[Snapshot], Durations]]] = (
    ("loop_turn_seconds", "Duration of turns of the loop, without their sleep", lambda t: t.turns),
    ("loop_lag_seconds", "How late timers fired", lambda t: t.lags),
)


def families(together: Snapshot, workers: Mapping[str, Snapshot]) -> Iterator[Metric]:
    """Yield the sums over all processes, then the numbers of each worker, if there are any."""
    yield InfoMetricFamily("echo7_build", "Version of this service", {"version": __version__})
    yield from _families("echo7", (), [((), together)])
    if workers:
        yield from _families("echo7_worker", ("worker",), [((name,), snapshot) for name, snapshot in workers.items()])


def _families(prefix: str, labels: Sequence[str], every: Sequence[tuple[Sequence[str], Snapshot]]) -> Iterator[Metric]:
    kinds: Sequence[type[Simple]] = (CounterMetricFamily, GaugeMetricFamily)
    for kind, table in zip(kinds, (COUNTERS, GAUGES), strict=True):
        for name, text, label, values_of in table:
            family = kind(f"{prefix}_{name}", text, labels=[*labels, *label.split()])
            yield filled(family, [(own, values_of(snapshot)) for own, snapshot in every])
    for name, text, durations_of in HISTOGRAMS:
        histogram = HistogramMetricFamily(f"{prefix}_{name}", text, labels=labels)
        for own, snapshot in every:
            add_durations(histogram, own, BOUNDS_S, durations_of(snapshot).counts, durations_of(snapshot).total_s)
        yield histogram


def filled(family: Simple, rows: Iterable[tuple[Sequence[str], Values]]) -> Metric:
    """Add a value, or a value for each value of the last label, for each row of labels. Return the family."""
    for labels, values in rows:
        if not isinstance(values, Mapping):
            family.add_metric(labels, values)
            continue
        for label, value in values.items():
            family.add_metric([*labels, label], value)
    return family


def add_durations(
    family: HistogramMetricFamily, labels: Sequence[str], bounds_s: Sequence[float], counts: Sequence[int], sum_s: float
) -> None:
    """Add one histogram; `counts` has a number for each bucket, the last one for values above all bounds."""
    # Prometheus expects cumulative counts
    bounds = [*map(floatToGoString, bounds_s), "+Inf"]
    buckets = list(zip(bounds, map(float, itertools.accumulate(counts)), strict=True))
    family.add_metric(labels, buckets, sum_s)
