"""RFC 862 between hosts: the server on one machine, its clients on another, and real links between the two.

On loopback there are no routes to choose and no neighbours to find. Here are two network namespaces with two veth
links: the kernel resolves neighbours, looks up routes, and knows broadcast addresses, as between two computers. No
packet leaves the namespaces, and they end with the test.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from echo7.sockets.binding import Bound
from reactor.sockets.opening import bind_udp
from tests.support.echo import EchoByHand
from tests.support.loops import is_endpoint, kernel_socket, turn_idle, turn_until, wait_readable
from tests.support.root import in_network_namespace, new_network_namespace, run_ip, udp_over_ipv4, wait_for_network

HERE = "10.1.1.1"  # the server's machine, on the link `one`
THERE = "10.1.1.2"  # the clients' machine, on the same link
HERE_ADDRESSES = [  # fd77:9::9 and 10.9.9.9 are on no link at all
    "10.1.1.1",
    "10.1.1.77",
    "10.2.2.1",
    "10.9.9.9",
    "fd77:1::1",
    "fd77:2::1",
    "fd77:9::9",
]
HERE_COMMANDS = [
    "addr add 10.1.1.1/24 brd + dev one",
    "addr add 10.1.1.77/24 brd + dev one",
    "addr add 10.2.2.1/24 brd + dev two",
    "addr add 10.9.9.9/32 dev lo",
    "-6 addr add fd77:1::1/64 dev one nodad",
    "-6 addr add fd77:2::1/64 dev two nodad",
    "-6 addr add fd77:9::9/128 dev lo",
    "-6 addr add fe80::1/64 dev one nodad",  # one link-local address on both links: only the scope tells them apart
    "-6 addr add fe80::1/64 dev two nodad",
]
THERE_COMMANDS = [
    "addr add 10.1.1.2/24 brd + dev one",
    "addr add 10.2.2.2/24 brd + dev two",
    "addr add 10.5.5.1/32 dev lo",
    "addr add 10.5.5.2/32 dev lo",
    "-6 addr add fd77:1::2/64 dev one nodad",
    "-6 addr add fd77:2::2/64 dev two nodad",
    "-6 addr add fd55::1/128 dev lo",
    "-6 addr add fd55::2/128 dev lo",
    "-6 addr add fe80::2/64 dev one nodad",
    "-6 addr add fe80::2/64 dev two nodad",
    "route add 10.9.9.9/32 via 10.1.1.1",
    "-6 route add fd77:9::9/128 via fd77:1::1",
]
# The way back to the clients' inner addresses: to ….1 by the link `one`, to ….2 by the link `two`.
HERE_ROUTES = [
    "route add 10.5.5.1/32 via 10.1.1.2",
    "route add 10.5.5.2/32 via 10.2.2.2",
    "-6 route add fd55::1/128 via fd77:1::2",
    "-6 route add fd55::2/128 via fd77:2::2",
]
SETTINGS = {
    "ipv4/conf/{}/rp_filter": "0",  # accept packets whose answer takes another link
    "ipv4/conf/{}/arp_ignore": "1",  # answer ARP on a link only for addresses of that link
    "ipv4/conf/{}/arp_announce": "2",  # send ARP requests only with those: the neighbour learns from requests
    "ipv4/conf/{}/accept_local": "1",  # accept forgeries of our own address, so that they reach the server
}
pytestmark = pytest.mark.usefixtures("plain")
PACKET_OUTGOING = 4  # packet(7)
EVERY_PROTOCOL = 3  # ETH_P_ALL
ROOM_BYTES = 1 << 17
ROUNDS = 100


class Namespace:
    """A network namespace that this thread can return to."""

    def __init__(self) -> None:
        self._descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"  # as ip(8) takes it

    def enter(self) -> None:
        if ctypes.CDLL(None, use_errno=True).setns(self._descriptor, 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")

    def close(self) -> None:
        os.close(self._descriptor)


class TwoHosts:
    """The server's machine, where the test runs, and the clients' machine. A socket stays where it was opened."""

    def __init__(self) -> None:
        self._here = Namespace()
        new_network_namespace()
        self._there = Namespace()
        try:
            change_settings()
            self._here.enter()
            change_settings()
            self._lay_links()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._here.enter()
        self._here.close()
        self._there.close()

    @contextlib.contextmanager
    def there(self) -> Iterator[None]:
        """Run this block on the clients' machine."""
        self._there.enter()
        try:
            yield
        finally:
            self._here.enter()

    def client(self, source: tuple[Any, ...] | None, destination: tuple[Any, ...]) -> socket.socket:
        """Return a connected UDP client there. Its kernel drops datagrams from any other address."""
        with self.there():
            sock = socket.socket(socket.AF_INET6 if ":" in destination[0] else socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        if source is not None:
            sock.bind(source)
        sock.connect(destination)
        return sock

    def forge_there(self, source: tuple[str, int], destination: tuple[str, int], data: bytes) -> None:
        """Put a datagram with any source on the link, from the clients' machine to the server's."""
        with self.there():
            forge(source, destination, data)

    def _lay_links(self) -> None:
        for name in ("one", "two"):
            run_ip([f"link add {name} type veth peer name {name} netns {self._there.path}"])
        up = ["link set one addrgenmode none", "link set two addrgenmode none", "link set one up", "link set two up"]
        run_ip([*up, *HERE_COMMANDS])
        with self.there():
            run_ip([*up, *THERE_COMMANDS])
            wait_for_network()
        run_ip(HERE_ROUTES)
        wait_for_network()


def change_settings() -> None:
    for name, value in SETTINGS.items():
        for group in ("all", "default"):
            try:
                (pathlib.Path("/proc/sys/net") / name.format(group)).write_text(value)
            except OSError as error:
                pytest.skip(f"{name.format(group)} can't be set: {error.strerror}")


def raw_socket(family: int, kind: int, protocol: int) -> socket.socket:
    try:
        return socket.socket(family, kind, protocol)
    except PermissionError:
        pytest.skip("raw sockets need CAP_NET_RAW")


def forge(source: tuple[str, int], destination: tuple[str, int], data: bytes) -> None:
    """Send a datagram with a forged source. For use in a namespace only."""
    with raw_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(udp_over_ipv4(source, destination, data), (destination[0], 0))


def on_two_hosts(body: Callable[[TwoHosts, EchoByHand], object]) -> None:
    """Run `body` on the server's machine, with a server on every one of its addresses."""

    def run() -> None:
        hosts = TwoHosts()
        try:
            with EchoByHand(("*",)) as echo:
                body(hosts, echo)
        finally:
            hosts.close()

    in_network_namespace([], run)


def exchange(echo: EchoByHand, client: socket.socket, data: bytes) -> None:
    with client:
        client.send(data)
        assert echo.answer(client) == data


class Tap:
    """Sees every UDP datagram that arrives on a machine, to any address."""

    def __init__(self) -> None:
        self._sock = raw_socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(EVERY_PROTOCOL))
        self._sock.setblocking(False)

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *exception: object) -> None:
        self._sock.close()

    def ports(self) -> list[tuple[int, int]]:
        """Return the source and destination port of each datagram since the last call."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, (_, protocol, kind, *_) = self._sock.recvfrom(ROOM_BYTES)
                start = {0x0800: 4 * (packet[0] & 15), 0x86DD: 40}.get(protocol)
                if start and kind != PACKET_OUTGOING and packet[9 if start < 40 else 6] == socket.IPPROTO_UDP:
                    found.append(struct.unpack("!HH", packet[start : start + 4]))
        return found


@contextlib.contextmanager
def tap_there(hosts: TwoHosts) -> Iterator[Tap]:
    with hosts.there():
        tap = Tap()
    with tap:
        yield tap


# ---------------------------------------------------------------- from the address that was asked


@pytest.mark.parametrize("way_back", ["1", "2"])
def test_each_address_answers_for_itself_on_any_route(way_back: str) -> None:
    """RFC 1122 §4.1.3.5: "the response SHOULD use as its source the specific-destination address of the request".

    Promise 12 on a machine with several addresses on several links. The answer may leave by another link than the
    request came by. An answer bound to the request's link would be lost.
    """

    def body(hosts: TwoHosts, echo: EchoByHand) -> None:
        for asked in HERE_ADDRESSES:
            inner = f"fd55::{way_back}" if ":" in asked else f"10.5.5.{way_back}"
            for data in (b"anything there?", b"in many fragments " * 1000):
                exchange(echo, hosts.client((inner, 0), (asked, echo.port)), data)
        assert echo.server.counters.drops == {}

    on_two_hosts(body)


def test_link_local_address_on_two_links_answers_on_the_link_used() -> None:
    """Promise 12, RFC 4007 §6: a link-local address is valid only within its link."""

    def body(hosts: TwoHosts, echo: EchoByHand) -> None:
        for link in ("one", "two"):
            with hosts.there():
                scope = socket.if_nametoindex(link)
            exchange(echo, hosts.client(("fe80::2", 0, 0, scope), ("fe80::1", echo.port, 0, scope)), link.encode())
        assert echo.server.counters.drops == {}

    on_two_hosts(body)


# ---------------------------------------------------------------- no answer: destinations


def join(echo: EchoByHand, group: str) -> None:
    endpoint = next(h for h in echo.reactor.handlers if is_endpoint(h) and h.address[0] == "0.0.0.0")
    with kernel_socket(endpoint) as sock:
        member = struct.pack("!4s4s", socket.inet_aton(group), socket.inet_aton(HERE))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)


def call_to_many(hosts: TwoHosts, group: str, port: int) -> socket.socket:
    """Send a datagram from the clients' machine to a group, by the link `one`; return the socket."""
    with hosts.there():
        sock = socket.socket(socket.AF_INET6 if ":" in group else socket.AF_INET, socket.SOCK_DGRAM)
        scope = socket.if_nametoindex("one")
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"one")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sock.sendto(b"all of you", (group, port, 0, scope) if ":" in group else (group, port))
    return sock


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        ("255.255.255.255", "destination_broadcast"),
        ("10.1.1.255", "destination_broadcast"),
        ("224.0.0.1", "destination_multicast"),
        ("239.8.6.2", "destination_multicast"),
        ("ff02::1", "destination_multicast"),
    ],
)
def test_broadcast_or_multicast_request_gets_no_answer(group: str, reason: str) -> None:
    """Promise 13, RFC 1122 §3.2.1.3, from another host: a thousand answers to one datagram are a flood."""

    def body(hosts: TwoHosts, echo: EchoByHand) -> None:
        join(echo, "239.8.6.2")
        with tap_there(hosts) as tap, call_to_many(hosts, group, echo.port):
            turn_until(echo.reactor, lambda: echo.server.counters.datagrams_received)
            exchange(echo, hosts.client(None, ("fd77:1::1" if ":" in group else HERE, echo.port)), b"ordinary")
            assert len([source for source, _ in tap.ports() if source == echo.port]) == 1
            assert echo.server.counters.drops == {reason: 1}

    on_two_hosts(body)


