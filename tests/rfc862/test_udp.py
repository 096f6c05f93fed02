"""RFC 862, UDP: "When a datagram is received, the data from it is sent back in an answering datagram."."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7.policy.echo import DatagramEcho
from echo7.policy.guard import RESPONDER_PORTS, Guard
from echo7.process import handover
from echo7.server import EchoServer
from echo7.sockets.binding import BindError, Bound
from echo7.sockets.reuseport import AVAILABLE
from reactor import Datagram, Reactor
from reactor.sockets.errors import os_error
from reactor.sockets.opening import bind_udp
from tests.support.basics import has_ipv6
from tests.support.daemon import serve_config
from tests.support.echo import EchoByHand, EchoThread
from tests.support.faults import EAGAIN, EINTR, FlakySockets
from tests.support.loops import ManualClock, is_endpoint, kernel_socket, turn_idle, turn_until
from tests.support.root import forge, in_network_namespace, udp_over_ipv4

IPV4_MOST_BYTES = 65_507  # 65,535 less 20 bytes of IPv4 header and 8 of UDP header (RFC 791, RFC 768)
IPV6_MOST_BYTES = 65_527  # 65,535 less 8: the IPv6 header doesn't count (RFC 8200 §3)
SIZES = [0, 1, 2, 511, 512, 1472, 1473, 8193, IPV4_MOST_BYTES]
ROOM_BYTES = 1 << 17  # more than any datagram: one that has grown would show
PINGS = 3
LOOPBACK_INDEX = 1  # Linux gives it to `lo` in every namespace

pytestmark = pytest.mark.usefixtures("plain")
needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="needs IPv6 on loopback")


@pytest.fixture(scope="module")
def echo(plain: bool) -> Iterator[EchoThread]:
    with EchoThread(("*",)) as server:
        yield server


def pattern(size: int, seed: bytes) -> bytes:
    """Return `size` bytes in which no two packets are alike."""
    return (seed * (size // len(seed) + 1))[:size]


def ordinary(echo: EchoByHand, host: str = "127.0.0.1") -> None:
    """Check that an ordinary datagram is answered. All earlier ones are answered or dropped by then."""
    with echo.udp(host) as client:
        client.send(b"ordinary")
        assert echo.answer(client) == b"ordinary"


def assert_silent(sock: socket.socket) -> None:
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(ROOM_BYTES)


# ---------------------------------------------------------------- every size, unchanged, one for one


@pytest.mark.parametrize(
    ("served", "host", "most_bytes"),
    [
        ("127.0.0.1", "127.0.0.1", IPV4_MOST_BYTES),
        ("*", "127.0.0.1", IPV4_MOST_BYTES),
        pytest.param("::1", "::1", IPV6_MOST_BYTES, marks=needs_ipv6),
        pytest.param("*", "::1", IPV6_MOST_BYTES, marks=needs_ipv6),
    ],
)
def test_datagram_of_every_size_comes_back_in_one(served: str, host: str, most_bytes: int) -> None:
    """Promise 11: "A datagram of every size 0…65,507 (IPv6 65,527) […] comes back unchanged in one datagram"."""
    with EchoThread((served,)) as echo, echo.udp(host) as client:
        for size in (*SIZES, most_bytes - 1, most_bytes):
            data = pattern(size, bytes(range(251)))
            client.send(data)
            assert client.recv(ROOM_BYTES) == data
            client.send(b"next")
            assert client.recv(ROOM_BYTES) == b"next"


@given(size=st.integers(0, IPV4_MOST_BYTES), seed=st.binary(min_size=1, max_size=300))
def test_any_datagram_comes_back_unchanged(echo: EchoThread, size: int, seed: bytes) -> None:
    """Promise 11 for any size and any content."""
    with echo.udp("127.0.0.1") as client:
        client.send(pattern(size, seed))
        assert client.recv(ROOM_BYTES) == pattern(size, seed)


@given(datagrams=st.lists(st.binary(max_size=1000), max_size=40))
def test_burst_is_answered_one_for_one_in_order(echo: EchoThread, datagrams: list[bytes]) -> None:
    """RFC 862: each gets "an answering datagram", an empty one too: no merging, splitting, doubling or loss."""
    with echo.udp("127.0.0.1") as client:
        for data in datagrams:
            client.send(data)
        assert [client.recv(ROOM_BYTES) for _ in datagrams] == datagrams
        client.send(b"the end")
        assert client.recv(ROOM_BYTES) == b"the end"


@pytest.mark.parametrize("buffer_bytes", [1024, 16_384])
def test_capped_buffers_of_connections_still_carry_the_largest_datagram(buffer_bytes: int) -> None:
    """Promise 11 under `--socket-buffer`."""
    data = pattern(IPV4_MOST_BYTES, b"large")
    with EchoThread(("127.0.0.1",), socket_buffer_bytes=buffer_bytes) as echo, echo.udp() as client:
        client.send(data)
        assert client.recv(ROOM_BYTES) == data


def test_capped_buffers_of_connections_lose_no_burst_of_datagrams() -> None:
    """Issue: "`--socket-buffer` also shrinks the UDP buffer: 15 of 36 datagrams lost"."""
    with EchoByHand(socket_buffer_bytes=4096) as echo, echo.udp() as client:
        for _ in range(36):
            client.send(bytes(1000))
        turn_until(echo.reactor, lambda: echo.server.counters.datagrams_sent == 36)


@pytest.mark.skipif(not AVAILABLE, reason="--workers needs Linux")
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("way", ["bound", "inherited"])
def test_socket_buffer_leaves_datagram_sockets_as_they_are(workers: str, way: str) -> None:
    """However the sockets came: bound here, or from the generation before."""
    capped, plain = (
        serve_config("--host", "127.0.0.1", "--port", "0", "--workers", workers, *more)
        for more in (["--socket-buffer", "4096"], [])
    )
    sizes: list[set[int]] = []
    for settings in (capped, plain):
        sets, _ = handover.open_sockets(settings, socket, None)
        with contextlib.ExitStack() as stack:
            for bound in sets:
                stack.callback(bound.close)
                if way == "inherited":
                    bound.configure(settings.backlog, settings.socket_buffer_bytes)
            udp = [sock for bound in sets for sock in bound.udp]
            sizes.append({sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) for sock in udp})
    assert len(sizes[0]) == 1
    assert sizes[0] == sizes[1]


def test_several_clients_get_their_own_answers(echo: EchoThread) -> None:
    """RFC 862: with several clients, each answer goes to the source of its datagram."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(echo.udp("127.0.0.1")) for _ in range(8)]
        for round_number in range(5):
            for number, client in enumerate(clients):
                client.send(b"%d of %d" % (round_number, number))
        for round_number in range(5):
            for number, client in enumerate(clients):
                assert client.recv(ROOM_BYTES) == b"%d of %d" % (round_number, number)


