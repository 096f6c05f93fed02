"""The file opens in Perfetto: slices nest, time never goes back, and each handler has a track."""

from __future__ import annotations

import collections
import io
import json
import pathlib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from reactor.observe.perfetto import LOOP, Perfetto
from reactor.observe.trace import Event
from reactor.testing import SimulatedNetwork
from reactor.testing.simulate import run_once
from tests.simulation.world import swarm_scenario
from tests.support.echo import every_connection_spliced


class Observed(SimulatedNetwork):
    events: list[Event]

    def reactor(self, **options: Any) -> Any:
        self.events = []
        return super().reactor(observer=self.events.append, **options)


def run_of(seed: int) -> list[Event]:
    network = Observed(seed, faults={"send.short": 0.2, "recv.ECONNRESET": 0.02, "accept.EMFILE": 0.1})
    with every_connection_spliced():
        assert run_once(swarm_scenario, network) is None
    return network.events


class Kept(io.BytesIO):
    def close(self) -> None:
        """Keep the data."""


def written(events: list[Event], **options: Any) -> bytes:
    file = Kept()
    with Perfetto(file, **options) as sink:
        for event in events:
            sink(event)
    return file.getvalue()


def check(entries: list[dict[str, Any]], whole: bool = True) -> collections.Counter[str]:
    """Check the format. Return how often each phase letter occurs."""
    open_slices: dict[int, list[str]] = collections.defaultdict(list)
    now_us = 0.0
    for entry in entries:
        assert entry["pid"] == 1
        if entry["ph"] == "M":
            continue
        assert entry["ts"] >= now_us, "time goes on"
        now_us = entry["ts"]
        if entry["ph"] == "B":
            open_slices[entry["tid"]].append(entry["name"])
        elif entry["ph"] == "E":
            assert open_slices[entry["tid"]].pop(), "nothing ends that hasn't begun"
    return collections.Counter(entry["ph"] for entry in entries)


@settings(max_examples=8)
@given(seed=st.integers(0, 200))
def test_slices_nest_and_time_never_goes_back(seed: int) -> None:
    events = run_of(seed)
    entries = json.loads(written(events))
    counts = check(entries)
    tracks = {entry["tid"]: entry["args"]["name"] for entry in entries if entry.get("name") == "thread_name"}
    kinds = collections.Counter(event.kind for event in events)
    assert len(tracks) == kinds["adopted"] + 1, "one a handler, and the loop's"
    assert counts["C"] == kinds["buffer"] + kinds["timer_fired"]
    called = [entry["tid"] for entry in entries if entry["ph"] == "B" and entry["name"].startswith("on_event")]
    assert len(called) == kinds["dispatch"]
    assert LOOP not in called
    phases = [entry["name"] for entry in entries if entry["ph"] == "B" and entry["tid"] == LOOP]
    assert phases.count("sleep") == kinds["turn"]
    assert set(phases) <= {"sleep", "dispatch", "timers", "calls"}


def test_cut_file_is_valid() -> None:
    """The JSON Array Format may lack its closing bracket, so the trace of a killed process opens."""
    file = Kept()
    sink = Perfetto(file)
    events = run_of(3)
    for event in events:
        sink(event)
        if event.kind == "turn":
            text = file.getvalue().decode()
            assert text.endswith(",\n")
    check(json.loads(text.rstrip(",\n") + "]"))


def test_long_trace_ends_at_its_size_limit(tmp_path: pathlib.Path) -> None:
    data = written(run_of(3), most_bytes=5000)
    assert len(data) <= 5100
    check(json.loads(data))


def test_forked_child_leaves_the_file_alone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace.json"
    with Perfetto.open(str(path)) as sink:
        for event in run_of(1):
            sink(event)
    assert json.loads(path.read_text())[0]["name"] == "process_name"
    sink = Perfetto.open(str(path))
    sink.leave()
    sink.close()
    assert path.read_text() == ""
