"""What a loop does, in plain words: a sentence for each event, and a rate-limited narrator.

Law: a sentence says what happened to what, in the field's terms, and needs no other sentence. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reactor.observe.trace import Event

SENTENCES_PER_S = 25.0
BURST = 50
MOST_NAMED = 5  # handlers that are ready
READINESS = {"": "ready", "R": "readable", "W": "writable", "RW": "readable and writable"}
WATCHED = {"": "nothing", "R": "READ", "W": "WRITE", "RW": "READ and WRITE"}
MEANING = {
    "HALF_CLOSED": ": it sends its pending bytes, then FIN, and keeps reading",
    "DRAINING": ": it stops reading, and sends its pending bytes, then FIN",
    "LINGERING": ": its FIN is sent, and it waits for the peer's",
    "CLOSED": "",
}
BLOCKED = {
    "send": "The kernel takes nothing from {name}: its own send buffer is full",
    "recv": "{name} finds nothing to receive",
    "accept": "{name} finds no client in the kernel's queue",
}

Fields = dict[str, Any]


def sentence(event: Event) -> str:
    """Return one sentence, without a full stop."""
    return SENTENCES[event.kind](event.who, event.fields)


class Narrator:
    """Calls `say(sentence)` for each event, after a burst at most `per_s` times a second.

    Other events are counted, and the count is reported before the next sentence.
    """

    __slots__ = ("_left", "_per_s", "_said_s", "_say", "_unsaid")

    def __init__(self, say: Callable[[str], object], *, per_s: float = SENTENCES_PER_S) -> None:
        self._say, self._per_s = say, per_s
        self._left, self._said_s = float(BURST), 0.0
        self._unsaid = 0

    def __call__(self, event: Event) -> None:
        """Say or count one event."""
        self._left = min(BURST, self._left + max(0.0, event.at_s - self._said_s) * self._per_s)
        self._said_s = event.at_s
        if self._left < 1:
            self._unsaid += 1
            return
        self._left -= 1
        if self._unsaid:
            self._say(f"… {self._unsaid:,} more events, not narrated")
            self._unsaid = 0
        self._say(f"turn {event.turn}: {sentence(event)}")


def count(number: int, thing: str) -> str:
    """Return "1 byte", "2,000 bytes"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def lasting(seconds: float) -> str:
    """Return "0.12 ms", "250 ms", "3,600 s"."""
    if seconds >= 1:
        return f"{seconds:,.0f} s" if seconds >= 100 or seconds == int(seconds) else f"{seconds:.1f} s"
    return f"{seconds * 1e3:.3g} ms"


def _turn(name: str, fields: Fields) -> str:
    sleep_s: float | None = fields["sleep_s"]
    if sleep_s is None:
        return "The loop sleeps until something is ready"
    if sleep_s > 0:
        return f"The loop sleeps until something is ready, at most {lasting(sleep_s)}: then a timer is due"
    why = count(fields["calls"], "queued call") if fields["calls"] else "a timer is due, or the loop is stopping"
    return f"The loop polls without sleeping: {why}"


def _select(name: str, fields: Fields) -> str:
    if not fields["ready"]:
        return "Select returns: nothing is ready"
    named = [f"{name} is {READINESS[mask]}" for name, mask in fields["ready"][:MOST_NAMED]]
    others = len(fields["ready"]) - len(named)
    return "Select returns: " + ", ".join(named) + (f", and {others:,} more" if others else "")


def _adopted(name: str, fields: Fields) -> str:
    protocol, where = fields["protocol"], fields["where"]
    return f"{name} is registered: {protocol and f'{protocol}, '}{where and f'{where}, '}descriptor {fields['fd']}"


def _received(name: str, fields: Fields) -> str:
    peer, datagrams = fields.get("peer"), fields.get("datagrams")
    number = f" in {count(datagrams, 'datagram')}" if datagrams is not None else ""
    return f"{name} receives {count(fields['bytes'], 'byte')}{number}" + (f" from {peer}" if peer else "")


def _sent(name: str, fields: Fields) -> str:
    sent, offered, to = fields["bytes"], fields["offered"], f" to {fields['peer']}" if fields.get("peer") else ""
    if sent < offered:
        return f"The kernel takes {sent:,} of {count(offered, 'byte')} from {name}{to}: {offered - sent:,} stay pending"
    return f"The kernel takes {'all ' * (sent > 1)}{count(sent, 'byte')} from {name}{to}"


def _interest(name: str, fields: Fields) -> str:
    if fields["resting"]:
        return f"{name} is suspended for a while: descriptors or memory are short"
    return f"{name} is watched for {WATCHED[fields['after']]}"


def _closed(name: str, fields: Fields) -> str:
    return f"{name} is closed" + (f": {fields['error']}" if fields["error"] else "")


def _timer_set(name: str, fields: Fields) -> str:
    return f"{name} is set: {_callback(fields)} in {lasting(fields['delay_s'])}"


def _timer_fired(name: str, fields: Fields) -> str:
    return f"{name} fires, {lasting(fields['lag_s'])} late: {_callback(fields)}"


def _call(name: str, fields: Fields) -> str:
    error = f", with error {fields['error']}" if fields["error"] else ""
    return f"A queued call runs: {_callback(fields)}{error}"


def _callback(fields: Fields) -> str:
    name = ".".join(fields["callback"].replace(".<locals>", "").replace(".<lambda>", "").rsplit(".", 2)[-2:])
    return name + (f" of {fields['owner']}" if fields["owner"] else "")


def _raised(name: str, fields: Fields) -> str:
    closed = f"{fields['owner']} is closed, " if fields["owner"] else ""
    return f"A callback raised {fields['error']}: {closed}the loop goes on"


def _dropped(name: str, fields: Fields) -> str:
    source = f" from or to {fields['peer']}" if fields["peer"] else ""
    return f"{name} drops {count(fields['count'], 'datagram')}{source}: {fields['reason']}"


SENTENCES: dict[str, Callable[[str, Fields], str]] = {
    "turn": _turn,
    "select": _select,
    "dispatch": lambda name, fields: f"{name} is called: it is {READINESS[fields['mask']]}",
    "stale": lambda name, fields: f"{name} was closed earlier in this batch: its stale event is skipped",
    "adopted": _adopted,
    "accepted": lambda name, fields: f"{name} accepts a client{fields['peer'] and ', ' + fields['peer']}",
    "received": _received,
    "eof": lambda name, fields: f"{name} receives the peer's FIN: the peer sends no more",
    "sent": _sent,
    "blocked": lambda name, fields: BLOCKED[fields["call"]].format(name=name),
    "error": lambda name, fields: f"{name}: {fields['call']}(2) fails with {fields['errno']}: {fields['text']}",
    "interest": _interest,
    "buffer": lambda name, fields: f"{name} has {count(fields['after'], 'byte')} pending, before {fields['before']:,}",
    "state": lambda name, fields: f"{name} goes from {fields['before']} to {fields['after']}{MEANING[fields['after']]}",
    "paused": lambda name, fields: f"{name} pauses reading",
    "resumed": lambda name, fields: f"{name} resumes reading",
    "closed": _closed,
    "timer_set": _timer_set,
    "timer_fired": _timer_fired,
    "timer_cancelled": lambda name, fields: f"{name} is cancelled: {_callback(fields)}",
    "call": _call,
    "raised": _raised,
    "dropped": _dropped,
    "ended": lambda name, fields: f"The trace ends: {fields['reason']}",
    "fault": lambda name, fields: f"The simulation injects a fault: {fields['fault']}",
}
