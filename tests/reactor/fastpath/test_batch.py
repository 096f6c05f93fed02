"""DatagramBatch: what `Datagram` promises, kept by the batch."""

from __future__ import annotations

import ctypes
import errno
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactor import READ, WRITE, Reactor
from reactor.fastpath.batch import BatchProtocol, DatagramBatch, batch_on, runs_between
from reactor.limits import DATAGRAMS_PER_TURN, SHORTAGE_RETRY_S
from reactor.sockets.errors import os_error
from reactor.sockets.opening import bind_udp
from tests.support.basics import PATIENCE_S, PROJECT, has_ipv6, open_descriptors
from tests.support.faults import EAGAIN, EINTR, FlakySockets
from tests.support.loops import ManualClock, RecordingSelector, turn_idle, turn_until

if TYPE_CHECKING:
    from reactor.fastpath.mmsg import Slots

if sys.platform != "linux":
    pytest.skip("Linux alone has both calls", allow_module_level=True)

ONE_DATAGRAM = [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EPERM, errno.EMSGSIZE]
SHORTAGE = [errno.ENOBUFS, errno.ENOMEM, errno.EIO, 4321]
BROKEN = [errno.EBADF, errno.EINVAL, errno.ENOTSOCK]


class Refuser(BatchProtocol):
    """Sends back all but what begins with `no`, and writes down what comes."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.lost: list[Exception | None] = []

    def batch_received(self, endpoint: DatagramBatch, slots: Slots, count: int) -> Mapping[int, str]:
        found = [bytes(slots.payload(i)) for i in range(count)]
        self.batches.append(found)
        return {i: "refused" for i, data in enumerate(found) if data.startswith(b"no")}

    def endpoint_lost(self, endpoint: DatagramBatch, error: Exception | None) -> None:
        self.lost.append(error)


class Post:
    """An endpoint on loopback and a client connected to it, every seam in the test's hands."""

    def __init__(self, host: str = "127.0.0.1", protocol: BatchProtocol | None = None) -> None:
        self.clock, self.sockets = ManualClock(), FlakySockets()
        self.faults = self.sockets.faults
        self.selector = RecordingSelector()
        self.reactor = Reactor(selector=self.selector, clock=self.clock, sockets=self.sockets)
        self.refuser = Refuser()
        made = batch_on(self.reactor, bind_udp(self.sockets, (host, 0)), protocol or self.refuser)
        assert made is not None
        self.endpoint = made
        family = made._socket.family
        self.client = socket.socket(family, socket.SOCK_DGRAM)
        self.client.connect(("127.0.0.1" if family == socket.AF_INET else "::1", made.address[1]))

    def __enter__(self) -> Post:
        return self

    def __exit__(self, *exception: object) -> None:
        self.reactor.close()
        self.client.close()

    def send(self, *datagrams: bytes) -> None:
        for data in datagrams:
            self.client.send(data)

    def turn(self, turns: int = 3) -> None:
        turn_idle(self.reactor, turns)

    def receive(self) -> list[bytes]:
        """All that has come back."""
        self.client.setblocking(False)
        found: list[bytes] = []
        while True:
            try:
                found.append(self.client.recv(1 << 17))
            except BlockingIOError:
                self.client.settimeout(PATIENCE_S)
                return found

    def assert_serves(self) -> None:
        """The next one is answered."""
        self.receive()
        sent = self.endpoint.datagrams_sent
        self.send(b"still there?")
        turn_until(self.reactor, lambda: self.endpoint.datagrams_sent > sent)
        assert self.client.recv(100) == b"still there?"


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"])
def post(request: pytest.FixtureRequest) -> Iterator[Post]:
    with Post(request.param) as made:
        yield made


def test_a_batch_is_sent_back_but_for_what_is_refused(post: Post) -> None:
    post.send(b"no 1", b"yes", b"", b"no 2", b"no 3", b"more")
    post.turn()
    assert post.receive() == [b"yes", b"", b"more"]
    endpoint = post.endpoint
    assert (endpoint.datagrams_received, endpoint.bytes_received) == (6, 19)
    assert (endpoint.datagrams_sent, endpoint.bytes_sent) == (3, 7)
    assert endpoint.drops == {"refused": 3}
    assert post.faults.calls["recvmmsg"] == 1
    assert post.faults.calls["sendmmsg"] == 2


