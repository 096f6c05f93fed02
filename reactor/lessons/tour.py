"""The tour of lesson 12: the ten files of `reactor`'s path, in reading order, and where you have met them.

Law: each file's own law is quoted from the file, never repeated here.
"""

from __future__ import annotations

import ast
from typing import NamedTuple

from reactor.lessons.subject import FOLDER

HOUSE = FOLDER.parent


class Stop(NamedTuple):
    """One file: which lesson has met it, and what it does that the lesson's own program doesn't."""

    file: str
    met: str
    better: str


TOUR: tuple[Stop, ...] = (
    Stop(
        "doors.py",
        "new: your servers made their own selector and read their own clock",
        "Selector, clock, network, signals and observer come in from outside, so a test can bring others.",
    ),
    Stop(
        "loop.py",
        "lesson 4's three lines, lesson 9's timers, lesson 11's calls",
        "A handler that was closed earlier in the same batch is skipped, a callback that raises is guarded, and when "
        "the kernel has no room to watch one more descriptor it is tried again.",
    ),
    Stop(
        "timers.py",
        "lesson 9's heap, lesson 10's `pop_due`",
        "A timer can be cancelled: it stays in the heap as an empty entry, and is swept out when most are such.",
    ),
    Stop(
        "buffer.py",
        "lesson 5's `waiting`",
        "The same bytearray, and the reason why taking from its front costs nothing. An idle connection has none.",
    ),
    Stop(
        "connection.py",
        "lessons 5, 6, 7 and 10; `StreamProtocol` is lesson 12's `Echo`",
        "In lessons 4 to 11 the service and the connection were one class. Here you write the service alone. "
        "Five states instead of three: HALF_CLOSED, as our side may finish first too, and LINGERING, so that no reset "
        "destroys the last answers. A protocol may pause reading, and learns when all has drained.",
    ),
    Stop(
        "listener.py",
        "`accept` in lessons 4 to 11",
        "Knows what each error of accept(2) means: of one client (skip it), of a system that is out of something "
        "(wait, while clients queue), of the socket itself (report it, and close). Lesson 11 died of the second.",
    ),
    Stop(
        "connector.py",
        "new: your servers never connected",
        "Connecting blocks as well. It is one more readiness: writable means that it has succeeded or failed.",
    ),
    Stop(
        "datagram.py",
        "lesson 8, bounded in lesson 10",
        "A datagram that doesn't fit into the kernel's buffer is held, one at the most; each that is dropped is "
        "counted, by reason; and on a machine with many addresses the answer comes from the one that was asked.",
    ),
    Stop(
        "signals.py",
        "lesson 11's socket pair",
        "A storm of signals is remembered once for each kind and fills nothing; what was set before is put back.",
    ),
    Stop(
        "limits.py",
        "lesson 6's high-water mark, lesson 10's bounds",
        "Every bound on one screen, with its unit in its name.",
    ),
)


def law(file: str) -> str:
    """Return the law of one of reactor's files: the paragraph of its docstring that begins with that word."""
    docstring = ast.get_docstring(ast.parse((HOUSE / file).read_text(encoding="utf-8"))) or ""
    return " ".join(next(part for part in docstring.split("\n\n") if part.startswith("Law")).split())
