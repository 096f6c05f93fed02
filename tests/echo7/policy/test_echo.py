"""The two policies: what is done with a byte, and with a datagram."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7.policy.echo import DatagramEcho, StreamEcho
from echo7.policy.guard import Guard
from reactor import Connection, Datagram, Reactor
from tests.support.clients import drain, receive_exactly, tcp_pair, whole_dribbled_trailing
from tests.support.faults import Faults, FlakySocket, adopt_socket
from tests.support.loops import turn_idle, turn_until

OWN_PORT = 7007
hosts = st.sampled_from(["127.0.0.1", "192.0.2.1", "224.0.0.1", "255.255.255.255", "::1", "ff02::1", "::"])
source_ports = st.sampled_from([0, 7, 53, OWN_PORT, 40_000, 65_535])
paths = st.sampled_from([b"", b"\1\0\0\0\x7f\0\0\1\x7f\0\0\1", b"\1\0\0\0\x7f\0\0\1\xe0\0\0\1"])


class FakeEndpoint:
    """Writes down what is sent and what is dropped."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Any, bytes]] = []
        self.dropped: list[str] = []

    def send(self, data: bytes, destination: Any, path: bytes = b"") -> bool:
        self.sent.append((data, destination, path))
        return True

    def drop(self, reason: str, peer: Any = None) -> None:
        self.dropped.append(reason)


class Told:
    """What the server is told about its connections and endpoints."""

    def __init__(self) -> None:
        self.made: list[Connection] = []
        self.lost: list[tuple[Any, Exception | None]] = []

    def connection_made(self, connection: Connection) -> None:
        self.made.append(connection)

    def something_lost(self, what: Any, error: Exception | None) -> None:
        self.lost.append((what, error))


@given(st.binary(max_size=64), hosts, source_ports, paths)
def test_a_datagram_gets_one_answer_with_its_data_or_is_counted_once(
    data: bytes, host: str, port: int, path: bytes
) -> None:
    """RFC 862: "When a datagram is received, the data from it is sent back in an answering datagram"."""
    guard, endpoint = Guard([OWN_PORT]), FakeEndpoint()
    source = (host, port)
    DatagramEcho(guard, Told().something_lost).datagram_received(cast(Datagram, endpoint), data, source, path)
    reason = guard.refusal(source, path)
    assert endpoint.dropped == ([] if reason is None else [reason])
    assert endpoint.sent == ([(data, source, path)] if reason is None else [])


def test_the_answer_goes_back_by_the_path_on_which_the_request_came() -> None:
    """RFC 1122 §4.1.3.5: the answer comes from the address that was asked; the path says which."""
    endpoint = FakeEndpoint()
    path = bytes(4) + b"\x7f\0\0\5" * 2
    echo = DatagramEcho(Guard(), Told().something_lost)
    echo.datagram_received(cast(Datagram, endpoint), b"", ("127.0.0.1", 40_000), path)
    assert endpoint.sent == [(b"", ("127.0.0.1", 40_000), path)]


def test_the_server_is_told_of_a_lost_endpoint_and_why() -> None:
    """Promise 16: a broken socket is noticed by whoever has to end the service."""
    told, endpoint, error = Told(), cast(Datagram, FakeEndpoint()), OSError("broken")
    DatagramEcho(Guard(), told.something_lost).endpoint_lost(endpoint, error)
    assert told.lost == [(endpoint, error)]


@pytest.mark.parametrize("pieces", list(whole_dribbled_trailing(b"a\0\xff\r\n and more")))
def test_what_arrives_is_written_however_it_is_cut(pieces: list[bytes]) -> None:
    """RFC 862: "any data received is sent back". Nothing is added, changed, or sent unasked."""
    told = Told()
    client, ours = tcp_pair()
    with Reactor() as reactor:
        Connection(reactor, ours, StreamEcho(told.connection_made, told.something_lost)).open()
        turn_idle(reactor)
        assert drain(client) == b"", "an echo service has nothing to say by itself"
        for piece in pieces:
            client.sendall(piece)
            turn_until(reactor, lambda: told.made[0].bytes_sent >= told.made[0].bytes_received > 0)
        turn_until(reactor, lambda: told.made[0].bytes_sent == len(b"".join(pieces)))
        assert receive_exactly(client, len(b"".join(pieces))) == b"".join(pieces)
        client.close()
        turn_until(reactor, lambda: told.lost)
    assert told.lost == [(told.made[0], None)]


def test_one_echo_object_serves_many_connections_and_mixes_nothing_up() -> None:
    """`StreamEcho` holds no state of a connection: "One object serves all connections of a server"."""
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
