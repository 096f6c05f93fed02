"""Traces and sources become one HTML file that needs nothing else.

Law: nothing in a trace can become markup or a script. It goes into the page in one place, as JSON with every `<`, `>`
and `&` escaped, and comes out of it as text. And the page can't reach anything: its policy lets two things in, the
style and the script that are written here, each named by its hash.

Lines of the source are those of this installation. If a trace was made with others, the page says that they may be off.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import importlib.resources
import json
import re
from collections.abc import Iterable, Sequence
from importlib.resources.abc import Traversable
from typing import Any

from reactor.observe.sinks import fingerprint
from reactor.player.tracefile import Trace

MADE_BY_US = "<!-- made by reactor.player -->"  # a page that says so may be made anew
SCRIPTS = ("fold.js", "words.js", "view.js", "player.js")
MARKER = re.compile(r"\{\{(\w+)\}\}")


def page(traces: Sequence[Trace]) -> str:
    """Return the page that plays these traces. ASCII but for the texts of the template."""
    script, style = "".join(map(_ours, SCRIPTS)), _ours("player.css")
    parts = {
        "made": MADE_BY_US,
        "policy": f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'",
        "title": _as_text(traces[0].header["title"] or traces[0].name if len(traces) == 1 else "Gallery"),
        "style": style,
        "script": script,
        "data": as_data(_document(traces)),
    }
    return MARKER.sub(lambda marker: parts[marker[1]], _ours("player.html"))


def as_data(document: Any) -> str:
    """Return JSON in which nothing can end the element that it stands in, nor begin another."""
    plain = json.dumps(document, allow_nan=False, separators=(",", ":"))  # ASCII: also a lone surrogate can be written
    return plain.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _as_text(text: str) -> str:
    """Return a text as markup has it, in ASCII: it may hold a lone surrogate, which no UTF-8 has."""
    return html.escape(text).encode("ascii", "xmlcharrefreplace").decode()


def _document(traces: Sequence[Trace]) -> dict[str, Any]:
    lines = {line for trace in traces for event in trace.events for line in (event["at"], *event["via"])}
    named = sorted({line.rpartition(":")[0] for line in lines})
    sources = {name: found for name in named if (found := _source(name)) is not None}
    return {
        "traces": [
            trace._asdict() | {"changed": sorted(_changed(trace.header["sources"], sources.keys()))} for trace in traces
        ],
        "sources": {name: content.decode() for name, content in sources.items()},
    }


def _changed(hashes: dict[str, str], names: Iterable[str]) -> Iterable[str]:
    """Yield the files that aren't what they were when the trace was made."""
    for name in names:
        content = _source(name)
        if content is not None and hashes.get(name) != fingerprint(content):
            yield name


@functools.cache
def _source(name: str) -> bytes | None:
    """Return a file of `reactor` itself, or None: a trace can name anything, and gets nothing else."""
    if not re.fullmatch(r"(\w+/)*\w+\.py", name, re.ASCII):
        return None
    place: Traversable = importlib.resources.files("reactor").joinpath(*name.split("/"))
    return place.read_bytes() if place.is_file() else None


@functools.cache
def _ours(name: str) -> str:
    return importlib.resources.files("reactor.player").joinpath(name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
