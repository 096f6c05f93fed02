"""Splice: which connections get a pipe, and that each can go back to its socket at any moment."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from reactor import Connection, Limits, Reactor, StreamProtocol
from reactor.doors import Observer
from reactor.fastpath import splice as room
from reactor.fastpath.splice import COPIES_AFTER_TROUBLE, SMALL_MOVES, KernelPipe, Pipe, Splicer, pipes_on
from reactor.handler import Handler
from reactor.sockets.errors import os_error
from reactor.sockets.opening import Socket
from tests.support.basics import open_descriptors
from tests.support.clients import drain, fill, reset, tcp_pair
from tests.support.echo import CAN_SPLICE
from tests.support.loops import turn_until

pytestmark = pytest.mark.skipif(not CAN_SPLICE, reason="no splice(2) here")

RECEIVE_BYTES = 4096
LIMITS = Limits(high_water_bytes=8192, receive_bytes=RECEIVE_BYTES, pipe_bytes=3 * RECEIVE_BYTES)
PIECE = bytes(range(256)) * (RECEIVE_BYTES // 256)


class Echo(StreamProtocol):
    """Echoes, and calls `consider` as echo7 does."""

    def __init__(self, splicer: Splicer) -> None:
        self.splicer = splicer
        self.lost: list[Exception | None] = []
        self.after: Callable[[Connection], object] = bool  # called with each piece's connection
        self.after_full: Callable[[Connection], object] = bool  # the same for full receives

    def data_received(self, connection: Connection, data: bytes) -> None:
        connection.write(data)
        self.after(connection)

    def saturated(self, connection: Connection) -> None:
        self.splicer.consider(connection)
        self.after_full(connection)

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        self.splicer.forget(connection)
        self.lost.append(error)


class CountedPipe(KernelPipe):
    """Kernel pipes that are counted."""

    made = 0
    opened = 0

    def __init__(self) -> None:
        CountedPipe.made += 1
        super().__init__()
        CountedPipe.opened += 1

    def close(self) -> None:
        super().close()
        CountedPipe.opened -= 1


TRANSPORTS: dict[Handler, object] = {}


class Transports(Observer):
    """Records the transport of each connection: its socket or a pipe."""

    def socket(self, handler: Handler, sock: Any) -> Any:
        TRANSPORTS[handler] = sock
        return sock


class Rig:
    """A loop, a splicer, and echoing connections."""

    def __init__(self, new_pipe: Callable[[], Pipe] = CountedPipe, most_pipes: int = 2) -> None:
        CountedPipe.made = CountedPipe.opened = 0
        TRANSPORTS.clear()
        self.reactor = Reactor(observer=Transports())
        self.splicer = Splicer(new_pipe, most_pipes=most_pipes)
        self.protocol = Echo(self.splicer)
        self.clients: list[socket.socket] = []

    def connection(self) -> tuple[Connection, socket.socket]:
        ours, client = tcp_pair()
        ours.setblocking(False)
        client.setblocking(False)
        self.clients.append(client)
        connection = Connection(self.reactor, ours, self.protocol, LIMITS)
        connection.open()
        return connection, client

    def spliced(self) -> tuple[Connection, socket.socket]:
        """Return a connection that has a pipe and nothing pending."""
        connection, client = self.connection()
        self.echo(client, PIECE)
        assert is_spliced(connection)
        return connection, client

    def echo(self, client: socket.socket, data: bytes) -> None:
        """Send, and check the echo."""
        client.send(data)
        got = bytearray()

        def complete() -> bool:
            got.extend(drain(client))
            return len(got) >= len(data)

        turn_until(self.reactor, complete)
        assert got == data

    def receive(self, client: socket.socket, count: int) -> bytes:
        got = bytearray()

        def complete() -> bool:
            got.extend(drain(client))
            return len(got) >= count

        turn_until(self.reactor, complete)
        return bytes(got)

    def close(self) -> None:
        self.reactor.close()
        for client in self.clients:
            client.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()
    assert CountedPipe.opened == 0, "pipes are closed with their connections"


def is_spliced(connection: Connection) -> bool:
    return isinstance(TRANSPORTS[connection], room.Splice)


def test_a_full_receive_makes_bulk_and_a_small_one_does_not(rig: Rig) -> None:
    connection, client = rig.connection()
    rig.echo(client, PIECE[:-1])
    assert not is_spliced(connection)
    rig.echo(client, PIECE)
    assert is_spliced(connection)
    assert len(rig.splicer) == 1
    rig.echo(client, PIECE * 2)
    assert (connection.bytes_received, connection.bytes_sent) == (4 * RECEIVE_BYTES - 1,) * 2


def test_connection_without_bulk_gives_its_pipe_back(rig: Rig) -> None:
    """Law: for other bytes it goes back to its socket."""
    connection, client = rig.spliced()
    for _ in range(SMALL_MOVES + 1):
        assert is_spliced(connection)
        rig.echo(client, b"small")
    assert not is_spliced(connection)
    assert CountedPipe.opened == 0
    assert len(rig.splicer) == 0
    rig.echo(client, PIECE)
    assert is_spliced(connection), "and had again"


def test_large_moves_in_between_keep_the_pipe(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SMALL_MOVE_BYTES", 100)
    connection, client = rig.spliced()
    for _ in range(SMALL_MOVES * 2):
        rig.echo(client, b"small")
        rig.echo(client, PIECE[:100])
    assert is_spliced(connection)


def stuff(rig: Rig, connection: Connection, client: socket.socket) -> bytes:
    """Send until the connection stops reading. Return the bytes sent."""
    sent = bytearray()

    def full() -> bool:
        sent.extend(fill(client, 1 << 16))
        assert connection.pending_bytes <= max(LIMITS.bound_bytes, connection.limits.pipe_bytes)
        return not connection.interest & 1

    turn_until(rig.reactor, full)
    return bytes(sent)


def moved_in_one_turn(rig: Rig, connection: Connection, client: socket.socket) -> int:
    """Let more bytes wait than a run moves, and turn once."""
    client.setblocking(True)
    client.sendall(bytes(LIMITS.bound_bytes * (room.MOVES_IN_A_ROW + 2)))
    client.setblocking(False)
    before = connection.bytes_received
    rig.reactor.turn()
    return connection.bytes_received - before


def test_bulk_connection_moves_several_times_in_a_row_and_no_more(rig: Rig) -> None:
    connection, client = rig.spliced()
    assert moved_in_one_turn(rig, connection, client) == room.MOVES_IN_A_ROW * LIMITS.bound_bytes


@pytest.mark.parametrize(("most", "moves"), [(1, 1), (2, 1), (5, 2), (7, 3), (16, 4)])
def test_bulk_connections_share_a_round(rig: Rig, monkeypatch: pytest.MonkeyPatch, most: int, moves: int) -> None:
    connection, client = rig.spliced()
    rig.spliced()
    monkeypatch.setattr(room, "ROUND_BYTES", most * room.PIPE_BYTES)
    assert moved_in_one_turn(rig, connection, client) == moves * LIMITS.bound_bytes


@pytest.mark.parametrize(
    ("share", "pipe_bytes", "moved"),
    [(100, 65_536, 12_288), (40_000, 65_536, 40_000), (70_000, 65_536, 65_536), (70_000, 0, 12_288)],
)
def test_a_move_is_as_large_as_the_share_but_between_the_limits(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, share: int, pipe_bytes: int, moved: int
) -> None:
    connection, client = rig.spliced()
    connection.limits = LIMITS._replace(pipe_bytes=pipe_bytes)
    monkeypatch.setattr(room, "ROUND_BYTES", share)
    assert moved_in_one_turn(rig, connection, client) == moved


def test_connection_with_more_in_its_pipe_than_its_bound_keeps_it(rig: Rig) -> None:
    """Its bytes would have to be copied into memory."""
    held = []
    for _ in range(2):
        connection, client = rig.spliced()
        connection.limits = LIMITS._replace(pipe_bytes=65_536)
        stuff(rig, connection, client)
        assert connection.pending_bytes > LIMITS.bound_bytes
        held.append(connection)
    third, client = rig.connection()
    for _ in range(4):
        rig.echo(client, PIECE)
    assert [is_spliced(connection) for connection in (*held, third)] == [True, True, False]


def test_connections_that_gave_their_pipe_back_have_no_share(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    connection, client = rig.spliced()
    monkeypatch.setattr(room, "ROUND_BYTES", 4 * room.PIPE_BYTES)
    other, _ = rig.spliced()
    assert moved_in_one_turn(rig, connection, client) == 2 * LIMITS.bound_bytes
    other.write(b"unasked")
    assert moved_in_one_turn(rig, connection, client) == 4 * LIMITS.bound_bytes


def test_run_moves_no_more_while_bytes_are_pending(rig: Rig) -> None:
    """With a high mark, a connection still reads while bytes wait for a client that takes little."""
    connection, client = rig.spliced()
    connection.limits = Limits(high_water_bytes=1 << 20, receive_bytes=RECEIVE_BYTES)
    seen: list[int] = []
    rig.protocol.after = lambda which: seen.append(which.pending_bytes)

    def full() -> bool:
        seen.clear()
        fill(client, 1 << 16)
        rig.reactor.call_soon(int)
        rig.reactor.turn()
        assert not any(seen[:-1]), "only the last move of a turn may leave bytes behind"
        return connection.pending_bytes > 1 << 20

    while not full():
        pass


@pytest.mark.parametrize("end", ["close", "unasked"])
def test_all_bytes_of_a_full_pipe_are_sent_before_the_end(rig: Rig, end: str) -> None:
    """More than the connection's bound is in the pipe: it is sent from there, or from memory after other bytes."""
    connection, client = rig.spliced()
    connection.limits = LIMITS._replace(pipe_bytes=1 << 20)
    sent = stuff(rig, connection, client)
    assert connection.pending_bytes > LIMITS.bound_bytes
    place = connection.bytes_received - len(PIECE)
    if end == "close":
        connection.close()
        assert rig.receive(client, place) == sent[:place]
    else:
        connection.write(end.encode())
        assert rig.receive(client, place + len(end)) == sent[:place] + end.encode()


