"""Thresholds, the one line and the exit status of a monitoring plugin."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7.probe.report import nagios
from echo7.probe.report.nagios import CRITICAL, OK, WARNING, rate, thresholds
from tests.echo7.probe.world import LOST, World, flipped, plan


def test_thresholds_are_read_with_their_units() -> None:
    text = "rtt=20ms,p99=1.5s,jitter=300us,loss=1%"
    assert thresholds(text) == {"rtt": 20e6, "p99": 1.5e9, "jitter": 300e3, "loss": 0.01}
    assert thresholds("rtt=5ns,jitter=7µs") == {"rtt": 5, "jitter": 7000}


@pytest.mark.parametrize(
    "text", ["", "rtt", "rtt=", "rtt=20", "rtt=20%", "loss=1", "loss=1ms", "speed=1ms", "rtt=-1ms", "rtt=nanms",
             "rtt=1ms,", "rtt=1e9ms", "loss=%", "rtt=1" + "0" * 400 + "s", "rtt=1ms\n", "rtt=\u0661ms"],
)  # fmt: skip
def test_other_thresholds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a threshold; ") as refused:
        thresholds(text)
    assert "\n" not in str(refused.value)


@given(st.text("rtlosp9=,.%msnu0123456789 jie", max_size=30))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        found = thresholds(text)
    except ValueError as refused:
        found = {}
        text = str(refused)
    assert all(value >= 0 for value in found.values())
    assert len(text.splitlines()) <= 1


@pytest.mark.parametrize(
    ("warn", "crit", "status", "word"),
    [
        ("rtt=300ms", "rtt=400ms,loss=60%", OK, "OK"),
        ("rtt=200ms", "rtt=250ms", WARNING, "WARNING"),  # equal isn't above
        ("rtt=200ms", "loss=30%", CRITICAL, "CRITICAL"),
        ("loss=49.9%", "", WARNING, "WARNING"),
        ("loss=50%", "", OK, "OK"),
        ("p99=1ms", "", WARNING, "WARNING"),
        ("jitter=1ms", "", OK, "OK"),  # no neighbours
    ],
)
def test_value_above_a_threshold_meets_it(warn: str, crit: str, status: int, word: str) -> None:
    """Half of the probes lost, round trips of 250 ms."""
    result = World(plan(4, 0.5), {2: LOST, 4: LOST}).run()
    found, line = rate(result, thresholds(warn), thresholds(crit) if crit else {})
    assert found == status
    assert line.startswith(f"ECHO {word} - udp 10.0.0.1:7 rtt 250.000 ms, loss 50%, 4 sent | ")


def test_performance_data_follow_the_guidelines() -> None:
    """Monitoring Plugins Development Guidelines: 'label'=value[unit];[warn];[crit];[min];[max]."""
    result = World(plan(4, 0.5)).run()
    _, line = rate(result, thresholds("rtt=300ms,loss=1%"), thresholds("jitter=1s"))
    data = line.partition(" | ")[2]
    assert data == "rtt=0.25s;0.3;;0 p99=0.25s;;;0 jitter=0s;;1;0 loss=0%;1;;0;100"
    assert all(re.fullmatch(r"[a-z0-9]+=[0-9.U]+[s%]?;[0-9.]*;[0-9.]*;0(;100)?", part) for part in data.split())


def test_no_reply_is_critical_with_any_thresholds() -> None:
    """Issue: "refused, unreachable and timed out are 2"."""
    status, line = rate(World(plan(2, 0.5), usual=LOST).run(), {}, {})
    assert status == CRITICAL
    assert line.startswith("ECHO CRITICAL - udp 10.0.0.1:7 timed out: 2 sent, no reply | rtt=U;;;0 ")


def test_damage_is_named() -> None:
    _, line = rate(World(plan(2), usual=flipped(20, 1)).run(), {}, {})
    assert "2 damaged |" in line


@pytest.mark.parametrize("words", ["cannot resolve 'a|b'", "two\nlines | and a bar", "|"])
def test_no_text_breaks_the_form_of_a_plugin(words: str) -> None:
    """Everything after the first bar would be read as performance data."""
    for data in ("", "loss=0%;;;0;100"):
        said = nagios.line(nagios.UNKNOWN, words, data)
        assert "\n" not in said
        assert said.split(" | ")[1:] == [data][: bool(data)]
        assert said.count("|") == bool(data)
