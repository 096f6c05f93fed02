"""The reference says what the code says: options, events, drop reasons, metrics, statuses, traces, public names."""

from __future__ import annotations

import importlib
import io
import json
import re

import pytest

from echo7.policy.reasons import Reason
from reactor.observe import sinks
from reactor.observe.kinds import EVENT_KEYS, HEADER_KEYS
from reactor.observe.trace import Event
from tests.reference import __main__ as command
from tests.reference import events, pages
from tests.reference.pages import PAGES
from tests.reference.source import file_of, public_names, trees
from tests.support.basics import PROJECT

LONGEST_PAGE_LINES = 250


@pytest.mark.parametrize("path", PAGES)
def test_page_is_what_the_code_says(path: str) -> None:
    if path.endswith("metrics.md"):
        pytest.importorskip("prometheus_client", reason="the extra `metrics` isn't installed")
    text = (PROJECT / path).read_text()
    assert text == PAGES[path](), "run python3 -m tests.reference"
    assert len(text.splitlines()) <= LONGEST_PAGE_LINES


def test_every_page_of_the_reference_is_made_by_the_command() -> None:
    found = [path for root in ("echo7", "reactor") for path in (PROJECT / root / "docs" / "reference").iterdir()]
    assert {path.relative_to(PROJECT).as_posix() for path in found} == PAGES.keys()


def test_check_names_the_pages_that_differ(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = "echo7/docs/reference/drop-reasons.md"
    monkeypatch.setattr(pages, "PAGES", {path: PAGES[path]})
    assert command.main(["--check"]) == 0
    monkeypatch.setattr(pages, "PAGES", {path: PAGES[path], "README.md": lambda: "", "missing.md": lambda: ""})
    assert command.main(["--check"]) == 1
    said = capsys.readouterr().out
    assert "README.md differs" in said
    assert "missing.md differs" in said
    assert path not in said
    with pytest.raises(SystemExit, match="usage"):
        command.main(["--chek"])


def test_every_event_in_the_source_is_found() -> None:
    """A cruder look than the page's own: every string that is logged as an event."""
    found = {each.name for each in events.logged()}
    for module in trees():
        text = (PROJECT / file_of(module)).read_text()
        if module != "echo7.logs.log" and not module.startswith("reactor.lessons"):
            assert set(re.findall(r'extra = ?\{"event": "(\w+)"', text)) <= found
            assert set(re.findall(r'extra=\{"event": "(\w+)"', text)) <= found
            assert set(re.findall(r'\.event\(\s*logger, [\w.]+, "(\w+)"', text)) <= found
    assert {"stopped", "drained", "counters", "ended_before", "bind_failed", "over_rate", "slow_callback"} <= found


def test_fields_of_an_event_are_those_that_json_has() -> None:
    fields = {each.name: set(each.fields) for each in events.logged()}
    assert fields["listening"] == {"transport", "address", "port"}
    assert fields["dropped"] == {"reason", "source", "held_back"}
    assert fields["worker_ready"] == {"worker", "pid"}
    assert fields["slow_callback"] == {"callback", "seconds"}
    assert {"connections", "drops", "log_lines_dropped"} <= fields["stopped"] == fields["counters"]


@pytest.mark.parametrize("module", ["reactor", "reactor.testing", "echo7", "echo7.probe", "echo7.checker"])
def test_public_names_are_those_of_the_imported_module(module: str) -> None:
    loaded = importlib.import_module(module)
    assert public_names(module) == loaded.__all__
    assert all(hasattr(loaded, name) for name in loaded.__all__)


def test_reasons_are_words_that_say_what_they_mean() -> None:
    assert all(str(reason) == reason.value == reason.name.lower() and reason.meaning for reason in Reason)


def test_keys_of_a_trace_are_the_declared_ones() -> None:
    assert json.loads(sinks.header_line()).keys() == HEADER_KEYS.keys()
    file = io.BytesIO()
    sink = sinks.JsonLines(file)
    sink(Event(0, 1, 0.0, "eof", "connection-1", "", (), {}))
    sink.flush()
    assert json.loads(file.getvalue().splitlines()[1]).keys() == EVENT_KEYS.keys()
