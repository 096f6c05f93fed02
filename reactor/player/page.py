"""Put traces and sources into one HTML file that needs nothing else.

Law: nothing in a trace can become markup or a script. It enters the page in one place, as JSON with every `<`, `>` and
`&` escaped, and leaves it as text. The page can't load anything: its policy allows only its own style and script, each
named by its hash.

Source lines are those of this installation. If a trace was made with other sources, the page says so.
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

MADE_BY_US = "<!-- made by reactor.player -->"  # a page with this line may be overwritten
SCRIPTS = ("fold.js", "words.js", "view.js", "player.js")
MARKER = re.compile(r"\{\{(\w+)\}\}")


def page(traces: Sequence[Trace]) -> str:
    """Return the page that plays these traces. Only the template's texts aren't ASCII."""
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
    """Return JSON that can neither end its HTML element nor begin another."""
    plain = json.dumps(document, allow_nan=False, separators=(",", ":"))  # ASCII: it may hold a lone surrogate
    return plain.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _as_text(text: str) -> str:
    """Return a text as markup, in ASCII: UTF-8 can't encode the lone surrogates that it may hold."""
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
    """Yield the files that have changed since the trace was made."""
    for name in names:
        content = _source(name)
        if content is not None and hashes.get(name) != fingerprint(content):
            yield name


@functools.cache
def _source(name: str) -> bytes | None:
    """Return a source file of `reactor`, or None. A trace may name any file, but gets no other."""
    if not re.fullmatch(r"(\w+/)*\w+\.py", name, re.ASCII):
        return None
    place: Traversable = importlib.resources.files("reactor").joinpath(*name.split("/"))
    return place.read_bytes() if place.is_file() else None


@functools.cache
def _ours(name: str) -> str:
    return importlib.resources.files("reactor.player").joinpath(name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
