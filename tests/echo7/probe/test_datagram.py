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
from echo7.probe.datagram import TIMESPEC, DatagramFlow, can_forbid_fragments, error_in, queued_ns
from reactor import Reactor
from reactor.limits import DATAGRAMS_PER_TURN
from reactor.loop import READ
from reactor.sockets.errors import os_error
from tests.support.basics import has_ipv6, quiet_port
from tests.support.faults import FlakySocket, FlakySockets
from tests.support.loops import CountingSelector, turn_idle, turn_until

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="other kernels have other options")
IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


class Recorder:
    """A run that records what a flow reports."""

    def __init__(self) -> None:
        self.datagrams: list[tuple[bytes, int, int]] = []
        self.troubles: list[int] = []
        self.about: list[tuple[bytes, str]] = []
        self.then: Callable[[], object] = int

    def arrived(self, index: int, data: bytes, at_ns: int, queued_ns: int) -> None:
        self.datagrams.append((data, at_ns, queued_ns))
        self.then()

    def trouble(self, index: int, code: int, data: bytes, reporter: str) -> None:
        self.troubles.append(code)
        self.about.append((data, reporter))

    def payload_of(self, index: int, sequence: int) -> bytes | None:
        raise AssertionError("UDP never waits for a connection")

    def frame(self, index: int, sequence: int, data: bytes, at_ns: int) -> bool:
        raise AssertionError("UDP has no frames")

    def surplus(self, index: int, data: bytes) -> None:
        raise AssertionError("UDP has no stream")

    def given_up(self, index: int, sequences: list[int], code: int, reason: str) -> None:
        raise AssertionError("UDP has no connection")


class Stage:
    """A flow, the far end as a plain socket, and a loop turned by hand."""

    def __init__(self, **options: Any) -> None:
        self.sockets = FlakySockets()
        self.reactor = Reactor(sockets=self.sockets)
        host = options.pop("host", "127.0.0.1")
        self.far = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.far.bind((host, 0))
        self.far.settimeout(20)
        self.run = Recorder()
        self.flow = DatagramFlow(self.reactor, self.far.getsockname(), self.run, 0, **options)

    def close(self) -> None:
        self.reactor.close()
        self.far.close()

    def answer(self, data: bytes) -> None:
        self.far.sendto(data, ("127.0.0.1", self.flow.source_port))


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.close()


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=IPV6)])
def test_datagram_goes_and_comes_back(host: str) -> None:
    stage = Stage(host=host)
    assert stage.flow.has_room()
    code, sent_ns = stage.flow.send(1, b"probe")
    data, source = stage.far.recvfrom(100)
    assert (code, data, source[1]) == (0, b"probe", stage.flow.source_port)
    stage.far.sendto(data, source)
    turn_until(stage.reactor, lambda: stage.run.datagrams)
    data, at_ns, queued_ns = stage.run.datagrams[0]
    assert data == b"probe"
    assert at_ns > sent_ns
    assert isinstance(queued_ns, int)
    stage.close()


@LINUX
def test_kernel_stamp_says_how_long_a_datagram_has_waited() -> None:
    """Issue: "(wall-clock now − stamp)": with a wall clock an hour ahead it has waited for an hour."""
    stage = Stage(wall_ns=lambda: time.time_ns() + 3600 * 10**9)
    stage.flow.send(1, b"")
    stage.answer(b"x")
    turn_until(stage.reactor, lambda: stage.run.datagrams)
    assert 3600 * 10**9 <= stage.run.datagrams[0][2] < 3660 * 10**9
    stage.close()


def test_stamp_of_another_size_or_kind_is_ignored() -> None:
    stamp, kind = TIMESPEC.pack(1, 5), flow_module.SO_TIMESTAMPNS
    assert queued_ns([], 1_000_000_007) == 0
    assert queued_ns([(socket.SOL_SOCKET, kind, stamp[:8]), (socket.IPPROTO_IP, kind, stamp)], 1_000_000_007) == 0
    assert queued_ns([(socket.SOL_SOCKET, kind, stamp)], 1_000_000_007) == 2


def test_pause_between_two_clocks_never_makes_a_round_trip_shorter() -> None:
    """Story: with the wall clock read last, a pause between the two counted as waiting, and round trips took 1 µs."""
    order: list[str] = []

    def noting(name: str) -> Callable[[], int]:
        return lambda: order.append(name) or 0  # type: ignore[func-returns-value]

    stage = Stage(wall_ns=noting("wall"), clock_ns=noting("clock"))
    stage.flow.send(1, b"")
    order.clear()
    stage.answer(b"x")
    turn_until(stage.reactor, lambda: stage.run.datagrams)
    assert order == ["wall", "clock"]
    stage.close()


