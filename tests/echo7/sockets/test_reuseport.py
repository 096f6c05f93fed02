"""Sockets for several workers: the kernel balances, a second daemon is refused, and a failure leaves no socket."""

from __future__ import annotations

import contextlib
import errno
import socket

import pytest

from echo7.sockets import reuseport
from echo7.sockets.binding import BindError, Bound, bind_all
from reactor.sockets.errors import os_error
from tests.support.basics import PATIENCE_S, open_descriptors, quiet_port
from tests.support.faults import Faults, FlakySockets

pytestmark = pytest.mark.skipif(not reuseport.AVAILABLE, reason="Linux alone balances")


def shared(count: int, sockets: FlakySockets | None = None) -> list[Bound]:
    factory = FlakySockets() if sockets is None else sockets
    first = bind_all(factory, ["127.0.0.1"], 0)
    return reuseport.share(factory, first, count, 100, None)


def address_of(sets: list[Bound]) -> tuple[str, int]:
    address: tuple[str, int] = sets[0].tcp[0].getsockname()
    return address


def test_every_set_has_the_same_addresses() -> None:
    sets = shared(3)
    found = {sock.getsockname() for bound in sets for sock in bound.tcp + bound.udp}
    assert found == {address_of(sets)}
    assert [(len(bound.tcp), len(bound.udp)) for bound in sets] == [(1, 1)] * 3
    for bound in sets:
        bound.close()


def test_connections_and_datagrams_are_spread_over_all_sets() -> None:
    """Also over the first one, which got the option only after it was bound and listened."""
    sets = shared(3)
    with contextlib.ExitStack() as stack:
        for bound in sets:
            stack.callback(bound.close)
        for number in range(60):
            stack.enter_context(socket.create_connection(address_of(sets), PATIENCE_S))
            client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            client.connect(address_of(sets))
            client.send(b"%d" % number)
        connections, datagrams = [], []
        for bound in sets:
            connections.append(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    stack.enter_context(bound.tcp[0].accept()[0])
                    connections[-1] += 1
            datagrams.append(0)
            with contextlib.suppress(BlockingIOError):
                while bound.udp[0].recv(10):
                    datagrams[-1] += 1
    assert sum(connections) == sum(datagrams) == 60
    assert all(connections), connections
    assert all(datagrams), datagrams


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_second_daemon_is_refused(transport: str) -> None:
    sets = shared(2)
    wanted = {"tcp": transport == "tcp", "udp": transport == "udp"}
    with pytest.raises(BindError, match=f"cannot bind {transport} .*Address already in use"):
        bind_all(socket, ["127.0.0.1"], address_of(sets)[1], **wanted)
    for bound in sets:
        bound.close()


def test_port_can_be_bound_again_at_once() -> None:
    port = quiet_port()
    for _ in range(2):
        sets = reuseport.share(socket, bind_all(socket, ["127.0.0.1"], port), 2, 100, None)
        with socket.create_connection(address_of(sets), PATIENCE_S):
            for bound in sets:
                bound.close()


@pytest.mark.parametrize("call", ["socket", "bind", "listen"])
def test_shortage_is_one_line_and_leaves_nothing_open(call: str) -> None:
    sockets = FlakySockets(Faults())
    before = open_descriptors()
    first = bind_all(sockets, ["127.0.0.1"], 0)
    sockets.faults.add(call, None, os_error(errno.EMFILE))
    with pytest.raises(BindError, match=r"cannot bind 127.0.0.1:\d+ for 3 workers: Too many open files; try fewer"):
        reuseport.share(sockets, first, 3, 100, None)
    assert open_descriptors() == before
