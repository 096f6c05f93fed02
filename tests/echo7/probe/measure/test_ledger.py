"""What has become of each probe: every datagram makes one event, every probe has one outcome."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from echo7.probe.measure import ledger as ledger_module
from echo7.probe.measure.ledger import FORGOTTEN, NO_PROBE, TIMED_OUT, UNTELLABLE, Ledger
from echo7.probe.measure.payload import Payloads
from echo7.probe.measure.tally import Probe
from echo7.probe.measure.words import Damage, Event, Harm, Word

PAYLOADS = Payloads(1)
TIMEOUT_NS = 1000


def book(flows: int = 1, sizes: Sequence[int] = (56,), stream: bool = False) -> Ledger:
    return Ledger(PAYLOADS, flows, sizes, TIMEOUT_NS, stream)


def made(probe: Probe) -> bytes:
    return PAYLOADS.make(probe.flow, probe.sequence, probe.size_bytes)


def answer(ledger: Ledger, probe: Probe, at_ns: int = 10, queued_ns: int = 0) -> Event:
    return ledger.arrived(probe.flow, made(probe), at_ns, queued_ns)


def words(ledger: Ledger) -> dict[Word, int]:
    return {word: count for word, count in ledger.total.words.items() if count}


def expire(ledger: Ledger, now_ns: int) -> list[Event]:
    return list(ledger.expired(now_ns))


# ---------------------------------------------------------------- in time, late, twice, in another order


def test_an_answer_in_time_is_a_reply_with_its_round_trip() -> None:
    ledger = book()
    probe = ledger.send(0, 56, 100)
    assert answer(ledger, probe, 350) == Event(Word.REPLY, 0, 1, 56, 56, 250, sent_ns=100)
    assert words(ledger) == {Word.REPLY: 1}
    assert ledger.total.rtts.moments.total == 250


@pytest.mark.parametrize(("queued_ns", "rtt_ns"), [(0, 250), (50, 200), (250, 0), (251, 250), (-1, 250), (10**18, 250)])
def test_time_in_the_kernels_queue_is_not_the_networks(queued_ns: int, rtt_ns: int) -> None:
    """Issue: the stamp "only subtracts queueing delay, ignored when outside 0…RTT": the wall clock may jump."""
    ledger = book()
    assert answer(ledger, ledger.send(0, 56, 100), 350, queued_ns).rtt_ns == rtt_ns


def test_in_time_goes_by_the_round_trip() -> None:
    """A reply that waited for us while we were stopped was in time; one that took too long is late, timer or not."""
    ledger = book()
    first, second = ledger.send(0, 56, 0), ledger.send(0, 56, 0)
    assert answer(ledger, first, TIMEOUT_NS + 500, 500).word is Word.REPLY
    assert answer(ledger, second, TIMEOUT_NS + 1).word is Word.LATE
    assert words(ledger) == {Word.REPLY: 1, Word.LATE: 1}


def test_a_time_out_is_a_loss_and_its_answer_then_late() -> None:
    """Issue: "late (after -W) / lost"; loss is "not answered in time (lost + late), with both named"."""
    ledger = book()
    probe = ledger.send(0, 56, 0)
    assert ledger.next_deadline_ns() == TIMEOUT_NS
    assert expire(ledger, TIMEOUT_NS - 1) == []
    assert expire(ledger, TIMEOUT_NS) == [Event(Word.LOST, 0, 1, 56, reason=TIMED_OUT, sent_ns=0)]
    assert ledger.next_deadline_ns() is None
    assert words(ledger) == {Word.LOST: 1}
    late = answer(ledger, probe, 5000)
    assert (late.word, late.rtt_ns) == (Word.LATE, 5000)
    assert words(ledger) == {Word.LATE: 1}
    assert answer(ledger, probe, 5001).word is Word.DUPLICATE
    assert ledger.total.unanswered == 1
    assert ledger.total.rtts.moments.count == 0


def test_a_second_answer_is_a_duplicate_and_changes_nothing_else() -> None:
    ledger = book()
    probe = ledger.send(0, 56, 0)
    answer(ledger, probe)
    assert answer(ledger, probe, 20) == Event(Word.DUPLICATE, 0, 1, 56, 56, 20, sent_ns=0)
    assert words(ledger) == {Word.REPLY: 1, Word.DUPLICATE: 1}
    assert ledger.total.rtts.moments.count == 1


def test_reordered_is_what_comes_after_a_later_one_of_its_flow() -> None:
    """RFC 4737 §3.3: its number is smaller than the next expected. Another flow is another stream."""
    ledger = book(flows=2)
    first, other, third = ledger.send(0, 56, 0), ledger.send(1, 56, 0), ledger.send(0, 56, 0)
    assert [answer(ledger, probe).reordered for probe in (third, other, first)] == [False, False, True]
    assert not answer(ledger, first).reordered  # a duplicate: RFC 4737 leaves them out
    assert ledger.total.reordered == 1
    assert [flow.tally.reordered for flow in ledger.flows] == [1, 0]


def test_what_was_given_up_for_an_error_and_is_answered_all_the_same_is_late() -> None:
    """An error may have been about another probe."""
    ledger = book()
    probe = ledger.send(0, 56, 0)
    assert ledger.failed(probe, Word.UNREACHABLE, "why") == Event(Word.UNREACHABLE, 0, 1, 56, reason="why", sent_ns=0)
    assert answer(ledger, probe).word is Word.LATE
    assert words(ledger) == {Word.LATE: 1}


# ---------------------------------------------------------------- damage


def test_damage_is_told_beside_the_outcome() -> None:
    """A damaged answer is one, and was counted; a damaged duplicate is both."""
    ledger = book()
    probe = ledger.send(0, 56, 0)
    wrong = made(probe)[:20] + bytes([made(probe)[20] ^ 1]) + made(probe)[21:]
    for word in (Word.REPLY, Word.DUPLICATE):
        event = ledger.arrived(0, wrong, 10)
        assert (event.word, event.damage) == (word, Damage(Harm.CORRUPTED, 20, 1, 1))
    assert ledger.arrived(0, made(probe)[:30], 10).damage == Damage(Harm.TRUNCATED, 30, 0, 0)
    assert ledger.arrived(0, made(probe) + b"x", 10).damage == Damage(Harm.LENGTHENED, 56, 0, 0)
    assert dict(ledger.total.harms) == {Harm.CORRUPTED: 2, Harm.TRUNCATED: 1, Harm.LENGTHENED: 1}


def test_a_damaged_header_is_matched_with_what_is_outstanding() -> None:
    ledger = book()
    probes = [ledger.send(0, 56, 0) for _ in range(5)]
    wrong = bytes([made(probes[2])[0] ^ 0x80]) + made(probes[2])[1:]
    event = ledger.arrived(0, wrong, 10)
    assert (event.word, event.sequence, event.damage) == (Word.REPLY, 3, Damage(Harm.CORRUPTED, 0, 0x80, 1))


def test_what_is_equally_like_several_probes_is_unknown_and_settles_none() -> None:
    ledger = book()
    probe, _ = ledger.send(0, 56, 0), ledger.send(0, 56, 0)
    event = ledger.arrived(0, made(probe)[:8], 10)
    assert (event.word, event.sequence, event.received_bytes) == (Word.UNKNOWN, 0, 8)
    assert words(ledger) == {Word.OUTSTANDING: 2, Word.UNKNOWN: 1}


def test_what_is_too_unlike_is_foreign() -> None:
    ledger = book()
    assert ledger.arrived(0, b"garbage", 10).word is Word.FOREIGN  # nothing is outstanding
    ledger.send(0, 56, 0)
    assert ledger.arrived(0, b"garbage" * 8, 10) == Event(Word.FOREIGN, 0, received_bytes=56, reason=NO_PROBE)
    assert ledger.foreign(0, b"more").word is Word.FOREIGN
    assert words(ledger) == {Word.OUTSTANDING: 1, Word.FOREIGN: 3}


@pytest.mark.parametrize(
    ("flow", "sequence", "size_bytes", "on_flow"),
    [(0, 99, 56, 0), (0, 0, 56, 0), (1, 1, 56, 0), (0, 1, 57, 0), (1, 1, 56, 1), (0, 1, 56, 1)],
)
def test_an_intact_header_of_nothing_that_was_sent_is_foreign(
    flow: int, sequence: int, size_bytes: int, on_flow: int
) -> None:
    """Nobody can make us count what we haven't sent: another number, size or flow."""
    ledger = book(flows=2)
    ledger.send(0, 56, 0)
    forged = PAYLOADS.make(flow, sequence, size_bytes)
    assert ledger.arrived(on_flow, forged, 10).word is Word.FOREIGN
    assert ledger.outstanding == 1


