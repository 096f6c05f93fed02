"""Text: lines of events, and the summary."""

from __future__ import annotations

import pytest

from echo7.probe.measure.words import Damage, Event, Harm, Word
from echo7.probe.plan import Plan
from echo7.probe.report.text import BLIND_SPOT, NO_ECHO, block_for, event_line, first_line, live_line, per_cent, summary
from echo7.probe.result import PingResult, counts_of, rtt_of
from tests.echo7.probe.world import LOST, TWICE, Answer, World, after, plan

WHERE = "192.0.2.7:7"


def line(word: Word, many_flows: bool = False, **others: object) -> str:
    return event_line(Event(word, 3, **others), WHERE, many_flows)  # type: ignore[arg-type]


def lines(result: PingResult, block: str = "") -> str:
    return "\n".join(summary(result, block))


def live(world: World) -> str:
    total = world.prober.ledger.total
    return live_line(counts_of(total), rtt_of(total.rtts))


def test_reply_looks_like_pings() -> None:
    """Issue: "Looks and feels like `ping`: a line a reply"."""
    reply = Event(Word.REPLY, 3, 1, 56, 56, 213_400)
    assert event_line(reply, WHERE, False) == "56 bytes from 192.0.2.7:7: seq=1 time=0.213 ms"
    assert event_line(reply, WHERE, True) == "56 bytes from 192.0.2.7:7: seq=1 flow=3 time=0.213 ms"


@pytest.mark.parametrize(
    ("event", "end"),
    [
        (Event(Word.DUPLICATE, 0, 1, 56, 56, 10**6), "time=1.000 ms (DUP!)"),
        (Event(Word.LATE, 0, 1, 56, 56, 3 * 10**9), "time=3000.000 ms (late)"),
        (Event(Word.REPLY, 0, 1, 56, 56, 10**6, True), "time=1.000 ms (reordered)"),
        (
            Event(Word.REPLY, 0, 1, 56, 56, 10**6, damage=Damage(Harm.CORRUPTED, 20, 1, 3)),
            "time=1.000 ms (corrupted at byte 20: bits 01, 3 wrong in all)",
        ),
        (
            Event(Word.REPLY, 0, 1, 56, 40, 10**6, damage=Damage(Harm.TRUNCATED, 40, 0, 0)),
            "time=1.000 ms (truncated: 56 bytes were sent)",
        ),
    ],
)
def test_line_of_an_odd_answer_ends_with_what_is_odd(event: Event, end: str) -> None:
    assert event_line(event, WHERE, False).endswith(end)


def test_line_without_an_answer_says_why() -> None:
    assert line(Word.LOST, sequence=2, reason="timed out") == "seq=2 timed out"
    assert line(Word.REFUSED, sequence=2, reason="why") == "seq=2 refused: why"
    assert line(Word.UNREACHABLE, True, sequence=2, reason="why") == "seq=2 flow=3 unreachable: why"
    assert line(Word.TOO_BIG, sequence=2, size_bytes=1473, reason="why") == "seq=2 size=1473 too big: why"
    assert line(Word.FOREIGN, received_bytes=9, reason="why") == "9 bytes from 192.0.2.7:7: foreign: why"
    assert line(Word.UNKNOWN, received_bytes=9) == "9 bytes from 192.0.2.7:7: unknown"


def test_first_line_says_what_will_be_sent() -> None:
    assert first_line("host", WHERE, Plan()) == "ECHO host (192.0.2.7:7) over udp: 56 bytes of payload"
    wide = first_line("host", WHERE, Plan(sizes=(16, 24), flows=3, tcp=True))
    assert wide == "ECHO host (192.0.2.7:7) over tcp: 16 to 24 bytes of payload, 3 flows"


def test_percentage_is_short_and_0_or_100_only_if_exact() -> None:
    shares = (0, 1, 0.5, 1 / 3, 1e-9, 1 - 1e-9, 0.125)
    assert list(map(per_cent, shares)) == ["0%", "100%", "50%", "33.33%", "<0.01%", ">99.99%", "12.5%"]


@pytest.mark.parametrize(
    ("encoding", "block"), [("utf-8", "█"), ("ascii", "#"), ("no-such-encoding", "#"), (None, "#")]
)
def test_bars_are_drawn_with_what_the_encoding_has(encoding: str | None, block: str) -> None:
    assert block_for(encoding) == block


