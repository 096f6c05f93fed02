"""The page is one file that needs nothing else, and a trace in it is data only."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import io
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactor.observe.sinks import header_line
from reactor.player.page import MADE_BY_US, as_data, page
from reactor.player.tracefile import Trace, read
from tests.support.basics import PROJECT
from tests.support.traces import trace_file

EVIL = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>&lt;\u2028\ud800{{script}}"


class Elements(html.parser.HTMLParser):
    """The elements of a page: (tag, attributes), and the text in each script and style."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=False)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._inside = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self._inside = "data" if dict(attributes).get("id") == "data" else tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[self._inside] = self.texts.get(self._inside, "") + data


def parsed(content: bytes, name: str = "name") -> Trace:
    return read(io.BytesIO(content), name)


def data_of(content: str) -> Any:
    return json.loads(Elements(content).texts["data"])


def one_event(at: str = "", title: str = "", sources: dict[str, str] | None = None) -> Trace:
    return parsed(trace_file(("resumed", "connection-1", {"at": at}), title=title, sources=sources or {}))


def test_page_requests_nothing_from_outside() -> None:
    content = page([one_event()])
    for _, attributes in Elements(content).tags:
        assert not {"src", "href", "action", "srcset", "data"} & attributes.keys()
    assert not re.findall(r"@import|url\(|\bfetch\(|XMLHttpRequest|\bimport\(|WebSocket|innerHTML|\beval\(", content)


def test_content_policy_allows_only_the_style_and_script_of_the_page() -> None:
    elements = Elements(page([one_event()]))
    (policy,) = [attributes["content"] for tag, attributes in elements.tags if "http-equiv" in attributes]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(elements.texts[kind].encode()).digest()).decode()
        assert rules.pop(f"{kind}-src") == f"'sha256-{digest}'"
    assert not rules


def test_no_text_of_a_trace_becomes_markup() -> None:
    calm = Elements(page([one_event()]))
    trace = parsed(trace_file(("call", EVIL, {"callback": EVIL, "owner": EVIL, "at": EVIL}), title=EVIL, about=EVIL))
    evil = Elements(page([trace._replace(name=EVIL)]))
    assert evil.tags == calm.tags
    assert evil.texts["script"] == calm.texts["script"]
    assert data_of(page([trace]))["traces"][0]["events"][0]["callback"] == EVIL


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5))
def test_data_survives_the_page_and_contains_no_markup(value: Any) -> None:
    data = as_data(value)
    assert not set(data) & set("<>&")
    assert data.isascii()
    assert json.loads(data) == value


def test_page_contains_the_sources_that_events_name() -> None:
    trace = parsed(trace_file(*(("resumed", "c", {"at": at}) for at in ("loop.py:98", "buffer.py:3", "loop.py:94"))))
    sources = data_of(page([trace]))["sources"]
    assert sources == {name: (PROJECT / "reactor" / name).read_text() for name in ("buffer.py", "loop.py")}


def test_sources_include_the_calling_lines() -> None:
    trace = parsed(trace_file(("resumed", "c", {"at": "loop.py:98", "via": ["timers.py:3"]})))
    assert data_of(page([trace]))["sources"].keys() == {"loop.py", "timers.py"}


@pytest.mark.parametrize("at", [
    "", "nothing.py:1", "../pyproject.toml:1", "../echo7/cli.py:3", "/etc/passwd:1", "C:\\x.py:1", "README.md:3",
    "testing:1", "loop.py\0:1", "loop.py", "testing/../loop.py:1", EVIL,
])  # fmt: skip
def test_page_contains_no_file_but_our_sources(at: str) -> None:
    assert data_of(page([one_event(at)]))["sources"] == {}


def test_page_knows_which_sources_have_changed() -> None:
    today = json.loads(header_line())["sources"]
    for sources, changed in ((today, []), (today | {"loop.py": "0" * 12}, ["loop.py"]), ({}, ["loop.py"])):
        assert data_of(page([one_event("loop.py:94", sources=sources)]))["traces"][0]["changed"] == changed


def test_page_knows_what_is_left_out() -> None:
    trace = one_event()._replace(left_out=7, cut_short=True)
    (document,) = data_of(page([trace]))["traces"]
    assert (document["left_out"], document["cut_short"]) == (7, True)


def test_title_is_from_the_header_or_the_file_name() -> None:
    for title, shown in (("A <title>", "A &lt;title&gt;"), ("", "name"), ("\ud800", "&#55296;")):
        assert f"<title>{shown} – one turn at a time</title>" in page([one_event(title=title)])
    assert "<title>Gallery – " in page([one_event(), one_event()])


def test_page_names_its_generator_in_its_first_lines() -> None:
    assert page([one_event()]).startswith(f"<!DOCTYPE html>\n{MADE_BY_US}\n")
