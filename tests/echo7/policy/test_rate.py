"""Token buckets against the simplest model; and ten million forged sources against a fixed table."""

from __future__ import annotations

import ipaddress
import os
import pathlib
import tracemalloc
from fractions import Fraction
from functools import partial

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from echo7.policy.rate import (
    MOST_SOURCES,
    Rate,
    SourceBuckets,
    SourcePrefix,
    is_loopback,
    parse_prefix,
    parse_rate,
    plain_host,
)  # fmt: skip

# Sums of these have no rounding errors, so the model can be exact.
TICK_S = 1 / 64
# ten million, when started with that number
FORGED = int(os.environ.get("FORGED_SOURCES", "100000"))
# Of a source in the table, at most.
ENTRY_BYTES = 300
rates = st.builds(Rate, st.sampled_from([0.25, 1.0, 64.0, 10_000.0]), st.integers(1, 20))
keys = st.sampled_from([bytes([10, 0, 0, n]) for n in range(6)])
steps = st.lists(st.tuples(st.integers(0, 200), keys, st.integers(0, 30)), max_size=40)


def resident_bytes() -> int:
    """Return this process's memory, or 0 without proc(5)."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class NaiveBucket:
    """Tokens that grow with time, up to the burst."""

    def __init__(self, rate: Rate) -> None:
        self.rate, self.tokens, self.at_s = rate, Fraction(rate.burst), Fraction(0)

    def take(self, count: int, now_s: float) -> int:
        now = Fraction(now_s)
        flown = (now - self.at_s) * Fraction(self.rate.per_second)
        self.tokens = min(Fraction(self.rate.burst), self.tokens + flown)
        self.at_s = now
        granted = min(count, int(self.tokens))
        self.tokens -= granted
        return granted


@given(rates, steps)
def test_bucket_grants_what_the_model_grants(rate: Rate, steps: list[tuple[int, bytes, int]]) -> None:
    bucket, model, now_s = SourceBuckets(rate, 1), NaiveBucket(rate), 1000.0
    for ticks, _, count in steps:
        now_s += ticks * TICK_S
        assert bucket.take(b"", count, now_s) == model.take(count, now_s)


@given(rates, steps)
@example(Rate(1.0, 5), [(0, bytes(4), 3), (64, bytes(4), 9), (0, bytes(4), 1)])
def test_each_source_has_a_bucket_of_its_own(rate: Rate, steps: list[tuple[int, bytes, int]]) -> None:
    """Issue: "token bucket per source prefix": neighbours are unaffected."""
    buckets, models, now_s = SourceBuckets(rate), dict[bytes, NaiveBucket](), 1000.0
    for ticks, key, count in steps:
        now_s += ticks * TICK_S
        model = models.setdefault(key, NaiveBucket(rate))
        assert buckets.take(key, count, now_s) == model.take(count, now_s)


@given(rates, steps, st.integers(1, 4))
@example(Rate(1.0, 5), [(0, bytes([10, 0, 0, n]), 5) for n in (0, 1, 2, 0)], 1)
def test_full_table_gives_no_source_more_than_its_rate(
    rate: Rate, steps: list[tuple[int, bytes, int]], most: int
) -> None:
    """Issue: "a table pushed over its size gives 5.1 times the rate"."""
    buckets, models, now_s = SourceBuckets(rate, most), dict[bytes, NaiveBucket](), 1000.0
    for ticks, key, count in steps:
        now_s += ticks * TICK_S
        granted = buckets.take(key, count, now_s)
        assert len(buckets) <= most
        assert models.setdefault(key, NaiveBucket(rate)).take(granted, now_s) == granted


@pytest.mark.parametrize("sources", [101, 150, 1000])
def test_sources_that_push_each_other_out_get_together_what_a_full_table_may_have(sources: int) -> None:
    """Each asks for all it can get, at any speed; without a bound, each visit would get a burst."""
    rate, most, visits, visits_per_s = Rate(10, 20), 100, 20_000, 1_000
    buckets = SourceBuckets(rate, most)
    granted = sum(
        buckets.take((number % sources).to_bytes(4), 1000, 50.0 + number / visits_per_s) for number in range(visits)
    )
    assert granted <= most * (rate.burst + rate.per_second * visits / visits_per_s) * 1.01


def test_new_source_in_a_flood_of_forged_ones_gets_answers_at_the_default_rate() -> None:
    """Forged sources that use up their burst each, at 200,000 datagrams a second."""
    buckets = SourceBuckets(Rate(10_000, 20_000))
    for number in range(MOST_SOURCES * 2):
        buckets.take(number.to_bytes(4), 20_000, 100.0 + number / 200_000)
    assert buckets.take(b"new", 500, 100.0 + MOST_SOURCES * 2 / 200_000) == 500


def test_full_table_evicts_the_least_recently_seen_source() -> None:
    """Issue: "LRU of fixed size"."""
    buckets = SourceBuckets(Rate(1.0, 10), 3)
    for key, count in ((b"a", 3), (b"b", 5), (b"c", 1), (b"a", 1), (b"d", 1)):
        assert buckets.take(key, count, 100.0) == count
    assert buckets.take(b"a", 10, 100.0) == 6
    assert buckets.take(b"c", 10, 100.0) == 9
    assert buckets.take(b"b", 10, 100.0) == 4, "d began with what b had left, took one, and is now evicted for b"


def test_bucket_grants_the_burst_and_then_the_rate() -> None:
    """`--udp-rate 10:20`: twenty at once, then ten a second."""
    bucket = SourceBuckets(Rate(10, 20))
    assert bucket.take(b"host", 100, 5.0) == 20
    assert bucket.take(b"host", 100, 5.0) == 0
    assert [bucket.take(b"host", 100, 5.0 + second) for second in range(1, 4)] == [10, 10, 10]
    assert bucket.take(b"host", 100, 1000.0) == 20


def test_clock_that_stands_still_or_goes_back_grants_no_token_twice() -> None:
    for bucket in (partial(SourceBuckets(Rate(10, 20), most).take, b"host") for most in (1, 100)):
        assert bucket(20, 100.0) == 20
        assert bucket(1, 100.0) == 0
        assert bucket(1, 50.0) == 0


def test_table_shrinks_again_after_a_flood() -> None:
    """A full bucket holds no information: two of them are evicted for each new source."""
    buckets = SourceBuckets(Rate(1.0, 10), 1000)
    for number in range(1000):
        buckets.take(number.to_bytes(4, "big"), 10, 100.0)
    assert len(buckets) == 1000
    for number in range(1000, 1600):
        buckets.take(number.to_bytes(4, "big"), 10, 1000.0)
    assert len(buckets) < 700


def flood(buckets: SourceBuckets, count: int) -> None:
    """Take one token for each of `count` sources, 200,000 a second. An odd multiplier visits them out of order."""
    take = buckets.take
    for number in range(count):
        take((number * 2_654_435_761 & 0xFFFF_FFFF).to_bytes(4, "big"), 1, 100.0 + number / 200_000)


BOTH_RATES = pytest.mark.parametrize("rate", [Rate(10_000, 20_000), Rate(0.001, 2)], ids=["default", "slow"])


@BOTH_RATES
def test_flood_of_forged_sources_leaves_memory_flat_and_a_neighbour_unaffected(rate: Rate) -> None:
    """Issue: "ten million spoofed sources leave RSS flat". FORGED_SOURCES=10000000 does that."""
    buckets, neighbour = SourceBuckets(rate), b"me"
    assert buckets.take(neighbour, rate.burst, 100.0) == rate.burst
    flood(buckets, 2 * MOST_SOURCES)
    before_bytes = resident_bytes()
    flood(buckets, FORGED)
    assert len(buckets) <= MOST_SOURCES
    assert resident_bytes() - before_bytes < MOST_SOURCES * ENTRY_BYTES
    refilled_s = 100.0 + FORGED / 200_000 + rate.burst / rate.per_second
    assert buckets.take(neighbour, rate.burst, refilled_s) == rate.burst


@BOTH_RATES
def test_full_table_needs_no_more_memory_than_documented(rate: Rate) -> None:
    """`MOST_SOURCES`: "about 200 bytes each". A smaller table grows in the same steps."""
    most = MOST_SOURCES // 8
    tracemalloc.start()
    try:
        buckets = SourceBuckets(rate, most)
        flood(buckets, 2 * most)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < most * ENTRY_BYTES


@given(st.floats(0.001, 1e8), st.integers(1, 10**9))
def test_rate_is_parsed_as_written(per_second: float, burst: int) -> None:
    assert parse_rate(f"{per_second!r}:{burst}") == Rate(per_second, burst)
    assert parse_rate(f"{per_second!r}").burst >= max(1, 2 * per_second)


@pytest.mark.parametrize(("text", "rate"), [("1000", Rate(1000, 2000)), ("0.1", Rate(0.1, 1)), ("5:1", Rate(5, 1))])
def test_default_burst_is_two_seconds_of_the_rate(text: str, rate: Rate) -> None:
    """Issue: "PER_SECOND[:BURST]"."""
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "x", "0", "-1", "nan", "inf", "1e9", "1:", "1:0", "1:x", "1:1.5", ":5", "1:2:3", "1:9999999999"]
)
def test_invalid_rate_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]* is not a rate such as [^\n]*$"):
        parse_rate(text)


@given(st.ip_addresses())
@example(ipaddress.ip_address("127.255.255.255"))
@example(ipaddress.ip_address("128.0.0.0"))
@example(ipaddress.ip_address("::1"))
@example(ipaddress.ip_address("::2"))
def test_loopback_agrees_with_the_standard_library(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    host = address.packed
    mapped = getattr(address, "ipv4_mapped", None)
    assert is_loopback(plain_host(host)) is bool((mapped or address).is_loopback)


prefixes = st.builds(SourcePrefix, st.integers(8, 32), st.integers(16, 128))


@given(st.ip_addresses(), prefixes)
@example(ipaddress.ip_address("2001:db8::1"), SourcePrefix())
def test_source_is_the_network_of_an_address(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, prefix: SourcePrefix
) -> None:
    """Issue: "per source prefix", and "offer the prefix as an option (`/56`, `/24`)"."""
    network = ipaddress.ip_network((address, prefix.ipv6 if address.version == 6 else prefix.ipv4), strict=False)
    assert prefix.source_of(address.packed) == network.network_address.packed
    assert prefix.bits(address.packed) == network.prefixlen


@given(st.ip_addresses(v=4), prefixes)
def test_ipv4_source_over_ipv6_is_the_same_source(address: ipaddress.IPv4Address, prefix: SourcePrefix) -> None:
    mapped = b"\0" * 10 + b"\xff\xff" + address.packed
    assert prefix.source_of(plain_host(mapped)) == prefix.source_of(address.packed)


@given(prefixes)
def test_prefix_is_read_as_it_is_written(prefix: SourcePrefix) -> None:
    assert parse_prefix(f"{prefix.ipv4},{prefix.ipv6}") == parse_prefix(f"{prefix.ipv4}, {prefix.ipv6}") == prefix


@pytest.mark.parametrize(
    "text", ["", "24", "24,", ",56", "7,56", "33,56", "24,15", "24,129", "24,56,8", "/24,/56", "a,b"]
)
def test_prefix_that_makes_no_sense_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not two lengths such as 32,56"):
        parse_prefix(text)