def test_the_protocol_is_told_of_drops_with_one_of_their_peers() -> None:
    """`dropped`: for logs; once for each reason of a batch."""
    told: list[tuple[Any, ...]] = []

    class Teller(Refuser):
        def dropped(self, endpoint: DatagramBatch, reason: str, count: int, peer: Any) -> None:
            told.append((reason, count, peer))

    with Post(protocol=Teller()) as post:
        post.send(b"no 1", b"yes", b"no 2")
        post.turn()
        post.faults.add("sendmmsg", os_error(errno.EPERM))
        post.send(b"yes")
        post.turn()
        post.faults.add("recvmmsg", os_error(errno.ECONNREFUSED))
        post.send(b"yes")
        post.turn()
        me = post.client.getsockname()
    assert told == [("refused", 2, me), ("send_EPERM", 1, me), ("receive_ECONNREFUSED", 1, None)]


def test_a_protocol_that_refuses_nothing_echoes() -> None:
    """The default."""
    with Post(protocol=BatchProtocol()) as post:
        post.send(b"no", b"matter")
        post.turn()
        assert post.receive() == [b"no", b"matter"]
        post.endpoint.close()
        post.turn()


@given(sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=20), data=st.data())
def test_any_mix_is_sent_back_in_order(sizes: list[int], data: st.DataObject) -> None:
    refused = {i for i in range(len(sizes)) if data.draw(st.booleans())}
    sent = [(b"no" if i in refused else b"ok") + bytes([i]) * size for i, size in enumerate(sizes)]
    with Post() as post:
        for _ in range(2):
            post.send(*sent)
            post.turn()
            assert post.receive() == [one for i, one in enumerate(sent) if i not in refused]
        counted = post.endpoint.drops.get("refused", 0)
        assert counted == 2 * len(refused)
        assert post.endpoint.datagrams_received == 2 * len(sizes) == post.endpoint.datagrams_sent + counted
        assert post.endpoint.bytes_sent == 2 * sum(len(one) for i, one in enumerate(sent) if i not in refused)


@given(refused=st.sets(st.integers(0, 63)), count=st.integers(1, 64))
def test_the_runs_are_all_that_is_not_refused(refused: set[int], count: int) -> None:
    refused = {slot for slot in refused if slot < count}
    runs = runs_between(sorted(refused), count)
    slots = [slot for first, end in reversed(runs) for slot in range(first, end)]
    assert slots == [slot for slot in range(count) if slot not in refused]
    assert all(first < end for first, end in runs)


def test_a_turn_takes_a_bounded_number_of_datagrams(post: Post) -> None:
    """A flood (of empty ones, even) starves nobody: one recvmmsg(2) per readiness."""
    post.send(*[b""] * (DATAGRAMS_PER_TURN + 5))
    post.turn(1)
    assert post.endpoint.datagrams_received == DATAGRAMS_PER_TURN
    post.turn(1)
    assert post.endpoint.datagrams_received == DATAGRAMS_PER_TURN + 5


@pytest.mark.parametrize(("host", "most"), [("0.0.0.0", 65_507), ("::", 65_527)])
def test_every_size_passes(host: str, most: int) -> None:
    if host == "::" and not has_ipv6():
        pytest.skip("needs IPv6 on loopback")
    with Post(host) as post:
        for size in (0, 1, most, 1472, most):
            data = (bytes(range(251)) * 262)[:size]
            post.send(data)
            turn_until(post.reactor, lambda: not post.selector.inner.select(0))
            assert post.receive() == [data]


