"""Text for people: a line for each event and a summary, like ping. Pure: events and results in, lines out."""

from __future__ import annotations

from collections.abc import Iterator

from echo7.probe.measure.words import Damage, Event, Harm, Word
from echo7.probe.plan import Plan
from echo7.probe.result import Counts, FlowResult, PingResult, Rtt, SizeResult

BAR_CHARACTERS = 30
BLOCK, PLAIN_BLOCK = "█", "#"
SHOWN_SIZES, SHOWN_FLOWS = 20, 20
BLIND_SPOT = "an echo can't tell loss on the way there from loss on the way back"
NO_ECHO = "what came back wasn't what was sent: is that an echo service?"
ODDITIES = (
    "refused", "unreachable", "too_big", "outstanding", "duplicates", "reordered", "truncated", "lengthened",
    "corrupted", "unknown", "foreign",
)  # fmt: skip
SPENT = {Word.LATE: " (late)", Word.DUPLICATE: " (DUP!)"}


def block_for(encoding: str | None) -> str:
    """Return a character for bars that a terminal with this encoding can show; None: stdout is closed."""
    try:
        BLOCK.encode(encoding or "ascii")
    except (UnicodeError, LookupError):
        return PLAIN_BLOCK
    return BLOCK


def ms(time_ns: int) -> str:
    """Return milliseconds, to the microsecond."""
    return f"{time_ns / 1e6:.3f}"


def per_cent(share: float) -> str:
    """Return `0%`, `12.5%`: short, but 0 and 100 only if exact."""
    text = f"{share * 100:.2f}".rstrip("0").rstrip(".")
    if text == "100" and share < 1:
        return ">99.99%"
    return "<0.01%" if text == "0" and share > 0 else f"{text}%"


def first_line(host: str, where: str, plan: Plan) -> str:
    """Return the line that is printed before the first probe."""
    sizes = f"{plan.sizes[0]}" if len(plan.sizes) == 1 else f"{plan.sizes[0]} to {plan.sizes[-1]}"
    flows = f", {plan.flows} flows" if plan.flows > 1 else ""
    return f"ECHO {host} ({where}) over {plan.transport}: {sizes} bytes of payload{flows}"


def event_line(event: Event, where: str, many_flows: bool) -> str:
    """Return the line for one event."""
    flow = f" flow={event.flow}" if many_flows else ""
    if event.rtt_ns is None:
        return _without_answer(event, where, flow)
    marks = SPENT.get(event.word, "") + (" (reordered)" if event.reordered else "")
    harm = f" ({damage_words(event.damage, event.size_bytes)})" if event.damage is not None else ""
    start = f"{event.received_bytes} bytes from {where}: seq={event.sequence}{flow}"
    return f"{start} time={ms(event.rtt_ns)} ms{marks}{harm}"


def _without_answer(event: Event, where: str, flow: str) -> str:
    reason = f": {event.reason}" if event.reason else ""
    if event.word in (Word.FOREIGN, Word.UNKNOWN):
        return f"{event.received_bytes} bytes from {where}{flow}: {event.word.value}{reason}"
    size = f" size={event.size_bytes}" if event.word is Word.TOO_BIG else ""
    said = event.reason if event.word is Word.LOST else event.word.value.replace("_", " ") + reason
    return f"seq={event.sequence}{flow}{size} {said}"


def damage_words(damage: Damage, size_bytes: int) -> str:
    """Return `corrupted at byte 20: bits 01, 1 wrong in all` and the like."""
    if damage.kind is Harm.CORRUPTED:
        return f"corrupted at byte {damage.offset_bytes}: bits {damage.bits:02x}, {damage.bits_wrong} wrong in all"
    return f"{damage.kind.value}: {size_bytes} bytes were sent"


def live_line(counts: Counts, rtt: Rtt | None) -> str:
    """Return the state of a run in one line."""
    times = f", rtt p50/max {ms(rtt.p50_ns)}/{ms(rtt.max_ns)} ms" if rtt is not None else ""
    return f"{counts.sent} sent, {counts.replies} replies, loss {per_cent(counts.loss)}{times}"


