"""Callbacks: what the program itself may do at the end of any callback, and what a loop must make of it."""

from __future__ import annotations

import errno
import socket

import pytest

from reactor import Connection, Listener, StreamProtocol, connect_tcp, listen_tcp, open_udp
from reactor.testing import CALLBACK_FAULTS, Peer, SimulatedNetwork, SimulationFailed, simulate
from reactor.testing.callbacks import RAISED
from tests.reactor.testing.programs import HERE, PORT, Echo, UdpEcho, stream
from tests.support.basics import told


class Scene:
    """An echo server on one loop, with the fault of one callback, and clients."""

    def __init__(self, script: str) -> None:
        self.network = SimulatedNetwork(script=script)
        self.loop = self.network.reactor()
        self.protocols: list[Echo] = []
        self.listener: Listener = listen_tcp(self.loop, (HERE, PORT), self.made)

    def made(self) -> Echo:
        self.protocols.append(Echo())
        return self.protocols[-1]

    def client(self, data: bytes = b"hello") -> Peer:
        peer = self.network.peer((HERE, PORT))
        peer.send(data)
        return peer

    def run(self, *protocols: type) -> None:
        with self.network.callbacks.of(*protocols):
            self.network.run(self.loop)


@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("number", range(1, 6))
def test_base_exception_of_any_callback_leaves_run_and_the_network_runs_the_loop_again(kind: str, number: int) -> None:
    """In turn: connection_made, the listener's call of it, data_received, eof_received, connection_lost."""
    scene = Scene(f"callback#{number}={kind}")
    peer = scene.client()
    peer.finish()
    scene.run(Echo)
    assert scene.network.chance.counts() == {f"callback.{kind}": 1}
    assert peer.received == b"hello"
    assert (peer.eof, peer.lost) == (True, False)
    assert scene.protocols[0].lost == [None]


def test_base_exception_of_a_timer_or_call_is_met_without_naming_a_protocol() -> None:
    scene = Scene("callback#1=KeyboardInterrupt callback#2=SystemExit")
    seen: list[str] = []
    for name in ("first", "second", "third"):
        scene.loop.call_later(0.0, seen.append, name)
    scene.loop.call_soon(seen.append, "call")
    scene.run()
    assert sorted(seen) == ["call", "first", "second", "third"]
    assert scene.network.chance.script() == "callback#1=KeyboardInterrupt:1 callback#2=SystemExit:1"


def test_two_base_exceptions_of_one_turn_count_as_left_together() -> None:
    """The second comes in a `finally`, and replaces the first."""
    scene = Scene("callback#1=KeyboardInterrupt callback#2=SystemExit")

    def first() -> None:
        try:
            scene.loop.guard(int)
        finally:
            scene.loop.guard(int)

    scene.loop.call_soon(first)
    scene.run()
    assert len(scene.network.chance.injected) == 2


def swallow(scene: Scene) -> None:
    with pytest.raises(SystemExit):
        scene.loop.guard(int)


def test_base_exception_that_is_swallowed_is_a_violation() -> None:
    scene = Scene("callback#1=SystemExit")

    scene.loop.call_soon(swallow, scene)
    with pytest.raises(AssertionError, match="has not left the loop"):
        scene.run()


def test_base_exception_that_is_swallowed_is_a_violation_though_a_later_one_leaves() -> None:
    scene = Scene("callback#1=SystemExit callback#3=KeyboardInterrupt")

    scene.loop.call_soon(swallow, scene)
    scene.loop.call_later(1.0, int)
    with pytest.raises(AssertionError, match=r"SystemExit.*has not left the loop"):
        scene.run()
    assert len(scene.network.chance.injected) == 2


def test_fault_that_leaves_a_single_turn_is_a_failure_with_its_seed() -> None:
    """The scenario calls the loop itself, so the network can't run it again. It isn't taken for ^C."""

    def scenario(network: SimulatedNetwork) -> None:
        loop = network.reactor()
        loop.call_soon(int)
        loop.turn()

    with pytest.raises(SimulationFailed, match="seed 0 fails: KeyboardInterrupt") as failed:
        simulate(scenario, seeds=1, faults={"callback.KeyboardInterrupt": 1.0})
    assert failed.value.script.startswith("callback#1=KeyboardInterrupt:")


