"""A trace, read from a file: the door through which all that the player shows comes in.

Law: what comes through here is a trace, or a sentence that says what is wrong with it and in which line. So the page
need not ask again whether a number is a number. And reading is bounded, in lines and in the length of each, whatever
the file is: what is beyond the bound is counted, and said to be left out.

A process that is killed leaves half a line at the end. What is whole is played, and the rest is said to be missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import IO, Any, NamedTuple, NoReturn

FORMAT = 1
MOST_EVENTS = 100_000  # with more, a browser's step is no longer at once
LINE_BYTES = 64 * 1024
MOST_EXACT = 2**53  # JavaScript counts in doubles

Event = dict[str, Any]
Check = Callable[[Any], bool]


class NotATrace(ValueError):
    """The file isn't a trace that can be played. The text says why, in one line."""


class Trace(NamedTuple):
    """One trace, whole as far as it goes."""

    name: str  # as its page calls it: a file's name without the ending
    header: dict[str, Any]
    events: list[Event]
    left_out: int = 0  # events beyond MOST_EVENTS
    cut_short: bool = False  # the last line was broken off


def text(value: Any) -> bool:
    """Tell whether this is a string."""
    return isinstance(value, str)


def count(value: Any) -> bool:
    """Tell whether this is a whole number of 0 or more."""
    return type(value) is int and 0 <= value <= MOST_EXACT


def number(value: Any) -> bool:
    """Tell whether this is a finite number."""
    return type(value) in (int, float) and -MOST_EXACT <= value <= MOST_EXACT


def mask(value: Any) -> bool:
    """Tell whether this is an interest."""
    return text(value) and value in ("", "R", "W", "RW")


def ready(value: Any) -> bool:
    """Tell whether this is what select has returned."""
    return isinstance(value, list) and all(
        isinstance(each, list) and len(each) == 2 and text(each[0]) and mask(each[1]) for each in value
    )


def flag(value: Any) -> bool:
    """Tell whether this is true or false."""
    return isinstance(value, bool)


def texts(value: Any) -> bool:
    """Tell whether this is a list of strings."""
    return isinstance(value, list) and all(map(text, value))


def maybe(check: Check) -> Check:
    """Let null through, too."""
    return lambda value: value is None or check(value)


WORDS: dict[Check, str] = {
    text: "a text", count: "a whole number, 0 or more", number: "a number", mask: 'one of "", "R", "W", "RW"',
    ready: "a list of [who, mask]", flag: "true or false", texts: "a list of texts",
}  # fmt: skip
EVERY: dict[str, Check] = {"n": count, "turn": count, "t": number, "kind": text, "who": text, "at": text, "via": texts}
MAYBE_TEXT, MAYBE_COUNT, MAYBE_NUMBER = maybe(text), maybe(count), maybe(number)
FIELDS: dict[str, dict[str, Check]] = {  # by kind; what is missing here has none that matter to us
    "turn": {"sleep_s": MAYBE_NUMBER, "calls": count, "timers": count},
    "select": {"ready": ready, "slept_s": number},
    "dispatch": {"mask": mask},
    "stale": {"mask": mask},
    "adopted": {"what": text, "fd": number, "protocol": text, "where": text, "high_water_bytes": MAYBE_COUNT},
    "accepted": {"peer": text},
    "received": {"bytes": count, "asked": MAYBE_COUNT},
    "sent": {"bytes": count, "offered": count},
    "blocked": {"call": text, "offered": MAYBE_COUNT},
    "error": {"call": text, "errno": text, "text": text},
    "interest": {"before": mask, "after": mask, "resting": flag},
    "buffer": {"before": count, "after": count},
    "state": {"before": text, "after": text},
    "closed": {"error": MAYBE_TEXT, "state": text},
    "timer_set": {"delay_s": number, "due_t": number, "callback": text, "owner": text},
    "timer_fired": {"lag_s": number, "callback": text, "owner": text},
    "timer_cancelled": {"callback": text, "owner": text},
    "call": {"callback": text, "owner": text},
    "raised": {"error": text, "owner": text},
    "dropped": {"reason": text, "peer": MAYBE_TEXT},
    "fault": {"fault": text},
    "ended": {"reason": text},
}  # fmt: skip
WORDS |= {maybe_check: WORDS[check] + ", or null" for maybe_check, check in (
    (MAYBE_TEXT, text), (MAYBE_COUNT, count), (MAYBE_NUMBER, number),
)}  # fmt: skip


