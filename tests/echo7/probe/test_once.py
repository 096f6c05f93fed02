"""`ping()` over real sockets, against real servers and a scripted one."""

from __future__ import annotations

import errno
import selectors
import socket
from collections.abc import Iterator
from typing import Any

import pytest

import echo7
from echo7 import ping
from echo7.probe import once
from echo7.probe.measure.words import Event, Word
from echo7.probe.prober import CannotProbe
from echo7.sockets.resolve import UnresolvedName
from reactor import Datagram, open_udp
from reactor.sockets.errors import os_error
from tests.echo7.probe.world import LOST, TWICE, ScriptedEcho, after, cut, flipped
from tests.support.basics import has_ipv6, open_descriptors, quiet_port, until
from tests.support.echo import EchoThread
from tests.support.loops import LoopThread

HOSTS = ["127.0.0.1", *(["::1"] if has_ipv6() else [])]


class ScriptedThread(LoopThread):
    """A scripted echo on a real UDP socket, in a thread."""

    def __init__(self, script: Any = None) -> None:
        super().__init__()
        self.endpoint: Datagram = open_udp(self.reactor, ("127.0.0.1", 0), ScriptedEcho(self.reactor, script))

    @property
    def port(self) -> int:
        return int(self.endpoint.address[1])


@pytest.fixture(scope="module", params=HOSTS)
def server(request: pytest.FixtureRequest) -> Iterator[EchoThread]:
    with EchoThread([request.param]) as thread:
        yield thread


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize("size", [1, 15, 16, 56, 65_507])
def test_real_server_answers_every_probe(server: EchoThread, tcp: bool, size: int) -> None:
    """Issue: "`from echo7 import ping`" gives the results as objects."""
    before = open_descriptors()
    result = ping(server.host, server.port, tcp=tcp, count=4, interval_s=0.001, size_bytes=size)
    assert (result.counts.replies, result.verdict, result.transport) == (4, "replies", "tcp" if tcp else "udp")
    assert (result.host, result.address, result.port) == (server.host, server.host, server.port)
    assert result.rtt is not None
    assert 0 < result.rtt.min_ns <= result.rtt.p50_ns <= result.rtt.max_ns
    # the server's socket and pipe may close a little later
    until(lambda: open_descriptors() <= before)


def test_result_has_the_numbers_of_the_script() -> None:
    """Issue: a proxy that loses, delays, duplicates, reorders and corrupts "by a known script"."""
    script = {2: LOST, 3: LOST, 4: TWICE, 5: after(0.2), 7: flipped(20, 1), 8: cut(30), 9: flipped(1, 0x10)}
    events: list[Event] = []
    with ScriptedThread(script) as far:
        result = ping("127.0.0.1", far.port, count=10, interval_s=0.05, timeout_s=0.8, told=events.append)
    counts = {name: count for name, count in result.counts._asdict().items() if count}
    assert counts == {
        "sent": 10, "replies": 8, "lost": 2, "duplicates": 1, "reordered": 1, "truncated": 1, "corrupted": 2
    }  # fmt: skip
    assert result.longest_loss == 2
    assert sum(event.word is Word.LOST for event in events) == 2
    damages = {event.sequence: event.damage for event in events if event.damage is not None}
    assert {number: damage.offset_bytes for number, damage in damages.items()} == {7: 20, 8: 30, 9: 1}


def test_flows_and_sizes_have_results_of_their_own(server: EchoThread) -> None:
    result = ping(server.host, server.port, count=12, interval_s=0.001, size_bytes=[20, 30], flows=3)
    assert [flow.counts.replies for flow in result.flows] == [4, 4, 4]
    assert [(size.size_bytes, size.counts.replies) for size in result.sizes] == [(20, 6), (30, 6)]


def test_flood_is_answered(server: EchoThread) -> None:
    assert ping(server.host, server.port, count=2000, interval_s=0).counts.replies >= 1990


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_closed_port_is_refused(tcp: bool) -> None:
    result = ping("127.0.0.1", quiet_port(), tcp=tcp, count=2, interval_s=0.01)
    assert (result.verdict, result.counts.refused, result.rtt) == ("refused", 2, None)


def test_silent_server_times_out() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        result = ping("127.0.0.1", silent.getsockname()[1], count=3, interval_s=0.001, timeout_s=0.05)
    assert (result.verdict, result.counts.lost, result.longest_loss) == ("timed out", 3, 3)


def test_ping_raises_what_the_command_prints_in_one_line() -> None:
    with pytest.raises(UnresolvedName):
        ping("")
    with pytest.raises(ValueError, match="0 flows"):
        ping("127.0.0.1", flows=0)
    with pytest.raises(ValueError, match="over IPv4 a datagram carries at most 65507"):
        ping("127.0.0.1", size_bytes=65_508)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 0))
        with pytest.raises(CannotProbe, match="choose another source port"):
            ping("127.0.0.1", source_port=taken.getsockname()[1])


@pytest.mark.parametrize(("flows", "most", "is_select"), [(64, 1000, True), (65, 1000, False), (1, 3, False)])
def test_few_flows_use_select(monkeypatch: pytest.MonkeyPatch, flows: int, most: int, is_select: bool) -> None:
    """select(2) sleeps to the microsecond, but takes few descriptors with small numbers."""
    options: list[dict[str, object]] = []
    monkeypatch.setattr(once, "SELECT_DESCRIPTORS", most)
    monkeypatch.setattr(once, "Reactor", lambda **given: options.append(given))
    once.new_reactor(flows)
    assert isinstance(options[0].get("selector"), selectors.SelectSelector) is is_select


def test_too_few_descriptors_are_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise os_error(errno.EMFILE)

    monkeypatch.setattr(once, "Reactor", full)
    with pytest.raises(CannotProbe, match="cannot start: Too many open files; raise 'ulimit -n'"):
        ping("127.0.0.1")


def test_package_imports_ping_on_demand() -> None:
    """PEP 562: serving doesn't import it; see tests/echo7/test_cold_start.py."""
    assert echo7.ping is once.ping
    with pytest.raises(AttributeError, match="'echo7' has no attribute 'pong'"):
        _ = echo7.pong
