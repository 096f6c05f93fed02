"""The loop: one turn is five steps, on every selector class that the platform has."""

from __future__ import annotations

import errno
import itertools
import os
import random
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from socket import socket as Socket
from typing import Any

import pytest

from reactor import READ, WRITE, Connection, Reactor, StreamProtocol, connect_tcp, listen_tcp, open_udp
from reactor.limits import LONGEST_SLEEP_S, SHORTAGE_RETRY_S
from reactor.sockets.errors import os_error
from tests.support.basics import PATIENCE_S, open_descriptors
from tests.support.clients import reset, tcp_pair
from tests.support.loops import (
    SELECTORS,
    DatagramRecorder,
    LoopThread,
    ManualClock,
    Recorder,
    RecordingSelector,
    turn_idle,
    turn_until,
)

THREADS, CALLS_PER_THREAD = 8, 1_000


class Rig:
    """A loop with a recording selector and a manual clock, and the handlers to close afterwards."""

    def __init__(self, selector_class: type[selectors.BaseSelector]) -> None:
        self.order: list[str] = []  # what happened, in order
        self.clock = ManualClock()
        self.selector = RecordingSelector(selector_class(), on_select=lambda: self.order.append("select"))
        self.reactor = Reactor(selector=self.selector, clock=self.clock)
        self.handlers: list[PairHandler] = []

    def handler(
        self, act: Callable[[PairHandler], object] = id, ready: bool = True, interest: int = READ
    ) -> PairHandler:
        """Return a handler on one end of a socket pair, which is readable if `ready`."""
        ours, peer = socket.socketpair()
        made = PairHandler(self.reactor, ours, peer, act)
        self.handlers.append(made)
        self.reactor.set_interest(made, interest)
        if ready:
            peer.send(b"!")
        return made


class PairHandler:
    """The smallest handler. It never reads, so it stays ready."""

    def __init__(
        self, reactor: Reactor, ours: socket.socket, peer: socket.socket, act: Callable[[PairHandler], object]
    ) -> None:
        self.interest, self.closed = 0, False
        self.reactor, self.ours, self.peer, self.act = reactor, ours, peer, act
        self.masks: list[int] = []
        self.aborted_with: list[Exception | None] = []
        reactor.register(self)

    def fileno(self) -> int:
        return self.ours.fileno()

    def detach(self) -> int:
        return self.ours.detach()

    def on_event(self, mask: int) -> None:
        self.masks.append(mask)
        self.act(self)

    def abort(self, error: Exception | None = None) -> None:
        if not self.closed:
            self.closed = True
            self.aborted_with.append(error)
            self.reactor.unregister(self)
            self.ours.close()


@pytest.fixture(params=SELECTORS, ids=lambda selector_class: str(selector_class.__name__))
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """One per selector class."""
    made = Rig(request.param)
    yield made
    made.reactor.close()
    for handler in made.handlers:
        handler.ours.close()
        handler.peer.close()


# ---------------------------------------------------------------- the five steps


def test_a_turn_selects_then_dispatches_then_fires_timers_then_runs_calls(rig: Rig) -> None:
    """One turn is five steps, in this order."""
    rig.reactor.call_soon(rig.order.append, "call")
    rig.reactor.call_later(0.0, rig.order.append, "timer")
    rig.handler(lambda handler: rig.order.append("handler"))
    rig.reactor.turn()
    assert rig.order == ["select", "handler", "timer", "call"]


def test_call_queued_by_a_handler_runs_in_the_same_turn(rig: Rig) -> None:
    """So `connection_lost` comes after the callback that closes, but in the same turn."""
    rig.handler(lambda handler: rig.reactor.call_soon(rig.order.append, "call"))
    rig.reactor.call_later(0.0, rig.reactor.call_soon, rig.order.append, "call of timer")
    rig.reactor.turn()
    assert rig.order == ["select", "call", "call of timer"]


def test_a_call_from_a_call_runs_in_the_next_turn(rig: Rig) -> None:
    """Step 5: "run the calls that were queued when this step began"."""

    def again() -> None:
        rig.order.append("call")
        rig.reactor.call_soon(again)

    rig.reactor.call_soon(again)
    for _ in range(3):
        rig.reactor.turn()
    assert rig.order == ["select", "call"] * 3
    assert rig.selector.timeouts == [0.0] * 3