# ---------------------------------------------------------------- no answer: other responders


class NaiveResponder:
    """Answers every datagram with a datagram, as echo, chargen and many others do."""

    def __init__(self, hosts: TwoHosts, port: int) -> None:
        with hosts.there():
            self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.bind((THERE, port))
        self.answered = 0

    def answer_all(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, source = self.sock.recvfrom(ROOM_BYTES)
                self.answered += 1
                self.sock.sendto(data, source)


def play(echo: EchoByHand, responder: NaiveResponder) -> None:
    """Let both sides answer, for several rounds: two naive servers would send a datagram each in every round."""
    for _ in range(ROUNDS):
        turn_idle(echo.reactor, 2)
        responder.answer_all()


@pytest.mark.parametrize(("port", "reason"), [(7, "responder"), (19, "responder"), (None, "own"), (0, "zero")])
def test_forged_responder_source_starts_no_loop(port: int | None, reason: str) -> None:
    """Promise 13 (CVE-1999-0103, CVE-2024-2169): a responder gets no answer. None: our own port."""

    def body(hosts: TwoHosts, echo: EchoByHand) -> None:
        blamed = echo.port if port is None else port
        responder = NaiveResponder(hosts, blamed)
        with responder.sock, tap_there(hosts) as tap:
            hosts.forge_there((THERE, blamed), (HERE, echo.port), b"go!")
            turn_until(echo.reactor, lambda: echo.server.counters.datagrams_received)
            play(echo, responder)
            assert (responder.answered, tap.ports()) == (0, [])
            assert echo.server.counters.drops == {f"source_port_{reason}": 1}

    on_two_hosts(body)


@pytest.mark.parametrize("port", [7, 19, None])
def test_responder_deceived_by_our_forged_address_answers_once(port: int | None) -> None:
    """Promise 13 in the other direction: the forgery goes to the responder, and its answer comes to the server."""

    def body(hosts: TwoHosts, echo: EchoByHand) -> None:
        responder = NaiveResponder(hosts, port or echo.port)
        with responder.sock, tap_there(hosts) as tap:
            forge((HERE, echo.port), (THERE, port or echo.port), b"go!")
            wait_readable(responder.sock)
            responder.answer_all()
            turn_until(echo.reactor, lambda: echo.server.counters.datagrams_received)
            play(echo, responder)
            assert responder.answered == len(tap.ports()) == 1
            assert (echo.server.counters.datagrams_received, echo.server.counters.datagrams_sent) == (1, 0)

    on_two_hosts(body)


@pytest.mark.parametrize("source", [HERE, "10.2.2.1", "10.9.9.9"])
@pytest.mark.parametrize("port", [7, None])
def test_forged_source_of_our_own_starts_no_loop(source: str, port: int | None) -> None:
    """Promise 13: a datagram from the link with the server's own address as source, which some kernels accept."""

    def body(hosts: TwoHosts, echo: EchoByHand) -> None:
        hosts.forge_there((source, port or echo.port), (HERE, echo.port), b"go!")
        turn_until(echo.reactor, lambda: echo.server.counters.datagrams_received)
        turn_idle(echo.reactor, ROUNDS)
        counters = echo.server.counters
        assert (counters.datagrams_received, counters.datagrams_sent) == (1, 0)
        assert counters.drops == {"source_port_own" if port is None else "source_port_responder": 1}

    on_two_hosts(body)


@pytest.mark.parametrize("deceived", ["here", "there"])
@pytest.mark.parametrize("other_port", [7, None])
def test_two_echo_servers_cannot_be_made_to_answer_each_other(deceived: str, other_port: int | None) -> None:
    """Promise 13: "Two of our servers on one port number, or with either on a refused port": at most two, ever."""

    def body(hosts: TwoHosts, echo: EchoByHand) -> None:
        with hosts.there():
            sock = bind_udp(socket, (THERE, other_port or echo.port))
        with EchoByHand(bound=Bound(udp=[sock])) as other:
            if deceived == "here":
                hosts.forge_there((THERE, other.port), (HERE, echo.port), b"go!")
            else:
                forge((HERE, echo.port), (THERE, other.port), b"go!")
            first = echo if deceived == "here" else other
            turn_until(first.reactor, lambda: first.server.counters.datagrams_received)
            for _ in range(ROUNDS):
                turn_idle(echo.reactor, 2)
                turn_idle(other.reactor, 2)
            counters = [echo.server.counters, other.server.counters]
            assert sum(c.datagrams_received for c in counters) in (1, 2)
            assert sum(c.datagrams_sent for c in counters) <= 1
            assert sum(sum(c.drops.values()) for c in counters) == 1

    on_two_hosts(body)


def test_forged_link_broadcast_source_gets_no_answer() -> None:
    """Promise 13: an answer to 10.1.1.255 would reach every host on the link. Only the kernel can know and refuse."""

    def body(hosts: TwoHosts, echo: EchoByHand) -> None:
        with tap_there(hosts) as tap:
            hosts.forge_there(("10.1.1.255", 5000), (HERE, echo.port), b"go!")
            exchange(echo, hosts.client(None, (HERE, echo.port)), b"ordinary")
            assert len(tap.ports()) == 1
            assert echo.server.counters.datagrams_sent == 1

    on_two_hosts(body)