# ---------------------------------------------------------------- from the address that was asked


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "127.200.3.4", pytest.param("::1", marks=needs_ipv6)])
def test_answer_comes_from_the_address_asked(echo: EchoThread, host: str) -> None:
    """RFC 1122 §4.1.3.5: "the response SHOULD use as its source the specific-destination address of the request".

    Promise 12. The client is connected, so its kernel drops datagrams from any other address.
    """
    with echo.udp(host) as client:
        client.send(b"anything there?")
        data, source = client.recvfrom(ROOM_BYTES)
        assert (data, source[:2]) == (b"anything there?", (host, echo.port))


def test_machine_with_several_addresses_answers_from_the_one_asked() -> None:
    """Promise 12 beyond 127/8: several addresses of both families, one of them link-local with its scope."""

    def body() -> None:
        with EchoByHand(("*",)) as echo:
            for address in (("10.1.1.1",), ("10.1.1.2",), ("fd77::1",), ("fd77::2",), ("fe80::1", 0, LOOPBACK_INDEX)):
                family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
                with socket.socket(family, socket.SOCK_DGRAM) as client:
                    client.setblocking(False)
                    client.connect((address[0], echo.port, *address[1:]))
                    client.send(b"which?")
                    assert echo.answer(client) == b"which?"

    hosts = ("10.1.1.1/24", "10.1.1.2/24", "fd77::1/64", "fd77::2/64", "fe80::1/64")
    in_network_namespace([f"addr add {host} dev lo" for host in hosts], body)


