"""Never more than received: a server that sends one extra byte is broken; one extra datagram makes it a weapon."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reactor.sockets.opening import Socket
from tests.support.basics import PATIENCE_S
from tests.support.clients import drain, receive_to_end, send_in_background
from tests.support.echo import EchoByHand, EchoThread
from tests.support.faults import EAGAIN, EINTR, FlakySocket, FlakySockets
from tests.support.loops import SELECTORS, turn_idle

BOUND_BYTES = 131_072
MOST_CLIENTS = 4


# ---------------------------------------------------------------- a ledger at every system call


class LedgerSocket(FlakySocket):
    """A socket that counts the bytes at every system call, and notes when more were sent than received."""

    received = sent = 0
    overdrawn: list[str]

    def recv(self, size: int, flags: int = 0) -> bytes:
        data = super().recv(size, flags)
        self.received += len(data)
        return data

    def send(self, data: Any, flags: int = 0) -> int:
        count = super().send(data, flags)
        self.sent += count
        if self.sent > self.received:
            self.overdrawn.append(f"{self.sent} bytes sent, {self.received} received")
        return count

    def accept(self) -> tuple[socket.socket, Any]:
        flaky, address = super().accept()
        return self._like(flaky), address

    def _like(self, flaky: socket.socket) -> LedgerSocket:
        sock = LedgerSocket(flaky.family, flaky.type, flaky.proto, fileno=flaky.detach())
        sock.faults, sock.overdrawn = self.faults, self.overdrawn
        return sock


class LedgerSockets(FlakySockets):
    """A SocketFactory of LedgerSockets; `overdrawn` lists the violations."""

    def __init__(self) -> None:
        super().__init__()
        self.overdrawn: list[str] = []

    def socket(self, family: int, type: int) -> Socket:
        sock = LedgerSocket(family, type)
        sock.faults, sock.overdrawn = self.faults, self.overdrawn
        return sock


@given(
    plans=st.lists(st.lists(st.binary(min_size=1, max_size=3000), max_size=6), min_size=1, max_size=4),
    sends=st.lists(st.none() | st.integers(1, 100) | st.sampled_from([EAGAIN, EINTR]), max_size=30),
)
def test_at_every_system_call_no_more_is_sent_than_received(
    plans: list[list[bytes]], sends: list[int | OSError | None]
) -> None:
    """Promise 2: "Never has more been sent than received, at any moment, on any connection"."""
    sockets = LedgerSockets()
    sockets.faults.add("send", *sends)
    with EchoThread(reactor_options={"sockets": sockets}) as echo, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(echo.connect()) for _ in plans]
        for client, pieces in zip(clients, plans, strict=True):
            for piece in pieces:
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)
        assert [receive_to_end(client) for client in clients] == [b"".join(pieces) for pieces in plans]
    assert not sockets.overdrawn


def test_bulk_client_never_receives_more_than_it_sent() -> None:
    """Promise 2 from outside: each piece that comes back equals what was sent at that place of the stream."""
    sockets = LedgerSockets()
    data = b"".join(number.to_bytes(4, "big") for number in range(500_000))
    with EchoThread(reactor_options={"sockets": sockets}) as echo, echo.connect() as client:
        sender = send_in_background(client, data, lambda: client.shutdown(socket.SHUT_WR))
        count = 0
        while piece := client.recv(1 << 16):
            assert data[count : count + len(piece)] == piece
            count += len(piece)
        sender.join(PATIENCE_S)
        assert count == len(data)
    assert not sockets.overdrawn


# ---------------------------------------------------------------- nothing unasked


def test_nothing_is_sent_before_anything_is_received() -> None:
    """RFC 862: only "data received is sent back". So a silent client gets no byte."""
    sockets = LedgerSockets()
    with EchoByHand(reactor_options={"sockets": sockets}) as echo:
        clients = [echo.connect() for _ in range(5)]
        datagrams = echo.udp()
        turn_idle(echo.reactor, 100)
        for sock in (*clients, datagrams):
            with sock, pytest.raises(BlockingIOError):
                sock.recv(1)
        assert not sockets.faults.calls.keys() & {"send", "sendto", "sendmsg", "sendmmsg"}


def test_one_datagram_is_answered_by_one() -> None:
    """RFC 862: "When a datagram is received, the data from it is sent back in an answering datagram": in one."""
    with EchoByHand(("*",)) as echo, echo.udp() as client:
        for count in range(1, 30):
            client.send(b"%d" % count)
            assert echo.answer(client) == b"%d" % count
            turn_idle(echo.reactor)
            with pytest.raises(BlockingIOError):
                client.recv(99)
            counters = echo.server.counters
            assert counters.datagrams_received == counters.datagrams_sent == count
            assert counters.udp_bytes_received == counters.udp_bytes_sent


def test_counters_agree_at_every_moment_under_load() -> None:
    """Promise 2 for operators: no snapshot of the counters shows more sent than received."""
    finished = threading.Event()
    with EchoThread() as echo, echo.connect() as client:
        sender = send_in_background(client, bytes(4_000_000), lambda: client.shutdown(socket.SHUT_WR))

        def read() -> None:
            with contextlib.suppress(OSError):
                receive_to_end(client)
            finished.set()

        reader = threading.Thread(target=read)
        reader.start()
        while not finished.is_set():
            counters = echo.call(lambda: echo.server.counters)
            assert counters.tcp_bytes_sent <= counters.tcp_bytes_received <= counters.tcp_bytes_sent + BOUND_BYTES
        sender.join(PATIENCE_S)
        reader.join(PATIENCE_S)


# ---------------------------------------------------------------- any interleaving, checked after every step


@dataclass
class Client:
    """A client, what it sent, and what it got back."""

    socket: socket.socket
    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    half_closed: bool = False
    ended: bool = False

    def read(self, count: int) -> None:
        with contextlib.suppress(BlockingIOError):
            piece = self.socket.recv(count)
            self.received += piece
            self.ended = not piece


class EchoMachine(RuleBasedStateMachine):
    """Clients connect, send, read and half-close in any order, system calls fail, and the loop turns at any time."""

    clients: list[Client]

    @initialize(selector=st.sampled_from(SELECTORS))
    def start(self, selector: type[selectors.BaseSelector]) -> None:
        self.sockets = LedgerSockets()
        options = {"selector": selector(), "sockets": self.sockets}
        self.echo = EchoByHand(reactor_options=options, socket_buffer_bytes=16_384, udp=False)
        self.clients = []

    def talkers(self) -> list[Client]:
        return [client for client in self.clients if not client.half_closed]

    @precondition(lambda self: len(self.clients) < MOST_CLIENTS)
    @rule()
    def connect(self) -> None:
        self.clients.append(Client(self.echo.connect()))

    @precondition(lambda self: self.talkers())
    @rule(which=st.integers(0), piece=st.binary(min_size=1, max_size=300), times=st.integers(1, 300))
    def send(self, which: int, piece: bytes, times: int) -> None:
        client, data = self.talkers()[which % len(self.talkers())], piece * times
        with contextlib.suppress(BlockingIOError):
            client.sent += data[: client.socket.send(data)]

    @precondition(lambda self: self.talkers())
    @rule(which=st.integers(0))
    def half_close(self, which: int) -> None:
        client = self.talkers()[which % len(self.talkers())]
        client.socket.shutdown(socket.SHUT_WR)
        client.half_closed = True

    @precondition(lambda self: self.clients)
    @rule(which=st.integers(0), count=st.integers(1, 100_000))
    def read(self, which: int, count: int) -> None:
        self.clients[which % len(self.clients)].read(count)

    @rule(
        call=st.sampled_from(["recv", "send"]),
        entries=st.lists(st.integers(1, 5000) | st.sampled_from([EAGAIN, EINTR]), max_size=3),
    )
    def fail_soon(self, call: str, entries: list[int | OSError]) -> None:
        self.sockets.faults.add(call, *entries)

    @rule(turns=st.integers(1, 10))
    def turn(self, turns: int) -> None:
        turn_idle(self.echo.reactor, turns)

    @invariant()
    def no_connection_has_sent_more_than_it_received(self) -> None:
        for connection in self.echo.connections:
            waiting = connection.bytes_received - connection.bytes_sent
            assert 0 <= waiting == connection.pending_bytes <= BOUND_BYTES
        assert not self.sockets.overdrawn

    @invariant()
    def every_client_has_a_prefix_of_what_it_sent(self) -> None:
        for client in self.clients:
            assert client.sent.startswith(client.received)
        counters = self.echo.server.counters
        assert sum(len(client.received) for client in self.clients) <= counters.tcp_bytes_sent
        assert counters.tcp_bytes_sent <= counters.tcp_bytes_received <= sum(len(c.sent) for c in self.clients)

    @invariant()
    def no_client_gets_fin_before_it_sent_fin(self) -> None:
        for client in self.clients:
            assert not client.ended or (client.half_closed and client.received == client.sent)

    def teardown(self) -> None:
        if not hasattr(self, "echo"):
            return
        with self.echo:
            for client in self.clients:
                with client.socket as sock:
                    if not client.half_closed:
                        sock.shutdown(socket.SHUT_WR)
                    if not client.ended:
                        client.received += self.echo.receive_to_end(sock)
                    assert client.received == client.sent
                    assert drain(sock) == b""


TestEchoMachine = EchoMachine.TestCase
