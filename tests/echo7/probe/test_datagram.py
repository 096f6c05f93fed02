"""A flow over UDP, on real sockets: stamps, errors, options, bounds."""

from __future__ import annotations

import errno
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from echo7.probe import datagram as flow_module
from echo7.probe.datagram import TIMESPEC, DatagramFlow, can_forbid_fragments, queued_ns
from reactor import Reactor
from reactor.limits import DATAGRAMS_PER_TURN
from reactor.sockets.errors import os_error
from tests.support.basics import has_ipv6, quiet_port
from tests.support.faults import FlakySockets
from tests.support.loops import CountingSelector, turn_idle, turn_until

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="other kernels have other options")
IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


class Told:
    """A run that writes down what a flow tells it."""

    def __init__(self) -> None:
        self.datagrams: list[tuple[bytes, int, int]] = []
        self.troubles: list[int] = []
        self.about: list[tuple[bytes, str]] = []
        self.then: Callable[[], object] = int

    def arrived(self, index: int, data: bytes, at_ns: int, queued_ns: int) -> None:
        self.datagrams.append((data, at_ns, queued_ns))
        self.then()

    def trouble(self, index: int, code: int, data: bytes, from_whom: str) -> None:
        self.troubles.append(code)
        self.about.append((data, from_whom))

    def payload_of(self, index: int, sequence: int) -> bytes | None:
        raise AssertionError("UDP never waits for a connection")

    def frame(self, index: int, sequence: int, data: bytes, at_ns: int) -> bool:
        raise AssertionError("UDP has no frames")

    def surplus(self, index: int, data: bytes) -> None:
        raise AssertionError("UDP has no stream")

    def given_up(self, index: int, sequences: list[int], code: int, reason: str) -> None:
        raise AssertionError("UDP has no connection")


class Bench:
    """A flow, the far end as a plain socket, and a loop turned by hand."""

    def __init__(self, **options: Any) -> None:
        self.sockets = FlakySockets()
        self.reactor = Reactor(sockets=self.sockets)
        host = options.pop("host", "127.0.0.1")
        self.far = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.far.bind((host, 0))
        self.far.settimeout(20)
        self.told = Told()
        self.flow = DatagramFlow(self.reactor, self.far.getsockname(), self.told, 0, **options)

    def close(self) -> None:
        self.reactor.close()
        self.far.close()

    def answer(self, data: bytes) -> None:
        self.far.sendto(data, ("127.0.0.1", self.flow.source_port))


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=IPV6)])
def test_a_datagram_goes_and_comes_back(host: str) -> None:
    bench = Bench(host=host)
    assert bench.flow.has_room()
    code, sent_ns = bench.flow.send(1, b"probe")
    data, source = bench.far.recvfrom(100)
    assert (code, data, source[1]) == (0, b"probe", bench.flow.source_port)
    bench.far.sendto(data, source)
    turn_until(bench.reactor, lambda: bench.told.datagrams)
    data, at_ns, queued_ns = bench.told.datagrams[0]
    assert data == b"probe"
    assert at_ns > sent_ns
    assert isinstance(queued_ns, int)
    bench.close()


@LINUX
def test_the_kernels_stamp_says_how_long_a_datagram_has_waited_for_us(bench: Bench) -> None:
    """Issue: "(wall-clock now − stamp)": with a wall clock an hour ahead it has waited for an hour."""
    bench.flow._wall_ns = lambda: time.time_ns() + 3600 * 10**9
    bench.flow.send(1, b"")
    bench.answer(b"x")
    turn_until(bench.reactor, lambda: bench.told.datagrams)
    assert 3600 * 10**9 <= bench.told.datagrams[0][2] < 3660 * 10**9


def test_a_stamp_of_another_size_or_kind_is_none() -> None:
    stamp, kind = TIMESPEC.pack(1, 5), flow_module.SO_TIMESTAMPNS
    assert queued_ns([], 1_000_000_007) == 0
    assert queued_ns([(socket.SOL_SOCKET, kind, stamp[:8]), (socket.IPPROTO_IP, kind, stamp)], 1_000_000_007) == 0
    assert queued_ns([(socket.SOL_SOCKET, kind, stamp)], 1_000_000_007) == 2


