"""SimulatedNetwork: runs of a loop, and what no loop may do."""

from __future__ import annotations

import random
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reactor.testing.turns
from reactor import READ, Connection, Reactor, StreamProtocol, listen_tcp, open_udp
from reactor.sockets.addresses import Address
from reactor.sockets.opening import Socket
from reactor.testing import SimulatedNetwork, Watcher
from reactor.testing.kernel.endpoint import SimulatedSocket
from reactor.testing.turns import IDLE_TURNS
from tests.reactor.testing.programs import ELSEWHERE, HERE, PORT, Echo, UdpEcho, go, pair, udp
from tests.support.basics import told


def ticking(network: SimulatedNetwork) -> tuple[Reactor, list[float]]:
    """A loop with a timer every second, forever."""
    made = network.reactor()
    ticks: list[float] = []

    def tick() -> None:
        ticks.append(made.now() - 1000.0)
        made.call_later(1.0, tick)

    made.call_later(1.0, tick)
    return made, ticks


def test_run_ends_when_the_loop_stops() -> None:
    network = SimulatedNetwork()
    made, ticks = ticking(network)
    made.call_later(3.5, made.stop)
    network.run(made)
    assert len(ticks) == 3


def test_run_ends_when_nothing_more_will_happen() -> None:
    network = SimulatedNetwork()
    network.run(network.reactor())
    assert network.clock() == 1000.0


def test_run_ends_when_until_is_true_and_the_next_run_goes_on() -> None:
    network = SimulatedNetwork()
    made, ticks = ticking(network)
    network.run(made, until=lambda: len(ticks) >= 5)
    assert len(ticks) == 5
    network.run(made, until=lambda: len(ticks) >= 7)
    assert len(ticks) == 7


def test_run_ends_after_for_s() -> None:
    """It ends at that moment, even if nothing else would wake the loop."""
    network = SimulatedNetwork()
    made = network.reactor()
    network.run(made, for_s=2.5)
    assert network.clock() == 1002.5
    made, ticks = ticking(network)
    network.run(made, for_s=2.5)
    assert len(ticks) == 2
    assert network.clock() == 1005.0, "though the loop would have slept on"


@pytest.mark.parametrize(("enough", "for_s", "ticked"), [(2, 5.5, 2), (9, 5.5, 5)])
def test_run_with_until_and_for_s_ends_at_the_first(enough: int, for_s: float, ticked: int) -> None:
    network = SimulatedNetwork()
    made, ticks = ticking(network)
    network.run(made, until=lambda: len(ticks) >= enough, for_s=for_s)
    assert len(ticks) == ticked


def test_loop_that_never_rests_is_stopped_and_each_run_counts_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reactor.testing.turns, "MOST_TURNS", 20)
    network = SimulatedNetwork()
    made, ticks = ticking(network)
    for enough in (15, 30):
        network.run(made, until=lambda enough=enough: len(ticks) >= enough)  # type: ignore[misc]
    with pytest.raises(RuntimeError, match="hasn't come to rest in 21 turns, 1 at once"):
        network.run(made)


def test_loop_that_turns_while_time_stands_still_is_stopped_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something changes in each turn, so it isn't a spin, but time never passes."""
    monkeypatch.setattr(reactor.testing.turns, "MOST_TURNS_AT_ONCE", 50)
    network = SimulatedNetwork()
    made = network.reactor()

    def again() -> None:
        network.changed()
        made.call_soon(again)

    made.call_soon(again)
    with pytest.raises(RuntimeError, match="51 at once"):
        network.run(made)


def test_shortage_lasts_for_its_milliseconds_and_counts_once() -> None:
    """Other calls don't see the shortage."""
    network = SimulatedNetwork(script="send#1=ENOBUFS:101")
    sock, peer = pair(network)
    for _ in range(3):
        assert told(sock.send, b"x") == "ENOBUFS"
    assert told(sock.recv, 1) == "EAGAIN"
    network.clock.advance(0.1)
    assert sock.send(b"x") == 1
    assert [str(fault) for fault in network.chance.injected] == ["send#1=ENOBUFS:101"]
    assert not peer.lost


def test_settle_delivers_everything_without_the_program() -> None:
    network = SimulatedNetwork(latency_s=3.0)
    sock, peer = pair(network)
    sock.send(b"x")
    peer.send(b"y")
    network.settle()
    assert peer.received == b"x"
    assert network.wire.next_s() is None
    assert sock.recv(1) == b"y"


class Deaf:
    """A ready handler that does nothing."""

    def __init__(self, sock: Socket) -> None:
        self.interest, self.closed = 0, False
        self.fileno, self.detach = sock.fileno, sock.detach
        self.calls = 0

    def on_event(self, mask: int) -> None:
        """Only count the call."""
        self.calls += 1

    def abort(self, error: Exception | None = None) -> None:
        self.closed = True


