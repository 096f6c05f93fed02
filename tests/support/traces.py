"""Traces written by hand."""

from __future__ import annotations

import json
from typing import Any


def trace_file(*events: tuple[str, str, dict[str, Any]], **header: Any) -> bytes:
    """Return a trace file of these events, each (kind, handler, fields), numbered and a millisecond apart."""
    lines: list[dict[str, Any]] = [{"trace": "reactor", "format": 1, "title": "", "about": "", "sources": {}} | header]
    turn = 0
    for n, (kind, handler, fields) in enumerate(events):
        turn += kind == "turn"
        lines.append({"n": n, "turn": turn, "t": n / 1000, "kind": kind, "who": handler, "at": ""} | fields)
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
