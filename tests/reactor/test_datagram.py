"""Datagram: nothing that one peer does, or the kernel says about one datagram, stops the service.

What it promises alike with the fast path is in `fastpath/test_both_paths.py`.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from reactor import READ, WRITE, Datagram, Reactor, connect_udp, open_udp
from reactor.limits import SHORTAGE_RETRY_S
from reactor.sockets.errors import os_error
from reactor.sockets.pktinfo import Control
from tests.support.basics import PATIENCE_S, has_ipv6, open_descriptors
from tests.support.faults import EAGAIN, EINTR, FlakySocket, FlakySockets
from tests.support.loops import SELECTORS, DatagramRecorder, ManualClock, RecordingSelector, turn_idle, turn_until

IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


class Post:
    """An endpoint on loopback with a manual clock and faults, and a client connected to it."""

    def __init__(
        self, host: str = "127.0.0.1", selector_class: type[selectors.BaseSelector] = selectors.DefaultSelector
    ) -> None:
        self.clock, self.sockets = ManualClock(), FlakySockets()
        self.faults = self.sockets.faults
        self.selector = RecordingSelector(selector_class())
        self.reactor = Reactor(selector=self.selector, clock=self.clock, sockets=self.sockets)
        self.protocol = DatagramRecorder(echo=True)
        self.endpoint = open_udp(self.reactor, (host, 0), self.protocol)
        self.call = "sendto" if host == "127.0.0.1" else "sendmsg"  # an answer from a wildcard socket names its source
        self.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.client.settimeout(PATIENCE_S)
        self.client.connect(("127.0.0.1", self.endpoint.address[1]))

    def turn(self, turns: int = 1) -> None:
        turn_idle(self.reactor, turns)

    def receive(self) -> list[bytes]:
        """Return all answers."""
        self.client.setblocking(False)
        found: list[bytes] = []
        while True:
            try:
                found.append(self.client.recv(1 << 16))
            except BlockingIOError:
                return found

    def assert_serves(self) -> None:
        """Check that the next datagram is answered."""
        self.receive()
        sent = self.endpoint.datagrams_sent
        self.client.settimeout(PATIENCE_S)
        self.client.send(b"still there?")
        turn_until(self.reactor, lambda: self.endpoint.datagrams_sent > sent)
        assert self.client.recv(100) == b"still there?"


def open_post(made: Post) -> Iterator[Post]:
    """Clean up afterwards."""
    yield made
    made.reactor.close()
    made.client.close()


@pytest.fixture(params=SELECTORS, ids=lambda selector_class: str(selector_class.__name__))
def every_post(request: pytest.FixtureRequest) -> Iterator[Post]:
    """One per selector class."""
    yield from open_post(Post(selector_class=request.param))


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"])
def post(request: pytest.FixtureRequest) -> Iterator[Post]:
    """One bound to an address, one to the wildcard: they send with different system calls."""
    yield from open_post(Post(request.param))


def test_datagram_is_delivered_whole_with_its_source(every_post: Post) -> None:
    """A zero-length datagram is delivered, too."""
    for data in (b"abc", b"", b"defg"):
        every_post.client.send(data)
    turn_until(every_post.reactor, lambda: len(every_post.protocol.received) == 3)
    source = every_post.client.getsockname()
    assert every_post.protocol.received == [(b"abc", source, b""), (b"", source, b""), (b"defg", source, b"")]
    assert every_post.receive() == [b"abc", b"", b"defg"]
    endpoint = every_post.endpoint
    assert (endpoint.datagrams_received, endpoint.bytes_received) == (3, 7)
    assert (endpoint.datagrams_sent, endpoint.bytes_sent) == (3, 7)
    assert endpoint.drops == {}


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("name", ["MSG_CTRUNC", "MSG_EOR", "MSG_ERRQUEUE"])
def test_other_flags_of_a_datagram_do_not_drop_it(monkeypatch: pytest.MonkeyPatch, host: str, name: str) -> None:
    """Of recvmsg(2)'s flags, only MSG_TRUNC means that data is missing."""
    flag, receive = getattr(socket, name, 0), FlakySocket.recvmsg

    def receive_flagged(self: FlakySocket, *sizes: int) -> tuple[bytes, Control, int, Any]:
        data, control, flags, source = receive(self, *sizes)
        return data, control, flags | flag, source

    monkeypatch.setattr(FlakySocket, "recvmsg", receive_flagged)
    with contextlib.contextmanager(open_post)(Post(host)) as post:
        post.assert_serves()
        assert post.endpoint.drops == {}


