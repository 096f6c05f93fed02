"""Ledger: every datagram makes one event, every probe has one outcome."""

from __future__ import annotations

import gc
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


# ---------------------------------------------------------------- replies, late answers, duplicates, order


def test_answer_in_time_is_a_reply_with_its_round_trip() -> None:
    ledger = book()
    probe = ledger.send(0, 56, 100)
    assert answer(ledger, probe, 350) == Event(Word.REPLY, 0, 1, 56, 56, 250, sent_ns=100)
    assert words(ledger) == {Word.REPLY: 1}
    assert ledger.total.rtts.moments.total == 250


@pytest.mark.parametrize(("queued_ns", "rtt_ns"), [(0, 250), (50, 200), (250, 0), (251, 250), (-1, 250), (10**18, 250)])
def test_time_in_the_kernels_queue_is_subtracted(queued_ns: int, rtt_ns: int) -> None:
    """Issue: the stamp "only subtracts queueing delay, ignored when outside 0…RTT": the wall clock may jump."""
    ledger = book()
    assert answer(ledger, ledger.send(0, 56, 100), 350, queued_ns).rtt_ns == rtt_ns


def test_in_time_depends_on_the_round_trip() -> None:
    """A reply that waited in the kernel was in time; one that took too long is late, even before its timer."""
    ledger = book()
    first, second = ledger.send(0, 56, 0), ledger.send(0, 56, 0)
    assert answer(ledger, first, TIMEOUT_NS + 500, 500).word is Word.REPLY
    assert answer(ledger, second, TIMEOUT_NS + 1).word is Word.LATE
    assert words(ledger) == {Word.REPLY: 1, Word.LATE: 1}


def test_timeout_is_a_loss_and_an_answer_then_late() -> None:
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


def test_second_answer_is_a_duplicate_and_changes_nothing_else() -> None:
    ledger = book()
    probe = ledger.send(0, 56, 0)
    answer(ledger, probe)
    assert answer(ledger, probe, 20) == Event(Word.DUPLICATE, 0, 1, 56, 56, 20, sent_ns=0)
    assert words(ledger) == {Word.REPLY: 1, Word.DUPLICATE: 1}
    assert ledger.total.rtts.moments.count == 1


def test_answer_after_a_later_one_of_its_flow_is_reordered() -> None:
    """RFC 4737 §3.3: its number is smaller than the next expected, within its flow."""
    ledger = book(flows=2)
    first, other, third = ledger.send(0, 56, 0), ledger.send(1, 56, 0), ledger.send(0, 56, 0)
    assert [answer(ledger, probe).reordered for probe in (third, other, first)] == [False, False, True]
    # RFC 4737 leaves duplicates out
    assert not answer(ledger, first).reordered
    assert ledger.total.reordered == 1
    assert [flow.tally.reordered for flow in ledger.flows] == [1, 0]


def test_answer_after_an_error_is_late() -> None:
    """An error may have been about another probe."""
    ledger = book()
    probe = ledger.send(0, 56, 0)
    assert ledger.failed(probe, Word.UNREACHABLE, "why") == Event(Word.UNREACHABLE, 0, 1, 56, reason="why", sent_ns=0)
    assert answer(ledger, probe).word is Word.LATE
    assert words(ledger) == {Word.LATE: 1}


# ---------------------------------------------------------------- damage


def test_damage_is_reported_beside_the_outcome() -> None:
    """A damaged answer is a reply or a duplicate, and damaged too."""
    ledger = book()
    probe = ledger.send(0, 56, 0)
    wrong = made(probe)[:20] + bytes([made(probe)[20] ^ 1]) + made(probe)[21:]
    for word in (Word.REPLY, Word.DUPLICATE):
        event = ledger.arrived(0, wrong, 10)
        assert (event.word, event.damage) == (word, Damage(Harm.CORRUPTED, 20, 1, 1))
    assert ledger.arrived(0, made(probe)[:30], 10).damage == Damage(Harm.TRUNCATED, 30, 0, 0)
    assert ledger.arrived(0, made(probe) + b"x", 10).damage == Damage(Harm.LENGTHENED, 56, 0, 0)
    assert dict(ledger.total.harms) == {Harm.CORRUPTED: 2, Harm.TRUNCATED: 1, Harm.LENGTHENED: 1}


