"""The format of a trace: the keys of its lines, and every kind of event with its fields. Pure data.

The reference is made from this declaration, and a test compares it with what is traced.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["EVENT_KEYS", "HEADER_KEYS", "KINDS", "Kind"]


class Kind(NamedTuple):
    """One kind of event. `optional` fields are in some events of the kind only."""

    meaning: str
    fields: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


# The first line of a file.
HEADER_KEYS = {
    "trace": '`"reactor"`',
    "format": "the version of the format, 1",
    "title": "the name of the trace, for people",
    "about": "what it shows, for people",
    "clock": "`monotonic` or `simulated`",
    "python": "the version of Python that made it",
    "sources": "a fingerprint of each source file, by which the player knows whether its lines are the traced ones",
}
# What every event has. `Event.document` makes it.
EVENT_KEYS = {
    "n": "the number of the event, from 0",
    "turn": "the number of the turn; 0 before the first",
    "t": "seconds on the loop's clock",
    "kind": "the kind of event",
    "who": "the handler or timer, by a name that it keeps: `connection-2`; empty for the loop",
    "at": "the source line of the loop that made the event: `connection.py:208`",
    "via": "the loop's lines that called that one, innermost first",
}
CALLBACK = ("callback", "owner")

KINDS = {
    "turn": Kind(
        "A turn begins. The loop sleeps for at most `sleep_s` (null: until something is ready); `calls` are queued, "
        "`timers` are in the heap.", ("sleep_s", "calls", "timers"),
    ),
    "select": Kind("select returned: which handlers are ready, and for what.", ("ready", "slept_s")),
    "dispatch": Kind("A handler is called.", ("mask",)),
    "stale": Kind("A ready handler is skipped: it was closed earlier in the same batch.", ("mask",)),
    "adopted": Kind(
        "The loop has a new handler: its class, descriptor, protocol, and address or peer. `high_water_bytes` is null "
        "for handlers that aren't connections.", ("what", "fd", "protocol", "where", "high_water_bytes"),
    ),
    "accepted": Kind("accept(2) returned a client's connection.", ("peer",)),
    "received": Kind(
        "recv(2) returned data, for a datagram with its `peer`; or recvmmsg(2) returned a batch of `datagrams`, where "
        "`asked` is null. Through a pipe, `bytes` may be more than `asked`.", ("bytes", "asked"), ("peer", "datagrams"),
    ),
    "eof": Kind("recv(2) returned nothing: the peer's FIN."),
    "sent": Kind("The kernel took `bytes` of the `offered` bytes.", ("bytes", "offered"), ("peer", "datagrams")),
    "blocked": Kind(
        "`send`, `recv` or `accept` returned EAGAIN, or a pipe found nothing more to move: a later `recv` tells why.",
        ("call", "offered"),
    ),
    "error": Kind("A system call failed.", ("call", "errno", "text")),
    "interest": Kind(
        "What the selector watches changed. `resting`: watched for nothing for a while, because the system lacks a "
        "resource.", ("before", "after", "resting"),
    ),
    "buffer": Kind("The send buffer grew or shrank, in bytes.", ("before", "after")),
    "state": Kind("A connection changed its state.", ("before", "after")),
    "paused": Kind("The protocol paused reading."),
    "resumed": Kind("The protocol resumed reading."),
    "closed": Kind("A handler is closed. `error` is null after an end in order.", ("error", "state")),
    "timer_set": Kind("A timer is set, due at `due_t` on the clock of `t`.", ("delay_s", "due_t", *CALLBACK)),
    "timer_fired": Kind("A timer fires, `lag_s` after it was due.", ("lag_s", *CALLBACK)),
    "timer_cancelled": Kind("A timer is cancelled.", CALLBACK),
    "call": Kind(
        "Step 5 of the turn makes a queued call. `error` is the exception among its arguments, or null.",
        (*CALLBACK, "error"),
    ),
    "raised": Kind("A callback raised an exception; its owner is closed.", ("error", "owner")),
    "dropped": Kind("Datagrams get no answer, or aren't sent.", ("reason", "count", "peer")),
    "fault": Kind("The simulated network injected a fault.", ("fault",)),
    "ended": Kind("The trace has reached its greatest length.", ("reason",)),
}  # fmt: skip
