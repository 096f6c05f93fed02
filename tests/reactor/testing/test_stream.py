"""Simulated TCP: what tests/conformance can't compare, because a real kernel takes too long."""

from __future__ import annotations

import errno
import os
import socket
from typing import cast

import pytest

from reactor.sockets.opening import RESET_ON_CLOSE
from reactor.testing import CATALOGUE, SimulatedNetwork
from reactor.testing.chance import ONE_PEER
from reactor.testing.kernel.endpoint import POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP
from reactor.testing.kernel.link import RETRANSMIT_S
from reactor.testing.kernel.stream import CONNECT_S, SYN_RETRY_S, StreamSocket
from tests.reactor.testing.programs import (
    ELSEWHERE,
    HERE,
    PORT,
    answered,
    bits,
    error_of,
    go,
    listening,
    pair,
    stream,
    udp,
)  # fmt: skip
from tests.support.basics import told

SO_LINGER = (socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


# ---------------------------------------------------------------- latency


def test_latency_delays_bytes_and_fin() -> None:
    """The opening of the window takes the latency too."""
    network = SimulatedNetwork(latency_s=0.5)
    sock, peer = pair(network)
    peer.send(b"hello")
    peer.finish()
    go(network, 0.4)
    assert told(sock.recv, 10) == "EAGAIN"
    go(network, 0.2)
    assert sock.recv(10) == b"hello"
    assert sock.recv(10) == b""


def test_latency_delays_connect() -> None:
    network = SimulatedNetwork(latency_s=0.5)
    server = network.peer_server((ELSEWHERE, 80))
    sock = stream(network)
    assert sock.connect_ex((ELSEWHERE, 80)) == errno.EINPROGRESS
    assert bits(sock) == 0
    assert told(sock.send, b"x") == "EAGAIN"
    assert told(sock.recv, 1) == "EAGAIN"
    assert sock.connect_ex((ELSEWHERE, 80)) == errno.EALREADY
    go(network, 0.5)
    assert bits(sock) == POLLOUT
    assert sock.connect_ex((ELSEWHERE, 80)) == errno.EISCONN
    assert error_of(sock) == 0
    assert len(server.clients) == 1


def test_delayed_segment_arrives_late() -> None:
    """The amount is the delay in tenths of a millisecond."""
    network = SimulatedNetwork()
    sock, peer = pair(network)
    network.plan("segment", "delay", 5000)
    peer.send(b"late")
    go(network, 0.4)
    assert told(sock.recv, 10) == "EAGAIN"
    go(network, 0.2)
    assert sock.recv(10) == b"late"
    assert network.chance.script() == "segment#1=delay:5000"


def test_delayed_segment_does_not_change_the_order() -> None:
    for delayed in range(3):
        network = SimulatedNetwork()
        sock, peer = pair(network)
        peer.write_bytes = 3
        network.plan("segment", "delay", 5000, after=delayed)
        peer.send(b"onetwo")
        peer.finish()
        go(network, 1.0)
        assert sock.recv(10) == b"onetwo"
        assert sock.recv(10) == b""


def test_bytes_on_the_wire_count_against_the_window() -> None:
    """The receiver's kernel never holds more than its buffer, however late segments are."""
    network = SimulatedNetwork(receive_buffer_bytes=4, latency_s=0.1)
    sock, peer = pair(network)
    peer.send(b"abcdefgh")
    go(network, 1.0)
    assert sock.recv(100) == b"abcd"
    assert told(sock.recv, 100) == "EAGAIN"
    go(network, 1.0)
    assert sock.recv(100) == b"efgh"


# ---------------------------------------------------------------- silence


def test_partition_holds_bytes_back_until_it_heals() -> None:
    network = SimulatedNetwork()
    sock, peer = pair(network)
    network.partition(ELSEWHERE)
    peer.send(b"question")
    peer.finish()
    assert sock.send(b"answer") == 6
    sock.shutdown(socket.SHUT_WR)
    go(network, 60.0)
    assert told(sock.recv, 10) == "EAGAIN"
    assert peer.received == b""
    network.heal(ELSEWHERE)
    go(network)
    assert sock.recv(10) == b"question"
    assert sock.recv(10) == b""
    assert (bytes(peer.received), peer.eof, peer.lost) == (b"answer", True, False)


def test_partition_with_a_duration_heals_by_itself() -> None:
    """A segment on the wire arrives when the partition ends."""
    network = SimulatedNetwork(latency_s=0.1)
    sock, peer = pair(network)
    peer.send(b"x")
    go(network)
    network.partition(ELSEWHERE, for_s=10.0)
    go(network, 9.0)
    assert told(sock.recv, 1) == "EAGAIN"
    go(network, 1.5)
    assert sock.recv(1) == b"x"


def silent_for(sock: socket.socket, network: SimulatedNetwork, for_s: float) -> bool:
    """Whether the socket becomes readable after `for_s` and no sooner, and then gives ETIMEDOUT."""
    go(network, for_s - 0.5)
    early = bits(sock) & POLLIN
    go(network, 1.0)
    return bool(not early and bits(sock) & POLLERR and told(sock.recv, 1) == "ETIMEDOUT")


@pytest.mark.parametrize(
    ("options", "patience_s"),
    [({"TCP_KEEPIDLE": 100, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}, 130.0), ({}, 7200.0 + 75 * 9)],
    ids=["set", "default"],
)
def test_keepalive_finds_a_vanished_peer(options: dict[str, int], patience_s: float) -> None:
    """It takes idle + interval × probes, from the options or tcp(7)'s defaults."""
    network = SimulatedNetwork()
    sock, peer = pair(network)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    peer.vanish()
    assert peer.lost
    assert silent_for(sock, network, patience_s)


def test_vanished_idle_peer_without_keepalive_goes_unnoticed() -> None:
    network = SimulatedNetwork()
    sock, peer = pair(network)
    peer.vanish()
    go(network, 1e6)
    assert told(sock.recv, 1) == "EAGAIN"


@pytest.mark.parametrize("when", ["before", "after"])
def test_unacknowledged_bytes_time_out_after_the_retransmissions(when: str) -> None:
    """It doesn't matter whether they were written before the silence or in it."""
    network = SimulatedNetwork(receive_buffer_bytes=1)
    sock, peer = pair(network)
    peer.pause()
    if when == "before":
        sock.send(b"waits")
    peer.vanish()
    if when == "after":
        sock.send(b"waits")
    assert silent_for(sock, network, RETRANSMIT_S)
    assert told(sock.send, b"x") == "EPIPE"


def test_silence_that_ends_in_time_ends_no_connection() -> None:
    """Each silence counts by itself: a second one starts from zero."""
    network = SimulatedNetwork()
    sock, peer = pair(network)
    network.partition(ELSEWHERE, for_s=900.0)
    sock.send(b"one")
    go(network, 901.0)
    network.partition(ELSEWHERE)
    sock.send(b"two")
    go(network, 900.0)
    assert not bits(sock) & POLLERR
    network.heal(ELSEWHERE)
    go(network)
    assert peer.received == b"onetwo"


def test_long_partition_ends_the_connection_for_good() -> None:
    network = SimulatedNetwork()
    sock, peer = pair(network)
    network.partition(ELSEWHERE)
    sock.send(b"never")
    sock.shutdown(socket.SHUT_WR)
    assert silent_for(sock, network, RETRANSMIT_S)
    network.heal(ELSEWHERE)
    go(network)
    assert (bytes(peer.received), peer.eof, peer.lost) == (b"", False, True)


def test_reset_in_a_partition_arrives_after_the_heal() -> None:
    """RST waits for the heal like every segment. A FIN that the reset destroyed never arrives instead."""
    network = SimulatedNetwork()
    sock, peer = pair(network)
    network.partition(ELSEWHERE)
    peer.send(b"lost")
    peer.finish()
    go(network)
    peer.reset()
    go(network, 1.0)
    assert told(sock.recv, 10) == "EAGAIN"
    network.heal(ELSEWHERE)
    go(network)
    assert told(sock.recv, 10) == "ECONNRESET"


def test_reset_arrives_after_what_is_on_the_wire() -> None:
    """Segments sent before RST arrive before it; unsent bytes never arrive."""
    network = SimulatedNetwork(latency_s=1.0, receive_buffer_bytes=4)
    sock, peer = pair(network)
    peer.send(b"sentlost")
    go(network)
    peer.reset()
    assert told(sock.recv, 10) == "EAGAIN"
    go(network, 5.0)
    assert sock.recv(10) == b"sent"
    assert told(sock.recv, 10) == "ECONNRESET"


@pytest.mark.parametrize("call", ["recv", "send"])
def test_unsimulated_flags_raise(call: str) -> None:
    sock, _peer = pair(SimulatedNetwork())
    with pytest.raises(NotImplementedError, match="only MSG_OOB"):
        sock.recv(1, socket.MSG_PEEK) if call == "recv" else sock.send(b"x", socket.MSG_PEEK)


def test_buffer_size_set_while_connected_takes_effect() -> None:
    sock, _peer = pair(SimulatedNetwork(receive_buffer_bytes=1))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5)
    assert sock.send(b"x" * 20) == 10


