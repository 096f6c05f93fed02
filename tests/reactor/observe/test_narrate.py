"""Every event has a sentence, and the narrator is rate-limited."""

from __future__ import annotations

import collections
from typing import Any

import pytest

from reactor.observe.kinds import KINDS
from reactor.observe.narrate import BURST, SENTENCES, Narrator, lasting, sentence
from reactor.observe.trace import Event
from tests.reactor.observe.test_perfetto import run_of


@pytest.mark.parametrize(
    ("kind", "who", "fields", "said"),
    [
        ("turn", "", {"sleep_s": None, "calls": 0, "timers": 0}, "The loop sleeps until something is ready"),
        (
            "turn", "", {"sleep_s": 0.25, "calls": 0, "timers": 1},
            "The loop sleeps until something is ready, at most 250 ms: then a timer is due",
        ),
        (
            "turn", "", {"sleep_s": 0.0, "calls": 1, "timers": 0},
            "The loop polls without sleeping: 1 queued call",
        ),
        (
            "turn", "", {"sleep_s": 0.0, "calls": 0, "timers": 1},
            "The loop polls without sleeping: a timer is due, or the loop is stopping",
        ),
        (
            "select", "", {"ready": [["a-1", "R"]] * 1005},
            "Select returns: " + "a-1 is readable, " * 4 + "a-1 is readable, and 1,000 more",
        ),
        ("dispatch", "a-1", {"mask": ""}, "a-1 is called: it is ready"),
        ("ended", "", {"reason": "enough"}, "The trace ends: enough"),
        ("select", "", {"ready": []}, "Select returns: nothing is ready"),
        (
            "select", "", {"ready": [["a-1", "R"], ["b-1", "RW"]]},
            "Select returns: a-1 is readable, b-1 is readable and writable",
        ),
        ("dispatch", "a-1", {"mask": "W"}, "a-1 is called: it is writable"),
        ("stale", "a-1", {"mask": "R"}, "a-1 was closed earlier in this batch: its stale event is skipped"),
        ("adopted", "a-1", {"protocol": "Echo", "where": "h:1", "fd": 5}, "a-1 is registered: Echo, h:1, descriptor 5"),
        ("adopted", "a-1", {"protocol": "", "where": "", "fd": 5}, "a-1 is registered: descriptor 5"),
        ("accepted", "a-1", {"peer": "h:1"}, "a-1 accepts a client, h:1"),
        ("accepted", "a-1", {"peer": ""}, "a-1 accepts a client"),
        ("received", "a-1", {"bytes": 1, "asked": 9}, "a-1 receives 1 byte"),
        ("received", "a-1", {"bytes": 1000, "asked": 9, "peer": "h:1"}, "a-1 receives 1,000 bytes from h:1"),
        ("received", "a-1", {"bytes": 0, "asked": None, "datagrams": 2}, "a-1 receives 0 bytes in 2 datagrams"),
        ("sent", "a-1", {"bytes": 3, "offered": 3}, "The kernel takes all 3 bytes from a-1"),
        ("sent", "a-1", {"bytes": 1, "offered": 1, "peer": "h:1"}, "The kernel takes 1 byte from a-1 to h:1"),
        ("sent", "a-1", {"bytes": 3, "offered": 10}, "The kernel takes 3 of 10 bytes from a-1: 7 stay pending"),
        ("blocked", "a-1", {"call": "send"}, "The kernel takes nothing from a-1: its own send buffer is full"),
        ("error", "a-1", {"call": "recv", "errno": "EIO", "text": "Bad"}, "a-1: recv(2) fails with EIO: Bad"),
        ("interest", "a-1", {"after": "RW", "resting": False}, "a-1 is watched for READ and WRITE"),
        (
            "interest", "a-1", {"after": "", "resting": True},
            "a-1 is suspended for a while: descriptors or memory are short",
        ),
        ("buffer", "a-1", {"before": 0, "after": 7}, "a-1 has 7 bytes pending, before 0"),
        (
            "state", "a-1", {"before": "DRAINING", "after": "LINGERING"},
            "a-1 goes from DRAINING to LINGERING: its FIN is sent, and it waits for the peer's",
        ),
        ("paused", "a-1", {}, "a-1 pauses reading"),
        ("closed", "a-1", {"error": None}, "a-1 is closed"),
        ("closed", "a-1", {"error": "why"}, "a-1 is closed: why"),
        (
            "timer_set", "timer-1", {"delay_s": 5, "callback": "a.b.C.d", "owner": "a-1"},
            "timer-1 is set: C.d of a-1 in 5 s",
        ),
        ("timer_fired", "timer-1", {"lag_s": 0.002, "callback": "d", "owner": ""}, "timer-1 fires, 2 ms late: d"),
        ("call", "", {"callback": "C.d.<locals>.<lambda>", "owner": "", "error": None}, "A queued call runs: C.d"),
        ("call", "", {"callback": "C.d", "owner": "a-1", "error": "x"}, "A queued call runs: C.d of a-1, with error x"),
        (
            "raised", "", {"error": "E()", "owner": "a-1"},
            "A callback raised E(): a-1 is closed, the loop goes on",
        ),
        (
            "raised", "", {"error": "E()", "owner": ""},
            "A callback raised E(): the loop goes on",
        ),
        (
            "dropped", "a-1", {"reason": "why", "count": 2, "peer": ""},
            "a-1 drops 2 datagrams: why",
        ),
        (
            "dropped", "a-1", {"reason": "why", "count": 1, "peer": "h:1"},
            "a-1 drops 1 datagram from or to h:1: why",
        ),
    ],
)  # fmt: skip
def test_each_event_gives_one_plain_sentence(kind: str, who: str, fields: dict[str, Any], said: str) -> None:
    assert sentence(Event(0, 1, 0.0, kind, who, "", (), fields)) == said


