"""PingResult: the result of a run. Times are whole nanoseconds, sizes are bytes, shares are floats from 0 to 1.

Law: a result is a snapshot of what the Prober counts, and claims no more than an echo shows: an unanswered probe may
have been lost in either direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from echo7.probe.measure.histogram import Histogram
from echo7.probe.measure.ledger import FlowBook
from echo7.probe.measure.paths import differences
from echo7.probe.measure.tally import Tally
from echo7.probe.measure.words import Harm, Word
from echo7.probe.prober import Prober

BARS = 8
# the verdict on a run: that of the first word here that any probe has
VERDICTS = {
    Word.REPLY: "replies",
    Word.REFUSED: "refused",
    Word.UNREACHABLE: "unreachable",
    Word.LOST: "timed out",
    Word.LATE: "timed out",
    Word.TOO_BIG: "too big",
}
# in the order of Counts
OUTCOMES = (
    Word.REPLY, Word.LATE, Word.LOST, Word.REFUSED, Word.UNREACHABLE, Word.TOO_BIG, Word.OUTSTANDING, Word.DUPLICATE
)  # fmt: skip
UNDECIDED = "undecided"  # no probe is settled


class Counts(NamedTuple):
    """How often each outcome has happened. For the names see `words.Word` and `words.Harm`."""

    sent: int
    replies: int
    late: int
    lost: int
    refused: int
    unreachable: int
    too_big: int
    outstanding: int
    duplicates: int
    reordered: int
    truncated: int
    lengthened: int
    corrupted: int
    unknown: int
    foreign: int

    @property
    def loss(self) -> float:
        """The share of settled probes that weren't answered in time."""
        unanswered = self.late + self.lost + self.refused + self.unreachable
        return unanswered / max(1, unanswered + self.replies)


class Rtt(NamedTuple):
    """Round trips of replies (RFC 2681). Percentiles are within 0.1 %, for single flows and sizes 1.6 %."""

    min_ns: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    p999_ns: int
    max_ns: int
    mean_ns: int
    stddev_ns: int


class Bar(NamedTuple):
    """How many replies took from `from_ns` to less than `to_ns`."""

    from_ns: int
    to_ns: int
    replies: int


class FlowResult(NamedTuple):
    """One flow, that is, one source port."""

    flow: int
    source_port: int
    counts: Counts
    longest_loss: int
    rtt: Rtt | None
    jitter_ns: int | None
    differs: str  # `loss`, `rtt`, `loss rtt`, or empty


class SizeResult(NamedTuple):
    """All probes of one size."""

    size_bytes: int
    counts: Counts
    rtt: Rtt | None


class PathMtu(NamedTuple):
    """What the sizes show about the path MTU (RFC 1191, RFC 8201). None: unknown."""

    kernel_bytes: int | None  # of a packet with headers, from the kernel
    largest_answered_bytes: int | None  # of payload
    smallest_too_big_bytes: int | None  # of payload


class PingResult(NamedTuple):
    """One run."""

    host: str  # as asked for
    address: str
    port: int
    transport: str
    verdict: str  # one of VERDICTS, or UNDECIDED
    started_unix_ns: int  # by the wall clock
    duration_ns: int
    interval_ns: int
    timeout_ns: int
    counts: Counts
    longest_loss: int  # in a row, over all flows
    rtt: Rtt | None  # None: no reply
    jitter_ns: int | None  # mean |difference| of neighbours (RFC 3393); None without neighbours of one size
    bars: tuple[Bar, ...]
    lag_mean_ns: int  # how late probes were sent
    lag_max_ns: int
    skipped: dict[str, int]  # slots without a probe, by reason
    path_mtu: PathMtu | None  # None: without --df
    flows: tuple[FlowResult, ...]
    sizes: tuple[SizeResult, ...]