# ---------------------------------------------------------------- below 16 bytes


def test_below_16_bytes_one_probe_is_outstanding_on_a_flow() -> None:
    """Issue: "there is no room for a sequence number: one probe is outstanding per flow"."""
    ledger = book(flows=2, sizes=(8, 56))
    assert ledger.has_room(0, 8)
    probe = ledger.send(0, 8, 0)
    assert not ledger.has_room(0, 8)
    assert not ledger.has_room(0, 56)
    assert ledger.has_room(1, 8)
    assert answer(ledger, probe).word is Word.REPLY
    ledger.send(0, 56, 0)
    assert ledger.has_room(0, 56)
    assert not ledger.has_room(0, 8)
    assert book(sizes=(8,), stream=True).has_room(0, 8)


def test_in_a_stream_small_frames_need_not_wait() -> None:
    """There the place tells."""
    ledger = book(sizes=(8,), stream=True)
    ledger.send(0, 8, 0)
    assert ledger.has_room(0, 8)


def test_below_16_bytes_what_is_not_the_probes_own_is_unknown() -> None:
    """Late, duplicate, truncated or damaged: nobody can tell."""
    ledger = book(sizes=(8,))
    probe = ledger.send(0, 8, 0)
    event = ledger.arrived(0, made(probe)[:7], 10)
    assert event == Event(Word.UNKNOWN, 0, received_bytes=7, reason=UNTELLABLE)
    assert answer(ledger, probe).word is Word.REPLY
    assert answer(ledger, probe).word is Word.UNKNOWN  # the second time: nothing is outstanding
    assert words(ledger) == {Word.REPLY: 1, Word.UNKNOWN: 2}


