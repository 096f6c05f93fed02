"""The bundled traces are what today's loop does."""

from __future__ import annotations

import functools
import json
import linecache
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

from reactor import Limits, listen_tcp
from reactor.observe.trace import FILES
from reactor.player import remake, scenarios
from reactor.player.gallery import NAMES, bundled
from reactor.player.page import page
from reactor.player.scenarios import LATENCY_S, REFUSAL, SCENARIOS, lingering, record
from reactor.testing.network import SimulatedNetwork
from reactor.testing.peers import Peer
from tests.reactor.observe.test_trace import LINES
from tests.support.basics import PROJECT

AGAIN = "what the loop does, or its lines, have changed: python -m reactor.player.remake"
PATHS = {name: path for path, name in FILES.items()}


def without_python(header: str) -> dict[str, Any]:
    return {name: value for name, value in json.loads(header).items() if name not in ("python", "version")}


@pytest.mark.parametrize("name", NAMES)
def test_bundled_trace_is_what_the_loop_does_today(name: str, caplog: pytest.LogCaptureFixture) -> None:
    header, _, events = (remake.GALLERY / f"{name}.jsonl").read_text().partition("\n")
    header_now, _, events_now = record(SCENARIOS[name]).decode().partition("\n")
    assert events.splitlines() == events_now.splitlines(), AGAIN
    assert without_python(header) == without_python(header_now), AGAIN


def test_remake_writes_all_traces(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "reactor.player.remake", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, timeout=60, check=True)
    assert {file.stem for file in tmp_path.iterdir()} == set(NAMES)
    assert done.stderr.decode() == f"9 traces are in {tmp_path}\n"


def test_remake_without_a_folder_writes_the_bundled_traces(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["remake"])
    monkeypatch.setattr(remake, "GALLERY", tmp_path)
    assert remake.main() == 0
    assert {file.stem for file in tmp_path.iterdir()} == set(NAMES)


def test_gallery_has_all_scenarios_in_order() -> None:
    assert tuple(SCENARIOS) == NAMES
    assert {file.name for file in remake.GALLERY.iterdir()} == {f"{name}.jsonl" for name in NAMES}
    assert [trace.header["title"] for trace in bundled()] == [scenario.title for scenario in SCENARIOS.values()]


@pytest.mark.parametrize("name", NAMES)
def test_trace_names_its_lesson_in_its_header_and_the_readme(name: str) -> None:
    title, lesson, _ = SCENARIOS[name]
    (trace,) = (trace for trace in bundled() if trace.name == name)
    assert trace.header["about"].endswith(f" python3 -m reactor.lessons {lesson}")
    assert list((PROJECT / "reactor" / "lessons").glob(f"step{lesson:02}_*.py"))
    rows = (PROJECT / "reactor" / "player" / "README.md").read_text().splitlines()
    assert [row for row in rows if row.startswith(f"| {title} | ") and row.endswith(f" | {lesson} |")]


def kinds(name: str) -> list[str]:
    (trace,) = (trace for trace in bundled() if trace.name == name)
    return [event["kind"] for event in trace.events]


def moments(name: str, kind: str) -> list[dict[str, Any]]:
    (trace,) = (trace for trace in bundled() if trace.name == name)
    return [event for event in trace.events if event["kind"] == kind]


def test_calm_echo_is_answered_in_the_turn_in_which_it_comes() -> None:
    (received,), (sent,) = moments("calm-echo", "received"), moments("calm-echo", "sent")
    assert (received["turn"], received["bytes"]) == (sent["turn"], sent["bytes"])
    assert not moments("calm-echo", "buffer")


def test_partial_write_has_partial_writes_and_one_that_takes_nothing() -> None:
    sent = [(event["bytes"], event["offered"]) for event in moments("partial-write", "sent")]
    assert sent == [(3, 10), (2, 7), (5, 5)]
    assert [event["call"] for event in moments("partial-write", "blocked")] == ["accept", "send"]


def test_backpressure_stops_reading_above_the_high_water_mark_and_is_bounded() -> None:
    held = [event["after"] for event in moments("backpressure", "buffer")]
    assert 1024 < max(held) <= 1024 + 512
    assert [event["before"] for event in moments("backpressure", "interest") if event["after"] == "W"]
    assert sum(event["bytes"] for event in moments("backpressure", "sent")) == 4096