# ---------------------------------------------------------------- no answer: sources


@pytest.mark.parametrize("port", sorted({7, 13, 17, 19, 37, 53, 69, 123} | RESPONDER_PORTS.keys()))
def test_known_responder_port_gets_no_answer(port: int) -> None:
    """Promise 13: else one forged datagram would go back and forth between two responders for ever (CVE-1999-0103)."""
    with EchoByHand(("*",)) as echo, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as responder:
        try:
            responder.bind(("127.77.0.1", port))
        except OSError as error:
            pytest.skip(f"port {port}: {error.strerror}")
        responder.sendto(b"chargen", ("127.0.0.1", echo.port))
        ordinary(echo)
        assert_silent(responder)
        assert echo.server.counters.drops == {"source_port_responder": 1}


@pytest.mark.parametrize("port", [8, 12, 1024, 7007, 65_535])
def test_any_other_source_port_is_answered(port: int) -> None:
    """RFC 862 makes no exceptions: only the ports that promise 13 names are refused."""
    with EchoByHand(("*",)) as echo, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        try:
            client.bind(("127.77.0.1", port))
        except OSError as error:
            pytest.skip(f"port {port}: {error.strerror}")
        client.sendto(b"an ordinary client", ("127.0.0.1", echo.port))
        assert echo.answer(client) == b"an ordinary client"
        assert echo.server.counters.drops == {}


@pytest.mark.parametrize("served", ["127.0.0.1", "*"])
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (("127.0.0.1", 0), "source_port_zero"),
        (("127.9.9.9", 0), "source_port_zero"),
        (("224.0.0.1", 5000), "source_multicast"),
        (("239.255.255.255", 5000), "source_multicast"),
        (("255.255.255.255", 5000), "source_broadcast"),
        (("127.255.255.255", 5000), "send_EACCES"),  # a subnet's broadcast: only the kernel knows it
    ],
    ids=str,
)
def test_forged_source_that_is_no_single_host_gets_no_answer(served: str, source: tuple[str, int], reason: str) -> None:
    """Promise 13, and RFC 1122 §3.2.1.3: such an address "MUST NOT be used as a source address". Nor port 0."""
    with EchoByHand((served,)) as echo:
        forge(udp_over_ipv4(source, ("127.0.0.1", echo.port), b"forged"))
        ordinary(echo)
        counters = echo.server.counters
        assert counters.drops == {reason: 1}
        assert (counters.datagrams_received, counters.datagrams_sent) == (2, 1)


class NoEndpoint:
    """An endpoint for datagrams that this kernel wouldn't deliver: it records calls, and sends nothing."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.dropped: list[str] = []

    def send(self, *arguments: Any) -> bool:
        self.sent.append(arguments)
        return True

    def drop(self, reason: str, peer: Any = None) -> None:
        self.dropped.append(reason)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (("ff02::1", 5000, 0, 1), "source_multicast"),
        (("ff0e::4:5:6", 5000, 0, 0), "source_multicast"),
        (("::ffff:224.0.0.251", 5000, 0, 0), "source_multicast"),
        (("::ffff:255.255.255.255", 5000, 0, 0), "source_broadcast"),
        (("::", 5000, 0, 0), "source_unspecified"),
        (("0.0.0.0", 5000), "source_unspecified"),
        (("fe80::1%eth0", 0, 0, 2), "source_port_zero"),
        (("2001:db8::1", 5353, 0, 0), "source_port_responder"),
        (("2001:db8::1", 40_000, 0, 0), "source_port_own"),
    ],
    ids=str,
)
def test_source_that_the_kernel_would_drop_is_refused_by_the_guard_too(source: tuple[Any, ...], reason: str) -> None:
    """Promise 13 doesn't rest on the kernel's own checks, which differ from system to system."""
    endpoint = NoEndpoint()
    echo = DatagramEcho(Guard([40_000]), lambda *_: None)
    echo.datagram_received(cast("Datagram", endpoint), b"forged", source, b"")
    assert (endpoint.sent, endpoint.dropped) == ([], [reason])


@pytest.mark.parametrize("source", [("2001:db8::ff02", 5000, 0, 0), ("ff::1", 5000, 0, 0), ("223.255.255.1", 5000)])
def test_source_that_only_looks_like_multicast_is_answered(source: tuple[Any, ...]) -> None:
    """Multicast addresses have ff in the first byte. ff::1 is 00ff::1, a single host."""
    endpoint = NoEndpoint()
    DatagramEcho(Guard(), lambda *_: None).datagram_received(cast("Datagram", endpoint), b"honest", source, b"")
    assert endpoint.sent == [(b"honest", source, b"")]


# ---------------------------------------------------------------- no answer: other echo servers


def test_source_port_of_our_own_gets_no_answer() -> None:
    """Promise 13: a source with the server's port number may be another echo server."""
    with EchoByHand() as echo, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as twin:
        twin.bind(("127.0.0.2", echo.port))
        twin.sendto(b"hello, me", ("127.0.0.1", echo.port))
        ordinary(echo)
        assert_silent(twin)
        assert echo.server.counters.drops == {"source_port_own": 1}


