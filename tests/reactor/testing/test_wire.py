"""Wire: events in the order of their time, and hosts that are cut off."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reactor.testing import SimulatedClock
from reactor.testing.wire import Wire


@given(delays_s=st.lists(st.integers(0, 5)))
def test_events_come_by_time_then_in_the_order_of_scheduling(delays_s: list[int]) -> None:
    clock = SimulatedClock()
    wire = Wire(clock)
    seen: list[tuple[int, int]] = []
    for number, delay_s in enumerate(delays_s):
        wire.call_later(delay_s, lambda entry=(delay_s, number): seen.append(entry))  # type: ignore[misc]
    for _ in range(6):
        wire.run_due()
        clock.advance(1)
    assert seen == sorted((delay_s, number) for number, delay_s in enumerate(delays_s))
    assert wire.next_s() is None


def test_no_event_comes_before_its_time() -> None:
    clock = SimulatedClock(0.0)
    wire = Wire(clock)
    seen: list[str] = []
    assert wire.next_s() is None
    assert not wire.run_due()
    wire.call_later(2.0, lambda: seen.append("late"))
    wire.call_later(1.0, lambda: seen.append("early"))
    assert wire.next_s() == 1.0
    assert not wire.run_due()
    clock.advance(1.0)
    assert wire.run_due()
    assert seen == ["early"]
    assert wire.next_s() == 2.0


def test_event_due_at_once_runs_in_the_same_call() -> None:
    wire = Wire(SimulatedClock())
    seen: list[str] = []
    wire.call_later(0.0, lambda: wire.call_later(0.0, lambda: seen.append("second")))
    assert wire.run_due()
    assert seen == ["second"]
    assert not wire.run_due()


def test_partitioned_host_neither_reaches_nor_is_reached_until_healed() -> None:
    wire = Wire(SimulatedClock())
    assert wire.is_open("a", "b")
    wire.partition("a")
    assert not wire.is_open("a", "b")
    assert not wire.is_open("b", "a")
    assert wire.is_open("b", "c")
    wire.heal("a")
    assert wire.is_open("a", "b")
    wire.heal("never cut off")


def test_heal_calls_each_waiting_action_once() -> None:
    wire = Wire(SimulatedClock())
    seen: list[str] = []

    def again() -> None:
        seen.append("healed")
        if "b" in wire.cut_off:
            wire.when_healed(again)

    wire.partition("a")
    wire.partition("b")
    wire.when_healed(again)
    wire.heal("a")
    assert seen == ["healed"]
    wire.heal("b")
    wire.heal("b")
    assert seen == ["healed", "healed"]
