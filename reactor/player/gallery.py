"""The gallery: short traces that come with the player, each of one thing that a reader of the loop asks about.

Law: they are what a loop really did. `scenarios` has it done, on a simulated network, `remake` writes it down, and a
test does both again and compares.
"""

from __future__ import annotations

import importlib.resources

from reactor.player.tracefile import Trace, read

NAMES = (
    "calm-echo",
    "partial-write",
    "backpressure",
    "half-close",
    "lingering",
    "emfile",
    "hog-and-ping",
    "stale-event",
    "timers-and-io",
)


def bundled() -> list[Trace]:
    """Return the traces that come with the player, in the order in which they are best looked at."""
    folder = importlib.resources.files("reactor.player").joinpath("gallery")
    traces = []
    for name in NAMES:
        with folder.joinpath(f"{name}.jsonl").open("rb") as file:
            traces.append(read(file, name))
    return traces
