"""Watch names slow callbacks, counts the work of turns and the lateness of timers, and changes nothing."""

from __future__ import annotations

import functools
import logging
import selectors
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from reactor import READ, Connection, Reactor, StreamProtocol, format_address, listen_tcp
from reactor.buffer import SendBuffer
from reactor.doors import Observer
from reactor.fastpath.busypoll import BusyPollSelector
from reactor.observe.describe import callback_name, handler_name
from reactor.observe.trace import Event, Trace
from reactor.observe.watch import BOUNDS_S, SLOW_QUIET_S, TICK_S, Spread, Watch
from reactor.timers import Timers
from tests.support.clients import tcp_pair
from tests.support.faults import Faults, adopt_socket
from tests.support.loops import SELECTORS, ManualClock, turn_until, wait_readable

SLOW_S = 0.1
ADVANCE = callback_name(ManualClock().advance)


class Sleeper(StreamProtocol):
    """Spends time in `data_received` and `connection_lost`."""

    def __init__(self, clock: ManualClock, takes_s: float) -> None:
        self.clock, self.takes_s = clock, takes_s

    def data_received(self, connection: Connection, data: bytes) -> None:
        self.clock.advance(self.takes_s)

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        self.clock.advance(self.takes_s)


class Watched:
    """A watched loop with a clock that only callbacks advance, and a connection."""

    def __init__(
        self, takes_s: float = 0.0, slow_s: float | None = SLOW_S, inner: Observer | None = None, **options: Any
    ) -> None:
        self.clock, self.watch = ManualClock(), Watch(slow_s, inner or Observer())
        self.loop = Reactor(clock=self.clock, observer=self.watch, **options)
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
        watched.loop.turn()  # the handler ends when the loop asks for the next item
        name = f"Connection of Sleeper, {format_address(watched.peer.getsockname())}"
        assert warnings(caplog) == [f"slow callback: {name} blocked the loop for 250.0 ms"]
        [record] = caplog.records
        assert record.levelno == logging.WARNING
        assert record.__dict__["fields"] == {"callback": name, "seconds": 0.25}
        assert watched.watch.slow_callbacks == 1


def test_callback_at_the_limit_is_slow(caplog: pytest.LogCaptureFixture) -> None:
    for takes_s, slow in ((SLOW_S * 0.999, 0), (SLOW_S, 1)):
        caplog.clear()
        with Watched() as watched:
            watched.loop.call_soon(watched.clock.advance, takes_s)
            watched.clock.now_s = 0.0  # small numbers, or the difference would be rounded
            watched.loop.turn()
            assert len(warnings(caplog)) == watched.watch.slow_callbacks == slow


def test_in_a_batch_each_slow_handler_is_counted(caplog: pytest.LogCaptureFixture) -> None:
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
        assert watched.watch.slow_callbacks == 2
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
        f"slow callback: {ADVANCE} blocked the loop for 2000.0 ms",
        f"slow callback: {ADVANCE} blocked the loop for 3000.0 ms",
    ]


def test_a_callback_that_raises_is_named_too(caplog: pytest.LogCaptureFixture) -> None:
    def stumble(clock: ManualClock) -> None:
        clock.advance(1.0)
        raise ValueError("by the way")

    with Watched() as watched:
        watched.loop.call_soon(stumble, watched.clock)
        watched.loop.turn()
    [warning] = warnings(caplog)
    assert "test_a_callback_that_raises_is_named_too.<locals>.stumble blocked" in warning


class Proxy:
    def __getattr__(self, name: str) -> object:
        raise RuntimeError("nothing is known of me")

    def __call__(self) -> None:
        """Be called."""


def test_callback_without_a_name_is_named_by_its_class(caplog: pytest.LogCaptureFixture) -> None:
    """Law: a program may do with an observer whatever it may do without one."""
    with Reactor(observer=Watch(0.0)) as loop:
        loop.call_soon(Proxy())
        loop.turn()
    assert [warning.partition(" blocked")[0] for warning in warnings(caplog)] == ["slow callback: Proxy"]


