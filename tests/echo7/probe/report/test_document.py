"""JSON: events and the summary."""

from __future__ import annotations

import json

from echo7.probe.measure.words import Damage, Event, Harm, Word
from echo7.probe.report.document import SCHEMA_VERSION, event_json, summary_json
from tests.echo7.probe.world import LOST, RTT_NS, World, plan


def test_event_is_one_line() -> None:
    """Issue: "`--jsonl` streams an object per probe; integer nanoseconds, a schema version"."""
    damage = Damage(Harm.CORRUPTED, 20, 1, 1)
    line = event_json(Event(Word.REPLY, 0, 7, 56, 56, 1234, True, damage, sent_ns=6_000))
    assert "\n" not in line
    assert json.loads(line) == {
        "schema_version": SCHEMA_VERSION, "type": "probe", "word": "reply", "sequence": 7, "flow": 0, "size_bytes": 56,
        "received_bytes": 56, "sent_ns": 6000, "rtt_ns": 1234, "reordered": True, "reason": None,
        "damage": {"kind": "corrupted", "offset_bytes": 20, "bits": 1, "bits_wrong": 1},
    }  # fmt: skip


def test_event_says_when_its_probe_was_sent() -> None:
    """Relative to the start, whose wall-clock time is in the summary, so that other logs can be compared."""
    world = World(plan(2, 0.5, flows=2))
    result = world.run()
    assert [event.sent_ns for event in world.events] == [0, 500_000_000]
    assert json.loads(summary_json(result))["started_unix_ns"] == world.prober.started_unix_ns > 10**18


def test_unknown_values_are_null() -> None:
    lost = json.loads(event_json(Event(Word.LOST, 0, 7, 56, reason="timed out")))
    assert (lost["rtt_ns"], lost["received_bytes"], lost["damage"], lost["reason"]) == (None, None, None, "timed out")
    foreign = json.loads(event_json(Event(Word.FOREIGN, 0, received_bytes=9)))
    assert {foreign[name] for name in ("sequence", "size_bytes", "sent_ns")} == {None}
    assert foreign["received_bytes"] == 9
    empty = json.loads(event_json(Event(Word.REPLY, 0, 1, 0, 0, 5)))
    assert (empty["size_bytes"], empty["received_bytes"]) == (0, 0)


def test_summary_is_one_document() -> None:
    """Issue: "`--json` one document at the end"."""
    world = World(plan(4, 0.5, flows=2, sizes=(20, 30), df=True), {4: LOST})
    found = json.loads(summary_json(world.run()))
    assert (found["schema_version"], found["type"], found["verdict"]) == (SCHEMA_VERSION, "summary", "replies")
    assert (found["counts"]["sent"], found["counts"]["lost"], found["counts"]["loss"]) == (4, 1, 0.25)
    assert found["rtt"]["p50_ns"] == RTT_NS
    assert [flow["counts"]["replies"] for flow in found["flows"]] == [2, 1]
    assert [(size["size_bytes"], size["counts"]["replies"]) for size in found["sizes"]] == [(20, 2), (30, 1)]
    assert found["path_mtu"]["largest_answered_bytes"] == 30
    assert sum(bar["replies"] for bar in found["bars"]) == 3
    times = [value for key, value in found["rtt"].items() if key.endswith("_ns")]
    assert all(isinstance(value, int) for value in [*times, found["duration_ns"], found["lag_max_ns"]])


def test_summary_without_replies_and_df_has_nulls() -> None:
    found = json.loads(summary_json(World(plan(1), usual=LOST).run(), 2))
    assert (found["rtt"], found["jitter_ns"], found["path_mtu"], found["bars"]) == (None, None, None, [])
