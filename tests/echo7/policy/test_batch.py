"""The guard on the fast path: for any batch, it refuses what `Guard.refusal` refuses, for the same reasons."""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7.policy.access import Access
from echo7.policy.batch import BatchEcho
from echo7.policy.echo import DatagramEcho
from echo7.policy.guard import RESPONDER_PORTS, Guard
from echo7.policy.rate import Bucket, Rate, SourceBuckets
from echo7.policy.sources import Admission
from reactor.datagram import Datagram
from reactor.fastpath.batch import DatagramBatch
from reactor.limits import DATAGRAMS_PER_TURN
from tests.echo7.policy.test_guard import EDGES_V4, EDGES_V6, addresses_v4, addresses_v6, own_ports, ports
from tests.support.loops import ManualClock

if sys.platform != "linux":
    pytest.skip("Linux alone has the fast path", allow_module_level=True)

from reactor.fastpath.mmsg import Slots
from reactor.testing.kernel.batch import pack_name

HERE_V4, HERE_V6 = ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("fd00::1")
many = st.integers(1, DATAGRAMS_PER_TURN)
ordinary_ports = st.integers(30_000, 60_000)


def put(slots: Slots, index: int, source: tuple[Any, ...], path: bytes) -> None:
    """Write a datagram's source and path as the kernel does."""
    slots.names[index * slots.name_bytes : (index + 1) * slots.name_bytes] = pack_name(source)
    if path:
        start = index * slots.control_bytes + slots.info_at
        slots.controls[start : start + len(path)] = path
    assert (slots.source(index), slots.path(index)) == (source, path)


def asked_of(own: set[int]) -> tuple[BatchEcho, Guard]:
    guard = Guard(own)
    return BatchEcho(guard, lambda *_: None), guard


def assert_alike(is_ipv6: bool, own: set[int], batch: list[tuple[tuple[Any, ...], bytes]]) -> None:
    slots = Slots(is_ipv6, bool(batch[0][1]))
    echo, guard = asked_of(own)
    for index, (source, path) in enumerate(batch):
        put(slots, index, source, path)
    expected = {i: reason for i, one in enumerate(batch) if (reason := guard.refusal(*one)) is not None}
    assert echo.batch_received(cast(DatagramBatch, None), slots, len(batch)) == expected


def v4_source(address: Any, port: int) -> tuple[Any, ...]:
    return str(address), port


def v6_source(address: Any, port: int) -> tuple[Any, ...]:
    return socket.inet_ntop(socket.AF_INET6, address.packed), port, 0, 0


def v4_path(asked: Any, unicast: bool, answering: Any) -> bytes:
    return b"".join([bytes([2, 0, 0, 0]), (asked if unicast else answering).packed, asked.packed])


some_ports = st.one_of(ports, ordinary_ports)
some_v4 = st.one_of(addresses_v4, st.just(HERE_V4))
some_v6 = st.one_of(addresses_v6, st.just(HERE_V6))
no_answering = st.one_of(addresses_v4, st.just(ipaddress.ip_address("0.0.0.0")))
v4_paths = st.builds(v4_path, some_v4, st.booleans(), no_answering)
v6_paths = some_v6.map(lambda asked: asked.packed + bytes([2, 0, 0, 0]))


@given(own_ports, st.lists(st.tuples(st.builds(v4_source, some_v4, some_ports), v4_paths), min_size=1, max_size=64))
def test_over_ipv4_the_same_are_refused_for_the_same_reasons(own: set[int], batch: list[Any]) -> None:
    assert_alike(False, own, batch)


@given(own_ports, st.lists(st.tuples(st.builds(v6_source, some_v6, some_ports), v6_paths), min_size=1, max_size=64))
def test_over_ipv6_the_same_are_refused_for_the_same_reasons(own: set[int], batch: list[Any]) -> None:
    assert_alike(True, own, batch)


@given(own_ports, st.lists(st.builds(v4_source, some_v4, some_ports), min_size=1, max_size=64))
def test_without_paths_too(own: set[int], sources: list[Any]) -> None:
    assert_alike(False, own, [(source, b"") for source in sources])
    assert_alike(True, own, [((f"::ffff:{host}", port, 0, 0), b"") for host, port in sources])


class Decisions:
    """Stands for the endpoint of the simple path: what was done with each datagram."""

    def __init__(self) -> None:
        self.found: list[str | None] = []

    def send(self, *_: Any) -> None:
        self.found.append(None)

    def drop(self, reason: str, peer: Any) -> None:
        self.found.append(reason)


def admission_of(limits: tuple[Rate, Rate, bool], clock: ManualClock) -> Admission:
    rate, total, spares_loopback = limits
    return Admission(
        clock,
        access=Access(deny=["10.0.0.128/25", "2001:db8::/48"]),
        buckets=SourceBuckets(rate),
        total=Bucket(total),
        spares_loopback=spares_loopback,
    )


near_v4 = st.integers(0x0A00007E, 0x0A000081).map(ipaddress.IPv4Address)
near_v6 = st.sampled_from([ipaddress.IPv6Address(t) for t in ("::1", "::2", "2001:db8::1", "fd00::1", "fd00::2")])
all_limits = st.tuples(
    st.builds(Rate, st.just(1.0), st.integers(1, 9)), st.builds(Rate, st.just(1.0), st.integers(1, 99)), st.booleans()
)


