"""Slots, filled by recvmmsg(2) and sent by sendmmsg(2) on real sockets."""

from __future__ import annotations

import errno
import itertools
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactor import report_paths
from reactor.limits import DATAGRAM_BYTES, DATAGRAMS_PER_TURN
from reactor.sockets.opening import bind_udp
from reactor.sockets.pktinfo import reply_control
from tests.support.basics import PATIENCE_S, has_ipv6
from tests.support.loops import wait_readable

if sys.platform != "linux":
    pytest.skip("Linux alone has both calls", allow_module_level=True)

from reactor.fastpath.mmsg import HEADER_BYTES, STAGGER_BYTES, Header, Iovec, Slots

V4 = ("0.0.0.0", "127.0.0.1", "127.0.0.5")
V6 = pytest.param(("::", "::1", "::1"), marks=pytest.mark.skipif(not has_ipv6(), reason="needs IPv6 on loopback"))


class Post:
    """A wildcard socket with slots, and a client connected to one of its addresses."""

    def __init__(self, wildcard: str, host: str) -> None:
        self.server = bind_udp(socket, (wildcard, 0))
        self.slots = Slots(":" in host, True)
        self.receive, self.send = self.slots.kernel_calls(self.server.fileno())
        self.client = socket.socket(self.server.family, socket.SOCK_DGRAM)
        self.client.settimeout(PATIENCE_S)
        self.client.connect((host, self.server.getsockname()[1]))

    def ask(self, *datagrams: bytes) -> int:
        for data in datagrams:
            self.client.send(data)
        wait_readable(self.server)
        return self.receive()

    def close(self) -> None:
        self.server.close()
        self.client.close()


@pytest.fixture(params=[V4, V6], ids=["IPv4", "IPv6"])
def post(request: pytest.FixtureRequest) -> Iterator[Post]:
    made = Post(request.param[0], request.param[2])
    yield made
    made.close()


def test_each_slot_points_to_memory_of_its_own() -> None:
    """No two payloads overlap, and each has room for the largest datagram."""
    for is_ipv6 in (False, True):
        slots = Slots(is_ipv6, True)
        bases = []
        for i in range(DATAGRAMS_PER_TURN):
            message = Header.from_buffer(slots.headers, i * HEADER_BYTES).message
            iovec = Iovec.from_address(message.iovecs)
            assert (iovec.bytes, message.iovecs_count) == (DATAGRAM_BYTES, 1)
            bases.append(iovec.base)
        steps = {later - earlier for earlier, later in itertools.pairwise(bases)}
        assert steps == {DATAGRAM_BYTES + STAGGER_BYTES}


def test_slots_do_not_lie_a_power_of_two_apart() -> None:
    """Such slots would evict each other from the processor's caches."""
    assert STAGGER_BYTES % 64 == 0
    assert STAGGER_BYTES % 4096 != 0


def test_a_batch_has_the_payload_source_and_path_of_each_datagram(post: Post) -> None:
    """The same as socket.recvmsg returns, with a zero-length datagram among them."""
    assert post.ask(b"one", b"", b"three") == 3
    slots = post.slots
    assert list(slots.lengths[:3]) == [3, 0, 5]
    assert [bytes(slots.payload(i)) for i in range(3)] == [b"one", b"", b"three"]
    post.client.send(b"again")
    wait_readable(post.server)
    _, [(_, _, path)], _, source = post.server.recvmsg(100, 100)
    for i in range(3):
        assert (slots.source(i), slots.path(i)) == (source, path)
    assert slots.truncated(3) == []


def test_hosts_are_equal_for_datagrams_of_one_address_whatever_their_ports(post: Post) -> None:
    count = post.ask(b"one", b"two", b"three")
    hosts = post.slots.hosts(count)
    assert len(hosts) == count
    expected = socket.inet_pton(post.server.family, post.client.getsockname()[0])
    assert {post.slots.packed(host) for host in hosts} == {expected}
    assert len(set(hosts)) == 1


def test_turned_round_batch_leaves_from_the_addresses_asked(post: Post) -> None:
    """The client is connected, so it receives only from there. The control data equals `reply_control`'s."""
    data = [b"one", b"", bytes(range(256)) * 255]
    assert post.ask(*data) == 3
    paths = [post.slots.path(i) for i in range(3)]
    post.slots.turn_round(3)
    for i, path in enumerate(paths):
        [(_, _, control)] = reply_control(path)
        assert post.slots.path(i) == control
    assert post.send(0, 3) == 3
    assert [post.client.recv(1 << 17) for _ in data] == data


def test_a_part_of_a_batch_can_be_sent(post: Post) -> None:
    """`send(first slot, count)`."""
    assert post.ask(b"0", b"1", b"2", b"3") == 4
    post.slots.turn_round(4)
    assert post.send(1, 2) == 2
    assert [post.client.recv(10) for _ in range(2)] == [b"1", b"2"]