def test_recv_of_no_bytes_never_blocks() -> None:
    sock, _peer = pair(SimulatedNetwork())
    assert sock.recv(0) == b""


def test_only_the_first_reset_counts() -> None:
    network = SimulatedNetwork()
    sock, peer = pair(network)
    peer.reset()
    assert told(sock.send, b"x") == "ECONNRESET"
    sock.setsockopt(*SO_LINGER)
    sock.close()
    assert peer.link is not None
    assert peer.link.broken_by is peer.socket


# ---------------------------------------------------------------- connecting


def test_client_at_a_full_queue_tries_again() -> None:
    """A SYN that finds no room is dropped and sent again; no client is refused."""
    network = SimulatedNetwork()
    listener = listening(network, backlog=0)
    first, second = (network.peer((HERE, PORT)) for _ in range(2))
    assert second.socket.poll() == 0
    answered(listener).close()
    go(network, SYN_RETRY_S - 0.1)
    assert bits(listener) == 0
    go(network, 0.2)
    assert bits(listener) == POLLIN
    assert [first.lost, second.lost] == [False, False]


def test_client_at_a_closed_queue_is_refused_when_it_tries_again() -> None:
    network = SimulatedNetwork()
    listener = listening(network, backlog=0)
    peers = [network.peer((HERE, PORT)) for _ in range(2)]
    listener.close()
    go(network, 2.0)
    errors = [peer.error.errno for peer in peers if peer.error is not None]
    assert errors == [errno.ECONNRESET, errno.ECONNREFUSED]


