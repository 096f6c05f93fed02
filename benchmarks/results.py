"""Rounds, medians and ratios: arithmetic only.

Law: a ratio is taken within a round, of two figures measured one after the other. The median of these ratios follows,
so it doesn't suffer when the speed of the machine drifts from round to round.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

BASELINE = "echo7"
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Spread:
    """One number over several rounds."""

    median: float
    least: float
    most: float


@dataclass(slots=True)
class Results:
    """All rounds of one workload. A failed round is None."""

    servers: list[str]
    rounds: dict[str, list[Figures | None]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # why, in one line

    def add(self, server: str, figures: Figures) -> None:
        """Add one round of a server."""
        self.rounds.setdefault(server, []).append(figures)

    def fail(self, server: str, line: str) -> None:
        """Record that a server failed in this round. Its figures aren't shown any more."""
        self.rounds.setdefault(server, []).append(None)
        self.failed.setdefault(server, line)

    def spread(self, server: str, key: str) -> Spread | None:
        """Return a server's figure over all rounds, or None when there is none."""
        if server in self.failed:
            return None
        return spread_of([found[key] for found in self.rounds.get(server, []) if found is not None and key in found])

    def ratio(self, server: str, key: str) -> Spread | None:
        """Return the baseline's figure divided by a server's, round by round, or None when there is none."""
        if {server, BASELINE} & self.failed.keys():
            return None
        pairs = zip(self.rounds.get(BASELINE, []), self.rounds.get(server, []), strict=False)
        return spread_of(
            [ours[key] / theirs[key] for ours, theirs in pairs if ours and theirs and key in ours and theirs.get(key)]
        )

    def record(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return everything as plain data: the raw rounds, and the summary of these keys."""
        return {
            "rounds": self.rounds,
            "failed": self.failed,
            "summary": {
                server: {key: asdict(found) for key in keys if (found := self.spread(server, key))}
                for server in self.servers
            },
            "ratios": {
                server: {key: asdict(found) for key in keys if (found := self.ratio(server, key))}
                for server in self.servers
                if server != BASELINE
            },
        }


def spread_of(numbers: Sequence[float]) -> Spread | None:
    """Return the median, the least and the most; None without numbers."""
    return Spread(statistics.median(numbers), min(numbers), max(numbers)) if numbers else None
