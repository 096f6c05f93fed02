"""What can become of a probe, and how an answer can be damaged: the words that operators read and JSON has.

Law: one word for one thing, in every form of output. A probe has one outcome at any moment; an Event says what has just
happened.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class Word(enum.StrEnum):
    """The outcome of a probe, or the kind of a datagram that came."""

    OUTSTANDING = "outstanding"  # sent, and still in time
    REPLY = "reply"  # answered in time
    LATE = "late"  # answered after its time was over
    DUPLICATE = "duplicate"  # an answer to what has been answered
    LOST = "lost"  # not answered in time
    REFUSED = "refused"  # nothing listens on that port (ICMP, or a reset)
    UNREACHABLE = "unreachable"  # no route, according to our own kernel or a router
    TOO_BIG = "too_big"  # no datagram of that size gets through
    UNKNOWN = "unknown"  # an answer to a probe of less than 16 bytes, and nothing in it says which
    FOREIGN = "foreign"  # not an answer to anything we sent


class Harm(enum.StrEnum):
    """What is wrong with the bytes of an answer."""

    TRUNCATED = "truncated"
    LENGTHENED = "lengthened"
    CORRUPTED = "corrupted"


class Damage(NamedTuple):
    """How an answer differs from its probe (RFC 862: it should be "identical")."""

    kind: Harm
    offset_bytes: int  # of the first byte that is wrong, missing or too many
    bits: int  # that byte, as it came, XOR as it should be; 0 if it is missing or too many
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
