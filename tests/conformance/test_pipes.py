"""splice(2) from and to sockets, in the kernel and in the simulation."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conformance.worlds import KernelWorld, SimulatedWorld, Sockets
from tests.support.basics import told
from tests.support.clients import reset
from tests.support.echo import CAN_SPLICE

pytestmark = pytest.mark.skipif(not CAN_SPLICE, reason="no splice(2) here")

MOST = 1 << 17


def test_bytes_leave_the_pipe_in_order(net: Sockets) -> None:
    server, client = net.pair()
    pipe = net.world.pipe()
    client.send(b"hello ")
    client.send(b"world")
    net.wait(server, "IN")
    assert pipe.fill(server, 3) == 3
    assert pipe.fill(server, MOST) == 8
    assert pipe.drain(server, 4) == 4
    assert pipe.read(2) == b"o "
    assert pipe.drain(server, 5) == 5
    net.wait(client, "IN")
    assert client.recv(100) == b"hellworld"


def test_fill_from_a_silent_socket_moves_nothing(net: Sockets) -> None:
    server, _ = net.pair()
    assert net.world.pipe().fill(server, MOST) == 0


def test_fill_at_the_end_moves_nothing_and_recv_reports_the_end(net: Sockets) -> None:
    server, client = net.pair()
    pipe = net.world.pipe()
    client.send(b"last words")
    client.shutdown(socket.SHUT_WR)
    net.wait(server, "IN", "RDHUP")
    assert pipe.fill(server, MOST) == 10
    assert pipe.fill(server, MOST) == 0
    assert server.recv(1) == b""


def test_urgent_mark_stops_fill_and_recv_goes_on(net: Sockets) -> None:
    """Issue: "The kernel's splice stops at an urgent mark and reports nothing to read"."""
    server, client = net.pair(inline=True)
    pipe = net.world.pipe()
    client.send(b"abc")
    client.send(b"X", socket.MSG_OOB)
    client.send(b"def")
    net.wait(server, "IN", "PRI")
    assert pipe.fill(server, MOST) == 3
    assert pipe.fill(server, MOST) == 0
    assert server.recv(100) == b"Xdef"


def test_urgent_mark_before_the_end_looks_like_the_end(net: Sockets) -> None:
    """A program that takes splice's 0 for the end of the stream loses the last four bytes here."""
    server, client = net.pair(inline=True)
    pipe = net.world.pipe()
    client.send(b"abc")
    client.send(b"X", socket.MSG_OOB)
    client.send(b"def")
    client.shutdown(socket.SHUT_WR)
    net.wait(server, "IN", "RDHUP")
    assert pipe.fill(server, MOST) == 3
    assert pipe.fill(server, MOST) == 0
    assert server.recv(100) == b"Xdef"
    assert server.recv(100) == b""


def test_reset_is_raised_once_after_the_arrived_bytes(net: Sockets) -> None:
    """After it, recv(2) reports an orderly end, so the error from splice must be used."""
    server, client = net.pair()
    pipe = net.world.pipe()
    client.send(b"unread")
    net.wait(server, "IN")
    reset(client)
    net.wait(server, "ERR")
    assert pipe.fill(server, MOST) == 6
    assert told(pipe.fill, server, MOST) == "ECONNRESET"
    assert pipe.fill(server, MOST) == 0
    assert server.recv(100) == b""


def test_drain_to_a_reset_socket_raises(net: Sockets) -> None:
    server, client = net.pair()
    pipe = net.world.pipe()
    client.send(b"in the pipe")
    net.wait(server, "IN")
    assert pipe.fill(server, MOST) == 11
    reset(client)
    net.wait(server, "ERR")
    assert told(pipe.drain, server, 11) == "ECONNRESET"
    assert told(pipe.drain, server, 11) == "EPIPE"


def test_full_socket_takes_nothing_from_the_pipe(net: Sockets) -> None:
    source, sender = net.pair()
    server, client = net.pair()
    for sock, option in ((server, socket.SO_SNDBUF), (client, socket.SO_RCVBUF)):
        sock.setsockopt(socket.SOL_SOCKET, option, 4096)
    pipe, held = net.world.pipe(), 0
    while not held:
        sender.send(bytes(10_000))
        net.wait(source, "IN")
        held = pipe.fill(source, MOST)
        while held and (drained := told(pipe.drain, server, held)) != "EAGAIN":
            held -= drained
    assert "OUT" not in net.poll(server)


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=9), st.integers(1, 12), st.just("urgent"), st.just("recv"))))
def test_any_order_of_pipe_calls_gives_the_same_results(steps: list[bytes | int | str]) -> None:
    """A pipe and recv(2) take turns at one socket, with urgent bytes; kernel and simulation agree."""
    assert _play(KernelWorld, steps) == _play(SimulatedWorld, steps)


def _play(make: Callable[[], KernelWorld | SimulatedWorld], steps: list[bytes | int | str]) -> list[object]:
    world, told_so_far = make(), list[object]()
    net = Sockets(world)
    server, client = net.pair(inline=True)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # the simulation has no Nagle
    pipe, unread = world.pipe(), 0
    for step in steps:
        if isinstance(step, int):
            moved = pipe.fill(server, step)
            told_so_far.append((moved, pipe.read(moved) if moved else b""))
            unread -= moved
        elif step == "recv":
            data = told(server.recv, 5)
            told_so_far.append(data)
            unread -= len(data) if isinstance(data, bytes) else 0
        else:
            flags = socket.MSG_OOB if step == "urgent" else 0
            unread += client.send(step if isinstance(step, bytes) else b"!", flags)
            net.wait(server, "IN")
    world.close()
    return [*told_so_far, unread]
