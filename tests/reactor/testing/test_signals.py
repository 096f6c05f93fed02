"""SimulatedSignals: signals without a process."""

from __future__ import annotations

import signal

from reactor.testing import SimulatedNetwork

USR1, TERM = 10, 15  # their numbers on Linux; no real signal is sent


def test_handler_is_called_between_two_steps() -> None:
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
    network = SimulatedNetwork()
    reader, writer = network.socketpair()
    network.signals.set_wakeup_fd(writer.fileno())
    network.signals.raise_signal(TERM)
    network.signals.deliver()
    assert not network.descriptors.open[reader.fileno()].poll() & 1


def test_signal_whose_handler_was_removed_is_dropped() -> None:
    network = SimulatedNetwork()
    seen: list[int] = []
    network.signals.signal(USR1, lambda *args: seen.append(1))
    network.signals.raise_signal(USR1)
    network.signals.signal(USR1, signal.SIG_IGN)
    network.signals.deliver()
    assert not seen


def test_signal_writes_a_byte_to_the_wake_up_descriptor_at_once() -> None:
    network = SimulatedNetwork()
    reader, writer = network.socketpair()
    network.signals.signal(USR1, lambda *args: None)
    network.signals.raise_signal(USR1)
    assert network.signals.set_wakeup_fd(writer.fileno()) == -1
    network.signals.raise_signal(USR1)
    assert reader.recv(10) == bytes([USR1])
    assert network.signals.set_wakeup_fd(-1) == writer.fileno()


def test_full_wake_up_pair_loses_no_signal() -> None:
    """As with warn_on_full_buffer=False, a byte that doesn't fit is dropped."""
    network = SimulatedNetwork(send_buffer_bytes=1, receive_buffer_bytes=1)
    reader, writer = network.socketpair()
    seen: list[int] = []
    network.signals.signal(USR1, lambda signum, frame: seen.append(signum))
    network.signals.set_wakeup_fd(writer.fileno())
    for _ in range(5):
        network.signals.raise_signal(USR1)
    assert reader.recv(10) == bytes([USR1])
    assert seen == [USR1] * 5


def test_signal_after_the_pair_is_closed_does_no_harm() -> None:
    network = SimulatedNetwork()
    reader, writer = network.socketpair()
    network.signals.signal(USR1, lambda *args: None)
    network.signals.set_wakeup_fd(writer.fileno())
    reader.close()
    network.signals.raise_signal(USR1)
    writer.close()
    network.signals.raise_signal(USR1)


def test_signal_wakes_the_loop_and_calls_its_callback_once() -> None:
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
