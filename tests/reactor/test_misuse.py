"""A loop run inside itself, or used when it is closed, is refused with a RuntimeError, and nothing else changes."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable

import pytest

from reactor import Connection, Limits, Reactor, StreamProtocol, connect_tcp, listen_tcp, open_udp
from reactor.fastpath.busypoll import BusyPollSelector
from reactor.observe.watch import Watch
from tests.support.clients import tcp_pair
from tests.support.loops import DatagramRecorder, ManualClock, Recorder, RecordingSelector, turn_idle

LOCAL = ("127.0.0.1", 0)
INSIDE: dict[str, Callable[[Reactor], object]] = {
    "run": Reactor.run,
    "turn": Reactor.turn,
    "close": Reactor.close,
    "another's run": lambda loop: run_inside_another(loop),
}


def run_inside_another(loop: Reactor) -> None:
    """Run a second loop whose callback runs the first one."""
    errors: list[RuntimeError] = []

    def inner() -> None:
        try:
            loop.run()
        except RuntimeError as error:
            errors.append(error)
        other.stop()

    with Reactor() as other:
        other.call_soon(inner)
        other.run()
    raise errors[0]


@pytest.mark.parametrize("stops", ["before", "after"])
@pytest.mark.parametrize("step", ["handler", "timer", "call"])
@pytest.mark.parametrize("what", INSIDE)
def test_loop_inside_its_own_callback_is_refused_and_the_outer_run_goes_on(what: str, step: str, stops: str) -> None:
    """Also when `stop` was called before: the outer run must still notice it."""
    done: list[str] = []

    def attempt(*_: object) -> None:
        if stops == "before":
            loop.stop()
        with pytest.raises(RuntimeError, match=r"its own loop|running loop"):
            INSIDE[what](loop)
        done.append("refused")
        if stops == "after":
            loop.call_later(0.0, loop.stop)

    with Reactor() as loop:
        protocol = Recorder()
        if step == "handler":
            protocol.data_received = attempt  # type: ignore[method-assign, assignment]
        near, far = tcp_pair()
        connection = Connection(loop, near, protocol)
        connection.open()
        loop.call_later(0.0, done.append, "timer")
        if step == "handler":
            far.send(b"go")
        elif step == "timer":
            loop.call_later(0.0, attempt)
        else:
            loop.call_soon(attempt)
        loop.call_soon(done.append, "call")
        loop.run()
        assert sorted(done) == ["call", "refused", "timer"]
        far.close()


def add_a_connection(loop: Reactor) -> None:
    near, far = tcp_pair()
    with near, far:
        Connection(loop, near, StreamProtocol())


CLOSED: dict[str, Callable[[Reactor], object]] = {
    "call_soon": lambda loop: loop.call_soon(int),
    "call_soon_threadsafe": lambda loop: loop.call_soon_threadsafe(int),
    "call_later": lambda loop: loop.call_later(1, int),
    "call_at": lambda loop: loop.call_at(1, int),
    "run": Reactor.run,
    "turn": Reactor.turn,
    "add_signal_handler": lambda loop: loop.add_signal_handler(signal.SIGUSR1, int),
    "listen_tcp": lambda loop: listen_tcp(loop, LOCAL, StreamProtocol),
    "connect_tcp": lambda loop: connect_tcp(loop, ("127.0.0.1", 9), StreamProtocol(), print),
    "open_udp": lambda loop: open_udp(loop, LOCAL, DatagramRecorder()),
    "connection": add_a_connection,
}


@pytest.mark.parametrize("what", CLOSED)
def test_closed_loop_refuses_everything_that_it_would_never_do(what: str) -> None:
    """If the loop ignored it silently, the code that asked for it would wait for ever."""
    before = signal.getsignal(signal.SIGUSR1)
    loop = Reactor()
    loop.close()
    with pytest.raises(RuntimeError, match="the reactor is closed"):
        CLOSED[what](loop)
    assert not loop.handlers
    assert signal.getsignal(signal.SIGUSR1) is before
    loop.close()


# ---------------------------------------------------------------- times that no clock has

HUGE = 10**400  # more than a float can be
NEVER = [math.inf, -math.inf, math.nan, HUGE, -HUGE]


def listener_with(loop: Reactor, linger_timeout_s: float) -> None:
    listen_tcp(loop, LOCAL, StreamProtocol, limits=Limits(linger_timeout_s=linger_timeout_s))


def connector_with(loop: Reactor, linger_timeout_s: float) -> None:
    connect_tcp(loop, LOCAL, StreamProtocol(), print, limits=Limits(linger_timeout_s=linger_timeout_s))


def watch_with(_loop: Reactor, slow_s: float) -> None:
    Watch(slow_s=slow_s)


def poll_with(loop: Reactor, busy_poll_s: float) -> None:
    BusyPollSelector(RecordingSelector(), loop.now, busy_poll_s)


def suspend_for(loop: Reactor, pause_s: float) -> None:
    loop.suspend(next(iter(loop.handlers)), pause_s)


TAKES_SECONDS: dict[str, Callable[[Reactor, float], object]] = {
    "call_later": lambda loop, value: loop.call_later(value, int),
    "call_at": lambda loop, value: loop.call_at(value, int),
    "suspend": suspend_for,
    "connect timeout": lambda loop, value: connect_tcp(loop, LOCAL, StreamProtocol(), print, timeout_s=value),
    "linger of a listener": listener_with,
    "linger of a connector": connector_with,
    "Watch": watch_with,
    "busy poll": poll_with,
}


@pytest.mark.parametrize("value", NEVER, ids=["inf", "-inf", "nan", "huge", "-huge"])
@pytest.mark.parametrize("name", TAKES_SECONDS)
def test_time_that_no_clock_has_is_refused_and_changes_nothing(name: str, value: float) -> None:
    """It is refused where it is given, not when the time would come."""
    with Reactor() as loop:
        before = dict(loop.handlers)
        with pytest.raises((ValueError, OverflowError)):
            TAKES_SECONDS[name](loop, value)
        assert loop.handlers == before
        assert not loop.snapshot().suspended
        assert not loop.snapshot().timers
        called: list[int] = []
        loop.call_soon_threadsafe(called.append, 1)  # the Waker, which was to be suspended, is still watched
        loop.turn()
        turn_idle(loop)
        assert called == [1]


@pytest.mark.parametrize("name", ["linger of a listener", "linger of a connector", "Watch", "busy poll"])
def test_negative_duration_is_refused(name: str) -> None:
    with Reactor() as loop, pytest.raises(ValueError, match="seconds"):
        TAKES_SECONDS[name](loop, -1.0)


@pytest.mark.parametrize("delay_s", [-1e300, -1.0, -0.0, 0.0, 1e-320, 1e-20, False])
def test_time_that_is_past_or_too_short_for_the_clock_is_due_at_once(delay_s: float) -> None:
    clock, selector = ManualClock(), RecordingSelector()
    fired: list[str] = []
    with Reactor(clock=clock, selector=selector) as loop:
        loop.call_later(delay_s, fired.append, "later")
        loop.call_at(delay_s, fired.append, "at")
        turn_idle(loop, 1)
        assert sorted(fired) == ["at", "later"]


@pytest.mark.parametrize("delay_s", [1e5, 1e10, 1e300, 10**30])
def test_far_timer_never_fires_and_never_spins(delay_s: float) -> None:
    """select(2) and epoll_wait(2) get a day at most, and a day later the loop sleeps again."""
    clock, selector = ManualClock(), RecordingSelector(on_select=lambda: clock.advance(90_000.0))
    with Reactor(clock=clock, selector=selector) as loop:
        timer = loop.call_later(delay_s, int)
        loop.call_soon_threadsafe(int)
        loop.turn()
        loop.call_soon_threadsafe(int)
        loop.calls.clear()
        loop.turn()
        assert selector.timeouts[-1] == (86_400.0 if delay_s > 1e5 + 86_400 else pytest.approx(10_000.0))
        timer.cancel()
