"""The selector over epoll, and the simulated one."""

from __future__ import annotations

import selectors
import socket
import sys
from collections.abc import Iterator

import pytest

from reactor import READ, WRITE
from reactor.fastpath.epoll import LeanEpollSelector
from reactor.sockets.opening import Socket
from tests.conformance.worlds import KernelWorld, SimulatedWorld, Sockets
from tests.support.basics import told


class LeanWorld(KernelWorld):
    """The kernel, through `reactor.fastpath.epoll`."""

    def selector(self) -> selectors.BaseSelector:
        made = LeanEpollSelector()
        self.made.append(made)
        return made


@pytest.fixture(params=[KernelWorld, LeanWorld, SimulatedWorld], ids=["kernel", "lean", "simulation"])
def net(request: pytest.FixtureRequest) -> Iterator[Sockets]:
    if request.param is not SimulatedWorld and sys.platform != "linux":
        pytest.skip("the simulation does what Linux does")
    world = request.param()
    yield Sockets(world)
    world.close()


def masks(selector: selectors.BaseSelector) -> dict[object, int]:
    return {key.data: mask for key, mask in selector.select(0)}


def watched(net: Sockets, sock: Socket, interest: int) -> selectors.BaseSelector:
    selector = net.world.selector()
    selector.register(sock.fileno(), interest, "it")
    return selector


def test_readiness_is_level_triggered(net: Sockets) -> None:
    """Readiness that isn't handled is reported again."""
    server, client = net.pair()
    selector = watched(net, server, READ)
    assert masks(selector) == {}
    client.send(b"x")
    net.wait(server, "IN")
    assert masks(selector) == masks(selector) == {"it": READ}
    server.recv(1)
    assert masks(selector) == {}


def test_only_the_registered_interest_is_reported(net: Sockets) -> None:
    server, client = net.pair()
    client.send(b"x")
    net.wait(server, "IN")
    selector = watched(net, server, WRITE)
    assert masks(selector) == {"it": WRITE}
    selector.modify(server.fileno(), READ | WRITE, "other")
    assert masks(selector) == {"other": READ | WRITE}
    selector.unregister(server.fileno())
    assert masks(selector) == {}


@pytest.mark.parametrize("interest", [READ, WRITE, READ | WRITE])
def test_reset_is_reported_for_any_interest(net: Sockets, interest: int) -> None:
    """HUP and ERR count as READ and WRITE, so a handler that watches for one of them sees the end."""
    server, client = net.pair()
    client.send(b"unread")
    net.wait(server, "IN")
    server.close()
    net.wait(client, "RDHUP")
    assert masks(watched(net, client, interest)) == {"it": interest}


def test_closed_descriptor_is_not_reported_but_its_key_stays(net: Sockets) -> None:
    """So teardown must unregister first: otherwise the number's next owner can't be registered."""
    server, client = net.pair()
    client.send(b"x")
    net.wait(server, "IN")
    selector, number = watched(net, server, READ), server.fileno()
    server.close()
    assert masks(selector) == {}
    while (successor := net.tcp()).fileno() != number:
        pass
    with pytest.raises(KeyError):
        selector.register(successor.fileno(), READ, "successor")
    assert selector.get_key(number).data == "it"


def test_descriptor_closed_by_other_code_is_forgotten_and_its_calls_fail(net: Sockets) -> None:
    """The peer sees FIN; the selector reports nothing, and neither changes nor takes it."""
    server, client = net.pair()
    selector, number = watched(net, server, READ), server.fileno()
    net.world.lose(number)
    assert masks(selector) == {}
    net.wait(client, "IN")
    assert client.recv(1) == b""
    assert server.fileno() == number
    for call in (lambda: server.recv(1), lambda: server.send(b"x"), lambda: server.shutdown(socket.SHUT_WR)):
        assert told(call) == "EBADF"
    assert told(server.setsockopt, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1) == "EBADF"
    assert told(selector.modify, number, READ | WRITE, "it") == "EBADF"
    assert number not in selector.get_map()
    assert told(selector.register, number, READ, "it") == "EBADF"
    assert told(server.close) == "EBADF"
    assert server.fileno() == -1
    server.close()


def test_number_that_another_socket_has_taken_is_unknown_to_the_selector(net: Sockets) -> None:
    """ENOENT tells it from a number that is free. The next register of the number finds the new socket."""
    server, _ = net.pair()
    selector, number = watched(net, server, READ), server.fileno()
    net.world.lose(number)
    while net.tcp().fileno() != number:
        pass
    assert masks(selector) == {}
    assert told(selector.modify, number, READ | WRITE, "it") == "ENOENT"
    selector.register(number, WRITE, "successor")
    assert masks(selector) == {"successor": WRITE}
    server.detach()


def test_misuse_raises(net: Sockets) -> None:
    sock = net.tcp()
    selector = net.world.selector()
    for events in (0, 4):
        with pytest.raises(ValueError, match="nvalid events"):
            selector.register(sock.fileno(), events, None)
    for change in (selector.unregister, lambda number: selector.modify(number, READ, None)):
        with pytest.raises(KeyError):
            change(sock.fileno())
    selector.register(sock, READ, None)
    with pytest.raises(KeyError):
        selector.register(sock, READ, None)
    assert len(selector.get_map()) == 1
    selector.unregister(sock)
    sock.close()
    with pytest.raises(ValueError, match="nvalid file descriptor"):
        selector.register(sock, READ, None)


def test_select_without_events_returns_after_the_timeout(net: Sockets) -> None:
    sock = net.udp()
    selector = watched(net, sock, READ)
    assert selector.select(0.001) == []
    assert selector.select(0) == []
    assert selector.select(-1) == []
