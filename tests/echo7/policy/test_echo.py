"""What happens to a byte, and to a datagram, over both carriers."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7.policy.access import Access
from echo7.policy.echo import DatagramEcho, StreamEcho
from echo7.policy.guard import Guard
from echo7.policy.rate import Rate, SourceBuckets
from echo7.policy.sources import DatagramGate
from reactor import Connection, Datagram, Reactor
from reactor.fastpath.batch import Endpoint
from reactor.limits import DATAGRAMS_PER_TURN
from tests.echo7.policy.carriers import LINUX, Arrival, deciding, one_by_one, refusal, slots_with
from tests.support.clients import drain, receive_exactly, tcp_pair, whole_dribbled_trailing
from tests.support.faults import Faults, FlakySocket, adopt_socket
from tests.support.loops import ManualClock, turn_idle, turn_until


class Told:
    """Records what the echoes report to the server."""

    def __init__(self) -> None:
        self.made: list[Connection] = []
        self.lost: list[tuple[Any, Exception | None]] = []

    def connection_made(self, connection: Connection) -> None:
        self.made.append(connection)

    def something_lost(self, what: Any, error: Exception | None) -> None:
        self.lost.append((what, error))


@pytest.mark.parametrize("pieces", list(whole_dribbled_trailing(b"a\0\xff\r\n and more")))
def test_stream_is_written_back_for_any_chunking(pieces: list[bytes]) -> None:
    """RFC 862: "any data received is sent back". Nothing is added, changed, or sent unasked."""
    told = Told()
    client, ours = tcp_pair()
    with Reactor() as reactor:
        Connection(reactor, ours, StreamEcho(told.connection_made, told.something_lost)).open()
        turn_idle(reactor)
        assert drain(client) == b"", "an echo service sends nothing unasked"
        for piece in pieces:
            client.sendall(piece)
            turn_until(reactor, lambda: told.made[0].bytes_sent >= told.made[0].bytes_received > 0)
        turn_until(reactor, lambda: told.made[0].bytes_sent == len(b"".join(pieces)))
        assert receive_exactly(client, len(b"".join(pieces))) == b"".join(pieces)
        client.close()
        turn_until(reactor, lambda: told.lost)
    assert told.lost == [(told.made[0], None)]


def test_one_echo_object_serves_many_connections_without_mixing_them() -> None:
    """`StreamEcho` holds no state of a connection: "One object serves all connections of a listener"."""
    told = Told()
    echo = StreamEcho(told.connection_made, told.something_lost)
    pairs = [tcp_pair() for _ in range(5)]
    with Reactor() as reactor:
        for _, ours in pairs:
            Connection(reactor, ours, echo).open()
        for number, (client, _) in enumerate(pairs):
            client.sendall(bytes([number]) * (number + 1))
        turn_until(reactor, lambda: sum(connection.bytes_sent for connection in told.made) == 15)
        answers = [drain(client) for client, _ in pairs]
        for client, _ in pairs:
            client.close()
        turn_until(reactor, lambda: len(told.lost) == 5)
    assert answers == [bytes([number]) * (number + 1) for number in range(5)]
    assert {id(connection) for connection in told.made} == {id(connection) for connection, _ in told.lost}


@given(st.lists(st.integers(1, 7), max_size=12), st.binary(min_size=1, max_size=200))
def test_short_writes_change_nothing(limits: list[int], data: bytes) -> None:
    """Promise 1: "Every byte comes back, in order, unchanged, for any chunking; also under short writes"."""
    told, faults = Told(), Faults()
    faults.add("send", *limits)
    client, plain = tcp_pair()
    ours: FlakySocket = adopt_socket(plain, faults)
    ours.setblocking(False)
    with Reactor() as reactor, client:
        Connection(reactor, ours, StreamEcho(told.connection_made, told.something_lost)).open()
        client.sendall(data)
        turn_until(reactor, lambda: told.made[0].bytes_sent == len(data))
        assert receive_exactly(client, len(data)) == data


# ---------------------------------------------------------------- UDP

OWN_PORT = 7007
HERE_V4, HERE_V6 = bytes([10, 0, 0, 1]), bytes([0xFD, *bytes(14), 1])
hosts_v4 = st.sampled_from(
    ["127.0.0.1", "10.0.0.1", "10.0.0.127", "10.0.0.128", "10.0.0.129", "224.0.0.1", "255.255.255.255"]
)
hosts_v6 = st.sampled_from(["::1", "::2", "2001:db8::1", "fd00::1", "fd00::2", "ff02::1", "::", "::ffff:10.0.0.128"])
source_ports = st.sampled_from([0, 7, 53, OWN_PORT, 40_000, 40_001, 65_535])
arrivals_v4 = st.tuples(
    st.tuples(hosts_v4, source_ports),
    st.sampled_from([HERE_V4, bytes(4), b"\xe0\0\0\1"]).map(
        lambda answering: bytes([2, 0, 0, 0]) + answering + HERE_V4
    ),
)
arrivals_v6 = st.tuples(
    st.tuples(hosts_v6, source_ports, st.just(0), st.just(0)),
    st.sampled_from([HERE_V6, b"\xff\2" + HERE_V6[2:]]).map(lambda asked: asked + bytes([2, 0, 0, 0])),
)
all_limits = st.tuples(
    st.builds(Rate, st.just(1.0), st.integers(1, 9)), st.builds(Rate, st.just(1.0), st.integers(1, 99)), st.booleans()
)


def gate_with(limits: tuple[Rate, Rate, bool], clock: ManualClock) -> DatagramGate:
    rate, total, spares_loopback = limits
    return DatagramGate(
        clock,
        access=Access(deny=["10.0.0.128/25", "2001:db8::/48"]),
        buckets=SourceBuckets(rate),
        total=SourceBuckets(total, 1),
        spares_loopback=spares_loopback,
    )


class FakeEndpoint:
    """Records what is sent and what is dropped."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Any, bytes]] = []
        self.dropped: list[str] = []

    def send(self, data: bytes, destination: Any, path: bytes = b"") -> bool:
        self.sent.append((data, destination, path))
        return True

    def drop(self, reason: str, peer: Any = None) -> None:
        self.dropped.append(reason)