def test_an_answer_that_may_be_an_earlier_ones_settles_as_unknown() -> None:
    """Empty datagrams are all alike: after a loss, nobody can tell whose answer it is, for three time-outs."""
    ledger = book(sizes=(0,))
    ledger.send(0, 0, 0)
    expire(ledger, TIMEOUT_NS)
    second = ledger.send(0, 0, TIMEOUT_NS)
    event = answer(ledger, second, TIMEOUT_NS + 5)
    assert (event.word, event.sequence, event.rtt_ns) == (Word.UNKNOWN, 2, None)
    assert ledger.has_room(0, 0)
    third = ledger.send(0, 0, 3 * TIMEOUT_NS)
    assert answer(ledger, third, 3 * TIMEOUT_NS + 5).word is Word.REPLY
    fourth = ledger.send(0, 0, 3 * TIMEOUT_NS)
    assert answer(ledger, fourth, 3 * TIMEOUT_NS + 5).word is Word.REPLY
    assert words(ledger) == {Word.LOST: 1, Word.UNKNOWN: 1, Word.REPLY: 2}
    assert (ledger.total.decided, ledger.total.unanswered) == (3, 1)


def test_bytes_that_differ_tell_even_below_16() -> None:
    ledger = book(sizes=(8,))
    ledger.send(0, 8, 0)
    expire(ledger, TIMEOUT_NS)
    assert answer(ledger, ledger.send(0, 8, TIMEOUT_NS), TIMEOUT_NS + 5).word is Word.REPLY