def test_every_event_of_faulty_simulations_has_a_sentence() -> None:
    """Simulations with faults produce every field."""
    seen = collections.Counter[str]()
    for seed in range(8):
        for event in run_of(seed):
            assert sentence(event)
            assert "None" not in sentence(event)
            seen[event.kind] += 1
    assert seen.keys() >= SENTENCES.keys() - {"stale", "paused", "resumed", "raised", "ended"}


def test_every_kind_and_field_of_bad_worlds_is_a_declared_one() -> None:
    """What others read from a trace: `KINDS`, from which the reference is made."""
    assert SENTENCES.keys() == KINDS.keys()
    table = {kind: {*declared.fields, *declared.optional} for kind, declared in KINDS.items()}
    used: dict[str, set[str]] = collections.defaultdict(set)
    for seed in range(8):
        for event in run_of(seed):
            used[event.kind] |= event.fields.keys()
    assert {kind: fields - table[kind] for kind, fields in used.items()} == {kind: set() for kind in used}
    assert all(table[kind] == fields for kind, fields in used.items()), "the table has a field that no event has"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.00012, "0.12 ms"), (0.25, "250 ms"), (1.5, "1.5 s"), (5, "5 s"), (3600, "3,600 s"), (100.4, "100 s")],
)
def test_a_duration_is_written_with_a_suitable_unit(seconds: float, said: str) -> None:
    assert lasting(seconds) == said


def test_events_above_the_rate_are_counted_in_place_of_narrated() -> None:
    """Issue: "a narrator in plain words for the terminal, rate-limited"."""
    said: list[str] = []
    narrator = Narrator(said.append, per_s=10)
    event = Event(0, 1, 100.0, "eof", "a-1", "", (), {})
    for _ in range(BURST + 100):
        narrator(event)
    assert said == ["turn 1: a-1 receives the peer's FIN: the peer sends no more"] * BURST
    narrator(event._replace(at_s=100.15))
    assert said[BURST:] == ["… 100 more events, not narrated", said[0]]
    narrator(event._replace(at_s=100.1))
    assert len(said) == BURST + 2, "a clock that goes back allows no more events"
    narrator(event._replace(at_s=1000.0))
    assert len(said) == BURST + 4