def test_a_slow_callback_inside_another_is_charged_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A listener isn't slow because the `connection_made` that it calls is."""

    class Slow(StreamProtocol):
        def connection_made(self, connection: Connection) -> None:
            clock.advance(5.0)

    clock = ManualClock()
    with Reactor(clock=clock, observer=Watch(SLOW_S)) as loop:
        listener = listen_tcp(loop, ("127.0.0.1", 0), Slow)
        with socket.create_connection(listener.address[:2]):
            turn_until(loop, lambda: clock.now_s > 1000.0)
            loop.call_soon(int)
            loop.turn()
    assert warnings(caplog) == [
        f"slow callback: {callback_name(Slow().connection_made)} blocked the loop for 5000.0 ms"
    ]


def test_many_slow_callbacks_cost_one_line_a_second_and_all_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Log lines that clients can cause are bounded."""
    with Watched() as watched:
        for _ in range(4):
            watched.loop.call_soon(watched.clock.advance, SLOW_QUIET_S * 0.3)
        watched.loop.turn()
        assert len(warnings(caplog)) == 1
        watched.loop.call_soon(watched.clock.advance, SLOW_QUIET_S * 0.3)
        watched.loop.turn()
        assert warnings(caplog)[1].endswith("300.0 ms; 3 more since the last such line")
        assert watched.watch.slow_callbacks == 5


def test_without_a_limit_no_callback_is_slow(caplog: pytest.LogCaptureFixture) -> None:
    with Watched(takes_s=9.0, slow_s=None) as watched:
        watched.send()
        assert not warnings(caplog)
        assert watched.watch.slow_callbacks == 0


# ---------------------------------------------------------------- turns and lags


def test_work_of_a_turn_excludes_its_sleep() -> None:
    """Issue: "loop turn time and lag histograms"."""
    clock = ManualClock()

    class Sleepy(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> Any:
            clock.advance(7.0)
            return super().select(0)

    watch = Watch()
    with Reactor(selector=Sleepy(), clock=clock, observer=watch) as loop:
        for takes_s in (0.5, 2.0, 0.0):
            loop.call_soon(clock.advance, takes_s)
            loop.turn()
        assert (sum(watch.turns.counts), watch.turns.total_s) == (2, 2.5), "the third one isn't over"


def test_a_cancelled_timer_has_no_lateness() -> None:
    with Watched(slow_s=None) as watched:
        loop, clock = watched.loop, watched.clock
        second = loop.call_later(0.5, int)
        first = loop.call_later(0.0, second.cancel)
        clock.advance(1.5)
        loop.turn()
        assert first.callback is None
        lags = watched.watch.lags
        assert (sum(lags.counts), lags.total_s) == (1, 1.5)


def test_tick_measures_lateness_without_other_timers() -> None:
    with Watched(slow_s=None) as watched:
        watched.watch.tick()
        for late_s in (0.0, 0.5):
            watched.clock.advance(TICK_S + late_s)
            watched.loop.turn()
        assert (sum(watched.watch.lags.counts), watched.watch.lags.total_s) == (2, 0.5)


def test_busy_polling_does_not_count_as_work() -> None:
    """The watch wraps the polling, so a poll doesn't count as a turn."""
    selector = BusyPollSelector(selectors.DefaultSelector(), time.monotonic, 0.001)
    with Watched(slow_s=None, selector=selector) as watched:
        watched.send()
        before = sum(watched.watch.turns.counts)
        watched.loop.call_soon(int)
        watched.loop.turn()
        assert sum(watched.watch.turns.counts) == before + 1


@pytest.mark.parametrize("seconds", [BOUNDS_S[3], BOUNDS_S[3] * 1.0001, 0.0, 1e9])
def test_bound_is_inclusive(seconds: float) -> None:
    spread = Spread()
    spread.add(seconds)
    [number] = [number for number, count in enumerate(spread.counts) if count]
    assert number == 0 or seconds > BOUNDS_S[number - 1]
    assert number == len(BOUNDS_S) or seconds <= BOUNDS_S[number]
    assert spread.total_s == seconds


