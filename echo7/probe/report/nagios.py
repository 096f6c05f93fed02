"""The thresholds, line and exit status of a monitoring plugin (the Monitoring Plugins' guidelines). Pure.

    0 OK     1 WARNING     2 CRITICAL     3 UNKNOWN: bad usage, or a name that can't be resolved

Law: a value above a threshold meets it. A run without a reply is CRITICAL with any thresholds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from echo7.probe.report.text import ms, per_cent
from echo7.probe.result import PingResult
from reactor.sockets.addresses import format_address

OK, WARNING, CRITICAL, UNKNOWN = range(4)
NAMES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
TIMES, LOSS = ("rtt", "p99", "jitter"), "loss"
UNITS_NS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
NUMBER = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(.*)", re.DOTALL)

Thresholds = Mapping[str, float]  # name → nanoseconds; for `loss` a share from 0 to 1


def thresholds(text: str) -> dict[str, float]:
    """Read `rtt=20ms,p99=50ms,jitter=5ms,loss=1%`. Raise ValueError with one line."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in (*TIMES, LOSS):
            raise ValueError(f"{part!r} is not a threshold; write rtt=20ms, p99=50ms, jitter=5ms or loss=1%")
        number = NUMBER.fullmatch(value)
        unit = number[2] if number is not None else ""
        if number is None or unit not in ({"%": 1} if name == LOSS else UNITS_NS):
            hint = "per cent, as in loss=1%" if name == LOSS else f"a time with its unit, as in {name}=20ms"
            raise ValueError(f"{part!r} is not a threshold; {name} is {hint}")
        found[name] = float(number[1]) / 100 if name == LOSS else float(number[1]) * UNITS_NS[unit]
    return found


def rate(result: PingResult, warning: Thresholds, critical: Thresholds) -> tuple[int, str]:
    """Return the exit status and the line: the state, then performance data."""
    values = _values(result)
    status = OK
    for level, limits in ((WARNING, warning), (CRITICAL, critical)):
        if any(value is not None and value > limits[name] for name, value in values.items() if name in limits):
            status = level
    if result.rtt is None:
        status = CRITICAL
    data = " ".join(_performance(name, value, warning, critical) for name, value in values.items())
    return status, line(status, _words(result), data)


def line(status: int, words: str, data: str = "") -> str:
    """Return a plugin's line. A bar would begin the performance data, and a line break would end the line."""
    plain = " ".join(words.replace("|", "/").split())
    return f"ECHO {NAMES[status]} - {plain}" + (f" | {data}" if data else "")


def _values(result: PingResult) -> dict[str, float | None]:
    rtt = result.rtt
    return {
        "rtt": None if rtt is None else rtt.mean_ns,
        "p99": None if rtt is None else rtt.p99_ns,
        "jitter": result.jitter_ns,
        "loss": result.counts.loss,
    }


def _words(result: PingResult) -> str:
    where = f"{result.transport} {format_address((result.address, result.port))}"
    counts = result.counts
    if result.rtt is None:
        return f"{where} {result.verdict}: {counts.sent} sent, no reply"
    damaged = counts.truncated + counts.lengthened + counts.corrupted
    harm = f", {damaged} damaged" if damaged else ""
    return f"{where} rtt {ms(result.rtt.mean_ns)} ms, loss {per_cent(counts.loss)}, {counts.sent} sent{harm}"


def _performance(name: str, value: float | None, warning: Thresholds, critical: Thresholds) -> str:
    if name == LOSS:
        return f"loss={_plain(value, 100)}%;{_plain(warning.get(name), 100)};{_plain(critical.get(name), 100)};0;100"
    known = "U" if value is None else _plain(value, 1e-9) + "s"
    return f"{name}={known};{_plain(warning.get(name), 1e-9)};{_plain(critical.get(name), 1e-9)};0"


def _plain(value: float | None, factor: float) -> str:
    """Return a number without an exponent, which some readers of performance data can't parse."""
    return "" if value is None else f"{value * factor:.9f}".rstrip("0").rstrip(".")