def test_good_run_has_a_short_summary() -> None:
    world = World(plan(4, 0.5))
    assert lines(world.run()).splitlines() == [
        "--- here port 7 (udp) echo statistics ---",
        "4 sent, 4 replies, 0 lost, 0 late, loss 0%, time 1750 ms",
        "rtt min/p50/p90/p99/p99.9/max = 250.000/250.000/250.000/250.000/250.000/250.000 ms",
        "mean 250.000 ms, standard deviation 0.000 ms, jitter 0.000 ms",
        "sent after the scheduled moment: mean 0.000 ms, max 0.000 ms",
    ]
    assert live(world) == "4 sent, 4 replies, loss 0%, rtt p50/max 250.000/250.000 ms"


def test_loss_is_reported_with_what_an_echo_cannot_tell() -> None:
    """Issue: "Honest about what an echo can't tell (up- from downstream loss)", "loss with its longest burst"."""
    world = World(plan(4, 0.5), {2: LOST, 3: LOST, 4: TWICE})
    text = lines(world.run())
    assert "4 sent, 2 replies, 2 lost, 0 late, loss 50%" in text
    assert "1 duplicates" in text
    assert f"longest burst of loss: 2; {BLIND_SPOT}" in text
    # there were no neighbours
    assert "jitter" not in text


def test_run_without_replies_has_no_times() -> None:
    world = World(plan(2, 0.5), usual=LOST)
    text = lines(world.run(), "#")
    assert "2 sent, 0 replies, 2 lost" in text
    assert "rtt" not in text
    assert live(world) == "2 sent, 0 replies, loss 100%"


def test_refused_probes_have_no_blind_spot() -> None:
    world = World(plan(1))
    world.network.plan("sendmsg", "ECONNREFUSED")
    text = lines(world.run())
    assert "1 refused" in text
    assert "longest burst of loss: 1" in text
    assert BLIND_SPOT not in text


def test_garbage_asks_whether_it_is_an_echo_service() -> None:
    garbage = (Answer(change=lambda data: b"\0" * len(data)),)
    assert NO_ECHO in lines(World(plan(1), usual=garbage).run())


def test_skipped_slots_are_reported() -> None:
    text = lines(World(plan(2, 0.125, sizes=(8,))).run())
    assert "not sent when due: 1 busy" in text


def test_flood_has_no_lag() -> None:
    assert "scheduled" not in lines(World(plan(2, 0)).run())


def test_sizes_and_path_mtu_have_lines() -> None:
    world = World(plan(2, 0.5, sizes=(100, 200), df=True))
    world.network.plan("sendmsg", "EMSGSIZE", after=2)
    text = lines(world.run())
    assert "path MTU: largest payload answered 100 bytes, 200 too big" in text
    assert "size 100: 1 sent, 1 replies, rtt min/mean/max 250.000/250.000/250.000 ms" in text
    assert "size 200: 1 sent, 0 replies, 1 too big" in text
    nothing = World(plan(1, df=True), usual=LOST)
    nothing.prober.path_mtu_bytes = 1400
    assert "payload answered none, none was too big, 1400 with headers says the kernel" in lines(nothing.run())


def test_long_list_of_sizes_is_cut() -> None:
    text = lines(World(plan(30, 0, sizes=tuple(range(20, 50)))).run())
    assert "size 39:" in text
    assert "size 40:" not in text
    assert "and 10 more sizes; --json has them all" in text


def test_flow_that_differs_has_a_line() -> None:
    slow = dict.fromkeys(range(3, 41, 4), after(0.5))
    text = lines(World(plan(40, 0.125, 1.0, flows=4), {**slow, 7: LOST}).run())
    assert "4 flows, different from the others: 1" in text
    assert "flow 2 (source port 32770) differs in rtt: 10 sent, loss 10%, rtt p50 " in text
    dead = dict.fromkeys(range(3, 41, 4), LOST)
    text = lines(World(plan(40, 0.125, 1.0, flows=4), dead).run())
    assert text.splitlines()[-1].endswith("differs in loss: 10 sent, loss 100%")
    assert "2 flows, different from the others: none" in lines(World(plan(2, flows=2)).run())


@pytest.mark.parametrize("block", ["█", "#"])
def test_bars_are_proportional_to_replies(block: str) -> None:
    """Issue: "a small histogram of RTTs in the summary on a terminal"; the longest bar is thirty characters."""
    text = lines(World(plan(8, 0.5), {1: after(1.0)}).run(), block).splitlines()[-8:]
    assert text[0].endswith(f" ms {block * 30} 7")
    assert text[-1].rstrip().endswith(" 1")
    assert block * 5 in text[-1]
    assert "250.000 -" in text[0]