@given(st.binary(max_size=64), arrivals_v4 | arrivals_v6)
def test_datagram_gets_one_answer_with_its_data_or_is_counted_once(data: bytes, arrival: Arrival) -> None:
    """RFC 862: "When a datagram is received, the data from it is sent back in an answering datagram".

    RFC 1122 §4.1.3.5: the answer comes from the address that was asked; the path says which.
    """
    guard, endpoint = Guard([OWN_PORT]), FakeEndpoint()
    DatagramEcho(guard, Told().something_lost).datagram_received(cast(Datagram, endpoint), data, *arrival)
    reason = refusal(guard, *arrival)
    assert endpoint.dropped == ([] if reason is None else [reason])
    assert endpoint.sent == ([(data, *arrival)] if reason is None else [])


@LINUX
@given(st.sampled_from([arrivals_v4, arrivals_v6]), st.none() | all_limits, st.booleans(), st.data())
def test_batch_gets_the_decisions_of_its_datagrams_one_by_one(
    arrivals: st.SearchStrategy[Arrival], limits: Any, paths: bool, data: st.DataObject
) -> None:
    """The guard and the limits decide together. A datagram that the guard refuses takes no token."""
    clock = ManualClock()
    batched, single = (
        deciding(DatagramEcho(Guard({7}), Told().something_lost, limits and gate_with(limits, clock))) for _ in range(2)
    )
    for _ in range(data.draw(st.integers(1, 3))):
        clock.advance(1.0)
        batch = data.draw(st.lists(arrivals, min_size=1, max_size=DATAGRAMS_PER_TURN))
        batch = [(source, path if paths else b"") for source, path in batch]
        assert batched(slots_with(batch), len(batch)) == one_by_one(single, batch)


@pytest.mark.parametrize("carrier", ["single", pytest.param("slots", marks=LINUX)])
def test_datagram_that_the_guard_refuses_takes_no_token_from_its_source(carrier: str) -> None:
    """Each reason is at the place of its datagram."""
    decide = deciding(
        DatagramEcho(Guard({7}), Told().something_lost, gate_with((Rate(1, 2), Rate(1, 9), False), ManualClock()))
    )
    batch: list[Arrival] = [(("10.0.0.1", port), b"") for port in (7, 40_000, 7, 40_001, 40_002)]
    found = one_by_one(decide, batch) if carrier == "single" else decide(slots_with(batch), len(batch))
    assert found == {0: "source_port_own", 2: "source_port_own", 4: "rate_source"}


def test_lost_endpoint_is_reported_with_its_error_and_drops_need_no_callback() -> None:
    """Promise 16: the server notices a broken socket."""
    told, endpoint, error = Told(), cast(Endpoint, FakeEndpoint()), OSError("broken")
    echo = DatagramEcho(Guard(), told.something_lost)
    echo.dropped(endpoint, "reason", None, 3)
    echo.endpoint_lost(endpoint, error)
    assert told.lost == [(endpoint, error)]