def test_receiving_stops_at_the_first_eagain(post: Post) -> None:
    """One datagram costs two calls of recvmsg(2), not DATAGRAMS_PER_TURN."""
    post.client.send(b"abc")
    post.turn()
    assert len(post.protocol.received) == 1
    assert post.faults.calls["recvmsg"] == 2


# ---------------------------------------------------------------- a full send buffer


def test_datagram_that_does_not_fit_is_held_and_reading_pauses(every_post: Post) -> None:
    """Law: "one datagram is held, and nothing is received until it is sent"."""
    post = every_post
    post.faults.always["sendto"] = EAGAIN
    for data in (b"one", b"two", b"three"):
        post.client.send(data)
    post.turn(10)
    assert [data for data, _, _ in post.protocol.received] == [b"one"]
    assert post.endpoint.interest == WRITE
    assert post.endpoint.drops == {}
    post.faults.always.clear()
    turn_until(post.reactor, lambda: len(post.protocol.received) == 3)
    assert post.receive() == [b"one", b"two", b"three"]
    assert post.endpoint.interest == READ
    assert (post.endpoint.datagrams_sent, post.endpoint.bytes_sent) == (3, 11)


def test_writable_endpoint_sends_and_does_not_receive(post: Post) -> None:
    """`on_event` sends the held datagram or receives; the next turn shows what can be received."""
    post.faults.add(post.call, EAGAIN)
    post.client.send(b"held")
    turn_until(post.reactor, lambda: post.endpoint.interest == WRITE)
    asked = post.faults.calls["recvmsg"]
    post.client.send(b"waits")
    turn_until(post.reactor, lambda: post.endpoint.datagrams_sent == 1)
    assert post.faults.calls["recvmsg"] == asked
    turn_until(post.reactor, lambda: post.endpoint.datagrams_sent == 2)


def test_held_datagram_leaves_from_the_address_that_was_asked(post: Post) -> None:
    """Its path is held with it."""
    post.faults.add(post.call, EAGAIN, EINTR, EAGAIN)
    post.assert_serves()


def test_held_datagram_that_fails_is_counted(post: Post) -> None:
    """Then reading continues."""
    post.faults.add(post.call, EAGAIN, os_error(errno.EPERM))
    post.client.send(b"lost")
    turn_until(post.reactor, lambda: post.endpoint.drops == {"send_EPERM": 1})
    post.assert_serves()


