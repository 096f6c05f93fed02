"""DatagramBatch: what differs from the plain path. `test_both_paths.py` tests the rest."""

from __future__ import annotations

import ctypes
import errno
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactor import READ, WRITE, Reactor
from reactor.fastpath.batch import BatchProtocol, DatagramBatch, Endpoint, batch_on, runs_between
from reactor.fastpath.datagrams import Batch
from reactor.sockets.errors import os_error
from reactor.sockets.opening import bind_udp
from tests.reactor.fastpath.post import Post, Refuser
from tests.support.basics import PROJECT, has_ipv6, open_descriptors
from tests.support.faults import EAGAIN, EINTR
from tests.support.loops import turn_until

if sys.platform != "linux":
    pytest.skip("Linux alone has both calls", allow_module_level=True)


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"])
def post(request: pytest.FixtureRequest) -> Iterator[Post]:
    with Post(True, request.param) as made:
        yield made


def test_a_batch_is_one_call_and_one_more_for_each_run_of_answers(post: Post) -> None:
    post.send(b"no 1", b"yes", b"", b"no 2", b"no 3", b"more")
    post.turn()
    assert post.receive() == [b"yes", b"", b"more"]
    assert post.faults.calls["recvmmsg"] == 1
    assert post.faults.calls["sendmmsg"] == 2


def test_drops_of_a_batch_are_reported_once_for_each_reason_with_one_peer() -> None:
    told: list[tuple[Any, ...]] = []

    class Noting(Refuser):
        def dropped(self, endpoint: Endpoint, reason: str, peer: Any, count: int = 1) -> None:
            told.append((reason, count, peer))

    with Post(True, protocol=Noting()) as post:
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


@given(refused=st.sets(st.integers(0, 63)), count=st.integers(1, 64))
def test_runs_contain_every_slot_that_is_not_refused(refused: set[int], count: int) -> None:
    refused = {slot for slot in refused if slot < count}
    runs = runs_between(sorted(refused), count)
    slots = [slot for first, end in reversed(runs) for slot in range(first, end)]
    assert slots == [slot for slot in range(count) if slot not in refused]
    assert all(first < end for first, end in runs)


# ---------------------------------------------------------------- a full send buffer


@pytest.mark.parametrize("error", [EAGAIN, EINTR])
def test_answers_that_do_not_fit_are_held_and_reading_pauses(post: Post, error: OSError) -> None:
    """At any place in the batch. Nothing is sent twice, and nothing is received meanwhile."""
    post.faults.add("sendmmsg", 2, error, error, 1, error)
    post.send(b"1", b"2", b"no", b"3", b"4")
    post.turn(1)
    assert post.endpoint.interest == WRITE
    assert cast(DatagramBatch, post.endpoint).pending_bytes == 2
    post.send(b"waits")
    turn_until(post.reactor, lambda: post.endpoint.datagrams_sent == 5)
    assert post.receive() == [b"1", b"2", b"3", b"4", b"waits"]
    assert [len(batch) for batch in post.refuser.batches] == [5, 1]
    assert post.endpoint.interest == READ
    assert post.endpoint.drops == {"refused": 1}
    assert cast(DatagramBatch, post.endpoint).pending_bytes == 0
    assert (post.endpoint.datagrams_sent, post.endpoint.bytes_sent) == (5, 9)


def test_closing_drops_what_is_held_as_busy(post: Post) -> None:
    """In all runs."""
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


def test_the_last_datagram_may_fail(post: Post) -> None:
    post.faults.add("sendmmsg", 1, os_error(errno.EPERM))
    post.send(b"1", b"lost")
    post.turn()
    assert post.receive() == [b"1"]
    post.assert_serves()


