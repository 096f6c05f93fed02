"""The clock that jumps, and other trouble with time.

A naive server measures its timeouts by the wall clock. When the clock is set back an hour, nothing times out for an
hour. When it is set forward (by the first NTP answer after boot), everything times out at once. A naive loop runs
timers until no timer is due, so a timer that re-arms itself with no delay starves all I/O. An old version of Redis's
`ae.c` crashed when its last timer fired: it asked the list of timers, now empty, for the next one.

What prevents it: time is monotonic and comes in from outside, and the loop takes out all due timers before it calls the
first.
"""

import contextlib
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7.server import EchoServer
from reactor import Reactor, Timer, listen_tcp
from reactor.limits import LONGEST_SLEEP_S
from tests.support.basics import PATIENCE_S, PROJECT
from tests.support.clients import receive_exactly
from tests.support.daemon import MEASURED
from tests.support.loops import (
    SELECTORS,
    ManualClock,
    Recorder,
    RecordingSelector,
    server_side,
    turn_idle,
    turn_until,
    wait_readable,
)

MOST_RUNS = 10_000
YEARS_S = 3600.0 * 24 * 365 * 20


# A child process runs this first: from then on, each look at the wall clock shows a random time, 1970 … 2050.
WALL_CLOCK_JUMPS = f"""
import random, sys, time
wall = random.Random(7)
time.time = lambda: wall.uniform(0, {4 * YEARS_S})
time.time_ns = lambda: int(time.time() * 1e9)
"""
TIMERS = """
from reactor import Reactor
fired = []
with Reactor() as reactor:
    for delay_s in (0.03, 0.01, 0.02, 3600.0):
        reactor.call_later(delay_s, fired.append, delay_s)
    reactor.call_later(0.05, reactor.stop)
    reactor.run()
print(fired)
"""
DAEMON = """
from echo7.cli import main
sys.exit(main(["serve", "--host", "127.0.0.1", "--port", "0", "--no-udp", *sys.argv[1:]]))
"""


def test_wall_clock_jump_moves_no_timer() -> None:
    """'Wall-clock jumps change nothing' (promise 18): timers fire in order, and one due in an hour doesn't."""
    command = [sys.executable, "-c", WALL_CLOCK_JUMPS + TIMERS]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert done.stdout == "[0.01, 0.02, 0.03]\n"


def test_daemon_serves_and_stops_while_wall_clock_jumps() -> None:
    """End to end: the log's times are wrong, and nothing else is."""
    command = [sys.executable, "-c", WALL_CLOCK_JUMPS + DAEMON, *MEASURED]
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True))
        stack.callback(daemon.kill)
        assert daemon.stderr is not None
        listening = next(line for line in daemon.stderr if "listening on tcp" in line)
        with socket.create_connection(("127.0.0.1", int(listening.rpartition(":")[2])), PATIENCE_S) as client:
            for number in range(20):
                client.sendall(b"%d" % number)
                assert receive_exactly(client, len(str(number))) == b"%d" % number
            daemon.send_signal(signal.SIGTERM)
            assert client.recv(1) == b"", "an orderly FIN, not a reset after the drain timeout"
        assert "Traceback" not in daemon.stderr.read()
        assert daemon.wait(PATIENCE_S) == 0


@given(
    delays=st.lists(st.floats(0.0, 100.0), max_size=12),
    cancelled=st.sets(st.integers(0, 11)),
    steps=st.lists(st.floats(0.0, 60.0), max_size=8),
)
def test_timers_fire_in_order_never_early_and_never_when_cancelled(
    delays: list[float], cancelled: set[int], steps: list[float]
) -> None:
    """'Timers are monotonic, ordered, cancellable' (promise 18), in whatever steps the clock moves."""
    clock = ManualClock()
    fired: list[int] = []
    with Reactor(clock=clock) as reactor:
        timers = [reactor.call_later(delay_s, fired.append, number) for number, delay_s in enumerate(delays)]
        for number in cancelled & set(range(len(timers))):
            timers[number].cancel()
        for step_s in [*steps, 100.0]:
            clock.advance(step_s)
            turn_idle(reactor, 1)
            expected = [
                number
                for number, timer in sorted(enumerate(timers), key=lambda pair: (pair[1].deadline_s, pair[0]))
                if number not in cancelled and timer.deadline_s <= clock.now_s
            ]
            assert fired == expected


def test_timer_may_cancel_another_due_at_the_same_time() -> None:
    """Both are taken out before the first is called. The cancelled one still doesn't fire."""
    fired: list[str] = []
    timers: list[Timer] = []

    def first() -> None:
        fired.append("first")
        timers[1].cancel()

    with Reactor(clock=ManualClock()) as reactor:
        timers.append(reactor.call_later(0.0, first))
        timers.append(reactor.call_later(0.0, fired.append, "second"))
        turn_idle(reactor)
    assert fired == ["first"]


