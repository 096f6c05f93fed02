"""The command line of the lessons: what a student types, and the answer."""

from __future__ import annotations

import io
import json
import os
import pathlib
import re
import runpy
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace
from typing import IO

import pytest

from reactor.lessons import __main__ as command
from reactor.lessons import flood, lecture
from reactor.lessons.promises import Promise, Verdict, added
from reactor.lessons.staircase import LESSONS, Lesson, exercise
from reactor.lessons.subject import Program, Subject
from reactor.lessons.tour import TOUR
from tests.support.basics import PATIENCE_S, PROJECT

PYTHON = pathlib.Path(sys.executable).name


def lessons(*arguments: str, stdout: int | IO[bytes] = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """Start the command as a student does."""
    line = [sys.executable, "-m", "reactor.lessons", *arguments]
    return subprocess.Popen(line, cwd=PROJECT, stdout=stdout, stderr=subprocess.PIPE)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Run no check: record each one, and give the verdict of FOUND, or kept."""
    asked: list[tuple[str, str]] = []

    def judge(promise: Promise, program: Program) -> Verdict:
        asked.append((promise.name, pathlib.Path(program.path).stem))
        return Verdict(promise, FOUND.get(promise.name, True), "some numbers")

    monkeypatch.setattr(lecture, "judge", judge)
    return asked


FOUND: dict[str, bool | None] = {"second-client": False, "no-thread-each": None}


def test_without_arguments_all_lessons_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    listed = re.findall(r"^ +(\d+)  (.*)$", capsys.readouterr().out, re.M)
    assert listed == [(str(lesson.number), lesson.title) for lesson in LESSONS]


def test_output_goes_to_any_stream_in_place_of_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert command.main([]) == 0
    assert isinstance(sys.stdout, io.StringIO)
    assert sys.stdout.getvalue().startswith("How an event loop works")


@pytest.mark.long
def test_lesson_shows_the_fault_that_it_fixes_and_the_one_that_it_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["4"]) == 0
    said = capsys.readouterr().out
    idle, slow = next(added(4)), next(added(5))
    words = re.findall(r"^  (kept|BROKEN) +(.*)$", said, re.M)
    assert words == [("BROKEN", idle.sentence), ("kept", idle.sentence), ("BROKEN", slow.sentence)]
    assert re.search(r"took \d+% of a processor", said)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_lesson_says_what_to_look_at_try_read_and_do(
    lesson: Lesson, judged: list[tuple[str, str]], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "80")
    assert command.main([str(lesson.number)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Lesson {lesson.number}: {lesson.title}\n=")
    words = " ".join(said.split())
    assert all(place.name in said and place.why in words for place in lesson.look + lesson.read)
    assert lesson.by_hand in words
    assert lesson.task in words
    before = LESSONS[max(0, lesson.number - 2)].stem
    assert {stem for _, stem in judged} == {before, lesson.stem}
    assert f"Next: {PYTHON} -m reactor.lessons {lesson.number + 1}" in said or lesson.number == 13


def test_no_line_is_wider_than_the_screen(
    judged: list[tuple[str, str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command.main(["12"])
    command.main(["13"])
    assert not [line for line in capsys.readouterr().out.splitlines() if len(line) > 80]


def test_lesson_12_narrates_a_trip_and_visits_the_ten_files(
    judged: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    command.main(["12"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(f"{stop.file} ({stop.met}) Law" in said for stop in TOUR)
    assert "connection-1 receives 5 bytes" in said
    assert "raised" not in said.partition("told by Reactor")[2].partition("The ten files")[0]


def test_check_says_which_promises_a_students_program_breaks(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(LESSONS[0].source.replace("sendall(data)", "sendall(data.decode('latin-1').encode())"))
    assert command.main(["1", "--check", str(mine)]) == 1
    said = capsys.readouterr().out
    assert "BROKEN  What a client sends comes back" in said
    assert "byte 0 was sent as b'\\x80' and came back as b'\\xc2'" in said
    assert "What to do: Send exactly what" in said
    assert said.endswith("0 of 1 kept, 1 broken\n")


def test_check_exits_with_status_0_when_all_promises_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["1", "--check", LESSONS[0].program.path]) == 0
    assert capsys.readouterr().out.endswith("1 of 1 kept, 0 broken\n")


def test_check_says_what_could_not_be_measured_and_which_arguments_are_missing(
    judged: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["9", "--check", LESSONS[7].program.path]) == 1
    said = capsys.readouterr().out
    assert "`serve` takes 2 of the 3 arguments of this lesson: (listener, datagrams, idle_s)." in " ".join(said.split())
    assert "unknown" in said
    assert said.endswith("8 of 10 kept, 1 broken, 1 not measured\n")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("def serve(:", "SyntaxError: invalid syntax (line 1)"),
        ("x = 1", "it has no function `serve`"),
        ("serve = 7", "it has no function `serve`"),
        ("\n1 / 0", "ZeroDivisionError: division by zero (line 2)"),
        ("raise SystemExit", "it can't be loaded: SystemExit"),
        ("import os; os._exit(3)", "it ended the process while it was loading (exit status 3)"),
        ("def serve(): pass", "its `serve` takes no arguments; it must take at least a listening socket"),
        (None, "No such file or directory"),
    ],
)
def test_file_that_cannot_be_checked_costs_one_line(
    source: str | None, why: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.py"
    if source is not None:
        mine.write_text(source)
    assert command.main(["3", "--check", str(mine)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"{PYTHON} -m reactor.lessons: can't judge {mine}: ")
    assert why in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["0"], "'0' is not the number of a lesson: there are 1 to 13"),
        (["fourteen"], "'fourteen' is not the number of a lesson: there are 1 to 13"),
        (["--serve"], "which lesson? Give its number, from 1 to 13"),
        (["--check", ""], "which lesson? Give its number, from 1 to 13"),
        (["3", "--port", "7"], "argument --port: it needs --serve or --flood"),
        (["3", "--serve", "--port", "65536"], "'65536' is not a port: a whole number from 0 to 65535"),
        (["3", "--serve", "--port", "http"], "'http' is not a port: a whole number from 0 to 65535"),
        (["3", "--serve", "--source"], "not allowed with argument"),
        (["--flood", "--port", "0"], "--flood needs the port of a running server"),
        (["3", "4"], "unrecognized arguments: 4"),
    ],
)
def test_wrong_usage_costs_one_line_and_status_2(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    said = capsys.readouterr().err
    assert exit_.value.code == 2
    assert why in said
    assert said.count("\n") == 1


def test_source_and_exercise_print_only_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["6", "--source"]) == 0
    assert capsys.readouterr().out == LESSONS[5].source
    assert command.main(["6", "--exercise"]) == 0
    assert capsys.readouterr().out == exercise(LESSONS[5])


@pytest.mark.parametrize("typing", [True, False])
def test_flood_says_what_it_sent_and_read(
    typing: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flood, "FULL_S", 0.3)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: typing, readline=lambda: "\n"))
    with Subject(LESSONS[6].program, 30.0, 1) as served:
        port = served.tcp().getpeername()[1]
        assert command.main(["--flood", "--port", str(port)]) == 0
    said = capsys.readouterr().out
    sent = re.match(r"sent ([\d,]+) bytes of 20,000,000; no more was taken; read none", said)
    assert sent is not None
    assert f"then read {sent[1]} of {sent[1]} bytes, and then the end (FIN)" in said
    assert ("press Enter here" in said) == typing


def test_flood_reports_a_reset_and_a_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flood, "QUIET_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        lines = flood.flood(server.getsockname()[1], 1000)
        assert next(lines) == "sent 1,000 bytes; read none of the answers so far"
        assert "read 0 of 1,000 bytes, and then nothing more for 0.05 s" in list(lines)[-1]
        server.accept()[0].close()
        lines = flood.flood(server.getsockname()[1], 1000)
        next(lines)
        server.accept()[0].close()  # with what it hasn't read: a reset
        assert "read 0 of 1,000 bytes, and then a reset" in list(lines)[-1]
        with socket.create_connection(server.getsockname()) as client:
            server.accept()[0].close()
            while client.recv(1) != b"":
                pass
            assert flood.send_all_that_is_taken(client, 1 << 30) < 1 << 30


def test_flood_without_a_server_costs_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert command.main(["--flood", "--port", str(port)]) == 1
    said = capsys.readouterr()
    assert f"nothing serves 127.0.0.1 port {port}: Connection refused; start a lesson with N --serve" in said.err
    assert said.err.count("\n") == 1


def test_gallery_has_the_traces_that_lessons_name() -> None:
    folder = pathlib.Path(PROJECT / "reactor" / "player" / "gallery")
    titles = {json.loads(trace.read_text().partition("\n")[0])["title"] for trace in folder.glob("*.jsonl")}
    assert {lesson.number for lesson in LESSONS if lesson.see} == {5, 6, 7, 10, 12}
    assert titles.issuperset(title for lesson in LESSONS for title in lesson.see)


def test_long_name_is_separated_from_its_explanation(
    judged: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    command.main(["11"])
    assert re.search(r"Reactor\.call_soon_threadsafe\s+the two lines", capsys.readouterr().out)


def test_serve_names_the_process_and_the_ways_to_talk_to_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runpy, "run_path", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", [])
    assert command.main(["13", "--serve"]) == 0
    said = capsys.readouterr().out
    assert f"process {os.getpid()};" in said
    assert "nc -u 127.0.0.1 7007" in said
    assert LESSONS[12].script in said
    compile(LESSONS[12].script, "script", "exec")


def test_serve_runs_the_program_until_ctrl_c() -> None:
    process = lessons("4", "--serve", "--port", "0")
    assert process.stdout is not None
    line = next(line for line in process.stdout if line.startswith(b"serving"))
    with socket.create_connection(("127.0.0.1", int(line.split()[-1])), PATIENCE_S) as client:
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (0, b"")


def test_taken_port_costs_one_line_and_status_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = lessons("4", "--serve", "--port", str(taken.getsockname()[1]))
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert said.startswith(b"can't serve there: ")
    assert said.count(b"\n") == 1


def test_closed_pipe_gives_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as unread:
        process = lessons(stdout=unread)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_full_disk_costs_one_line_and_status_1() -> None:
    with open("/dev/full", "wb") as full:
        process = lessons("3", "--source", stdout=full)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert said.decode() == "can't write to stdout: No space left on device; the result is lost\n"


def test_ctrl_c_gives_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupted)
    assert command.main([]) == 128 + signal.SIGINT
