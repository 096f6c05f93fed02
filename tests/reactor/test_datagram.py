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
    """An endpoint on loopback and a client connected to it, every door in the test's hands."""

    def __init__(
        self, host: str = "127.0.0.1", selector_class: type[selectors.BaseSelector] = selectors.DefaultSelector
    ) -> None:
        self.clock, self.sockets = ManualClock(), FlakySockets()
        self.faults = self.sockets.faults
        self.selector = RecordingSelector(selector_class())
        self.reactor = Reactor(selector=self.selector, clock=self.clock, sockets=self.sockets)
        self.protocol = DatagramRecorder(echo=True)
        self.endpoint = open_udp(self.reactor, (host, 0), self.protocol)
        self.call = "sendto" if host == "127.0.0.1" else "sendmsg"  # on a wildcard, an answer names its source
        self.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.client.settimeout(PATIENCE_S)
        self.client.connect(("127.0.0.1", self.endpoint.address[1]))

    def turn(self, turns: int = 1) -> None:
        turn_idle(self.reactor, turns)

    def receive(self) -> list[bytes]:
        """All that has come back."""
        self.client.setblocking(False)
        found: list[bytes] = []
        while True:
            try:
                found.append(self.client.recv(1 << 16))
            except BlockingIOError:
                return found

    def assert_serves(self) -> None:
        """The next one is answered."""
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
    """One with an address of its own, and one on the wildcard; they send by different calls."""
    yield from open_post(Post(request.param))


def test_a_datagram_is_handed_over_whole_with_its_source(every_post: Post) -> None:
    """ "Called with one whole datagram"; a zero-length one is one, too."""
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
    """Of recvmsg(2)'s flags, MSG_TRUNC alone means that data is missing."""
    flag, receive = getattr(socket, name, 0), FlakySocket.recvmsg

    def receive_flagged(self: FlakySocket, *sizes: int) -> tuple[bytes, Control, int, Any]:
        data, control, flags, source = receive(self, *sizes)
        return data, control, flags | flag, source

    monkeypatch.setattr(FlakySocket, "recvmsg", receive_flagged)
    with contextlib.contextmanager(open_post)(Post(host)) as post:
        post.assert_serves()
        assert post.endpoint.drops == {}


def test_the_kernel_is_asked_for_no_more_once_it_has_said_that_nothing_waits(post: Post) -> None:
    """ "Receive until nothing waits": one datagram costs two calls of recvmsg(2), not a whole turn's share."""
    post.client.send(b"abc")
    post.turn()
    assert len(post.protocol.received) == 1
    assert post.faults.calls["recvmsg"] == 2


# ---------------------------------------------------------------- a full send buffer


def test_a_datagram_that_does_not_fit_is_held_and_goes_out_later_and_reading_pauses(every_post: Post) -> None:
    """ "The one datagram that didn't fit is held and nothing more is received until it has gone"."""
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


def test_readiness_to_send_is_not_taken_for_readiness_to_receive(post: Post) -> None:
    """ "Send what was held, or receive": whether something waits, the kernel says in the turn after."""
    post.faults.add(post.call, EAGAIN)
    post.client.send(b"held")
    turn_until(post.reactor, lambda: post.endpoint.interest == WRITE)
    asked = post.faults.calls["recvmsg"]
    post.client.send(b"waits")
    turn_until(post.reactor, lambda: post.endpoint.datagrams_sent == 1)
    assert post.faults.calls["recvmsg"] == asked
    turn_until(post.reactor, lambda: post.endpoint.datagrams_sent == 2)


def test_a_held_datagram_is_answered_from_the_address_that_was_asked(post: Post) -> None:
    """Its path is held with it."""
    post.faults.add(post.call, EAGAIN, EINTR, EAGAIN)
    post.assert_serves()


def test_a_held_datagram_that_fails_in_the_end_is_counted(post: Post) -> None:
    """Then reading goes on."""
    post.faults.add(post.call, EAGAIN, os_error(errno.EPERM))
    post.client.send(b"lost")
    turn_until(post.reactor, lambda: post.endpoint.drops == {"send_EPERM": 1})
    post.assert_serves()


def test_while_one_is_held_further_ones_are_dropped_as_busy(post: Post) -> None:
    """Memory stays bounded: one is held, not a queue."""
    post.faults.add("sendto", EAGAIN)
    destination = post.client.getsockname()
    assert post.endpoint.send(b"held", destination) is True
    assert post.endpoint.send(b"dropped", destination) is False
    assert post.endpoint.drops == {"busy": 1}
    turn_until(post.reactor, lambda: post.endpoint.datagrams_sent == 1)
    assert post.receive() == [b"held"]
    assert post.endpoint.send(b"free again", destination) is True


def test_the_caller_may_reuse_its_memory_after_send(post: Post) -> None:
    """As with a stream's `write`: what is held must not change when the program's buffer does."""
    post.faults.add("sendto", EAGAIN)
    memory = bytearray(b"before")
    assert post.endpoint.send(memoryview(memory), post.client.getsockname())
    memory[:] = b"after!"
    turn_until(post.reactor, lambda: post.endpoint.datagrams_sent == 1)
    assert post.receive() == [b"before"]


