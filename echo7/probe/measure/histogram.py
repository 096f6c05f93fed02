"""Round-trip times: buckets for the percentiles, exact sums for everything else.

Law: memory doesn't grow with time, and the error is bounded. A bucket's width is its value's power of two divided by
2^bits, and a bucket counts as its middle: at most 1/1024 from the true value with 9 bits, 1/64 with 5 bits. Least,
greatest, mean and standard deviation are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

FINE_BITS, COARSE_BITS = 9, 5  # 0.1 % for a whole run; 1.6 % for each of many flows


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
        """The mean, rounded down; 0 if there are no numbers."""
        return self.total // max(1, self.count)

    @property
    def deviation(self) -> int:
        """The standard deviation of these numbers (no sample's estimate), rounded down; 0 if there are none."""
        return math.isqrt(self.count * self._squares - self.total * self.total) // max(1, self.count)


class Histogram:
    """Moments, and percentiles with a small relative error. For numbers from 0 up."""

    __slots__ = ("_bits", "_buckets", "moments")

    def __init__(self, bits: int = FINE_BITS) -> None:
        self.moments = Moments()
        self._bits = bits
        self._buckets: dict[int, int] = {}  # number of the bucket → count

    def add(self, value: int) -> None:
        """Count one number."""
        self.moments.add(value)
        number = self._number(value)
        self._buckets[number] = self._buckets.get(number, 0) + 1

    def percentile(self, hundredths: int) -> int:
        """Return a percentile in hundredths of a per cent (nearest rank): 9,990 is the 99.9th. 0 without numbers.

        It is never below the least number or above the greatest.
        """
        rank = max(1, -(-self.moments.count * hundredths // 10_000))
        below = found = 0
        for value, count in self:
            if below < rank:
                found = value
            below += count
        return found

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (value, count), in order of value."""
        for number, count in sorted(self._buckets.items()):
            yield min(max(self._middle(number), self.moments.least), self.moments.greatest), count

    def __len__(self) -> int:
        """The number of buckets, which determines the memory."""
        return len(self._buckets)

    def _number(self, value: int) -> int:
        shift = max(0, value.bit_length() - 1 - self._bits)
        # the mantissa has bits + 1 bits, so no two values of different shifts share a number
        return (shift << (self._bits + 1)) + (value >> shift)

    def _middle(self, number: int) -> int:
        shift, mantissa = number >> (self._bits + 1), number & ((1 << (self._bits + 1)) - 1)
        return (mantissa << shift) + (1 << shift) // 2
