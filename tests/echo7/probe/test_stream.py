"""A flow over TCP: frames in their places, and servers that send something else."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest

from echo7.probe import stream as stream_module
from echo7.probe.measure.words import Harm, Word
from echo7.probe.plan import NS_PER_S, Plan
from echo7.probe.prober import BUSY, CannotProbe, Prober
from echo7.probe.stream import CLOSED_BY_PEER
from reactor import Connection, StreamProtocol, listen_tcp
from reactor.limits import DEFAULT_LIMITS
from reactor.testing import SimulatedNetwork, simulate
from tests.echo7.probe.world import HERE, KEY, ProberWorld, plan


class Server(StreamProtocol):
    """An echo that may change the bytes."""

    def __init__(self, change: Callable[[Connection, bytes], object] = Connection.write) -> None:
        self.change = change
        self.connections: list[Connection] = []
        self.made: Callable[[Connection], object] = lambda connection: None
        self.received = bytearray()
        self.lost: list[Exception | None] = []

    def connection_made(self, connection: Connection) -> None:
        self.connections.append(connection)
        self.made(connection)

    def data_received(self, connection: Connection, data: bytes) -> None:
        self.received += data
        self.change(connection, data)

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        self.lost.append(error)


class World(ProberWorld):
    """With a server over TCP."""

    def __init__(self, what: Plan, server: Server | None = None, *, listening: bool = True, **options: Any) -> None:
        super().__init__(what, **options)
        self.server = server or Server()
        if listening:
            listen_tcp(self.reactor, HERE, lambda: self.server)

    def reasons(self) -> list[str]:
        return [event.reason for event in self.events]


def tcp(count: int | None = 4, interval_s: float = 1.0, timeout_s: float = 2.0, **others: Any) -> Plan:
    return plan(count, interval_s, timeout_s, tcp=True, **others)


def replies(count: int) -> list[tuple[int, Word]]:
    return [(number, Word.REPLY) for number in range(1, count + 1)]


@pytest.mark.parametrize("sizes", [(56,), (1,), (8,), (65_535,), (1, 70, 20_000)])
def test_every_frame_comes_back(sizes: tuple[int, ...]) -> None:
    world = World(tcp(6, 0.25, sizes=sizes))
    result = world.run()
    assert world.words() == replies(6)
    assert result.counts.replies == result.counts.sent == 6
    assert len(world.server.connections) == 1
    assert result.transport == "tcp"


def dribble(connection: Connection, data: bytes) -> None:
    for at in range(len(data)):
        connection.write(data[at : at + 1])


def test_frames_are_found_in_a_stream_that_is_cut_anywhere() -> None:
    world = World(tcp(5, 0, sizes=(40,)), Server(dribble))
    for _ in range(50):
        world.network.plan("recv", "short", 3)
    world.run()
    assert world.words() == replies(5)


def test_run_ends_with_fin() -> None:
    """Not with a reset, which the other end may log."""
    world = World(tcp(2))
    world.run()
    world.network.run(world.reactor)
    assert world.server.lost == [None]


def test_each_flow_has_a_connection() -> None:
    world = World(tcp(6, 0.25, flows=3))
    result = world.run()
    ports = [flow.source_port for flow in result.flows]
    assert len(set(ports)) == 3
    assert sorted(connection.socket.getpeername()[1] for connection in world.server.connections) == sorted(ports)


# ---------------------------------------------------------------- no connection


def test_closed_port_is_refused() -> None:
    """Issue: "refused, unreachable and timed out are different words"; each due probe tries again."""
    world = World(tcp(2), listening=False)
    result = world.run()
    assert world.words() == [(1, Word.REFUSED), (2, Word.REFUSED)]
    assert result.verdict == "refused"


def test_server_without_a_route_is_unreachable() -> None:
    world = World(tcp(1), listening=False)
    world.network.plan("connect", "EHOSTUNREACH")
    assert world.run().verdict == "unreachable"


def test_server_that_never_accepts_times_out() -> None:
    world = World(tcp(2, 0.5), listening=False)
    world.network.partition(HERE[0])
    result = world.run()
    assert (result.verdict, result.counts.lost) == ("timed out", 2)
    assert set(world.reasons()) == {"timed out"}


def test_probes_wait_for_the_connection_and_count_from_the_sending() -> None:
    world = World(tcp(2, 0.25), listening=False)
    world.network.partition(HERE[0], 1.0)
    listen_tcp(world.reactor, HERE, lambda: world.server)
    result = world.run()
    assert world.words() == replies(2)
    assert result.rtt is not None
    assert result.rtt.max_ns < NS_PER_S // 4


def test_probe_that_is_settled_before_the_connection_is_not_sent() -> None:
    world = World(tcp(2, 0.25, 4.0))
    world.network.partition(HERE[0], 1.0)
    world.reactor.call_later(0.5, lambda: world.prober.trouble(0, errno.EIO, b"", ""))
    world.run()
    assert world.words() == [(1, Word.LOST), (2, Word.REPLY)]


@pytest.mark.parametrize("kind", ["EMFILE", "ENOBUFS"])
def test_too_few_descriptors_are_a_loss_with_its_reason(kind: str) -> None:
    world = World(tcp(1))
    world.network.plan("socket", kind)
    assert world.run().verdict == "timed out"
    assert world.reasons() != ["timed out"]


# ---------------------------------------------------------------- bad servers


def test_lost_connection_loses_outstanding_probes_and_the_next_one_connects_again() -> None:
    """Specified: "connection lost → outstanding ones are lost, connect again at the next probe that is due"."""

    def change(connection: Connection, data: bytes) -> None:
        if len(world.server.connections) == 1:
            connection.abort()
        else:
            connection.write(data)

    world = World(tcp(3))
    world.server.change = change
    world.run()
    assert world.words() == [(1, Word.LOST), (2, Word.REPLY), (3, Word.REPLY)]
    assert world.reasons()[0].startswith("the connection was lost: ")


def test_immediate_close_is_reported_as_the_reason() -> None:
    """Issue: "Hostile servers: … immediate close"."""
    world = World(tcp(2))
    world.server.made = Connection.close
    result = world.run()
    assert world.words() == [(1, Word.LOST), (2, Word.LOST)]
    assert CLOSED_BY_PEER in world.reasons()
    assert result.verdict == "timed out"


def test_server_that_sends_fin_and_stops_reading_is_dropped() -> None:
    """Otherwise its probes would wait without end."""
    world = World(tcp(4, 0.5, 5.0, sizes=(60_000,)), send_buffer_bytes=8192, receive_buffer_bytes=8192)

    def made(connection: Connection) -> None:
        connection.pause_reading()
        world.reactor.call_later(0.25, connection.half_close)

    world.server.made = made
    world.run()
    assert world.words() == [(number, Word.LOST) for number in (1, 2, 3, 4)]
    assert set(world.reasons()) == {CLOSED_BY_PEER}
    assert len(world.server.connections) == 4


def test_endless_data_ends_the_connection_at_once() -> None:
    """Issue: "endless data … bounded memory and time, a clear verdict"."""
    world = World(tcp(2))
    world.server.made = lambda connection: connection.write(bytes(1_000_000))
    result = world.run()
    assert Word.FOREIGN in [word for _, word in world.words()]
    assert (result.counts.replies, result.verdict) == (0, "timed out")
    assert world.server.lost
    assert max(event.received_bytes for event in world.events) <= DEFAULT_LIMITS.receive_bytes


def test_garbage_is_foreign_and_ends_the_connection() -> None:
    world = World(tcp(1), Server(lambda connection, data: connection.write(b"HTTP/1.0 400 Bad Request\r\n" * 3)))
    world.run()
    assert world.words() == [(0, Word.FOREIGN), (1, Word.LOST)]
    assert world.reasons()[1] == "the bytes that came back were no echo"


def test_surplus_bytes_are_foreign() -> None:
    world = World(tcp(2), Server(lambda connection, data: connection.write(data + b"!")))
    world.run()
    assert world.words() == [(1, Word.REPLY), (0, Word.FOREIGN), (2, Word.REPLY)]


def test_wrong_bit_is_found_in_its_place() -> None:
    world = World(tcp(1), Server(lambda c, data: c.write(data[:30] + bytes([data[30] ^ 2]) + data[31:])))
    world.run()
    damage = world.events[0].damage
    assert damage is not None
    assert (damage.kind, damage.offset_bytes, damage.bits) == (Harm.CORRUPTED, 30, 2)


def test_slow_answer_is_late() -> None:
    def change(connection: Connection, data: bytes) -> None:
        world.reactor.call_later(3.0, connection.write, data)

    world = World(tcp(3, 1.0, 2.0))
    world.server.change = change
    world.run()
    assert world.words()[:3] == [(1, Word.LOST), (2, Word.LOST), (1, Word.LATE)]


def test_server_that_never_reads_is_sent_a_bounded_number() -> None:
    world = World(tcp(400, 1 / 64, 4.0, sizes=(65_000,)), send_buffer_bytes=8192, receive_buffer_bytes=8192)
    world.server.made = Connection.pause_reading
    result = world.run()
    assert result.counts.replies == 0
    assert result.skipped[BUSY] > 0
    assert result.counts.sent < 10


def test_outstanding_frames_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "MOST_WAITING", 3)
    world = World(tcp(20, 1 / 64, 4.0))
    world.server.made = Connection.pause_reading
    result = world.run()
    assert result.counts.sent == 3
    assert result.skipped[BUSY] >= 17


def test_stop_while_connecting_leaves_nothing_open() -> None:
    world = World(tcp(None), listening=False)
    world.network.partition(HERE[0])
    world.reactor.call_later(0.5, world.prober.stop)
    result = world.run()
    assert result.verdict == "undecided"
    world.reactor.close()
    assert not world.network.descriptors.open


# ---------------------------------------------------------------- source ports


def test_new_connection_uses_the_same_source_port() -> None:
    world = World(tcp(2, source_port=5000))
    world.server.change = lambda connection, data: connection.abort()
    result = world.run()
    assert len(world.server.connections) == 2
    assert result.flows[0].source_port == 5000


def test_taken_source_port_is_an_error_before_anything_is_sent() -> None:
    world = World(tcp(1, source_port=5000))
    taken = world.network.socket(socket.AF_INET, socket.SOCK_STREAM)
    taken.bind(("0.0.0.0", 5000))
    with pytest.raises(CannotProbe, match="cannot send from tcp port 5000"):
        world.prober.start()
    taken.close()


def test_stream_has_no_path_mtu() -> None:
    world = World(tcp(1))
    world.run()
    assert world.prober.flows[0].path_mtu_bytes() is None


def test_failed_connect_settles_every_held_probe() -> None:
    # the refusal comes when all three are held
    world = World(tcp(3, 1 / 16), listening=False, latency_s=0.25)
    world.run()
    assert world.words() == [(number, Word.REFUSED) for number in (1, 2, 3)]


@pytest.mark.long
def test_run_ends_and_adds_up_under_any_faults() -> None:
    """Two hundred seeds with faults at any system call."""

    def scenario(network: SimulatedNetwork) -> None:
        loop = network.reactor()
        listen_tcp(loop, HERE, Server)
        ended = 0

        def end() -> None:
            nonlocal ended
            ended += 1
            loop.stop()

        prober = Prober(
            loop, HERE, tcp(20, 0.125, 1.0, flows=2), ended=end, key=KEY,
            clock_ns=lambda: round(network.clock() * NS_PER_S),
        )  # fmt: skip
        prober.start()
        network.run(loop)
        words, total = prober.ledger.total.words, prober.ledger.total
        assert ended == 1
        assert words[Word.OUTSTANDING] == 0
        assert total.decided == total.sent
        assert not sum(total.harms.values())
        assert not words[Word.FOREIGN]

    simulate(scenario, seeds=200)
