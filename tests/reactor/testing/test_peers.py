"""Peers: clients and servers outside, fast, slow, resetting or silent."""

from __future__ import annotations

import errno
import random
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactor import StreamProtocol, connect_tcp, listen_tcp
from reactor.testing import Peer, SimulatedNetwork, pieces
from reactor.testing.kernel.stream import SYN_RETRY_S
from tests.reactor.testing.programs import ELSEWHERE, HERE, PORT, Echo, answered, go, listening, pair, udp
from tests.support.basics import told


def served(network: SimulatedNetwork) -> tuple[Peer, Echo]:
    """A peer of an echo server on a real Reactor, in a world without faults."""
    reactor, protocol = network.reactor(), Echo()
    listen_tcp(reactor, (HERE, PORT), lambda: protocol)
    peer = network.peer((HERE, PORT))
    network.run(reactor)
    return peer, protocol


@given(data=st.binary(max_size=2000), read_bytes=st.integers(1, 300), write_bytes=st.integers(1, 300))
def test_peer_gets_its_bytes_back_for_any_piece_size(data: bytes, read_bytes: int, write_bytes: int) -> None:
    network = SimulatedNetwork()
    peer, protocol = served(network)
    peer.read_bytes, peer.write_bytes = read_bytes, write_bytes
    for piece in pieces(random.Random(len(data)), data):
        peer.send(piece)
    peer.finish()
    network.run(network.reactors[0])
    assert peer.received == peer.sent == data
    assert (peer.eof, peer.finished, peer.lost, peer.over) == (True, True, False, True)
    assert protocol.lost == [None]


@given(data=st.binary(max_size=5000), seed=st.integers())
def test_pieces_lose_no_byte_and_are_never_empty(data: bytes, seed: int) -> None:
    found = pieces(random.Random(seed), data)
    assert b"".join(found) == data
    assert all(found)


def test_empty_sends_do_not_stop_a_peer() -> None:
    network = SimulatedNetwork()
    peer, _ = served(network)
    for data in (b"", b"", b"", b"x", b"", b""):
        peer.send(data, urgent=not data)
    peer.finish()
    network.run(network.reactors[0])
    assert (bytes(peer.received), peer.eof) == (b"x", True)


def test_paused_peer_reads_nothing_until_it_is_resumed() -> None:
    network = SimulatedNetwork(send_buffer_bytes=10, receive_buffer_bytes=10)
    sock, peer = pair(network)
    peer.pause()
    sent = 0
    while isinstance(count := told(sock.send, bytes(100)), int):
        sent += count
        go(network)
    assert (sent, bytes(peer.received)) == (20, b"")
    peer.resume()
    go(network)
    assert len(peer.received) == 20


def test_urgent_send_marks_the_last_byte() -> None:
    """It is sent as urgent after all bytes before it, however slowly they go."""
    network = SimulatedNetwork(send_buffer_bytes=4, receive_buffer_bytes=4)
    sock, peer = pair(network)
    peer.write_bytes = 3
    peer.send(b"abcdefgX", urgent=True)
    received = b""
    for _ in range(20):
        go(network)
        data = told(sock.recv, 100)
        received += data if isinstance(data, bytes) else b""
    assert received == b"abcdefg"
    assert peer.sent == b"abcdefgX"


def test_finish_now_discards_unsent_bytes_and_sends_fin() -> None:
    network = SimulatedNetwork()
    sock, peer = pair(network)
    peer.write_bytes = 2
    peer.send(b"abcdef")
    peer.move()
    peer.finish_now()
    assert peer.finished
    assert sock.recv(10) == b"ab"
    assert sock.recv(10) == b""


def test_finish_now_during_the_handshake_takes_effect_after_it() -> None:
    network = SimulatedNetwork(latency_s=0.1)
    listener = listening(network)
    peer = network.peer((HERE, PORT))
    peer.send(b"never mind")
    peer.finish_now()
    assert not peer.finished
    go(network, 1.0)
    assert answered(listener).recv(10) == b""


def test_half_closed_peer_goes_on_sending_and_closes_when_done() -> None:
    network = SimulatedNetwork()
    sock, peer = pair(network)
    sock.shutdown(socket.SHUT_WR)
    go(network)
    assert (peer.eof, peer.over) == (True, False)
    peer.send(b"still here")
    peer.finish()
    go(network)
    assert sock.recv(100) == b"still here"
    assert sock.recv(100) == b""
    assert (peer.over, peer.lost) == (True, False)


def test_peer_that_closes_with_bytes_unread_resets() -> None:
    network = SimulatedNetwork()
    sock, peer = pair(network)
    peer.pause()
    sock.send(b"unread")
    peer.close()
    assert told(sock.recv, 1) == "ECONNRESET"
    assert (peer.over, peer.lost) == (True, True)
    peer.reset()
    assert not peer.move()


def test_refused_peer_has_the_error() -> None:
    network = SimulatedNetwork()
    peer = network.peer((HERE, 9))
    peer.send(b"x")
    go(network)
    assert peer.error is not None
    assert peer.error.errno == errno.ECONNREFUSED
    assert (peer.over, peer.lost, bytes(peer.sent)) == (True, True, b"")