def result_of(prober: Prober, host: str) -> PingResult:
    """Return the result of a run so far."""
    plan, ledger, lag = prober.plan, prober.ledger, prober.lag
    return PingResult(
        host=host,
        address=str(prober.address[0]),
        port=int(prober.address[1]),
        transport=plan.transport,
        verdict=verdict_of(ledger.total),
        started_unix_ns=prober.started_unix_ns,
        duration_ns=prober.duration_ns,
        interval_ns=plan.interval_ns,
        timeout_ns=plan.timeout_ns,
        counts=counts_of(ledger.total),
        longest_loss=ledger.in_order.longest_loss,
        rtt=rtt_of(ledger.total.rtts),
        jitter_ns=_jitter_ns(ledger.flows),
        bars=tuple(bars_of(ledger.total.rtts)),
        lag_mean_ns=lag.mean,
        lag_max_ns=lag.greatest,
        skipped=dict(prober.skipped),
        path_mtu=_path_mtu(prober) if plan.df else None,
        flows=_flows(prober),
        sizes=tuple(SizeResult(size, counts_of(tally), rtt_of(tally.rtts)) for size, tally in ledger.sizes.items()),
    )


def counts_of(tally: Tally) -> Counts:
    """Return the counts of some probes."""
    outcomes = (tally.words[word] for word in OUTCOMES)
    harms = (tally.harms[harm] for harm in (Harm.TRUNCATED, Harm.LENGTHENED, Harm.CORRUPTED))
    strays = (tally.words[Word.UNKNOWN], tally.words[Word.FOREIGN])
    return Counts._make([tally.sent, *outcomes, tally.reordered, *harms, *strays])


def verdict_of(tally: Tally) -> str:
    """Return one of VERDICTS, or UNDECIDED."""
    return next((verdict for word, verdict in VERDICTS.items() if tally.words[word]), UNDECIDED)


def rtt_of(rtts: Histogram) -> Rtt | None:
    """Return the statistics of round trips; None if there are none."""
    moments = rtts.moments
    if not moments.count:
        return None
    p50_ns, p90_ns, p99_ns, p999_ns = (rtts.percentile(at) for at in (5_000, 9_000, 9_900, 9_990))
    return Rtt(moments.least, p50_ns, p90_ns, p99_ns, p999_ns, moments.greatest, moments.mean, moments.deviation)


def _jitter_ns(books: Sequence[FlowBook]) -> int | None:
    count = sum(book.in_order.jitter.count for book in books)
    return sum(book.in_order.jitter.total for book in books) // count if count else None


def _flows(prober: Prober) -> tuple[FlowResult, ...]:
    books = prober.ledger.flows
    differs = differences([book.tally for book in books])
    return tuple(
        FlowResult(
            flow=index,
            source_port=flow.source_port,
            counts=counts_of(book.tally),
            longest_loss=book.in_order.longest_loss,
            rtt=rtt_of(book.tally.rtts),
            jitter_ns=_jitter_ns([book]),
            differs=differs[index],
        )
        for index, (flow, book) in enumerate(zip(prober.flows, books, strict=True))
    )


def _path_mtu(prober: Prober) -> PathMtu:
    sizes = prober.ledger.sizes
    answered = [size for size, tally in sizes.items() if tally.words[Word.REPLY]]
    too_big = [size for size, tally in sizes.items() if tally.words[Word.TOO_BIG]]
    return PathMtu(prober.path_mtu_bytes, max(answered, default=None), min(too_big, default=None))


def bars_of(rtts: Histogram) -> list[Bar]:
    """Return a histogram of the round trips, with bars on a logarithmic scale."""
    moments = rtts.moments
    if moments.least == moments.greatest:
        # no value, or one
        return [Bar(moments.least, moments.greatest + 1, moments.count)] if moments.count else []
    least = max(1, moments.least)
    edges = [round(least * ((moments.greatest + 1) / least) ** (step / BARS)) for step in range(1, BARS)]
    bounds = [moments.least, *edges, moments.greatest + 1]
    counts = [0] * BARS
    step = 0
    for value, count in rtts:
        while value >= bounds[step + 1]:
            step += 1
        counts[step] += count
    return [Bar(bounds[step], bounds[step + 1], count) for step, count in enumerate(counts)]
