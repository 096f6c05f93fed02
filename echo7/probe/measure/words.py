"""The outcomes of a probe and the kinds of damage, in the words of every form of output.

Law: one word for one thing. A probe has one outcome at any moment; an Event says what has just happened.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class Word(enum.StrEnum):
    """The outcome of a probe, or the kind of a datagram that came."""

    OUTSTANDING = "outstanding"  # sent, and still in time
    REPLY = "reply"  # answered in time
    LATE = "late"  # answered after the time-out
    DUPLICATE = "duplicate"  # a second answer
    LOST = "lost"  # not answered in time
    REFUSED = "refused"  # nothing listens on that port (ICMP, or a reset)
    UNREACHABLE = "unreachable"  # no route, says our own kernel or a router
    TOO_BIG = "too_big"  # no datagram of that size gets through
    UNKNOWN = "unknown"  # an answer that may belong to several probes
    FOREIGN = "foreign"  # no answer to any probe


class Harm(enum.StrEnum):
    """What is wrong with the bytes of an answer."""

    TRUNCATED = "truncated"
    LENGTHENED = "lengthened"
    CORRUPTED = "corrupted"


class Damage(NamedTuple):
    """How an answer differs from its probe (RFC 862: it should be "identical")."""

    kind: Harm
    offset_bytes: int  # of the first wrong, missing or surplus byte
    bits: int  # received byte XOR sent byte there; 0 if missing or surplus
    bits_wrong: int  # in all bytes that both have


class Event(NamedTuple):
    """One thing that has happened."""

    word: Word
    flow: int
    sequence: int = 0  # from 1; 0: belongs to no known probe
    size_bytes: int = 0  # as sent
    received_bytes: int = 0
    rtt_ns: int | None = None
    reordered: bool = False  # a later probe of this flow was answered before (RFC 4737)
    damage: Damage | None = None
    reason: str = ""  # why it is lost, unreachable, too big, unknown or foreign
    sent_ns: int | None = None  # after the start of the run; None: belongs to no known probe
