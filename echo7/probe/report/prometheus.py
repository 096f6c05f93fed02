"""What probers have found, as Prometheus's families of metrics: `echo7_probe_…`, all by target.

Law: as `metrics.families`. Counters never get smaller: a lost probe with a late answer still counts as "unanswered".
The loss is unanswered / (unanswered + replies), of their rates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from echo7 import __version__
from echo7.metrics.families import add_durations
from echo7.probe.measure.tally import Tally
from echo7.probe.measure.words import Word
from echo7.probe.plan import NS_PER_S
from echo7.probe.prober import Prober
from reactor.observe.watch import Spread
from reactor.sockets.addresses import Address, format_address

# name, help, count
COUNTERS: Sequence[tuple[str, str, Callable[[Tally], int]]] = (
    ("sent", "Probes sent", lambda t: t.sent),
    ("unanswered", "Probes not answered in time: lost, late, refused or unreachable", lambda t: t.unanswered),
    ("late", "Probes answered after their time was over", lambda t: t.words[Word.LATE]),
    ("refused", "Probes to ports where nothing listens", lambda t: t.words[Word.REFUSED]),
    ("unreachable", "Probes without a route to their target", lambda t: t.words[Word.UNREACHABLE]),
    ("too_big", "Probes larger than the path MTU", lambda t: t.words[Word.TOO_BIG]),
    ("duplicates", "Second answers to the same probe", lambda t: t.words[Word.DUPLICATE]),
    ("reordered", "Answers that came after a later probe's", lambda t: t.reordered),
    ("foreign", "Datagrams that answer no probe", lambda t: t.words[Word.FOREIGN]),
    ("unknown", "Answers that may belong to several probes", lambda t: t.words[Word.UNKNOWN]),
)
# name, help, label, counts
LABELLED: Sequence[tuple[str, str, str, Callable[[Prober], Mapping[Any, int]]]] = (
    ("damaged", "Answers with other bytes than were sent", "kind", lambda p: p.ledger.total.harms),
    ("skipped", "Probes that weren't sent when due", "reason", lambda p: p.skipped),
)


class Target:
    """One echo server to probe, and what the run so far has counted."""

    __slots__ = ("address", "host", "is_over", "name", "prober", "rtts")

    def __init__(self, host: str, address: Address) -> None:
        self.host, self.address = host, address
        self.name = f"[{host}]:{address[1]}" if ":" in host and host[0] != "[" else f"{host}:{address[1]}"
        self.prober: Prober | None = None  # None: it can't be probed at the moment
        self.rtts = Spread()  # of replies in time
        self.is_over = False  # all probes that were asked for are settled


def families(targets: Sequence[Target]) -> Iterator[Metric]:
    """Yield the families of all targets; one without a prober has only `running` and `rtt`."""
    yield InfoMetricFamily("echo7_build", "Version of this prober", {"version": __version__})
    running = GaugeMetricFamily("echo7_probe_running", "Whether a target can be probed", labels=["target", "address"])
    rtts = HistogramMetricFamily(
        "echo7_probe_rtt_seconds", "Round trips of replies that came in time", labels=["target"]
    )
    for target in targets:
        running.add_metric([target.name, format_address(target.address)], float(target.prober is not None))
        add_durations(rtts, [target.name], target.rtts.bounds_s, target.rtts.counts, target.rtts.total_s)
    yield from (running, rtts)
    yield from _of_probers([(target.name, target.prober) for target in targets if target.prober is not None])


def _of_probers(probers: Sequence[tuple[str, Prober]]) -> Iterator[Metric]:
    for name, text, count_of in COUNTERS:
        family = CounterMetricFamily(f"echo7_probe_{name}", text, labels=["target"])
        for target, prober in probers:
            family.add_metric([target], count_of(prober.ledger.total))
        yield family
    for name, text, label, counts_of in LABELLED:
        family = CounterMetricFamily(f"echo7_probe_{name}", text, labels=["target", label])
        for target, prober in probers:
            for value, count in counts_of(prober).items():
                family.add_metric([target, value], count)
        yield family
    outstanding = GaugeMetricFamily("echo7_probe_outstanding", "Probes that wait for an answer", labels=["target"])
    lag = SummaryMetricFamily("echo7_probe_send_lag_seconds", "How late probes were sent", labels=["target"])
    for target, prober in probers:
        outstanding.add_metric([target], prober.ledger.total.words[Word.OUTSTANDING])
        lag.add_metric([target], prober.lag.count, prober.lag.total / NS_PER_S)
    yield from (outstanding, lag)
