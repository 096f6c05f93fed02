"""The Connection's contract with any protocol, not only an echo: in bad worlds, from both sides."""

from __future__ import annotations

import socket

import pytest

from reactor import Connection, Limits, StreamProtocol, connect_tcp, listen_tcp
from reactor.testing import Peer, SimulatedNetwork, simulate
from tests.simulation.test_swarm import CLOSES, INTERRUPTS
from tests.simulation.world import USR1, closed_handlers_watched

ADDRESS = ("10.0.0.1", 7)
LIMITS = Limits(high_water_bytes=1000, receive_bytes=500, linger_timeout_s=2.0)
SEEDS = 75


class Contract(StreamProtocol):
    """Answers each piece twice, closes first after some bytes, and checks the order of its callbacks."""

    def __init__(self, network: SimulatedNetwork, enough_bytes: int) -> None:
        self.network, self.enough_bytes = network, enough_bytes
        self.calls: list[str] = []
        self.received = bytearray()

    def expect(self, call: str, *before: str) -> None:
        last = self.calls[-1] if self.calls else "nothing"
        if last not in before:
            self.network.violations.append(f"{call} came after {last}")
        self.calls.append(call)

    def connection_made(self, connection: Connection) -> None:
        self.expect("made", "nothing")

    def data_received(self, connection: Connection, data: bytes) -> None:
        self.expect("data", "made", "data", "drained")
        self.received += data
        connection.write(data)
        connection.write(data)
        if len(self.received) >= self.enough_bytes:
            connection.close()

    def drained(self, connection: Connection) -> None:
        self.expect("drained", "data", "drained", "eof")

    def eof_received(self, connection: Connection) -> bool:
        self.expect("eof", "made", "data", "drained")
        return False

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        self.expect("lost", "made", "data", "drained", "eof")


def contract_scenario(network: SimulatedNetwork) -> None:
    """Run some clients; the server closes first, or they do. At rest no connection is left."""
    protocols: list[Contract] = []

    def protocol() -> Contract:
        protocols.append(Contract(network, network.random.choice((1, 700, 10**6))))
        return protocols[-1]

    network.send_buffer_bytes = network.random.choice((100, 65_536))
    with closed_handlers_watched(network), network.callbacks.of(Contract):
        loop = network.reactor()
        listener = listen_tcp(loop, ADDRESS, protocol, limits=LIMITS)
        peers = [network.peer(ADDRESS) for _ in range(network.random.randrange(1, 4))]
        for peer in peers:
            peer.send(network.random.randbytes(network.random.randrange(3000)))
            temper = network.random.choice(("finish", "idle", "vanish", "pause"))
            if temper != "idle":
                network.call_later(network.random.choice((0.0, 1.0)), getattr(peer, temper))
        network.run(loop)
        for peer in peers:
            peer.resume()
        network.run(loop)
        check_rest(network, protocols, [h for h in loop.handlers if isinstance(h, Connection)], peers)
        listener.close()


def check_rest(network: SimulatedNetwork, protocols: list[Contract], left: list[Connection], peers: list[Peer]) -> None:
    for connection in left:  # it waits for a silent client
        sock = connection.socket
        assert connection.state.name == "OPEN", f"{connection.state} at rest"
        assert not sock.link.fate  # type: ignore[attr-defined]
    assert sum(protocol.calls[-1:] != ["lost"] for protocol in protocols) == len(left)
    for peer in peers:
        assert len(peer.received) <= 2 * len(peer.sent)


def test_bad_worlds_call_any_protocol_in_order_and_leave_no_connection() -> None:
    """connection_made comes first, connection_lost last and once; lingering ends for a client that never closes."""
    simulate(contract_scenario, seeds=SEEDS)


@pytest.mark.parametrize(
    "faults", [INTERRUPTS, CLOSES, INTERRUPTS | CLOSES | {"send.short": 0.2}], ids=["interrupts", "closes", "both"]
)
def test_callbacks_that_raise_or_close_change_no_order_and_leave_no_connection(faults: dict[str, float]) -> None:
    """Whatever one callback does to its own or another connection, none comes after connection_lost."""
    simulate(contract_scenario, seeds=SEEDS, faults=faults)


class Ask(StreamProtocol):
    """A client: sends a question, and reads the answer to its end."""

    def __init__(self, question: bytes) -> None:
        self.question, self.answer = question, bytearray()
        self.over: list[object] = []

    def connection_made(self, connection: Connection) -> None:
        connection.write(self.question)

    def data_received(self, connection: Connection, data: bytes) -> None:
        self.answer += data

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        self.over.append(error)


