"""How long round trips took: counted in buckets for the percentiles, and summed exactly for everything else.

Law: memory doesn't grow with time, and the error has a bound. A bucket is as wide as its value's power of two divided
by 2^bits, and what it stands for is its middle: with 9 bits that is at most 1/1024 from the truth, with 5 bits 1/64.
Least, greatest, mean and standard deviation are of whole numbers, and exact. Pure: numbers in, numbers out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

FINE_BITS, COARSE_BITS = 9, 5  # for a whole run, 0.1 %; for each of many flows, 1.6 %


class Moments:
    """Count, sum, least, greatest, mean and standard deviation of whole numbers."""

    __slots__ = ("_squares", "count", "greatest", "least", "total")

    def __init__(self) -> None:
        self.count = self.total = self.least = self.greatest = 0
        self._squares = 0

    def add(self, value: int) -> None:
        """Count one number."""
        self.least = min(self.least, value) if self.count else value
        self.greatest = max(self.greatest, value)
        self.count += 1
        self.total += value
        self._squares += value * value

    @property
    def mean(self) -> int:
        """The mean, rounded down; 0 of nothing."""
        return self.total // max(1, self.count)

    @property
    def deviation(self) -> int:
        """The standard deviation of just these numbers (not an estimate for others), rounded down; 0 of nothing."""
        return math.isqrt(self.count * self._squares - self.total * self.total) // max(1, self.count)


class Histogram:
    """Moments, and percentiles with a small relative error. For numbers from 0 up."""

    __slots__ = ("_bits", "_buckets", "moments")

    def __init__(self, bits: int = FINE_BITS) -> None:
        self.moments = Moments()
        self._bits = bits
        self._buckets: dict[int, int] = {}  # number of the bucket → how often

    def add(self, value: int) -> None:
        """Count one number."""
        self.moments.add(value)
        number = self._number(value)
        self._buckets[number] = self._buckets.get(number, 0) + 1

    def percentile(self, hundredths: int) -> int:
        """Return what so many hundredths of a per cent are not above (nearest rank); 0 of nothing.

        9,990 is the 99.9th percentile. Never outside of what was counted.
        """
        rank = max(1, -(-self.moments.count * hundredths // 10_000))
        below = found = 0
        for value, count in self:
            if below < rank:
                found = value
            below += count
        return found

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (value, how often), in order of value."""
        for number, count in sorted(self._buckets.items()):
            yield min(max(self._middle(number), self.moments.least), self.moments.greatest), count

    def __len__(self) -> int:
        """How many buckets there are: what the memory goes by."""
        return len(self._buckets)

    def _number(self, value: int) -> int:
        shift = max(0, value.bit_length() - 1 - self._bits)
        return (shift << (self._bits + 1)) + (value >> shift)  # the mantissa has bits + 1 bits: no two meet

    def _middle(self, number: int) -> int:
        shift, mantissa = number >> (self._bits + 1), number & ((1 << (self._bits + 1)) - 1)
        return (mantissa << shift) + (1 << shift) // 2
