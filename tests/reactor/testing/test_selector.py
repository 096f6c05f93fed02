"""SimulatedSelector: epoll's faults, timeouts, and the end of a run."""

from __future__ import annotations

import time

import pytest

from reactor import READ, WRITE
from reactor.sockets.opening import Socket
from reactor.testing import Quiet, SimulatedNetwork
from tests.reactor.testing.programs import pair, udp


def three(network: SimulatedNetwork) -> list[Socket]:
    """Three readable datagram sockets, watched for READ by one selector."""
    selector = network.selector()
    peer = network.udp_peer()
    sockets = [udp(network) for _ in range(3)]
    for number, sock in enumerate(sockets):
        selector.register(sock, READ, number)
        peer.send(b"x", sock.getsockname())
    return sockets


def selected(network: SimulatedNetwork, timeout_s: float | None = 0) -> list[int]:
    return [key.data for key, _ in network.selectors[0].select(timeout_s)]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("", [0, 1, 2]),
        ("shuffle:1", [1, 2, 0]),
        ("shuffle:2", [1, 0, 2]),
        ("shuffle:3", [0, 1, 2]),
        ("fewer:1", [0]),
        ("fewer:2", [0, 1]),
        ("fewer:3", [0]),
    ],
)
def test_select_fault_changes_order_or_number_once(script: str, expected: list[int]) -> None:
    network = SimulatedNetwork(script=f"select#1={script}" if script else "")
    three(network)
    assert selected(network) == expected
    assert network.chance.script() == (f"select#1={script}" if script else "")
    assert selected(network) == [0, 1, 2]


@pytest.mark.parametrize("kind", ["shuffle", "fewer", "spurious"])
def test_fault_with_nothing_to_change_is_not_listed(kind: str) -> None:
    network = SimulatedNetwork(script=f"select#1={kind}")
    network.selector()
    assert selected(network) == []
    assert not network.chance.injected


def test_spurious_returns_a_socket_that_is_not_ready() -> None:
    network = SimulatedNetwork(script="select#1=spurious:1")
    sockets = three(network)
    sockets[1].recv(10)
    assert sorted(selected(network)) == [0, 1, 2]
    assert selected(network) == [0, 2]


def test_spurious_never_reports_a_lost_descriptor() -> None:
    """Other code has closed it, and epoll has forgotten it."""
    network = SimulatedNetwork(script="select#1=spurious:1 select#2=spurious:0")
    sockets = three(network)
    network.lose(sockets[1].fileno())
    assert sorted(selected(network)) == [0, 2]
    network.lose(sockets[0].fileno())
    network.lose(sockets[2].fileno())
    assert selected(network, 0) == []
    assert network.chance.script() == "select#1=spurious:1"


def test_early_fault_wakes_before_any_event() -> None:
    network = SimulatedNetwork(script="select#1=early select#2=early")
    network.selector()
    assert selected(network, 5.0) == []
    assert network.clock() == 1000.0
    assert selected(network, 0) == []
    assert network.chance.script() == "select#1=early:1"


def test_late_fault_lets_extra_time_pass() -> None:
    network = SimulatedNetwork(script="select#1=late:1500")
    network.selector()
    assert selected(network, 1.0) == []
    assert network.clock() == 1002.5


@pytest.mark.parametrize(
    ("timeout_s", "slept_ms"), [(0.0, 0), (-1.0, 0), (1e-9, 1), (0.001, 1), (0.0011, 2), (2, 2000)]
)
def test_timeout_is_rounded_up_to_milliseconds(timeout_s: float, slept_ms: int) -> None:
    network = SimulatedNetwork()
    network.selector()
    assert selected(network, timeout_s) == []
    assert round((network.clock() - 1000.0) * 1000, 6) == slept_ms


def test_sleep_without_an_end_raises_quiet() -> None:
    network = SimulatedNetwork()
    network.selector()
    with pytest.raises(Quiet):
        selected(network, None)


def test_sleep_ends_at_the_next_event() -> None:
    network = SimulatedNetwork()
    sock, peer = pair(network)
    network.selector().register(sock, READ, 7)
    network.call_later(3.0, lambda: None)
    network.call_later(5.0, lambda: peer.send(b"x"))
    network.call_later(9.0, lambda: None)
    assert selected(network, None) == [7]
    assert network.clock() == 1005.0


def test_day_of_timers_takes_seconds() -> None:
    network = SimulatedNetwork()
    reactor = network.reactor()
    fired: list[float] = []

    def again() -> None:
        fired.append(reactor.now())
        if len(fired) < 24 * 60:
            reactor.call_later(60.0, again)

    began_s = time.perf_counter()
    reactor.call_later(60.0, again)
    network.run(reactor)
    assert fired == pytest.approx([1000.0 + 60.0 * (number + 1) for number in range(24 * 60)], abs=2.0)
    assert time.perf_counter() - began_s < 5, "milliseconds, on a machine that isn't busy"


@pytest.mark.parametrize("kind", ["ENOMEM", "ENOSPC"])
def test_register_fault_registers_nothing(kind: str) -> None:
    network = SimulatedNetwork(script=f"register#1={kind}")
    selector = network.selector()
    sock = udp(network)
    with pytest.raises(OSError, match=r"\[Errno"):
        selector.register(sock, READ)
    assert not selector.get_map()
    selector.register(sock, READ | WRITE, "it")
    assert selector.get_key(sock).data == "it"


def test_register_of_a_closed_descriptor_raises() -> None:
    network = SimulatedNetwork()
    selector = network.selector()
    with pytest.raises(OSError, match="Bad file descriptor"):
        selector.register(99, READ)
    selector.register(udp(network), READ)
    selector.close()
    assert not selector.get_map()
    with pytest.raises(KeyError):
        selector.get_key(3)
