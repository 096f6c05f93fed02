"""Effort: how much a check tries. Three sizes of the same cases. Pure data; imports nothing of ours.

Law: a smaller effort says what it leaves out, derived from the numbers here.
"""

from __future__ import annotations

from typing import NamedTuple


class Effort(NamedTuple):
    """How often and how long a check tries. The counts are upper bounds: a slow server is asked less (`enough_s`)."""

    name: str
    rounds: int  # how often every required case runs; from the second round on, in random order
    clients: int  # connected at once
    connections: int  # one after the other
    resets: int  # by clients, of each kind
    exchanges: int  # over one connection
    datagrams: int
    stream_mib: int
    enough_s: float  # a count ends after this time, if half of it is done; see `Session.enough`
    late_s: float  # how long answers may be late at the end
    case_patience: int  # time-outs for one run of a case, if it makes slow progress
    patience: int  # time-outs for one address

    @property
    def has_idle(self) -> bool:
        """Whether some clients stay idle while the later rounds run."""
        return self.rounds > 1


QUICK = Effort("quick", 1, 50, 100, 2, 100, 300, 4, 0.5, 0.3, 10, 100)
NORMAL = Effort("normal", 2, 150, 700, 5, 1500, 3000, 64, 1.0, 2.0, 10, 100)
THOROUGH = Effort("thorough", 5, 400, 5000, 50, 30_000, 100_000, 1024, 30.0, 60.0, 100, 2000)
EFFORTS = {effort.name: effort for effort in (QUICK, NORMAL, THOROUGH)}
COUNTED = {
    "rounds": "rounds",
    "clients": "clients at once",
    "connections": "connections",
    "resets": "resets of each kind",
    "exchanges": "exchanges",
    "datagrams": "datagrams",
    "stream_mib": "MiB of one stream",
    "late_s": "seconds for late answers",
}
FEWEST = 20  # with a slow server, a count is cut by time only after this part of it


def left_out(effort: Effort) -> str:
    """Return what this effort tries less of than the normal one; an empty text for nothing."""
    less = [
        f"{getattr(effort, name):,g} instead of {getattr(NORMAL, name):,g} {words}"
        for name, words in COUNTED.items()
        if getattr(effort, name) < getattr(NORMAL, name)
    ]
    return ", ".join(less if effort.has_idle or not less else [*less, "no client that stays idle"])
