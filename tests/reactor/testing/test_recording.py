"""The trace of the smallest failing run is in a file, for the player."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reactor import Connection, StreamProtocol, listen_tcp
from reactor.observe.trace import Event
from reactor.player.__main__ import main as player
from reactor.testing import SimulatedNetwork, SimulationFailed, simulate

SERVER = ("10.0.0.1", 7)


class Forgetful(StreamProtocol):
    """Echoes each piece, except those with an x in them."""

    def data_received(self, connection: Connection, data: bytes) -> None:
        if b"x" not in data:
            connection.write(data)


def scenario(network: SimulatedNetwork, data: bytes = b"hello xyz") -> None:
    loop = network.reactor()
    listen_tcp(loop, SERVER, Forgetful)
    peer = network.peer(SERVER)
    peer.send(data)
    network.run(loop)
    assert peer.received == data, "bytes were lost"


def calm(network: SimulatedNetwork) -> None:
    """A scenario that passes."""


def lines(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_smallest_failing_run_of_a_simulation_is_in_the_file(tmp_path: pathlib.Path) -> None:
    """Issue: "the simulated network writes the same trace, so that a shrunk failing … example opens in the player"."""
    path = tmp_path / "failing run.jsonl"
    with pytest.raises(SimulationFailed, match=r"to see it: python -m reactor\.player '/") as failed:
        simulate(scenario, faults={"recv.short": 0.5, "send.short": 0.5}, trace=str(path))
    header, *events = lines(path)
    assert header["title"] == f"seed {failed.value.seed}: {failed.value.script or 'no fault'}"
    assert header["clock"] == "simulated"
    assert header["about"].startswith("AssertionError: bytes were lost")
    assert len([event for event in events if event["kind"] == "fault"]) == len(failed.value.script.split())
    assert sum(event["bytes"] for event in events if event["kind"] == "sent") < len(b"hello xyz")
    page = tmp_path / "failing run.html"
    assert player(["-o", str(page), str(path)]) == 0, "and opens in the player"
    assert failed.value.script in page.read_text()


def test_file_that_is_no_trace_is_neither_overwritten_nor_removed(tmp_path: pathlib.Path) -> None:
    """This holds for the named file, and for the file that a second reactor would have."""
    precious, second = tmp_path / "run.jsonl", tmp_path / "run-2.jsonl"
    precious.write_text("mine\n")
    for make in (lambda path: simulate(calm, trace=path), lambda path: SimulatedNetwork(1, trace=path)):
        with pytest.raises(OSError, match="the file exists and isn't a trace"):
            make(str(precious))
        assert precious.read_text() == "mine\n"
    precious.rename(second)
    network = SimulatedNetwork(1, trace=str(precious))
    network.reactor()
    with pytest.raises(OSError, match="the file exists and isn't a trace"):
        network.reactor()
    assert second.read_text() == "mine\n"


def test_run_without_failure_removes_an_old_trace_but_no_device(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.jsonl"
    with pytest.raises(SimulationFailed):
        simulate(scenario, trace=str(path))
    assert path.exists()
    removed: list[str] = []
    monkeypatch.setattr("os.remove", removed.append)
    simulate(calm, trace=str(path))
    simulate(calm, trace=os.devnull)
    assert removed == [str(path)]


def test_unwritable_trace_file_is_reported_before_the_runs(tmp_path: pathlib.Path) -> None:
    for make in (lambda path: simulate(scenario, trace=path), lambda path: SimulatedNetwork(1, trace=path)):
        with pytest.raises(FileNotFoundError):
            make(str(tmp_path / "no" / "such.jsonl"))


def test_each_run_writes_the_events_since_the_last(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.jsonl"
    events: list[Event] = []
    network = SimulatedNetwork(0, trace=str(path))
    loop = network.reactor(observer=events.append)
    for _ in range(3):
        loop.call_soon(int)
        network.run(loop)
        assert [event.document() for event in events] == lines(path)[1:]


def test_run_that_passes_leaves_no_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.jsonl"
    simulate(lambda network: scenario(network, b"hello"), seeds=3, faults={}, trace=str(path))
    assert not path.exists()


def test_hypothesis_leaves_the_trace_of_its_smallest_example(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.jsonl"

    @settings(database=None, max_examples=50)
    @given(st.text("wxyz", min_size=1).map(str.encode))
    def echoes(data: bytes) -> None:
        scenario(SimulatedNetwork(0, trace=str(path)), data)

    with pytest.raises(AssertionError, match="bytes were lost"):
        echoes()
    assert [event["bytes"] for event in lines(path)[1:] if event["kind"] == "received"] == [1], "it is b'x'"


def test_each_reactor_has_a_file_and_other_observers_get_events_too(tmp_path: pathlib.Path) -> None:
    network, events = SimulatedNetwork(0, trace=str(tmp_path / "run.jsonl")), list[Event]()
    one = network.reactor(observer=events.append)
    two = network.reactor()
    network.run(one)
    network.run(two)
    assert [event.document() for event in events] == lines(tmp_path / "run.jsonl")[1:]
    assert len(lines(tmp_path / "run-2.jsonl")) > 3


def test_recording_is_bounded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reactor.testing.recording.MOST_BYTES", 2000)
    path = tmp_path / "run.jsonl"
    scenario(SimulatedNetwork(0, trace=str(path)), b"hello")
    assert path.stat().st_size < 3000
    assert lines(path)[-1]["kind"] == "ended"