def test_system_without_stamps_reports_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_module, "SO_TIMESTAMPNS", -1)
    stage = Stage()
    stage.flow.send(1, b"")
    stage.answer(b"x")
    turn_until(stage.reactor, lambda: stage.run.datagrams)
    assert stage.run.datagrams[0][2] == 0
    stage.close()


@LINUX
def test_closed_port_is_reported_at_once() -> None:
    """RFC 1122 §4.1.3.3: a connected socket gets ICMP's "port unreachable", by event or before the next send."""
    run = Recorder()
    with Reactor() as reactor:
        flow = DatagramFlow(reactor, ("127.0.0.1", quiet_port()), run, 0)
        assert flow.send(1, b"one")[0] == 0
        # reads the first one's error before sending
        assert flow.send(2, b"two")[0] == 0
        assert run.troubles == [errno.ECONNREFUSED]
        turn_until(reactor, lambda: len(run.troubles) == 2)
        assert run.troubles == [errno.ECONNREFUSED] * 2
        assert run.about == [(b"one", "127.0.0.1"), (b"two", "127.0.0.1")]
        turn_idle(reactor)
        assert len(run.troubles) == 2


@LINUX
def test_error_queue_is_emptied_so_the_loop_does_not_spin() -> None:
    """ip(7), epoll(7): errors in the queue keep the socket readable."""
    run, selector = Recorder(), CountingSelector()
    with Reactor(selector=selector) as reactor, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        far.bind(("127.0.0.1", 0))
        flow = DatagramFlow(reactor, far.getsockname(), run, 0, df=True)
        assert flow.send(1, b"")[0] == 0
        assert far.recv(10) == b""
        for number in range(3):
            assert flow.send(number, bytes(65_536))[0] == errno.EMSGSIZE  # returned by send, and again in the queue
        turn_idle(reactor)
        before = selector.selects
        reactor.call_later(0.05, reactor.stop)
        reactor.run()
        assert selector.selects - before <= 3
        assert run.troubles == []


def test_only_an_extended_error_from_another_host_counts() -> None:
    level, kind = flow_module.RECEIVE_ERRORS[socket.AF_INET]
    error = flow_module.EXTENDED_ERROR.pack(errno.EHOSTUNREACH, 2, 3, 1, 0, 0, 0)
    router = struct.pack("=HH4s8x", socket.AF_INET, 0, bytes([10, 7, 1, 1]))
    assert error_in((level, kind, error + router), socket.AF_INET) == (errno.EHOSTUNREACH, "10.7.1.1")
    for unknown in (b"", bytes(16)):
        assert error_in((level, kind, error + unknown), socket.AF_INET) == (errno.EHOSTUNREACH, "")
    ours = flow_module.EXTENDED_ERROR.pack(errno.EMSGSIZE, flow_module.LOCAL_ORIGIN, 0, 0, 0, 0, 0)
    for entry in ((level, kind, ours), (level, kind, error[:8]), (level, kind + 1, error)):
        assert error_in(entry, socket.AF_INET) is None


def test_send_returns_the_kernels_error_and_never_raises(stage: Stage) -> None:
    for code in (errno.EAGAIN, errno.EPERM, errno.EMSGSIZE):
        stage.sockets.faults.add("send", os_error(code))
        assert stage.flow.send(1, b"probe")[0] == code
    assert stage.flow.send(1, b"probe")[0] == 0


@LINUX
def test_without_a_route_each_send_connects_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """So probes are sent when the network comes back."""
    codes = [errno.ENETUNREACH, errno.ENETUNREACH, 0]
    monkeypatch.setattr(FlakySocket, "connect_ex", lambda sock, address: codes.pop(0), raising=False)
    assert [stage.flow.send(1, b"")[0] for _ in range(2)] == [errno.ENETUNREACH] * 2
    assert stage.flow.path_mtu_bytes() is None  # ENOTCONN
    monkeypatch.undo()
    assert stage.flow.send(1, b"probe")[0] == 0
    assert stage.far.recv(100) == b"probe"


