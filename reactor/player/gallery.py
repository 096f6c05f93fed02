"""The gallery: short traces that come with the player, each about one question of a reader of the loop.

Law: each trace is what a loop really did. `scenarios` runs it on a simulated network, `remake` writes it to a file, and
a test runs it again and compares.
"""

from __future__ import annotations

import importlib.resources

from reactor.player.tracefile import Trace, read

NAMES = tuple(
    "calm-echo partial-write backpressure half-close lingering emfile hog-and-ping stale-event timers-and-io".split()
)


def bundled() -> list[Trace]:
    """Return the traces that come with the player, in the best order to look at them."""
    folder = importlib.resources.files("reactor.player").joinpath("gallery")
    traces = []
    for name in NAMES:
        with folder.joinpath(f"{name}.jsonl").open("rb") as file:
            traces.append(read(file, name))
    return traces
