"""Busy polling changes when the loop looks, never what it sees."""

from __future__ import annotations

import collections
import math
import selectors
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactor import READ, Reactor
from reactor.fastpath.busypoll import BusyPollSelector
from reactor.observe.trace import Event, Trace
from reactor.testing import SimulatedNetwork
from tests.support.clients import receive_exactly
from tests.support.echo import EchoThread
from tests.support.loops import SELECTORS, CountingSelector, ManualClock

BUSY_S = 0.001
POLL_S = 0.0001  # the duration of one poll
KEY = selectors.SelectorKey(0, 0, READ, "a handler")


class Events(selectors.DefaultSelector):
    """A selector with a manual clock and scripted events; a poll takes POLL_S."""

    def __init__(self, at_s: list[float]) -> None:
        super().__init__()
        self.clock = ManualClock(0.0)
        self.at_s = sorted(at_s)
        self.calls: list[float | None] = []

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.calls.append(timeout)
        now_s = self.clock.now_s + POLL_S
        if timeout != 0 and not (self.at_s and self.at_s[0] <= now_s):
            if timeout is None and not self.at_s:
                raise AssertionError("sleeps for ever")
            wake_s = math.inf if timeout is None else now_s + timeout
            now_s = min([wake_s, *self.at_s])
        self.clock.now_s = now_s
        if self.at_s and self.at_s[0] <= now_s:
            self.at_s.pop(0)
            return [(KEY, READ)]
        return []


@pytest.mark.parametrize("busy_poll_s", [0.0, -1.0, math.inf, math.nan])
def test_non_positive_or_infinite_time_is_refused(busy_poll_s: float) -> None:
    with pytest.raises(ValueError, match="busy_poll_s must be a positive number of seconds"):
        BusyPollSelector(Events([]), ManualClock(), busy_poll_s)


def test_before_any_activity_the_first_wait_sleeps() -> None:
    events = Events([5.0])
    assert BusyPollSelector(events, events.clock, BUSY_S).select(None)
    assert events.calls == [0, None]


def test_after_activity_it_polls_for_the_given_time_and_then_sleeps() -> None:
    events = Events([0.0, 9.0])
    poll = BusyPollSelector(events, events.clock, BUSY_S)
    assert poll.select(None)
    events.calls.clear()
    assert poll.select(None)
    assert events.calls[-1] is None
    assert len(events.calls) >= BUSY_S / POLL_S
    assert set(events.calls[:-1]) == {0}


def test_event_during_polling_needs_no_wake_up() -> None:
    events = Events([0.0, 0.0005])
    poll = BusyPollSelector(events, events.clock, BUSY_S)
    assert poll.select(None)
    assert poll.select(None)
    assert set(events.calls) == {0}


def test_due_timer_is_no_activity() -> None:
    """A server that only has a timer sleeps between its ticks."""
    events = Events([])
    poll = BusyPollSelector(events, events.clock, BUSY_S)
    for _ in range(5):
        events.calls.clear()
        assert poll.select(1.0) == []
        assert events.calls == [0, pytest.approx(1.0, abs=2 * POLL_S)]


def test_timeout_0_polls_once() -> None:
    events = Events([0.0])
    poll = BusyPollSelector(events, events.clock, BUSY_S)
    assert poll.select(0.0)
    events.calls.clear()
    assert poll.select(0.0) == poll.select(-1.0) == []
    assert events.calls == [0, 0]


@given(
    st.lists(st.floats(0, 0.02), max_size=20),
    st.lists(st.one_of(st.floats(0, 0.01), st.sampled_from([0.0, BUSY_S])), min_size=1, max_size=30),
)
def test_no_event_is_missed_and_no_deadline(at_s: list[float], timeouts_s: list[float]) -> None:
    """Each call ends with an event or at its timeout, at most a few polls late and never early."""
    events = Events(at_s)
    poll = BusyPollSelector(events, events.clock, BUSY_S)
    seen = 0
    for timeout_s in timeouts_s:
        before_s = events.clock.now_s
        due = [at for at in events.at_s if at <= before_s]
        ready = poll.select(timeout_s)
        took_s = events.clock.now_s - before_s
        seen += len(ready)
        assert took_s <= timeout_s + 3 * POLL_S
        assert ready or (not due and took_s >= timeout_s)
    assert seen + len(events.at_s) == len(at_s)


def busy_polling(inner: selectors.BaseSelector, busy_poll_s: float) -> BusyPollSelector:
    return BusyPollSelector(inner, time.monotonic, busy_poll_s)


@pytest.mark.parametrize("selector_class", SELECTORS)
def test_a_traced_and_busy_polling_loop_echoes_every_byte(selector_class: type[selectors.BaseSelector]) -> None:
    """The trace wraps the polling: one turn event, however many polls."""
    events: list[Event] = []
    options = {"selector": busy_polling(selector_class(), 0.02), "observer": Trace(events.append)}
    with EchoThread(reactor_options=options) as echo, echo.connect() as client:
        for number in range(100):
            client.sendall(b"%d" % number)
            assert receive_exactly(client, len(b"%d" % number)) == b"%d" % number
    kinds = collections.Counter(event.kind for event in events)
    assert kinds["turn"] == kinds["select"] >= kinds["received"] == kinds["sent"] >= 100


def test_when_activity_ends_the_loop_sleeps() -> None:
    """On the real kernel: polling ends, so an idle server uses no processor."""
    selector = CountingSelector()
    with Reactor(selector=busy_polling(selector, 0.002)) as reactor:
        reactor.call_soon_threadsafe(int)  # activity: the waker's descriptor is readable
        selects: list[int] = []
        reactor.call_later(0.2, lambda: selects.append(selector.selects))
        reactor.call_later(0.4, reactor.stop)
        reactor.run()
        assert selector.selects > 10
        assert selector.selects - selects[0] <= 3


def test_in_a_simulated_world_it_polls_and_sleeps_too() -> None:
    """A poll takes simulated time, or polling would never end."""
    network = SimulatedNetwork(1, latency_s=0.0001)
    reactor = network.reactor(busy_poll_s=BUSY_S)
    fired: list[float] = []
    reactor.call_later(10.0, lambda: fired.append(network.clock()))
    began_s = network.clock()
    network.run(reactor)
    assert fired == [pytest.approx(began_s + 10.0, abs=0.01)]