@pytest.mark.parametrize("busy_poll_s", [0.0, 1e-3])
def test_spinning_loop_is_a_violation(busy_poll_s: float) -> None:
    network = SimulatedNetwork()
    made = network.reactor(busy_poll_s=busy_poll_s)
    sock, peer = pair(network)
    peer.send(b"never read")
    handler = Deaf(sock)
    made.register(handler)
    made.set_interest(handler, READ)
    with pytest.raises(AssertionError, match="the loop spins"):
        network.run(made, until=lambda: network.violations)
    assert handler.calls <= IDLE_TURNS + 2  # in the first two turns something still changes


def test_descriptor_closed_while_watched_is_a_violation() -> None:
    """The number's next owner would get its events."""
    network = SimulatedNetwork()
    made = network.reactor()
    sock, _peer = pair(network)
    number = sock.fileno()
    handler = Deaf(sock)
    made.register(handler)
    made.set_interest(handler, READ)
    sock.close()
    with pytest.raises(AssertionError, match=f"descriptor {number} was closed while it was watched"):
        network.run(made)


def test_correct_program_passes_the_check() -> None:
    network = SimulatedNetwork()
    made = network.reactor()
    listen_tcp(made, (HERE, PORT), Echo)
    peer = network.peer((HERE, PORT))
    peer.send(b"x")
    peer.finish()
    network.run(made)
    made.close()
    network.check()
    assert network.violations == []
    assert peer.received == b"x"
    assert not network.descriptors.open


@pytest.mark.parametrize("kind", ["fin", "reset", "partition"])
def test_step_fault_hits_one_peer_at_any_system_call(kind: str) -> None:
    network = SimulatedNetwork()
    network.plan("step", kind)
    network.enter("anything")
    assert not network.chance.injected
    _sock, peer = pair(network)
    network.plan("step", kind, 5000)
    network.enter("anything")
    assert network.chance.counts() == {f"step.{kind}": 1}
    assert (peer.finished, peer.lost, ELSEWHERE in network.wire.cut_off) == tuple(
        kind == name for name in ("fin", "reset", "partition")
    )
    go(network, 5.1)
    assert not network.wire.cut_off


def test_plan_of_an_unknown_fault_raises() -> None:
    with pytest.raises(ValueError, match="is no fault"):
        SimulatedNetwork().plan("send", "loss")


class Notes(Watcher):
    """Records every call."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def call(self, name: str, sock: SimulatedSocket, data: bytes) -> None:
        self.seen.append((name, data))

    def datagram(self, name: str, sock: SimulatedSocket, data: bytes, peer: Address, local: str) -> None:
        self.seen.append((name, data, peer[0], local))

    def select(self, timeout_s: float | None) -> None:
        self.seen.append(("select",))


def test_watchers_see_every_call_datagram_and_turn_in_order() -> None:
    network = SimulatedNetwork()
    made = network.reactor()
    notes = Notes()
    network.watchers += [notes, Watcher()]
    network.journal = []
    listen_tcp(made, (HERE, PORT), Echo)
    open_udp(made, ("0.0.0.0", PORT), UdpEcho())
    peer, asker = network.peer((HERE, PORT)), network.udp_peer()
    peer.send(b"stream")
    peer.finish()
    asker.send(b"datagram", ("10.0.0.2", PORT))
    network.run(made)
    seen = [note for note in notes.seen if note != ("select",)]
    assert [note for note in seen if len(note) == 2] == [
        ("accept", b""), ("recv", b"stream"), ("send", b"stream"), ("eof", b""), ("fin", b""),
    ]  # fmt: skip
    assert [note for note in seen if len(note) == 4] == [
        ("request", b"datagram", ELSEWHERE, "10.0.0.2"),
        ("answer", b"datagram", ELSEWHERE, "10.0.0.2"),
    ]
    assert ("select",) in notes.seen
    assert "1000.000 accept" in network.journal
    assert any("recv(" in line and "6 bytes" in line for line in network.journal)


def test_wake_up_pair_has_no_faults_and_no_watchers() -> None:
    network = SimulatedNetwork(faults={"recv.short": 1.0, "send.EAGAIN": 1.0})
    notes = Notes()
    network.watchers.append(notes)
    network.journal = []
    one, other = network.socketpair()
    assert one.send(b"ab") == 2
    assert other.recv(2) == b"ab"
    assert not network.chance.injected
    assert not notes.seen


class Told(StreamProtocol):
    def __init__(self, said: list[bytes]) -> None:
        self.said = said

    def data_received(self, connection: Connection, data: bytes) -> None:
        self.said.append(data)


def bytes_heard(seed: Any) -> list[bytes]:
    network = SimulatedNetwork(seed, faults={"recv.short": 0.5, "select.spurious": 0.3, "recv.EINTR": 0.1})
    made = network.reactor()
    said: list[bytes] = []
    listen_tcp(made, (HERE, PORT), lambda: Told(said))
    peer = network.peer((HERE, PORT))
    peer.send(network.random.randbytes(100))
    network.run(made)
    assert b"".join(said) == peer.sent
    return said


def test_same_seed_gives_the_same_run() -> None:
    assert bytes_heard(7) == bytes_heard(7)
    assert bytes_heard(random.Random(7)) == bytes_heard(random.Random(7))
    assert len({tuple(bytes_heard(seed)) for seed in range(5)}) == 5


@given(data=st.data())
def test_hypothesis_data_is_a_seed(data: st.DataObject) -> None:
    assert sum(map(len, bytes_heard(data))) == 100


def test_faults_do_not_shift_the_random_numbers_of_a_scenario() -> None:
    """Scenarios have their own random stream, so a failure can be repeated with fewer faults."""
    good, bad = SimulatedNetwork(3), SimulatedNetwork(3, faults={"step.signal": 0.5, "recv.short": 0.5})
    for _ in range(100):
        bad.enter("recv")
    assert good.random.random() == bad.random.random()


@pytest.mark.parametrize("kind", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"])
def test_socket_fault_takes_no_descriptor(kind: str) -> None:
    network = SimulatedNetwork(script=f"socket#1={kind}")
    with pytest.raises(OSError, match=r"\[Errno"):
        network.socket(socket.AF_INET, socket.SOCK_STREAM)
    assert not network.descriptors.open
    assert network.chance.counts() == {f"socket.{kind}": 1}


def test_partition_leaves_other_hosts_reachable() -> None:
    network = SimulatedNetwork()
    sock, peer = pair(network)
    udp(network)
    network.socketpair()
    network.partition("198.51.100.1")
    peer.send(b"x")
    go(network)
    assert sock.recv(1) == b"x"


def test_routing_picks_a_source_address_that_others_can_reach() -> None:
    network = SimulatedNetwork(addresses=("127.0.0.1", "10.9.9.9", "fd00::7"))
    source = network.routing.source_for
    assert source(socket.AF_INET, (ELSEWHERE, 1)) == ("10.9.9.9", 0)
    assert source(socket.AF_INET, ("127.0.0.1", 1)) == ("127.0.0.1", 0)
    assert source(socket.AF_INET6, ("2001:db8::1", 1)) == ("fd00::7", 0, 0, 0)
    assert SimulatedNetwork(addresses=()).routing.source_for(socket.AF_INET, (ELSEWHERE, 1)) == (ELSEWHERE, 0)


def test_canonical_address_has_one_spelling() -> None:
    """The spelling of getsockname(2): short, without a scope's name, with flow and scope id."""
    canonical = SimulatedNetwork().routing.canonical
    assert canonical(socket.AF_INET, (HERE, 7)) == (HERE, 7)
    assert canonical(socket.AF_INET6, ("FD00:0::1%eth0", 7)) == ("fd00::1", 7, 0, 0)
    assert canonical(socket.AF_INET6, ("::1", 7, 1, 2)) == ("::1", 7, 1, 2)
    with pytest.raises(OSError, match="another family"):
        canonical(socket.AF_INET, ("::1", 7))


