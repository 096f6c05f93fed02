"""Results: bars, verdicts, loss."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from echo7.probe.measure.histogram import Histogram
from echo7.probe.measure.tally import Tally
from echo7.probe.measure.words import Word
from echo7.probe.result import BARS, Bar, Counts, bars_of, verdict_of

NOTHING = Counts(*[0] * len(Counts._fields))


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=50))
@example([0])
@example([0, 0])
@example([5, 6])
@example([0, 1])
@example([1, 10**12])
def test_every_reply_is_in_one_bar(values: list[int]) -> None:
    """Issue: "a small histogram of RTTs": a few bars without gaps, and each reply in one of them."""
    rtts = Histogram()
    for value in values:
        rtts.add(value)
    bars = bars_of(rtts)
    assert sum(bar.replies for bar in bars) == len(values)
    assert len(bars) in (1, BARS)
    assert (bars[0].from_ns, bars[-1].to_ns) == (min(values), max(values) + 1)
    assert all(one.to_ns == other.from_ns for one, other in itertools.pairwise(bars))
    assert all(bar.from_ns <= bar.to_ns for bar in bars)


def test_bars_of_nothing_and_of_one_value() -> None:
    rtts = Histogram()
    assert bars_of(rtts) == []
    rtts.add(7)
    rtts.add(7)
    assert bars_of(rtts) == [Bar(7, 8, 2)]


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ([], "undecided"),
        ([Word.OUTSTANDING], "undecided"),
        ([Word.LOST], "timed out"),
        ([Word.LATE], "timed out"),
        ([Word.TOO_BIG, Word.LOST], "timed out"),
        ([Word.TOO_BIG], "too big"),
        ([Word.UNREACHABLE, Word.LOST, Word.TOO_BIG], "unreachable"),
        ([Word.REFUSED, Word.UNREACHABLE], "refused"),
        ([Word.REPLY, Word.REFUSED, Word.LOST], "replies"),
    ],
)
def test_verdict_is_the_best_outcome_of_any_probe(words: list[Word], verdict: str) -> None:
    tally = Tally()
    for word in words:
        tally.words[word] = 1
    assert verdict_of(tally) == verdict


def test_loss_is_a_share_of_settled_probes() -> None:
    """Specified: "not answered in time (lost + late)"; outstanding, too big and unknown probes count as neither."""
    assert NOTHING.loss == 0
    counts = NOTHING._replace(replies=5, late=1, lost=2, refused=1, unreachable=1, too_big=9, outstanding=9, unknown=9)
    assert counts.loss == 0.5
