"""Everything that a loop holds, in one readable table."""

from __future__ import annotations

import errno
import functools
import socket

import pytest

from reactor import Reactor, open_udp
from reactor.fastpath.batch import BatchProtocol, batch_on
from reactor.observe.describe import callback_name, handler_name, place
from reactor.observe.snapshot import CALL_ROWS, HANDLER_ROWS, MOST_ROWS, TIMER_ROWS, dump
from reactor.sockets.addresses import format_address
from reactor.sockets.errors import os_error
from reactor.sockets.opening import bind_udp
from reactor.testing import SimulatedNetwork
from tests.support.clients import reset
from tests.support.echo import EchoByHand
from tests.support.faults import Faults, adopt_socket
from tests.support.loops import DatagramRecorder, Recorder, Stage, turn_idle, wait_readable


def row(table: str, beginning: str) -> list[str]:
    """Return the cells of the row that begins with this text."""
    [line] = [line for line in table.splitlines() if line.startswith(beginning)]
    return line.split()


def test_handlers_interest_buffers_and_timers_are_in_one_table() -> None:
    """Issue: "`SIGUSR2`/`reactor.observe.snapshot()`: handlers, interest, buffers, timers, in one readable table"."""
    with EchoByHand(udp=False) as echo, echo.connect() as client:
        [connection] = echo.connections
        echo.fill(client, connection)
        echo.reactor.call_later(7.5, echo.server.abort)
        echo.reactor.call_soon(functools.partial(echo.server.stop, None))
        table = dump(echo.reactor)
        pending = f"{connection.pending_bytes:,}"
        summary, head, *_ = table.splitlines()
        assert summary == f"3 handlers, {pending} bytes pending, 1 timers, 1 calls"
        assert head.split() == ["what", "fd", "watched", "state", "pending", "received", "sent", "where"]
        assert row(table, "Waker")[1:] == [str(next(iter(echo.reactor.handlers)).fileno()), "r"]
        assert row(table, "Listener")[2:] == ["r", format_address(("127.0.0.1", echo.port))]
        peer = format_address(client.getsockname())
        received, sent = f"{connection.bytes_received:,}", f"{connection.bytes_sent:,}"
        descriptor = str(connection.fileno())
        cells = ["Connection", descriptor, "w", "OPEN", pending, received, sent, f"{peer},", "StreamEcho"]
        assert row(table, "Connection") == cells
        assert row(table, "timer in 7.")[4:] == ["echo7.server.EchoServer.abort"]
        assert row(table, "call") == ["call:", "echo7.server.EchoServer.stop"]


def test_large_loop_gives_200_rows_with_the_fullest_first() -> None:
    """Issue: "at most 200 rows"."""
    with EchoByHand(udp=False) as echo:
        clients = [echo.connect() for _ in range(HANDLER_ROWS + 7)]
        fullest = echo.connections[-1]
        echo.fill(clients[-1], fullest)
        timers = [echo.reactor.call_later(1 + number, int) for number in range(TIMER_ROWS + 3)]
        timers[0].cancel()
        for _ in range(CALL_ROWS + 5):
            echo.reactor.call_soon(int)
        lines = dump(echo.reactor).splitlines()
        for client in clients:
            client.close()
        assert len(lines) <= MOST_ROWS == 200
        assert [line.split()[0] for line in lines[2:5]] == ["Waker", "Listener", "Connection"]
        assert f" {fullest.pending_bytes:,} " in lines[4]
        assert "… and 9 more handlers, 0 bytes pending" in lines
        assert "… and 2 more timers" in lines
        assert "… and 5 more calls" in lines


def test_suspended_handler_is_in_brackets_and_unwatched_one_has_a_dash() -> None:
    with Stage() as stage:
        stage.connection.pause_reading()
        assert row(dump(stage.reactor), "Connection")[2] == "-"
        stage.connection.resume_reading()
        stage.reactor.suspend(stage.connection)
        assert row(dump(stage.reactor), "Connection")[2] == "(r)"


def test_held_datagram_counts_as_pending() -> None:
    network = SimulatedNetwork(1)
    with network.reactor() as loop:
        open_udp(loop, ("10.0.0.1", 7), DatagramRecorder(echo=True))
        assert row(dump(loop), "Datagram")[3:5] == ["0", "0"]
        network.udp_peer(port=5000).send(b"123", ("10.0.0.1", 7))
        network.plan("sendmsg", "EAGAIN")
        turn_idle(loop, 3)
        assert row(dump(loop), "Datagram")[3:5] == ["3", "3"]


def test_held_batch_counts_as_pending() -> None:
    faults = Faults()
    with Reactor() as loop:
        plain = bind_udp(socket, ("127.0.0.1", 0))
        batch = batch_on(loop, adopt_socket(plain, faults), BatchProtocol())
        if batch is None:
            pytest.skip("no fast path for UDP here")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"1234", batch.address)
            client.sendto(b"12345", batch.address)
            faults.add("sendmmsg", os_error(errno.EAGAIN))
            loop.turn()
        assert row(dump(loop), "DatagramBatch")[3:6] == ["9", "9", "0"]


def test_peer_without_an_address_is_shown_as_gone() -> None:
    with Stage() as stage:
        assert place(stage.connection) == format_address(stage.peer.getsockname())
        assert handler_name(stage.connection) == f"Connection of Recorder, {place(stage.connection)}"
        reset(stage.peer)
        wait_readable(stage.connection)
        assert place(stage.connection) == "gone"
        assert handler_name(next(iter(stage.reactor.handlers))) == "Waker"


class Callable_:
    def __call__(self) -> None:
        """Do nothing."""

    def method(self) -> None:
        """Do nothing."""


def test_callback_is_named_by_its_definition() -> None:
    here = __name__
    assert callback_name(Callable_().method) == f"{here}.Callable_.method"
    assert callback_name(functools.partial(functools.partial(Callable_().method))) == f"{here}.Callable_.method"
    assert callback_name(Callable_()) == f"{here}.Callable_"
    assert callback_name(row) == f"{here}.row"
    assert callback_name(int) == "builtins.int"
    assert callback_name(len) == "builtins.len"
    assert callback_name([].append) == "builtins.list.append"
    assert callback_name(Recorder().connection_lost) == "tests.support.loops.Recorder.connection_lost"
    assert callback_name(lambda: None).endswith("test_callback_is_named_by_its_definition.<locals>.<lambda>")
