"""Views: which lines are printed, and which exit status."""

from __future__ import annotations

import json
import os

import pytest

from echo7.probe.measure.words import Event, Word
from echo7.probe.plan import Plan
from echo7.probe.report.nagios import CRITICAL
from echo7.probe.report.views import SHOWN_STRAYS, STATUSES, JsonView, PluginView, TextView, View
from echo7.probe.report.writer import LineWriter
from tests.echo7.probe.world import LOST, World, plan


class Page:
    """A writer, and the lines written to it."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        self._writer = writer
        self.output = LineWriter(writer)

    def lines(self) -> list[str]:
        """Close the writer and return its lines."""
        self.output.finish()
        os.close(self._writer)
        with os.fdopen(self.reader) as file:
            return file.read().splitlines()


@pytest.fixture
def page() -> Page:
    return Page()


def show(view: View, events: list[Event]) -> int:
    view.begin(Plan(flows=2))
    for event in events:
        view.event(event)
    return view.end(World(plan(1), usual=LOST).run())


REPLY = Event(Word.REPLY, 1, 1, 56, 56, 1000)
STRAY = Event(Word.FOREIGN, 0, received_bytes=9)


def test_text_has_a_line_for_each_event_and_a_summary(page: Page) -> None:
    assert show(TextView(page.output, "host", "192.0.2.7:7"), [REPLY, STRAY]) == STATUSES["timed out"]
    lines = page.lines()
    assert lines[0].startswith("ECHO host (192.0.2.7:7)")
    assert lines[1].startswith("56 bytes from 192.0.2.7:7: seq=1 flow=1 ")
    assert lines[2] == "9 bytes from 192.0.2.7:7 flow=0: foreign"
    assert lines[3] == ""
    assert lines[4].startswith("--- ")


def test_quiet_text_has_the_first_line_and_the_summary(page: Page) -> None:
    show(TextView(page.output, "host", "192.0.2.7:7", quiet=True), [REPLY] + [STRAY] * 20)
    lines = page.lines()
    assert lines[0].startswith("ECHO host")
    assert lines[1] == ""


def test_endless_garbage_shows_a_few_lines(page: Page) -> None:
    """Law: "A few lines of endless garbage are shown, and the rest are counted"."""
    show(TextView(page.output, "host", "192.0.2.7:7"), [STRAY] * 1000 + [REPLY])
    lines = page.lines()
    assert sum("foreign" in line for line in lines) == SHOWN_STRAYS
    assert sum("are only counted" in line for line in lines) == 1
    assert sum("seq=1" in line for line in lines) == 1


def test_json_is_one_document(page: Page) -> None:
    assert show(JsonView(page.output, lines=False), [REPLY]) == 1
    assert json.loads("\n".join(page.lines()))["type"] == "summary"


def test_json_lines_are_one_object_each(page: Page) -> None:
    show(JsonView(page.output, lines=True), [REPLY, STRAY])
    assert [json.loads(line)["type"] for line in page.lines()] == ["probe", "probe", "summary"]


def test_plugin_has_one_line(page: Page) -> None:
    assert show(PluginView(page.output, {}, {}), [REPLY, STRAY]) == CRITICAL
    assert len(page.lines()) == 1