def test_half_close_drains_after_the_peers_fin() -> None:
    states = [(event["who"], event["after"]) for event in moments("half-close", "state")]
    assert states == [("connection-1", "DRAINING"), ("connection-1", "CLOSED")]
    told = kinds("half-close")
    assert "sent" in told[told.index("eof") :]


def test_lingering_reads_on_after_our_fin_and_throws_away() -> None:
    draining, lingers, closed = moments("lingering", "state")
    assert [event["after"] for event in (draining, lingers, closed)] == ["DRAINING", "LINGERING", "CLOSED"]
    received = [event["n"] for event in moments("lingering", "received")]
    assert received[0] < draining["n"]
    assert [n for n in received if lingers["n"] < n < closed["n"]] == received[1:]
    assert len(received) >= 4


def heard_by_the_talker(monkeypatch: pytest.MonkeyPatch, limits: Limits) -> tuple[bytes, bool]:
    """Play the scenario; return what its peer has received, and whether the connection was reset."""
    network = SimulatedNetwork(0, script="", latency_s=LATENCY_S)
    peer = network.peer
    talkers: list[Peer] = []

    def call(_: SimulatedNetwork, address: tuple[str, int]) -> Peer:
        talkers.append(peer(address))
        return talkers[-1]

    with monkeypatch.context() as patched, network.reactor() as loop:
        patched.setattr(SimulatedNetwork, "peer", call)
        patched.setattr(scenarios, "listen_tcp", functools.partial(listen_tcp, limits=limits))
        lingering(network, loop)
    return bytes(talkers[0].received), talkers[0].lost


def test_without_lingering_the_same_client_loses_a_part_of_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert heard_by_the_talker(monkeypatch, Limits()) == (REFUSAL, False)
    heard, lost = heard_by_the_talker(monkeypatch, Limits(linger_timeout_s=0.0))
    assert lost
    assert len(heard) < len(REFUSAL)


def test_emfile_suspends_the_listener_and_serves_open_connections() -> None:
    first, *_ = moments("emfile", "error")
    assert first["errno"] == "EMFILE"
    rests = [event for event in moments("emfile", "interest") if event["resting"]]
    assert {event["who"] for event in rests} == {"listener-1"}
    assert [event for event in moments("emfile", "sent") if rests[0]["n"] < event["n"] < rests[-1]["n"]]
    assert len(moments("emfile", "accepted")) == 3


def test_ping_is_answered_in_its_turn_and_a_hog_gets_one_receive_a_turn() -> None:
    received = moments("hog-and-ping", "received")
    hogs = [event["turn"] for event in received if event["who"] == "connection-1"]
    assert len(hogs) == len(set(hogs)) >= 12
    pings = [event["turn"] for event in received if event["who"] == "connection-2"]
    answers = [event["turn"] for event in moments("hog-and-ping", "sent") if event["who"] == "connection-2"]
    assert pings == answers
    assert set(pings) <= set(hogs)


def test_stale_event_has_a_descriptor_number_with_a_new_owner() -> None:
    adopted = {event["who"]: event["fd"] for event in moments("stale-event", "adopted")}
    stale = [event["who"] for event in moments("stale-event", "stale")]
    assert stale == ["connection-2", "connection-3"]
    (connector,) = (event for event in moments("stale-event", "adopted") if event["who"] == "connector-1")
    assert connector["fd"] == adopted["connection-2"]
    assert connector["n"] < moments("stale-event", "stale")[0]["n"]


def test_timers_without_delay_leave_a_turn_to_io() -> None:
    fired = [event["turn"] for event in moments("timers-and-io", "timer_fired")]
    (received,) = moments("timers-and-io", "received")
    assert min(fired) < received["turn"] < max(fired)
    assert len(moments("timers-and-io", "timer_cancelled")) == 1


@pytest.mark.parametrize("name", NAMES)
def test_event_names_the_line_that_made_it(name: str) -> None:
    """The shown line of code does what the event says."""
    (trace,) = (trace for trace in bundled() if trace.name == name)
    for event in trace.events:
        file, _, number = event["at"].rpartition(":")
        line = linecache.getline(PATHS[file], int(number))
        assert re.search(LINES[event["kind"]], line), event


def test_page_of_the_whole_gallery_is_small_enough_for_mail() -> None:
    assert len(page(bundled()).encode()) < 500_000
