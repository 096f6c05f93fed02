"""A file is a valid trace, or one sentence says what is wrong with it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactor.observe import narrate
from reactor.player import tracefile
from reactor.player.tracefile import FIELDS, LINE_BYTES, NotATrace, Trace, read
from tests.support.traces import trace_file

TURN = ("turn", "", {"sleep_s": None, "calls": 0, "timers": 0})
SENT = ("sent", "connection-1", {"bytes": 3, "offered": 10})
GOOD: dict[str, Any] = {"n": 0, "turn": 0, "t": 1.5, "kind": "resumed", "who": "connection-1", "at": "loop.py:1"}


def parse(content: bytes) -> Trace:
    return read(io.BytesIO(content), "name")


def refusal(content: bytes) -> str:
    with pytest.raises(NotATrace) as caught:
        parse(content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_event(**fields: Any) -> bytes:
    """A trace of one event that differs from a valid one in these fields; ... removes a field."""
    event = {name: value for name, value in (GOOD | fields).items() if value is not ...}
    return trace_file() + json.dumps(event).encode() + b"\n"


def test_trace_has_its_header_and_its_events() -> None:
    trace = parse(trace_file(TURN, SENT, title="A title", about="About."))
    assert (trace.name, trace.header["title"], trace.header["about"]) == ("name", "A title", "About.")
    assert [event["kind"] for event in trace.events] == ["turn", "sent"]
    assert (trace.left_out, trace.cut_short) == (0, False)


def test_header_needs_only_trace_and_format() -> None:
    header = parse(b'{"trace": "reactor", "format": 1}\n').header
    assert (header["title"], header["clock"], header["sources"]) == ("", "", {})


@pytest.mark.parametrize("missing", [1, 10, 60])
def test_trace_with_an_incomplete_last_line_is_played_up_to_it(missing: int) -> None:
    trace = parse(trace_file(TURN, SENT)[:-missing])
    assert trace.cut_short
    assert [event["kind"] for event in trace.events] == ["turn"]


def test_excess_events_are_counted_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracefile, "MOST_EVENTS", 2)
    trace = parse(trace_file(TURN, SENT, SENT, TURN, SENT)[:-1])
    assert (len(trace.events), trace.left_out, trace.cut_short) == (2, 2, True)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b'{"trace": "reactor", "format": 1}', "incomplete"),
        (b"GIF89a\n", "line 1 isn't JSON"),
        (b"\xff\xfe\n", "line 1 isn't UTF-8 (byte 1)"),
        (b"[1]\n", "line 1 is JSON, but not an object"),
        (b"{}\n", '"trace": "reactor"'),
        (b'{"trace": "reactor"}\n', "its format is None"),
        (b'{"trace": "reactor", "format": 2}\n', "its format is 2; this player knows format 1"),
        (b'{"trace": "reactor", "format": 1, "sources": 7}\n', '"sources"'),
        (b'{"trace": "reactor", "format": 1, "sources": {"loop.py": 7}}\n', '"sources"'),
        (b'{"trace": "reactor", "format": 1, "title": 7}\n', '"title" must be a text, not 7'),
        (trace_file(TURN) + b"\n", "line 3 isn't JSON"),
        (trace_file(TURN) + b"[" * 50_000 + b"\n", "line 3 isn't JSON"),
        (trace_file(TURN) + b" " * LINE_BYTES + b"\n", "line 3 is longer than 65,536 bytes"),
        (with_event(who=...), 'line 2: an event needs "who"'),
        (with_event(n=1), "event 0 is expected here, not 1"),
        (with_event(kind="sent"), "line 2: a 'sent' event needs \"bytes\""),
        (with_event(kind="sent", bytes="3", offered=10), "\"bytes\" of a 'sent' event must be a whole number"),
        (with_event(kind="sent", bytes=True, offered=10), "not True"),
        (with_event(t=float("nan")), "line 2 has the number NaN; a trace has finite numbers"),
        (with_event(high_water_bytes=float("inf")), "line 2 has the number Infinity; a trace has finite numbers"),
        (with_event(via=[[float("-inf")]]), "line 2 has the number -Infinity"),
        (with_event(more="1e999").replace(b'"1e999"', b"1e999"), "line 2 has the number 1e999"),
        (b'{"trace": "reactor", "format": 1, "more": NaN}\n', "line 1 has the number NaN"),
        (with_event(t=1e300), "must be a number"),
        (with_event(kind="dispatch", mask="X"), 'must be one of "", "R", "W", "RW"'),
        (with_event(kind="dispatch", mask=[]), 'must be one of "", "R", "W", "RW"'),
        (with_event(kind="select", ready=[["a"]], slept_s=0), "a list of [who, mask]"),
        (with_event(kind="closed", error=7, state=""), "a text, or null, not 7"),
        (with_event(via="loop.py:1"), '"via" of an event must be a list of texts'),
        (with_event(kind="x" * 1000), ""),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:30],
)
def test_malformed_trace_is_refused_with_line_and_reason(content: bytes, why: str) -> None:
    if why:
        assert why in refusal(content)
    else:
        assert parse(content).events[0]["kind"] == "x" * 1000  # an unknown kind is accepted


@given(st.sampled_from(sorted(FIELDS)), st.dictionaries(st.text(max_size=3), st.integers()))
def test_missing_field_of_a_kind_is_refused(kind: str, more: dict[str, int]) -> None:
    needed = FIELDS[kind]
    if any(not shape.accepts(None) for shape in needed.values()):
        assert repr(kind) in refusal(
            with_event(**{"kind": kind, **{f"_{name}": value for name, value in more.items()}})
        )


def test_fields_of_every_kind_are_known() -> None:
    without = {"eof", "paused", "resumed"}  # what they say is in their names
    assert {*FIELDS, *without} == {*narrate.SENTENCES, "ended"}


@given(st.binary(max_size=200))
def test_random_bytes_are_a_trace_or_refused(content: bytes) -> None:
    for data in (content, trace_file() + content, trace_file(TURN) + content + b"\n"):
        try:
            events = parse(data).events
        except NotATrace:
            continue
        assert len(events) <= data.count(b"\n")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(FIELDS)), st.data())
def test_random_fields_give_the_page_complete_events(kind: str, data: st.DataObject) -> None:
    fields = {name: data.draw(json_values) for name in FIELDS[kind]}
    try:
        (event,) = parse(with_event(kind=kind, **fields)).events
    except NotATrace:
        return
    assert all(shape.accepts(event[name]) for name, shape in FIELDS[kind].items())