@contextlib.contextmanager
def two_servers(ports: tuple[int, int]) -> Iterator[tuple[EchoByHand, EchoByHand]]:
    """Start servers at 127.8.6.1 and 127.8.6.2 (port 0: any). Skip the test where a port can't be bound."""
    with Reactor() as reactor, contextlib.ExitStack() as stack:
        servers: list[EchoByHand] = []
        for number, port in enumerate(ports, 1):
            port = port or (servers[0].port if servers else 0)
            try:
                sock = bind_udp(reactor.sockets, (f"127.8.6.{number}", port))
            except OSError as error:
                pytest.skip(f"port {port}: {error.strerror}")
            servers.append(stack.enter_context(EchoByHand(bound=Bound(udp=[sock]))))
        yield servers[0], servers[1]


@pytest.mark.parametrize("ports", [(0, 0), (7, 0), (19, 0), (27_960, 0), (11_211, 27_960)], ids=str)
@pytest.mark.parametrize("swapped", [False, True])
def test_two_servers_and_one_forged_datagram_make_at_most_two_replies(ports: tuple[int, int], swapped: bool) -> None:
    """Promise 13: "Two of our servers on one port number, or with either on a refused port": at most two replies, ever.

    Two naive servers made 600,000 datagrams in two seconds.
    """
    with two_servers(ports) as (one, other):
        asked, blamed = (other, one) if swapped else (one, other)
        source, destination = blamed.server.addresses[0], asked.server.addresses[0]
        forge(udp_over_ipv4((source.host, source.port), (destination.host, destination.port), b"go!"))
        turn_until(asked.reactor, lambda: asked.server.counters.datagrams_received)
        for _ in range(50):
            turn_idle(one.reactor, 2)
            turn_idle(other.reactor, 2)
        counters = [one.server.counters, other.server.counters]
        assert sum(c.datagrams_sent for c in counters) <= 2
        assert sum(c.datagrams_received for c in counters) == 1 + sum(c.datagrams_sent for c in counters)
        assert sum(sum(c.drops.values()) for c in counters) == 1


# ---------------------------------------------------------------- no answer: destinations


def test_datagram_to_a_broadcast_address_gets_no_answer() -> None:
    """Promise 13: a thousand answers to one broadcast are a flood (RFC 1122 §3.2.1.3)."""
    with EchoByHand(("*",)) as echo, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.sendto(b"all of you", ("127.255.255.255", echo.port))
        ordinary(echo)
        assert_silent(client)
        assert echo.server.counters.drops == {"destination_broadcast": 1}


def join(sock: socket.socket, group: str) -> None:
    member = struct.pack("!4s4s", socket.inet_aton(group), socket.inet_aton("127.0.0.1"))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)


