"""The numbers of probers as Prometheus's families of metrics: `echo7_probe_…`, all by target.

Law: as `metrics.families`. Counters never get smaller: a lost probe with a late answer still counts as "unanswered".
The loss is unanswered / (unanswered + replies), of their rates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)  # fmt: skip

from echo7 import __version__
from echo7.metrics.families import Values, add_durations, filled
from echo7.probe.measure.tally import Tally
from echo7.probe.measure.words import Word
from echo7.probe.plan import NS_PER_S
from echo7.probe.prober import Prober
from reactor.observe.watch import Spread
from reactor.sockets.addresses import Address, format_address

# name, help, label, values
COUNTERS: Sequence[tuple[str, str, str, Callable[[Tally, Prober], Values]]] = (
    ("sent", "Probes sent", "", lambda t, p: t.sent),
    ("unanswered", "Probes not answered in time: lost, late, refused or unreachable", "", lambda t, p: t.unanswered),
    ("late", "Probes answered after the time-out", "", lambda t, p: t.words[Word.LATE]),
    ("refused", "Probes to ports where nothing listens", "", lambda t, p: t.words[Word.REFUSED]),
    ("unreachable", "Probes without a route to their target", "", lambda t, p: t.words[Word.UNREACHABLE]),
    ("too_big", "Probes larger than the path MTU", "", lambda t, p: t.words[Word.TOO_BIG]),
    ("duplicates", "Second answers to the same probe", "", lambda t, p: t.words[Word.DUPLICATE]),
    ("reordered", "Answers that came after a later probe's", "", lambda t, p: t.reordered),
    ("foreign", "Datagrams that answer no probe", "", lambda t, p: t.words[Word.FOREIGN]),
    ("unknown", "Answers that may belong to several probes", "", lambda t, p: t.words[Word.UNKNOWN]),
    ("damaged", "Answers with other bytes than were sent", "kind", lambda t, p: t.harms),
    ("skipped", "Probes that weren't sent when due", "reason", lambda t, p: p.skipped),
)


class Target:
    """One echo server to probe, and its prober."""

    def __init__(self, host: str, port: int, address: Address | None) -> None:
        self.host, self.port, self.address = host, port, address  # None: the name can't be resolved now
        self.name = f"[{host}]:{port}" if ":" in host and host[0] != "[" else f"{host}:{port}"
        self.prober: Prober | None = None  # None: it can't be probed now
        self.rtts = Spread()  # of replies in time
        self.is_over = False  # all probes are settled

    @property
    def where(self) -> str:
        """The address as text, empty if it isn't known."""
        return "" if self.address is None else format_address(self.address)


def families(targets: Sequence[Target]) -> Iterator[Metric]:
    """Yield the families of all targets. A target without a prober has only `running` and `rtt`."""
    yield InfoMetricFamily("echo7_build", "Version of this prober", {"version": __version__})
    running = GaugeMetricFamily("echo7_probe_running", "Whether a target can be probed", labels=["target", "address"])
    yield filled(running, [([t.name, t.where], float(t.prober is not None)) for t in targets])
    text = "Round trips of replies that came in time"
    rtts = HistogramMetricFamily("echo7_probe_rtt_seconds", text, labels=["target"])
    for target in targets:
        add_durations(rtts, [target.name], target.rtts.bounds_s, target.rtts.counts, target.rtts.total_s)
    yield rtts
    yield from _of_probers([([target.name], target.prober) for target in targets if target.prober is not None])


def _of_probers(probers: Sequence[tuple[Sequence[str], Prober]]) -> Iterator[Metric]:
    for name, text, label, values_of in COUNTERS:
        family = CounterMetricFamily(f"echo7_probe_{name}", text, labels=["target", *label.split()])
        yield filled(family, [(target, values_of(prober.ledger.total, prober)) for target, prober in probers])
    outstanding = GaugeMetricFamily("echo7_probe_outstanding", "Probes that wait for an answer", labels=["target"])
    yield filled(outstanding, [(target, prober.ledger.outstanding) for target, prober in probers])
    lag = SummaryMetricFamily("echo7_probe_send_lag_seconds", "How late probes were sent", labels=["target"])
    for target, prober in probers:
        lag.add_metric(target, prober.lag.count, prober.lag.total / NS_PER_S)
    yield lag