def test_connect_to_an_address_without_a_host_times_out() -> None:
    network = SimulatedNetwork()
    sock = stream(network)
    assert sock.connect_ex(("203.0.113.9", 80)) == errno.EINPROGRESS
    go(network, CONNECT_S - 0.5)
    assert bits(sock) == 0
    go(network, 1.0)
    assert bits(sock) & POLLERR
    assert error_of(sock) == errno.ETIMEDOUT


def test_connect_in_a_partition_goes_on_after_the_heal() -> None:
    network = SimulatedNetwork()
    network.peer_server((ELSEWHERE, 80))
    network.partition(ELSEWHERE, for_s=20.0)
    sock = stream(network)
    sock.connect_ex((ELSEWHERE, 80))
    go(network, 19.0)
    assert bits(sock) == 0
    go(network, 2.0)
    assert bits(sock) == POLLOUT
    go(network, CONNECT_S)
    assert bits(sock) == POLLOUT, "the connect timeout fired"


def test_socket_closed_while_connecting_is_never_connected() -> None:
    network = SimulatedNetwork(latency_s=0.1)
    server = network.peer_server((ELSEWHERE, 80))
    sock = stream(network)
    sock.connect_ex((ELSEWHERE, 80))
    sock.close()
    go(network, 1.0)
    assert not server.clients
    network.check()


