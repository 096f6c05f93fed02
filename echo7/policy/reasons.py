"""Drop reasons: why a client or a datagram isn't served. Pure data. Every reason of echo7 is declared here.

The reference is made from this declaration. An endpoint of `reactor` has its own in `sockets.errors`.
"""

from __future__ import annotations

import enum
from typing import Self


class Reason(enum.StrEnum):
    """The word that counters, log lines and metrics use; `meaning` explains it."""

    meaning: str

    def __new__(cls, word: str, meaning: str) -> Self:
        """Make a member that is its word."""
        member = str.__new__(cls, word)
        member._value_, member.meaning = word, meaning
        return member

    # The guard: a datagram whose answer could start a loop or reach more than one host.
    SOURCE_PORT_ZERO = "source_port_zero", "the source port is 0, which can't be answered"
    SOURCE_PORT_OWN = "source_port_own", "the source port is one that this service serves"
    SOURCE_PORT_RESPONDER = "source_port_responder", "a service that answers any datagram is known on the source port"
    SOURCE_PORT_LISTED = "source_port_listed", "`--refuse-source-ports` lists the source port"
    SOURCE_UNSPECIFIED = "source_unspecified", "the source address is 0.0.0.0/8 or ::"
    SOURCE_MULTICAST = "source_multicast", "the source is a multicast address"
    SOURCE_BROADCAST = "source_broadcast", "the source is 255.255.255.255"
    DESTINATION_MULTICAST = "destination_multicast", "the datagram was sent to a multicast address"
    DESTINATION_BROADCAST = "destination_broadcast", "the datagram was sent to a broadcast address"
    SUSPECTED_LOOP = (
        "suspected_loop", "the source repeats itself, as another echo server does; it gets no answer for a second",
    )  # fmt: skip

    # The limits for each source.
    SOURCE_DENIED = "source_denied", "`--allow` and `--deny` don't let the source use the service"
    RATE_SOURCE = "rate_source", "the source is over `--udp-rate`"
    RATE_TOTAL = "rate_total", "all sources together are over `--udp-rate-total`"
    RATE_SHARE = (
        "rate_share",
        "for 20 ms datagrams came faster than they could be answered; the source sent more than 8 of 64",
    )
    REFUSED_DENIED = "refused_denied", "`--allow` and `--deny` don't let the client use the service; reset at accept"
    REFUSED_SOURCE_CAP = (
        "refused_source_cap", "the source has `--max-connections-per-source` connections open; reset at accept",
    )  # fmt: skip
    REFUSED_GONE = "refused_gone", "the client has gone before its source could be looked up"

    # --idle-timeout, and room for new clients.
    IDLE_TIMEOUT = "idle_timeout", "no byte has moved for `--idle-timeout`; closed in order"
    IDLE_MADE_ROOM = (
        "idle_made_room", "the server was full; the source with most connections lost its longest silent one; reset",
    )  # fmt: skip
    IDLE_STUCK = "idle_stuck", "the client has taken no pending byte for twice `--idle-timeout`; reset"


# Followed by the name of an errno: `accept_EMFILE`.
ACCEPT = "accept_"
ACCEPT_MEANING = "accept(2) failed: with ECONNABORTED the client has gone, with EMFILE and other shortages clients wait"
