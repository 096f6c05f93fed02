"""Percentiles with a bounded error in bounded memory; moments exact."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from echo7.probe.measure.histogram import COARSE_BITS, FINE_BITS, Histogram, Moments

TIMES = st.lists(st.integers(0, 86_400 * 10**9) | st.integers(0, 3000), min_size=1, max_size=60)


def filled(values: list[int], bits: int = FINE_BITS) -> Histogram:
    histogram = Histogram(bits)
    for value in values:
        histogram.add(value)
    return histogram


@given(TIMES, st.sampled_from([5_000, 9_000, 9_900, 9_990, 10_000, 0]))
@example([1], 5_000)
@example([1023, 1024, 2047, 2048], 5_000)
def test_percentile_is_within_a_tenth_of_a_per_cent(values: list[int], hundredths: int) -> None:
    """Issue: "relative error ≤ 0.1 %"; nearest rank."""
    exact = sorted(values)[max(1, math.ceil(len(values) * hundredths / 10_000)) - 1]
    assert abs(filled(values).percentile(hundredths) - exact) <= exact / 1000


@given(TIMES)
def test_coarse_percentile_is_within_two_per_cent(values: list[int]) -> None:
    exact = sorted(values)[math.ceil(len(values) / 2) - 1]
    assert abs(filled(values, COARSE_BITS).percentile(5_000) - exact) <= exact / 64


@given(TIMES)
@example([5, 5, 5])
def test_moments_are_exact(values: list[int]) -> None:
    moments = filled(values).moments
    assert (moments.count, moments.total) == (len(values), sum(values))
    assert (moments.least, moments.greatest) == (min(values), max(values))
    assert moments.mean == sum(values) // len(values)
    assert moments.deviation == pytest.approx(statistics.pstdev(values), rel=1e-9, abs=1)


def test_empty_histogram_is_all_zero() -> None:
    moments, histogram = Moments(), Histogram()
    assert (moments.count, moments.mean, moments.deviation, moments.least, moments.greatest) == (0, 0, 0, 0, 0)
    assert histogram.percentile(5_000) == 0
    assert list(histogram) == []


@given(TIMES)
def test_values_are_in_order_within_the_bounds_and_counted_once(values: list[int]) -> None:
    found = list(filled(values))
    assert sum(count for _, count in found) == len(values)
    assert [value for value, _ in found] == sorted(value for value, _ in found)
    assert min(values) <= found[0][0]
    assert found[-1][0] <= max(values)


def test_memory_does_not_grow_with_time() -> None:
    """A hundred thousand round trips of up to two seconds make no more buckets than 22 powers of two have."""
    histogram = Histogram()
    for value in range(0, 2_000_000_000, 20_011):
        histogram.add(value)
    assert len(histogram) <= 22 * 512
    before = len(histogram)
    for value in range(0, 2_000_000_000, 20_011):
        histogram.add(value)
    assert len(histogram) == before
