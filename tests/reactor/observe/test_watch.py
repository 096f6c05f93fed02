"""Whoever holds the loop up is named; how long turns work and how late timers are is counted; others pay nothing."""

from __future__ import annotations

import functools
import logging
import selectors
import socket
from collections.abc import Callable
from typing import Any

import pytest

from reactor import READ, Connection, Reactor, StreamProtocol, format_address, listen_tcp
from reactor.observe.watch import BOUNDS_S, SLOW_QUIET_S, TICK_S, Spread, WatchedReactor, WatchedSelector
from tests.support.clients import tcp_pair
from tests.support.faults import Faults, adopt_socket
from tests.support.loops import SELECTORS, ManualClock, turn_until, wait_readable

SLOW_S = 0.1


class Sleeper(StreamProtocol):
    """Takes its time with each piece of data, and when it is told of the end."""

    def __init__(self, clock: ManualClock, takes_s: float) -> None:
        self.clock, self.takes_s = clock, takes_s

    def data_received(self, connection: Connection, data: bytes) -> None:
        self.clock.advance(self.takes_s)

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        self.clock.advance(self.takes_s)


class Watched:
    """A watched loop with a clock that only moves when somebody takes time, and a connection on it."""

    def __init__(self, takes_s: float = 0.0, slow_s: float | None = SLOW_S, **options: Any) -> None:
        self.clock = ManualClock()
        self.loop = WatchedReactor(clock=self.clock, slow_s=slow_s, **options)
        ours, self.peer = tcp_pair()
        self.connection = Connection(self.loop, adopt_socket(ours, Faults()), Sleeper(self.clock, takes_s))
        self.connection.open()

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *exception: object) -> None:
        self.loop.close()
        self.peer.close()

    def send(self) -> None:
        before = self.connection.bytes_received
        self.peer.send(b"x")
        turn_until(self.loop, lambda: self.connection.bytes_received > before)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if getattr(record, "event", "") == "slow_callback"]


# ---------------------------------------------------------------- slow callbacks


def test_a_slow_handler_is_named_with_its_protocol_and_peer(caplog: pytest.LogCaptureFixture) -> None:
    """Issue: "Slow-callback warning that names the callback"."""
    with Watched(takes_s=0.25) as watched:
        watched.send()
        watched.loop.call_soon(int)
        watched.loop.turn()  # it has ended when the selector is asked for the next one
        who = f"Connection of Sleeper, {format_address(watched.peer.getsockname())}"
        assert warnings(caplog) == [f"a slow callback held everybody up for 250.0 ms: {who}"]
        [record] = caplog.records
        assert record.levelno == logging.WARNING
        assert record.__dict__["fields"] == {"callback": who, "seconds": 0.25}
        assert watched.loop.watch.slow_callbacks == 1


def test_a_quick_one_isnt_and_the_limit_itself_is_slow(caplog: pytest.LogCaptureFixture) -> None:
    for takes_s, slow in ((SLOW_S * 0.999, 0), (SLOW_S, 1)):
        caplog.clear()
        with Watched() as watched:
            watched.loop.call_soon(watched.clock.advance, takes_s)
            watched.clock.now_s = 0.0  # small numbers, or the difference is rounded
            watched.loop.turn()
            assert len(warnings(caplog)) == watched.loop.watch.slow_callbacks == slow


def test_of_a_batch_only_the_slow_ones_are_charged_each_with_its_own(caplog: pytest.LogCaptureFixture) -> None:
    with Watched(takes_s=0.25) as watched:
        protocols = [Sleeper(watched.clock, takes_s) for takes_s in (0.05, 0.5, 0.05)]
        peers = []
        for protocol in protocols:
            ours, peer = tcp_pair()
            Connection(watched.loop, adopt_socket(ours, Faults()), protocol).open()
            peer.send(b"x")
            peers.append(peer)
        watched.peer.send(b"x")
        for handler in list(watched.loop.handlers)[1:]:
            wait_readable(handler)  # type: ignore[arg-type]
        watched.loop.call_soon(int)
        watched.loop.turn()
        assert watched.loop.watch.slow_callbacks == 2
        assert watched.loop.watch._blamed_s == 0.75
        for peer in peers:
            peer.close()


def test_a_slow_timer_and_a_slow_call_are_named_after_their_callbacks(caplog: pytest.LogCaptureFixture) -> None:
    with Watched() as watched:
        loop, clock = watched.loop, watched.clock
        loop.call_later(1.0, functools.partial(clock.advance, 2.0))
        clock.advance(1.0)
        loop.turn()
        loop.call_soon(clock.advance, 3.0)
        loop.turn()
    assert warnings(caplog) == [
        "a slow callback held everybody up for 2000.0 ms: tests.support.ManualClock.advance",
        "a slow callback held everybody up for 3000.0 ms: tests.support.ManualClock.advance",
    ]


def test_a_callback_that_raises_is_named_too(caplog: pytest.LogCaptureFixture) -> None:
    def stumble(clock: ManualClock) -> None:
        clock.advance(1.0)
        raise ValueError("by the way")

    with Watched() as watched:
        watched.loop.call_soon(stumble, watched.clock)
        watched.loop.turn()
    [warning] = warnings(caplog)
    assert warning.endswith("test_a_callback_that_raises_is_named_too.<locals>.stumble")