def test_select_sleeps_until_the_next_timer_but_not_with_queued_calls(rig: Rig) -> None:
    """Step 1. A handler is ready, so select returns at once."""
    rig.handler()
    rig.reactor.call_later(1e300, int)
    rig.reactor.turn()
    rig.reactor.call_later(7.0, int)
    rig.clock.advance(2.0)
    rig.reactor.turn()
    rig.reactor.call_soon(int)
    rig.reactor.turn()
    rig.clock.advance(100.0)
    rig.reactor.turn()
    assert rig.selector.timeouts == [LONGEST_SLEEP_S, 5.0, 0.0, 0.0]


def test_select_blocks_after_the_last_timer_fired(rig: Rig) -> None:
    """Redis's `ae.c` once crashed after its last timer fired. Fired or cancelled, no timer is left: timeout None."""
    rig.handler()
    rig.reactor.call_later(0.0, rig.order.append, "timer")
    rig.reactor.turn()
    rig.reactor.turn()
    rig.reactor.call_later(1.0, rig.order.append, "cancelled").cancel()
    rig.clock.advance(2.0)
    rig.reactor.turn()
    assert rig.selector.timeouts == [0.0, None, None]
    assert [step for step in rig.order if step != "select"] == ["timer"]


def test_zero_delay_timer_that_sets_itself_again_does_not_starve_io(rig: Rig) -> None:
    """Promise 18: it fires once per turn, and so does everything else."""

    def again() -> None:
        rig.order.append("timer")
        rig.reactor.call_later(0.0, again)

    again()
    rig.order.clear()
    rig.handler(lambda handler: rig.order.append("handler"))
    for _ in range(3):
        rig.reactor.turn()
    assert rig.order == ["select", "handler", "timer"] * 3


def test_a_timer_in_the_past_fires_in_the_next_turn(rig: Rig) -> None:
    """A negative delay is a late timer, not an error."""
    rig.reactor.call_later(-5.0, rig.order.append, "timer")
    rig.reactor.turn()
    assert rig.order == ["select", "timer"]


