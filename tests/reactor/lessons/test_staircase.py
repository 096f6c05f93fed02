"""Each lesson keeps its promises, and breaks those that the next one adds."""

from __future__ import annotations

import ast
import pathlib
import re
import runpy
import socket
import sys
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

from reactor.lessons import step12_reactor, step13_await
from reactor.lessons.promises import PROMISES, Verdict, added, asked
from reactor.lessons.staircase import LESSONS, Lesson, exercise, line_of
from reactor.lessons.tour import HOUSE, TOUR, law
from reactor.limits import DEFAULT_LIMITS
from tests.support.basics import PATIENCE_S, PROJECT
from tests.support.clients import receive_to_end, send_in_background
from tests.support.lessons import check_together
from tests.support.loops import LoopThread

READING_ORDER = "handler loop timers buffer connection listener connector datagram signals limits".split()
BESIDE_THE_PATH = {"__init__.py", "doors.py", "verbs.py"}
NUMBERS = [lesson.number for lesson in LESSONS]
READ_ON_A_SCREEN_OR_TWO = {11: 240, 13: 220}  # the longest; all others:
LINES = 170
SENT = bytes(range(256)) * 8192


@pytest.fixture(scope="module")
def verdicts() -> dict[tuple[int, str], Verdict]:
    """The verdicts on each lesson's program, by the promises that it adds and by those that the next lesson adds."""
    pairs = [(lesson, p) for lesson in LESSONS for p in PROMISES if lesson.number <= p.since <= lesson.number + 1]
    found = check_together((promise, lesson.program) for lesson, promise in pairs)
    return {(lesson.number, p.name): verdict for (lesson, p), verdict in zip(pairs, found, strict=True)}


@pytest.mark.long
@pytest.mark.parametrize("number", NUMBERS)
def test_lesson_keeps_each_promise_that_it_adds(number: int, verdicts: dict[tuple[int, str], Verdict]) -> None:
    found = [verdicts[number, promise.name] for promise in added(number)]
    assert not [(verdict.promise.name, verdict.measured) for verdict in found if not verdict.kept]


@pytest.mark.long
def test_each_lesson_keeps_the_promises_of_all_lessons_before_it() -> None:
    pairs = [(p, lesson.program) for lesson in LESSONS for p in asked(lesson.number) if p.since < lesson.number]
    broken = [verdict for verdict in check_together(pairs) if not verdict.kept]
    assert not [(verdict.promise.name, verdict.measured) for verdict in broken]


@pytest.mark.long
@pytest.mark.parametrize("number", NUMBERS[:-1])
def test_lesson_breaks_each_promise_that_the_next_one_adds(
    number: int, verdicts: dict[tuple[int, str], Verdict]
) -> None:
    found = [verdicts[number, promise.name] for promise in added(number + 1)]
    assert found
    assert not [(verdict.promise.name, verdict.measured) for verdict in found if verdict.kept is not False]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_program_is_complete_and_fits_on_a_screen_or_two(lesson: Lesson) -> None:
    assert lesson.source.isascii()  # so that a redirection can't change it
    assert len(lesson.source.splitlines()) <= READ_ON_A_SCREEN_OR_TWO.get(lesson.number, LINES)
    assert [line.split()[0] for line in lesson.explanation if re.match("[A-Z]", line)][1:] == [
        "Does",
        "Fixes",
        "Breaks",
    ]
    assert lesson.explanation[0].startswith(f"Lesson {lesson.number}: ")


@pytest.mark.parametrize("lesson", LESSONS[:11], ids=lambda lesson: lesson.stem)
def test_first_eleven_lessons_need_only_python(lesson: Lesson) -> None:
    tree = ast.parse(lesson.source)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names


def test_async_and_await_take_less_than_a_hundred_lines() -> None:
    source = LESSONS[-1].source.splitlines()
    first, last = (line_of(LESSONS[-1].source, name) for name in ("Future", "EchoDatagrams"))
    assert sum(bool(line.strip()) for line in source[first - 1 : last - 1]) < 100


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_places_to_look_at_and_to_read_exist(lesson: Lesson) -> None:
    assert all(line_of(lesson.source, place.name) for place in lesson.look)
    assert all(line_of((HOUSE / place.file).read_text(), place.name) for place in lesson.read)