@given(rounds=st.lists(st.lists(st.integers(0, 3000), min_size=1, max_size=5), min_size=1, max_size=4))
def test_a_slot_has_its_full_size_for_each_batch(rounds: list[list[int]]) -> None:
    """Short datagrams first, then long ones, all sent whole."""
    post = Post("0.0.0.0", "127.0.0.1")
    for sizes in rounds:
        sent = [bytes([size % 251]) * size for size in sizes]
        assert post.ask(*sent) == len(sizes)
        post.slots.turn_round(len(sizes))
        assert post.send(0, len(sizes)) == len(sizes)
        assert [post.client.recv(1 << 17) for _ in sent] == sent
        post.slots.make_room(len(sizes))
    post.close()


def test_one_call_takes_a_bounded_number() -> None:
    """64, and the rest with the next call."""
    post = Post("0.0.0.0", "127.0.0.1")
    assert post.ask(*[b"x"] * (DATAGRAMS_PER_TURN + 1)) == DATAGRAMS_PER_TURN
    assert post.receive() == 1
    post.close()


@pytest.mark.parametrize(("family", "most"), [("127.0.0.1", 65_507), ("::1", 65_527)])
def test_the_largest_datagram_fits(family: str, most: int) -> None:
    if family == "::1" and not has_ipv6():
        pytest.skip("needs IPv6 on loopback")
    post = Post("0.0.0.0" if most == 65_507 else "::", family)
    assert post.ask(bytes(most)) == 1
    assert (post.slots.lengths[0], post.slots.truncated(1)) == (most, [])
    post.close()


def test_truncated_datagrams_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only MSG_TRUNC shows it."""
    monkeypatch.setattr("reactor.fastpath.mmsg.DATAGRAM_BYTES", 20)
    post = Post("0.0.0.0", "127.0.0.1")
    assert post.ask(bytes(20), bytes(21), bytes(3), bytes(400)) == 4
    assert list(post.slots.lengths[:4]) == [20, 20, 3, 20]
    assert post.slots.truncated(4) == [1, 3]
    post.close()


def test_error_of_the_first_datagram_is_raised(post: Post) -> None:
    """An error of a later datagram ends the call, which returns the number sent."""
    with pytest.raises(BlockingIOError):
        post.receive()
    assert post.ask(b"one", b"two") == 2
    # Port 0 can't be sent to.
    post.slots.names[2:4] = bytes(2)
    post.slots.turn_round(2)
    with pytest.raises(OSError, match="Invalid") as caught:
        post.send(0, 2)
    assert caught.value.errno == errno.EINVAL
    assert post.send(1, 1) == 1
    post.slots.names[:] = post.slots.names[post.slots.name_bytes :] + post.slots.names[: post.slots.name_bytes]
    assert post.send(0, 2) == 1


def test_without_paths_there_is_no_control_data() -> None:
    """A socket bound to one address can only answer from it."""
    with bind_udp(socket, ("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        slots = Slots(False, False)
        receive, send = slots.kernel_calls(server.fileno())
        client.settimeout(PATIENCE_S)
        client.connect(server.getsockname())
        client.send(b"x")
        wait_readable(server)
        assert receive() == 1
        assert (slots.path(0), slots.source(0)) == (b"", client.getsockname())
        slots.turn_round(1)
        assert send(0, 1) == 1
        assert client.recv(10) == b"x"


def test_an_answer_to_a_datagram_queued_before_paths_were_reported_leaves_from_the_address_asked() -> None:
    """The kernel leaves `ipi_spec_dst` empty then, but reads it when sending."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        server.bind(("", 0))
        client.settimeout(PATIENCE_S)
        client.connect(("127.0.0.5", server.getsockname()[1]))
        client.send(b"early")
        report_paths(server)
        slots = Slots(False, True)
        receive, send = slots.kernel_calls(server.fileno())
        wait_readable(server)
        assert receive() == 1
        slots.turn_round(1)
        assert send(0, 1) == 1
        assert client.recv(10) == b"early"


def test_a_link_local_source_has_its_scope_and_a_flow_label_its_bytes() -> None:
    """struct sockaddr_in6 (ipv6(7)): flow in network byte order, scope in host byte order."""
    slots = Slots(True, True)
    name = socket.AF_INET6.to_bytes(2, sys.byteorder) + (4242).to_bytes(2, "big") + (0xBEEF).to_bytes(4, "big")
    slots.names[28:56] = name + socket.inet_pton(socket.AF_INET6, "fe80::7") + (3).to_bytes(4, sys.byteorder)
    assert slots.source(1) == ("fe80::7", 4242, 0xBEEF, 3)


def test_a_c_library_without_the_calls_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """`batch_on` catches AttributeError."""
    lookups: list[Callable[..., Any]] = []
    monkeypatch.setattr("reactor.fastpath.mmsg.ctypes.CDLL", lambda *_, **__: lookups)
    with pytest.raises(AttributeError):
        Slots(False, False).kernel_calls(3)
