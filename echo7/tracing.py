"""What `echo7 serve --trace FILE` and `--narrate` show: the loop, as it turns.

Law: whoever looks changes nothing. The narrator goes through the log, which never waits for its reader and drops lines
before it does; the file is bounded; and after a fresh start the process that goes on with the callers leaves the file
to the new one, which begins it anew.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Self

from echo7.logs import log
from echo7.process import StartError, is_root
from reactor.observe.narrate import Narrator
from reactor.observe.perfetto import Perfetto
from reactor.observe.sinks import JsonLines

if TYPE_CHECKING:
    from echo7.process.privileges import Identity
    from reactor.observe.trace import Event, EventSink

logger = logging.getLogger("echo7")


class Tracing:
    """The observer of one loop that serves. What it is told before `open` waits for that."""

    def __init__(self, path: str | None, narrate: bool, user: Identity | None = None) -> None:
        self._path, self._narrate, self._user = path, narrate, user
        self._early: list[Event] = []
        self._observers: list[EventSink] = [self._early.append]
        self._sink: JsonLines | Perfetto | None = None

    def open(self) -> None:
        """Begin the file, and to narrate. Raise StartError."""
        self._observers = [Narrator(_say)] if self._narrate else []
        if self._path is not None:
            kind = Perfetto if self._path.endswith(".json") else JsonLines
            try:
                self._sink = kind.open(self._path)
                if self._user is not None and is_root() and os.path.isfile(self._path):  # /dev/null stays root's
                    # It is the user who begins it anew after a fresh start.
                    os.chown(self._path, self._user.user_id, self._user.group_id)
            except (OSError, ValueError) as error:  # a name with a zero byte in it
                reason = getattr(error, "strerror", None) or error
                raise StartError(f"cannot write the trace {self._path}: {reason}; choose another --trace") from None
            self._observers.append(self._sink)
        early, self._early = self._early, []
        for event in early:
            self(event)

    def __call__(self, event: Event) -> None:
        """Hand an event on."""
        for observer in self._observers:
            observer(event)

    def leave(self) -> None:
        """In a child of fork(2): leave the file to the parent, and say nothing more."""
        self._observers = []
        if self._sink is not None:
            self._sink.leave()

    def __enter__(self) -> Self:
        """Return the observer itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Write what waits, and close the file."""
        if self._sink is not None:
            self._sink.close()


def _say(text: str) -> None:
    log.event(logger, logging.INFO, "narration", text)
