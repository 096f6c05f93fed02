"""The command reports its result in one line, and overwrites only its own files."""

from __future__ import annotations

import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
from typing import Any

import pytest

from reactor import Reactor
from reactor.observe.sinks import JsonLines
from reactor.observe.trace import Trace
from reactor.player import __main__ as command
from reactor.player import files, tracefile
from reactor.player.gallery import bundled
from reactor.player.page import MADE_BY_US
from tests.support.basics import PROJECT
from tests.support.traces import trace_file

TURN = ("turn", "", {"sleep_s": None, "calls": 0, "timers": 0})
NOT_OURS = b"my letters\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The current folder, with a trace in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.jsonl").write_bytes(trace_file(TURN, TURN))
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    """Run the command in this process; return its one line on stderr."""
    assert command.main(arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == err.endswith("\n") == 1
    return err


def run(*arguments: str, **options: Any) -> Any:
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    line = [sys.executable, "-m", "reactor.player", *arguments]
    options = {"capture_output": True, "stdin": subprocess.DEVNULL} | options
    return subprocess.run(line, env=environment, timeout=60, check=False, **options)


def is_page(path: pathlib.Path) -> bool:
    return MADE_BY_US in path.read_text(encoding="utf-8")


def test_page_is_written_beside_the_trace(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "below").mkdir()
    (folder / "run.jsonl").rename(folder / "below" / "run.jsonl")
    assert said(capsys, "below/run.jsonl") == f"page written: {pathlib.Path('below/run.html')}\n"
    assert is_page(folder / "below" / "run.html")


def test_page_is_written_where_output_says(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "run.jsonl", "-o", "other.html") == "page written: other.html\n"
    assert is_page(folder / "other.html")


def test_gallery_is_one_page(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "--gallery") == "page written: reactor-gallery.html\n"
    assert is_page(folder / "reactor-gallery.html")


def test_trace_is_read_from_a_pipe_and_the_page_written_to_one(folder: pathlib.Path) -> None:
    through = run("-", "-o", "-", stdin=None, input=(folder / "run.jsonl").read_bytes())
    assert (through.returncode, through.stderr) == (0, b"")
    assert MADE_BY_US.encode() in through.stdout
    with (folder / "run.jsonl").open("rb") as trace:
        assert run("-", stdin=trace).stderr == b"page written: reactor-trace.html\n"


def test_same_input_gives_the_same_page(folder: pathlib.Path) -> None:
    assert run("run.jsonl", "-o", "-").stdout == run("run.jsonl", "-o", "-").stdout


def test_open_shows_the_page_in_the_browser(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def show(address: str) -> bool:
        opened.append(address)
        return True

    monkeypatch.setattr("webbrowser.open", show)
    said(capsys, "run.jsonl", "--open")
    assert opened == [(folder / "run.html").resolve().as_uri()]


def test_without_a_browser_open_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    assert command.main(["run.jsonl", "--open"]) == 1
    assert capsys.readouterr().err.endswith("can't start a browser: open run.html yourself\n")


# ---------------------------------------------------------------- existing files


def test_page_of_ours_is_overwritten(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "run.jsonl")
    (folder / "run.html").write_bytes((folder / "run.html").read_bytes()[:300])
    said(capsys, "run.jsonl")
    assert (folder / "run.html").read_text(encoding="utf-8").endswith("</html>\n")


def test_other_file_is_overwritten_only_with_force(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run.html").write_bytes(NOT_OURS)
    assert "run.html: it exists, and isn't a page of the player" in said(capsys, "run.jsonl", status=1)
    assert (folder / "run.html").read_bytes() == NOT_OURS
    said(capsys, "run.jsonl", "--force")
    assert is_page(folder / "run.html")


def test_trace_itself_is_not_overwritten(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "run.jsonl").read_bytes()
    assert "isn't a page of the player" in said(capsys, "run.jsonl", "-o", "run.jsonl", status=1)
    assert (folder / "run.jsonl").read_bytes() == before


def test_page_has_the_permissions_of_any_new_file(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = os.umask(0o027)
    try:
        said(capsys, "run.jsonl")
    finally:
        os.umask(before)
    assert (folder / "run.html").stat().st_mode & 0o777 == 0o640


def test_symbolic_link_stays_a_link(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "link.html").symlink_to("real.html")
    said(capsys, "run.jsonl", "-o", "link.html")
    assert (folder / "link.html").is_symlink()
    assert is_page(folder / "real.html")


def test_full_disk_leaves_the_old_page(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = f"<!DOCTYPE html>\n{MADE_BY_US}\nthe old one"
    (folder / "run.html").write_text(old)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        words = said(capsys, "run.jsonl", status=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert words == "run.html: can't be written: File too large; name another file with -o\n"
    assert (folder / "run.html").read_text() == old
    assert {file.name for file in folder.iterdir()} == {"run.html", "run.jsonl"}


def test_device_is_written_directly(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "run.jsonl", "-o", "/dev/null") == "page written: /dev/null\n"
    assert "No space left on device" in said(capsys, "run.jsonl", "-o", "/dev/full", status=1)


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: can't be read: No such file or directory"),
        (["."], ".: can't be read: Is a directory"),
        (["a\0b"], "can't be read: embedded null byte"),
        (["run.jsonl", "-o", "."], ".: can't be written: Is a directory"),
        (["run.jsonl", "-o", "no/such/page.html"], "can't be written: No such file or directory"),
        (["run.jsonl", "-o", "a\0b"], "embedded null"),
        (["run.jsonl", "-o", "x" * 300], "can't be written: File name too long"),
        (["letter.txt"], "letter.txt: can't be played: line 1 isn't JSON"),
    ],
)
def test_failure_costs_one_line(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    (folder / "letter.txt").write_bytes(NOT_OURS)
    assert why in said(capsys, *arguments, status=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_unreadable_trace_costs_one_line(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run.jsonl").chmod(0)
    assert "can't be read: Permission denied" in said(capsys, "run.jsonl", status=1)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "either TRACE or --gallery"),
        (["run.jsonl", "--gallery"], "either TRACE or --gallery"),
        (["run.jsonl", "-o", "-", "--open"], "can't be opened"),
        (["run.jsonl", "--colour"], "unrecognized arguments: --colour"),
        (["run.jsonl", "--gall"], "unrecognized arguments: --gall"),
    ],
)
def test_contradictory_arguments_are_a_usage_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert why in line


def test_trace_of_a_killed_process_is_played_with_a_note(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracefile, "MOST_EVENTS", 1)
    (folder / "run.jsonl").write_bytes(trace_file(TURN, TURN, TURN)[:-10])
    assert command.main(["run.jsonl"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "the last line is incomplete, and left out",
        "1 further event is left out: the page has the first 1",
        "page written: run.html",
    ]


def test_closed_descriptors_and_pipes_give_no_traceback(folder: pathlib.Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    quiet = run("run.jsonl", "-o", "-", capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (quiet.returncode, quiet.stderr) == (0, b"")
    shut = run("run.jsonl", "-o", "-", preexec_fn=lambda: os.close(1))
    assert (shut.returncode, shut.stderr) == (0, b"")
    unread = run("-", preexec_fn=lambda: os.close(0))
    assert (unread.returncode, unread.stderr.count(b"\n")) == (1, 1)


def test_ctrl_c_gives_no_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "load", lambda name: signal.raise_signal(signal.SIGINT))
    assert command.main(["run.jsonl"]) == 130
    assert capsys.readouterr().err == ""


def test_current_header_is_understood(folder: pathlib.Path) -> None:
    """`read` reads what `JsonLines` writes."""
    with JsonLines.open(str(folder / "real.jsonl"), title="A real one") as sink, Reactor(observer=Trace(sink)) as loop:
        loop.call_soon(loop.stop)
        loop.run()
    trace = files.load("real.jsonl")
    assert trace.header["title"] == "A real one"
    assert [event["kind"] for event in trace.events].count("call") == 1
    assert json.dumps(trace.events)


def test_readme_has_the_keys_of_the_dialog_and_the_traces_of_the_gallery() -> None:
    folder = PROJECT / "reactor" / "player"
    readme, page = (folder / "README.md").read_text(), (folder / "player.html").read_text()
    keys = readme.partition("## Keys")[2].partition("\n## ")[0]
    of_readme = [set(re.findall(r"`(.+?)`", row.split(" | ")[0])) for row in re.findall(r"^\| (`.*)$", keys, re.M)]
    of_dialog = [set(re.findall(r"<kbd>(.+?)</kbd>", row)) for row in re.findall(r"<dt>.*?</dt>", page)]
    assert of_readme == of_dialog
    for trace in bundled():
        assert f"\n| {trace.header['title']} | " in readme


def test_trace_recorded_by_the_program_of_the_readme_can_be_played(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (PROJECT / "reactor" / "player" / "README.md").read_text(), re.S)
    monkeypatch.setattr("reactor.Reactor.run", Reactor.turn)
    monkeypatch.setattr("reactor.listen_tcp", lambda loop, address, factory: loop.call_soon(factory))
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    said(capsys, "echo.jsonl")
    assert "My echo" in (folder / "echo.html").read_text(encoding="utf-8")
