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
    """A loop, its selector and clock in the test's hands, and the handlers to be closed afterwards."""

    def __init__(self, selector_class: type[selectors.BaseSelector]) -> None:
        self.order: list[str] = []  # what happened, for tests that look at the order
        self.clock = ManualClock()
        self.selector = RecordingSelector(selector_class(), on_select=lambda: self.order.append("select"))
        self.reactor = Reactor(selector=self.selector, clock=self.clock)
        self.handlers: list[PairHandler] = []

    def handler(
        self, act: Callable[[PairHandler], object] = id, ready: bool = True, interest: int = READ
    ) -> PairHandler:
        """A handler on one end of a socket pair; `ready`: something waits to be read."""
        ours, peer = socket.socketpair()
        made = PairHandler(self.reactor, ours, peer, act)
        self.handlers.append(made)
        self.reactor.set_interest(made, interest)
        if ready:
            peer.send(b"!")
        return made


class PairHandler:
    """The smallest handler there is. It never reads, so it stays ready."""

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
    """ "One turn is five steps, and `Reactor.turn` takes them in this order"."""
    rig.reactor.call_soon(rig.order.append, "call")
    rig.reactor.call_later(0.0, rig.order.append, "timer")
    rig.handler(lambda handler: rig.order.append("handler"))
    rig.reactor.turn()
    assert rig.order == ["select", "handler", "timer", "call"]


def test_what_a_handler_queues_is_called_in_the_same_turn(rig: Rig) -> None:
    """That is how `connection_lost` comes after the callback that closes, and yet in the same turn."""
    rig.handler(lambda handler: rig.reactor.call_soon(rig.order.append, "call"))
    rig.reactor.call_later(0.0, rig.reactor.call_soon, rig.order.append, "call of timer")
    rig.reactor.turn()
    assert rig.order == ["select", "call", "call of timer"]


def test_a_call_from_a_call_runs_in_the_next_turn(rig: Rig) -> None:
    """Step 5: "run what `call_soon` had queued when this step began, and no more"."""

    def again() -> None:
        rig.order.append("call")
        rig.reactor.call_soon(again)

    rig.reactor.call_soon(again)
    for _ in range(3):
        rig.reactor.turn()
    assert rig.order == ["select", "call"] * 3
    assert rig.selector.timeouts == [0.0] * 3


def test_select_sleeps_until_the_next_timer_and_not_at_all_when_calls_wait(rig: Rig) -> None:
    """Step 1. A handler is ready, so that select doesn't really sleep."""
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


def test_the_last_timer_fires_and_leaves_none_and_then_select_blocks(rig: Rig) -> None:
    """Redis' `ae.c` once crashed when its one-shot last timer fired. Fired or cancelled, none is left: timeout None."""
    rig.handler()
    rig.reactor.call_later(0.0, rig.order.append, "timer")
    rig.reactor.turn()
    rig.reactor.turn()
    rig.reactor.call_later(1.0, rig.order.append, "cancelled").cancel()
    rig.clock.advance(2.0)
    rig.reactor.turn()
    assert rig.selector.timeouts == [0.0, None, None]
    assert [step for step in rig.order if step != "select"] == ["timer"]


def test_a_zero_delay_timer_that_rearms_itself_does_not_starve_io(rig: Rig) -> None:
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
    """A negative delay is a late one, not an error."""
    rig.reactor.call_later(-5.0, rig.order.append, "timer")
    rig.reactor.turn()
    assert rig.order == ["select", "timer"]


@pytest.mark.parametrize("delay_s", [float("nan"), float("inf"), float("-inf")])
def test_a_delay_that_is_no_time_is_refused(rig: Rig, delay_s: float) -> None:
    """ "Raise ValueError for NaN or infinity"."""
    with pytest.raises(ValueError, match="finite"):
        rig.reactor.call_later(delay_s, int)
    with pytest.raises(ValueError, match="finite"):
        rig.reactor.call_at(delay_s, int)


def test_call_at_fires_when_the_injected_clock_has_reached_the_deadline(rig: Rig) -> None:
    """The clock is passed in; no other is looked at."""
    rig.reactor.call_at(rig.reactor.now() + 10.0, rig.order.append, "timer")
    rig.clock.advance(9.999)
    turn_idle(rig.reactor, 3)
    assert "timer" not in rig.order
    rig.clock.advance(0.001)
    turn_idle(rig.reactor, 1)
    assert rig.order[-1] == "timer"


