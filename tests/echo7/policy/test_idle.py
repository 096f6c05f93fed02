"""`--idle-timeout`: no connection is closed too early or much too late, and data that came in time is echoed first."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import time
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from echo7 import EchoServer
from echo7.policy.idle import CONNECTIONS_PER_LOOK, LOOKS, IdleWatch
from reactor import READ, WRITE, Connection, Reactor, State
from reactor.testing import SimulatedNetwork
from tests.support.basics import PATIENCE_S, until
from tests.support.clients import drain, receive_exactly, receive_to_end
from tests.support.daemon import EchoProcess
from tests.support.echo import EchoByHand
from tests.support.loops import ManualClock, RecordingSelector, turn_idle, turn_until

TIMEOUT_S = 60.0
STEP_S = TIMEOUT_S / LOOKS


class BlindSelector(RecordingSelector):
    """Reports nothing while it is blind, as epoll_wait(2) may after SIGSTOP: its time-out is over."""

    blind = False

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(timeout)
        return [] if self.blind else ready


class Silent:
    """Stands for a connection that moves bytes only when the test says so."""

    def __init__(self) -> None:
        self.state, self.closed, self.interest = State.OPEN, False, READ
        self.bytes_received = self.bytes_sent = 0
        self.looked = 0
        self.unread = 0

    def on_event(self, mask: int) -> None:
        assert mask == READ
        self.looked += 1
        self.bytes_received += self.unread
        self.unread = 0

    def close(self) -> None:
        self.state = State.DRAINING

    def abort(self, error: Exception | None = None) -> None:
        assert isinstance(error, TimeoutError)
        self.state, self.closed = State.CLOSED, True


class Watch:
    """An IdleWatch on a clock that the test moves."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.reactor = Reactor(clock=self.clock)
        self.ended: list[tuple[Any, str]] = []
        self.watch = IdleWatch(self.reactor, TIMEOUT_S, lambda connection, why: self.ended.append((connection, why)))

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.reactor.close()

    def add(self) -> Silent:
        silent = Silent()
        self.watch.watch(cast(Connection, silent))
        return silent

    def forget(self, silent: Silent) -> None:
        self.watch.forget(cast(Connection, silent))

    def go_on(self, seconds: float, tick_s: float = STEP_S / 10) -> None:
        """Move the clock while the loop turns."""
        end_s = self.clock.now_s + seconds
        while self.clock.now_s < end_s:
            self.clock.now_s = min(end_s, self.clock.now_s + tick_s)
            turn_idle(self.reactor, 1)


@given(st.lists(st.floats(0, TIMEOUT_S * 0.99), max_size=4), st.booleans(), st.floats(0.01, STEP_S / 2))
@example([], True, 0.25)
@example([59.0, 59.0], False, 0.25)
def test_idle_time_is_measured_from_the_last_byte_either_way(pauses: list[float], sent: bool, tick_s: float) -> None:
    """Issue: "measured from the last byte either way": never early, and late by an eighth at the most."""
    with Watch() as w:
        silent = w.add()
        last_s = w.clock.now_s
        for pause_s in pauses:
            w.go_on(pause_s, tick_s)
            last_s = w.clock.now_s
            if sent:
                silent.bytes_sent += 1
            else:
                silent.bytes_received += 1
        while silent.state is State.OPEN:
            w.go_on(tick_s, tick_s)
            assert w.clock.now_s < last_s + 2 * TIMEOUT_S
        assert TIMEOUT_S * 0.999999 <= w.clock.now_s - last_s <= TIMEOUT_S + 2 * (STEP_S + tick_s)
        assert w.ended == [(silent, "idle_timeout")]


def test_unread_data_at_the_deadline_is_read_first_and_restarts_the_idle_time() -> None:
    """Issue: "data that came before the deadline is echoed first"."""
    with Watch() as w:
        silent = w.add()
        w.go_on(TIMEOUT_S - STEP_S)
        silent.unread = 5
        w.go_on(TIMEOUT_S - STEP_S)
        assert (silent.state, silent.bytes_received, silent.looked, w.ended) == (State.OPEN, 5, 1, [])
        w.go_on(3 * STEP_S)
        assert silent.state is State.DRAINING


