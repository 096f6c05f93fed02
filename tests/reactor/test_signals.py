"""Signals and wake-ups: the work is kept in memory; a byte in the socket pair only wakes the loop."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from reactor import Reactor
from tests.support.loops import RecordingSelector, turn_idle, turn_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGUSR1")
USR1, USR2 = getattr(signal, "SIGUSR1", 0), getattr(signal, "SIGUSR2", 0)
STORM = 100_000


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """A loop in the main thread. The process's signals are restored afterwards."""
    before = {signum: signal.getsignal(signum) for signum in (USR1, USR2)}
    with Reactor() as made:
        yield made
    assert {signum: signal.getsignal(signum) for signum in (USR1, USR2)} == before
    assert signal.set_wakeup_fd(-1) == -1


def counter(calls: list[str], name: str) -> Callable[[], None]:
    """Return a callback that records its name."""
    return lambda: calls.append(name)


def send(signum: int) -> None:
    """Send a signal to this process, as from outside."""
    os.kill(os.getpid(), signum)


def test_a_signal_calls_its_callback_on_the_loop(reactor: Reactor) -> None:
    """The callback never runs inside the signal handler."""
    calls: list[str] = []
    reactor.add_signal_handler(USR1, counter(calls, "USR1"))
    send(USR1)
    assert calls == []
    turn_until(reactor, lambda: calls)
    assert calls == ["USR1"]


def test_signal_wakes_a_loop_without_timers(reactor: Reactor) -> None:
    """Another thread sends it while the loop sleeps or is about to sleep."""
    reactor.add_signal_handler(USR1, reactor.stop)
    thread = threading.Thread(target=send, args=(USR1,))
    reactor.call_soon(thread.start)
    reactor.run()
    thread.join()


def test_a_burst_of_one_signal_counts_once(reactor: Reactor) -> None:
    """A pending signal is kept once, however often it arrives (signal(7))."""
    calls: list[str] = []
    reactor.add_signal_handler(USR1, counter(calls, "USR1"))
    for _ in range(5):
        signal.raise_signal(USR1)
    turn_until(reactor, lambda: calls)
    turn_idle(reactor)
    assert calls == ["USR1"]
    send(USR1)
    turn_until(reactor, lambda: len(calls) == 2)


def test_no_python_code_runs_when_a_signal_arrives(reactor: Reactor) -> None:
    """A Python handler is interrupted by the next signal; many signals would end in RecursionError."""
    reactor.add_signal_handler(USR1, int)
    frames: list[str] = []

    def note(frame: FrameType, event: str, arg: object) -> None:
        if event == "call":
            frames.append(frame.f_code.co_qualname)

    sys.setprofile(note)
    try:
        signal.raise_signal(USR1)
    finally:
        sys.setprofile(None)
    assert frames == []


def test_a_storm_of_one_signal_does_not_lose_another(reactor: Reactor) -> None:
    """Promise 19: "Signals are not lost under a storm of 10^5 other signals"."""
    calls: list[str] = []
    reactor.add_signal_handler(USR1, counter(calls, "USR1"))
    reactor.add_signal_handler(USR2, counter(calls, "USR2"))
    for number in range(STORM):
        send(USR1)
        if number == STORM // 2:
            send(USR2)
    turn_until(reactor, lambda: "USR2" in calls)
    turn_until(reactor, lambda: "USR1" in calls)
    turn_idle(reactor, 200)
    assert sorted(calls) == ["USR1", "USR2"]


def test_handled_signal_is_not_reported_again(reactor: Reactor) -> None:
    """The next wake-up must not report it again."""
    calls: list[str] = []
    reactor.add_signal_handler(USR1, counter(calls, "USR1"))
    reactor.add_signal_handler(USR2, counter(calls, "USR2"))
    signal.raise_signal(USR1)
    turn_until(reactor, lambda: calls)
    signal.raise_signal(USR2)
    turn_until(reactor, lambda: len(calls) == 2)
    reactor.call_soon_threadsafe(int)
    turn_idle(reactor)
    assert calls == ["USR1", "USR2"]


def test_handler_removed_earlier_in_the_same_turn_is_not_called(
    reactor: Reactor, caplog: pytest.LogCaptureFixture
) -> None:
    """The handler is removed after the loop has queued its callback."""
    calls: list[str] = []
    reactor.add_signal_handler(USR1, counter(calls, "USR1"))
    signal.raise_signal(USR1)
    reactor.call_soon(reactor.remove_signal_handler, USR1)
    turn_idle(reactor)
    assert calls == []
    assert caplog.records == []


def test_disposition_replaced_by_other_code_is_kept(reactor: Reactor) -> None:
    """Restoring the previous disposition would undo the other code's."""
    came: list[int] = []
    original = signal.getsignal(USR1)
    try:
        reactor.add_signal_handler(USR1, int)
        signal.signal(USR1, lambda signum, frame: came.append(signum))
        reactor.remove_signal_handler(USR1)
        signal.raise_signal(USR1)
        assert came == [USR1]
    finally:
        signal.signal(USR1, original)


def test_signals_are_handled_in_order_of_arrival(reactor: Reactor) -> None:
    """Each signal once, oldest first."""
    calls: list[str] = []
    reactor.add_signal_handler(USR1, counter(calls, "USR1"))
    reactor.add_signal_handler(USR2, counter(calls, "USR2"))
    for signum in (USR2, USR1, USR2):
        signal.raise_signal(signum)
    turn_until(reactor, lambda: len(calls) == 2)
    assert calls == ["USR2", "USR1"]


