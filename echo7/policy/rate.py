"""Token buckets: how many answers a source may have, and all together. Pure policy: the time comes in as a number.

A bucket holds up to `burst` tokens, and `per_second` more flow in each second. One answer takes one token.

    now ─► clock = now × per_second ─► a bucket is the clock's reading at which it will be full again ─► one number

Law: memory is bounded. The table holds so many sources and no more; when it is full, whoever has been silent for the
longest is forgotten. To forget a full bucket changes nothing, as a new one is full too; so those go first where they
are met. Ten million forged sources leave the table no larger than its bound, and whoever comes between them has lost
nothing but the memory of what he had used up.

IPv4 sources count one by one, IPv6 sources by their /64: that is what one customer has, so one address of it more or
less means nothing.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

MOST_SOURCES = 16_384  # about 200 bytes each
MOST_PER_SECOND, MOST_BURST = 1e8, 10**9  # beyond that a float has no room for single tokens, after a few years
BURST_S = 2  # so many seconds' worth at once, where no burst is given
IPV6_BYTES, SITE_BYTES = 16, 8
MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96
LOOPBACK_V6 = bytes(15) + b"\x01"


class Rate(NamedTuple):
    """So many a second, and so many at once after a silence."""

    per_second: float
    burst: int


DEFAULT_UDP_RATE = Rate(10_000, 20_000)


def parse_rate(text: str) -> Rate:
    """Read `PER_SECOND` or `PER_SECOND:BURST`. Raise ValueError, whose text is one line."""
    first, colon, second = text.partition(":")
    try:
        per_second = float(first)
        burst = int(second) if colon else max(1, math.ceil(min(per_second, MOST_PER_SECOND) * BURST_S))
    except ValueError:  # what is no number, and a NaN
        per_second = burst = 0
    if not (0 < per_second <= MOST_PER_SECOND and 1 <= burst <= MOST_BURST):
        raise ValueError(f"{text!r} is not a rate such as 1000 or 1000:2000 (at most {MOST_PER_SECOND:.0f} a second)")
    return Rate(per_second, burst)


def plain_host(packed: bytes) -> bytes:
    """Return an address's 4 or 16 bytes, an IPv4 one that came over IPv6 as what it is (RFC 4291 §2.5.5.2)."""
    return packed[12:] if packed.startswith(MAPPED) and len(packed) == IPV6_BYTES else packed


def source_of(host: bytes) -> bytes:
    """Return what counts as one source: an IPv4 address, or the /64 of an IPv6 one."""
    return host[:SITE_BYTES] if len(host) == IPV6_BYTES else host


def is_loopback(host: bytes) -> bool:
    """Tell whether a packed address is of 127/8 or ::1."""
    return host == LOOPBACK_V6 if len(host) == IPV6_BYTES else host[0] == 127


class Bucket:
    """One bucket."""

    __slots__ = ("_burst", "_full_at", "_per_second")

    def __init__(self, rate: Rate) -> None:
        self._per_second, self._burst = rate
        self._full_at = -math.inf  # on its own clock; in the past: it is full now

    def take(self, count: int, now_s: float) -> int:
        """Take up to `count` tokens, and return how many there were."""
        clock = now_s * self._per_second
        full_at = max(self._full_at, clock)
        granted = max(0, min(count, int(self._burst - (full_at - clock))))
        self._full_at = full_at + granted
        return granted


class SourceBuckets:
    """A bucket for each source, within a fixed memory."""

    __slots__ = ("_burst", "_full_at", "_most", "_per_second")

    def __init__(self, rate: Rate, most_sources: int = MOST_SOURCES) -> None:
        self._per_second, self._burst = rate
        self._most = most_sources
        self._full_at: OrderedDict[bytes, float] = OrderedDict()  # by source, longest silent first

    def __len__(self) -> int:
        """How many sources are remembered."""
        return len(self._full_at)

    def take(self, source: bytes, count: int, now_s: float) -> int:
        """Take up to `count` of a source's tokens, and return how many there were."""
        clock, table = now_s * self._per_second, self._full_at
        full_at = table.get(source)
        if full_at is None:
            self._make_room(clock)
            full_at = clock
        else:
            table.move_to_end(source)
            full_at = max(full_at, clock)
        granted = max(0, min(count, int(self._burst - (full_at - clock))))
        table[source] = full_at + granted
        return granted

    def _make_room(self, clock: float) -> None:
        table = self._full_at
        for _ in range(2):  # two out for each one in, so that the table shrinks again after a flood
            if not table or (len(table) < self._most and next(iter(table.values())) > clock):
                return
            table.popitem(last=False)