def test_a_small_probe_that_was_refused_is_no_suspect() -> None:
    """Nobody answers it any more."""
    ledger = book(sizes=(0,))
    ledger.failed(ledger.send(0, 0, 0), Word.REFUSED, "")
    assert answer(ledger, ledger.send(0, 0, 0)).word is Word.REPLY


# ---------------------------------------------------------------- streams


def test_a_frame_is_judged_by_its_place() -> None:
    ledger = book(sizes=(8, 56), stream=True)
    first, second = ledger.send(0, 8, 0), ledger.send(0, 56, 0)
    assert ledger.frame(1, 0, made(first), 10).word is Word.REPLY
    wrong = made(second)[:-1] + bytes([made(second)[-1] ^ 4])
    assert ledger.frame(2, 0, wrong, 10).damage == Damage(Harm.CORRUPTED, 55, 4, 1)
    third = ledger.send(0, 56, 0)
    assert ledger.frame(3, 0, b"HTTP/1.0 400 Bad Request".ljust(56), 10).word is Word.FOREIGN
    assert third.word is Word.OUTSTANDING


def test_a_probe_that_waited_for_a_connection_counts_from_when_it_went() -> None:
    ledger = book(stream=True)
    probe, over = ledger.send(0, 56, 0), ledger.send(0, 56, 0)
    ledger.failed(over, Word.LOST, "")
    assert ledger.sent_later(1, 600)
    assert not ledger.sent_later(2, 600)
    assert not ledger.sent_later(77, 600)
    assert ledger.frame(1, 0, made(probe), 700).rtt_ns == 100


def test_the_probes_of_a_connection_that_are_still_under_way_are_found() -> None:
    ledger = book(stream=True)
    probes = [ledger.send(0, 56, 0) for _ in range(3)]
    ledger.frame(2, 0, made(probes[1]), 10)
    assert ledger.outstanding_of(0, [1, 2, 3, 4]) == [probes[0], probes[2]]


# ---------------------------------------------------------------- errors without a name


def test_an_error_concerns_the_oldest_under_way_or_else_the_last_that_timed_out() -> None:
    """Routers may take longer than we wait: a neighbour that isn't there is told after three seconds (RFC 1122)."""
    ledger = book(flows=2)
    assert ledger.probe_of_error(0) is None
    first, second = ledger.send(0, 56, 0), ledger.send(0, 56, 1)
    assert ledger.probe_of_error(0) is first
    expire(ledger, TIMEOUT_NS)
    assert ledger.probe_of_error(0) is second
    expire(ledger, TIMEOUT_NS + 1)
    other = ledger.send(1, 56, 2)
    assert ledger.probe_of_error(0) is second
    ledger.failed(second, Word.UNREACHABLE, "")
    assert words(ledger) == {Word.LOST: 1, Word.UNREACHABLE: 1, Word.OUTSTANDING: 1}
    assert ledger.probe_of_error(0) is None
    assert ledger.probe_of_error(1) is other


def test_an_error_that_quotes_its_datagram_concerns_that_one() -> None:
    """RFC 792, RFC 4443: an error carries the start of the datagram that it is about."""
    ledger = book(flows=2)
    first, second = ledger.send(0, 56, 0), ledger.send(0, 56, 0)
    assert ledger.probe_of_error(0, made(second)[:20]) is second
    assert ledger.probe_of_error(0, made(second)[:8]) is first  # too short to tell
    assert ledger.probe_of_error(1, made(second)) is None
    assert ledger.probe_of_error(0, PAYLOADS.make(0, 99, 56)) is None
    answer(ledger, second)
    assert ledger.probe_of_error(0, made(second)) is None
    expire(ledger, TIMEOUT_NS)
    assert ledger.probe_of_error(0, made(first)) is first


def test_those_too_large_for_the_way_are_found() -> None:
    ledger = book(sizes=(100, 200))
    small, large = ledger.send(0, 100, 0), ledger.send(0, 200, 0)
    assert ledger.larger_than(0, 150) == [large]
    assert ledger.larger_than(0, 99) == [small, large]


# ---------------------------------------------------------------- bounds


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "REMEMBERED", 8)


