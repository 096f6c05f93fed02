"""The lecture: the staircase, a lesson with its demonstration, and the verdicts on a student's program.

Law: what is shown has just been measured. Each line appears as soon as it is known, and no line is wider than the
terminal.
"""

from __future__ import annotations

import shutil
import socket
import textwrap
from collections.abc import Generator, Iterable, Iterator

from reactor import Connection, Reactor, StreamProtocol, listen_tcp
from reactor.lessons.promises import IDLE_S, Promise, Verdict, added, asked, judge
from reactor.lessons.staircase import LESSONS, Lesson, Place, command, line_of, python
from reactor.lessons.subject import Program, Subject, Unusable
from reactor.lessons.tour import HOUSE, TOUR, law
from reactor.observe.narrate import Narrator
from reactor.observe.trace import Trace

WIDEST_COLUMNS, NARROWEST_COLUMNS = 100, 60
WORDS = {True: "kept", False: "BROKEN", None: "unknown"}
MARGIN = " " * 10


def staircase() -> Iterator[str]:
    """Yield the list of lessons."""
    yield "How an event loop works, in thirteen programs. Each fixes what the one before gets wrong."
    yield ""
    for lesson in LESSONS:
        sentence = next(added(lesson.number)).sentence
        yield f"  {lesson.number:>2}  {lesson.title}"
        yield f"      {sentence}"
    yield from ("", f"Begin with:  {command(1)}")
    yield "Each lesson also has  --source  --exercise  --check FILE  --serve [--port PORT];  --help says more."


def lesson(lesson: Lesson) -> Iterator[str]:
    """Yield a lesson: its explanation, the demonstration, what to read and do next."""
    heading = f"Lesson {lesson.number}: {lesson.title}"
    yield heading
    yield "=" * len(heading)
    yield from explanation(lesson)
    yield f"Look at ({command(lesson.number)} --source)"
    yield from places(lesson.look, lesson.source)
    yield from demonstration(lesson)
    if lesson.number == 12:
        yield from trip()
        yield from tour()
    yield from ("", f"By hand ({command(lesson.number)} --serve, in another terminal)")
    yield from paragraph(lesson.by_hand)
    yield from textwrap.indent(lesson.script, "    ").splitlines()
    yield from ("", "Read on in reactor")
    yield from places(lesson.read)
    if lesson.see:
        titles = " and ".join(f'"{title}"' for title in lesson.see)
        yield ""
        yield from paragraph(f"See it: {python()} -m reactor.player --gallery --open, {titles}", "")
    yield from ("", "Exercise (start from --exercise > mine.py, judge it with --check mine.py)")
    yield from paragraph(lesson.task)
    if lesson.number < len(LESSONS):
        yield from ("", f"Next: {command(lesson.number + 1)}")


def demonstration(lesson: Lesson) -> Iterator[str]:
    """Yield what the previous program breaks, what this one keeps, and what it still breaks. All is run now."""
    if lesson.number > 1:
        yield from ("", f"Run now: lesson {lesson.number - 1}'s program, and what it gets wrong")
        yield from verdicts(added(lesson.number), LESSONS[lesson.number - 2].program)
    yield from ("", "Run now: this lesson's program")
    yield from verdicts(added(lesson.number), lesson.program)
    if lesson.number == 12:
        yield from ("", "Run now: the same program, and all the promises of the lessons before")
        yield from verdicts(asked(lesson.number - 1), lesson.program)
    if lesson.number < len(LESSONS):
        yield from ("", "Run now: the same program, and what it still gets wrong")
        yield from verdicts(added(lesson.number + 1), lesson.program)


def trip() -> Iterator[str]:
    """Yield how an observer of the loop narrates one client that sends a few bytes."""
    said: list[str] = []
    with Reactor(observer=Trace(Narrator(said.append))) as loop:
        listener = listen_tcp(loop, ("127.0.0.1", 0), lambda: Echo(loop))
        with socket.create_connection(listener.address) as client:
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            loop.run()
    yield from ("", "Run now: five bytes and a FIN, told by Reactor(observer=Trace(Narrator(print)))")
    for sentence in said:
        yield from paragraph(sentence)


