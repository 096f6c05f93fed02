"""Counts, and what depends on the order of probes: bursts of loss, and jitter."""

from __future__ import annotations

import itertools
import random

from hypothesis import example, given
from hypothesis import strategies as st

from echo7.probe.measure.tally import UNANSWERED, InOrder, Probe, Tally
from echo7.probe.measure.words import Damage, Event, Harm, Word

OUTCOMES = [Word.REPLY, Word.LATE, Word.LOST, Word.REFUSED, Word.UNREACHABLE, Word.TOO_BIG, Word.UNKNOWN]
FATES = st.lists(st.tuples(st.sampled_from(OUTCOMES), st.integers(0, 9)), max_size=30)


def sent(line: InOrder, count: int, size_bytes: int = 56) -> list[Probe]:
    probes = [Probe(0, number, size_bytes, 0, 0) for number in range(1, count + 1)]
    for probe in probes:
        line.send(probe)
    return probes


def settled(line: InOrder, probe: Probe, word: Word, rtt_ns: int = 0) -> None:
    probe.word, probe.rtt_ns = word, rtt_ns
    line.settle()


@given(FATES, st.randoms(use_true_random=False))
@example([(Word.LOST, 0), (Word.TOO_BIG, 0), (Word.LOST, 0), (Word.REPLY, 1), (Word.REPLY, 4)], random.Random(1))
def test_bursts_and_jitter_follow_the_order_of_sending(fates: list[tuple[Word, int]], chance: random.Random) -> None:
    """RFC 3393 compares neighbours in the order of sending, with any order of answers."""
    line = InOrder()
    probes = sent(line, len(fates))
    order = list(zip(probes, fates, strict=True))
    chance.shuffle(order)
    for probe, (word, rtt_ns) in order:
        settled(line, probe, word, rtt_ns)
    run = longest = 0
    for word, _ in fates:
        run = run + 1 if word in UNANSWERED else 0 if word is Word.REPLY else run
        longest = max(longest, run)
    pairs = itertools.pairwise(fates)
    jitter = [abs(a[1] - b[1]) for a, b in pairs if a[0] is b[0] is Word.REPLY]
    assert line.longest_loss == longest
    assert (line.jitter.count, line.jitter.total) == (len(jitter), sum(jitter))


def test_unsettled_probe_delays_those_after_it() -> None:
    """Law: "each when all earlier probes are settled"."""
    line = InOrder()
    first, second, third = sent(line, 3)
    settled(line, second, Word.LOST)
    settled(line, third, Word.LOST)
    assert line.longest_loss == 0
    settled(line, first, Word.REPLY)
    assert line.longest_loss == 2


def test_jitter_compares_probes_of_one_size() -> None:
    """RFC 3393 compares packets of one type, and a larger one takes longer."""
    line = InOrder()
    for size_bytes in (56, 57, 57):
        probe = sent(line, 1, size_bytes)[0]
        settled(line, probe, Word.REPLY, size_bytes * 10)
    assert (line.jitter.count, line.jitter.total) == (1, 0)


def test_tally_counts_each_outcome_once() -> None:
    tally = Tally()
    tally.send()
    tally.send()
    damage = Damage(Harm.CORRUPTED, 0, 1, 1)
    tally.count(Event(Word.REPLY, 0, 1, rtt_ns=5, reordered=True, damage=damage), Word.OUTSTANDING)
    tally.count(Event(Word.LOST, 0, 2), Word.OUTSTANDING)
    tally.count(Event(Word.LATE, 0, 2, rtt_ns=50), Word.LOST)
    tally.count(Event(Word.DUPLICATE, 0, 1, rtt_ns=9), None)
    counted = {word: count for word, count in tally.words.items() if count}
    assert counted == {Word.REPLY: 1, Word.LATE: 1, Word.DUPLICATE: 1}
    assert (tally.sent, tally.unanswered, tally.decided, tally.reordered) == (2, 1, 2, 1)
    assert tally.harms[Harm.CORRUPTED] == 1
    assert (tally.rtts.moments.count, tally.rtts.moments.total) == (1, 5)