def test_an_answer_to_a_probe_of_long_ago_is_unknown(short_memory: None) -> None:
    """Law: "the last 65,536 probes are remembered and no more"."""
    ledger = book()
    probes = []
    for _ in range(9):
        probes.append(ledger.send(0, 56, 0))
        expire(ledger, TIMEOUT_NS)
    assert answer(ledger, probes[0]) == Event(Word.UNKNOWN, 0, received_bytes=56, reason=FORGOTTEN)
    assert answer(ledger, probes[1]).word is Word.LATE
    assert ledger.frame(1, 0, b"", 0).reason == FORGOTTEN


def test_no_more_probes_are_outstanding_than_are_remembered(short_memory: None) -> None:
    ledger = book()
    probes = []
    while ledger.has_room(0, 56):
        probes.append(ledger.send(0, 56, 0))
    assert len(probes) == 8
    answer(ledger, probes[1])
    assert not ledger.has_room(0, 56)
    answer(ledger, probes[0])
    assert ledger.has_room(0, 56)


def test_after_four_billion_probes_numbers_begin_again_and_nothing_is_mistaken() -> None:
    """The header has room for 32 bits of the sequence number."""
    ledger = book()
    ledger.next_sequence = 2**32 - 1
    probes = [ledger.send(0, 56, 0) for _ in range(4)]
    assert [answer(ledger, probe).sequence for probe in probes] == [2**32 - 1, 2**32, 2**32 + 1, 2**32 + 2]
    assert words(ledger) == {Word.REPLY: 4}


def test_the_book_takes_the_same_memory_for_weeks_as_for_seconds(short_memory: None) -> None:
    ledger = book()
    for number in range(1000):
        probe = ledger.send(0, 56, number)
        if number % 3:
            answer(ledger, probe, number + 5)
        else:
            expire(ledger, number + TIMEOUT_NS)
    assert len(ledger._timing) <= 8
    assert not ledger.in_order._waiting
    assert not ledger.flows[0].outstanding


# ---------------------------------------------------------------- any order of things

STEPS = st.lists(
    st.tuples(st.sampled_from(["send", "answer", "wait", "fail", "garbage"]), st.integers(0, 30)), max_size=60
)


@given(STEPS)
@example([("send", 0), ("answer", 0), ("answer", 0), ("send", 0), ("wait", 30), ("answer", 1), ("garbage", 0)])
@example([("send", 0), ("fail", 0), ("answer", 0), ("fail", 0)])
def test_every_probe_has_one_outcome_and_every_datagram_one_event(steps: list[tuple[str, int]]) -> None:
    """Whatever comes in whatever order: outcomes add up to what was sent, in total, by flow and by size."""
    ledger, now_ns, probes, came = book(flows=3, sizes=(56, 80)), 0, [], 0
    for step, number in steps:
        now_ns += 1
        if step == "send":
            probes.append(ledger.send(number % 3, (56, 80)[number % 2], now_ns))
        elif step == "wait":
            now_ns += number * 100
            expire(ledger, now_ns)
        elif step == "garbage":
            came += 1
            ledger.arrived(number % 3, bytes(number), now_ns)
        elif probes:
            probe = probes[number % len(probes)]
            if step == "answer":
                came += 1
                answer(ledger, probe, now_ns)
            elif probe.word is Word.OUTSTANDING:
                ledger.failed(probe, Word.REFUSED, "")
    outcomes = [Word.OUTSTANDING, Word.REPLY, Word.LATE, Word.LOST, Word.REFUSED]
    total = ledger.total.words
    assert [total[word] for word in outcomes] == [sum(probe.word is word for probe in probes) for word in outcomes]
    assert sum(total[word] for word in outcomes) == len(probes) == ledger.total.sent
    assert (
        total[Word.REPLY] + total[Word.LATE] + total[Word.DUPLICATE] + total[Word.FOREIGN] + total[Word.UNKNOWN] == came
    )
    for parts in ([flow.tally for flow in ledger.flows], list(ledger.sizes.values())):
        assert [sum(part.words[word] for part in parts) for word in outcomes] == [total[word] for word in outcomes]
