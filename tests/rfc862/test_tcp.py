"""RFC 862, TCP: "Once a connection is established any data received is sent back."."""

from __future__ import annotations

import errno
import selectors
import socket
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactor.sockets.errors import os_error
from reactor.sockets.opening import KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES
from tests.support.basics import PATIENCE_S
from tests.support.clients import (
    connect_small,
    drain,
    echo_and_close,
    receive_exactly,
    receive_to_end,
    send_in_background,
    whole_dribbled_trailing,
)
from tests.support.echo import CAN_SPLICE, EchoByHand, EchoThread, every_connection_spliced
from tests.support.faults import EAGAIN, EINTR, Faults, FlakySockets
from tests.support.loops import SELECTORS, ManualClock, connections_of, kernel_socket, turn_idle, turn_until

DAY_S = 86_400.0
SMALL_BYTES = 32_768
AWKWARD = {
    "every byte value": bytes(range(256)) * 4,
    "zeros": bytes(1000),
    "Telnet commands": b"\xff\xfb\x01\xff\xfd\x03\xff\xff\xff\xf4\xff\xf2",
    "line ends": b"\r\n\n\r\r\n\x1a\x04\x03",
    "UTF-8, whole and broken": "é€𝄞\ufeff".encode() + b"\xc0\x80\xed\xa0\x80\xf0\x9f",
    "one byte": b"x",
}

chunk = st.binary(min_size=1, max_size=64) | st.builds(
    lambda piece, times: piece * times, st.binary(min_size=1, max_size=50), st.integers(1, 800)
)
fault = st.none() | st.integers(1, 9) | st.integers(10, 70_000) | st.sampled_from([EAGAIN, EINTR])
faults_script = st.lists(fault, max_size=40)