def read(file: IO[bytes], name: str) -> Trace:
    """Read a trace in JSON Lines. Raise NotATrace for what isn't one, OSError for what can't be read."""
    first, whole = _line(file, 1)
    if not first:
        raise NotATrace("it is empty; a trace begins with a line that says so")
    header = _header(first, whole)
    events: list[Event] = []
    left_out = 0
    while True:
        line, whole = _line(file, len(events) + left_out + 2)
        if not line:
            return Trace(name, header, events, left_out, cut_short=False)
        if not whole:  # killed in the middle of writing
            return Trace(name, header, events, left_out, cut_short=True)
        if len(events) < MOST_EVENTS:
            events.append(_event(line, len(events)))
        else:
            left_out += 1


def _line(file: IO[bytes], lineno: int) -> tuple[bytes, bool]:
    """Return the next line, and whether it is whole."""
    line = file.readline(LINE_BYTES + 1)
    if len(line) > LINE_BYTES:
        raise NotATrace(f"line {lineno} is longer than {LINE_BYTES:,} bytes; those of a trace aren't")
    return line, line.endswith(b"\n")


def _json(line: bytes, lineno: int) -> dict[str, Any]:
    try:
        value = json.loads(line.decode(), parse_constant=_not_finite, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise NotATrace(f"line {lineno} isn't UTF-8 (byte {error.start + 1})") from None
    except NotATrace as error:
        raise NotATrace(f"line {lineno} {error}") from None
    except (ValueError, RecursionError):
        raise NotATrace(f"line {lineno} isn't JSON; a trace has one JSON object in each line") from None
    if not isinstance(value, dict):
        raise NotATrace(f"line {lineno} is JSON, but not an object")
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _not_finite(digits)


def _not_finite(word: str) -> NoReturn:
    """Refuse what Python's json reads and writes, but no browser reads: one such number would cost the page."""
    raise NotATrace(f"has {word:.40} for a number; those of a trace are finite, and where there is none it has null")


def _header(line: bytes, whole: bool) -> dict[str, Any]:
    if not whole:
        raise NotATrace("its first line is broken off: nothing of it can be played")
    header = _json(line, 1)
    if header.get("trace") != "reactor":
        raise NotATrace('its first line doesn\'t say "trace": "reactor"')
    if header.get("format") != FORMAT:
        raise NotATrace(f"it is of format {header.get('format')!r:.40}, and this player knows format {FORMAT} alone")
    sources = header.setdefault("sources", {})
    if not isinstance(sources, dict) or not all(map(text, sources.values())):
        raise NotATrace('line 1: "sources" must be an object of texts')
    for key in ("title", "about", "version", "python", "clock"):
        if not text(header.setdefault(key, "")):
            raise NotATrace(f'line 1: "{key}" must be a text, not {header[key]!r:.40}')
    return header


def _event(line: bytes, n: int) -> Event:
    event, lineno = _json(line, n + 2), n + 2
    event.setdefault("via", [])
    _check(event, EVERY, "an event", lineno)
    _check(event, FIELDS.get(event["kind"], {}), f"a {event['kind']!r:.40} event", lineno)
    if event["n"] != n:
        raise NotATrace(f"line {lineno}: event {n} is expected here, not {event['n']}; lines are missing or doubled")
    return event


def _check(event: Event, fields: dict[str, Check], what: str, lineno: int) -> None:
    for key, check in fields.items():
        if key not in event:
            raise NotATrace(f'line {lineno}: {what} needs "{key}"')
        if not check(event[key]):
            raise NotATrace(f'line {lineno}: "{key}" of {what} must be {WORDS[check]}, not {event[key]!r:.40}')