def test_two_reactors_of_a_network_run_in_turn() -> None:
    network = SimulatedNetwork()
    first, second = network.reactor(), network.reactor()
    protocols = [Echo(), Echo()]
    for made, port, protocol in ((first, 7, protocols[0]), (second, 8, protocols[1])):
        listen_tcp(made, (HERE, port), lambda protocol=protocol: protocol)  # type: ignore[misc]
    peers = [network.peer((HERE, port)) for port in (7, 8)]
    for made, peer in zip((first, second), peers, strict=True):
        peer.send(b"x")
        network.run(made)
    assert [peer.received for peer in peers] == [b"x", b"x"]


def test_of_two_partitions_the_longer_one_counts() -> None:
    """The end of the first doesn't heal the second; `heal` ends both."""
    network = SimulatedNetwork()
    network.partition(ELSEWHERE, 5.0)
    network.partition(ELSEWHERE, 60.0)
    go(network, 10.0)
    assert not network.wire.is_open(HERE, ELSEWHERE)
    network.heal(ELSEWHERE)
    assert network.wire.is_open(HERE, ELSEWHERE)
    network.partition(ELSEWHERE)
    network.partition(ELSEWHERE, 1.0)
    go(network, 10.0)
    assert not network.wire.is_open(HERE, ELSEWHERE), "the first has no end"


def test_signal_of_an_outer_loop_is_passed_on_by_the_inner_one() -> None:
    """Two loops share the simulated wake-up descriptor as they share a real one."""
    network = SimulatedNetwork()
    heard: list[int] = []
    outer, inner = network.reactor(), network.reactor()
    outer.add_signal_handler(10, lambda: heard.append(10))
    inner.add_signal_handler(12, lambda: heard.append(12))

    def start() -> None:
        inner.call_soon(inside_the_inner)
        inner.run()

    def inside_the_inner() -> None:
        network.signals.raise_signal(10)
        network.signals.raise_signal(12)
        inner.call_later(1.0, inner.stop)

    outer.call_soon(start)
    network.run(outer)
    assert heard == [12, 10]
    assert network.signals.set_wakeup_fd(-1) == -1
    network.signals.write_wakeup(999, b"no descriptor")
    outer.close()
    inner.close()


def test_detached_socket_leaves_its_descriptor_open() -> None:
    network = SimulatedNetwork()
    with network.reactor():
        sock, _ = pair(network)
        number = sock.fileno()
        assert (sock.detach(), sock.fileno()) == (number, -1)
        assert number in network.descriptors.open
        network.descriptors.give_back(number)