@pytest.mark.parametrize(("held", "after"), [(False, [b"2", b"3"]), (True, [b"2", b"3"]), (False, [])])
def test_close_inside_dropped_sends_nothing_more(
    held: bool, after: list[bytes], post: Post, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The descriptor's number may belong to another file then."""

    def close(endpoint: Endpoint, reason: str, peer: object, count: int = 1) -> None:
        endpoint.close()

    monkeypatch.setattr(post.refuser, "dropped", close)
    post.faults.add("sendmmsg", 1, *([EAGAIN] if held else []), os_error(errno.EPERM))
    post.send(b"1", b"lost", *after)
    post.turn()
    assert post.endpoint.drops == {"send_EPERM": 1} | ({"busy": len(after)} if after else {})
    assert (post.endpoint.interest, caplog.records) == (0, [])
    assert post.receive() == [b"1"]


def test_callback_that_raises_costs_only_its_batch(caplog: pytest.LogCaptureFixture) -> None:
    """One traceback is logged, each datagram counted, and the next batch served."""

    class Sensitive(BatchProtocol):
        def batch_received(self, endpoint: Endpoint, batch: Batch, count: int) -> Mapping[int, str]:
            if any(bytes(batch.payload(i)) == b"poison" for i in range(count)):
                raise ValueError("I can't stand it")
            return {}

    with Post(True, protocol=Sensitive()) as post:
        post.send(b"before", b"poison", b"after")
        post.turn()
        assert post.receive() == []
        assert post.endpoint.drops == {"callback": 3}
        assert [bool(record.exc_info) for record in caplog.records] == [True]
        post.assert_serves()


def test_close_inside_a_callback_drops_its_batch() -> None:
    """Law 6: a close may happen inside any callback."""

    class Brief(Refuser):
        def batch_received(self, endpoint: Endpoint, batch: Batch, count: int) -> Mapping[int, str]:
            endpoint.close()
            return super().batch_received(endpoint, batch, count)

    brief = Brief()
    with Post(True, protocol=brief) as post:
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


def test_other_pythons_get_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Story: PyPy's strided memoryviews scrambled a batch of two, and EINVAL ended the socket for good."""
    monkeypatch.setattr(sys.implementation, "name", "pypy")
    assert falls_back(bind_udp(socket, ("127.0.0.1", 0)))


def with_option(level: int, name: int, value: int, host: str = "0.0.0.0") -> socket.socket:
    """Return a bound socket with an option set before it is bound."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(level, name, value)
    sock.bind((host, 0))
    return sock


class Stranger:
    """An object like a socket, without calls for batches."""

    def __init__(self) -> None:
        self._sock = bind_udp(socket, ("127.0.0.1", 0))
        self.family, self.getsockopt = self._sock.family, self._sock.getsockopt

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        self._sock.close()


V6ONLY = socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
IPV6 = pytest.mark.skipif(not has_ipv6(), reason="needs IPv6 on loopback")


@pytest.mark.parametrize(
    "sock_made",
    [
        pytest.param(lambda: with_option(socket.SOL_SOCKET, 29, 1), id="SO_TIMESTAMP"),
        pytest.param(lambda: with_option(socket.SOL_SOCKET, 35, 1), id="SO_TIMESTAMPNS"),
        pytest.param(lambda: with_option(socket.SOL_SOCKET, 40, 1), id="SO_RXQ_OVFL"),
        pytest.param(lambda: with_option(*V6ONLY, 0, "::"), id="IPv4 on IPv6", marks=IPV6),
        pytest.param(Stranger, id="no socket of the system"),
    ],
)
def test_a_socket_that_is_not_plain_has_no_fast_path(sock_made: Callable[[], Any]) -> None:
    """Other control data would lie where the path is expected."""
    assert falls_back(sock_made())


@IPV6
def test_a_socket_for_ipv6_alone_has_the_fast_path() -> None:
    assert not falls_back(bind_udp(socket, ("::1", 0)))


class Forbidding:
    """A C library on a kernel that lacks both calls, or a sandbox that forbids them."""

    def __init__(self, *_: Any, **options: Any) -> None:
        assert options == {"use_errno": True}

    def recvmmsg(self, *_: Any) -> int:
        ctypes.set_errno(errno.ENOSYS)
        return -1

    sendmmsg = recvmmsg


@pytest.mark.parametrize(
    ("name", "replacement"),
    [
        pytest.param("reactor.fastpath.batch.sys.platform", "freebsd14", id="another platform"),
        pytest.param("reactor.fastpath.mmsg.ctypes.CDLL", lambda *_, **__: object(), id="no such call"),
        pytest.param("reactor.fastpath.mmsg.ctypes.CDLL", Forbidding, id="a forbidden call"),
    ],
)
def test_a_system_without_the_calls_has_no_fast_path(
    name: str, replacement: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`batch_on` finds this out in time to use `Datagram`."""
    monkeypatch.setattr(name, replacement)
    assert falls_back(bind_udp(socket, ("127.0.0.1", 0)))


def test_a_python_without_ctypes_has_no_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reactor.fastpath.mmsg", None)
    assert falls_back(bind_udp(socket, ("127.0.0.1", 0)))


def test_an_option_that_the_kernel_does_not_know_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older kernels have fewer options."""
    unknown = (socket.SOL_SOCKET, 4321)
    monkeypatch.setattr("reactor.fastpath.batch.OTHER_CONTROL", [unknown])
    with bind_udp(socket, ("127.0.0.1", 0)) as sock, pytest.raises(OSError, match="not available"):
        sock.getsockopt(*unknown)
    assert not falls_back(bind_udp(socket, ("127.0.0.1", 0)))


@pytest.mark.parametrize(("arguments", "brought"), [(["--no-udp"], False), (["--plain"], False), ([], True)])
def test_ctypes_is_imported_only_with_the_fast_path(arguments: list[str], brought: bool) -> None:
    """It would slow the start."""
    code = (
        "import sys; from reactor import Reactor; from echo7 import cli, serve, EchoServer\n"
        "config = serve.configure(cli.parse(['serve', '--host', '127.0.0.1', '--port', '0', *sys.argv[1:]]))\n"
        "with Reactor() as loop:\n"
        "    EchoServer(config.hosts, config.port, udp=config.udp, plain=config.plain).start(loop)\n"
        "print('ctypes' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code, *arguments], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout.strip() == str(brought), done.stderr
