"""Token buckets: how many answers a source may have, and all together. Pure policy: the time comes in as a number.

A bucket holds up to `burst` tokens, and gains `per_second` more each second. One answer takes one token.

    now ─► clock = now × per_second ─► a bucket is the reading of the clock at which it is full again ─► one number

Law: memory is bounded. The table holds a fixed number of sources. When it is full, the source that has been silent for
the longest is evicted. Evicting a full bucket changes nothing, because a new one is full too, so those go first. Ten
million forged sources leave the table within its bound, and cost a real source at most the record of what it has used.

An IPv4 address is a source; so is an IPv6 /64, because one customer has at least that many IPv6 addresses.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

# About 200 bytes each.
MOST_SOURCES = 16_384
# With more, a float can't count single tokens after a few years.
MOST_PER_SECOND, MOST_BURST = 1e8, 10**9
# The default burst, in seconds of the rate.
BURST_S = 2
IPV6_BYTES, SITE_BYTES = 16, 8
# ::ffff:0:0/96
MAPPED = bytes(10) + b"\xff\xff"
LOOPBACK_V6 = bytes(15) + b"\x01"


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


def source_of(host: bytes) -> bytes:
    """Return the source that an address counts for: an IPv4 address itself, or the /64 of an IPv6 one."""
    return host[:SITE_BYTES] if len(host) == IPV6_BYTES else host


def is_loopback(host: bytes) -> bool:
    """Tell whether a packed address is ::1 or in 127/8."""
    return host == LOOPBACK_V6 if len(host) == IPV6_BYTES else host[0] == 127


class SourceBuckets:
    """A bucket for each source, within a fixed memory. With one source, it is a bucket for all sources together."""

    __slots__ = ("_burst", "_full_at", "_most", "_per_second")

    def __init__(self, rate: Rate, most_sources: int = MOST_SOURCES) -> None:
        self._per_second, self._burst = rate
        self._most = most_sources
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
            full_at = clock
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
            table.popitem(last=False)
