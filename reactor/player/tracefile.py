"""Read a trace from a file. All that the player shows comes in here.

Law: the result is a valid trace, or an error that names the fault and its line, so the page needs no checks of its own.
Reading is bounded in lines and in the length of each line; events beyond the bound are counted and left out.

A killed process leaves half a line at the end. The player plays the whole lines and says that the rest is missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import IO, Any, NamedTuple, NoReturn

FORMAT = 1
MOST_EVENTS = 100_000  # with more, a step in a browser takes too long
LINE_BYTES = 64 * 1024
MOST_EXACT = 2**53  # JavaScript counts in doubles

Event = dict[str, Any]


class NotATrace(ValueError):
    """The file can't be played. The text says why, in one line."""


class Trace(NamedTuple):
    """One trace, as far as its lines are whole."""

    name: str  # as its page calls it: a file's name without the ending
    header: dict[str, Any]
    events: list[Event]
    left_out: int = 0  # events beyond MOST_EVENTS
    cut_short: bool = False  # the last line is incomplete


class Shape(NamedTuple):
    """What a field must hold: its words in errors, and the test of a value."""

    words: str
    accepts: Callable[[Any], bool]


def maybe(shape: Shape) -> Shape:
    """Return a shape that also accepts null."""
    return Shape(f"{shape.words}, or null", lambda value: value is None or shape.accepts(value))


def _is_mask(value: Any) -> bool:
    return isinstance(value, str) and value in ("", "R", "W", "RW")


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and _is_mask(value[1])


TEXT = Shape("a text", lambda value: isinstance(value, str))
TEXTS = Shape("a list of texts", lambda value: isinstance(value, list) and all(map(TEXT.accepts, value)))
COUNT = Shape("a whole number, 0 or more", lambda value: type(value) is int and 0 <= value <= MOST_EXACT)
NUMBER = Shape("a number", lambda value: type(value) in (int, float) and -MOST_EXACT <= value <= MOST_EXACT)
FLAG = Shape("true or false", lambda value: isinstance(value, bool))
MASK = Shape('one of "", "R", "W", "RW"', _is_mask)
READY = Shape("a list of [who, mask]", lambda value: isinstance(value, list) and all(map(_is_pair, value)))
MAYBE_TEXT, MAYBE_COUNT, MAYBE_NUMBER = maybe(TEXT), maybe(COUNT), maybe(NUMBER)
EVERY: dict[str, Shape] = {"n": COUNT, "turn": COUNT, "t": NUMBER, "kind": TEXT, "who": TEXT, "at": TEXT, "via": TEXTS}
FIELDS: dict[str, dict[str, Shape]] = {  # by the event's kind; the page needs no field of other kinds
    "turn": {"sleep_s": MAYBE_NUMBER, "calls": COUNT, "timers": COUNT},
    "select": {"ready": READY, "slept_s": NUMBER},
    "dispatch": {"mask": MASK},
    "stale": {"mask": MASK},
    "adopted": {"what": TEXT, "fd": NUMBER, "protocol": TEXT, "where": TEXT, "high_water_bytes": MAYBE_COUNT},
    "accepted": {"peer": TEXT},
    "received": {"bytes": COUNT, "asked": MAYBE_COUNT},
    "sent": {"bytes": COUNT, "offered": COUNT},
    "blocked": {"call": TEXT, "offered": MAYBE_COUNT},
    "error": {"call": TEXT, "errno": TEXT, "text": TEXT},
    "interest": {"before": MASK, "after": MASK, "resting": FLAG},
    "buffer": {"before": COUNT, "after": COUNT},
    "state": {"before": TEXT, "after": TEXT},
    "closed": {"error": MAYBE_TEXT, "state": TEXT},
    "timer_set": {"delay_s": NUMBER, "due_t": NUMBER, "callback": TEXT, "owner": TEXT},
    "timer_fired": {"lag_s": NUMBER, "callback": TEXT, "owner": TEXT},
    "timer_cancelled": {"callback": TEXT, "owner": TEXT},
    "call": {"callback": TEXT, "owner": TEXT},
    "raised": {"error": TEXT, "owner": TEXT},
    "dropped": {"reason": TEXT, "peer": MAYBE_TEXT},
    "fault": {"fault": TEXT},
    "ended": {"reason": TEXT},
}  # fmt: skip


def read(file: IO[bytes], name: str) -> Trace:
    """Read a trace in JSON Lines. Raise NotATrace if it isn't one, OSError if the file can't be read."""
    first, whole = _line(file, 1)
    if not first:
        raise NotATrace("it is empty; a trace begins with a header line")
    header = _header(first, whole)
    events: list[Event] = []
    left_out = 0
    while True:
        line, whole = _line(file, len(events) + left_out + 2)
        if not line:
            return Trace(name, header, events, left_out, cut_short=False)
        if not whole:  # the process was killed while it wrote
            return Trace(name, header, events, left_out, cut_short=True)
        if len(events) < MOST_EVENTS:
            events.append(_event(line, len(events)))
        else:
            left_out += 1


def _line(file: IO[bytes], lineno: int) -> tuple[bytes, bool]:
    """Return the next line, and whether it is complete."""
    line = file.readline(LINE_BYTES + 1)
    if len(line) > LINE_BYTES:
        raise NotATrace(f"line {lineno} is longer than {LINE_BYTES:,} bytes, the most that a trace has")
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
    """Refuse NaN and infinity: Python's json reads and writes them, but a browser would refuse the whole page."""
    raise NotATrace(f"has the number {word:.40}; a trace has finite numbers and null only")


def _header(line: bytes, whole: bool) -> dict[str, Any]:
    if not whole:
        raise NotATrace("its first line is incomplete: nothing of it can be played")
    header = _json(line, 1)
    if header.get("trace") != "reactor":
        raise NotATrace('its first line doesn\'t say "trace": "reactor"')
    if header.get("format") != FORMAT:
        raise NotATrace(f"its format is {header.get('format')!r:.40}; this player knows format {FORMAT} only")
    sources = header.setdefault("sources", {})
    if not isinstance(sources, dict) or not all(map(TEXT.accepts, sources.values())):
        raise NotATrace('line 1: "sources" must be an object of texts')
    for key in ("title", "about", "version", "python", "clock"):
        if not TEXT.accepts(header.setdefault(key, "")):
            raise NotATrace(f'line 1: "{key}" must be a text, not {header[key]!r:.40}')
    return header


def _event(line: bytes, n: int) -> Event:
    event, lineno = _json(line, n + 2), n + 2
    event.setdefault("via", [])
    _check(event, EVERY, "an event", lineno)
    _check(event, FIELDS.get(event["kind"], {}), f"a {event['kind']!r:.40} event", lineno)
    if event["n"] != n:
        raise NotATrace(f"line {lineno}: event {n} is expected here, not {event['n']}; lines are missing or repeated")
    return event


def _check(event: Event, fields: dict[str, Shape], what: str, lineno: int) -> None:
    for key, shape in fields.items():
        if key not in event:
            raise NotATrace(f'line {lineno}: {what} needs "{key}"')
        if not shape.accepts(event[key]):
            raise NotATrace(f'line {lineno}: "{key}" of {what} must be {shape.words}, not {event[key]!r:.40}')