def test_client_that_takes_nothing_for_twice_the_timeout_is_reset() -> None:
    with Watch() as w:
        silent = w.add()
        w.go_on(TIMEOUT_S + 2 * STEP_S)
        assert silent.state is State.DRAINING
        w.go_on(TIMEOUT_S / 2)
        silent.bytes_sent += 1  # the client takes something: that counts
        w.go_on(TIMEOUT_S - STEP_S)
        assert not silent.closed
        w.go_on(3 * STEP_S)
        assert silent.closed
        assert w.ended == [(silent, "idle_timeout"), (silent, "idle_stuck")]
        w.go_on(2 * TIMEOUT_S)  # closed, but not reported as lost yet: nothing happens twice
        assert len(w.ended) == 2


def test_client_with_full_buffers_has_twice_the_timeout_to_read() -> None:
    """Issue: "data that came before the deadline is echoed first": backpressure may hold back more."""
    with Watch() as w:
        silent = w.add()
        silent.interest = WRITE
        w.go_on(2 * TIMEOUT_S - STEP_S)
        assert (silent.state, silent.looked, w.ended) == (State.OPEN, 0, [])
        silent.bytes_sent += 1
        w.go_on(2 * TIMEOUT_S - STEP_S)
        assert silent.state is State.OPEN
        w.go_on(3 * STEP_S)
        assert silent.closed
        assert w.ended == [(silent, "idle_stuck")]


def test_lingering_has_a_deadline_of_its_own() -> None:
    with Watch() as w:
        silent = w.add()
        silent.state = State.LINGERING
        w.go_on(3 * TIMEOUT_S)
        assert (silent.state, w.ended) == (State.LINGERING, [])


def test_turn_checks_a_bounded_number_of_connections() -> None:
    """DESIGN, law 7: "every step is bounded"."""
    with Watch() as w:
        everybody = [w.add() for _ in range(CONNECTIONS_PER_LOOK * 3)]
        w.clock.advance(TIMEOUT_S)
        turn_idle(w.reactor, 1)
        assert sum(silent.looked for silent in everybody) == CONNECTIONS_PER_LOOK
        turn_idle(w.reactor, 2)
        assert all(silent.state is State.DRAINING for silent in everybody)


def test_without_connections_there_is_no_timer() -> None:
    """Promise: "no idle CPU": a server without clients sleeps until the next one."""
    with Watch() as w:
        first, second = w.add(), w.add()
        assert len(w.reactor.snapshot().timers) == 1
        w.forget(first)
        w.forget(second)
        w.forget(second)
        w.go_on(2 * STEP_S)
        assert len(w.reactor.snapshot().timers) == 0
        w.add()
        assert len(w.reactor.snapshot().timers) == 1


# ---------------------------------------------------------------- the server


def at_hand(selector: RecordingSelector | None = None, **options: Any) -> tuple[EchoByHand, ManualClock]:
    clock = ManualClock()
    return EchoByHand(
        reactor_options={"clock": clock, "selector": selector}, idle_timeout_s=TIMEOUT_S, **options
    ), clock


def pass_time(echo: EchoByHand, clock: ManualClock, seconds: float) -> None:
    end_s = clock.now_s + seconds
    while clock.now_s < end_s:
        clock.advance(STEP_S / 4)
        turn_idle(echo.reactor, 3)


def test_idle_client_gets_a_fin_and_is_counted() -> None:
    """Issue: "`--idle-timeout SECONDS`": an orderly end, no reset."""
    echo, clock = at_hand()
    with echo:
        client = echo.connect()
        client.send(b"hello")
        assert echo.receive(client, 5) == b"hello"
        pass_time(echo, clock, TIMEOUT_S - 2 * STEP_S)
        assert drain(client) == b""
        assert echo.connections[0].state is State.OPEN
        pass_time(echo, clock, 4 * STEP_S)
        assert echo.receive_to_end(client) == b""
        client.close()
        turn_until(echo.reactor, lambda: not echo.connections)
        assert echo.server.counters.drops == {"idle_timeout": 1}
        assert echo.server._idle is not None
        assert not echo.server._idle._queue


def test_data_that_select_has_not_reported_is_echoed_before_the_end() -> None:
    """Issue: "also when the process was stopped meanwhile"; epoll then reports no socket."""
    selector = BlindSelector()
    echo, clock = at_hand(selector)
    with echo:
        client = echo.connect()
        client.send(b"in time")
        selector.blind = True
        pass_time(echo, clock, TIMEOUT_S + STEP_S)
        assert echo.connections[0].state is State.OPEN
        selector.blind = False
        assert echo.receive(client, 7) == b"in time"
        assert echo.server.counters.drops == {}
        client.close()