def test_pipes_that_the_user_may_not_have_are_taken_from_idle_connections() -> None:
    """pipe(7): an unprivileged user's pipes have a limit together, which may be less than `most_pipes`."""

    def scarce() -> Pipe:
        if CountedPipe.opened == 1:
            raise PermissionError(errno.EPERM, "no more pages")
        return CountedPipe()

    rig = Rig(scarce, most_pipes=64)
    try:
        idle, idle_client = rig.spliced()
        busy, client = rig.connection()
        for _ in range(COPIES_AFTER_TROUBLE + 3):  # the idle one is checked twice
            rig.echo(client, PIECE)
        assert (is_spliced(idle), is_spliced(busy)) == (False, True)
        rig.echo(idle_client, PIECE)
    finally:
        rig.close()


def test_smaller_pipe_is_taken_where_the_system_allows_no_larger_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = importlib.import_module("fcntl")
    real = fcntl.fcntl
    asked: list[int] = []

    def strict(descriptor: int, command: int, size_bytes: int) -> int:
        asked.append(size_bytes)
        if size_bytes == room.PIPE_BYTES:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return int(real(descriptor, command, size_bytes))

    monkeypatch.setattr(fcntl, "fcntl", strict)
    KernelPipe().close()
    assert asked == [room.PIPE_BYTES, room.SMALLER_PIPE_BYTES]