def test_abort_of_a_handler_is_no_callback_but_a_function_of_that_name_is() -> None:
    scene = Scene("callback#1=SystemExit")

    def abort() -> None:
        """Do nothing."""

    scene.loop.guard(scene.listener.abort)
    assert not scene.network.chance.injected
    scene.loop.call_soon(abort)
    scene.run()
    assert scene.network.chance.counts() == {"callback.SystemExit": 1}


def test_base_exception_that_is_no_fault_leaves_the_network_too() -> None:
    scene = Scene("")
    scene.loop.call_soon(_interrupt)
    with pytest.raises(KeyboardInterrupt, match="real"):
        scene.run()


def _interrupt() -> None:
    raise KeyboardInterrupt("real")


def test_base_exception_while_a_loop_is_closed_loses_no_last_callback() -> None:
    ends: list[Exception | None] = []

    class Ends(StreamProtocol):
        def connection_lost(self, connection: Connection, error: Exception | None) -> None:
            ends.append(error)

    def scenario(network: SimulatedNetwork) -> None:
        loop = network.reactor()
        listen_tcp(loop, (HERE, PORT), Ends)
        for _ in range(3):
            network.peer((HERE, PORT))
        network.run(loop)
        network.plan("callback", "KeyboardInterrupt")
        network.plan("callback", "GeneratorExit", after=1)

    simulate(scenario, seeds=1, faults={})
    assert ends == [None] * 3


@pytest.mark.parametrize("kind", ["close", "abort"])
@pytest.mark.parametrize(("victim", "end"), [(0, "listener"), (1, "own"), (2, "endpoint"), (3, "listener")])
def test_callback_closes_any_handler_of_the_loop_by_its_place(kind: str, victim: int, end: str) -> None:
    """The handlers are the listener, then the first connection, then the endpoint; the amount counts round."""
    scene = Scene(f"callback#3={kind}:{victim}")
    first = scene.client(b"")
    scene.run(Echo)
    endpoint = open_udp(scene.loop, (HERE, PORT), UdpEcho())
    first.send(b"hello")
    scene.run()
    connection = scene.protocols[0].connection
    assert connection is not None
    closed = {"listener": scene.listener.closed, "own": connection.interest == 0, "endpoint": endpoint.closed}
    if kind == "close":
        closed["own"] = connection.state.name == "LINGERING" or connection.closed
    assert [name for name, is_closed in closed.items() if is_closed] == [end]
    assert first.received == b"hello", "it had been written before"
    assert list(scene.network.callbacks.hit.values()) == [kind]


def test_connector_is_aborted_where_it_has_no_close() -> None:
    network = SimulatedNetwork(script="callback#1=close")
    loop = network.reactor()
    failed: list[OSError] = []
    connector = connect_tcp(loop, ("192.0.2.80", 80), StreamProtocol(), failed.append)
    loop.call_soon(int)
    network.run(loop)
    assert connector.closed
    assert not failed


def test_callback_without_a_handler_to_hit_has_no_fault() -> None:
    network = SimulatedNetwork(script="callback#1=abort callback#2=lost")
    loop = network.reactor()
    for _ in range(2):
        loop.call_soon(int)
    network.run(loop)
    assert not network.chance.injected


def test_second_fault_of_a_socket_counts_as_the_worse_one() -> None:
    """One that was closed, then aborted, may be incomplete; one that is lost can't be lost again."""
    scene = Scene("callback#3=close:1 callback#4=abort:1 callback#5=close:1")
    scene.client(b"").pause()
    scene.network.run(scene.loop)
    for _ in range(3):
        scene.loop.call_soon(int)
    scene.run()
    assert list(scene.network.callbacks.hit.values()) == ["abort", "close"]  # the third found the listener only
    scene = Scene("callback#3=lost:1 callback#4=lost:1 callback#5=close:1")
    scene.client(b"")
    scene.network.run(scene.loop)
    for _ in range(3):
        scene.loop.call_soon(int)
    scene.run()
    assert list(scene.network.callbacks.hit.values()) == ["lost"]
    assert len(scene.network.chance.injected) == 2


