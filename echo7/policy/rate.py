"""Sources, and token buckets: how many answers one may have, and all together. Pure: the time comes in as a number.

A bucket holds up to `burst` tokens, and gains `per_second` more each second. One answer takes one token.

    now ─► clock = now × per_second ─► a bucket is the reading of the clock at which it is full again ─► one number

Law: memory is bounded, and eviction gives no source more than its rate. The table holds a fixed number of sources. When
it is full, the source that has been silent for the longest is evicted, perhaps before its bucket is full again. It may
come back, so every source that isn't in the table begins with the emptiest bucket that was evicted. That bucket goes on
refilling. So no source gets more than its rate, and all sources outside the table together get about what a full table
may have.

An address counts for the source that its prefix names. One customer has at least a /64 of IPv6 addresses, and most
providers give a /56 (RIPE-690), so that is the default. IPv4 addresses are scarce: each is a source.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from typing import NamedTuple

# About 200 bytes each.
MOST_SOURCES = 16_384
# With more, a float can't count single tokens after a few years.
MOST_PER_SECOND, MOST_BURST = 1e8, 10**9
# The default burst, in seconds of the rate.
BURST_S = 2
IPV6_BYTES = 16
# ::ffff:0:0/96
MAPPED = bytes(10) + b"\xff\xff"
LOOPBACK_V6 = bytes(15) + b"\x01"


class SourcePrefix(NamedTuple):
    """How many leading bits of an address name its source."""

    ipv4: int = 32
    ipv6: int = 56

    def source_of(self, host: bytes) -> bytes:
        """Return the source that an address of 4 or 16 bytes counts for: the address, with zeros after the prefix."""
        others = len(host) * 8 - self.bits(host)
        return (int.from_bytes(host) >> others << others).to_bytes(len(host)) if others else host

    def bits(self, host: bytes) -> int:
        """Return the length of the prefix for an address of 4 or 16 bytes."""
        return self.ipv6 if len(host) == IPV6_BYTES else self.ipv4


DEFAULT_PREFIX = SourcePrefix()


def parse_prefix(text: str) -> SourcePrefix:
    """Read `IPV4,IPV6`. Raise ValueError with one line of text."""
    first, _, second = text.partition(",")
    with contextlib.suppress(ValueError):
        prefix = SourcePrefix(int(first), int(second))
        if 8 <= prefix.ipv4 <= 32 and 16 <= prefix.ipv6 <= 128:
            return prefix
    raise ValueError(f"{text!r} is not two lengths such as 32,56 (8 to 32 for IPv4, 16 to 128 for IPv6)")


class Rate(NamedTuple):
    """Tokens per second, and how many may be taken at once after a pause."""

    per_second: float
    burst: int


DEFAULT_UDP_RATE = Rate(10_000, 20_000)


def parse_rate(text: str) -> Rate:
    """Read `PER_SECOND` or `PER_SECOND:BURST`. Raise ValueError with one line of text."""
    first, colon, second = text.partition(":")
    try:
        per_second = float(first)
        burst = int(second) if colon else max(1, math.ceil(min(per_second, MOST_PER_SECOND) * BURST_S))
    # Not a number, or NaN.
    except ValueError:
        per_second = burst = 0
    if not (0 < per_second <= MOST_PER_SECOND and 1 <= burst <= MOST_BURST):
        raise ValueError(f"{text!r} is not a rate such as 1000 or 1000:2000 (at most {MOST_PER_SECOND:.0f} a second)")
    return Rate(per_second, burst)


def plain_host(packed: bytes) -> bytes:
    """Return an address's 4 or 16 bytes; those of an IPv4-mapped IPv6 address are 4 (RFC 4291 §2.5.5.2)."""
    return packed[12:] if packed.startswith(MAPPED) and len(packed) == IPV6_BYTES else packed


def is_loopback(host: bytes) -> bool:
    """Tell whether a packed address is ::1 or in 127/8."""
    return host == LOOPBACK_V6 if len(host) == IPV6_BYTES else host[0] == 127


class SourceBuckets:
    """A bucket for each source, within a fixed memory. With one source, it is a bucket for all sources together."""

    __slots__ = ("_burst", "_full_at", "_most", "_per_second", "_strangers_full_at")

    def __init__(self, rate: Rate, most_sources: int = MOST_SOURCES) -> None:
        self._per_second, self._burst = rate
        self._most = most_sources
        # When the bucket of a source that isn't in the table is full.
        self._strangers_full_at = -math.inf
        # By source, the longest silent first.
        self._full_at: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        """How many sources are in the table."""
        return len(self._full_at)

    def take(self, source: bytes, count: int, now_s: float) -> int:
        """Take up to `count` of a source's tokens. Return how many were taken."""
        clock, table = now_s * self._per_second, self._full_at
        full_at = table.get(source)
        if full_at is None:
            self._make_room(clock)
            full_at = self._strangers_full_at
        else:
            table.move_to_end(source)
        if full_at < clock:
            full_at = clock
        left = int(self._burst - (full_at - clock))
        granted = count if count <= left else max(0, left)
        table[source] = full_at + granted
        return granted

    def _make_room(self, clock: float) -> None:
        table = self._full_at
        # Evict two for each new one, so that the table shrinks again after a flood.
        for _ in range(2):
            if not table or (len(table) < self._most and next(iter(table.values())) > clock):
                return
            _, full_at = table.popitem(last=False)
            if full_at > self._strangers_full_at:
                self._strangers_full_at = full_at