def test_run_ends_when_the_client_takes_no_more(rig: Rig) -> None:
    connection, client = rig.spliced()
    stuff(rig, connection, client)
    held = rig.receive(client, LIMITS.bound_bytes)
    assert held
    for _ in range(20):
        rig.reactor.call_soon(int)  # so that the turn doesn't wait
        rig.reactor.turn()
        assert connection.pending_bytes <= LIMITS.bound_bytes


@pytest.mark.parametrize("end", ["close", "abort", "half_close", "pause_reading", "raise"])
def test_connection_that_ends_or_pauses_within_a_run_moves_no_more(rig: Rig, end: str) -> None:
    connection, client = rig.spliced()
    other, other_client = rig.spliced()

    def once(which: Connection) -> None:
        rig.protocol.after = bool
        if end == "raise":
            raise KeyboardInterrupt
        getattr(which, end)()

    rig.protocol.after = once
    before = connection.bytes_received
    with contextlib.suppress(KeyboardInterrupt):
        moved_in_one_turn(rig, connection, client)
    assert connection.bytes_received - before == LIMITS.bound_bytes
    connection.pause_reading()
    assert moved_in_one_turn(rig, other, other_client) == room.MOVES_IN_A_ROW * LIMITS.bound_bytes


def test_connection_that_is_closed_after_a_full_receive_is_not_called_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, client = rig.spliced()
    called: list[bool] = []
    on_event = Connection.on_event

    def watched(self: Connection, mask: int) -> None:
        called.append(self.closed)
        on_event(self, mask)

    monkeypatch.setattr(Connection, "on_event", watched)
    rig.protocol.after_full = Connection.abort
    moved_in_one_turn(rig, connection, client)
    assert called == [False, False]