# ---------------------------------------------------------------- the doors


@pytest.mark.parametrize("selector_class", SELECTORS)
@pytest.mark.parametrize("slow_s", [None, SLOW_S])
@pytest.mark.parametrize("traced", [False, True])
def test_watched_loop_works_as_any_loop(
    selector_class: Callable[[], selectors.BaseSelector], slow_s: float | None, traced: bool
) -> None:
    events: list[Event] = []
    selector = selector_class()
    with Watched(selector=selector, slow_s=slow_s, inner=Trace(events.append) if traced else None) as watched:
        watched.connection.pause_reading()
        assert len(selector.get_map()) == 1
        watched.connection.resume_reading()
        watched.send()
        watched.loop.set_interest(watched.connection, READ | selectors.EVENT_WRITE)
        watched.loop.set_interest(watched.connection, READ)
        watched.send()
        assert watched.connection.bytes_received == 2
    assert [event.fields["bytes"] for event in events if event.kind == "received"] == [1, 1] * traced


def test_watch_around_a_trace_names_the_handler_and_both_report(caplog: pytest.LogCaptureFixture) -> None:
    """The trace registers a stand-in; the log line names the handler."""
    events: list[Event] = []
    with Watched(takes_s=0.25, inner=Trace(events.append)) as watched:
        watched.send()
        watched.loop.call_later(0.0, watched.clock.advance, SLOW_QUIET_S)
        watched.loop.turn()
        name = handler_name(watched.connection)
        assert warnings(caplog) == [
            f"slow callback: {name} blocked the loop for 250.0 ms",
            f"slow callback: {ADVANCE} blocked the loop for 1000.0 ms",
        ]
        assert watched.watch.slow_callbacks == 2
    kinds = [event.kind for event in events]
    assert {"dispatch", "received", "timer_fired"} <= set(kinds)
    assert sum(watched.watch.turns.counts) == kinds.count("turn") - 1, "the last one isn't over"
    assert sum(watched.watch.lags.counts) == kinds.count("timer_fired")


class Asked(Observer):
    """Records which of its methods are called, except `tell`."""

    def __init__(self) -> None:
        self.doors: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name.startswith("_") or name in ("doors", "tell"):
            return method

        def recorded(*args: Any) -> Any:
            self.doors.append(name)
            return method(*args)

        return recorded


@pytest.mark.parametrize("watched", [False, True])
def test_observer_is_asked_only_at_construction(watched: bool) -> None:
    """Once for each part, so a message costs nothing."""
    asked = Asked()
    with Reactor(observer=Watch(SLOW_S, asked) if watched else asked) as loop:
        assert sorted(asked.doors) == ["attach", "guard", "selector", "timers"]
        asked.doors.clear()
        ours, peer = tcp_pair()
        connection = Connection(loop, adopt_socket(ours, Faults()), StreamProtocol())
        connection.open()
        assert asked.doors == ["socket"]
        peer.send(b"x")
        loop.call_later(0.0, int)
        turn_until(loop, lambda: connection.bytes_received)
        connection.write(b"x")
        assert asked.doors == ["socket"], "a buffer only when something must wait"
        connection.use_socket(b"")
        assert asked.doors == ["socket", "socket", "buffer"]
        peer.close()


def test_default_observer_changes_nothing() -> None:
    """Its parts are those of a loop without an observer."""
    plain, observer = selectors.DefaultSelector(), Observer()
    assert observer.selector(plain) is plain
    assert observer.guard(print) is print
    assert observer.socket(None, plain) is plain  # type: ignore[arg-type]
    assert type(observer.timers()) is Timers
    assert type(observer.buffer(None, b"")) is SendBuffer  # type: ignore[arg-type]
    plain.close()