def test_datagram_callbacks_meet_faults() -> None:
    network = SimulatedNetwork(script="callback#1=SystemExit")
    loop = network.reactor()
    endpoint = open_udp(loop, (HERE, PORT), UdpEcho())
    peer = network.udp_peer()
    for data in (b"one", b"two"):
        peer.send(data, (HERE, PORT))
    with network.callbacks.of(UdpEcho):
        network.run(loop)
    assert [data for data, _ in peer.received] == [b"one", b"two"]
    assert endpoint.drops == {"callback": 1}


def test_static_callbacks_stay_static() -> None:
    class Static(StreamProtocol):
        data_received = staticmethod(Connection.write)  # type: ignore[assignment]

    network = SimulatedNetwork(script="callback#3=KeyboardInterrupt")
    loop = network.reactor()
    listen_tcp(loop, (HERE, PORT), Static)
    peer = network.peer((HERE, PORT))
    peer.send(b"hello")
    with network.callbacks.of(Static):
        network.run(loop)
    assert peer.received == b"hello"
    assert Static.data_received is Connection.write


# ---------------------------------------------------------------- lost descriptors


def test_lost_connection_is_told_once_when_its_number_has_a_new_owner() -> None:
    scene = Scene("callback#3=lost:1")
    unlucky = scene.client(b"")
    scene.network.run(scene.loop)
    scene.loop.call_soon(int)
    scene.run()
    connection = scene.protocols[0].connection
    assert connection is not None
    assert (unlucky.eof, connection.closed) == (True, False), "epoll says nothing"
    number = connection.fileno()
    lucky = scene.client()
    scene.run()
    newcomer = scene.protocols[1].connection
    assert newcomer is not None
    assert newcomer.fileno() == number
    assert connection.closed
    [error] = scene.protocols[0].lost
    assert isinstance(error, OSError)
    assert error.errno == errno.EBADF
    connection.abort()
    assert lucky.received == b"hello"
    scene.loop.close()
    assert not scene.network.descriptors.open


def test_use_of_a_lost_number_is_a_violation_only_when_it_is_anothers() -> None:
    network = SimulatedNetwork()
    sock = stream(network)
    number = sock.fileno()
    network.lose(number)
    assert told(sock.setsockopt, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1) == "EBADF"
    assert not network.violations
    assert stream(network).fileno() == number
    assert told(sock.shutdown, socket.SHUT_WR) == "EBADF"
    assert told(sock.close) == "EBADF"
    sock.close()
    assert sock.fileno() == -1
    assert network.violations == [
        f"{call} on descriptor {number}, which is another socket's by now" for call in ("shutdown", "close")
    ]


def test_mix_may_depend_on_the_seed() -> None:
    def scenario(network: SimulatedNetwork) -> None:
        loop = network.reactor()
        loop.call_soon(int)
        network.run(loop)

    mixes = [{"callback.SystemExit": 0.0}, {"callback.SystemExit": 1.0}]
    assert simulate(scenario, seeds=2, faults=mixes.__getitem__).injected == {"callback.SystemExit": 1}


def test_faults_of_callbacks_shift_no_other_fault() -> None:
    """A seed keeps its schedule until the first of them."""
    plain = {"send.short": 0.3, "recv.EAGAIN": 0.3}
    other = SimulatedNetwork(7, faults=plain | dict.fromkeys(CALLBACK_FAULTS, 0.01))
    network = SimulatedNetwork(7, faults=plain)
    for _ in range(20):
        other.chance.draw("callback")
        assert [network.chance.draw(call) for call in ("send", "recv")] == [
            other.chance.draw(call) for call in ("send", "recv")
        ]