def client_scenario(network: SimulatedNetwork) -> None:
    """Connect to a server outside: the end comes once, and the answer is whole or an error comes."""

    def answer(peer: Peer, data: bytes) -> None:
        peer.send(data.upper())
        if peer.received.endswith(b"."):
            peer.finish()

    question = b"x" * network.random.randrange(1, 200_000) + b"."
    network.peer_server(("192.0.2.80", 80), answer)
    loop = network.reactor()
    client = Ask(question)
    try:
        connect_tcp(loop, ("192.0.2.80", 80), client, client.over.append, timeout_s=5)
    except OSError:  # no descriptor is left
        return
    with network.callbacks.of(Ask):
        network.run(loop)
    assert len(client.over) == 1, client.over
    if client.over == [None] and "step.fin" not in network.chance.counts():
        assert client.answer == question.upper()


def test_client_gets_a_whole_answer_or_an_error() -> None:
    """`connect_tcp` in bad worlds, with every fault that connect(2) and socket(2) can have."""
    report = simulate(client_scenario, seeds=SEEDS * 4)
    assert report.injected["connect.ECONNREFUSED"]


def test_client_whose_callbacks_raise_gets_a_whole_answer() -> None:
    assert simulate(client_scenario, seeds=SEEDS, faults=INTERRUPTS).injected.keys() == INTERRUPTS.keys()


HARMLESS = dict.fromkeys("send.short send.EAGAIN send.EINTR recv.short recv.EAGAIN select.spurious".split(), 0.3)


class SaysAll(Ask):
    """A client that sends everything at once, half-closes, and reads the rest."""

    def connection_made(self, connection: Connection) -> None:
        connection.write(self.question)
        connection.half_close()
        connection.write(b"too late")


def half_close_scenario(network: SimulatedNetwork) -> None:
    """We send FIN after our last byte, and still receive the server's last byte, however slow each side is."""
    network.send_buffer_bytes = network.random.choice((100, 65_536))
    server = network.peer_server(("192.0.2.80", 80), lambda peer, data: peer.send(data.upper()))
    question = network.random.randbytes(network.random.randrange(1, 20_000))
    loop = network.reactor()
    limits = Limits(high_water_bytes=1 << 20, receive_bytes=1000)
    client = SaysAll(question)
    connect_tcp(loop, ("192.0.2.80", 80), client, client.over.append, timeout_s=5, limits=limits)
    with network.callbacks.of(Ask):
        network.run(loop)
    [peer] = server.clients
    assert bytes(peer.received) == question
    assert peer.eof, "no FIN came after it"
    assert client.over == [], "the other direction is open still"
    peer.send(b" and more")
    peer.finish()
    network.run(loop)
    assert bytes(client.answer) == question.upper() + b" and more"
    assert client.over == [None]


@pytest.mark.parametrize("faults", [HARMLESS, INTERRUPTS], ids=["harmless", "interrupts"])
def test_after_our_half_close_both_sides_get_everything(faults: dict[str, float]) -> None:
    """HALF_CLOSED: "reading; all that is pending, and our FIN, go"."""
    assert simulate(half_close_scenario, seeds=SEEDS, faults=faults).injected.keys() == faults.keys()


SIGNALS = {"step.signal": 0.1, "select.spurious": 0.1}


def signal_scenario(network: SimulatedNetwork) -> None:
    """Raise a signal at any system call of the loop: its handler must run after the last one."""
    network.signals.at_random = (USR1,)
    seen: list[int] = []
    loop = network.reactor()
    loop.add_signal_handler(USR1, lambda: seen.append(network.signals.raised[USR1]))
    for delay_s in (1, 2, 3):
        network.call_later(delay_s, lambda: network.signals.raise_signal(USR1))
    network.run(loop)
    assert seen[-1] == network.signals.raised[USR1]


def test_signal_at_any_system_call_reaches_its_handler() -> None:
    simulate(signal_scenario, seeds=SEEDS, faults=SIGNALS)


def test_exhausted_descriptors_are_all_given_back() -> None:
    """socket(2) fails while a service starts: nothing is left open."""

    def start(network: SimulatedNetwork) -> None:
        network.plan("socket", "EMFILE")
        with pytest.raises(OSError, match="Too many open files"):
            listen_tcp(network.reactor(), ADDRESS, StreamProtocol)

    simulate(start, seeds=1, faults={})


def test_address_families_stay_separate() -> None:
    """An IPv6 listener doesn't accept IPv4 clients (IPV6_V6ONLY)."""
    network = SimulatedNetwork()
    loop = network.reactor()
    listen_tcp(loop, ("::", 7, 0, 0), StreamProtocol)
    peer = network.peer(ADDRESS)
    network.run(loop)
    assert peer.lost
    assert peer.socket.family == socket.AF_INET
    loop.close()