def test_held_datagram_whose_error_closes_the_endpoint_raises_nothing(
    post: Post, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Story: the endpoint asked for READ on its closed socket."""
    monkeypatch.setattr(post.protocol, "error_received", lambda endpoint, error: endpoint.close())
    post.faults.add(post.call, EAGAIN, os_error(errno.EPERM))
    post.client.send(b"lost")
    turn_until(post.reactor, lambda: post.endpoint.closed)
    assert (post.endpoint.interest, caplog.records) == (0, [])


def test_second_send_while_one_is_held_is_dropped_as_busy(post: Post) -> None:
    """Memory is bounded: one datagram is held, not a queue."""
    post.faults.add("sendto", EAGAIN)
    destination = post.client.getsockname()
    assert post.endpoint.send(b"held", destination) is True
    assert post.endpoint.send(b"dropped", destination) is False
    assert post.endpoint.drops == {"busy": 1}
    turn_until(post.reactor, lambda: post.endpoint.datagrams_sent == 1)
    assert post.receive() == [b"held"]
    assert post.endpoint.send(b"free again", destination) is True


def test_memory_can_be_reused_after_send(post: Post) -> None:
    """As with a stream's `write`: a held datagram is a copy."""
    post.faults.add("sendto", EAGAIN)
    memory = bytearray(b"before")
    assert post.endpoint.send(memoryview(memory), post.client.getsockname())
    memory[:] = b"after!"
    turn_until(post.reactor, lambda: post.endpoint.datagrams_sent == 1)
    assert post.receive() == [b"before"]


# ---------------------------------------------------------------- errors


def test_send_returns_whether_the_datagram_was_taken(post: Post) -> None:
    """`send` raises nothing."""
    post.faults.add("sendto", None, os_error(errno.EPERM))
    destination = post.client.getsockname()
    assert post.endpoint.send(b"taken", destination) is True
    assert post.endpoint.send(b"refused", destination) is False
    assert post.endpoint.send(bytes(70_000), destination) is False
    assert post.endpoint.drops == {"send_EPERM": 1, "send_EMSGSIZE": 1}


def test_endpoint_recovers_from_a_selector_without_memory_at_its_retry(post: Post) -> None:
    """When memory is short, epoll_ctl(2) may fail as well as recvmsg(2). The endpoint must receive again later."""
    post.faults.add("recvmsg", os_error(errno.ENOMEM))
    post.client.send(b"waits")
    post.turn()
    post.selector.failures.append(os_error(errno.ENOMEM))
    for _ in range(20):
        post.clock.advance(SHORTAGE_RETRY_S)
        post.turn()
    assert [data for data, _, _ in post.protocol.received] == [b"waits"]


def test_endpoint_sends_during_a_shortage_of_receiving(post: Post) -> None:
    """A datagram that doesn't fit is held until the suspension is over."""
    post.faults.add("recvmsg", os_error(errno.ENOMEM))
    post.client.send(b"abc")
    post.turn()
    post.faults.add("sendto", EAGAIN)
    assert post.endpoint.send(b"held", post.client.getsockname())
    post.clock.advance(SHORTAGE_RETRY_S)
    post.turn(5)
    assert post.receive() == [b"held", b"abc"]


def test_dropped_gets_each_drop_with_its_peer(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dropped` gets the peer, or None if it is unknown."""
    told: list[tuple[str, Any]] = []
    monkeypatch.setattr(post.protocol, "dropped", lambda _, reason, peer: told.append((reason, peer)), raising=False)
    me = post.client.getsockname()
    for call in ("sendto", "sendmsg"):
        post.faults.add(call, os_error(errno.EPERM))
    post.client.send(b"x")
    post.turn(2)
    post.faults.add("recvmsg", os_error(errno.ECONNREFUSED))
    post.client.send(b"x")
    post.turn(2)
    post.endpoint.close()
    post.endpoint.send(b"too late", me)
    assert told == [("send_EPERM", me), ("receive_ECONNREFUSED", None), ("busy", me)]


def test_callback_that_raises_costs_only_its_datagram(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    """Promise 17: one traceback, one drop, and the other datagrams are served."""

    class Sensitive(DatagramRecorder):
        def datagram_received(self, endpoint: Datagram, data: bytes, source: Any, path: bytes) -> None:
            if data == b"poison":
                raise ValueError("I can't stand it")
            super().datagram_received(endpoint, data, source, path)

    post.endpoint.protocol = Sensitive(echo=True)
    for data in (b"before", b"poison", b"after"):
        post.client.send(data)
    post.turn(2)
    assert post.receive() == [b"before", b"after"]
    assert post.endpoint.drops == {"callback": 1}
    assert not post.endpoint.closed
    assert [bool(record.exc_info) for record in caplog.records] == [True]


# ---------------------------------------------------------------- the end


def test_close_calls_endpoint_lost_once_and_frees_the_port(post: Post) -> None:
    """`endpoint_lost` is called once, last; `error` is None after `close()`."""
    before = open_descriptors()
    post.endpoint.close()
    post.endpoint.close()
    assert open_descriptors() == before - 1
    assert post.protocol.lost == []  # not inside the call
    post.turn(3)
    assert post.protocol.lost == [None]
    open_udp(post.reactor, post.endpoint.address, DatagramRecorder())


def test_close_drops_and_counts_a_held_datagram(post: Post) -> None:
    """A held datagram is counted as `busy`."""
    destination = post.client.getsockname()
    post.faults.add("sendto", EAGAIN)
    post.endpoint.send(b"held", destination)
    post.endpoint.close()
    assert post.endpoint.drops == {"busy": 1}
    assert post.endpoint.send(b"too late", destination) is False
    post.turn(3)
    assert post.endpoint.drops == {"busy": 2}
    assert post.receive() == []


def test_a_send_after_close_is_dropped_as_busy(post: Post) -> None:
    """The closed socket isn't used."""
    post.endpoint.close()
    assert post.endpoint.send(b"too late", post.client.getsockname()) is False
    assert post.endpoint.drops == {"busy": 1}


def test_close_inside_a_callback_ends_the_batch(post: Post) -> None:
    """Law 6: a close may happen inside any callback."""

    class Brief(DatagramRecorder):
        def datagram_received(self, endpoint: Datagram, data: bytes, source: Any, path: bytes) -> None:
            super().datagram_received(endpoint, data, source, path)
            endpoint.close()

    brief = Brief()
    post.endpoint.protocol = brief
    for _ in range(3):
        post.client.send(b"abc")
    post.turn(3)
    assert len(brief.received) == 1
    assert brief.lost == [None]


def test_close_during_a_shortage_leaves_no_timer(post: Post) -> None:
    """A later retry would use a closed socket."""
    post.faults.add("recvmsg", os_error(errno.ENOMEM))
    post.client.send(b"abc")
    post.turn()
    post.endpoint.close()
    post.clock.advance(1.0)
    post.turn(3)
    assert post.endpoint not in post.reactor.handlers
    assert post.protocol.lost == [None]


# ---------------------------------------------------------------- with one peer


class Client(DatagramRecorder):
    """Records the errors, too."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[OSError] = []

    def error_received(self, endpoint: Datagram, error: OSError) -> None:
        self.errors.append(error)


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=IPV6)])
def test_connected_endpoint_exchanges_datagrams_only_with_its_peer(host: str) -> None:
    """connect(2): "the only address from which datagrams are received"."""
    with Reactor() as reactor:
        other = open_udp(reactor, (host, 0), DatagramRecorder())
        server = open_udp(reactor, (host, 0), DatagramRecorder(echo=True))
        client = Client()
        endpoint = connect_udp(reactor, server.address, client)
        other.send(b"from a stranger", endpoint.address)
        assert endpoint.send(b"hello")
        turn_until(reactor, lambda: client.received)
        turn_idle(reactor)
        assert [data for data, *_ in client.received] == [b"hello"]
        assert client.errors == []


@pytest.mark.skipif(sys.platform != "linux", reason="what ICMP says is told differently elsewhere")
def test_connected_endpoint_gets_econnrefused_for_a_closed_port() -> None:
    """RFC 1122 §4.1.3.3: "UDP MUST pass to the application layer all ICMP error messages that it receives"."""
    with Reactor() as reactor:
        gone = open_udp(reactor, ("127.0.0.1", 0), DatagramRecorder())
        gone.close()
        client = Client()
        endpoint = connect_udp(reactor, gone.address, client)
        endpoint.send(b"anybody?")
        turn_until(reactor, lambda: client.errors)
        assert client.errors[0].errno == errno.ECONNREFUSED
        assert endpoint.drops == {"receive_ECONNREFUSED": 1}


def test_error_of_a_send_is_reported_to_the_protocol() -> None:
    with Reactor() as reactor:
        client = Client()
        endpoint = open_udp(reactor, ("127.0.0.1", 0), client)
        assert not endpoint.send(bytes(70_000), endpoint.address)
        assert client.errors[0].errno == errno.EMSGSIZE
        assert not endpoint.closed


def test_error_received_that_raises_costs_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    class Raises(DatagramRecorder):
        def error_received(self, endpoint: Datagram, error: OSError) -> None:
            raise ValueError("a bug of the user's")

    with Reactor() as reactor:
        endpoint = open_udp(reactor, ("127.0.0.1", 0), Raises())
        assert not endpoint.send(bytes(70_000), endpoint.address)
        assert not endpoint.closed
    assert "a bug of the user's" in caplog.text


def test_peer_given_by_name_is_refused_and_leaves_no_descriptor() -> None:
    before = open_descriptors()
    with Reactor() as reactor:
        with pytest.raises(ValueError, match="numeric"):
            connect_udp(reactor, ("localhost", 7), DatagramRecorder())
        with pytest.raises(PermissionError):  # a broadcast address
            connect_udp(reactor, ("255.255.255.255", 7), DatagramRecorder())
    assert open_descriptors() == before
