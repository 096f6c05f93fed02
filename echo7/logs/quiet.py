"""Quiet: how often a log may say the same. Pure policy: the time comes in as a number.

Law: whoever sends us packets must not be able to fill a disk with lines about them. Of each kind there are a few lines
at once, then one now and then, and that one says how many were held back. Kinds are words of the code: there are few.
"""

from __future__ import annotations

from echo7.policy.rate import Bucket, Rate

LINES = Rate(per_second=0.1, burst=5)  # of each kind


class Quiet:
    """Counts lines by kind."""

    __slots__ = ("_kinds", "_rate")

    def __init__(self, rate: Rate = LINES) -> None:
        self._rate = rate
        self._kinds: dict[str, tuple[Bucket, int]] = {}  # kind → its bucket, and how many lines are held back

    def ask(self, kind: str, now_s: float, count: int = 1) -> int | None:
        """Something has happened `count` times. Return None if no line may be written about it.

        Else, how many lines less one, since the last that was written, this one stands for.
        """
        bucket, held_back = self._kinds.get(kind) or (Bucket(self._rate), 0)
        if bucket.take(1, now_s):
            self._kinds[kind] = bucket, 0
            return held_back + count - 1
        self._kinds[kind] = bucket, held_back + count
        return None


def also(held_back: int) -> str:
    """Return what a line ends in that stands for others too."""
    return f" ({held_back:,} more held back)" if held_back else ""
