"""Perfetto: writes Chrome Trace Events, for ui.perfetto.dev or chrome://tracing.

    with Perfetto.open("echo.json") as sink, Reactor(observer=Trace(sink)) as loop: …

One track shows the phases of each turn. Each handler has a track for its lifetime, with a slice for each call and marks
for its events. Counters show each send buffer and the lateness of timers.

Law: slices nest and never end before they begin, even if the trace is cut anywhere; the closing bracket may be missing
(see "Trace Event Format", JSON Array Format).
"""

from __future__ import annotations

import json
from typing import Any, BinaryIO

from reactor.observe.narrate import sentence
from reactor.observe.sinks import ENCODER, MOST_BYTES, TraceFile
from reactor.observe.trace import Event

PROCESS = 1
LOOP = 0  # the loop's track
STARTS = {"turn": "sleep", "select": "dispatch", "timer_fired": "timers", "call": "calls"}  # event → phase
ENDS_A_DISPATCH = frozenset({"turn", "dispatch", "stale", "timer_fired", "call"})
ON_NO_TRACK = frozenset({"turn", "select", "adopted", "dispatch"})  # shown as slices


class Perfetto(TraceFile):
    """Writes Chrome Trace Events. The trace ends at `most_bytes`."""

    __slots__ = ("_began_s", "_called", "_last_track", "_phase", "_tracks")

    def __init__(self, file: BinaryIO, *, most_bytes: int = MOST_BYTES) -> None:
        super().__init__(file, most_bytes)
        self._began_s: float | None = None
        self._phase = ""
        self._called: int | None = None  # the track of the handler being called
        self._tracks: dict[str, int] = {}  # of open handlers
        self._last_track = LOOP
        self._sink.write("[\n")
        self._meta("process_name", LOOP, "reactor")
        self._meta("thread_name", LOOP, "the loop")

    def __call__(self, event: Event) -> None:
        """Write one event."""
        if self._began_s is None:
            self._began_s = event.at_s
        at_us = round((event.at_s - self._began_s) * 1e6, 3)
        if event.kind in ENDS_A_DISPATCH:
            self._end_call(at_us)
        self._turn_phase(event, at_us)
        self._handler(event, at_us)
        if event.kind not in ON_NO_TRACK:
            track = self._tracks.get(event.who, LOOP)
            self._emit("i", event.kind, at_us, track, s="t", args={"says": sentence(event), **_arguments(event)})
        if event.kind == "closed" and event.who in self._tracks:
            self._close_track(event.who, at_us)
        if event.kind == "turn":
            self._sink.flush()

    def close(self) -> None:
        """Complete and close the file. A second call does nothing."""
        self._sink.close(json.dumps({"name": "end", "ph": "M", "pid": PROCESS, "tid": LOOP, "args": {}}) + "\n]\n")

    def _turn_phase(self, event: Event, at_us: float) -> None:
        phase = STARTS.get(event.kind, "")
        if not phase or (phase == self._phase and phase != "sleep"):
            return
        if self._phase:
            self._emit("E", self._phase, at_us, LOOP)
        self._phase = phase
        self._emit("B", phase, at_us, LOOP, args={"turn": event.turn, **_arguments(event)})

    def _handler(self, event: Event, at_us: float) -> None:
        label, fields = event.who, event.fields
        if event.kind == "adopted":
            self._last_track += 1
            track = self._tracks[label] = self._last_track
            self._meta("thread_name", track, f"{label} {fields['where']}".rstrip())
            self._emit("B", f"{label} {fields['protocol']}".rstrip(), at_us, track, args=_arguments(event))
        elif event.kind == "dispatch":
            self._called = self._tracks.get(label, LOOP)  # a handler that was never registered has none
            self._emit("B", f"on_event({fields['mask']})", at_us, self._called, args=_arguments(event))
        elif event.kind == "buffer":
            self._emit("C", f"{label} buffer", at_us, LOOP, args={"bytes": fields["after"]})
        elif event.kind == "timer_fired":
            self._emit("C", "timer lag", at_us, LOOP, args={"ms": round(fields["lag_s"] * 1e3, 3)})

    def _end_call(self, at_us: float) -> None:
        if self._called is not None:
            self._emit("E", "on_event", at_us, self._called)
            self._called = None

    def _close_track(self, label: str, at_us: float) -> None:
        track = self._tracks.pop(label)
        if self._called == track:
            self._end_call(at_us)
        self._emit("E", label, at_us, track)

    def _meta(self, name: str, track: int, value: str) -> None:
        self._emit("M", name, 0, track, args={"name": value})

    def _emit(self, phase: str, name: str, at_us: float, track: int, **fields: Any) -> None:
        event = {"name": name, "ph": phase, "ts": at_us, "pid": PROCESS, "tid": track, **fields}
        if not self._sink.write(ENCODER.encode(event) + ",\n"):
            self.close()


def _arguments(event: Event) -> dict[str, Any]:
    return {**event.fields, "line": event.line} if event.line else dict(event.fields)