class Echo(StreamProtocol):
    """Echoes, and stops the loop when its only client has left."""

    def __init__(self, loop: Reactor) -> None:
        self.loop = loop

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Send it back."""
        connection.write(data)

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Stop the loop: this was the only client."""
        self.loop.stop()


def verdicts(promises: Iterable[Promise], program: Program) -> Iterator[str]:
    """Judge a program and yield the verdicts, promise by promise."""
    for promise in promises:
        yield from verdict(judge(promise, program))


def verdict(found: Verdict) -> Iterator[str]:
    """Yield one verdict: the promise, and what was measured."""
    yield from textwrap.wrap(f"  {WORDS[found.kept]:<8}{found.promise.sentence}", columns(), subsequent_indent=MARGIN)
    yield from paragraph(found.measured, MARGIN)


def check(lesson: Lesson, path: str) -> Generator[str, None, bool]:
    """Judge the program in a file by all promises up to this lesson. Return whether it breaks none.

    Yields lines meanwhile. Raise Unusable if the file can't be judged.
    """
    program = Program(path)
    takes = arguments_taken(program)
    expected = len(lesson.arguments.split(", "))
    yield f"{path}, by the promises of lesson {lesson.number}"
    if takes < expected:
        yield from paragraph(f"`serve` takes {takes} of the {expected} arguments of this lesson: ({lesson.arguments}).")
    broken = unknown = 0
    for promise in asked(lesson.number):
        found = judge(promise, program)
        yield from verdict(found)
        if found.kept is False:
            broken += 1
            yield from paragraph(f"What to do: {promise.advice} See lesson {promise.since}.", MARGIN)
        unknown += found.kept is None
    total = len(list(asked(lesson.number)))
    yield f"{total - broken - unknown} of {total} kept, {broken} broken" + (f", {unknown} not measured" * bool(unknown))
    return not broken


def arguments_taken(program: Program) -> int:
    """Return how many arguments a program's `serve` takes. Raise Unusable if it can't be called."""
    with Subject(program, IDLE_S, 0) as subject:
        if not subject.wants:
            raise Unusable("its `serve` takes no arguments; it must take at least a listening socket")
        return subject.wants


def tour() -> Iterator[str]:
    """Yield the ten files of `reactor`, each with its law."""
    yield from ("", "The ten files of reactor, in reading order")
    for stop in TOUR:
        yield from ("", f"  {stop.file} ({stop.met})")
        yield from paragraph(law(stop.file), "      ")
        yield from paragraph(f"Better: {stop.better}", "      ")


def places(which: Iterable[Place], source: str = "") -> Iterator[str]:
    """Yield a line for each place: where it is, and why to look."""
    for place in which:
        text = (HOUSE / place.file).read_text(encoding="utf-8") if place.file else source
        where = f"{place.file or 'line'}{':' if place.file else ' '}{line_of(text, place.name)}"
        line = f"  {where:<20} {place.name:<26} {place.why}"
        yield from [line] if len(line) <= columns() else [line[: -len(place.why)].rstrip(), " " * 23 + place.why]


def explanation(lesson: Lesson) -> Iterator[str]:
    """Yield the program's docstring, wrapped to the screen; a table in it stays as it is."""
    text = ""
    for line in [*lesson.explanation[1:], ""]:
        if line.startswith(" " * 8) and line[8] != " ":
            text += f" {line.strip()}"
            continue
        if text:
            yield from textwrap.wrap(text, columns(), subsequent_indent=" " * 8)
        text = line if line[:1].isalpha() else ""
        if not text:
            yield line


def paragraph(text: str, margin: str = "  ") -> list[str]:
    """Return a text as lines with a margin."""
    return textwrap.wrap(text, columns(), initial_indent=margin, subsequent_indent=margin)


def columns() -> int:
    """Return the greatest width of a line."""
    return max(NARROWEST_COLUMNS, min(shutil.get_terminal_size().columns, WIDEST_COLUMNS))