def test_wall_clock_jumps_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 18. The wall clock leaps by years, forwards and backwards, with every look."""
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
    """ "Make `run` return after this turn (or at once, if it has yet to be called)"."""
    rig.reactor.stop()
    rig.reactor.run()
    assert rig.selector.timeouts == []


def test_stop_lets_the_turn_finish_and_run_can_be_called_again(rig: Rig) -> None:
    """ "What the last turn has begun, it finishes"."""

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
def test_calls_from_many_threads_are_not_lost_and_keep_their_order(
    selector_class: type[selectors.BaseSelector],
) -> None:
    """ "Calls run in the order in which they were queued"; each wakes the loop, which has nothing else to wake it."""
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
def test_each_call_from_a_thread_wakes_a_loop_that_sleeps(selector_class: type[selectors.BaseSelector]) -> None:
    """A wake-up that is lost once in a thousand times leaves the loop asleep for ever."""
    with LoopThread(selector=selector_class()) as loop:
        for number in range(300):
            assert loop.call(abs, -number) == number


# ---------------------------------------------------------------- callbacks that raise


def tracebacks(caplog: pytest.LogCaptureFixture) -> int:
    """How many log records have one."""
    assert all(record.exc_info for record in caplog.records)
    return len(caplog.records)


def test_an_exception_in_a_handler_costs_that_handler_alone(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
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
    """The timers and calls behind it are still called, in the same turn."""
    rig.reactor.call_later(0.0, lambda: 1 // 0)
    rig.reactor.call_later(0.0, rig.order.append, "timer")
    rig.reactor.call_soon(lambda: 1 // 0)
    rig.reactor.call_soon(rig.order.append, "call")
    rig.reactor.turn()
    assert rig.order == ["select", "timer", "call"]
    assert tracebacks(caplog) == 2


def test_an_abort_that_raises_as_well_does_not_end_the_loop(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that is wrong in both places costs two log lines."""
    bad = rig.handler(lambda handler: 1 // 0)

    def abort(error: Exception | None = None) -> None:
        rig.reactor.set_interest(bad, 0)
        raise RuntimeError("abort is wrong, too")

    bad.abort = abort  # type: ignore[method-assign]
    rig.reactor.turn()
    assert tracebacks(caplog) == 2
    del bad.abort


def test_keyboard_interrupt_is_not_swallowed(rig: Rig) -> None:
    """Only an Exception is a callback's own affair; without a SIGINT handler, Ctrl-C ends the program."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    rig.reactor.call_soon(interrupt)
    with pytest.raises(KeyboardInterrupt):
        rig.reactor.run()


# ---------------------------------------------------------------- interest


def watched(rig: Rig, handler: PairHandler) -> int:
    """What the selector itself says that it watches."""
    key = rig.selector.get_map().get(handler.fileno())
    return 0 if key is None else int(key.events)


def test_interest_is_what_the_selector_watches_through_every_change(rig: Rig) -> None:
    """Register, modify, unregister: whatever it takes to get from one to the other."""
    handler = rig.handler()
    for before, after in itertools.product((0, READ, WRITE, READ | WRITE), repeat=2):
        rig.reactor.set_interest(handler, before)
        rig.reactor.set_interest(handler, after)
        assert handler.interest == watched(rig, handler) == after


def test_a_handler_is_given_what_it_is_interested_in(rig: Rig) -> None:
    """The mask holds READ, WRITE or both."""
    handler = rig.handler()
    for interest in (READ, WRITE, READ | WRITE):
        rig.reactor.set_interest(handler, interest)
        rig.reactor.turn()
    assert handler.masks == [READ, WRITE, READ | WRITE]


def test_with_interest_0_a_reset_peer_does_not_spin_the_loop(rig: Rig) -> None:
    """ "Poll and epoll report HUP and ERR whether asked for or not" (poll(2)): so the handler is unregistered."""
    ours, peer = tcp_pair()
    handler = PairHandler(rig.reactor, ours, peer, id)
    rig.handlers.append(handler)
    rig.reactor.set_interest(handler, READ)
    rig.reactor.set_interest(handler, 0)
    reset(peer)
    rig.reactor.call_later(0.02, int)  # the clock stands still: select really waits, and is then asked again
    for _ in range(3):
        rig.reactor.turn()
    assert rig.selector.batches == [[], [], []]
    assert handler.masks == []


@pytest.mark.parametrize("before", [0, WRITE])
def test_interest_is_consistent_when_the_selector_refuses(rig: Rig, before: int) -> None:
    """epoll_ctl(2) may say ENOMEM or ENOSPC: nothing is watched for a while, and then what is wanted by that time."""
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


def test_a_suspended_handler_is_not_watched_and_comes_back_by_itself(rig: Rig) -> None:
    """`suspend` is for a socket that is ready and of no use: only time can help. The first call counts."""
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
    """Or its number would be watched again, for another handler that has it by then."""
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


def test_a_handler_that_the_selector_has_refused_can_be_closed(rig: Rig) -> None:
    """Unregistering what isn't registered would raise, and leave the socket open."""
    handler = rig.handler()
    rig.selector.failures.append(os_error(errno.ENOMEM))
    rig.reactor.set_interest(handler, WRITE)
    handler.abort()
    assert handler not in rig.reactor.handlers


# ---------------------------------------------------------------- stale events


def take_over(rig: Rig, number: int) -> PairHandler:
    """A new handler whose descriptor has the number of one just closed. Nothing waits for it."""
    made = rig.handler(ready=False, interest=0)
    if made.fileno() != number:
        os.dup2(made.fileno(), number, inheritable=False)
        made.ours.close()
        made.ours = socket.socket(fileno=number)
    rig.reactor.set_interest(made, READ)
    return made


def test_a_handler_closed_in_the_same_batch_gets_no_event_nor_does_the_one_that_reuses_its_number(rig: Rig) -> None:
    """Promise 8. Whichever comes first in the batch closes the other, and a new one takes its number at once."""
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
    assert heirs[0].masks == [READ]  # its own event does reach it


def test_a_handler_may_close_itself_and_all_others(rig: Rig) -> None:
    """The batch still holds them all."""

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
    """A client that doesn't give up."""

    def __init__(self, reactor: Reactor, address: tuple[str, int]) -> None:
        super().__init__()
        self.reactor, self.address = reactor, address

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        super().connection_lost(connection, error)
        connect_tcp(self.reactor, self.address, self, lambda error: None)


@pytest.mark.parametrize("selector_class", SELECTORS)
def test_close_closes_everything_and_leaves_no_descriptor(selector_class: type[selectors.BaseSelector]) -> None:
    """ "Abort every handler, tell their protocols": paused and unwatched connections too."""
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
        connect_tcp(reactor, listener.address, client, lambda error: None)  # under way
    assert served.kinds().count("lost") == client.kinds().count("lost") == 3
    assert datagrams.lost == [None]
    assert reactor.handlers == {}
    assert open_descriptors() == before


def test_close_is_harmless_twice(rig: Rig) -> None:
    """In a `with` statement and by hand, say."""
    handler = rig.handler()
    rig.reactor.close()
    rig.reactor.close()
    assert handler.aborted_with == [None]


def test_close_runs_the_calls_that_wait(rig: Rig) -> None:
    """Among them is the last word of each protocol."""
    rig.reactor.call_soon(rig.order.append, "call")
    rig.reactor.close()
    assert rig.order == ["call"]


def test_close_goes_on_when_an_abort_or_a_last_word_raises(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """One bad protocol doesn't keep the others' sockets open."""

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
    """A factory that keeps every socket that it has made, so that none is lost sight of."""

    def __init__(self) -> None:
        self.made: list[Socket] = []

    def socket(self, family: int, type: int) -> Socket:
        self.made.append(Socket(family, type))
        return self.made[-1]

    def socketpair(self) -> tuple[Socket, Socket]:
        return socket.socketpair()


def test_close_leaves_no_descriptor_when_a_last_word_opens_a_new_one() -> None:
    """A client that connects anew whenever it is lost is usual, and at the end it is lost."""
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


def test_a_running_loop_is_stopped_not_closed(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Story: closed from one of its own callbacks, it went on to select on a closed selector."""
    rig.reactor.call_soon(rig.reactor.close)
    rig.reactor.call_soon(rig.reactor.stop)
    rig.reactor.run()
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [RuntimeError]
    assert not rig.reactor.closed


@pytest.mark.parametrize("code", [errno.EPERM, errno.EBADF])
def test_what_can_never_be_watched_is_an_error_at_once(rig: Rig, code: int) -> None:
    """A regular file on epoll, a descriptor that is closed: time won't help, and trying in silence would hide it."""
    handler = rig.handler(interest=0)
    rig.selector.failures.append(os_error(code))
    with pytest.raises(OSError, match=os.strerror(code)):
        rig.reactor.set_interest(handler, READ)
    assert handler.interest == watched(rig, handler) == 0
    handler.abort()
