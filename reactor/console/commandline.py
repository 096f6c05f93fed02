"""The command-line parser of both packages, and the streams of a command.

Law: a wrong command line costs one line on stderr, which says what is wrong, why and what to do. The status is 2.
Output that can't be written costs a line and another status, and never a traceback. A closed stream is like /dev/null.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TextIO

USAGE, OUTPUT_LOST = 2, 1  # exit statuses
STDERR = 2
ESCAPES_UNKNOWN = ("", "dumb")  # values of TERM
STATUSES_COLUMNS = 78


class OneLineParser(argparse.ArgumentParser):
    """Reports an error in one line that points to `--help`, in place of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with status 2."""
        self.exit(USAGE, f"{self.prog}: {message}; see '{self.prog} --help'\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write a page that was asked for, or an error. argparse would ignore a failed write."""
        stream = file or sys.stderr
        try:
            stream.write(message)
            stream.flush()
        except OSError as error:
            if stream is sys.stdout:
                raise SystemExit(lost(error)) from None


def explain_statuses(statuses: Mapping[str, str]) -> str:
    """Return the part of a command's help that explains its exit statuses."""
    width = max(map(len, statuses))
    return "exit status:\n" + "".join(f"  {status:{width}}  {meaning}\n" for status, meaning in statuses.items())


def list_statuses(statuses: Mapping[str, str]) -> str:
    """Return the same part on a few lines: each meaning up to its first colon or semicolon."""
    lines = [""]
    for status, meaning in statuses.items():
        words = f" {status} {re.split('[:;]', meaning)[0]};"
        if len(lines[-1]) + len(words) > STATUSES_COLUMNS:
            lines.append("")
        lines[-1] += words
    return "exit status:\n" + "".join(f" {line}\n" for line in lines)[:-2] + "\n"


def run_command(main: Callable[[], int]) -> int:
    """Run a command with usable streams, write out what is left in them, and return the exit status.

    Raise SystemExit with it where `main` does.
    """
    ensure_standard_streams()
    try:
        status = main()
    except SystemExit as end:
        # a text: the interpreter prints it, and exits with status 1
        if not isinstance(end.code, str):
            raise SystemExit(settled(int(end.code or 0))) from None
        raise
    return settled(status)


def ensure_standard_streams() -> None:
    """Open /dev/null in place of standard descriptors that the parent has closed, and Python's streams on them.

    Otherwise the first socket would get number 2, and the next line on stderr would go to a client. Where there is no
    /dev/null, the root folder takes its place: it can't be written either.
    """
    for descriptor in range(STDERR + 1):
        try:
            os.fstat(descriptor)
        except OSError:
            # the lowest free number is this one
            _open_nothing()
    # None: closed when Python started
    sys.stdin, sys.stdout, sys.stderr = (
        sys.stdin or _nothing("r"),
        sys.stdout or _nothing("w"),
        sys.stderr or _nothing("w"),
    )


def _nothing(mode: str) -> TextIO:
    try:
        return open(os.devnull, mode)  # type: ignore[return-value]
    except OSError:
        return io.StringIO()


def _open_nothing() -> int:
    try:
        return os.open(os.devnull, os.O_RDWR)
    except OSError:
        return os.open(os.sep, os.O_RDONLY)


def settled(status: int) -> int:
    """Write out the streams, and return the exit status, which isn't 0 if a result is lost.

    A reader that has stopped early (`| head`) is no error.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        status = status or lost(error)
    try:
        sys.stderr.flush()
    except OSError:
        give_up(STDERR)
    return status


def lost(error: OSError) -> int:
    """Report that stdout can't be written. Return the exit status, 0 if its reader has only stopped early."""
    give_up(sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return 0
    complain(f"can't write to stdout: {error.strerror}; the result is lost")
    return OUTPUT_LOST


def complain(message: str) -> None:
    """Write a line on stderr, if that can be written."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{message}\n")


def give_up(descriptor: int) -> None:
    """Redirect a broken stream to /dev/null, or the interpreter reports it again when it exits."""
    nothing = _open_nothing()
    os.dup2(nothing, descriptor)
    os.close(nothing)


def takes_escapes(descriptor: int) -> bool:
    """Tell whether escape sequences may be written to a descriptor: to a terminal that isn't dumb."""
    return os.isatty(descriptor) and os.environ.get("TERM", "") not in ESCAPES_UNKNOWN


def fitted(text: str, descriptor: int) -> str:
    """Return a text cut to one row of a terminal, so that the next text can replace it."""
    columns = 80
    with contextlib.suppress(OSError):
        columns = os.get_terminal_size(descriptor).columns or columns
    return text if len(text) < columns else text[: max(0, columns - 2)] + "…"