def test_turn_takes_a_bounded_number(stage: Stage) -> None:
    stage.flow.send(1, b"")
    for number in range(DATAGRAMS_PER_TURN + 5):
        stage.answer(bytes([number]))
    stage.reactor.turn()
    assert len(stage.run.datagrams) == DATAGRAMS_PER_TURN
    turn_until(stage.reactor, lambda: len(stage.run.datagrams) == DATAGRAMS_PER_TURN + 5)


def test_run_may_close_the_flow_in_a_callback(stage: Stage) -> None:
    stage.flow.send(1, b"")
    stage.answer(b"one")
    stage.answer(b"two")
    stage.run.then = stage.flow.close
    turn_until(stage.reactor, lambda: stage.run.datagrams)
    turn_idle(stage.reactor)
    assert len(stage.run.datagrams) == 1
    assert stage.flow.send(1, b"")[0] == errno.EBADF
    stage.flow.close()


def test_receive_error_is_reported_and_receiving_goes_on(stage: Stage) -> None:
    stage.flow.send(1, b"")
    stage.sockets.faults.add("recvmsg", os_error(errno.EHOSTUNREACH))
    stage.answer(b"x")
    turn_until(stage.reactor, lambda: stage.run.datagrams)
    assert stage.run.troubles == [errno.EHOSTUNREACH]


def test_system_without_an_error_queue_reports_the_error_itself(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_module, "LINUX", False)
    test_receive_error_is_reported_and_receiving_goes_on(stage)


@LINUX
def test_turn_reads_a_bounded_number_of_errors(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    level, kind = flow_module.RECEIVE_ERRORS[socket.AF_INET]
    error = flow_module.EXTENDED_ERROR.pack(errno.ECONNREFUSED, 2, 3, 3, 0, 0, 0)
    endless = [(b"", [(level, kind, error)], 0, None)]
    monkeypatch.setattr(FlakySocket, "recvmsg", lambda *_: endless[0])
    stage.flow.on_event(READ)
    assert len(stage.run.troubles) == DATAGRAMS_PER_TURN


def test_flow_without_memory_rests_instead_of_spinning(stage: Stage) -> None:
    stage.flow.send(1, b"")
    stage.sockets.faults.add("recvmsg", os_error(errno.ENOBUFS))
    stage.answer(b"x")
    turn_until(stage.reactor, lambda: stage.sockets.faults.calls.get("recvmsg"))
    turn_idle(stage.reactor)
    assert stage.sockets.faults.calls["recvmsg"] == 1
    turn_until(stage.reactor, lambda: stage.run.datagrams)
    assert stage.run.troubles == []


def test_broken_socket_is_closed_and_reported(stage: Stage) -> None:
    stage.flow.send(1, b"")
    stage.sockets.faults.add("recvmsg", os_error(errno.EBADF))
    stage.answer(b"x")
    turn_until(stage.reactor, lambda: stage.run.troubles)
    assert stage.run.troubles == [errno.EBADF]
    assert stage.flow.closed


@LINUX
@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=IPV6)])
def test_fragments_are_forbidden_and_the_path_mtu_is_known(host: str) -> None:
    """ip(7): with IP_PMTUDISC_DO a datagram that is too large for the way is refused, and IP_MTU is the limit."""
    stage = Stage(host=host, df=True)
    assert can_forbid_fragments(socket.AF_INET6 if ":" in host else socket.AF_INET)
    assert stage.flow.send(1, bytes(65_507))[0] == (errno.EMSGSIZE if ":" in host else 0)  # with 28 bytes it fits
    mtu_bytes = stage.flow.path_mtu_bytes()
    assert mtu_bytes is not None
    assert 16_000 < mtu_bytes <= 65_536  # of the loopback interface
    assert stage.flow.send(2, bytes(mtu_bytes - 48))[0] == 0
    stage.close()


def test_other_systems_forbid_fragments_by_another_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_module, "LINUX", False)
    monkeypatch.setattr(flow_module, "DONT_FRAGMENT", {socket.AF_INET: (socket.SOL_SOCKET, socket.SO_KEEPALIVE)})
    options: list[Any] = []
    monkeypatch.setattr(FlakySocket, "setsockopt", lambda _, *option: options.append(option), raising=False)
    stage = Stage(df=True)
    assert (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1) in options
    assert stage.flow.path_mtu_bytes() is None
    stage.close()
    monkeypatch.setattr(flow_module, "DONT_FRAGMENT", {socket.AF_INET: (0, -1)})
    assert not can_forbid_fragments(socket.AF_INET)
