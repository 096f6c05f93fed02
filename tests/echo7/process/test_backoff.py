"""When a worker is started again: only the policy, with a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7.process.backoff import FAILED_STARTS_LIMIT, FIRST_DELAY_S, HEALTHY_AFTER_S, LONGEST_DELAY_S, BackOff
from tests.support.loops import ManualClock


def test_each_delay_doubles_up_to_the_limit() -> None:
    backoff = BackOff(ManualClock())
    delays = []
    for _ in range(10):
        backoff.started()
        backoff.serves()
        delays.append(backoff.ended())
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10])


def test_worker_that_lived_for_long_is_replaced_after_the_first_delay() -> None:
    clock = ManualClock()
    backoff = BackOff(clock)
    for _ in range(5):
        backoff.started()
        backoff.ended()
    backoff.started()
    clock.advance(HEALTHY_AFTER_S)
    assert backoff.ended() == FIRST_DELAY_S
    backoff.started()
    clock.advance(HEALTHY_AFTER_S - 0.001)
    assert backoff.ended() == 2 * FIRST_DELAY_S


def test_slot_with_failed_starts_alone_is_hopeless_until_one_serves() -> None:
    backoff = BackOff(ManualClock())
    for _ in range(FAILED_STARTS_LIMIT):
        assert not backoff.hopeless
        backoff.started()
        backoff.ended()
    assert backoff.hopeless
    backoff.started()
    backoff.serves()
    assert not backoff.hopeless
    assert backoff.failed_starts == 0


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans())))
def test_any_history_gives_a_delay_within_the_bounds(lives: list[tuple[float, bool]]) -> None:
    clock = ManualClock()
    backoff = BackOff(clock)
    for lived_s, was_ready in lives:
        backoff.started()
        clock.advance(lived_s)
        if was_ready:
            backoff.serves()
        assert FIRST_DELAY_S <= backoff.ended() <= LONGEST_DELAY_S