class Rearming:
    """Work that schedules itself again at once, for ever: as a timer or as a queued call."""

    def __init__(self, reactor: Reactor, as_timer: bool) -> None:
        self.reactor, self.as_timer = reactor, as_timer
        self.runs = 0

    def __call__(self) -> None:
        self.runs += 1
        if self.runs == MOST_RUNS:  # a loop that starves I/O then fails the test instead of hanging it
            return
        if self.as_timer:
            self.reactor.call_later(0.0, self)
        else:
            self.reactor.call_soon(self)


@pytest.mark.parametrize("as_timer", [True, False], ids=["timer", "call"])
@pytest.mark.parametrize("selector_class", SELECTORS)
def test_zero_delay_timer_that_rearms_leaves_io_its_turn(
    selector_class: type[selectors.BaseSelector], as_timer: bool
) -> None:
    """'A zero-delay timer that re-arms itself doesn't starve I/O' (promise 18): it runs once a turn."""
    with Reactor(selector=selector_class()) as reactor:
        server = EchoServer(("127.0.0.1",), 0)
        server.start(reactor)
        with socket.create_connection(server.addresses[0][1:3], PATIENCE_S) as client:
            connection = server_side(reactor, client)
            work = Rearming(reactor, as_timer)
            work()
            for number in range(1, 10):
                client.sendall(b"ping")
                wait_readable(connection)
                runs_before = work.runs
                reactor.turn()
                assert work.runs == runs_before + 1
                assert connection.bytes_sent == 4 * number, "answered in the turn that found it"
                assert receive_exactly(client, 4) == b"ping"


@pytest.fixture
def talking() -> Iterator[tuple[Reactor, RecordingSelector, socket.socket]]:
    """A loop without timers, the selector that records its timeouts, and a client that can wake it."""
    selector = RecordingSelector()
    with Reactor(selector=selector) as reactor:
        recorder = Recorder()
        address = listen_tcp(reactor, ("127.0.0.1", 0), lambda: recorder).address
        with socket.create_connection(address, PATIENCE_S) as client:
            server_side(reactor, client)
            selector.timeouts.clear()
            yield reactor, selector, client


@pytest.mark.parametrize("ending", ["fires", "is cancelled"])
def test_last_timer_fires_and_leaves_none(
    talking: tuple[Reactor, RecordingSelector, socket.socket], ending: str
) -> None:
    """'The last timer may fire and leave none' (promise 18): then the loop sleeps until something happens."""
    reactor, selector, client = talking
    fired: list[str] = []
    timer = reactor.call_later(0.001, fired.append, "fired")
    if ending == "is cancelled":
        timer.cancel()
        reactor.call_soon(int)
    while not fired and ending == "fires":
        reactor.turn()
    turn_idle(reactor, 1)
    selector.timeouts.clear()
    client.sendall(b"wake up")
    reactor.turn()
    assert selector.timeouts == [None]


def test_after_a_long_sleep_each_timer_fires_once() -> None:
    """After a machine was suspended for a day, each due timer fires once, in order, not once per missed interval."""
    clock = ManualClock()
    fired: list[str] = []
    with Reactor(clock=clock) as reactor:

        def tick() -> None:
            fired.append("tick")
            reactor.call_later(1.0, tick)

        reactor.call_later(1.0, tick)
        reactor.call_later(2.0, fired.append, "once")
        clock.advance(86_400.0)
        turn_idle(reactor)
    assert fired == ["tick", "once"]


def test_clock_that_stands_still_delays_only_timers() -> None:
    """Without progress of time no timer is due, and I/O goes on."""
    fired: list[str] = []
    with Reactor(clock=ManualClock()) as reactor:
        server = EchoServer(("127.0.0.1",), 0)
        server.start(reactor)
        reactor.call_later(0.001, fired.append, "too early")
        with socket.create_connection(server.addresses[0][1:3], PATIENCE_S) as client:
            client.sendall(b"ping")
            turn_until(reactor, lambda: server.counters.tcp_bytes_sent == 4)
            assert receive_exactly(client, 4) == b"ping"
    assert fired == []


@pytest.mark.parametrize("selector_class", SELECTORS)
def test_timer_due_in_a_thousand_years_does_not_overflow(selector_class: type[selectors.BaseSelector]) -> None:
    """poll(2) and epoll_wait(2) count milliseconds in an int: 24 days. The loop sleeps at most a day."""
    selector = RecordingSelector(selector_class())
    recorder = Recorder()
    with Reactor(selector=selector) as reactor:
        address = listen_tcp(reactor, ("127.0.0.1", 0), lambda: recorder).address
        with socket.create_connection(address, PATIENCE_S) as client:
            client.sendall(b"x")
            wait_readable(server_side(reactor, client))
            reactor.call_later(YEARS_S * 50, int)
            reactor.turn()
            assert selector.timeouts[-1] == LONGEST_SLEEP_S
            assert recorder.received == b"x"
