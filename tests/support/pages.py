"""Pages of documentation: their code blocks, run as a reader would run them, and their links.

A block fenced as ```console is a terminal: `$ ` begins a command, `> ` continues it, and other lines are its output. A
block fenced as ```python is a program. An HTML comment on the line above a block says what is special about it:

    <!-- not run: needs root -->         can't be tried anywhere; the reason follows the colon
    <!-- file: shout.py -->              the reader saves this as shout.py
    <!-- keeps running -->               the command goes on, in a terminal of its own
    <!-- same terminal -->               that terminal again: the command is interrupted, and prints what follows ^C
    <!-- run as: python3 -m echo7 … -->  stands for the block's only command, which needs a privilege

A command with `^C` in its output is interrupted there. Each printed line must come, in this order. Numbers are compared
as "a number", runs of blanks as one; `…` stands for anything, and a line of its own for any lines.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import queue
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import NamedTuple

from tests.support.basics import PATIENCE_S, PROJECT, has_ipv6, quiet_port

BLOCK = re.compile(r"^(?:<!-- (?P<note>.*?) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
PORTS = re.compile(r"\b(?:70\d\d|90\d\d|91\d\d)\b")  # the ports that pages use; a test takes free ones instead
NUMBER = re.compile(r"\d[\d.,]*")
BARS = re.compile(r"[█▉▊▋▌▍▎▏]+")
INTERRUPT = "^C"


class Block(NamedTuple):
    """One fenced block."""

    kind: str
    note: str
    text: str

    @property
    def runs(self) -> bool:
        """Whether it is to be run at all."""
        return self.kind in ("console", "python") and not self.note.startswith("not run: ")


class Command(NamedTuple):
    """One command of a terminal, and the lines that it prints."""

    text: str
    shown: list[str]


def blocks(path: pathlib.Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    return [Block(found["kind"], found["note"] or "", found["text"]) for found in BLOCK.finditer(path.read_text())]


def commands(text: str) -> list[Command]:
    """Split a terminal into its commands."""
    found: list[Command] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(Command(line[2:], []))
        elif line.startswith("> ") and found and not found[-1].shown:
            found[-1] = Command(f"{found[-1].text}\n{line[2:]}", [])
        else:
            assert found, f"a terminal begins with a command: {line}"
            found[-1].shown.append(line)
    return found


def plain(line: str) -> str:
    """Return a line with its numbers, bars and blanks made alike."""
    return " ".join(BARS.sub("#", NUMBER.sub("#", line)).split())


def matches(shown: str, printed: str) -> bool:
    """Tell whether a printed line is the one that the page shows."""
    pattern = ".*".join(re.escape(plain(part)) for part in shown.split("…"))
    return re.fullmatch(pattern, plain(printed)) is not None


def wanted(shown: list[str]) -> list[str]:
    """Return the lines that must be printed."""
    lines = [line for line in shown if line.strip() not in ("", "…")]
    return lines if has_ipv6() else [line for line in lines if "::1" not in line]


def missing(shown: list[str], printed: list[str]) -> str | None:
    """Return the first line that isn't printed after those before it, or None."""
    rest = iter(printed)
    for line in wanted(shown):
        if not any(matches(line, candidate) for candidate in rest):
            return line
    return None