@given(st.booleans(), all_limits, st.data())
def test_both_paths_decide_alike_guard_and_limits_together(is_ipv6: bool, limits: Any, data: st.DataObject) -> None:
    """The same batches: through the slots, and one by one. A datagram that the guard refuses takes no token."""
    clock = ManualClock()
    slots, decisions = Slots(is_ipv6, False), Decisions()
    batch_echo = BatchEcho(Guard({7}), lambda *_: None, admission_of(limits, clock))
    simple = DatagramEcho(Guard({7}), lambda *_: None, admission_of(limits, clock))
    some_port = st.sampled_from([7, 40_000, 40_001])
    sources = st.builds(v6_source, near_v6, some_port) if is_ipv6 else st.builds(v4_source, near_v4, some_port)
    for _ in range(data.draw(st.integers(1, 3))):
        clock.advance(1.0)
        batch = data.draw(st.lists(sources, min_size=1, max_size=DATAGRAMS_PER_TURN))
        for index, source in enumerate(batch):
            put(slots, index, source, b"")
            simple.datagram_received(cast(Datagram, decisions), b"", source, b"")
        expected = {index: reason for index, reason in enumerate(decisions.found) if reason is not None}
        decisions.found.clear()
        assert batch_echo.batch_received(cast(DatagramBatch, None), slots, len(batch)) == expected


@pytest.mark.parametrize("port", [0, 7, *RESPONDER_PORTS])
@pytest.mark.parametrize("position", [0, 31, 63])
def test_one_among_many_is_found_wherever_it_stands(port: int, position: int) -> None:
    """And no other is refused for it."""
    batch = [(("192.0.2.7", 40_000 + i), v4_path(HERE_V4, True, HERE_V4)) for i in range(DATAGRAMS_PER_TURN)]
    batch[position] = (("192.0.2.7", port), batch[position][1])
    assert_alike(False, {7}, batch)


def test_every_edge_is_looked_at() -> None:
    """The addresses at which the guard's own tests look."""
    for text in EDGES_V4.split():
        assert_alike(False, set(), [((text, 40_000), v4_path(HERE_V4, True, HERE_V4))])
    for address in map(ipaddress.IPv6Address, EDGES_V6.split()):
        assert_alike(True, set(), [(v6_source(address, 40_000), HERE_V6.packed + bytes(4))])


def test_what_lies_behind_the_batch_does_not_matter() -> None:
    """A slot that was filled last time is none of this batch's."""
    slots = Slots(False, True)
    for index in range(3):
        put(slots, index, ("192.0.2.7", 19), v4_path(HERE_V4, False, HERE_V4))
    put(slots, 0, ("192.0.2.7", 40_000), v4_path(HERE_V4, True, HERE_V4))
    echo, _ = asked_of(set())
    assert echo.batch_received(cast(DatagramBatch, None), slots, 1) == {}


def test_an_ordinary_batch_is_not_looked_at_one_by_one() -> None:
    """ "Deleting those from it leaves, for nearly every batch, nothing"."""
    looked: list[Any] = []

    class Watched(Guard):
        def refusal(self, source: Any, path: bytes) -> str | None:
            looked.append(source)
            return super().refusal(source, path)

    echo = BatchEcho(Watched([7]), lambda *_: None)
    v4, v6 = Slots(False, True), Slots(True, True)
    for index in range(DATAGRAMS_PER_TURN):
        put(v4, index, ("192.0.2.7", 40_000 + index), v4_path(HERE_V4, True, HERE_V4))
        put(v6, index, ("2001:db8::7", 40_000 + index, 0, 0), HERE_V6.packed + bytes(4))
    put(v6, 1, ("::1", 40_000, 0, 0), HERE_V6.packed + bytes(4))
    assert echo.batch_received(cast(DatagramBatch, None), v4, DATAGRAMS_PER_TURN) == {}
    assert echo.batch_received(cast(DatagramBatch, None), v6, DATAGRAMS_PER_TURN) == {}
    assert looked == []


def test_the_server_is_told_of_the_end() -> None:
    told: list[Any] = []
    error = OSError("broken")
    BatchEcho(Guard(), lambda *arguments: told.append(arguments)).endpoint_lost(cast(DatagramBatch, "it"), error)
    assert told == [("it", error)]


def test_without_a_log_drops_are_only_counted() -> None:
    """A protocol that is used without a server's log."""
    echo, _ = asked_of(set())
    echo.dropped(cast(DatagramBatch, None), "reason", 3, None)
    DatagramEcho(Guard(), lambda *_: None).dropped(cast(Datagram, None), "reason", None)


def test_what_the_guard_refuses_takes_no_token_from_its_source() -> None:
    """The reasons of both stand side by side, each in its place."""
    clock = ManualClock()
    slots = Slots(False, False)
    echo = BatchEcho(Guard({7}), lambda *_: None, admission_of((Rate(1.0, 2), Rate(1.0, 9), False), clock))
    for index, port in enumerate([7, 40_000, 7, 40_001, 40_002]):
        put(slots, index, ("10.0.0.1", port), b"")
    expected = {0: "source_port_own", 2: "source_port_own", 4: "rate_source"}
    assert echo.batch_received(cast(DatagramBatch, None), slots, 5) == expected
