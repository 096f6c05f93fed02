"""Timers: compared with a sorted list; and the cost of cancelling."""

import math

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from reactor.limits import LONGEST_SLEEP_S, SWEEP_ABOVE_TIMERS
from reactor.timers import Timer, Timers

DEADLINES_S = st.integers(0, 8).map(float)  # few, so that many are equal
HANDLES: Bundle[int] = Bundle("handles")


def live_in(timers: Timers) -> int:
    """Return the number of live timers, and check the count of cancelled ones, which sweeping needs."""
    live = sum(timer.callback is not None for _, _, timer in timers.heap)
    assert timers.cancelled == len(timers.heap) - live
    return live


class TimersMachine(RuleBasedStateMachine):
    """Compare with a list of (deadline, number) that is sorted at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.timers = Timers()
        self.heap = self.timers.heap
        self.made: list[Timer] = []
        self.live: list[tuple[float, int]] = []
        self.fired: list[int] = []

    @rule(target=HANDLES, deadline_s=DEADLINES_S)
    def add(self, deadline_s: float) -> int:
        number = len(self.made)
        self.made.append(self.timers.add(deadline_s, self.fired.append, (number,)))
        self.live.append((deadline_s, number))
        return number

    @rule(deadline_s=DEADLINES_S, count=st.integers(SWEEP_ABOVE_TIMERS, 3 * SWEEP_ABOVE_TIMERS))
    def add_and_cancel_many(self, deadline_s: float, count: int) -> None:
        for timer in [self.timers.add(deadline_s, self.fired.append, (-1,)) for _ in range(count)]:
            timer.cancel()

    @rule(number=HANDLES)
    def cancel(self, number: int) -> None:
        self.made[number].cancel()  # it may have fired or been cancelled before
        self.live = [entry for entry in self.live if entry[1] != number]

    @rule(now_s=DEADLINES_S, number=HANDLES, fire_before_cancel=st.integers(0, 3))
    def fire_what_is_due_and_cancel_one_meanwhile(self, now_s: float, number: int, fire_before_cancel: int) -> None:
        expected = [n for deadline_s, n in sorted(self.live) if deadline_s <= now_s]
        due = self.timers.pop_due(now_s)
        assert [self.made.index(timer) for timer in due] == expected
        self.live = [entry for entry in self.live if entry[0] > now_s]
        for timer in due[:fire_before_cancel]:
            timer.fire()
        self.cancel(number)
        for timer in due[fire_before_cancel:]:
            timer.fire()
        assert self.fired == [n for i, n in enumerate(expected) if i < fire_before_cancel or n != number]
        self.fired.clear()

    @rule()
    def ask_for_the_next_deadline(self) -> None:
        assert self.timers.sleep_s(0.0) == (min(max(0.0, min(self.live)[0]), LONGEST_SLEEP_S) if self.live else None)

    @invariant()
    def has_as_many_as_the_model(self) -> None:
        assert live_in(self.timers) == len(self.live)

    @invariant()
    def keeps_the_list_that_the_loop_looks_at(self) -> None:
        assert self.timers.heap is self.heap


TestTimersAreASortedList = TimersMachine.TestCase


@pytest.mark.parametrize("deadline_s", [math.nan, math.inf, -math.inf])
def test_non_finite_deadline_is_refused(deadline_s: float) -> None:
    """A NaN in the heap would disorder all timers."""
    timers = Timers()
    with pytest.raises(ValueError, match="finite"):
        timers.add(deadline_s, int)
    assert live_in(timers) == 0
    assert timers.sleep_s(0.0) is None


def test_half_a_million_timers_set_and_cancelled_never_grow_the_heap() -> None:
    """Most timeouts are cancelled; the heap must stay small."""
    timers = Timers()
    longest = 0
    for number in range(500_000):
        timers.add(float(number), int).cancel()
        longest = max(longest, len(timers.heap))
    assert longest <= 2 * SWEEP_ABOVE_TIMERS
    assert live_in(timers) == 0
    assert timers.sleep_s(0.0) is None
    assert not timers.heap


def test_many_cancelled_timers_leave_a_small_heap_beside_a_live_one() -> None:
    """A live timer on top keeps cancelled ones from being popped, so they are swept."""
    timers = Timers()
    timers.add(0.0, int)
    for timer in [timers.add(1.0, int) for _ in range(100_000)]:
        timer.cancel()
    assert live_in(timers) == 1
    assert len(timers.heap) <= 2 * SWEEP_ABOVE_TIMERS


@pytest.mark.parametrize("count", [100, 200, 201, 1000])
def test_cancelled_timers_are_swept_when_they_are_many_and_outnumber_live_ones(count: int) -> None:
    """A sweep for few timers costs more than it frees."""
    timers = Timers()
    marked = 0
    for live, timer in reversed(list(enumerate([timers.add(0.0, int) for _ in range(count)]))):
        timer.cancel()
        marked += 1
        if marked > max(live, SWEEP_ABOVE_TIMERS):
            marked = 0
        assert len(timers.heap) == live + marked
        assert live_in(timers) == live


def test_sleep_is_neither_negative_nor_longer_than_a_day() -> None:
    """epoll_wait(2) takes milliseconds as an int, so a loop with a timer in a year wakes once a day."""
    timers = Timers()
    timers.add(365 * 86_400.0, int)
    assert timers.sleep_s(0.0) == LONGEST_SLEEP_S
    assert timers.sleep_s(400 * 86_400.0) == 0.0


@pytest.mark.parametrize("fire", [True, False])
def test_cancelling_a_timer_outside_the_heap_keeps_the_count(fire: bool) -> None:
    """A timer that has left the heap must not count as cancelled in it."""
    timers = Timers()
    timer = timers.add(1.0, int)
    timers.add(2.0, int)
    (due,) = timers.pop_due(1.0)
    assert due is timer
    if fire:
        due.fire()
    timer.cancel()
    timer.cancel()
    due.fire()
    assert live_in(timers) == 1
    assert timers.sleep_s(0.0) == 2.0


def test_cancelled_timer_drops_its_references() -> None:
    """Neither the callback nor its arguments are kept alive."""
    timer = Timers().add(1.0, print, (object(),))
    timer.cancel()
    assert timer.callback is None
    assert timer.args == ()


def test_a_timer_whose_callback_raises_has_fired() -> None:
    """It must not fire again."""
    timers = Timers()
    timer = timers.add(0.0, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        timer.fire()
    timer.fire()
    assert timer.callback is None