@pytest.mark.parametrize("mark_at", [1, LIMITS.bound_bytes, LIMITS.bound_bytes + 1, 2 * LIMITS.bound_bytes])
def test_urgent_byte_and_fin_within_a_run_come_in_their_place(rig: Rig, mark_at: int) -> None:
    """splice(2) reports nothing at an urgent mark, and at the end of the stream."""
    connection, client = rig.spliced()
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    data = PIECE * 9
    client.setblocking(True)
    client.sendall(data[:mark_at])
    client.send(b"!", socket.MSG_OOB)
    client.sendall(data[mark_at:])
    client.shutdown(socket.SHUT_WR)
    client.setblocking(False)
    assert rig.receive(client, len(data) + 1) == data[:mark_at] + b"!" + data[mark_at:]
    turn_until(rig.reactor, lambda: rig.protocol.lost)
    assert rig.protocol.lost == [None]


def test_peer_that_never_reads_is_stopped_at_the_documented_bound(rig: Rig) -> None:
    """A pipe holds at most `pipe_bytes` or the bound, whichever is more."""
    connection, client = rig.spliced()
    sent = stuff(rig, connection, client)
    assert is_spliced(connection)
    assert LIMITS.high_water_bytes < connection.pending_bytes <= LIMITS.pipe_bytes
    assert rig.receive(client, len(sent)) == sent


def test_other_bytes_are_sent_after_those_in_the_pipe(rig: Rig) -> None:
    connection, client = rig.spliced()
    sent = stuff(rig, connection, client)
    place = connection.bytes_received
    connection.write(b"an aside")
    assert not is_spliced(connection)
    assert connection.pending_bytes > LIMITS.high_water_bytes
    asked = sent[: place - len(PIECE)], sent[place - len(PIECE) :]  # the first piece was echoed before
    assert rig.receive(client, len(sent) + 8) == b"an aside".join(asked)


def test_other_bytes_with_an_empty_pipe_are_sent_at_once(rig: Rig) -> None:
    connection, client = rig.spliced()
    connection.write(b"unasked")
    assert not is_spliced(connection)
    assert rig.receive(client, 7) == b"unasked"


def test_close_sends_what_is_in_the_pipe(rig: Rig) -> None:
    """Lingering discards data with recv, not through the pipe."""
    connection, client = rig.spliced()
    sent = stuff(rig, connection, client)
    taken = connection.bytes_received - RECEIVE_BYTES
    connection.close()
    got = rig.receive(client, taken)
    assert len(got) == taken
    assert got == sent[:taken]
    client.shutdown(socket.SHUT_WR)
    turn_until(rig.reactor, lambda: rig.protocol.lost)
    assert rig.protocol.lost == [None]


def test_reset_closes_the_pipe(rig: Rig) -> None:
    connection, client = rig.spliced()
    stuff(rig, connection, client)
    reset(client)
    turn_until(rig.reactor, lambda: rig.protocol.lost)
    assert isinstance(rig.protocol.lost[0], OSError)
    assert CountedPipe.opened == 0


