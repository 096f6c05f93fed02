"""The limits of one source; a batch gets the same decisions as its datagrams one by one."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Hashable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from echo7.policy.access import Access
from echo7.policy.rate import DEFAULT_UDP_RATE, Rate, SourceBuckets, SourcePrefix
from echo7.policy.sources import BY_BIND, ConnectionGate, DatagramGate, SourceLimits
from tests.support.loops import ManualClock


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


# Two /56s, ::1, IPv4, the same over IPv6, loopback, and a source that is denied.
HOSTS = [
    packed(text)
    for text in (
        "10.0.0.1", "10.0.0.2", "::ffff:10.0.0.1", "127.0.0.1", "127.9.9.9", "::1", "::2", "2001:db8::1",
        "2001:db8::2", "2001:db8:0:100::1", "192.0.2.66", "::ffff:192.0.2.66",
    )
]  # fmt: skip
DENY = ["192.0.2.64/26"]
small_rates = st.builds(Rate, st.sampled_from([1.0, 4.0]), st.integers(1, 12))
batches = st.lists(
    st.tuples(st.integers(0, 64), st.lists(st.sampled_from(HOSTS), min_size=1, max_size=64)), min_size=1, max_size=6
)
policies = st.tuples(st.none() | small_rates, st.none() | small_rates, st.booleans(), st.booleans(), st.booleans())


def made_of(policy: tuple[Rate | None, Rate | None, bool, bool, bool], clock: Callable[[], float]) -> DatagramGate:
    rate, total, denies, spares_loopback, log_only = policy
    return DatagramGate(
        clock,
        access=Access(deny=DENY) if denies else None,
        buckets=rate and SourceBuckets(rate),
        total=total and SourceBuckets(total, 1),
        spares_loopback=spares_loopback,
        log_only=log_only,
    )


def bytes_of(host: Hashable) -> bytes:
    assert isinstance(host, bytes)
    return host


def refusal(gate: DatagramGate, host: bytes) -> str | None:
    return gate.refusals([host], bytes_of).get(0)


@given(policies, batches)
@example((Rate(1.0, 1), None, False, False, False), [(0, [HOSTS[7], HOSTS[8], HOSTS[7]])])  # two of one /56
@example((Rate(1.0, 3), Rate(1.0, 4), True, True, False), [(0, HOSTS * 3), (64, HOSTS)])
@example((Rate(1.0, 1), Rate(1.0, 2), True, False, True), [(0, HOSTS * 3)])
def test_batch_gets_the_decisions_of_its_datagrams_one_by_one(
    policy: Any, batches: list[tuple[int, list[bytes]]]
) -> None:
    clock = ManualClock()
    by_batch, one_by_one = made_of(policy, clock), made_of(policy, clock)
    for ticks, hosts in batches:
        clock.advance(ticks / 64)
        expected = {place: why for place, host in enumerate(hosts) if (why := refusal(one_by_one, host)) is not None}
        assert by_batch.refusals(hosts, bytes_of) == expected


@pytest.mark.parametrize(
    ("prefix", "sources"), [(SourcePrefix(), 16 + 2), (SourcePrefix(24, 48), 1 + 1), (SourcePrefix(32, 64), 16 + 17)]
)
def test_addresses_with_one_prefix_share_a_bucket_and_a_cap(prefix: SourcePrefix, sources: int) -> None:
    """Issue: "Sixteen /64s of one /56 get 16 times". Here with sixteen addresses of one /24, too."""
    hosts = [packed(f"192.0.2.{n}") for n in range(16)] + [packed(f"2001:db8:0:{n:x}::1") for n in range(16)]
    hosts += [packed("2001:db8:0:100::1")] * 2
    gate = DatagramGate(ManualClock(), prefix=prefix, buckets=SourceBuckets(Rate(1.0, 1)))
    assert len(hosts) - len(gate.refusals(hosts, bytes_of)) == sources
    connections = ConnectionGate(prefix=prefix)
    entered = 0
    for host in hosts:
        if connections.refusal(host, 1) is None:
            connections.enter(host)
            entered += 1
    assert entered == sources


def test_empty_batch_is_not_decided() -> None:
    assert DatagramGate(lambda: pytest.fail("it looked at the clock")).refusals([], bytes_of) == {}


def test_each_source_of_a_batch_is_looked_up_once() -> None:
    looked: list[bytes] = []

    class Watched(SourceBuckets):
        def take(self, source: bytes, count: int, now_s: float) -> int:
            looked.append(source)
            return super().take(source, count, now_s)

    gate = DatagramGate(ManualClock(), buckets=Watched(Rate(1000, 1000)))
    assert gate.refusals([HOSTS[0]] * 64, bytes_of) == {}
    assert looked == [HOSTS[0]]
    assert gate.refusals([HOSTS[0], HOSTS[1]] * 32, bytes_of) == {}
    assert looked == [HOSTS[0], HOSTS[0], HOSTS[1]]


def test_each_limit_has_a_reason_of_its_own() -> None:
    """Issue: "every drop has one counter"."""
    gate = made_of((Rate(1.0, 2), Rate(1.0, 3), True, False, False), ManualClock())
    one, other, denied = HOSTS[0], HOSTS[1], packed("192.0.2.66")
    asked = [one, one, one, other, other, denied]
    expected = {2: "rate_source", 4: "rate_total", 5: "source_denied"}
    assert gate.refusals(asked, bytes_of) == expected


def test_loopback_is_exempt_only_without_a_configured_rate() -> None:
    """Issue: "sources 127/8 and ::1 exempt unless asked for"."""
    for spares in (True, False):
        gate = made_of((Rate(1.0, 1), None, False, spares, False), ManualClock())
        for host in map(packed, ("127.0.0.1", "::1")):
            assert [refusal(gate, host) for _ in range(2)] == [None, None if spares else "rate_source"]


def test_log_only_answers_datagrams_over_a_rate_but_a_denied_source_is_refused() -> None:
    """Issue: "`--rate-log-only`"."""
    told: list[Any] = []
    gate = DatagramGate(
        ManualClock(),
        access=Access(deny=DENY),
        buckets=SourceBuckets(Rate(1.0, 2)),
        total=SourceBuckets(Rate(1.0, 3), 1),
        log_only=True,
        over_rate=lambda *arguments: told.append(arguments),
    )
    assert gate.refusals([HOSTS[0]] * 5 + [packed("192.0.2.66")], bytes_of) == {5: "source_denied"}
    assert told == [("rate_source", HOSTS[0], 3), ("rate_total", b"", 2)]


# ---------------------------------------------------------------- TCP


@given(st.lists(st.tuples(st.sampled_from(HOSTS), st.booleans()), max_size=60), st.none() | st.integers(1, 4))
def test_gate_counts_open_connections_and_forgets_closed_ones(
    steps: list[tuple[bytes, bool]], most: int | None
) -> None:
    """Issue: "per-source caps"; the table holds no more sources than have connections."""
    gate = ConnectionGate()
    inside: list[bytes] = []
    for host, comes in steps:
        if comes:
            cap_is_reached = gate.refusal(host, most) is not None
            source = gate.enter(host)
            assert cap_is_reached == (most is not None and inside.count(source) >= most)
            if cap_is_reached:
                gate.leave(source)
            else:
                inside.append(source)
        elif inside:
            gate.leave(inside.pop(0))
        assert len(gate) == len(set(inside))


def test_denied_source_has_no_connection_whatever_the_cap() -> None:
    gate = ConnectionGate(Access(deny=DENY))
    assert gate.refusal(packed("192.0.2.66"), None) == "refused_denied"
    assert gate.refusal(packed("::ffff:192.0.2.66"), 1) == "refused_denied"
    assert gate.refusal(packed("192.0.2.1"), None) is None
    gate.enter(packed("192.0.2.1"))
    assert gate.refusal(packed("::ffff:192.0.2.1"), 1) == "refused_source_cap"


# ---------------------------------------------------------------- defaults


def test_by_default_the_library_limits_nothing() -> None:
    limits = SourceLimits()
    assert limits.access() is None
    assert limits.connections_on(False, 100) is None
    assert limits.udp_rate_on(False) is None


@pytest.mark.parametrize(("most", "cap"), [(100, 25), (7, 1), (1, 1), (None, None)])
def test_default_gives_a_source_a_quarter_of_the_connections(most: int | None, cap: int | None) -> None:
    """Issue: "(default on non-loopback binds: a quarter of `--max-connections`)"."""
    limits = SourceLimits(connections=BY_BIND, udp_rate=BY_BIND)
    assert limits.connections_on(False, most) == cap
    assert limits.connections_on(True, most) is None


def test_default_gives_a_source_ten_thousand_answers_a_second() -> None:
    """Issue: "(default on non-loopback binds 10,000/s, burst 20,000 …)"."""
    limits = SourceLimits(udp_rate=BY_BIND)
    assert limits.udp_rate_on(False) == DEFAULT_UDP_RATE == Rate(10_000, 20_000)
    assert limits.udp_rate_on(True) is None


def test_configured_limits_hold_on_loopback_too() -> None:
    limits = SourceLimits(connections=3, udp_rate=Rate(1, 2))
    for on_loopback in (True, False):
        assert limits.connections_on(on_loopback, 100) == 3
        assert limits.udp_rate_on(on_loopback) == Rate(1, 2)


def test_processes_share_the_limits_for_all_sources_together() -> None:
    """Rounded up. A source's rate isn't divided: one flow always comes to the same process."""
    limits = SourceLimits(connections=10, udp_rate=Rate(100, 200), udp_rate_total=Rate(1000, 2001), deny=("::1",))
    assert limits.share(1) is limits
    assert limits.share(4) == limits._replace(connections=3, udp_rate_total=Rate(250, 501))
    default = SourceLimits(connections=BY_BIND, udp_rate=BY_BIND)
    assert default.share(4) == default
    assert SourceLimits().share(4) == SourceLimits()
