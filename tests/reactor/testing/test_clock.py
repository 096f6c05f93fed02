"""SimulatedClock: time passes only on request, and never goes back."""

from __future__ import annotations

import math

import pytest

from reactor.testing import SimulatedClock


def test_time_stands_still_until_it_is_advanced() -> None:
    clock = SimulatedClock(5.0)
    assert [clock(), clock()] == [5.0, 5.0]
    clock.advance(2.5)
    assert clock() == 7.5
    clock.advance(0)
    assert clock() == 7.5


@pytest.mark.parametrize("seconds", [-1e-9, -math.inf, math.nan])
def test_negative_advance_raises(seconds: float) -> None:
    clock = SimulatedClock()
    with pytest.raises(ValueError, match="monotonic"):
        clock.advance(seconds)
    assert clock() == 1000.0


def test_reaching_a_past_moment_takes_no_time() -> None:
    clock = SimulatedClock(10.0)
    clock.reach(9.0)
    assert clock() == 10.0
    clock.reach(11.0)
    assert clock() == 11.0
