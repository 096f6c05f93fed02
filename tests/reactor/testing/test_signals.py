"""SimulatedSignals: signals without a process."""

from __future__ import annotations

import signal

from reactor.testing import SimulatedNetwork

USR1, TERM = 10, 15  # their numbers on Linux; no real signal is sent


def test_handler_is_called_between_two_steps() -> None:
    """Promise: as `signal.signal` has it; and the handler runs at the program's next step, not at once."""
    network = SimulatedNetwork()
    seen: list[int] = []
    handler = lambda signum, frame: seen.append(signum)  # noqa: E731
    assert network.signals.getsignal(USR1) == signal.SIG_DFL
    assert network.signals.signal(USR1, handler) == signal.SIG_DFL
    assert network.signals.getsignal(USR1) is handler
    network.signals.raise_signal(USR1)
    network.signals.raise_signal(USR1)
    assert seen == []
    network.enter("anything")
    assert seen == [USR1, USR1]
    assert network.signals.signal(USR1, signal.SIG_DFL) is handler


def test_signal_without_a_handler_is_ignored() -> None:
    """Promise: the simulated process isn't killed by one, and no byte is written for it."""
    network = SimulatedNetwork()
    reader, writer = network.socketpair()
    network.signals.set_wakeup_fd(writer.fileno())
    network.signals.raise_signal(TERM)
    network.signals.deliver()
    assert not network.descriptors.open[reader.fileno()].poll() & 1


def test_signal_whose_handler_was_removed_is_dropped() -> None:
    """Promise: what counts is the handler at the time of delivery."""
    network = SimulatedNetwork()
    seen: list[int] = []
    network.signals.signal(USR1, lambda *args: seen.append(1))
    network.signals.raise_signal(USR1)
    network.signals.signal(USR1, signal.SIG_IGN)
    network.signals.deliver()
    assert not seen


def test_a_byte_is_written_at_once_to_the_wake_up_descriptor() -> None:
    """Promise: the number of the signal is there before the handler is called; -1 means nowhere."""
    network = SimulatedNetwork()
    reader, writer = network.socketpair()
    network.signals.signal(USR1, lambda *args: None)
    network.signals.raise_signal(USR1)
    assert network.signals.set_wakeup_fd(writer.fileno()) == -1
    network.signals.raise_signal(USR1)
    assert reader.recv(10) == bytes([USR1])
    assert network.signals.set_wakeup_fd(-1) == writer.fileno()


def test_full_wake_up_pair_loses_no_signal() -> None:
    """Promise: as with warn_on_full_buffer=False, a byte that finds no room is dropped, the signal is not."""
    network = SimulatedNetwork(send_buffer_bytes=1, receive_buffer_bytes=1)
    reader, writer = network.socketpair()
    seen: list[int] = []
    network.signals.signal(USR1, lambda signum, frame: seen.append(signum))
    network.signals.set_wakeup_fd(writer.fileno())
    for _ in range(5):
        network.signals.raise_signal(USR1)
    assert reader.recv(10) == bytes([USR1])
    assert seen == [USR1] * 5


def test_signal_to_a_closed_pair_does_no_harm() -> None:
    """Promise: nor does a descriptor that is no socket pair's any more."""
    network = SimulatedNetwork()
    reader, writer = network.socketpair()
    network.signals.signal(USR1, lambda *args: None)
    network.signals.set_wakeup_fd(writer.fileno())
    reader.close()
    network.signals.raise_signal(USR1)
    writer.close()
    network.signals.raise_signal(USR1)


def test_a_signal_wakes_a_loop_and_its_callback_is_called_once() -> None:
    """Promise: the real Reactor's signal handlers work here, in the middle of a sleep too."""
    network = SimulatedNetwork()
    reactor = network.reactor()
    seen: list[float] = []
    reactor.add_signal_handler(USR1, lambda: seen.append(network.clock()))
    network.call_later(5.0, lambda: network.signals.raise_signal(USR1))
    network.run(reactor)
    assert seen == [1005.0]
    reactor.close()
    assert network.signals.getsignal(USR1) == signal.SIG_DFL


def test_step_fault_raises_a_signal_of_at_random() -> None:
    """Promise: `step.signal` raises one of `at_random`, and without any it has no effect."""
    network = SimulatedNetwork(script="step#1=signal step#2=signal:1")
    seen: list[int] = []
    for signum in (USR1, TERM):
        network.signals.signal(signum, lambda signum, frame: seen.append(signum))
    network.enter("anything")
    assert not network.chance.injected
    network.signals.at_random = (USR1, TERM)
    network.enter("anything")
    assert seen == [TERM]
    assert network.chance.script() == "step#2=signal:1"
