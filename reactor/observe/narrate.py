"""What a loop does, in plain words: a sentence for each event, and a narrator who doesn't talk too much.

Law: a sentence says what happened and to whom, in the field's own terms, and is true without the ones before it. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reactor.observe.trace import Event

__all__ = ["Narrator", "sentence"]

SENTENCES_PER_S = 25.0
BURST = 50
MOST_NAMED = 5  # of those who are ready
READINESS = {"": "ready", "R": "readable", "W": "writable", "RW": "readable and writable"}
WATCHED = {"": "is watched no more", "R": "wants to read", "W": "wants to write", "RW": "wants to read and to write"}
MEANING = {
    "HALF_CLOSED": ": its FIN goes when all has gone, and it reads on",
    "DRAINING": ": it reads no more, and its FIN goes when all has gone",
    "LINGERING": ": its FIN has gone, and it waits for the peer's",
    "CLOSED": "",
}
BLOCKED = {
    "send": "The kernel takes nothing from {who} now: its own buffer is full",
    "recv": "{who} finds nothing to receive",
    "accept": "{who} finds no more callers in the kernel's queue",
}

Fields = dict[str, Any]


def sentence(event: Event) -> str:
    """Return one sentence, without a full stop."""
    return SENTENCES[event.kind](event.who, event.fields)


class Narrator:
    """An observer that says each event in words: `say(sentence)`.

    So many a second, after a burst; what is left out is counted, and said with the next sentence.
    """

    __slots__ = ("_left", "_per_s", "_said_s", "_say", "_unsaid")

    def __init__(self, say: Callable[[str], object], *, per_s: float = SENTENCES_PER_S) -> None:
        self._say, self._per_s = say, per_s
        self._left, self._said_s = float(BURST), 0.0
        self._unsaid = 0

    def __call__(self, event: Event) -> None:
        """Say it, or count it."""
        self._left = min(BURST, self._left + max(0.0, event.at_s - self._said_s) * self._per_s)
        self._said_s = event.at_s
        if self._left < 1:
            self._unsaid += 1
            return
        self._left -= 1
        if self._unsaid:
            self._say(f"… {self._unsaid:,} things more, too quick to be told")
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


def _turn(who: str, fields: Fields) -> str:
    sleep_s: float | None = fields["sleep_s"]
    if sleep_s is None:
        return "The loop sleeps until something is ready"
    if sleep_s > 0:
        return f"The loop sleeps until something is ready, for {lasting(sleep_s)} at the most: then a timer is due"
    why = f"{count(fields['calls'], 'call')} to be made" if fields["calls"] else "a timer is due, or it is to stop"
    return f"The loop looks what is ready, without sleeping: {why}"


def _select(who: str, fields: Fields) -> str:
    if not fields["ready"]:
        return "Select returns: nothing is ready"
    named = [f"{name} is {READINESS[mask]}" for name, mask in fields["ready"][:MOST_NAMED]]
    others = len(fields["ready"]) - len(named)
    return "Select returns: " + ", ".join(named) + (f", and {others:,} more" if others else "")


def _adopted(who: str, fields: Fields) -> str:
    protocol, where = fields["protocol"], fields["where"]
    return f"{who} is new{protocol and f', of {protocol}'}{where and f', {where}'}, on descriptor {fields['fd']}"


def _received(who: str, fields: Fields) -> str:
    peer, datagrams = fields.get("peer"), fields.get("datagrams")
    number = f" in {count(datagrams, 'datagram')}" if datagrams is not None else ""
    return f"{who} receives {count(fields['bytes'], 'byte')}{number}" + (f" from {peer}" if peer else "")


def _sent(who: str, fields: Fields) -> str:
    sent, offered, to = fields["bytes"], fields["offered"], f" to {fields['peer']}" if fields.get("peer") else ""
    if sent < offered:
        return f"The kernel takes {sent:,} of {count(offered, 'byte')} from {who}{to}: {offered - sent:,} must wait"
    return f"The kernel takes {'all ' * (sent > 1)}{count(sent, 'byte')} from {who}{to}"


def _interest(who: str, fields: Fields) -> str:
    if fields["resting"]:
        return f"{who} rests for a moment: the system is out of something"
    return f"{who} {WATCHED[fields['after']]}"


def _closed(who: str, fields: Fields) -> str:
    return f"{who} is closed" + (f": {fields['error']}" if fields["error"] else "")


def _timer_set(who: str, fields: Fields) -> str:
    return f"{who} is set: in {lasting(fields['delay_s'])}, {_callback(fields)}"


def _timer_fired(who: str, fields: Fields) -> str:
    return f"{who} fires, {lasting(fields['lag_s'])} late: {_callback(fields)}"


def _call(who: str, fields: Fields) -> str:
    return f"A queued call: {_callback(fields)}" + (f", because of: {fields['error']}" if fields["error"] else "")


def _callback(fields: Fields) -> str:
    name = ".".join(fields["callback"].replace(".<locals>", "").replace(".<lambda>", "").rsplit(".", 2)[-2:])
    return name + (f" of {fields['owner']}" if fields["owner"] else "")


def _raised(who: str, fields: Fields) -> str:
    owner = f"{fields['owner']} is closed for it" if fields["owner"] else "nobody is closed for it"
    return f"A callback raised {fields['error']}: {owner}, and the loop goes on"


def _dropped(who: str, fields: Fields) -> str:
    source = f" from or to {fields['peer']}" if fields["peer"] else ""
    return f"{who} gives no answer to {count(fields['count'], 'datagram')}{source}: {fields['reason']}"


SENTENCES: dict[str, Callable[[str, Fields], str]] = {
    "turn": _turn,
    "select": _select,
    "dispatch": lambda who, fields: f"{who} is called: it is {READINESS[fields['mask']]}",
    "stale": lambda who, fields: f"{who} was ready too, but has been closed meanwhile: it is skipped",
    "adopted": _adopted,
    "accepted": lambda who, fields: f"{who} accepts a caller{fields['peer'] and ', ' + fields['peer']}",
    "received": _received,
    "eof": lambda who, fields: f"{who} reads the peer's FIN: nothing more will come",
    "sent": _sent,
    "blocked": lambda who, fields: BLOCKED[fields["call"]].format(who=who),
    "error": lambda who, fields: f"{who}: {fields['call']}(2) fails with {fields['errno']}: {fields['text']}",
    "interest": _interest,
    "buffer": lambda who, fields: f"{count(fields['after'], 'byte')} in {who}'s buffer, after {fields['before']:,}",
    "state": lambda who, fields: f"{who} goes from {fields['before']} to {fields['after']}{MEANING[fields['after']]}",
    "paused": lambda who, fields: f"{who} is to read no more for now",
    "resumed": lambda who, fields: f"{who} may read again",
    "closed": _closed,
    "timer_set": _timer_set,
    "timer_fired": _timer_fired,
    "timer_cancelled": lambda who, fields: f"{who} is cancelled: {_callback(fields)}",
    "call": _call,
    "raised": _raised,
    "dropped": _dropped,
    "ended": lambda who, fields: f"The trace ends here: {fields['reason']}",
    "fault": lambda who, fields: f"The simulated world lets something go wrong: {fields['fault']}",
}