def test_what_passes_between_two_looks_at_the_clocks_never_makes_a_round_trip_shorter(bench: Bench) -> None:
    """Story: with the wall clock read last, a pause between the two counted as waiting, and round trips took 1 µs."""
    order: list[str] = []
    bench.flow._wall_ns = lambda: order.append("wall") or 0  # type: ignore[func-returns-value]
    bench.flow._clock_ns = lambda: order.append("clock") or 0  # type: ignore[func-returns-value]
    bench.flow.send(1, b"")
    order.clear()
    bench.answer(b"x")
    turn_until(bench.reactor, lambda: bench.told.datagrams)
    assert order == ["wall", "clock"]


def test_where_there_are_no_stamps_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_module, "SO_TIMESTAMPNS", -1)
    bench = Bench()
    bench.flow.send(1, b"")
    bench.answer(b"x")
    turn_until(bench.reactor, lambda: bench.told.datagrams)
    assert bench.told.datagrams[0][2] == 0
    bench.close()


@LINUX
def test_nobody_there_is_heard_of_at_once() -> None:
    """RFC 1122 §4.1.3.3: a connected socket gets ICMP's "port unreachable", by event or before the next send."""
    told = Told()
    with Reactor() as reactor:
        flow = DatagramFlow(reactor, ("127.0.0.1", quiet_port()), told, 0)
        assert flow.send(1, b"one")[0] == 0
        assert flow.send(2, b"two")[0] == 0  # the error was the first one's, and asked for before
        assert told.troubles == [errno.ECONNREFUSED]
        turn_until(reactor, lambda: len(told.troubles) == 2)
        assert told.troubles == [errno.ECONNREFUSED] * 2
        assert told.about == [(b"one", "127.0.0.1"), (b"two", "127.0.0.1")]
        turn_idle(reactor)
        assert len(told.troubles) == 2


@LINUX
def test_a_queue_of_errors_is_emptied_so_that_the_loop_does_not_spin() -> None:
    """ip(7), epoll(7): a queue with something in it makes the socket readable, whatever else there is."""
    told, selector = Told(), CountingSelector()
    with Reactor(selector=selector) as reactor, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        far.bind(("127.0.0.1", 0))
        flow = DatagramFlow(reactor, far.getsockname(), told, 0, df=True)
        assert flow.send(1, b"")[0] == 0
        assert far.recv(10) == b""
        for number in range(3):
            assert flow.send(number, bytes(65_536))[0] == errno.EMSGSIZE  # told by send, and again in the queue
        turn_idle(reactor)
        before = selector.selects
        reactor.call_later(0.05, reactor.stop)
        reactor.run()
        assert selector.selects - before <= 3
        assert told.troubles == []


def test_control_data_of_others_tell_no_error(bench: Bench) -> None:
    """Only an extended error that somebody else has sent; who that was, if it says so."""
    level, kind = flow_module.RECEIVE_ERRORS[socket.AF_INET]
    error = flow_module.EXTENDED_ERROR.pack(errno.EHOSTUNREACH, 2, 3, 1, 0, 0, 0)
    router = struct.pack("=HH4s8x", socket.AF_INET, 0, bytes([10, 7, 1, 1]))
    assert bench.flow._error_in((level, kind, error + router)) == (errno.EHOSTUNREACH, "10.7.1.1")
    for nobody in (b"", bytes(16)):
        assert bench.flow._error_in((level, kind, error + nobody)) == (errno.EHOSTUNREACH, "")
    ours = flow_module.EXTENDED_ERROR.pack(errno.EMSGSIZE, flow_module.LOCAL_ORIGIN, 0, 0, 0, 0, 0)
    for entry in ((level, kind, ours), (level, kind, error[:8]), (level, kind + 1, error)):
        assert bench.flow._error_in(entry) is None


def test_what_the_kernel_says_of_a_datagram_is_returned_and_never_raised(bench: Bench) -> None:
    for code in (errno.EAGAIN, errno.EPERM, errno.EMSGSIZE):
        bench.sockets.faults.add("send", os_error(code))
        assert bench.flow.send(1, b"probe")[0] == code
    assert bench.flow.send(1, b"probe")[0] == 0