def test_each_is_charged_with_its_own_time(caplog: pytest.LogCaptureFixture) -> None:
    """A listener calls `connection_made` inside its own turn: it isn't slow because that is."""

    class Slow(StreamProtocol):
        def connection_made(self, connection: Connection) -> None:
            clock.advance(5.0)

    clock = ManualClock()
    with WatchedReactor(clock=clock, slow_s=SLOW_S) as loop:
        listener = listen_tcp(loop, ("127.0.0.1", 0), Slow)
        with socket.create_connection(listener.address[:2]):
            turn_until(loop, lambda: clock.now_s > 1000.0)
            loop.call_soon(int)
            loop.turn()
    assert [warning.rpartition(": ")[2] for warning in warnings(caplog)] == [
        "tests.reactor.observe.test_watch.test_each_is_charged_with_its_own_time.<locals>.Slow.connection_made"
    ]


def test_the_log_isnt_flooded_and_what_isnt_said_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """House: every log line that others can cause has a bound."""
    with Watched() as watched:
        for _ in range(4):
            watched.loop.call_soon(watched.clock.advance, SLOW_QUIET_S * 0.3)
        watched.loop.turn()
        assert len(warnings(caplog)) == 1
        watched.loop.call_soon(watched.clock.advance, SLOW_QUIET_S * 0.3)
        watched.loop.turn()
        assert warnings(caplog)[1].endswith("ManualClock.advance; 3 more since the last such line")
        assert watched.loop.watch.slow_callbacks == 5


def test_a_limit_of_none_says_nothing_and_gives_out_what_the_selector_gave(caplog: pytest.LogCaptureFixture) -> None:
    with Watched(takes_s=9.0, slow_s=None) as watched:
        watched.send()
        assert type(watched.loop._selector.select(0)) is list
        assert not warnings(caplog)
        assert watched.loop.watch.slow_callbacks == 0


# ---------------------------------------------------------------- turns and lags


def test_a_turns_work_is_counted_without_its_sleep() -> None:
    """Issue: "loop turn time and lag histograms"."""
    clock = ManualClock()

    class Sleepy(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> Any:
            clock.advance(7.0)
            return super().select(0)

    with WatchedReactor(selector=Sleepy(), clock=clock) as loop:
        for takes_s in (0.5, 2.0, 0.0):
            loop.call_soon(clock.advance, takes_s)
            loop.turn()
        turns = loop.watch.turns
        assert (sum(turns.counts), turns.total_s) == (2, 2.5), "the third one isn't over"


def test_how_late_timers_fire_is_counted_and_a_cancelled_one_isnt() -> None:
    with Watched(slow_s=None) as watched:
        loop, clock = watched.loop, watched.clock
        second = loop.call_later(0.5, int)
        first = loop.call_later(0.0, second.cancel)
        clock.advance(1.5)
        loop.turn()
        assert first.callback is None
        lags = loop.watch.lags
        assert (sum(lags.counts), lags.total_s) == (1, 1.5)


def test_a_tick_measures_lateness_when_nobody_else_has_timers() -> None:
    with Watched(slow_s=None) as watched:
        watched.loop.tick()
        for late_s in (0.0, 0.5):
            watched.clock.advance(TICK_S + late_s)
            watched.loop.turn()
        assert (sum(watched.loop.watch.lags.counts), watched.loop.watch.lags.total_s) == (2, 0.5)


def test_busy_polling_is_no_work() -> None:
    """Inside of the watch: else every look would count as a turn."""
    with Watched(slow_s=None, busy_poll_s=0.001) as watched:
        watched.send()
        before = sum(watched.loop.watch.turns.counts)
        watched.loop.call_soon(int)
        watched.loop.turn()
        assert sum(watched.loop.watch.turns.counts) == before + 1


@pytest.mark.parametrize("seconds", [BOUNDS_S[3], BOUNDS_S[3] * 1.0001, 0.0, 1e9])
def test_a_bound_belongs_to_what_is_below_it(seconds: float) -> None:
    spread = Spread()
    spread.add(seconds)
    [number] = [number for number, count in enumerate(spread.counts) if count]
    assert number == 0 or seconds > BOUNDS_S[number - 1]
    assert number == len(BOUNDS_S) or seconds <= BOUNDS_S[number]
    assert spread.total_s == seconds


# ---------------------------------------------------------------- the seam


@pytest.mark.parametrize("selector_class", SELECTORS)
def test_a_watched_loop_does_what_any_loop_does(selector_class: Callable[[], selectors.BaseSelector]) -> None:
    with Watched(selector=selector_class()) as watched:
        assert isinstance(watched.loop._selector, WatchedSelector)
        watched.connection.pause_reading()
        assert len(watched.loop._selector.get_map()) == 1
        watched.connection.resume_reading()
        watched.send()
        watched.loop.set_interest(watched.connection, READ | selectors.EVENT_WRITE)
        watched.loop.set_interest(watched.connection, READ)
        watched.send()
        assert watched.connection.bytes_received == 2


def test_whoever_doesnt_ask_pays_nothing() -> None:
    """The selector's own `select` is what the loop calls, and `guard` is its own."""
    with Reactor() as loop:
        assert loop._select == loop._selector.select
        assert type(loop).guard is Reactor.guard
