"""Limits how often the log repeats a kind of line. Pure policy: the time comes in as a number.

Law: a client that sends packets must not fill a disk with lines about them. Of each kind, a few lines are written at
once, then one now and then, which says how many were held back. Kinds are words of the code, so there are few.
"""

from __future__ import annotations

from echo7.policy.rate import Rate, SourceBuckets

# of each kind
LINES = Rate(per_second=0.1, burst=5)


class Quiet:
    """Counts lines by kind."""

    def __init__(self, rate: Rate = LINES) -> None:
        self._lines = SourceBuckets(rate)
        self._held_back: dict[str, int] = {}

    def ask(self, kind: str, now_s: float, count: int = 1) -> int | None:
        """Ask for a line about something that has happened `count` times. Return None to hold it back.

        Otherwise, return how many others since the last line this line stands for.
        """
        happened = self._held_back.pop(kind, 0) + count
        if self._lines.take(kind.encode(), 1, now_s):
            return happened - 1
        self._held_back[kind] = happened
        return None


def also(held_back: int) -> str:
    """Return the end of a line that stands for others too."""
    return f" ({held_back:,} more held back)" if held_back else ""