def test_reset_peer_is_lost_and_keeps_received_bytes() -> None:
    network = SimulatedNetwork()
    sock, peer = pair(network)
    sock.send(b"some")
    go(network)
    peer.send(b"unread")
    go(network)
    sock.close()
    peer.send(b"more")
    go(network)
    assert (bytes(peer.received), peer.lost, peer.over, peer.eof) == (b"some", True, True, False)


@pytest.mark.parametrize("moment_s", [0.0, 0.5, 1.0])
def test_peer_may_vanish_at_any_moment(moment_s: float) -> None:
    """No FIN, no RST and no answer comes from it: before, during and after the handshake."""
    network = SimulatedNetwork(latency_s=0.5)
    listener = listening(network)
    peer = network.peer((HERE, PORT))
    peer.send(b"never")
    if moment_s:
        network.clock.advance(moment_s)
        network.wire.run_due()  # the connection is established, but the peer hasn't moved
    peer.vanish()
    peer.vanish()
    go(network, 10.0)
    if moment_s:
        sock = answered(listener)
        assert told(sock.recv, 1) == "EAGAIN"
        assert sock.send(b"x") == 1
        go(network, 1000.0)
        assert told(sock.recv, 1) == "ETIMEDOUT"
    else:
        assert told(listener.accept) == "EAGAIN"
    assert (peer.lost, peer.over, bytes(peer.received)) == (True, True, b"")


def test_peer_server_accepts_the_reactors_clients() -> None:
    network = SimulatedNetwork(latency_s=0.1)
    reactor, protocol = network.reactor(), Echo()
    server = network.peer_server(("198.51.100.7", 80))
    assert server.address == ("198.51.100.7", 80)
    failures: list[OSError] = []
    connect_tcp(reactor, server.address, protocol, failures.append)
    network.run(reactor)
    [client] = server.clients
    assert client.socket.getpeername()[0] == HERE
    client.send(b"question")
    client.finish()
    network.run(reactor)
    assert (bytes(client.received), bytes(protocol.received), protocol.lost) == (b"question", b"question", [None])
    assert not failures


def test_closed_peer_server_refuses_clients() -> None:
    network = SimulatedNetwork()
    reactor = network.reactor()
    server = network.peer_server((ELSEWHERE, 80))
    network.udp_peer()
    assert not server.over
    server.close()
    assert server.over
    failures: list[OSError] = []
    connect_tcp(reactor, (ELSEWHERE, 80), StreamProtocol(), failures.append)
    network.run(reactor)
    assert [error.errno for error in failures] == [errno.ECONNREFUSED]


def test_connect_in_a_lasting_partition_times_out() -> None:
    network = SimulatedNetwork()
    reactor = network.reactor()
    network.peer_server((ELSEWHERE, 80))
    network.partition(ELSEWHERE)
    failures: list[tuple[float, int | None]] = []
    connect_tcp(reactor, (ELSEWHERE, 80), StreamProtocol(), lambda e: failures.append((reactor.now(), e.errno)))
    network.run(reactor)
    assert [code for _, code in failures] == [errno.ETIMEDOUT]
    assert failures[0][0] == pytest.approx(1010.0, abs=0.002)


def test_datagram_peer_sends_receives_pauses_and_closes() -> None:
    network = SimulatedNetwork()
    sock, peer = udp(network), network.udp_peer(source="192.0.2.9", port=4000)
    assert peer.address == ("192.0.2.9", 4000)
    peer.send(b"one", sock.getsockname())
    assert sock.recv(10) == b"one"
    peer.paused = True
    sock.sendto(b"two", peer.address)
    go(network)
    assert not peer.received
    peer.paused = False
    go(network)
    assert peer.received == [(b"two", sock.getsockname())]
    assert not peer.over
    peer.close()
    assert peer.over
    sock.sendto(b"three", ("192.0.2.9", 4000))
    go(network)
    assert len(peer.received) == 1


def test_peer_connects_from_its_source() -> None:
    network = SimulatedNetwork()
    listener = listening(network)
    for source in ("", "198.51.100.4"):
        peer = network.peer((HERE, PORT), source=source)
        _, address = listener.accept()
        assert address == peer.socket.getsockname()
        assert address[0] == (source or ELSEWHERE)


def test_ended_peers_are_forgotten() -> None:
    network = SimulatedNetwork()
    listener = listening(network, backlog=100)
    peers = [network.peer((HERE, PORT)) for _ in range(10)]
    for peer in peers[:9]:
        peer.reset()
    go(network, SYN_RETRY_S)
    assert network.peers == peers[9:]
    listener.close()


def test_closing_peer_with_nothing_unread_sends_fin() -> None:
    network = SimulatedNetwork()
    sock, peer = pair(network)
    peer.send(b"bye")
    go(network)
    peer.close()
    assert sock.recv(10) == b"bye"
    assert sock.recv(10) == b""
    assert (peer.over, peer.lost) == (True, False)


def test_peer_server_answers_its_clients() -> None:
    network = SimulatedNetwork()
    server = network.peer_server((ELSEWHERE, 80), lambda peer, data: peer.send(data.upper()))
    client = network.peer((ELSEWHERE, 80), source="192.0.2.9")
    client.send(b"question")
    go(network)
    assert client.received == b"QUESTION"
    client.pause()
    client.send(b"x" * 1_000_000)
    client.finish_now()
    assert client.cut_short
    assert len(server.clients) == 1
