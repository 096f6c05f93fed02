"""JsonLines: a file of what a loop did, to be looked at later. It is an observer.

    with JsonLines.open("echo.jsonl") as sink, Reactor(observer=sink) as loop: …     python -m reactor.player echo.jsonl

Law: a file is whole after every turn: what the loop did before it slept is written before it sleeps. It is bounded. And
a disk that is full ends the trace, with one line in the log, and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import platform
import stat
from typing import Any, BinaryIO, Self

from reactor.observe.kinds import HEADER_KEYS
from reactor.observe.trace import FILES, Event

__all__ = ["JsonLines"]

FORMAT = 1
MOST_BYTES = 256 * 1024 * 1024
CHUNK_BYTES = 64 * 1024
HEADER = '{"trace": "reactor"'
BEGINNINGS = (HEADER.encode(), b'[\n{"name":"process_name"')  # of traces: ours, and Perfetto's
ENCODER = json.JSONEncoder(separators=(",", ":"), default=repr)  # made once: `json.dumps` would make one for each event

logger = logging.getLogger("reactor")


def open_file(path: str) -> BinaryIO:
    """Open a file anew, for a trace. Raise OSError, ValueError for a name that can't be one.

    A pipe is refused, as its reader could hold the loop up; and a file that is there already and is no trace, as it is
    somebody's.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "rb", opener=_waiting_for_nobody) as before:
        beginning = before.read(40) if stat.S_ISREG(os.fstat(before.fileno()).st_mode) else b""
        if beginning and not beginning.startswith(BEGINNINGS):
            raise OSError("it is there already, and is no trace: remove it first")
    file = open(path, "wb", buffering=0, opener=_private)  # noqa: SIM115 - the sink closes it
    kind = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISCHR(kind):
        file.close()
        raise OSError("it is no file, and a loop can't wait for who reads a pipe")
    if stat.S_ISREG(kind) and hasattr(os, "fchmod"):
        os.fchmod(file.fileno(), 0o600)  # whatever it was before: it tells who calls
    return file


def _private(path: str, flags: int) -> int:
    return _waiting_for_nobody(path, flags, 0o600)


def _waiting_for_nobody(path: str, flags: int, mode: int = 0) -> int:
    """Open without waiting for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), mode)


class Sink:
    """A file, as long as it can be written and has room. What is written waits in memory for `flush`."""

    __slots__ = ("_file", "_left_bytes", "_name", "_waiting")

    def __init__(self, file: BinaryIO, most_bytes: int) -> None:
        self._file: BinaryIO | None = file
        self._name = getattr(file, "name", "")
        self._left_bytes = most_bytes
        self._waiting = bytearray()

    def write(self, text: str) -> bool:
        """Write. Return False when there is no room for it: then it is time for the last words, to `close`."""
        data = text.encode()
        self._left_bytes -= len(data)
        if self._left_bytes >= 0:
            self._waiting += data
            if len(self._waiting) >= CHUNK_BYTES:
                self.flush()
        elif self._file is not None:
            extra = {"event": "trace_ends"}
            logger.warning("the trace %s is as long as it may be, and ends here", self._name, extra=extra)
            return False
        return True

    def flush(self) -> None:
        """Hand to the kernel what waits."""
        waiting, self._waiting = self._waiting, bytearray()
        try:
            while waiting and self._file is not None:
                taken: int | None = self._file.write(waiting)
                if taken is None:  # a terminal that nobody reads; what is left out would never be missed
                    raise OSError(errno.EAGAIN, "its reader is too slow")
                del waiting[:taken]
            if self._file is not None:
                self._file.flush()  # it may have a buffer of its own
        except OSError as error:
            text = f"the trace {self._name} can't be written, and ends here: {error.strerror}"
            logger.error(text, extra={"event": "trace_ends"})
            self._close()

    def close(self, last: str = "") -> None:
        """Write the last words, and no more. Harmless twice."""
        self._waiting += last.encode()
        self.flush()
        self._close()

    def leave(self) -> None:
        """In a child of fork(2): what waits is the parent's to write, and this copy of the file is closed."""
        self._waiting.clear()
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class JsonLines:
    """Writes each event as a line of JSON, after a header. `title` and `about` say what is to be seen, in the player.

    `clock` says what kind the loop's is ("monotonic", "simulated"). At `most_bytes` the trace ends, and says so in its
    last line.
    """

    __slots__ = ("_sink",)

    def __init__(
        self,
        file: BinaryIO,
        *,
        title: str = "",
        about: str = "",
        clock: str = "monotonic",
        most_bytes: int = MOST_BYTES,
    ) -> None:
        first = header_line(title, about, clock)
        self._sink = Sink(file, most_bytes + len(first))
        self._sink.write(first)

    @classmethod
    def open(cls, path: str, **options: Any) -> Self:
        """Return one that writes into a new file of that name. Raise OSError."""
        return cls(open_file(path), **options)

    def __call__(self, event: Event) -> None:
        """Write one event."""
        if not self._sink.write(_line(event)):
            reason = {"reason": "the file is as long as it may be"}
            self._sink.close(_line(event._replace(kind="ended", who="", line="", via=(), fields=reason)))
        if event.kind == "turn":
            self._sink.flush()

    def flush(self) -> None:
        """Write what waits."""
        self._sink.flush()

    def close(self) -> None:
        """Write what waits, and close the file. Harmless twice."""
        self._sink.close()

    def leave(self) -> None:
        """In a child of fork(2): leave the file to the parent."""
        self._sink.leave()

    def __enter__(self) -> Self:
        """Return the sink itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file, whatever happened."""
        self.close()


def header_line(title: str = "", about: str = "", clock: str = "monotonic") -> str:
    """Return the first line of a trace: what it is, and of which sources its lines are."""
    sources = {}
    for path, name in FILES.items():
        with contextlib.suppress(OSError), open(path, "rb") as source:  # there may be none: lines are numbers then
            sources[name] = fingerprint(source.read())
    values = ("reactor", FORMAT, title, about, clock, platform.python_version(), sources)
    return json.dumps(dict(zip(HEADER_KEYS, values, strict=True))) + "\n"


def fingerprint(source: bytes) -> str:
    """Return what tells one version of a source from another: the first 12 digits of its SHA-256."""
    return hashlib.sha256(source).hexdigest()[:12]


def _line(event: Event) -> str:
    return ENCODER.encode(event.document()) + "\n"
