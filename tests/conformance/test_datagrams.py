"""What UDP sockets do, in the kernel and in the simulation."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from reactor import is_unicast, report_paths
from reactor.sockets.pktinfo import MSG_TRUNC, path_of, receiver, reply_control
from tests.conformance.worlds import HERE, KernelWorld, Sockets
from tests.support.basics import told
from tests.support.root import in_network_namespace

LIMITS = [(socket.AF_INET, 65_507), (socket.AF_INET6, 65_527)]
FAMILIES = [socket.AF_INET, socket.AF_INET6]
WILDCARD = {socket.AF_INET: ("0.0.0.0", 0), socket.AF_INET6: ("::", 0, 0, 0)}


@pytest.mark.parametrize("family", FAMILIES)
def test_empty_datagram_is_a_datagram(net: Sockets, family: int) -> None:
    receiver, sender = net.udp(family), net.udp(family)
    assert sender.sendto(b"", receiver.getsockname()) == 0
    net.wait(receiver, "IN")
    assert receiver.recvfrom(10) == (b"", sender.getsockname())
    assert told(receiver.recvfrom, 10) == "EAGAIN"


def test_datagrams_keep_their_boundaries(net: Sockets) -> None:
    receiver, sender = net.udp(), net.udp()
    for data in (b"one", b"", b"three"):
        sender.sendto(data, receiver.getsockname())
    net.wait(receiver, "IN")
    assert [receiver.recv(100) for _ in range(3)] == [b"one", b"", b"three"]


@pytest.mark.parametrize(("family", "most"), LIMITS)
def test_largest_datagram_passes_and_a_larger_one_is_refused(net: Sockets, family: int, most: int) -> None:
    receiver, sender = net.udp(family), net.udp(family)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
    data = bytes(range(256)) * 257
    assert told(sender.sendto, data[: most + 1], receiver.getsockname()) == "EMSGSIZE"
    assert sender.sendto(data[:most], receiver.getsockname()) == most
    net.wait(receiver, "IN")
    assert receiver.recv(1 << 17) == data[:most]


def test_datagram_longer_than_the_buffer_is_cut_and_flagged(net: Sockets) -> None:
    receiver, sender = net.udp(), net.udp()
    sender.sendto(b"abcdef", receiver.getsockname())
    net.wait(receiver, "IN")
    data, control, flags, _source = receiver.recvmsg(3, 100)
    assert (data, control, flags) == (b"abc", [], MSG_TRUNC)
    assert told(receiver.recv, 10) == "EAGAIN"


def test_send_to_port_0_or_broadcast_is_refused(net: Sockets) -> None:
    sender = net.udp()
    assert told(sender.sendto, b"x", ("127.0.0.1", 0)) == "EINVAL"
    assert told(sender.sendto, b"x", ("255.255.255.255", 9)) == "EACCES"
    assert told(sender.connect, ("255.255.255.255", 9)) == "EACCES"
    assert told(sender.send, b"x") == "EDESTADDRREQ"


def test_only_a_connected_socket_gets_the_error_of_a_closed_port(net: Sockets) -> None:
    gone = net.udp()
    address = gone.getsockname()
    gone.close()
    connected, other = net.udp(), net.udp()
    connected.connect(address)
    assert connected.getpeername() == address
    assert connected.send(b"x") == 1
    net.wait(connected, "ERR")
    assert told(connected.recv, 1) == "ECONNREFUSED"
    assert told(connected.recv, 1) == "EAGAIN"
    assert connected.send(b"x") == 1
    net.wait(connected, "ERR")
    assert told(connected.send, b"x") == "ECONNREFUSED"
    assert other.sendto(b"x", address) == 1
    assert net.poll(other) == {"OUT"}


def test_connected_socket_receives_from_its_peer_only(net: Sockets) -> None:
    peer, stranger, connected = net.udp(), net.udp(), net.udp()
    connected.connect(peer.getsockname())
    stranger.sendto(b"stranger", connected.getsockname())
    peer.sendto(b"peer", connected.getsockname())
    net.wait(connected, "IN")
    assert connected.recv(100) == b"peer"
    assert told(connected.recv, 100) == "EAGAIN"


def asked(net: Sockets, family: int, host: str) -> tuple[bytes, Any, Any]:
    """Send a request to a wildcard server at `host`; return the path, the server and the client."""
    server = net.world.socket(family, socket.SOCK_DGRAM)
    report_paths(server)
    server.bind(WILDCARD[socket.AddressFamily(family)])
    client = net.udp(family)
    client.sendto(b"question", (host, *server.getsockname()[1:]))
    net.wait(server, "IN")
    data, control, flags, source = receiver(server)(100)
    assert (data, flags, source) == (b"question", 0, client.getsockname())
    return path_of(control), server, client


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1"])
def test_wildcard_socket_learns_the_asked_address_and_answers_from_it(net: Sockets, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    path, server, client = asked(net, family, host)
    assert len(path) == (20 if ":" in host else 12)
    assert is_unicast(path)
    server.sendmsg([b"answer"], reply_control(path), 0, client.getsockname())
    net.wait(client, "IN")
    data, source = client.recvfrom(100)
    assert (data, source[0], source[1]) == (b"answer", host, server.getsockname()[1])


def test_answer_without_control_data_leaves_from_the_routed_address(net: Sockets) -> None:
    """So a server must hand the path back: 127.9.9.9 was asked, and the answer comes from another address."""
    _path, server, client = asked(net, socket.AF_INET, "127.9.9.9")
    server.sendto(b"answer", client.getsockname())
    net.wait(client, "IN")
    assert client.recvfrom(100)[1][0] == "127.0.0.1"


def test_answer_from_an_address_of_another_machine_is_refused(net: Sockets) -> None:
    _path, server, client = asked(net, socket.AF_INET, "127.0.0.1")
    stranger = bytes(4) + socket.inet_aton("203.0.113.9") * 2
    assert told(server.sendmsg, [b"x"], reply_control(stranger), 0, client.getsockname()) in ("EINVAL", "ENETUNREACH")


def test_full_receive_buffer_drops_new_datagrams(net: Sockets) -> None:
    receiver, sender = net.udp(), net.udp()
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(100):
        sender.sendto(bytes(1000), receiver.getsockname())
    net.wait(receiver, "IN")
    received = 0
    while told(receiver.recv, 2000) != "EAGAIN":
        received += 1
    assert 0 < received < 50


def test_one_port_has_one_owner(net: Sockets) -> None:
    first = net.udp()
    second = net.world.socket(socket.AF_INET, socket.SOCK_DGRAM)
    assert told(second.bind, first.getsockname()) == "EADDRINUSE"
    assert told(second.bind, ("0.0.0.0", first.getsockname()[1])) == "EADDRINUSE"


def test_tcp_and_udp_ports_are_separate(net: Sockets) -> None:
    """Another process may hold the TCP port of that number, but not several times in a row."""
    for _ in range(20):
        first, tcp = net.udp(), net.tcp()
        if told(tcp.bind, first.getsockname()) is None:
            assert tcp.getsockname() == first.getsockname()
            return
    raise AssertionError("no TCP port is free if UDP has it")


def test_closed_socket_frees_its_port(net: Sockets) -> None:
    first = net.udp()
    address = first.getsockname()
    first.close()
    assert net.udp(socket.AF_INET, address).getsockname() == address


def test_wildcard_addresses_agree_with_the_kernel(net: Sockets) -> None:
    """A socket bound to the address comes before a wildcard socket."""
    everywhere = net.udp(socket.AF_INET, ("0.0.0.0", 0))
    sender = net.udp()
    sender.sendto(b"x", ("127.0.0.1", everywhere.getsockname()[1]))
    net.wait(everywhere, "IN")
    assert everywhere.getsockname()[0] == "0.0.0.0"
    assert everywhere.recv(10) == b"x"


@pytest.mark.long
def test_request_to_a_broadcast_address_reports_that_address(net: Sockets) -> None:
    """The kernel needs a network namespace with a broadcast address; the simulation has one."""

    def ask() -> None:
        server, client = net.udp(socket.AF_INET, ("0.0.0.0", 0)), net.udp(socket.AF_INET, ("10.0.0.1", 0))
        report_paths(server)
        address = ("10.0.0.255", server.getsockname()[1])
        assert told(client.sendto, b"x", address) == "EACCES"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.sendto(b"x", address)
        net.wait(server, "IN")
        _data, control, _flags, _source = receiver(server)(100)
        path = path_of(control)
        assert path[4:12] == socket.inet_aton("10.0.0.1") + socket.inet_aton("10.0.0.255")
        assert not is_unicast(path)

    if isinstance(net.world, KernelWorld):
        network = ["link add v0 type veth peer name v1", "addr add 10.0.0.1/24 brd 10.0.0.255 dev v0"]
        network += ["link set v1 up", "link set v0 up"]
        in_network_namespace(network, ask)
    else:
        ask()


# ---------------------------------------------------------------- batches


class Calls:
    """recvmmsg(2) and sendmmsg(2) on a wildcard server of either world, on the same memory."""

    def __init__(self, net: Sockets, family: int) -> None:
        from reactor.fastpath.mmsg import Slots

        self.net = net
        self.server: Any = net.world.socket(family, socket.SOCK_DGRAM)
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        report_paths(self.server)
        self.server.bind(WILDCARD[socket.AddressFamily(family)])
        self.slots = Slots(family == socket.AF_INET6, True)
        if isinstance(self.server, socket.socket):
            self.receive, self.send = self.slots.kernel_calls(self.server.fileno())
        else:
            self.receive = lambda: self.server.recvmmsg(self.slots)
            self.send = lambda first, count: self.server.sendmmsg(self.slots, first, count)

    def ask(self, client: Any, host: str, *datagrams: bytes) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        for data in datagrams:
            client.sendto(data, (host, *self.server.getsockname()[1:]))
        self.net.wait(self.server, "IN")


def came(net: Sockets, client: Any) -> list[tuple[bytes, str]]:
    """All datagrams that a client has received, with their sources."""
    net.wait(client, "IN")
    found = []
    while (one := told(client.recvfrom, 1 << 17)) != "EAGAIN":
        found.append((one[0], one[1][0]))
    return found


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1"])
def test_one_call_receives_or_sends_many_datagrams(net: Sockets, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    calls, client = Calls(net, family), net.udp(family)
    assert told(calls.receive) == "EAGAIN"
    data = [b"one", b"", bytes(range(256)) * 5, bytes(dict(LIMITS)[socket.AddressFamily(family)])]
    for _ in range(2):
        calls.ask(client, host, *data)
        assert calls.receive() == 4
        slots = calls.slots
        assert [bytes(slots.payload(i)) for i in range(4)] == data
        assert {slots.source(i) for i in range(4)} == {client.getsockname()}
        assert all(is_unicast(slots.path(i)) for i in range(4))
        assert slots.truncated(4) == []
        slots.turn_round(4)
        assert calls.send(0, 1) == 1
        assert calls.send(2, 2) == 2
        assert came(net, client) == [(data[0], host), (data[2], host), (data[3], host)]
        slots.make_room(4)
    assert told(calls.receive) == "EAGAIN"


@pytest.mark.parametrize("family", FAMILIES)
def test_datagram_cut_in_a_batch_is_flagged(net: Sockets, family: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reactor.fastpath.mmsg.DATAGRAM_BYTES", 3)
    calls, client = Calls(net, family), net.udp(family)
    calls.ask(client, str(HERE[socket.AddressFamily(family)][0]), b"abcdef", b"abc", b"abcd")
    assert calls.receive() == 3
    assert (list(calls.slots.lengths[:3]), calls.slots.truncated(3)) == ([3, 3, 3], [0, 2])


def test_batch_stops_at_a_failing_datagram_and_the_next_call_raises_why(net: Sockets) -> None:
    """Port 0 can't be sent to. The failing datagram isn't sent, and neither are those after it."""
    calls, client = Calls(net, socket.AF_INET), net.udp()
    calls.ask(client, "127.0.0.1", b"0", b"1", b"2")
    assert calls.receive() == 3
    calls.slots.names[16 + 2 : 16 + 4] = bytes(2)
    calls.slots.turn_round(3)
    assert calls.send(0, 3) == 1
    assert told(calls.send, 1, 2) == "EINVAL"
    assert calls.send(2, 1) == 1
    assert came(net, client) == [(b"0", "127.0.0.1"), (b"2", "127.0.0.1")]


def test_batch_is_no_larger_than_its_slots(net: Sockets) -> None:
    calls, client = Calls(net, socket.AF_INET), net.udp()
    calls.ask(client, "127.0.0.1", *[b"x"] * 70)
    assert (calls.receive(), calls.receive()) == (64, 6)
