"""The names of all metrics: from snapshots to Prometheus's families.

Law: names follow the conventions (prometheus.io/docs/practices/naming): base units, `_total` on what only grows, one
thing a family. Sums over all processes are in families of their own, apart from those of each worker
(`echo7_worker_…`), so a query can't add a sum to its parts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString

from echo7 import __version__
from echo7.metrics.snapshot import Durations, Snapshot
from reactor.observe.watch import BOUNDS_S

# how reasons of dropped connections begin; all others are reasons of datagrams
REFUSED, IDLE = ("accept_", "refused_"), ("idle_",)

Values = float | Mapping[str, float]  # a mapping has a value for each value of the label


def drops(snapshot: Snapshot, *beginnings: str) -> Values:
    """Return the drops with reasons that begin so; without beginnings, those of datagrams."""
    every = snapshot.counters.drops.items()
    if beginnings:
        return {reason: count for reason, count in every if reason.startswith(beginnings)}
    return {reason: count for reason, count in every if not reason.startswith(REFUSED + IDLE)}


# name, help, label, values
COUNTERS: Sequence[tuple[str, str, str, Callable[[Snapshot], Values]]] = (
    ("connections", "Connections accepted", "", lambda s: s.counters.connections),
    ("connections_refused", "Calls of accept(2) that failed, and clients that were refused", "reason",
     lambda s: drops(s, *REFUSED)),
    ("connections_dropped", "Connections that were closed for idleness", "reason", lambda s: drops(s, *IDLE)),
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
    ("connections_open", "Connections that are open", "", lambda s: s.counters.connections_open),
    ("connections_held", "Open connections that aren't read from until their clients have read", "",
     lambda s: s.gauges.connections_held),
    ("listeners_paused", "Listening sockets that don't accept: full, or short of descriptors or memory", "reason",
     lambda s: {"full": s.gauges.listeners_full, "shortage": s.gauges.listeners_short}),
    ("buffer_bytes", "Bytes to be sent that the kernel hasn't taken yet", "", lambda s: s.gauges.buffer_bytes),
)  # fmt: skip
HISTOGRAMS: Sequence[tuple[str, str, Callable[[Snapshot], Durations]]] = (
    ("loop_turn_seconds", "How long turns of the loop worked, without their sleep", lambda t: t.turns),
    ("loop_lag_seconds", "How late timers fired", lambda t: t.lags),
)


def families(together: Snapshot, workers: Mapping[str, Snapshot]) -> Iterator[Metric]:
    """Yield the sums over all processes, then the numbers of each worker, if there are any."""
    yield InfoMetricFamily("echo7_build", "Version of this service", {"version": __version__})
    yield from _families("echo7", (), [((), together)])
    if workers:
        yield from _families("echo7_worker", ("worker",), [((name,), snapshot) for name, snapshot in workers.items()])


def _families(prefix: str, labels: Sequence[str], every: Sequence[tuple[Sequence[str], Snapshot]]) -> Iterator[Metric]:
    for name, text, label, values_of in COUNTERS:
        yield _filled(CounterMetricFamily(f"{prefix}_{name}", text, labels=_with(labels, label)), every, values_of)
    for name, text, label, values_of in GAUGES:
        yield _filled(GaugeMetricFamily(f"{prefix}_{name}", text, labels=_with(labels, label)), every, values_of)
    for name, text, durations_of in HISTOGRAMS:
        histogram = HistogramMetricFamily(f"{prefix}_{name}", text, labels=labels)
        for own, snapshot in every:
            add_durations(histogram, own, BOUNDS_S, durations_of(snapshot).counts, durations_of(snapshot).total_s)
        yield histogram


def _with(labels: Sequence[str], label: str) -> list[str]:
    return [*labels, label] if label else [*labels]


def _filled(
    family: CounterMetricFamily | GaugeMetricFamily,
    every: Iterable[tuple[Sequence[str], Snapshot]],
    values_of: Callable[[Snapshot], Values],
) -> Metric:
    for own, snapshot in every:
        values = values_of(snapshot)
        if not isinstance(values, Mapping):
            family.add_metric(own, values)
            continue
        for label, value in values.items():
            family.add_metric([*own, label], value)
    return family


def add_durations(
    family: HistogramMetricFamily, labels: Sequence[str], bounds_s: Sequence[float], counts: Sequence[int], sum_s: float
) -> None:
    """Add one histogram; `counts` has a number for each bucket, the last above all bounds."""
    # Prometheus wants running sums
    bounds = [*map(floatToGoString, bounds_s), "+Inf"]
    buckets = list(zip(bounds, map(float, itertools.accumulate(counts)), strict=True))
    family.add_metric(labels, buckets, sum_s)
