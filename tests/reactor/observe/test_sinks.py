"""Events are in the file before the loop sleeps; a file that can't be written costs one log line."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pathlib
import stat
import sys
from collections.abc import Callable
from typing import Any

import pytest

from reactor import Reactor
from reactor.observe.sinks import CHUNK_BYTES, FORMAT, JsonLines, Sink, open_file
from reactor.observe.trace import Event, Trace
from tests.support.basics import PROJECT
from tests.support.loops import turn_idle

SOMETHING = Event(0, 1, 2.5, "eof", "connection-1", "connection.py:1", (), {})
TURN = SOMETHING._replace(kind="turn", who="")


def lines(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_event_is_a_line_after_a_header(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace.jsonl"
    events: list[Event] = []
    with JsonLines.open(str(path), title="A title", about="Some words.") as sink:

        def both(event: Event) -> None:
            events.append(event)
            sink(event)

        with Reactor(observer=Trace(both)) as loop:
            loop.call_soon(print, object())
            turn_idle(loop, 2)
    header, *rest = lines(path)
    assert (header["trace"], header["format"]) == ("reactor", FORMAT)
    assert (header["title"], header["about"]) == ("A title", "Some words.")
    assert header["clock"] == "monotonic"
    source = (PROJECT / "reactor" / "loop.py").read_bytes()
    assert header["sources"]["loop.py"] == hashlib.sha256(source).hexdigest()[:12]
    assert rest == [json.loads(json.dumps(event.document())) for event in events]
    assert len(rest) > 10


def test_events_are_in_the_file_before_the_loop_sleeps(tmp_path: pathlib.Path) -> None:
    """Law: a process killed while it sleeps leaves a complete trace."""
    path = tmp_path / "trace.jsonl"
    sink = JsonLines.open(str(path))
    sink(SOMETHING)
    assert len(lines(path)) < 2, "not yet: a write for each event would be dear"
    sink(TURN)
    assert [line["kind"] for line in lines(path)[1:]] == ["eof", "turn"]
    sink(SOMETHING)
    sink.flush()
    assert len(lines(path)) == 4
    sink.close()
    sink.close()


def test_long_turn_is_written_in_chunks(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace.jsonl"
    with JsonLines.open(str(path)) as sink:
        for _ in range(CHUNK_BYTES // 50):
            sink(SOMETHING)
        assert path.stat().st_size >= CHUNK_BYTES


def test_trace_at_its_size_limit_ends_with_a_last_line(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "trace.jsonl"
    with JsonLines.open(str(path), most_bytes=2000) as sink:
        for _ in range(100):
            sink(SOMETHING)
        sink(TURN)
    assert path.stat().st_size < 2700
    assert {line["kind"] for line in lines(path)[1:-1]} == {"eof"}
    assert lines(path)[-1]["kind"] == "ended"
    assert caplog.messages == [f"trace ended: {path} has reached its size limit"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_full_disk_ends_only_the_trace(caplog: pytest.LogCaptureFixture) -> None:
    sink = JsonLines.open("/dev/full")
    with Reactor(observer=Trace(sink)) as loop:
        turn_idle(loop)
    sink.close()
    assert caplog.messages == ["trace ended: can't write /dev/full: No space left on device"]
    assert caplog.records[0].levelno == logging.ERROR


class Slow(io.RawIOBase):
    """Takes three bytes at a time."""

    def __init__(self) -> None:
        self.taken = b""

    def write(self, data: Any) -> int:
        self.taken += bytes(data[:3])
        return min(3, len(data))


def test_after_a_short_write_the_rest_is_written() -> None:
    file = Slow()
    sink = Sink(file, 1000)  # type: ignore[arg-type]
    sink.write("hello world")
    sink.flush()
    assert file.taken == b"hello world"


def test_file_is_emptied_and_private_to_its_owner(tmp_path: pathlib.Path) -> None:
    """It holds the addresses of clients."""
    path = tmp_path / "trace.jsonl"
    for before in (None, "", '{"trace": "reactor", "format": 1}\n' * 100, '[\n{"name":"process_name"'):
        if before is not None:
            path.write_text(before)
            path.chmod(0o644)
        JsonLines.open(str(path)).close()
        assert len(lines(path)) == 1
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_existing_file_that_is_no_trace_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("years of work")
    with pytest.raises(OSError, match="isn't a trace: remove it first"):
        JsonLines.open(str(path))
    assert path.read_text() == "years of work"


class Full(io.RawIOBase):
    """A terminal that takes nothing."""

    name = "terminal"

    def write(self, data: Any) -> None:
        return None


def test_slow_terminal_ends_the_trace(caplog: pytest.LogCaptureFixture) -> None:
    """Events are never dropped silently: the later ones would make no sense."""
    sink = JsonLines(Full())  # type: ignore[arg-type]
    sink(TURN)
    sink(TURN)
    assert caplog.messages == ["trace ended: can't write terminal: its reader is too slow"]


def test_file_with_its_own_buffer_is_flushed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace.jsonl"
    with open(path, "wb") as file:
        JsonLines(file)(TURN)
        assert len(lines(path)) == 2


def symbolic_link(name: pathlib.Path, victim: pathlib.Path) -> None:
    name.symlink_to(victim)


def link_to_nothing(name: pathlib.Path, victim: pathlib.Path) -> None:
    name.symlink_to(victim.with_name("new"))


def hard_link(name: pathlib.Path, victim: pathlib.Path) -> None:
    os.link(victim, name)


def pipe(name: pathlib.Path, victim: pathlib.Path) -> None:
    os.mkfifo(name)


def folder(name: pathlib.Path, victim: pathlib.Path) -> None:
    name.mkdir()


def file_of_another_user(name: pathlib.Path, victim: pathlib.Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file to another user")
    name.touch()
    os.chown(name, 4711, 4711)


@pytest.mark.skipif(sys.platform == "win32", reason="other kinds of files there")
@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (symbolic_link, "it is a symbolic link: give the name of the file itself"),
        (link_to_nothing, "it is a symbolic link"),
        (hard_link, "a second name"),
        (pipe, "isn't a regular file"),
        (folder, "Is a directory"),
        (file_of_another_user, "belongs to another user"),
    ],
)
def test_name_that_another_user_may_have_prepared_is_refused(
    tmp_path: pathlib.Path, prepare: Callable[[pathlib.Path, pathlib.Path], None], why: str
) -> None:
    name, victim = tmp_path / "trace.jsonl", tmp_path / "victim"
    victim.touch(0o644)
    prepare(name, victim)
    with pytest.raises(OSError, match=why):
        open_file(str(name))
    assert victim.stat().st_mode & 0o777 == 0o644
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="an open file can't be renamed there")
@pytest.mark.parametrize("begun", [False, True], ids=["new file", "old trace"])
def test_name_swapped_during_the_opening_spoils_no_other_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """Whatever is checked is what is emptied and changed: the open file, not its name."""
    name, victim = tmp_path / "trace.jsonl", tmp_path / "victim"
    victim.write_text('{"trace": "reactor"}')
    victim.chmod(0o644)
    if begun:
        name.write_text('{"trace": "reactor"}')
    opened = os.open

    def swapped(path: str, flags: int, mode: int = 0o777) -> int:
        descriptor = opened(path, flags, mode)
        name.rename(tmp_path / "ours")
        name.symlink_to(victim)
        return descriptor

    monkeypatch.setattr(os, "open", swapped)
    JsonLines.open(str(name)).close()
    assert victim.read_text() == '{"trace": "reactor"}'
    assert victim.stat().st_mode & 0o777 == 0o644
    assert len(lines(tmp_path / "ours")) == 1
    assert (tmp_path / "ours").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(sys.platform == "win32", reason="no fork here")
def test_child_leaves_the_file_to_its_parent(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace.jsonl"
    sink = JsonLines.open(str(path))
    sink(SOMETHING)
    sink.leave()
    sink(TURN)
    assert path.read_text() == "", "neither what waited nor what came later"