def test_missing_place_is_named() -> None:
    with pytest.raises(KeyError, match=r"Reactor\.spin"):
        line_of((HOUSE / "loop.py").read_text(), "Reactor.spin")


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_serve_takes_the_arguments_of_its_lesson(lesson: Lesson) -> None:
    serve = import_module(lesson.program.name).serve
    assert ", ".join(serve.__code__.co_varnames[: serve.__code__.co_argcount]) == lesson.arguments


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_program_serves_the_given_port(
    lesson: Lesson, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = import_module(lesson.program.name)
    served: list[Any] = []

    def note(*sockets: socket.socket, **options: Any) -> None:
        served.extend(sock.getsockname() for sock in sockets)
        options.get("ready", int)(0)

    monkeypatch.setattr(module, "serve", note)
    monkeypatch.setattr(sys, "argv", ["step", "0"])
    module.main()
    assert len(set(served)) == 1
    assert capsys.readouterr().out == "serving {} {}\n".format(*served[0])


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_program_says_in_one_line_why_it_cannot_serve(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["step", "everywhere"])
    with pytest.raises(SystemExit, match=r"can't serve there: .*'everywhere'"):
        runpy.run_path(lesson.program.path, run_name="__main__")


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_exercise_is_the_previous_lesson_with_the_task_on_top(lesson: Lesson) -> None:
    start = exercise(lesson)
    assert lesson.task in start
    assert "table above" not in start  # it was in the docstring
    assert f"reactor.lessons {lesson.number} --check FILE" in start
    names: dict[str, Any] = {"__name__": "exercise"}
    exec(compile(start, "exercise.py", "exec", dont_inherit=True), names)
    assert callable(names["serve"])


def test_idle_timer_of_a_closed_connection_does_nothing() -> None:
    server: Any = SimpleNamespace(loop=SimpleNamespace(now=lambda: 0.0), idle_s=1.0)
    gone: Any = SimpleNamespace(closed=True)
    step12_reactor.Echo(server).check_idle(gone)  # nothing is there to call


def test_only_the_first_result_of_a_future_counts() -> None:
    future = step13_await.Future()
    future.resolve("first")
    future.resolve("second")
    with pytest.raises(StopIteration, match="first"):  # an await on it doesn't wait
        future.__await__().send(None)


def test_coroutine_that_does_not_read_stops_its_client() -> None:
    go_on = step13_await.Future()
    streams: list[step13_await.Stream] = []

    async def handler(stream: step13_await.Stream) -> None:
        streams.append(stream)
        await go_on
        await step13_await.echo(stream)

    listener = socket.create_server(("127.0.0.1", 0))
    with LoopThread() as thread, socket.create_connection(listener.getsockname(), PATIENCE_S) as client:
        thread.call(step13_await.Server, thread.reactor, listener, 60.0, handler)
        thread.wait_for(lambda: streams)
        sending = send_in_background(client, SENT, lambda: client.shutdown(socket.SHUT_WR))
        thread.wait_for(lambda: len(streams[0].received) > step13_await.HIGH_WATER_BYTES)
        thread.wait_for(lambda: not streams[0].connection.interest)  # it stays so until the handler reads
        assert thread.call(lambda: len(streams[0].received)) <= DEFAULT_LIMITS.bound_bytes
        thread.call(go_on.resolve)
        assert receive_to_end(client) == SENT
        sending.join(PATIENCE_S)


def test_tour_visits_the_files_of_the_core_in_reading_order() -> None:
    assert [stop.file for stop in TOUR] == [f"{name}.py" for name in READING_ORDER]
    assert {stop.file for stop in TOUR} == {file.name for file in HOUSE.glob("*.py")} - BESIDE_THE_PATH
    assert all(law(stop.file).startswith("Law") for stop in TOUR)


def test_readme_has_the_whole_staircase() -> None:
    page = pathlib.Path(PROJECT / "reactor" / "lessons" / "README.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `(step\w+)\.py` \| .* \| .* \| (.*) \|$", page, re.M)
    assert [(int(number), stem) for number, stem, _ in rows] == [(lesson.number, lesson.stem) for lesson in LESSONS]
    for lesson, (_, _, promises) in zip(LESSONS, rows, strict=True):
        assert promises == ", ".join(f"`{promise.name}`" for promise in added(lesson.number))
    longest = {lesson.number: len(lesson.source.splitlines()) for lesson in LESSONS}
    assert max(longest[n] for n in range(1, 5)) < 60
    assert max(longest[n] for n in range(5, 11)) < 170
    assert all(f"`{promise.name}`" in page for promise in PROMISES)