@pytest.mark.parametrize("delay_s", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_delay_is_refused(rig: Rig, delay_s: float) -> None:
    """Raise ValueError for NaN or infinity."""
    with pytest.raises(ValueError, match="finite"):
        rig.reactor.call_later(delay_s, int)
    with pytest.raises(ValueError, match="finite"):
        rig.reactor.call_at(delay_s, int)


def test_call_at_fires_when_the_injected_clock_has_reached_the_deadline(rig: Rig) -> None:
    """The clock is injected; no other is used."""
    rig.reactor.call_at(rig.reactor.now() + 10.0, rig.order.append, "timer")
    rig.clock.advance(9.999)
    turn_idle(rig.reactor, 3)
    assert "timer" not in rig.order
    rig.clock.advance(0.001)
    turn_idle(rig.reactor, 1)
    assert rig.order[-1] == "timer"


def test_wall_clock_jumps_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 18. Every reading of the wall clock jumps by years, forwards or backwards."""
    dice = random.Random(7)
    monkeypatch.setattr(time, "time", lambda: dice.uniform(-1e9, 1e10))
    fired: list[str] = []
    with Reactor() as reactor:
        reactor.call_later(0.02, fired.append, "second")
        reactor.call_later(0.01, fired.append, "first")
        never = reactor.call_later(3600.0, fired.append, "in an hour")
        reactor.call_later(0.03, reactor.stop)
        reactor.run()
        never.cancel()
    assert fired == ["first", "second"]


# ---------------------------------------------------------------- stop and run


def test_stop_before_run_makes_run_return_at_once(rig: Rig) -> None:
    """`stop` before `run` makes `run` return at once."""
    rig.reactor.stop()
    rig.reactor.run()
    assert rig.selector.timeouts == []


def test_stop_lets_the_turn_finish_and_run_can_be_called_again(rig: Rig) -> None:
    """`run`: "The last turn takes all its steps"."""

    def stop(handler: PairHandler) -> None:
        rig.reactor.stop()
        handler.abort()

    for round_ in (1, 2):
        rig.handler(stop)
        rig.reactor.call_later(0.0, rig.order.append, "timer")
        rig.reactor.call_soon(rig.order.append, "call")
        rig.reactor.run()
        assert rig.order == ["select", "timer", "call"] * round_


# ---------------------------------------------------------------- other threads


@pytest.mark.parametrize("selector_class", SELECTORS)
def test_calls_from_many_threads_all_run_in_order(selector_class: type[selectors.BaseSelector]) -> None:
    """Calls run in the order of queueing; each wakes the loop, and nothing else does."""
    seen: list[tuple[int, int]] = []

    def call_often(thread: int) -> None:
        for number in range(CALLS_PER_THREAD):
            loop.reactor.call_soon_threadsafe(seen.append, (thread, number))

    with LoopThread(selector=selector_class()) as loop:
        threads = [threading.Thread(target=call_often, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        loop.call(int)
    assert len(seen) == THREADS * CALLS_PER_THREAD
    for number in range(THREADS):
        assert [n for thread, n in seen if thread == number] == list(range(CALLS_PER_THREAD))


@pytest.mark.parametrize("selector_class", SELECTORS)
def test_call_from_a_thread_wakes_a_sleeping_loop(selector_class: type[selectors.BaseSelector]) -> None:
    """A single lost wake-up would leave the loop asleep for ever."""
    with LoopThread(selector=selector_class()) as loop:
        for number in range(300):
            assert loop.call(abs, -number) == number


# ---------------------------------------------------------------- callbacks that raise


def tracebacks(caplog: pytest.LogCaptureFixture) -> int:
    """Return the number of log records with a traceback."""
    assert all(record.exc_info for record in caplog.records)
    return len(caplog.records)


def test_exception_in_a_handler_costs_only_that_handler(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Promise 17, with exactly one traceback."""
    bad = rig.handler(lambda handler: 1 // 0)
    good = rig.handler()
    rig.reactor.turn()
    rig.reactor.turn()
    assert bad.closed
    assert [type(error) for error in bad.aborted_with] == [ZeroDivisionError]
    assert len(good.masks) == 2
    assert tracebacks(caplog) == 1


def test_an_exception_in_a_timer_or_call_costs_nothing_else(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The timers and calls after it still run, in the same turn."""
    rig.reactor.call_later(0.0, lambda: 1 // 0)
    rig.reactor.call_later(0.0, rig.order.append, "timer")
    rig.reactor.call_soon(lambda: 1 // 0)
    rig.reactor.call_soon(rig.order.append, "call")
    rig.reactor.turn()
    assert rig.order == ["select", "timer", "call"]
    assert tracebacks(caplog) == 2


def test_abort_that_also_raises_does_not_end_the_loop(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that raises in both places costs two log lines."""
    bad = rig.handler(lambda handler: 1 // 0)

    def abort(error: Exception | None = None) -> None:
        rig.reactor.set_interest(bad, 0)
        raise RuntimeError("abort is wrong, too")

    bad.abort = abort  # type: ignore[method-assign]
    rig.reactor.turn()
    assert tracebacks(caplog) == 2
    del bad.abort


def test_keyboard_interrupt_is_not_swallowed(rig: Rig) -> None:
    """Only an Exception is caught; without a SIGINT handler, Ctrl-C ends the program."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    rig.reactor.call_soon(interrupt)
    with pytest.raises(KeyboardInterrupt):
        rig.reactor.run()


# ---------------------------------------------------------------- interest


def watched(rig: Rig, handler: PairHandler) -> int:
    """Return what the selector watches."""
    key = rig.selector.get_map().get(handler.fileno())
    return 0 if key is None else int(key.events)


def test_interest_is_what_the_selector_watches_through_every_change(rig: Rig) -> None:
    """From every interest to every other: register, modify or unregister."""
    handler = rig.handler()
    for before, after in itertools.product((0, READ, WRITE, READ | WRITE), repeat=2):
        rig.reactor.set_interest(handler, before)
        rig.reactor.set_interest(handler, after)
        assert handler.interest == watched(rig, handler) == after


def test_handler_gets_only_what_it_is_interested_in(rig: Rig) -> None:
    """The mask holds READ, WRITE or both."""
    handler = rig.handler()
    for interest in (READ, WRITE, READ | WRITE):
        rig.reactor.set_interest(handler, interest)
        rig.reactor.turn()
    assert handler.masks == [READ, WRITE, READ | WRITE]


def test_reset_of_a_handler_without_interest_does_not_spin_the_loop(rig: Rig) -> None:
    """poll(2) and epoll(7) report HUP and ERR anyway, so the handler is unregistered."""
    ours, peer = tcp_pair()
    handler = PairHandler(rig.reactor, ours, peer, id)
    rig.handlers.append(handler)
    rig.reactor.set_interest(handler, READ)
    rig.reactor.set_interest(handler, 0)
    reset(peer)
    rig.reactor.call_later(0.02, int)  # the clock stands still, so select waits and is called again
    for _ in range(3):
        rig.reactor.turn()
    assert rig.selector.batches == [[], [], []]
    assert handler.masks == []


@pytest.mark.parametrize("before", [0, WRITE])
def test_interest_is_consistent_when_the_selector_refuses(rig: Rig, before: int) -> None:
    """After ENOMEM or ENOSPC from epoll_ctl(2), nothing is watched for a while, and then the present interest."""
    handler = rig.handler(interest=before)
    rig.selector.failures.append(os_error(errno.ENOSPC))
    rig.reactor.set_interest(handler, READ)
    assert (handler.interest, watched(rig, handler)) == (READ, 0)
    for changed in (WRITE, 0, READ | WRITE, READ):
        rig.reactor.set_interest(handler, changed)
        assert (handler.interest, watched(rig, handler)) == (changed, 0)
    rig.clock.advance(SHORTAGE_RETRY_S)
    turn_idle(rig.reactor, 2)
    assert handler.interest == watched(rig, handler) == READ
    assert handler.masks
    assert set(handler.masks) == {READ}


def test_suspended_handler_is_not_watched_until_its_time_is_over(rig: Rig) -> None:
    """`suspend` is for a ready socket that can't be used yet. The first call counts."""
    handler = rig.handler()
    rig.reactor.suspend(handler, 10.0)
    rig.reactor.suspend(handler, 99.0)
    rig.clock.advance(9.9)
    turn_idle(rig.reactor)
    assert (handler.masks, handler.interest, watched(rig, handler)) == ([], READ, 0)
    rig.clock.advance(0.1)
    turn_idle(rig.reactor, 2)
    assert handler.masks
    assert watched(rig, handler) == READ


def test_a_suspended_handler_can_be_closed_and_leaves_no_timer(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A later retry would watch the number, which another handler may have by then."""
    handler = rig.handler()
    rig.reactor.suspend(handler)
    handler.abort()
    rig.handler()
    rig.reactor.turn()
    assert rig.selector.timeouts == [None]
    rig.clock.advance(SHORTAGE_RETRY_S)
    turn_idle(rig.reactor)
    assert handler.masks == []
    assert handler not in rig.reactor.handlers
    assert caplog.records == []


def test_handler_refused_by_the_selector_can_be_closed(rig: Rig) -> None:
    """Unregistering an unregistered descriptor would raise, and leave the socket open."""
    handler = rig.handler()
    rig.selector.failures.append(os_error(errno.ENOMEM))
    rig.reactor.set_interest(handler, WRITE)
    handler.abort()
    assert handler not in rig.reactor.handlers


# ---------------------------------------------------------------- stale events


def take_over(rig: Rig, number: int) -> PairHandler:
    """A new handler that has the descriptor number of a closed one, and isn't ready."""
    made = rig.handler(ready=False, interest=0)
    if made.fileno() != number:
        os.dup2(made.fileno(), number, inheritable=False)
        made.ours.close()
        made.ours = socket.socket(fileno=number)
    rig.reactor.set_interest(made, READ)
    return made


def test_stale_event_reaches_neither_the_closed_handler_nor_one_with_the_same_number(rig: Rig) -> None:
    """Promise 8. The first handler of the batch closes the second, and a new handler takes its number at once."""
    pair: list[PairHandler] = []
    heirs: list[PairHandler] = []

    def close_the_other(handler: PairHandler) -> None:
        if not heirs:
            other = pair[0] if handler is pair[1] else pair[1]
            number = other.fileno()
            other.abort()
            heirs.append(take_over(rig, number))
            assert heirs[0].fileno() == number

    pair += [rig.handler(close_the_other), rig.handler(close_the_other)]
    rig.reactor.turn()
    assert len(rig.selector.batches[0]) == 2
    assert sorted(len(handler.masks) for handler in pair) == [0, 1]
    assert heirs[0].masks == []
    heirs[0].peer.send(b"!")
    rig.reactor.turn()
    assert heirs[0].masks == [READ]  # its own event reaches it


def test_a_handler_may_close_itself_and_all_others(rig: Rig) -> None:
    """All of them are still in the batch."""

    def close_all(handler: PairHandler) -> None:
        for each in rig.handlers:
            each.abort()

    for _ in range(5):
        rig.handler(close_all)
    rig.reactor.turn()
    assert sum(len(handler.masks) for handler in rig.handlers) == 1
    assert not set(rig.handlers) & set(rig.reactor.handlers)


# ---------------------------------------------------------------- close


class Reconnecting(Recorder):
    """A client that connects again after each loss."""

    def __init__(self, reactor: Reactor, address: tuple[str, int]) -> None:
        super().__init__()
        self.reactor, self.address = reactor, address

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        super().connection_lost(connection, error)
        connect_tcp(self.reactor, self.address, self, lambda error: None)


@pytest.mark.parametrize("selector_class", SELECTORS)
def test_close_aborts_all_handlers_and_leaves_no_descriptor(selector_class: type[selectors.BaseSelector]) -> None:
    """Paused and unwatched connections are aborted, too."""
    before = open_descriptors()
    served, client, datagrams = Recorder(), Recorder(), DatagramRecorder()
    with Reactor(selector=selector_class()) as reactor:
        listener = listen_tcp(reactor, ("127.0.0.1", 0), lambda: served)
        for _ in range(3):
            connect_tcp(reactor, listener.address, client, lambda error: None)
        open_udp(reactor, ("127.0.0.1", 0), datagrams)
        turn_until(reactor, lambda: len(served.connections) == len(client.connections) == 3)
        for connection in served.connections:
            connection.pause_reading()
        connect_tcp(reactor, listener.address, client, lambda error: None)  # in progress
    assert served.kinds().count("lost") == client.kinds().count("lost") == 3
    assert datagrams.lost == [None]
    assert reactor.handlers == {}
    assert open_descriptors() == before


def test_second_close_of_the_loop_does_nothing(rig: Rig) -> None:
    """For example by a `with` statement and by hand."""
    handler = rig.handler()
    rig.reactor.close()
    rig.reactor.close()
    assert handler.aborted_with == [None]


def test_close_runs_queued_calls(rig: Rig) -> None:
    """Among them is each protocol's `connection_lost`."""
    rig.reactor.call_soon(rig.order.append, "call")
    rig.reactor.close()
    assert rig.order == ["call"]


def test_close_continues_after_an_abort_or_connection_lost_that_raises(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """One wrong protocol must not keep other sockets open."""

    class Bad(StreamProtocol):
        def connection_lost(self, connection: Connection, error: Exception | None) -> None:
            raise RuntimeError("even now")

    ours, peer = tcp_pair()
    Connection(rig.reactor, ours, Bad()).open()
    good = rig.handler()
    rig.reactor.close()
    peer.close()
    assert good.closed
    assert tracebacks(caplog) == 1


class RememberedSockets:
    """A factory that keeps a reference to every socket."""

    def __init__(self) -> None:
        self.made: list[Socket] = []

    def socket(self, family: int, type: int) -> Socket:
        self.made.append(Socket(family, type))
        return self.made[-1]

    def socketpair(self) -> tuple[Socket, Socket]:
        return socket.socketpair()


def test_connection_lost_that_reconnects_during_close_leaves_no_descriptor() -> None:
    """Clients that reconnect in `connection_lost` are usual, and `close` calls it."""
    sockets = RememberedSockets()
    with socket.create_server(("127.0.0.1", 0)) as server, Reactor(sockets=sockets) as reactor:
        protocol = Reconnecting(reactor, server.getsockname())
        connect_tcp(reactor, server.getsockname(), protocol, lambda error: None)
        turn_until(reactor, lambda: protocol.connections)
    left_open = [sock for sock in sockets.made if sock.fileno() >= 0]
    for sock in left_open:
        sock.close()
    assert left_open == []
    assert reactor.handlers == {}


def test_a_reactor_that_is_never_run_leaves_no_descriptor() -> None:
    """The waker's pair and the selector's own descriptor."""
    before = open_descriptors()
    for _ in range(10):
        Reactor().close()
    assert open_descriptors() == before


def test_close_of_a_running_loop_is_refused(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Story: a loop closed by its own callback called select on a closed selector."""
    rig.reactor.call_soon(rig.reactor.close)
    rig.reactor.call_soon(rig.reactor.stop)
    rig.reactor.run()
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [RuntimeError]
    assert not rig.reactor.closed


@pytest.mark.parametrize("code", [errno.EPERM, errno.EBADF])
def test_handler_with_an_unwatchable_descriptor_is_aborted(
    rig: Rig, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A regular file on epoll or a closed descriptor: a retry can't help, and a silent handler would wait for ever."""
    handler = rig.handler(interest=0)
    rig.selector.failures.append(os_error(code))
    rig.reactor.set_interest(handler, READ)
    assert handler.interest == 0
    assert not [key for key in rig.selector.get_map().values() if key.data is handler]
    assert handler.closed
    assert [error.errno for error in handler.aborted_with if isinstance(error, OSError)] == [code]
    assert [record.getMessage() for record in caplog.records] == [
        f"selector failed {os_error(code)!r}; its handler is closed"
    ]


def test_error_of_select_that_no_descriptor_explains_is_raised() -> None:
    """A loop that goes on without its selector would spin."""

    class Failing(selectors.SelectSelector):
        def select(self, timeout: float | None = None) -> Any:
            raise os_error(errno.ENOMEM)

    with Reactor(selector=Failing()) as reactor, pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
        reactor.turn()