@LINUX
def test_without_a_way_each_send_asks_for_one_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the network comes back, probes go."""
    codes = [errno.ENETUNREACH, errno.ENETUNREACH, 0]
    monkeypatch.setattr(type(bench.flow._socket), "connect_ex", lambda sock, address: codes.pop(0), raising=False)
    assert [bench.flow.send(1, b"")[0] for _ in range(2)] == [errno.ENETUNREACH] * 2
    assert bench.flow.path_mtu_bytes() is None  # ENOTCONN
    monkeypatch.undo()
    assert bench.flow.send(1, b"probe")[0] == 0
    assert bench.far.recv(100) == b"probe"


def test_a_turn_takes_a_bounded_number(bench: Bench) -> None:
    bench.flow.send(1, b"")
    for number in range(DATAGRAMS_PER_TURN + 5):
        bench.answer(bytes([number]))
    bench.reactor.turn()
    assert len(bench.told.datagrams) == DATAGRAMS_PER_TURN
    turn_until(bench.reactor, lambda: len(bench.told.datagrams) == DATAGRAMS_PER_TURN + 5)


def test_a_run_may_close_the_flow_while_it_is_told(bench: Bench) -> None:
    bench.flow.send(1, b"")
    bench.answer(b"one")
    bench.answer(b"two")
    bench.told.then = bench.flow.close
    turn_until(bench.reactor, lambda: bench.told.datagrams)
    turn_idle(bench.reactor)
    assert len(bench.told.datagrams) == 1
    assert bench.flow.send(1, b"")[0] == errno.EBADF
    bench.flow.close()  # harmless twice


def test_errors_of_receiving_are_told_and_receiving_goes_on(bench: Bench) -> None:
    bench.flow.send(1, b"")
    bench.sockets.faults.add("recvmsg", os_error(errno.EHOSTUNREACH))
    bench.answer(b"x")
    turn_until(bench.reactor, lambda: bench.told.datagrams)
    assert bench.told.troubles == [errno.EHOSTUNREACH]


def test_where_errors_have_no_queue_the_error_itself_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_module, "LINUX", False)
    test_errors_of_receiving_are_told_and_receiving_goes_on(bench)


@LINUX
def test_errors_without_end_are_taken_in_turns(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    level, kind = flow_module.RECEIVE_ERRORS[socket.AF_INET]
    error = flow_module.EXTENDED_ERROR.pack(errno.ECONNREFUSED, 2, 3, 3, 0, 0, 0)
    endless = [(b"", [(level, kind, error)], 0, None)]
    monkeypatch.setattr(type(bench.flow._socket), "recvmsg", lambda *_: endless[0])
    bench.flow._hear(0)
    assert len(bench.told.troubles) == DATAGRAMS_PER_TURN


def test_without_memory_the_flow_rests_instead_of_spinning(bench: Bench) -> None:
    bench.flow.send(1, b"")
    bench.sockets.faults.add("recvmsg", os_error(errno.ENOBUFS))
    bench.answer(b"x")
    turn_until(bench.reactor, lambda: bench.sockets.faults.calls.get("recvmsg"))
    turn_idle(bench.reactor)
    assert bench.sockets.faults.calls["recvmsg"] == 1
    turn_until(bench.reactor, lambda: bench.told.datagrams)
    assert bench.told.troubles == []


def test_a_broken_socket_is_closed_and_said_so(bench: Bench) -> None:
    bench.flow.send(1, b"")
    bench.sockets.faults.add("recvmsg", os_error(errno.EBADF))
    bench.answer(b"x")
    turn_until(bench.reactor, lambda: bench.told.troubles)
    assert bench.told.troubles == [errno.EBADF]
    assert bench.flow.closed


@LINUX
@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=IPV6)])
def test_fragments_are_forbidden_and_the_way_is_known(host: str) -> None:
    """ip(7): with IP_PMTUDISC_DO a datagram that is too large for the way is refused, and IP_MTU says how much is."""
    bench = Bench(host=host, df=True)
    assert can_forbid_fragments(bench.flow._family)
    assert bench.flow.send(1, bytes(65_507))[0] == (errno.EMSGSIZE if ":" in host else 0)  # with 28 bytes it fits
    mtu_bytes = bench.flow.path_mtu_bytes()
    assert mtu_bytes is not None
    assert 16_000 < mtu_bytes <= 65_536  # of the loopback interface
    assert bench.flow.send(2, bytes(mtu_bytes - 48))[0] == 0
    bench.close()


def test_elsewhere_fragments_are_forbidden_by_another_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_module, "LINUX", False)
    monkeypatch.setattr(flow_module, "DONT_FRAGMENT", {socket.AF_INET: (socket.SOL_SOCKET, socket.SO_KEEPALIVE)})
    bench = Bench(df=True)
    assert bench.flow._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert bench.flow.path_mtu_bytes() is None
    bench.close()
    monkeypatch.setattr(flow_module, "DONT_FRAGMENT", {socket.AF_INET: (0, -1)})
    assert not can_forbid_fragments(socket.AF_INET)