@pytest.mark.parametrize("kind", CATALOGUE["connect"])
def test_connect_fault_is_returned_or_left_in_so_error(kind: str) -> None:
    """An error of the kernel is returned at once; an error of the network is in SO_ERROR later."""
    network = SimulatedNetwork(script=f"connect#1={kind}")
    network.peer_server((ELSEWHERE, 80))
    sock = stream(network)
    code = sock.connect_ex((ELSEWHERE, 80))
    if kind in ("ECONNREFUSED", "ETIMEDOUT"):
        assert code == errno.EINPROGRESS
        go(network)
        assert bits(sock) == POLLIN | POLLOUT | POLLERR | POLLHUP | POLLRDHUP
        code = error_of(sock)
    assert errno.errorcode[code] == kind
    assert network.chance.counts() == {f"connect.{kind}": 1}


def test_failed_connect_is_reported_by_the_first_call() -> None:
    """recv and send report it once, as SO_ERROR does."""
    for call, after in ((lambda sock: told(sock.recv, 1), b""), (lambda sock: told(sock.send, b"x"), "EPIPE")):
        network = SimulatedNetwork()
        network.udp_peer()  # so that the host exists
        sock = stream(network)
        sock.connect_ex((ELSEWHERE, 80))
        assert call(sock) == "ECONNREFUSED"  # type: ignore[no-untyped-call]
        assert call(sock) == after  # type: ignore[no-untyped-call]


def test_bound_socket_connects_from_its_address() -> None:
    network = SimulatedNetwork()
    server = network.peer_server((ELSEWHERE, 80))
    sock = stream(network)
    sock.bind(("10.0.0.2", 4000))
    sock.connect_ex((ELSEWHERE, 80))
    go(network)
    assert server.clients[0].socket.getpeername() == ("10.0.0.2", 4000)


def test_listen_without_bind_takes_the_wildcard_and_a_free_port() -> None:
    network = SimulatedNetwork()
    sock = stream(network)
    sock.listen()
    host, port = sock.getsockname()
    assert host == "0.0.0.0"
    network.peer(("10.0.0.2", port))
    assert bits(sock) == POLLIN


# ---------------------------------------------------------------- accept


@pytest.mark.parametrize("kind", [kind for kind in ONE_PEER if kind in CATALOGUE["accept"]])
def test_error_of_one_client_costs_only_that_client(kind: str) -> None:
    network = SimulatedNetwork(script=f"accept#1={kind}")
    listener = listening(network)
    first, second = (network.peer((HERE, PORT)) for _ in range(2))
    with pytest.raises(OSError, match=os.strerror(getattr(errno, kind))):  # two of them share a number on Linux
        listener.accept()
    assert answered(listener).getpeername() == second.socket.getsockname()
    go(network)
    assert (first.lost, second.lost) == (True, False)


def test_client_fault_without_clients_has_no_effect() -> None:
    network = SimulatedNetwork(script="accept#1=ECONNABORTED")
    assert told(listening(network).accept) == "EAGAIN"
    assert not network.chance.injected


