"""`python -m reactor.lessons [N] [--source | --exercise | --check FILE | --serve | --flood] [--port PORT]`.

Law: wrong usage costs one line that says what is wrong, why, and what to do. It never costs a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import runpy
import signal
import sys
from collections.abc import Generator, Iterator, Sequence

from reactor.console.commandline import USAGE, OneLineParser, explain_statuses, lost, run_command
from reactor.lessons import lecture
from reactor.lessons.flood import FLOOD_BYTES, flood
from reactor.lessons.staircase import LESSONS, Lesson, exercise, python
from reactor.lessons.subject import Unusable

PROGRAM = f"{python()} -m reactor.lessons"
PORT = 7007
STATUS_BROKEN = 1
EXIT_STATUSES = {
    "0": "success",
    "1": "a promise is broken, the port can't be served, or stdout can't be written",
    "2": "invalid options, or FILE can't be judged",
    "130": "ended by Ctrl-C",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status, one of EXIT_STATUSES."""
    return run_command(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = new_parser()
    options = parser.parse_args(argv)
    if options.lesson is None and (options.source or options.exercise or options.serve or options.check is not None):
        parser.error("which lesson? Give its number, from 1 to 13")
    if options.port is not None and not (options.serve or options.flood):
        parser.error("argument --port: it needs --serve or --flood")
    if options.flood and options.port == 0:
        parser.error("argument --port: --flood needs the port of a running server, not 0")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the locale's encoding may lack some of our letters
    try:
        return run(options)
    except Unusable as error:
        sys.stderr.write(f"{PROGRAM}: can't judge {options.check}: {error}\n")
        return USAGE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError as error:
        if error.filename is None:
            return lost(error)
        # no /dev/null for a student's program
        sys.stderr.write(f"{PROGRAM}: can't run it here: {error.strerror}: {error.filename}\n")
        return STATUS_BROKEN


def new_parser() -> OneLineParser:
    """Return the parser of the command line."""
    parser = OneLineParser(
        prog=PROGRAM,
        description="How an event loop works, in thirteen programs. Without arguments: list the lessons.",
        epilog=explain_statuses(EXIT_STATUSES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("lesson", nargs="?", type=lesson_number, metavar="N", help="the lesson, from 1 to 13")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--source", action="store_true", help="print the lesson's program")
    what.add_argument("--exercise", action="store_true", help="print a program to start from, with the task")
    what.add_argument("--check", metavar="FILE", help="judge your program by all promises up to this lesson")
    what.add_argument("--serve", action="store_true", help="run the lesson's program, on 127.0.0.1, until Ctrl-C")
    what.add_argument(
        "--flood",
        action="store_true",
        help=f"be a client: send {FLOOD_BYTES // 10**6} MB, and read nothing until you press Enter",
    )
    parser.add_argument("--port", type=port_number, help=f"for --serve and --flood (default {PORT}; 0: --serve any)")
    return parser


def lesson_number(text: str) -> Lesson:
    """Convert to a lesson. Raise ArgumentTypeError if no lesson has that number."""
    with contextlib.suppress(ValueError):
        if 1 <= int(text) <= len(LESSONS):
            return LESSONS[int(text) - 1]
    raise argparse.ArgumentTypeError(f"{text!r} is not the number of a lesson: there are 1 to {len(LESSONS)}")


def port_number(text: str) -> int:
    """Convert to a port. Raise ArgumentTypeError if it isn't one."""
    with contextlib.suppress(ValueError):
        if 0 <= int(text) <= 65_535:
            return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port: a whole number from 0 to 65535")


def run(options: argparse.Namespace) -> int:
    """Do what the options ask; return the exit status. Raise Unusable, and OSError if stdout can't be written."""
    lesson: Lesson | None = options.lesson
    port: int = PORT if options.port is None else options.port
    if options.flood:
        return drown(port)
    if lesson is None:
        say(lecture.staircase())
    elif options.source:
        sys.stdout.write(lesson.source)
    elif options.exercise:
        sys.stdout.write(exercise(lesson))
    elif options.serve:
        serve(lesson, port)
    elif options.check is not None:
        kept = say(lecture.check(lesson, readable(options.check)))
        sys.stdout.flush()
        return 0 if kept else STATUS_BROKEN
    else:
        say(lecture.lesson(lesson))
    sys.stdout.flush()
    return 0


def say(lines: Iterator[str] | Generator[str, None, bool]) -> bool | None:
    """Print lines as they come; return what their generator returns."""
    while True:
        try:
            line = next(lines)
        except StopIteration as end:
            result: bool | None = end.value
            return result
        print(line, flush=True)


def readable(path: str) -> str:
    """Return a path if the file can be read. Raise Unusable otherwise."""
    try:
        with open(path, "rb"):
            return path
    except (OSError, ValueError) as error:
        raise Unusable(getattr(error, "strerror", None) or str(error)) from None


def serve(lesson: Lesson, port: int) -> None:
    """Run a lesson's program as a student would. Raise SystemExit if it can't serve there."""
    where = port or "PORT"
    print(f"lesson {lesson.number} on port {port or 'any'}, process {os.getpid()}; Ctrl-C ends it. ", end="")
    print("Talk to it from other terminals:")
    print(f"  nc 127.0.0.1 {where}" + f"\n  nc -u 127.0.0.1 {where}" * ("datagrams" in lesson.arguments))
    print(f"  {PROGRAM} --flood --port {where}")
    print("or, without nc (press Enter to send, and again to leave):")
    print(f'  {python()} -c "import socket; s = socket.create_connection((\'127.0.0.1\', {where})); '
          "input(); s.sendall(b'hello'); print(s.recv(9)); input()\"")  # fmt: skip
    print("\n".join(["", *lecture.paragraph(lesson.by_hand, ""), lesson.script]), flush=True)
    sys.argv = [lesson.program.path, str(port)]
    runpy.run_path(lesson.program.path, run_name="__main__")


def drown(port: int) -> int:
    """Flood the server on a port; return the exit status."""
    lines = flood(port)
    try:
        line = next(lines)
    except OSError as error:
        why = f"nothing serves 127.0.0.1 port {port}: {error.strerror}; start a lesson with N --serve"
        sys.stderr.write(f"{PROGRAM}: {why}\n")
        return STATUS_BROKEN
    say(itertools.chain([line], lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