def test_pending_data_is_delivered_before_the_fin() -> None:
    """Issue: "an idle end is an orderly close after what is pending was delivered"."""
    echo, clock = at_hand(socket_buffer_bytes=4096)
    with echo:
        client = echo.connect(buffer_bytes=4096)
        connection, sent = echo.connections[0], bytearray()
        while not connection.pending_bytes:
            sent += bytes([len(sent) // 1000 % 256]) * 1000
            client.send(sent[-1000:])
            turn_idle(echo.reactor, 2)
        assert connection.interest & READ
        pass_time(echo, clock, TIMEOUT_S + 2 * STEP_S)
        assert connection.state is State.DRAINING
        assert echo.receive_to_end(client) == bytes(sent)
        client.close()


def test_slow_reader_eventually_gets_every_byte() -> None:
    """Backpressure held much of it unread when the time was over."""
    echo, clock = at_hand(socket_buffer_bytes=4096)
    with echo:
        client = echo.connect(buffer_bytes=4096)
        sent = echo.fill(client, echo.connections[0])
        pass_time(echo, clock, TIMEOUT_S + 2 * STEP_S)
        assert echo.receive(client, len(sent)) == sent
        client.close()


def test_client_that_takes_nothing_is_reset_in_the_end() -> None:
    echo, clock = at_hand(socket_buffer_bytes=4096)
    with echo:
        client = echo.connect(buffer_bytes=4096)
        echo.fill(client, echo.connections[0])
        pass_time(echo, clock, 2 * TIMEOUT_S + 4 * STEP_S)
        turn_until(echo.reactor, lambda: not echo.connections)
        assert echo.server.counters.drops == {"idle_stuck": 1}
        client.close()


def test_drop_of_a_reset_client_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """getpeername(2) fails with ENOTCONN then."""
    caplog.set_level("INFO", "echo7")
    echo, clock = at_hand()
    with echo:
        client = echo.connect()
        connection = echo.connections[0]
        connection.pause_reading()  # so that the reset isn't noticed
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.close()
        pass_time(echo, clock, 2 * TIMEOUT_S + 2 * STEP_S)
        assert "dropped: idle_stuck of an unknown source" in caplog.messages


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_invalid_idle_timeout_is_refused(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="idle_timeout_s"):
        EchoServer(idle_timeout_s=timeout_s)


@pytest.mark.long
@pytest.mark.parametrize("options", [[], ["--plain"]], ids=["fast", "plain"])
def test_process_stopped_beyond_the_deadline_echoes_what_has_come_before_it_closes(options: list[str]) -> None:
    """Issue: "data that came before the deadline is echoed first, also when the process was stopped meanwhile
    (SIGSTOP/SIGCONT)".
    """
    timeout_s = 0.5
    with EchoProcess("--host", "127.0.0.1", "--idle-timeout", str(timeout_s), *options) as echo:
        with echo.connect() as client:
            client.sendall(b"before")
            assert receive_exactly(client, 6) == b"before"
            pid = echo.process.pid
            os.kill(pid, signal.SIGSTOP)
            until(lambda: pathlib.Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] == "T")
            client.sendall(b"while it stood still")
            time.sleep(2 * timeout_s)  # the deadline passes; no event marks it
            os.kill(pid, signal.SIGCONT)
            began_s = time.monotonic()
            client.settimeout(PATIENCE_S)
            assert receive_to_end(client) == b"while it stood still"
            assert time.monotonic() - began_s > timeout_s / 2
        assert echo.finish() == 0
        assert echo.lines[-1]["drops"]["idle_timeout"] >= 1


@pytest.mark.parametrize("timeout_s", [1e-300, 1e-10, 1e-4])
def test_tiny_timeout_does_not_make_the_loop_spin(timeout_s: float) -> None:
    """The closed connection lingers, and is looked at a hundred times a second at most."""
    network = SimulatedNetwork()
    loop = network.reactor()
    server = EchoServer(["10.0.0.1"], 7, idle_timeout_s=timeout_s)
    server.start(loop)
    network.peer(("10.0.0.1", 7)).pause()
    network.run(loop, for_s=1.0)
    assert network.steps < 1_000
    loop.close()