@pytest.mark.parametrize("kind", ["EAGAIN", "EINTR", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"])
def test_shortage_costs_no_client(kind: str) -> None:
    network = SimulatedNetwork(script=f"accept#1={kind}")
    listener = listening(network)
    peer = network.peer((HERE, PORT))
    assert told(listener.accept) == kind
    answered(listener)
    assert not peer.lost


def test_full_descriptor_table_costs_no_client() -> None:
    network = SimulatedNetwork(descriptor_limit=5)
    listener, spare = listening(network), stream(network)
    network.peer((HERE, PORT))
    assert told(listener.accept) == "EMFILE"
    spare.close()
    answered(listener)


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize("call", ["recv", "send"])
@pytest.mark.parametrize("kind", ["EAGAIN", "EINTR", "ENOBUFS", "ENOMEM"])
def test_transient_error_costs_no_byte(call: str, kind: str) -> None:
    network = SimulatedNetwork(script=f"{call}#1={kind}")
    sock, peer = pair(network)
    peer.send(b"abc")
    go(network)
    if call == "recv":
        assert told(sock.recv, 10) == kind
        assert sock.recv(10) == b"abc"
    else:
        assert told(sock.send, b"xyz") == kind
        assert sock.send(b"xyz") == 3
        go(network)
        assert peer.received == b"xyz"
    assert not peer.lost


@pytest.mark.parametrize("name", ["recv.ECONNRESET", "recv.ETIMEDOUT", "send.ECONNRESET", "send.EPIPE"])
def test_fatal_error_ends_the_connection_for_both(name: str) -> None:
    call, _, kind = name.partition(".")
    network = SimulatedNetwork(script=f"{call}#1={kind}")
    sock, peer = pair(network)
    peer.send(b"abc")
    go(network)
    assert told(*((sock.recv, 10) if call == "recv" else (sock.send, b"x"))) == kind
    assert sock.recv(10) == b""
    assert told(sock.send, b"x") == "EPIPE"
    go(network)
    assert peer.lost
    assert peer.link is not None
    assert peer.link.fate == f"fault {kind}"


def test_short_moves_some_bytes_but_not_all() -> None:
    """`short:n` moves n bytes, but fewer than possible; a single byte is moved whole."""
    for amount, expected in ((1, b"a"), (2, b"ab"), (99, b"ab")):
        network = SimulatedNetwork(script=f"recv#1=short:{amount} send#1=short:{amount}")
        sock, peer = pair(network)
        peer.send(b"abc")
        go(network)
        assert sock.recv(10) == expected
        assert sock.send(b"xyz") == len(expected)
        assert len(network.chance.injected) == 2
    network = SimulatedNetwork(script="recv#1=short send#1=short recv#2=short")
    sock, peer = pair(network)
    peer.send(b"a")
    go(network)
    assert sock.recv(10) == b"a"
    assert sock.send(b"x") == 1
    assert told(sock.recv, 10) == "EAGAIN"
    assert not network.chance.injected


def test_recv_into_fills_a_buffer_as_recv_would() -> None:
    network = SimulatedNetwork()
    sock, peer = pair(network)
    peer.send(b"abcdef")
    go(network)
    buffer = bytearray(b"-----")
    assert sock.recv_into(buffer, 2) == 2
    assert buffer == b"ab---"
    assert sock.recv_into(memoryview(buffer)) == 4
    assert buffer == b"cdef-"


@pytest.mark.parametrize(("how", "reads", "writes"), [(socket.SHUT_RD, False, True), (socket.SHUT_RDWR, False, False)])
def test_after_shut_rd_recv_reports_the_end_and_writing_goes_on(how: int, reads: bool, writes: bool) -> None:
    network = SimulatedNetwork()
    sock, peer = pair(network)
    sock.shutdown(how)
    assert sock.recv(1) == b""
    assert bits(sock) & (POLLIN | POLLRDHUP) == POLLIN | POLLRDHUP
    assert (told(sock.send, b"x") == 1) is writes
    sock.shutdown(socket.SHUT_WR)
    go(network)
    assert peer.eof


def test_close_with_so_linger_of_zero_resets() -> None:
    network = SimulatedNetwork()
    sock, peer = pair(network)
    sock.send(b"arrived")
    go(network)
    sock.setsockopt(*SO_LINGER)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER) == 1
    sock.close()
    go(network)
    assert peer.received == b"arrived"
    assert peer.error is not None
    assert peer.error.errno == errno.ECONNRESET


def test_close_after_fin_sends_no_second_fin() -> None:
    network = SimulatedNetwork()
    sock, peer = pair(network)
    sock.shutdown(socket.SHUT_WR)
    sock.close()
    go(network)
    assert (peer.eof, peer.lost) == (True, False)


# ---------------------------------------------------------------- what no program may do


def test_call_that_would_block_raises_and_is_a_violation() -> None:
    network = SimulatedNetwork()
    sock = network.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.listen()
    with pytest.raises(RuntimeError, match="nothing blocks"):
        sock.accept()
    assert network.violations == ["a call that would block"]
    with pytest.raises(AssertionError, match="would block"):
        network.check()


def test_mistakes_of_a_peer_are_no_violations() -> None:
    network = SimulatedNetwork()
    _sock, peer = pair(network)
    peer.socket.setblocking(True)
    with pytest.raises(RuntimeError, match="nothing blocks"):
        peer.socket.recv(1)
    peer.close()
    assert told(peer.socket.recv, 1) == "EBADF"
    network.check()


@pytest.mark.parametrize("name", "recv send accept listen bind setsockopt getsockopt shutdown connect_ex".split())
def test_call_on_a_closed_socket_raises_and_is_a_violation(name: str) -> None:
    """The descriptor may have another owner by now."""
    network = SimulatedNetwork()
    sock, _peer = pair(network)
    sock.close()
    arguments: dict[str, tuple[object, ...]] = {
        "recv": (1,), "send": (b"x",), "bind": ((HERE, 0),), "setsockopt": (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        "getsockopt": (socket.SOL_SOCKET, socket.SO_ERROR), "shutdown": (socket.SHUT_WR,),
        "connect_ex": ((ELSEWHERE, 80),),
    }  # fmt: skip
    assert told(getattr(sock, name), *arguments.get(name, ())) == "EBADF"
    assert network.violations == [f"{name.removesuffix('_ex')} on a closed socket"]


def test_address_of_a_closed_socket_raises() -> None:
    """EBADF, but no violation: asking for an address doesn't use the connection."""
    network = SimulatedNetwork()
    sock, _peer = pair(network)
    sock.close()
    assert told(sock.getsockname) == told(sock.getpeername) == "EBADF"
    network.check()


@pytest.mark.parametrize("make", [stream, udp])
def test_with_block_closes_the_socket(make: object) -> None:
    network = SimulatedNetwork()
    with make(network) as sock:  # type: ignore[operator]
        assert network.descriptors.open
    assert not network.descriptors.open
    sock.close()
    network.check()


def test_second_bind_raises() -> None:
    network = SimulatedNetwork()
    sock = stream(network, socket.AF_INET6)
    assert sock.getsockname() == ("::", 0, 0, 0)
    sock.bind(("fd00::1", 0))
    assert told(sock.bind, ("fd00::1", 0)) == "EINVAL"


def test_buffer_size_of_zero_leaves_a_least_size() -> None:
    network = SimulatedNetwork()
    sock = stream(network)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 1
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
    assert cast(StreamSocket, sock).host == ""


def test_socket_closed_before_a_refusal_gets_no_error() -> None:
    network = SimulatedNetwork(script="connect#1=ECONNREFUSED")
    sock = stream(network)
    sock.connect_ex((ELSEWHERE, 80))
    sock.close()
    go(network, 1.0)
    network.check()


def test_keepalive_finds_that_the_peer_gave_up() -> None:
    """The peer timed out in a partition; after the heal, keepalive finds no connection there."""
    network = SimulatedNetwork()
    sock, peer = pair(network)
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    network.partition(ELSEWHERE, 800.0)
    go(network, 1000.0)
    assert peer.lost
    assert told(sock.recv, 1) == "EAGAIN"
    go(network, 10_000.0)
    assert told(sock.recv, 1) == "ECONNRESET"


def test_sending_finds_that_the_peer_gave_up() -> None:
    network = SimulatedNetwork()
    sock, peer = pair(network)
    network.partition(ELSEWHERE, 2000.0)
    peer.send(b"into the void")
    go(network, 3000.0)
    assert peer.lost
    assert sock.send(b"x") == 1
    assert told(sock.send, b"x") == "ECONNRESET"


def test_urgent_byte_leaves_the_stream_when_it_arrives() -> None:
    """It may be announced long before: here the window is too small for the bytes before it."""
    network = SimulatedNetwork(receive_buffer_bytes=2)
    sock, peer = pair(network)
    peer.send(b"abcX", urgent=True)
    go(network)
    assert sock.recv(10) == b"ab"
    go(network)
    assert sock.recv(10) == b"c"
    assert sock.recv(1, socket.MSG_OOB) == b"X"