def summary(result: PingResult, block: str = "") -> Iterator[str]:
    """Yield the lines of the summary. `block`: the character for bars, empty for none."""
    counts = result.counts
    yield f"--- {result.host} port {result.port} ({result.transport}) echo statistics ---"
    yield (
        f"{counts.sent} sent, {counts.replies} replies, {counts.lost} lost, {counts.late} late, "
        f"loss {per_cent(counts.loss)}, time {result.duration_ns // 1_000_000} ms"
    )
    yield from _oddities(result)
    if result.longest_loss:
        yield f"longest burst of loss: {result.longest_loss}" + (f"; {BLIND_SPOT}" if counts.lost + counts.late else "")
    if counts.foreign and not counts.replies:
        yield NO_ECHO
    yield from _times(result)
    yield from _sizes(result)
    yield from _odd_flows(result)
    if block and result.rtt is not None:
        yield from _bars(result, block)


def _oddities(result: PingResult) -> Iterator[str]:
    counts = result.counts._asdict()
    found = [f"{counts[name]} {name.replace('_', ' ')}" for name in ODDITIES if counts[name]]
    if found:
        yield ", ".join(found)
    if result.skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(result.skipped.items()))
        yield f"not sent when due: {reasons}"


def _times(result: PingResult) -> Iterator[str]:
    rtt = result.rtt
    if rtt is not None:
        numbers = "/".join(map(ms, (rtt.min_ns, rtt.p50_ns, rtt.p90_ns, rtt.p99_ns, rtt.p999_ns, rtt.max_ns)))
        yield f"rtt min/p50/p90/p99/p99.9/max = {numbers} ms"
        jitter = "" if result.jitter_ns is None else f", jitter {ms(result.jitter_ns)} ms"
        yield f"mean {ms(rtt.mean_ns)} ms, standard deviation {ms(rtt.stddev_ns)} ms{jitter}"
    if result.interval_ns:
        yield f"sent after the scheduled moment: mean {ms(result.lag_mean_ns)} ms, max {ms(result.lag_max_ns)} ms"


def _sizes(result: PingResult) -> Iterator[str]:
    mtu = result.path_mtu
    if mtu is not None:
        kernel = f", {mtu.kernel_bytes} with headers says the kernel" if mtu.kernel_bytes else ""
        too_big = "none was too big" if mtu.smallest_too_big_bytes is None else f"{mtu.smallest_too_big_bytes} too big"
        answered = "none" if mtu.largest_answered_bytes is None else f"{mtu.largest_answered_bytes} bytes"
        yield f"path MTU: largest payload answered {answered}, {too_big}{kernel}"
    if len(result.sizes) > 1:
        yield from map(_size_line, result.sizes[:SHOWN_SIZES])
        yield from _more(len(result.sizes) - SHOWN_SIZES, "sizes")


def _size_line(size: SizeResult) -> str:
    counts = size.counts
    times = size.rtt and "/".join(map(ms, (size.rtt.min_ns, size.rtt.mean_ns, size.rtt.max_ns)))
    rtt = f", rtt min/mean/max {times} ms" if times else ""
    too_big = f", {counts.too_big} too big" if counts.too_big else ""
    return f"size {size.size_bytes}: {counts.sent} sent, {counts.replies} replies{too_big}{rtt}"


def _odd_flows(result: PingResult) -> Iterator[str]:
    odd = [flow for flow in result.flows if flow.differs]
    if len(result.flows) > 1:
        yield f"{len(result.flows)} flows, different from the others: {len(odd) or 'none'}"
    yield from map(_flow_line, odd[:SHOWN_FLOWS])
    yield from _more(len(odd) - SHOWN_FLOWS, "flows")


def _flow_line(flow: FlowResult) -> str:
    rtt = f", rtt p50 {ms(flow.rtt.p50_ns)} ms" if flow.rtt is not None else ""
    start = f"flow {flow.flow} (source port {flow.source_port}) differs in {flow.differs.replace(' ', ' and ')}"
    return f"{start}: {flow.counts.sent} sent, loss {per_cent(flow.counts.loss)}{rtt}"


def _more(count: int, what: str) -> Iterator[str]:
    if count > 0:
        yield f"and {count} more {what}; --json has them all"


def _bars(result: PingResult, block: str) -> Iterator[str]:
    most = max(bar.replies for bar in result.bars)
    width = max(len(ms(bar.to_ns)) for bar in result.bars)
    for bar in result.bars:
        drawn = block * -(-bar.replies * BAR_CHARACTERS // most)
        yield f"{ms(bar.from_ns):>{width}} - {ms(bar.to_ns):>{width}} ms {drawn:<{BAR_CHARACTERS}} {bar.replies}"
