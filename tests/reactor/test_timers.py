"""Timers: compared with a sorted list; and the cost of cancelling."""

import itertools
import math

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from reactor.limits import LONGEST_SLEEP_S, MOVES_PER_CANCEL, SWEEP_ABOVE_TIMERS, TIMERS_PER_TURN
from reactor.timers import Timer, Timers

DEADLINES_S = st.integers(0, 8).map(float)  # few, so that many are equal
HANDLES: Bundle[int] = Bundle("handles")


def live_in(timers: Timers) -> int:
    """Return the number of live timers, and check the count of cancelled ones, which sweeping needs."""
    live = len(timers.live())
    assert timers.cancelled == timers.size - live
    return live


class TimersMachine(RuleBasedStateMachine):
    """Compare with a list of (deadline, number) that is sorted at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.timers = Timers()
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
        later = sorted(entry for entry in self.live if entry[0] > now_s)
        for place, timer in enumerate(self.timers.pop_due(now_s)):
            timer.fire()
            if place + 1 == fire_before_cancel:
                self.cancel(number)
        before, after = expected[:fire_before_cancel], expected[fire_before_cancel:]
        cancelled = number if 0 < fire_before_cancel <= len(expected) else None
        assert self.fired == before + [n for n in after if n != cancelled]
        self.live = [entry for entry in later if entry[1] != cancelled]
        self.fired.clear()

    @rule(now_s=DEADLINES_S, stop_after=st.integers(1, 3))
    def end_the_run_after_a_few(self, now_s: float, stop_after: int) -> None:
        due = self.timers.pop_due(now_s)
        expected = [n for deadline_s, n in sorted(self.live) if deadline_s <= now_s][:stop_after]
        assert [self.made.index(timer) for timer in itertools.islice(due, stop_after)] == expected
        for number in expected:
            self.made[number].fire()
        self.live = [entry for entry in self.live if entry[1] not in expected]
        self.fired.clear()

    @rule()
    def ask_for_the_next_deadline(self) -> None:
        assert self.timers.sleep_s(0.0) == (min(max(0.0, min(self.live)[0]), LONGEST_SLEEP_S) if self.live else None)

    @invariant()
    def has_as_many_as_the_model(self) -> None:
        assert live_in(self.timers) == len(self.live)


TestTimersAreASortedList = TimersMachine.TestCase


@pytest.mark.parametrize("deadline_s", [math.nan, math.inf, -math.inf])
def test_non_finite_deadline_is_refused(deadline_s: float) -> None:
    """A NaN in the heap would disorder all timers."""
    timers = Timers()
    with pytest.raises(ValueError, match="finite"):
        timers.add(deadline_s, int)
    assert live_in(timers) == 0
    assert timers.sleep_s(0.0) is None


@pytest.mark.long
def test_half_a_million_timers_set_and_cancelled_never_grow_the_heap() -> None:
    """Most timeouts are cancelled; the heap must stay small."""
    timers = Timers()
    longest = 0
    for number in range(500_000):
        timers.add(float(number), int).cancel()
        longest = max(longest, timers.size)
    assert longest <= 2 * SWEEP_ABOVE_TIMERS
    assert live_in(timers) == 0
    assert timers.sleep_s(0.0) is None
    assert not timers.size


@pytest.mark.long
def test_many_cancelled_timers_leave_a_small_heap_beside_a_live_one() -> None:
    """A live timer on top keeps cancelled ones from being popped, so they are swept."""
    timers = Timers()
    timers.add(0.0, int)
    for timer in [timers.add(1.0, int) for _ in range(100_000)]:
        timer.cancel()
    assert live_in(timers) == 1
    assert timers.size <= 2 * SWEEP_ABOVE_TIMERS


@pytest.mark.parametrize("count", [100, 200, 201, 1000, 100_000])
def test_cancelled_timers_never_outnumber_the_live_ones_by_much(count: int) -> None:
    """While a heap is swept, a few more are cancelled."""
    timers = Timers()
    for live, timer in reversed(list(enumerate([timers.add(0.0, int) for _ in range(count)]))):
        timer.cancel()
        assert timers.cancelled <= max(SWEEP_ABOVE_TIMERS, timers.size // 2, count // 2) + live_share(count)
        assert timers.size == live + timers.cancelled


def live_share(count: int) -> int:
    """Return how many timers may be cancelled while a heap of `count` entries is swept."""
    return -(-count // MOVES_PER_CANCEL)


def test_one_cancel_moves_a_bounded_number_of_timers() -> None:
    """Story: with 100,000 timers one call to `cancel` took 50 ms, because it swept the heap in one go."""
    timers = Timers()
    made = [timers.add(float(number), int) for number in range(100_000)]
    for timer in made[::2]:
        timer.cancel()
    made[1].cancel()  # now the cancelled timers outnumber the live ones
    swept = []
    for timer in made[3:2_001:2]:
        before = timers.size
        timer.cancel()
        swept.append(before - timers.size)
    assert 0 < max(swept) <= MOVES_PER_CANCEL


def test_a_turn_takes_a_bounded_number_of_timers() -> None:
    """Cancelled timers count: many with the same deadline can't hold the loop up."""
    timers = Timers()
    for timer in [timers.add(1.0, int) for _ in range(4 * TIMERS_PER_TURN)][: 2 * TIMERS_PER_TURN - 1]:
        timer.cancel()
    assert [timers.sleep_s(0.0) for _ in range(2)] == [0.0, 1.0], "it looks again after a turn"
    assert len(list(timers.pop_due(1.0))) == TIMERS_PER_TURN


def test_timer_with_a_past_deadline_does_not_hold_up_an_older_one() -> None:
    """A callback that sets itself again for time 0 must not starve the others."""
    timers, fired = Timers(), []

    def again() -> None:
        fired.append("again")
        timers.add(0.0, again, now_s=10.0)

    timers.add(0.0, again, now_s=10.0)
    timers.add(9.0, fired.append, ("older",))
    for _ in range(2):
        for timer in timers.pop_due(10.0):
            timer.fire()
    assert fired == ["older", "again", "again"]


def test_sleep_is_neither_negative_nor_longer_than_a_day() -> None:
    """epoll_wait(2) takes milliseconds as an int, so a loop with a timer in a year wakes once a day."""
    timers = Timers()
    timers.add(365 * 86_400.0, int)
    assert timers.sleep_s(0.0) == LONGEST_SLEEP_S
    assert timers.sleep_s(400 * 86_400.0) == 0.0


def test_cancelling_a_timer_outside_the_heap_keeps_the_count() -> None:
    """A timer that has left the heap must not count as cancelled in it."""
    timers = Timers()
    timer = timers.add(1.0, int)
    timers.add(2.0, int)
    for due in timers.pop_due(1.0):
        assert due is timer
        due.fire()
        timer.cancel()
    timer.cancel()
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