def test_datagram_to_a_multicast_group_gets_no_answer() -> None:
    """Promise 13, on a machine that has joined a group."""
    with EchoByHand(("0.0.0.0",)) as echo, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        endpoint = next(h for h in echo.reactor.handlers if is_endpoint(h))
        with kernel_socket(endpoint) as sock:
            join(sock, "239.8.6.2")
        client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        client.sendto(b"all of you", ("239.8.6.2", echo.port))
        ordinary(echo)
        assert_silent(client)
        assert echo.server.counters.drops == {"destination_multicast": 1}


@pytest.mark.parametrize("host", ["127.255.255.255", "239.8.6.2"])
def test_server_bound_to_a_group_address_answers_nothing(host: str) -> None:
    """Promise 13: every datagram to such a server was sent to a group. Refusing to bind is fine too."""
    try:
        server = EchoByHand((host,))
    except BindError:
        return
    with server as echo, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        if host.startswith("239"):
            with kernel_socket(next(h for h in echo.reactor.handlers if is_endpoint(h))) as sock:
                join(sock, host)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        client.sendto(b"all of you", (host, echo.port))
        turn_until(echo.reactor, lambda: echo.server.counters.datagrams_received)
        assert echo.server.counters.datagrams_sent == 0
        assert_silent(client)


TWO_INTERFACES = [
    "link add one type veth peer name two",
    "link set one addrgenmode none",  # no automatic addresses, which would come later
    "link set two addrgenmode none",
    "link set two up",
    "link set one up",
    "addr add 10.1.1.1/24 brd + dev one",
    "addr add fd77::1/64 dev one nodad",
]


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        ("10.1.1.255", "destination_broadcast"),
        ("224.0.0.1", "destination_multicast"),
        ("ff02::1", "destination_multicast"),
    ],
)
def test_group_request_on_a_real_interface_gets_no_answer(group: str, reason: str) -> None:
    """Promise 13 with a subnet's broadcast, all hosts, and all IPv6 nodes: groups that every machine has joined."""

    def body() -> None:
        family = socket.AF_INET6 if ":" in group else socket.AF_INET
        with EchoByHand(("*",)) as echo, socket.socket(family, socket.SOCK_DGRAM) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            if family == socket.AF_INET:
                client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.1.1.1"))
                client.sendto(b"all of you", (group, echo.port))
            else:
                client.sendto(b"all of you", (group, echo.port, 0, socket.if_nametoindex("one")))
            turn_until(echo.reactor, lambda: echo.server.counters.datagrams_received)
            ordinary(echo, "::1" if family == socket.AF_INET6 else "127.0.0.1")
            assert_silent(client)
            assert echo.server.counters.drops.keys() == {reason}
            assert echo.server.counters.datagrams_sent == 1

    in_network_namespace(TWO_INTERFACES, body)


# ---------------------------------------------------------------- one daemon per port


@pytest.mark.parametrize("served", ["127.0.0.1", "*"])
def test_second_daemon_on_the_port_is_refused(served: str) -> None:
    """Promise 13: "Binding a second daemon to a UDP port in use is refused", so that no datagram is stolen."""
    with EchoByHand((served,), tcp=False) as echo, Reactor() as reactor:
        second = EchoServer((served,), echo.port, tcp=False)
        with pytest.raises(BindError, match="in use"):
            second.start(reactor)
        ordinary(echo)


@pytest.mark.parametrize("option", ["SO_REUSEADDR", "SO_REUSEPORT"])
@pytest.mark.parametrize("served", ["127.0.0.1", "*"])
def test_second_server_that_sets_reuse_is_refused(served: str, option: str) -> None:
    """Promise 13: "never SO_REUSEADDR on UDP": both sockets would have to set it (socket(7))."""
    with EchoByHand((served,), tcp=False) as echo, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        thief.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
        with pytest.raises(OSError, match="in use") as caught:
            thief.bind(("127.0.0.1", echo.port))
        assert caught.value.errno == errno.EADDRINUSE
        ordinary(echo)


# ---------------------------------------------------------------- errors of one datagram