def test_idle_connection_loses_its_pipe_to_a_busy_one(rig: Rig) -> None:
    """`most_pipes` is 2. For a third, the splicer checks the oldest, and takes its pipe if it is idle."""
    first, first_client = rig.spliced()
    second, _ = rig.spliced()
    third, third_client = rig.connection()
    rig.echo(third_client, PIECE)  # the first is checked: it has received bytes
    assert not is_spliced(third)
    rig.echo(first_client, PIECE)
    rig.echo(third_client, PIECE)  # the second is checked
    assert not is_spliced(third)
    rig.echo(third_client, PIECE)  # the first has received bytes
    assert not is_spliced(third)
    rig.echo(third_client, PIECE)  # the second has received nothing
    assert [is_spliced(connection) for connection in (first, second, third)] == [True, False, True]
    assert CountedPipe.opened == 2


def test_the_pipe_of_a_connection_that_copies_again_is_free(rig: Rig) -> None:
    for _ in range(2):
        connection, _ = rig.spliced()
        connection.write(b"unasked")
    assert len(rig.splicer) == 0
    rig.spliced()
    assert CountedPipe.opened == 1


def test_the_pipe_of_a_connection_just_closed_is_free(rig: Rig) -> None:
    for _ in range(2):
        rig.spliced()
    waiting, client = rig.connection()
    client.send(PIECE)
    turn_until(rig.reactor, lambda: not is_spliced(waiting) and waiting.bytes_received)
    for handler in tuple(rig.reactor.handlers):
        if isinstance(handler, Connection) and is_spliced(handler):
            handler.abort()
    rig.splicer.consider(waiting)
    assert is_spliced(waiting)


def test_a_connection_with_bytes_pending_or_closed_gets_no_pipe(rig: Rig) -> None:
    connection, client = rig.connection()
    stuff(rig, connection, client)
    before = CountedPipe.made
    if not is_spliced(connection):
        rig.splicer.consider(connection)
        assert not is_spliced(connection)
    connection.abort()
    rig.splicer.consider(connection)
    assert CountedPipe.made == before


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EPERM])
def test_connection_without_a_pipe_copies_and_asks_again_much_later(code: int) -> None:
    """Issue: "pipes limited (per-user pipe pages are limited: on failure stay with the copying path)"."""
    asked = 0

    def no_pipe() -> Pipe:
        nonlocal asked
        asked += 1
        raise os_error(code)

    rig = Rig(no_pipe)
    connection, client = rig.connection()
    for _ in range(COPIES_AFTER_TROUBLE + 1):
        rig.echo(client, PIECE)
    assert (asked, is_spliced(connection)) == (1, False)
    rig.echo(client, PIECE)
    assert asked == 2
    rig.close()


class Sandbox(CountedPipe):
    """A kernel with splice(2) and a filter that forbids it."""

    def fill(self, sock: Socket, most_bytes: int) -> int:
        return 0


def test_kernel_without_splice_is_not_asked_again_for_a_while() -> None:
    rig = Rig(Sandbox)
    connection, client = rig.connection()
    for _ in range(COPIES_AFTER_TROUBLE):
        rig.echo(client, PIECE)
    assert CountedPipe.made == 1
    assert not is_spliced(connection)
    rig.close()
    assert CountedPipe.opened == 0


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EPERM])
def test_recv_handles_what_splice_does_not_move(monkeypatch: pytest.MonkeyPatch, rig: Rig, code: int) -> None:
    connection, client = rig.spliced()

    def refuse(*args: object, **options: object) -> int:
        raise os_error(code)

    monkeypatch.setattr(os, "splice", refuse)
    rig.echo(client, PIECE)
    assert not is_spliced(connection)


def test_pipe_that_cannot_be_enlarged_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """fcntl(2), F_SETPIPE_SZ: EPERM for a user with many pipes."""
    before = open_descriptors()

    def refuse(*args: object) -> int:
        raise os_error(errno.EPERM)

    monkeypatch.setattr("fcntl.fcntl", refuse)
    with pytest.raises(PermissionError):
        KernelPipe()
    assert open_descriptors() == before


def test_where_the_system_has_no_splice_there_are_no_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pipes_on(socket) is KernelPipe
    monkeypatch.delattr(os, "splice")
    assert pipes_on(socket) is None
    monkeypatch.undo()
    monkeypatch.setattr(room, "fcntl", None)
    assert pipes_on(socket) is None
