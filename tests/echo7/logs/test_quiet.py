"""Issue: "Log lines are rate-limited per kind and say how many were held back"."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7.logs import log
from echo7.logs.drops import DropLog, describe_peer, describe_source
from echo7.logs.quiet import LINES, Quiet, also
from echo7.policy.rate import SourceBuckets, SourcePrefix
from tests.support.loops import ManualClock

WAIT_S = 1 / LINES.per_second


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 1000), st.floats(0, 30)), max_size=60))
def test_every_event_is_logged_or_counted_as_held_back(events: list[tuple[str, int, float]]) -> None:
    """Of each kind: lines written, plus lines reported as held back, are the events up to the last line."""
    quiet, now_s = Quiet(), 100.0
    happened, told, buckets = dict[str, int](), dict[str, int](), {kind: SourceBuckets(LINES, 1) for kind in "abc"}
    for kind, count, pause_s in events:
        now_s += pause_s
        happened[kind] = happened.get(kind, 0) + count
        held_back = quiet.ask(kind, now_s, count)
        assert (held_back is not None) == bool(buckets[kind].take(b"", 1, now_s))
        if held_back is not None:
            told[kind] = told.get(kind, 0) + 1 + held_back
            assert told[kind] == happened[kind]


def test_limit_allows_a_few_lines_at_once_then_one_now_and_then() -> None:
    quiet = Quiet()
    assert [quiet.ask("kind", 100.0) for _ in range(LINES.burst)] == [0] * LINES.burst
    assert [quiet.ask("kind", 100.0) for _ in range(1234)] == [None] * 1234
    assert quiet.ask("other", 100.0) == 0
    assert quiet.ask("kind", 100.0 + WAIT_S) == 1234
    assert quiet.ask("kind", 100.0 + WAIT_S) is None


def test_held_back_count_is_in_the_line() -> None:
    """Issue: "… 1,234 more held back"."""
    assert also(0) == ""
    assert also(1234) == " (1,234 more held back)"


# ---------------------------------------------------------------- drops


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "echo7")
    return caplog


def test_drop_is_logged_with_its_source_and_a_flood_with_few_lines(lines: pytest.LogCaptureFixture) -> None:
    """Issue: "every drop has one counter and a rate-limited log line with the source"."""
    clock = ManualClock()
    drops = DropLog(clock)
    for _ in range(1000):
        drops.note("rate_source", lambda: "192.0.2.7:4000", 64)
    drops.note("source_denied", lambda: "[2001:db8::7]:4000")
    clock.advance(WAIT_S)
    drops.note("rate_source", lambda: "192.0.2.8:4000")
    assert [record.getMessage() for record in lines.records] == [
        *["dropped: rate_source of 192.0.2.7:4000 (63 more held back)"] * LINES.burst,
        "dropped: source_denied of [2001:db8::7]:4000",
        f"dropped: rate_source of 192.0.2.8:4000 ({(1000 - LINES.burst) * 64:,} more held back)",
    ]
    last = vars(lines.records[-1])
    assert last["event"] == "dropped"
    assert last["fields"] == {"reason": "rate_source", "source": "192.0.2.8:4000", "held_back": 63_680}


def test_disabled_level_looks_up_no_source(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "echo7")
    drops = DropLog(lambda: pytest.fail("the clock was read"))
    drops.note("reason", lambda: pytest.fail("the source was put into words"))
    assert not caplog.records


def test_sources_are_named_as_text() -> None:
    assert describe_peer(("192.0.2.7", 7)) == "192.0.2.7:7"
    assert describe_peer(None) == "an unknown source"
    assert describe_source(b"") == "all sources together"
    assert describe_source(bytes([192, 0, 2, 7])) == "192.0.2.7"
    assert describe_source(bytes([0x20, 1, 0xD, 0xB8, 0, 1, 2, *bytes(9)])) == "2001:db8:1:200::/56"
    assert describe_source(bytes([192, 0, 2, 0]), SourcePrefix(24, 56)) == "192.0.2.0/24"
    assert describe_source(bytes(15) + b"\1", SourcePrefix(32, 128)) == "::1"


# ---------------------------------------------------------------- the loop's warnings


def record_of(name: str, level: int, message: str = "it failed", **extra: object) -> logging.LogRecord:
    record = logging.LogRecord(name, level, "", 0, message, None, None)
    vars(record).update(extra)
    return record


def test_repeated_warning_of_the_loop_is_held_back_and_counted() -> None:
    """A client that makes a callback raise must not fill a disk with tracebacks."""
    clock = ManualClock()
    repeats = log.Repeats(clock)
    raised = [record_of("reactor", logging.ERROR, event="callback_raised") for _ in range(100)]
    assert [repeats.filter(record) for record in raised] == [True] * LINES.burst + [False] * (100 - LINES.burst)
    assert repeats.filter(record_of("reactor", logging.ERROR, event="socket_broken"))
    assert repeats.filter(record_of("reactor", logging.WARNING, "without an event"))
    clock.advance(WAIT_S)
    last = record_of("reactor", logging.ERROR, event="callback_raised")
    assert repeats.filter(last)
    assert log.TextFormatter().format(last).endswith(f"it failed ({100 - LINES.burst} more held back)")
    assert f'"held_back": {100 - LINES.burst}' in log.JsonFormatter().format(last)
    assert "held" not in log.JsonFormatter().format(raised[0])


@pytest.mark.parametrize(
    ("name", "level"), [("echo7", logging.ERROR), ("reactor", logging.INFO), ("echo7", logging.DEBUG)]
)
def test_record_that_an_operator_causes_passes(name: str, level: int) -> None:
    repeats = log.Repeats(lambda: pytest.fail("the clock was read"))
    assert all(repeats.filter(record_of(name, level)) for _ in range(100))


def test_handler_of_the_service_has_the_filter() -> None:
    before = {name: vars(logging.getLogger(name)).copy() for name in ("reactor", "echo7")}
    try:
        handler = log.set_up("info", "text")
        assert [type(each) for each in handler.filters] == [log.Repeats]
    finally:
        for name, saved in before.items():
            vars(logging.getLogger(name)).update(saved)
