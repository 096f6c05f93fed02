"""The tour of lesson 12: the ten files of `reactor` in reading order, and which lesson prepares each.

Law: each file's own law is quoted from the file, never repeated here.
"""

from __future__ import annotations

import ast
from typing import NamedTuple

from reactor.lessons.subject import FOLDER

HOUSE = FOLDER.parent


class Stop(NamedTuple):
    """One file: which lesson prepares it, and what it does better than the lesson's program."""

    file: str
    met: str
    better: str


TOUR: tuple[Stop, ...] = (
    Stop("handler.py", "lesson 4's objects with `on_event`",
         "It says in one place what the loop needs: a descriptor, an interest, and a flag for stale events."),
    Stop("loop.py", "lesson 4's three lines, lesson 9's timers, lesson 11's calls",
         "It skips a handler that was closed earlier in the same batch, and catches what a callback raises. Selector, "
         "clock, sockets, signals and observer come in from outside, so a test can replace them."),
    Stop("timers.py", "lesson 9's heap, lesson 10's `pop_due`",
         "A timer can be cancelled: it stays in the heap as an empty entry. When most entries are empty, they are "
         "swept out."),
    Stop("buffer.py", "lesson 5's `waiting`",
         "The same bytearray, and the reason why taking from its front costs nothing. An idle connection has none."),
    Stop("connection.py", "lessons 5, 6, 7 and 10; `StreamProtocol` is lesson 12's `Echo`",
         "In lessons 4 to 11 the service and the connection were one class. Here you write the service alone. "
         "There are five states instead of three: HALF_CLOSED, because our side may finish first, and LINGERING, so "
         "that no reset destroys the last answers. A protocol may pause reading, and learns when the buffer is empty."),
    Stop("listener.py", "`accept` in lessons 4 to 11",
         "It knows what each error of accept(2) means: one client failed (skip it), the system is short of something "
         "(wait, while clients queue), or the socket is broken (report it, and close). A shortage ended the "
         "server of lesson 11."),
    Stop("connector.py", "new: your servers never connected",
         "Connecting blocks too. It is one more readiness: writable means that it has succeeded or failed."),
    Stop("datagram.py", "lesson 8, bounded in lesson 10",
         "It holds one datagram at most that doesn't fit into the kernel's buffer, and counts each dropped one by "
         "its reason. On a machine with many addresses, the answer comes from the address that was asked."),
    Stop("signals.py", "lesson 11's socket pair",
         "A storm of signals is remembered once for each kind and fills no buffer. On close, the earlier signal "
         "handlers are restored."),
    Stop("limits.py", "lesson 6's high-water mark, lesson 10's bounds",
         "Every bound on one screen, with its unit in its name."),
)  # fmt: skip


def law(file: str) -> str:
    """Return the law of one of reactor's files: the paragraph of its docstring that begins with that word."""
    docstring = ast.get_docstring(ast.parse((HOUSE / file).read_text(encoding="utf-8"))) or ""
    return " ".join(next(part for part in docstring.split("\n\n") if part.startswith("Law")).split())