def test_answer_with_a_damaged_header_is_matched_with_an_outstanding_probe() -> None:
    ledger = book()
    probes = [ledger.send(0, 56, 0) for _ in range(5)]
    wrong = bytes([made(probes[2])[0] ^ 0x80]) + made(probes[2])[1:]
    event = ledger.arrived(0, wrong, 10)
    assert (event.word, event.sequence, event.damage) == (Word.REPLY, 3, Damage(Harm.CORRUPTED, 0, 0x80, 1))


def test_answer_like_several_probes_is_unknown_and_settles_none() -> None:
    ledger = book()
    probe, _ = ledger.send(0, 56, 0), ledger.send(0, 56, 0)
    event = ledger.arrived(0, made(probe)[:8], 10)
    assert (event.word, event.sequence, event.received_bytes) == (Word.UNKNOWN, 0, 8)
    assert words(ledger) == {Word.OUTSTANDING: 2, Word.UNKNOWN: 1}


def test_answer_unlike_all_probes_is_foreign() -> None:
    ledger = book()
    assert ledger.arrived(0, b"garbage", 10).word is Word.FOREIGN
    ledger.send(0, 56, 0)
    assert ledger.arrived(0, b"garbage" * 8, 10) == Event(Word.FOREIGN, 0, received_bytes=56, reason=NO_PROBE)
    assert ledger.foreign(0, b"more").word is Word.FOREIGN
    assert words(ledger) == {Word.OUTSTANDING: 1, Word.FOREIGN: 3}


@pytest.mark.parametrize(
    ("flow", "sequence", "size_bytes", "on_flow"),
    [(0, 99, 56, 0), (0, 0, 56, 0), (1, 1, 56, 0), (0, 1, 57, 0), (1, 1, 56, 1), (0, 1, 56, 1)],
)
def test_forged_header_is_foreign(flow: int, sequence: int, size_bytes: int, on_flow: int) -> None:
    """A header with another sequence number, size or flow than was sent isn't counted as an answer."""
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
    """The place of a frame says which probe it answers."""
    ledger = book(sizes=(8,), stream=True)
    ledger.send(0, 8, 0)
    assert ledger.has_room(0, 8)


def test_below_16_bytes_other_bytes_are_unknown() -> None:
    """They may be late, duplicate, truncated or damaged."""
    ledger = book(sizes=(8,))
    probe = ledger.send(0, 8, 0)
    event = ledger.arrived(0, made(probe)[:7], 10)
    assert event == Event(Word.UNKNOWN, 0, received_bytes=7, reason=UNTELLABLE)
    assert answer(ledger, probe).word is Word.REPLY
    assert answer(ledger, probe).word is Word.UNKNOWN
    assert words(ledger) == {Word.REPLY: 1, Word.UNKNOWN: 2}


def test_answer_that_may_belong_to_an_earlier_probe_settles_as_unknown() -> None:
    """Empty datagrams are all alike: for three time-outs after a loss, an answer may belong to either probe."""
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


def test_below_16_bytes_different_fill_identifies_a_probe() -> None:
    ledger = book(sizes=(8,))
    ledger.send(0, 8, 0)
    expire(ledger, TIMEOUT_NS)
    assert answer(ledger, ledger.send(0, 8, TIMEOUT_NS), TIMEOUT_NS + 5).word is Word.REPLY


def test_small_probe_that_was_refused_makes_no_later_answer_ambiguous() -> None:
    ledger = book(sizes=(0,))
    ledger.failed(ledger.send(0, 0, 0), Word.REFUSED, "")
    assert answer(ledger, ledger.send(0, 0, 0)).word is Word.REPLY


# ---------------------------------------------------------------- streams


def test_frame_is_matched_by_its_place() -> None:
    ledger = book(sizes=(8, 56), stream=True)
    first, second = ledger.send(0, 8, 0), ledger.send(0, 56, 0)
    assert ledger.frame(1, 0, made(first), 10).word is Word.REPLY
    wrong = made(second)[:-1] + bytes([made(second)[-1] ^ 4])
    assert ledger.frame(2, 0, wrong, 10).damage == Damage(Harm.CORRUPTED, 55, 4, 1)
    third = ledger.send(0, 56, 0)
    assert ledger.frame(3, 0, b"HTTP/1.0 400 Bad Request".ljust(56), 10).word is Word.FOREIGN
    assert third.word is Word.OUTSTANDING