class Running:
    """A command that runs until it is interrupted."""

    def __init__(self, text: str, folder: pathlib.Path, environment: dict[str, str]) -> None:
        self.text, self.printed = text, list[str]()
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec {text}"],
            cwd=folder, env=environment, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def expect(self, shown: list[str]) -> None:
        """Return once it has printed these lines."""
        for line in wanted(shown):
            while True:
                printed = self._lines.get(timeout=PATIENCE_S)
                assert printed is not None, f"{self.text} ended without {line!r}, after {self.printed}"
                self.printed.append(printed)
                if matches(line, printed):
                    break

    def interrupt(self, shown: list[str]) -> None:
        """Interrupt it, as ^C does. It must print these lines and end in order."""
        self._process.send_signal(signal.SIGINT)
        self.expect(shown)
        assert self._process.wait(PATIENCE_S) == 0, self.text

    def kill(self) -> None:
        """End it, whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        assert self._process.stdout
        self._process.stdout.close()


class Reader:
    """A reader of a page: tries its blocks in a folder and with ports of its own."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._ports: dict[str, str] = {}
        self._running: dict[str, Running] = {}
        programs = folder / ".bin"
        programs.mkdir()
        for name, arguments in {"python3": [], "python": [], "echo7": ["-m", "echo7"]}.items():
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, *arguments])} "$@"\n')
            program.chmod(0o755)
        self._environment = os.environ | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(PROJECT),
            "COLUMNS": "80",
        }

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        for running in self._running.values():
            running.kill()

    def try_block(self, block: Block) -> None:
        """Run a block as its note says."""
        text = PORTS.sub(lambda found: self._port(found[0]), block.text)
        if block.kind == "python":
            self._python(block.note, text)
        elif block.note.startswith("run as: "):
            [command] = commands(text)
            instead = PORTS.sub(lambda found: self._port(found[0]), block.note.removeprefix("run as: "))
            self._run(Command(instead, command.shown), 0)
        elif block.note == "keeps running":
            [command] = commands(text)
            running = self._running[command.text] = self._start(command.text)
            running.expect(command.shown)
        elif block.note == "same terminal":
            [command] = commands(text)
            self._interrupt(self._running.pop(command.text), command.shown)
        else:
            assert not block.note, f"an unknown note: {block.note}"
            self._terminal(text)

    def _port(self, shown: str) -> str:
        if shown not in self._ports:
            self._ports[shown] = str(quiet_port())
        return self._ports[shown]

    def _python(self, note: str, text: str) -> None:
        name = note.removeprefix("file: ") if note.startswith("file: ") else "block.py"
        assert note in ("", f"file: {name}"), f"an unknown note: {note}"
        (self._folder / name).write_text(text)
        if note:
            compile(text, name, "exec")
        else:
            self._run(Command(f"python3 {name}", []), 0)

    def _terminal(self, text: str) -> None:
        status = 0
        found = commands(text)
        for command, following in zip(found, [*found[1:], None], strict=True):
            asked_for = following is not None and following.text == "echo $?"
            status = self._run(command, status, may_fail=asked_for)

    def _start(self, text: str) -> Running:
        return Running(text, self._folder, self._environment)

    def _interrupt(self, running: Running, shown: list[str]) -> None:
        try:
            running.interrupt(shown[shown.index(INTERRUPT) + 1 :])
        finally:
            running.kill()

    def _run(self, command: Command, status: int, *, may_fail: bool = False) -> int:
        """Run a command after one that ended with `status`. Return its own."""
        if INTERRUPT in command.shown:
            running = self._start(command.text)
            try:
                running.expect(command.shown[: command.shown.index(INTERRUPT)])
            except BaseException:
                running.kill()
                raise
            self._interrupt(running, command.shown)
            return 0
        done = subprocess.run(
            ["bash", "-c", f"(exit {status})\n{command.text}"],
            cwd=self._folder, env=self._environment, text=True, timeout=3 * PATIENCE_S, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert may_fail or done.returncode == 0, f"{command.text}: exit status {done.returncode}\n{done.stdout}"
        line = missing(command.shown, done.stdout.splitlines())
        assert line is None, f"{command.text} doesn't print {line!r}, but\n{done.stdout}"
        return done.returncode


@contextlib.contextmanager
def reader() -> Iterator[Reader]:
    """A reader with an empty folder."""
    with tempfile.TemporaryDirectory() as folder, Reader(pathlib.Path(folder)) as found:
        yield found


def anchors(path: pathlib.Path) -> set[str]:
    """Return the names of a page's headings, as a link gives them after `#`."""
    names: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text()), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        names.add(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return names


def dead_links(path: pathlib.Path) -> list[str]:
    """Return the relative links of a page that lead nowhere."""
    found: list[str] = []
    for link in LINK.findall(FENCED.sub("", path.read_text())):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            found.append(link)
    return found
