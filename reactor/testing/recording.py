"""Recording: the traces of a simulated run, for the player.

    SimulatedNetwork(seed, trace="run.jsonl")         python -m reactor.player run.jsonl

Law: recording changes nothing in a run, so a failure fails again when it is recorded. Each run overwrites the file when
it stops, so a hypothesis test leaves its last run, the smallest failing example. A second reactor of the same network
has its own file, `run-2.jsonl`.
"""

from __future__ import annotations

import functools
import io
import os

from reactor.observe.sinks import JsonLines, header_line, open_file, own_file
from reactor.observe.trace import Event, EventSink

MOST_BYTES = 64 * 1024 * 1024  # in memory, for each reactor


class Recording:
    """What the reactors of one network have done so far."""

    __slots__ = ("_path", "_saved_bytes", "_sinks")

    def __init__(self, path: str) -> None:
        self._path = path
        self._sinks: list[tuple[Memory, JsonLines]] = []
        self._saved_bytes: list[int] = []  # of each
        open_file(path).close()  # raises OSError now; later it would hide the failure that a run has found

    def observer(self, other: EventSink | None) -> EventSink:
        """Return the event sink of one more reactor. It passes each event on to `other`."""
        memory = Memory()
        sink = JsonLines(memory, clock="simulated", most_bytes=MOST_BYTES)
        self._sinks.append((memory, sink))
        self._saved_bytes.append(0)
        if len(self._sinks) > 1:
            open_file(self._name(len(self._sinks) - 1)).close()
        return sink if other is None else functools.partial(tell_both, sink, other)

    def save(self) -> None:
        """Append the events since the last save. Raise OSError."""
        for index, (memory, sink) in enumerate(self._sinks):
            sink.flush()
            saved_bytes, name = self._saved_bytes[index], self._name(index)
            opened = open(name, "ab", opener=own_file) if saved_bytes else open_file(name)  # noqa: SIM115 - closed below
            with opened as file, memory.getbuffer() as whole:
                file.write(whole[saved_bytes:])
                self._saved_bytes[index] = len(whole)

    def end(self, title: str, about: str) -> None:
        """Write everything, with a title at the top. Raise OSError."""
        for index, (memory, sink) in enumerate(self._sinks):
            sink.flush()
            _, _, events = memory.getvalue().partition(b"\n")
            with open_file(self._name(index)) as file:
                file.write(header_line(title, about, "simulated").encode() + events)

    def _name(self, index: int) -> str:
        stem, suffix = os.path.splitext(self._path)
        return f"{stem}-{index + 1}{suffix}" if index else self._path


class Memory(io.BytesIO):
    """A file in memory that can still be read after it is closed."""

    def close(self) -> None:
        """Do nothing."""


def tell_both(one: EventSink, other: EventSink, event: Event) -> None:
    """Pass an event to two sinks."""
    one(event)
    other(event)