@pytest.mark.parametrize(
    "name", ["EPERM", "ENOBUFS", "EMSGSIZE", "ENETUNREACH", "ECONNREFUSED", "EHOSTUNREACH", "EINVAL"]
)
@pytest.mark.parametrize(("served", "call"), [("127.0.0.1", "sendto"), ("*", "sendmsg")])
def test_answer_that_cannot_be_sent_is_counted_and_dropped(served: str, call: str, name: str, plain: bool) -> None:
    """Promise 14: "counted, dropped, service goes on": the next datagram is answered."""
    sockets = FlakySockets()
    with EchoByHand((served,), reactor_options={"sockets": sockets}) as echo, echo.udp() as client:
        sockets.faults.add(call if plain else "sendmmsg", os_error(getattr(errno, name)))
        client.send(b"unlucky")
        client.send(b"lucky")
        assert echo.answer(client) == b"lucky"
        assert_silent(client)
        assert echo.server.counters.drops == {f"send_{name}": 1}


@pytest.mark.parametrize("name", ["ECONNREFUSED", "EPERM", "ENETUNREACH", "EMSGSIZE", "ENOBUFS", "ENOMEM"])
def test_failed_receive_is_counted_and_the_service_goes_on(name: str, plain: bool) -> None:
    """Promise 14: an error from ICMP, or a shortage of memory, ends nothing. After a shortage there is a pause."""
    sockets, clock = FlakySockets(), ManualClock()
    with EchoByHand(reactor_options={"sockets": sockets, "clock": clock}) as echo, echo.udp() as client:
        sockets.faults.add("recvmsg" if plain else "recvmmsg", os_error(getattr(errno, name)))
        client.send(b"after all")
        turn_until(echo.reactor, lambda: echo.server.counters.drops)
        clock.advance(1.0)
        assert echo.answer(client) == b"after all"
        assert echo.server.counters.drops == {f"receive_{name}": 1}


@pytest.mark.parametrize("error", [EAGAIN, EINTR], ids=["EAGAIN", "EINTR"])
def test_spurious_readiness_is_ignored(error: OSError, plain: bool) -> None:
    """Promise 14. select(2): a socket may be reported ready "and nevertheless a subsequent read blocks"."""
    sockets = FlakySockets()
    with EchoByHand(reactor_options={"sockets": sockets}) as echo, echo.udp() as client:
        call = "recvmsg" if plain else "recvmmsg"
        sockets.faults.add(call, error, error)
        client.send(b"at the third try")
        assert echo.answer(client) == b"at the third try"
        assert sockets.faults.calls[call] >= 3


def test_datagram_with_a_wrong_checksum_is_dropped_by_the_kernel() -> None:
    """Promise 14 on the real kernel: the socket is ready, then the kernel finds the checksum wrong."""
    with EchoByHand() as echo:
        forge(udp_over_ipv4(("127.0.0.1", 5000), ("127.0.0.1", echo.port), b"damaged", checksum=0x1234))
        ordinary(echo)
        assert echo.server.counters.datagrams_received == 1


@given(blocked=st.integers(1, 6), count=st.integers(1, 20))
def test_full_send_buffer_delays_answers_and_loses_none(plain: bool, blocked: int, count: int) -> None:
    """Promise 11 when sendto(2) says EAGAIN: the answer is held, and nothing is received until it is sent.

    The clock stands still: an answer that waits for longer than SEND_HOLD_S is dropped.
    """
    sockets = FlakySockets()
    with EchoByHand(reactor_options={"sockets": sockets, "clock": lambda: 0.0}) as echo, echo.udp() as client:
        sockets.faults.add("sendto" if plain else "sendmmsg", *[EAGAIN] * blocked)
        for number in range(count):
            client.send(b"%d" % number)
        assert [echo.answer(client) for _ in range(count)] == [b"%d" % number for number in range(count)]
        assert echo.server.counters.drops == {}


def test_client_that_has_gone_does_not_disturb_others() -> None:
    """Promise 14: the client's host sends an ICMP error (ECONNREFUSED), which must not stop the service for others."""
    with EchoByHand() as echo:
        for _ in range(PINGS):
            with echo.udp() as client:
                client.send(b"asked, and gone")
            turn_idle(echo.reactor)
        ordinary(echo)
        assert echo.server.counters.datagrams_sent == PINGS + 1