def test_a_callback_that_raises_costs_neither_the_loop_nor_the_next_signal(
    reactor: Reactor, caplog: pytest.LogCaptureFixture
) -> None:
    """Promise 17, for signals."""
    calls: list[str] = []
    reactor.add_signal_handler(USR1, lambda: 1 // 0)
    reactor.add_signal_handler(USR2, counter(calls, "USR2"))
    signal.raise_signal(USR1)
    signal.raise_signal(USR2)
    turn_until(reactor, lambda: calls)
    assert [bool(record.exc_info) for record in caplog.records] == [True]
    signal.raise_signal(USR2)
    turn_until(reactor, lambda: len(calls) == 2)


def test_removing_a_handler_restores_the_previous_one(reactor: Reactor) -> None:
    """Removing a missing handler does nothing."""
    came: list[int] = []
    original = signal.signal(USR1, lambda signum, frame: came.append(signum))
    try:
        reactor.remove_signal_handler(USR1)
        for _ in range(2):  # set again, it must not take its own handler for the previous one
            reactor.add_signal_handler(USR1, int)
        reactor.remove_signal_handler(USR1)
        signal.raise_signal(USR1)
        assert came == [USR1]
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(USR1, original)


def test_removed_handler_is_not_called_for_a_pending_signal(reactor: Reactor) -> None:
    """The loop ignores the pending signal."""
    calls: list[str] = []
    reactor.add_signal_handler(USR1, counter(calls, "USR1"))
    reactor.add_signal_handler(USR2, counter(calls, "USR2"))
    signal.raise_signal(USR1)
    signal.raise_signal(USR2)
    reactor.remove_signal_handler(USR1)
    reactor.add_signal_handler(USR1, counter(calls, "anew"))
    turn_until(reactor, lambda: calls)
    turn_idle(reactor)
    assert calls == ["USR2"]


def test_closing_the_loop_restores_signals_and_the_wakeup_fd() -> None:
    """The fixture of the other tests checks this, too."""
    before = signal.getsignal(USR1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        signal.set_wakeup_fd(ours.fileno())
        try:
            with Reactor() as reactor:
                reactor.add_signal_handler(USR1, int)
                reactor.add_signal_handler(USR2, int)
                assert signal.getsignal(USR1) is not before
        finally:
            restored = signal.set_wakeup_fd(-1)
        assert restored == ours.fileno()
    assert signal.getsignal(USR1) is before


def test_run_prepares_when_the_wakeup_fd_is_set_and_before_the_first_turn(reactor: Reactor) -> None:
    """A process that restricts itself at that moment can't set it later: Python calls fstat(2) for that."""
    calls: list[str] = []
    reactor.add_signal_handler(USR1, reactor.stop)
    reactor.call_soon(calls.append, "a turn")

    def prepared() -> None:
        number = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(number, warn_on_full_buffer=False)
        calls.append("the wake-up descriptor is set" if number >= 0 else "it isn't")
        send(USR1)

    reactor.run(prepared)
    assert calls == ["the wake-up descriptor is set", "a turn"]


def test_error_in_prepared_leaves_run_and_the_loop_can_run_again(reactor: Reactor) -> None:
    def refused() -> None:
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        reactor.run(refused)
    reactor.call_soon(reactor.stop)
    reactor.run()


def test_a_signal_that_cannot_be_caught_is_an_error_and_changes_nothing(reactor: Reactor) -> None:
    """Raise OSError, as signal.signal does."""
    with pytest.raises(OSError, match="Invalid argument"):
        reactor.add_signal_handler(signal.SIGKILL, int)
    assert signal.set_wakeup_fd(-1) == -1
    reactor.remove_signal_handler(signal.SIGKILL)


def test_outside_the_main_thread_a_signal_handler_is_refused(reactor: Reactor) -> None:
    """Raise ValueError outside the main thread, as Python handles signals only there."""
    errors: list[Exception] = []

    def attempt() -> None:
        try:
            reactor.add_signal_handler(USR1, int)
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert len(errors) == 1
    reactor.remove_signal_handler(USR1)


def test_full_socket_pair_blocks_no_thread_and_loses_no_call(reactor: Reactor) -> None:
    """Promise 19: "the wake-up socket overflowing is harmless"."""
    done: list[int] = []
    for number in range(STORM):
        reactor.call_soon_threadsafe(done.append, number)
    reactor.turn()
    assert done == list(range(STORM))
    turn_idle(reactor, 200)
    reactor.call_soon_threadsafe(done.append, STORM)
    reactor.turn()
    assert done[-1] == STORM


def test_turn_reads_a_bounded_number_of_wake_up_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pair stays readable until it is empty; then the loop may sleep."""
    monkeypatch.setattr("reactor.sockets.wakeup.WAKE_BYTES_PER_TURN", 10)
    selector = RecordingSelector()
    with Reactor(selector=selector) as reactor:
        for number in range(25):
            reactor.call_soon_threadsafe(int, number)
        turn_idle(reactor, 5)
    assert [len(batch) for batch in selector.batches] == [1, 1, 1, 0, 0]


def test_closed_loop_refuses_a_call_from_a_thread() -> None:
    """The thread must learn that its result is lost."""
    reactor = Reactor()
    reactor.close()
    with pytest.raises(RuntimeError, match="reactor is closed"):
        reactor.call_soon_threadsafe(int)


def test_two_signals_handled_first_within_a_run_share_the_wakeup_descriptor() -> None:
    heard: list[str] = []
    with Reactor() as reactor:

        def end() -> None:
            heard.append("second")
            reactor.stop()

        def handle() -> None:
            reactor.add_signal_handler(signal.SIGUSR1, lambda: heard.append("first"))
            reactor.add_signal_handler(signal.SIGUSR2, lambda: reactor.call_soon(end))
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR2)

        reactor.call_soon(handle)
        reactor.run()
    assert heard == ["first", "second"]