def test_probe_that_waited_for_a_connection_counts_from_the_sending() -> None:
    ledger = book(stream=True)
    probe, over = ledger.send(0, 56, 0), ledger.send(0, 56, 0)
    ledger.failed(over, Word.LOST, "")
    assert ledger.sent_later(1, 600)
    assert not ledger.sent_later(2, 600)
    assert not ledger.sent_later(77, 600)
    assert ledger.frame(1, 0, made(probe), 700).rtt_ns == 100


def test_outstanding_probes_of_a_connection_are_found() -> None:
    ledger = book(stream=True)
    probes = [ledger.send(0, 56, 0) for _ in range(3)]
    ledger.frame(2, 0, made(probes[1]), 10)
    assert ledger.outstanding_of(0, [1, 2, 3, 4]) == [probes[0], probes[2]]


# ---------------------------------------------------------------- errors


def test_error_belongs_to_the_oldest_outstanding_probe_or_the_last_that_timed_out() -> None:
    """Routers may take longer than a time-out: a missing neighbour is reported after three seconds (RFC 1122)."""
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


def test_error_that_quotes_its_datagram_belongs_to_that_one() -> None:
    """RFC 792, RFC 4443: an error carries the start of the datagram that it is about."""
    ledger = book(flows=2)
    first, second = ledger.send(0, 56, 0), ledger.send(0, 56, 0)
    assert ledger.probe_of_error(0, made(second)[:20]) is second
    # too short to identify a probe
    assert ledger.probe_of_error(0, made(second)[:8]) is first
    assert ledger.probe_of_error(1, made(second)) is None
    assert ledger.probe_of_error(0, PAYLOADS.make(0, 99, 56)) is None
    answer(ledger, second)
    assert ledger.probe_of_error(0, made(second)) is None
    expire(ledger, TIMEOUT_NS)
    assert ledger.probe_of_error(0, made(first)) is first


def test_outstanding_probes_larger_than_a_limit_are_found() -> None:
    ledger = book(sizes=(100, 200))
    small, large = ledger.send(0, 100, 0), ledger.send(0, 200, 0)
    assert ledger.larger_than(0, 150) == [large]
    assert ledger.larger_than(0, 99) == [small, large]


# ---------------------------------------------------------------- bounds


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "REMEMBERED", 8)


def test_answer_to_a_forgotten_probe_is_unknown(short_memory: None) -> None:
    """Law: "only the last 65,536 probes are remembered"."""
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


def test_sequence_numbers_beyond_32_bits_are_matched() -> None:
    """The header has room for 32 bits of the sequence number."""
    ledger = book()
    ledger.next_sequence = 2**32 - 1
    probes = [ledger.send(0, 56, 0) for _ in range(4)]
    assert [answer(ledger, probe).sequence for probe in probes] == [2**32 - 1, 2**32, 2**32 + 1, 2**32 + 2]
    assert words(ledger) == {Word.REPLY: 4}


def test_memory_does_not_grow_with_the_number_of_probes(short_memory: None) -> None:
    size_bytes = 1234  # used by no other test
    ledger = book(sizes=(size_bytes,))
    for number in range(1000):
        probe = ledger.send(0, size_bytes, number)
        if number % 3:
            answer(ledger, probe, number + 5)
        else:
            expire(ledger, number + TIMEOUT_NS)
    del probe
    assert sum(isinstance(each, Probe) and each.size_bytes == size_bytes for each in gc.get_objects()) <= 8


# ---------------------------------------------------------------- any order of things

STEPS = st.lists(
    st.tuples(st.sampled_from(["send", "answer", "wait", "fail", "garbage"]), st.integers(0, 30)), max_size=60
)


@given(STEPS)
@example([("send", 0), ("answer", 0), ("answer", 0), ("send", 0), ("wait", 30), ("answer", 1), ("garbage", 0)])
@example([("send", 0), ("fail", 0), ("answer", 0), ("fail", 0)])
def test_every_probe_has_one_outcome_and_every_datagram_one_event(steps: list[tuple[str, int]]) -> None:
    """In any order, outcomes add up to what was sent, in total, by flow and by size."""
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