def test_truncated_ones_are_counted_and_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a datagram is none; and one that was refused besides counts once."""
    monkeypatch.setattr("reactor.fastpath.mmsg.DATAGRAM_BYTES", 20)
    with Post() as post:
        post.send(b"whole", bytes(21), b"no", b"no" + bytes(30), b"end")
        post.turn()
        assert post.receive() == [b"whole", b"end"]
        assert post.endpoint.drops == {"refused": 1, "truncated": 2}


# ---------------------------------------------------------------- a full send buffer


@pytest.mark.parametrize("error", [EAGAIN, EINTR])
def test_what_does_not_fit_is_held_and_goes_later_and_reading_pauses(post: Post, error: OSError) -> None:
    """Wherever in the batch it happens; nothing is sent twice, and nothing more is received meanwhile."""
    post.faults.add("sendmmsg", 2, error, error, 1, error)
    post.send(b"1", b"2", b"no", b"3", b"4")
    post.turn(1)
    assert post.endpoint.interest == WRITE
    post.send(b"waits")
    turn_until(post.reactor, lambda: post.endpoint.datagrams_sent == 5)
    assert post.receive() == [b"1", b"2", b"3", b"4", b"waits"]
    assert [len(batch) for batch in post.refuser.batches] == [5, 1]
    assert post.endpoint.interest == READ
    assert post.endpoint.drops == {"refused": 1}
    assert (post.endpoint.datagrams_sent, post.endpoint.bytes_sent) == (5, 9)


def test_closing_drops_what_is_held_as_busy(post: Post) -> None:
    """In all its runs."""
    post.faults.add("sendmmsg", 1, EAGAIN)
    post.send(b"1", b"2", b"no", b"3", b"4")
    post.turn(1)
    before = open_descriptors()
    post.endpoint.close()
    post.endpoint.close()
    assert open_descriptors() == before - 1
    assert post.endpoint.drops == {"refused": 1, "busy": 3}
    assert post.refuser.lost == []  # not inside the call
    post.turn()
    assert post.refuser.lost == [None]
    assert post.receive() == [b"1"]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("code", ONE_DATAGRAM + SHORTAGE + BROKEN)
def test_whatever_goes_wrong_with_one_is_counted_and_the_others_go(post: Post, code: int) -> None:
    """A short count, then the error of the one that it stopped at; that one is passed over."""
    post.faults.add("sendmmsg", 1, os_error(code), None)
    post.send(b"1", b"lost", b"2", b"3")
    post.turn()
    assert post.receive() == [b"1", b"2", b"3"]
    assert post.endpoint.drops == {"send_" + errno.errorcode.get(code, str(code)): 1}
    assert (post.endpoint.datagrams_sent, post.endpoint.bytes_sent) == (3, 3)
    post.assert_serves()


def test_the_last_one_may_fail(post: Post) -> None:
    post.faults.add("sendmmsg", 1, os_error(errno.EPERM))
    post.send(b"1", b"lost")
    post.turn()
    assert post.receive() == [b"1"]
    post.assert_serves()


@pytest.mark.parametrize("code", ONE_DATAGRAM)
def test_an_error_that_an_earlier_datagram_caused_is_counted_and_receiving_goes_on(post: Post, code: int) -> None:
    post.faults.add("recvmmsg", os_error(code), os_error(code))
    post.send(b"abc")
    post.turn()
    assert post.receive() == [b"abc"]
    assert post.endpoint.drops == {"receive_" + errno.errorcode[code]: 2}
    post.assert_serves()  # no time passes: it doesn't rest


@pytest.mark.parametrize("error", [EAGAIN, EINTR])
def test_spurious_readiness_is_no_error(post: Post, error: OSError) -> None:
    post.faults.add("recvmmsg", error)
    post.assert_serves()
    assert post.endpoint.drops == {}


@pytest.mark.parametrize("code", SHORTAGE)
def test_a_shortage_at_receiving_pauses_and_recovers(post: Post, code: int) -> None:
    """No spin: the socket stays readable, but is asked at most 20 times a second."""
    post.faults.always["recvmmsg"] = os_error(code)
    post.send(b"waits")
    for _ in range(1000):
        post.clock.advance(0.001)
        post.turn(1)
    assert 1 <= post.faults.calls["recvmmsg"] < 20
    post.faults.always.clear()
    post.clock.advance(SHORTAGE_RETRY_S)
    post.turn(3)
    assert post.receive() == [b"waits"]


@pytest.mark.parametrize("code", BROKEN)
def test_a_broken_socket_ends_the_endpoint_and_tells_the_protocol(post: Post, code: int) -> None:
    post.faults.always["recvmmsg"] = os_error(code)
    post.send(b"abc")
    post.turn(5)
    assert post.endpoint.closed
    assert [getattr(error, "errno", None) for error in post.refuser.lost] == [code]
    assert post.endpoint not in post.reactor.handlers
    assert post.faults.calls["recvmmsg"] == 1


def test_a_callback_that_raises_costs_its_batch_only(caplog: pytest.LogCaptureFixture) -> None:
    """One log line with its traceback, each datagram counted, and the next batch is served."""

    class Sensitive(BatchProtocol):
        def batch_received(self, endpoint: DatagramBatch, slots: Slots, count: int) -> Mapping[int, str]:
            if any(bytes(slots.payload(i)) == b"poison" for i in range(count)):
                raise ValueError("I can't stand it")
            return {}

    with Post(protocol=Sensitive()) as post:
        post.send(b"before", b"poison", b"after")
        post.turn()
        assert post.receive() == []
        assert post.endpoint.drops == {"callback": 3}
        assert [bool(record.exc_info) for record in caplog.records] == [True]
        post.assert_serves()


def test_close_inside_a_callback_drops_its_batch() -> None:
    """ "A close may happen inside any callback"."""

    class Brief(Refuser):
        def batch_received(self, endpoint: DatagramBatch, slots: Slots, count: int) -> Mapping[int, str]:
            endpoint.close()
            return super().batch_received(endpoint, slots, count)

    brief = Brief()
    with Post(protocol=brief) as post:
        post.send(b"one", b"no", b"two")
        post.turn()
        assert post.receive() == []
        assert post.endpoint.drops == {"refused": 1, "busy": 2}
        assert brief.lost == [None]


# ---------------------------------------------------------------- where there is no fast path


def falls_back(sock: Any) -> bool:
    with sock, Reactor() as reactor:
        return batch_on(reactor, sock, BatchProtocol()) is None


def test_a_real_socket_has_the_fast_path() -> None:
    assert not falls_back(bind_udp(socket, ("127.0.0.1", 0)))


@pytest.mark.parametrize("option", [(socket.SOL_SOCKET, 29), (socket.SOL_SOCKET, 35), (socket.SOL_SOCKET, 40)])
def test_a_socket_that_tells_more_of_a_datagram_stays_on_the_simple_path(option: tuple[int, int]) -> None:
    """SO_TIMESTAMP, SO_TIMESTAMPNS, SO_RXQ_OVFL: they would lie where the address asked is looked for."""
    sock = bind_udp(socket, ("0.0.0.0", 0))
    sock.setsockopt(*option, 1)
    assert falls_back(sock)


@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6 on loopback")
def test_a_socket_that_carries_ipv4_on_ipv6_stays_on_the_simple_path() -> None:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 0))
    assert falls_back(sock)
    assert not falls_back(bind_udp(socket, ("::1", 0)))


def test_another_platform_stays_on_the_simple_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reactor.fastpath.batch.sys.platform", "freebsd14")
    assert falls_back(bind_udp(socket, ("127.0.0.1", 0)))


def test_a_python_without_ctypes_stays_on_the_simple_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reactor.fastpath.mmsg", None)
    assert falls_back(bind_udp(socket, ("127.0.0.1", 0)))


def test_a_c_library_without_the_calls_stays_on_the_simple_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reactor.fastpath.mmsg.ctypes.CDLL", lambda *_, **__: object())
    assert falls_back(bind_udp(socket, ("127.0.0.1", 0)))


class Forbidding:
    """A C library whose kernel knows neither call."""

    def __init__(self, *_: Any, **options: Any) -> None:
        assert options == {"use_errno": True}

    def recvmmsg(self, *_: Any) -> int:
        ctypes.set_errno(errno.ENOSYS)
        return -1

    sendmmsg = recvmmsg


def test_a_kernel_without_the_calls_stays_on_the_simple_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a sandbox that forbids them: this shows at the start, when there still is a choice."""
    monkeypatch.setattr("reactor.fastpath.mmsg.ctypes.CDLL", Forbidding)
    assert falls_back(bind_udp(socket, ("127.0.0.1", 0)))