# ---------------------------------------------------------------- errors


def test_send_tells_whether_the_kernel_took_it(post: Post) -> None:
    """ "Nothing is raised"."""
    post.faults.add("sendto", None, os_error(errno.EPERM))
    destination = post.client.getsockname()
    assert post.endpoint.send(b"taken", destination) is True
    assert post.endpoint.send(b"refused", destination) is False
    assert post.endpoint.send(bytes(70_000), destination) is False
    assert post.endpoint.drops == {"send_EPERM": 1, "send_EMSGSIZE": 1}


def test_an_endpoint_recovers_though_the_selector_is_out_of_memory_at_its_retry(post: Post) -> None:
    """When memory is short, epoll_ctl(2) may say ENOMEM as well as recvmsg(2). It must not stay deaf for that."""
    post.faults.add("recvmsg", os_error(errno.ENOMEM))
    post.client.send(b"waits")
    post.turn()
    post.selector.failures.append(os_error(errno.ENOMEM))
    for _ in range(20):
        post.clock.advance(SHORTAGE_RETRY_S)
        post.turn()
    assert [data for data, _, _ in post.protocol.received] == [b"waits"]


def test_sending_works_during_a_shortage_at_receiving(post: Post) -> None:
    """One that doesn't fit meanwhile is held until the pause is over."""
    post.faults.add("recvmsg", os_error(errno.ENOMEM))
    post.client.send(b"abc")
    post.turn()
    post.faults.add("sendto", EAGAIN)
    assert post.endpoint.send(b"held", post.client.getsockname())
    post.clock.advance(SHORTAGE_RETRY_S)
    post.turn(5)
    assert post.receive() == [b"held", b"abc"]


def test_the_protocol_is_told_of_drops_with_their_peers(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dropped`: "from or to `peer`", and None where it is unknown."""
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


def test_a_callback_that_raises_costs_its_datagram_only(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    """Promise 17, and law 10: one logged traceback, one drop, and the others of the batch are served."""

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


def test_close_tells_the_protocol_once_and_frees_the_port(post: Post) -> None:
    """ "Called once, last. `error` is None after `close()`"."""
    before = open_descriptors()
    post.endpoint.close()
    post.endpoint.close()
    assert open_descriptors() == before - 1
    assert post.protocol.lost == []  # not inside the call
    post.turn(3)
    assert post.protocol.lost == [None]
    open_udp(post.reactor, post.endpoint.address, DatagramRecorder())


def test_after_close_nothing_is_sent_and_a_held_one_is_counted_as_dropped(post: Post) -> None:
    """ "After `close`, further ones are dropped as `busy`"."""
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
    """The closed socket isn't even asked."""
    post.endpoint.close()
    assert post.endpoint.send(b"too late", post.client.getsockname()) is False
    assert post.endpoint.drops == {"busy": 1}


def test_close_inside_a_callback_ends_the_batch(post: Post) -> None:
    """Law 6: "A close may happen inside any callback"."""

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
    """A retry that came later would work on a closed socket."""
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
    """Keeps the errors too."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[OSError] = []

    def error_received(self, endpoint: Datagram, error: OSError) -> None:
        self.errors.append(error)


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=IPV6)])
def test_an_endpoint_with_a_peer_sends_to_it_and_hears_nobody_else(host: str) -> None:
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
def test_an_endpoint_with_a_peer_is_told_that_nobody_is_there() -> None:
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


def test_what_the_kernel_says_to_a_send_is_told_to_the_protocol() -> None:
    with Reactor() as reactor:
        client = Client()
        endpoint = open_udp(reactor, ("127.0.0.1", 0), client)
        assert not endpoint.send(bytes(70_000), endpoint.address)
        assert client.errors[0].errno == errno.EMSGSIZE
        assert not endpoint.closed


def test_a_callback_for_errors_that_raises_costs_nothing_but_a_line(caplog: pytest.LogCaptureFixture) -> None:
    class Raises(DatagramRecorder):
        def error_received(self, endpoint: Datagram, error: OSError) -> None:
            raise ValueError("a bug of the user's")

    with Reactor() as reactor:
        endpoint = open_udp(reactor, ("127.0.0.1", 0), Raises())
        assert not endpoint.send(bytes(70_000), endpoint.address)
        assert not endpoint.closed
    assert "a bug of the user's" in caplog.text


def test_a_peer_that_is_a_name_is_refused_and_leaves_no_descriptor() -> None:
    before = open_descriptors()
    with Reactor() as reactor:
        with pytest.raises(ValueError, match="numeric"):
            connect_udp(reactor, ("localhost", 7), DatagramRecorder())
        with pytest.raises(PermissionError):  # a broadcast address
            connect_udp(reactor, ("255.255.255.255", 7), DatagramRecorder())
    assert open_descriptors() == before
