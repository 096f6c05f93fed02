"""The names under which everything is found: what was told, as Prometheus's families of metrics.

Law: the conventions (prometheus.io/docs/practices/naming). Base units in the name, `_total` on what only grows, one
thing a family. What all processes have done together has no label for that, so that nobody sums a sum: what each worker
has done is in families of its own, `echo7_worker_…`.
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
from echo7.metrics.told import Durations, Told
from reactor.observe.watch import BOUNDS_S

REFUSED, LET_GO = ("accept_", "refused_"), ("idle_",)  # beginnings of reasons; all others are datagrams'

Values = Mapping[str, float]  # label → value; one without a label has the label ""


def drops(told: Told, *beginnings: str) -> Values:
    """Return the drops whose reasons begin so; without beginnings, those of datagrams."""
    every = told.counters.drops.items()
    if beginnings:
        return {reason: count for reason, count in every if reason.startswith(beginnings)}
    return {reason: count for reason, count in every if not reason.startswith(REFUSED + LET_GO)}


# name, help, label, what → one counter each
COUNTERS: Sequence[tuple[str, str, str, Callable[[Told], Values]]] = (
    ("connections", "Connections accepted", "", lambda t: {"": t.counters.connections}),
    (
        "connections_refused",
        "Calls of accept(2) that failed, and callers that were turned away",
        "reason",
        lambda t: drops(t, *REFUSED),
    ),
    ("connections_dropped", "Connections that were let go", "reason", lambda t: drops(t, *LET_GO)),
    (
        "received_bytes",
        "Bytes of payload received",
        "transport",
        lambda t: {"tcp": t.counters.tcp_bytes_received, "udp": t.counters.udp_bytes_received},
    ),
    (
        "sent_bytes",
        "Bytes of payload sent back",
        "transport",
        lambda t: {"tcp": t.counters.tcp_bytes_sent, "udp": t.counters.udp_bytes_sent},
    ),
    ("datagrams_received", "Datagrams received", "", lambda t: {"": t.counters.datagrams_received}),
    ("datagrams_sent", "Datagrams sent back", "", lambda t: {"": t.counters.datagrams_sent}),
    (
        "datagrams_over_rate",
        "Datagrams answered though their source was over its rate (--rate-log-only)",
        "",
        lambda t: {"": t.counters.datagrams_over_rate},
    ),
    ("datagrams_dropped", "Datagrams that got no answer", "reason", drops),
    ("log_lines_dropped", "Log lines that found no room", "", lambda t: {"": t.log_lines_dropped}),
    ("slow_callbacks", "Callbacks slower than --slow-callback", "", lambda t: {"": t.slow_callbacks}),
)
GAUGES: Sequence[tuple[str, str, str, Callable[[Told], Values]]] = (
    ("connections_open", "Connections that are open", "", lambda t: {"": t.counters.connections_open}),
    (
        "connections_held",
        "Open connections that aren't read from until they have read",
        "",
        lambda t: {"": t.gauges.connections_held},
    ),
    (
        "listeners_paused",
        "Listening sockets that take nobody in: full house, or the system is out of something",
        "reason",
        lambda t: {"full": t.gauges.listeners_full, "shortage": t.gauges.listeners_short},
    ),
    ("buffer_bytes", "Bytes to be sent that the kernel hasn't taken yet", "", lambda t: {"": t.gauges.buffer_bytes}),
)
HISTOGRAMS: Sequence[tuple[str, str, Callable[[Told], Durations]]] = (
    ("loop_turn_seconds", "How long turns of the loop have worked, without their sleep", lambda t: t.turns),
    ("loop_lag_seconds", "How late timers have fired", lambda t: t.lags),
)


def families(everyone: Told, workers: Mapping[str, Told]) -> Iterator[Metric]:
    """Yield what all have done together, then what each worker has, if there are any."""
    yield InfoMetricFamily("echo7_build", "What serves here", {"version": __version__})
    yield from _families("echo7", (), [((), everyone)])
    if workers:
        yield from _families("echo7_worker", ("worker",), [((name,), told) for name, told in workers.items()])


def _families(prefix: str, labels: Sequence[str], every: Sequence[tuple[Sequence[str], Told]]) -> Iterator[Metric]:
    for name, text, label, values_of in COUNTERS:
        yield _filled(CounterMetricFamily(f"{prefix}_{name}", text, labels=_with(labels, label)), every, values_of)
    for name, text, label, values_of in GAUGES:
        yield _filled(GaugeMetricFamily(f"{prefix}_{name}", text, labels=_with(labels, label)), every, values_of)
    for name, text, durations_of in HISTOGRAMS:
        histogram = HistogramMetricFamily(f"{prefix}_{name}", text, labels=labels)
        for own, told in every:
            add_durations(histogram, own, BOUNDS_S, durations_of(told).counts, durations_of(told).total_s)
        yield histogram


def _with(labels: Sequence[str], label: str) -> list[str]:
    return [*labels, label] if label else [*labels]


def _filled(
    family: CounterMetricFamily | GaugeMetricFamily,
    every: Iterable[tuple[Sequence[str], Told]],
    values_of: Callable[[Told], Values],
) -> Metric:
    for own, told in every:
        for label, value in values_of(told).items():
            family.add_metric([*own, label] if label else [*own], value)
    return family


def add_durations(
    family: HistogramMetricFamily, labels: Sequence[str], bounds_s: Sequence[float], counts: Sequence[int], sum_s: float
) -> None:
    """Add one histogram: how many fell below each bound, the last above all of them. Prometheus wants the sums."""
    bounds = [*map(floatToGoString, bounds_s), "+Inf"]
    buckets = list(zip(bounds, map(float, itertools.accumulate(counts)), strict=True))
    family.add_metric(labels, buckets, sum_s)