@pytest.fixture(scope="module", params=["copied", "spliced"], autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run every test twice: with bytes that are copied, and with bytes that go through a pipe."""
    if request.param == "copied":
        yield
    elif not CAN_SPLICE:
        pytest.skip("no splice(2) here")
    else:
        with every_connection_spliced():
            yield


@pytest.fixture(scope="module")
def echo(path: None) -> Iterator[EchoThread]:
    with EchoThread() as server:
        yield server


# ---------------------------------------------------------------- every byte, in order, unchanged


@pytest.mark.parametrize("data", AWKWARD.values(), ids=AWKWARD)
def test_every_byte_value_comes_back(echo: EchoThread, data: bytes) -> None:
    """ "any data received is sent back": whole, byte by byte, and with the last byte on its own."""
    for pieces in whole_dribbled_trailing(data):
        with echo.connect() as client:
            for piece in pieces:
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)
            assert receive_to_end(client) == data


@given(chunks=st.lists(chunk, max_size=12))
def test_any_bytes_in_any_chunks_come_back(echo: EchoThread, chunks: list[bytes]) -> None:
    """Promise 1: "Every byte comes back, in order, unchanged, for any chunking"."""
    with echo.connect() as client:
        for piece in chunks:
            client.sendall(piece)
            assert receive_exactly(client, len(piece)) == piece
        client.shutdown(socket.SHUT_WR)
        assert receive_to_end(client) == b""


@given(data=st.data(), count=st.integers(2, 5))
def test_interleaved_connections_get_their_own_bytes_only(echo: EchoThread, data: st.DataObject, count: int) -> None:
    """Promise 1 for several clients at once: in any interleaving, with a half-close at any time."""
    steps = data.draw(st.lists(st.tuples(st.integers(0, count - 1), chunk | st.none()), max_size=25))
    clients = [echo.connect() for _ in range(count)]
    finished: set[int] = set()
    for index, piece in steps:
        if index not in finished and piece is not None:
            clients[index].sendall(piece)
            assert receive_exactly(clients[index], len(piece)) == piece
        elif index not in finished:
            clients[index].shutdown(socket.SHUT_WR)
            finished.add(index)
    for index, client in enumerate(clients):
        if index not in finished:
            client.sendall(b"the last of %d" % index)
            client.shutdown(socket.SHUT_WR)
            assert receive_to_end(client) == b"the last of %d" % index
        else:
            assert receive_to_end(client) == b""
        client.close()


def test_megabytes_come_back(echo: EchoThread) -> None:
    """Promise 1 in bulk: sent as fast as the kernel takes it, read as fast as it comes."""
    data = b"".join(number.to_bytes(4, "big") for number in range(2_000_000))
    assert echo_and_close(echo.connect(), data) == data


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda kind: kind.__name__)
@given(
    chunks=st.lists(chunk, max_size=6),
    accepts=st.lists(st.sampled_from([EAGAIN, EINTR, os_error(errno.ECONNABORTED)]), max_size=3),
    receives=faults_script,
    sends=faults_script,
)
def test_every_byte_comes_back_when_system_calls_fail(
    selector: type[selectors.BaseSelector],
    chunks: list[bytes],
    accepts: list[OSError],
    receives: list[int | OSError | None],
    sends: list[int | OSError | None],
) -> None:
    """Promise 1: "also under short writes and EAGAIN at any point"; and short reads, EINTR, and accepts that fail."""
    faults = Faults()
    faults.add("accept", *accepts)
    faults.add("recv", *receives)
    faults.add("send", *sends)
    options = {"selector": selector(), "sockets": FlakySockets(faults)}
    with EchoByHand(reactor_options=options, udp=False) as echo, echo.connect() as client:
        received = b"".join(echo.send(client, piece) for piece in chunks)
        client.shutdown(socket.SHUT_WR)
        received += echo.receive_to_end(client)
        assert received == b"".join(chunks)
        turn_until(echo.reactor, lambda: not echo.connections)
        assert echo.server.counters.tcp_bytes_sent == echo.server.counters.tcp_bytes_received == len(received)


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.ENOMEM], ids=["ENOBUFS", "ENOMEM"])
@pytest.mark.parametrize("call", ["recv", "send"])
def test_kernel_out_of_memory_delays_bytes_and_loses_none(call: str, code: int) -> None:
    """Promise 1 when send(2) or recv(2) reports a shortage of memory, which isn't the client's fault."""
    faults, clock = Faults(), ManualClock()
    faults.add(call, os_error(code), 3, os_error(code))
    options = {"sockets": FlakySockets(faults), "clock": clock}
    with EchoByHand(reactor_options=options) as echo, echo.connect() as client:
        client.sendall(b"patience")
        received = b""
        while len(received) < 8:
            turn_idle(echo.reactor)
            clock.advance(1.0)
            received += drain(client)
        assert received == b"patience"
        assert faults.calls[call] >= 4


# ---------------------------------------------------------------- urgent bytes


@pytest.mark.parametrize("urgent", [b"X", b"XY"], ids=["one", "two in a row"])
def test_urgent_bytes_come_back_in_their_place(echo: EchoThread, urgent: bytes) -> None:
    """Promise 3. Without SO_OOBINLINE, abc + urgent X + def is read as abcdef: a byte received and not sent back."""
    with echo.connect() as client:
        client.sendall(b"abc")
        for value in urgent:
            assert client.send(bytes([value]), socket.MSG_OOB) == 1
        client.sendall(b"def")
        client.shutdown(socket.SHUT_WR)
        assert receive_to_end(client) == b"abc" + urgent + b"def"


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda kind: kind.__name__)
@given(pieces=st.lists(st.tuples(st.binary(min_size=1, max_size=20), st.booleans(), st.booleans()), max_size=12))
def test_urgent_bytes_anywhere_lose_nothing(
    selector: type[selectors.BaseSelector], pieces: list[tuple[bytes, bool, bool]]
) -> None:
    """RFC 9293 §3.8.5: urgent data is part of the stream. Here the server meets it at any point."""
    with EchoByHand(reactor_options={"selector": selector()}, udp=False) as echo, echo.connect() as client:
        for piece, is_urgent, is_read_at_once in pieces:
            client.send(piece, socket.MSG_OOB if is_urgent else 0)
            if is_read_at_once:
                turn_idle(echo.reactor, 3)
        client.shutdown(socket.SHUT_WR)
        assert echo.receive_to_end(client) == b"".join(piece for piece, _, _ in pieces)


# ---------------------------------------------------------------- half-close, and the end


def test_half_close_is_answered_with_all_data_then_fin(echo: EchoThread) -> None:
    """Promise 4, and RFC 9293 §3.6: after CLOSE "one may continue to receive until told the other side has closed"."""
    with echo.connect() as client:
        client.sendall(b"all of this")
        client.shutdown(socket.SHUT_WR)
        assert receive_to_end(client) == b"all of this"
        assert client.recv(1) == b""
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_half_close_without_data_is_answered_with_fin(echo: EchoThread) -> None:
    """A client that sends nothing but FIN gets nothing but FIN."""
    assert echo_and_close(echo.connect(), b"") == b""


def test_half_close_behind_full_buffers_loses_nothing() -> None:
    """Promise 4, "all the data, then FIN": the FIN waits behind megabytes of unread data."""
    data = b"".join(number.to_bytes(4, "big") for number in range(1_000_000))
    with (
        EchoThread(socket_buffer_bytes=SMALL_BYTES) as echo,
        connect_small(("127.0.0.1", echo.port), SMALL_BYTES) as client,
    ):
        sender = send_in_background(client, data, lambda: client.shutdown(socket.SHUT_WR))
        echo.wait_for(lambda: any(c.pending_bytes > c.limits.high_water_bytes for c in connections_of(echo.reactor)))
        received = bytearray()
        while piece := client.recv(5000):
            received += piece
        sender.join(PATIENCE_S)
        assert received == data


def stuck_client(echo: EchoByHand) -> tuple[socket.socket, bytes]:
    """Return a client that has filled every buffer without reading, and what it sent."""
    client = echo.connect()
    return client, echo.fill(client, echo.connections[0])


def test_stop_delivers_what_was_read_without_a_reset() -> None:
    """Promise 4: "No RST destroys data in flight", though the server's kernel still holds unread data.

    close(2) would then send a reset, which destroys data in flight (RFC 1122 §4.2.2.13).
    """
    stopped: list[bool] = []
    with EchoByHand(socket_buffer_bytes=SMALL_BYTES) as echo:
        client, sent = stuck_client(echo)
        with client:
            count = echo.connections[0].bytes_received
            assert count < len(sent), "no unread data is left in the kernel, so this test would prove nothing"
            echo.server.stop(lambda: stopped.append(True))
            turn_idle(echo.reactor)
            assert echo.receive_to_end(client) == sent[:count]
            assert not stopped, "the client hasn't sent FIN yet"
            echo.send(client, b"said into the void")
            turn_idle(echo.reactor)
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        turn_until(echo.reactor, lambda: stopped)


@given(chunks=st.lists(chunk, max_size=8), turns=st.integers(0, 12))
def test_stop_at_any_moment_sends_all_that_was_read_then_fin(chunks: list[bytes], turns: int) -> None:
    """Promise 4 on SIGTERM: deliver every byte that the process has read, send FIN, linger to EOF."""
    with EchoByHand(udp=False) as echo, echo.connect() as client:
        connection, sent = echo.connections[0], b"".join(chunks)
        received = b"".join(echo.send(client, piece) for piece in chunks[:-1])
        for piece in chunks[-1:]:
            client.send(piece)
        turn_idle(echo.reactor, turns)
        echo.server.stop()
        count = connection.bytes_received
        received += echo.receive_to_end(client)
        assert received == sent[:count]


# ---------------------------------------------------------------- no idle timeout


def test_client_silent_for_a_day_is_kept() -> None:
    """RFC 862: "This continues until the calling user terminates the connection". Promise 10: no idle timeout."""
    clock = ManualClock()
    with EchoByHand(reactor_options={"clock": clock}) as echo, echo.connect() as client:
        for _ in range(3):
            client.send(b"still here")
            assert echo.receive(client, 10) == b"still here"
            clock.advance(DAY_S)
            turn_idle(echo.reactor)
            assert len(echo.connections) == 1


def test_client_that_does_not_read_for_a_day_gets_everything() -> None:
    """Promise 10: TCP_USER_TIMEOUT, which "kills a live peer that doesn't read", isn't used."""
    clock = ManualClock()
    with EchoByHand(reactor_options={"clock": clock}, socket_buffer_bytes=SMALL_BYTES) as echo:
        client, sent = stuck_client(echo)
        with client:
            clock.advance(DAY_S)
            turn_idle(echo.reactor)
            assert echo.receive(client, len(sent)) == sent


def test_dead_peers_are_found_by_keepalive_in_about_five_minutes() -> None:
    """Promise 10: "idle dead peers go by TCP keepalive (about five minutes) […]; TCP_USER_TIMEOUT isn't used"."""
    assert KEEPALIVE_IDLE_S + KEEPALIVE_INTERVAL_S * KEEPALIVE_PROBES == 300
    with EchoByHand() as echo, echo.connect(), kernel_socket(echo.connections[0]) as accepted:
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        names: Sequence[str] = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        known = [name for name in names if hasattr(socket, name)]
        values = {name: accepted.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in known}
        expected = {"TCP_KEEPIDLE": 180, "TCP_KEEPINTVL": 30, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 0}
        assert values == {name: expected[name] for name in known}
