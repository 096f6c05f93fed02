"""Plans that make no sense are refused before a socket is made, in one line."""

from __future__ import annotations

import re
from typing import Any

import pytest

from echo7.probe.plan import Plan, checked, misfit


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"sizes": (0,)},
        {"sizes": (65_527,)},
        {"sizes": (1, 65_535), "tcp": True},
        {"flows": 1024},
        {"source_port": 64_512, "flows": 1024},
        {"interval_ns": 0},
        {"interval_ns": 10_000},
        {"df": True},
        {"timeout_ns": 1},
    ],
    ids=str,
)
def test_good_plan_is_returned_unchanged(wanted: dict[str, Any]) -> None:
    plan = Plan(**wanted)
    assert checked(plan) is plan
    assert plan.transport == ("tcp" if plan.tcp else "udp")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"sizes": ()}, "0 sizes"),
        ({"sizes": range(16, 5000)}, "4984 sizes; take from 1 to 4096"),
        ({"sizes": (-1,)}, "a size of -1"),
        ({"sizes": (65_528,)}, "a size of 65528; udp takes 0 to 65527"),
        ({"sizes": (0,), "tcp": True}, "a size of 0; tcp takes 1 to 65535"),
        ({"flows": 0}, "0 flows"),
        ({"flows": 1025}, "1025 flows"),
        ({"source_port": -1}, "a source port of -1"),
        ({"source_port": 65_535, "flows": 2}, "the last source port would be 65536"),
        ({"probes": 0}, "a count of 0"),
        ({"interval_ns": -1}, "an interval of -1 ns"),
        ({"interval_ns": 9_999}, "an interval of 9999 ns"),
        ({"interval_ns": 10**15}, "take 0, or from 10 µs to a day"),
        ({"timeout_ns": 0}, "a time-out of 0 ns"),
        ({"timeout_ns": 10**15}, "a time-out of"),
        ({"df": True, "tcp": True}, "TCP cuts its stream to fit"),
    ],
    ids=str,
)
def test_plan_that_makes_no_sense_is_refused_in_one_line(wanted: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        checked(Plan(**wanted))
    assert "\n" not in str(refused.value)


def test_ipv4_datagram_carries_less_than_ipv6() -> None:
    """RFC 791 and RFC 8200: 65,535 bytes with IPv4's header, or without IPv6's; 8 of them are UDP's (RFC 768)."""
    assert "at most 65507 bytes" in misfit(Plan(sizes=(65_508,)), "10.0.0.1")
    assert misfit(Plan(sizes=(65_507,)), "10.0.0.1") == ""
    assert misfit(Plan(sizes=(65_527,)), "::1") == ""
    assert misfit(Plan(sizes=(65_508,), tcp=True), "10.0.0.1") == ""
