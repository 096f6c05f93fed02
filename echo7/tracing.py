"""The observer of `echo7 serve --trace FILE` and `--narrate`.

Law: observing changes nothing. The narrator writes to the log, which never blocks, and drops lines when its reader is
slow. The file is bounded. After a restart, the previous generation leaves the file to the new one, which begins it
again. The file is opened after privileges are dropped, so root writes nothing for another user.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Self

from echo7.logs import log
from echo7.process import StartError
from reactor.observe.narrate import Narrator
from reactor.observe.perfetto import Perfetto
from reactor.observe.sinks import JsonLines

if TYPE_CHECKING:
    from reactor.observe.trace import Event, EventSink

logger = logging.getLogger("echo7")


class Tracing:
    """The observer of one loop that serves. It keeps the events that come before `open`."""

    def __init__(self, path: str | None, narrate: bool) -> None:
        self._path, self._narrate = path, narrate
        self._early: list[Event] = []
        self._observers: list[EventSink] = [self._early.append]
        self._sink: JsonLines | Perfetto | None = None

    def open(self) -> None:
        """Begin the file and the narration. Raise StartError."""
        self._observers = (
            [Narrator(functools.partial(log.event, logger, logging.INFO, "narration"))] if self._narrate else []
        )
        if self._path is not None:
            kind = Perfetto if self._path.endswith(".json") else JsonLines
            try:
                self._sink = kind.open(self._path)
            # ValueError: a NUL in the name
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise StartError(f"cannot write the trace {self._path}: {reason}; choose another --trace") from None
            self._observers.append(self._sink)
        early, self._early = self._early, []
        for event in early:
            self(event)

    def __call__(self, event: Event) -> None:
        """Pass an event to every observer."""
        for observer in self._observers:
            observer(event)

    def leave(self) -> None:
        """Leave the file to the parent, in a child of fork(2), and observe no more."""
        self._observers = []
        if self._sink is not None:
            self._sink.leave()

    def __enter__(self) -> Self:
        """Return the observer itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Write what is buffered, and close the file."""
        if self._sink is not None:
            self._sink.close()