def test_an_option_that_the_kernel_has_never_heard_of_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older kernels know fewer."""
    unknown = (socket.SOL_SOCKET, 4321)
    monkeypatch.setattr("reactor.fastpath.batch.OTHER_CONTROL", [unknown])
    with bind_udp(socket, ("127.0.0.1", 0)) as sock, pytest.raises(OSError, match="not available"):
        sock.getsockopt(*unknown)
    assert not falls_back(bind_udp(socket, ("127.0.0.1", 0)))


class Stranger:
    """Somebody's own idea of a socket, without calls for batches."""

    def __init__(self) -> None:
        self._sock = bind_udp(socket, ("127.0.0.1", 0))
        self.family, self.getsockopt = self._sock.family, self._sock.getsockopt

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        self._sock.close()


def test_what_is_no_socket_of_the_systems_stays_on_the_simple_path() -> None:
    assert falls_back(Stranger())


@pytest.mark.parametrize(("arguments", "brought"), [(["--no-udp"], False), (["--plain"], False), ([], True)])
def test_ctypes_comes_with_the_fast_path_and_not_before(arguments: list[str], brought: bool) -> None:
    """A cold start waits for it only where UDP is served in batches."""
    code = (
        "import sys; from reactor import Reactor; from echo7 import cli, serve, EchoServer\n"
        "config = serve.configure(cli.parse(['serve', '--host', '127.0.0.1', '--port', '0', *sys.argv[1:]]))\n"
        "with Reactor() as loop:\n"
        "    EchoServer(config.hosts, config.port, udp=config.udp, plain=config.plain).start(loop)\n"
        "print('ctypes' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code, *arguments], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout.strip() == str(brought), done.stderr
