"""JsonLines: writes a trace to a file, for the player.

    with JsonLines.open("echo.jsonl") as sink, Reactor(observer=Trace(sink)) as loop: …
    python -m reactor.player echo.jsonl

Law: the file is complete after every turn: events are written before the loop sleeps. It is bounded. A full disk ends
the trace with one log line, and the loop goes on.
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
PRIVATE_MODE = 0o600
WITHOUT_WAITING: int = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
WITHOUT_FOLLOWING: int = getattr(os, "O_NOFOLLOW", 0)
HEADER = '{"trace": "reactor"'
BEGINNINGS = (HEADER.encode(), b'[\n{"name":"process_name"')  # of trace files: JsonLines, Perfetto
ENCODER = json.JSONEncoder(separators=(",", ":"), default=repr)  # `json.dumps` would make one per event

logger = logging.getLogger("reactor")


def open_file(path: str) -> BinaryIO:
    """Open and empty a file for a trace. Raise OSError, ValueError for an impossible name.

    Raise OSError for an existing file that isn't a trace, and for what `own_file` refuses.
    """
    with contextlib.ExitStack() as on_error:
        file = on_error.enter_context(open(path, "r+b", buffering=0, opener=own_file))
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISREG(mode):
            beginning = file.read(40)
            if beginning and not beginning.startswith(BEGINNINGS):
                raise OSError("the file exists and isn't a trace: remove it first")
            file.seek(0)
            file.truncate()
            # It contains the clients' addresses. A restricted process may not change the mode.
            if stat.S_IMODE(mode) != PRIVATE_MODE and hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), PRIVATE_MODE)
        on_error.pop_all()
    return file


def own_file(path: str, flags: int) -> int:
    """Open a file that is ours, for `open(…, opener=own_file)`; make it if there is none. Raise OSError.

    Another user may have prepared the name so that root writes elsewhere. So a link or another user's file is refused;
    a pipe too, because a slow reader would block the loop. The checks look at the open file, not at its name, which may
    soon mean another one.
    """
    flags |= WITHOUT_WAITING | WITHOUT_FOLLOWING
    with contextlib.suppress(FileExistsError):
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, PRIVATE_MODE)
    try:
        descriptor = os.open(path, flags & ~os.O_CREAT)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError("it is a symbolic link: give the name of the file itself") from None
        raise
    why_not = _why_not_ours(os.fstat(descriptor))
    if why_not is not None:
        os.close(descriptor)
        raise OSError(why_not)
    return descriptor


def _why_not_ours(found: os.stat_result) -> str | None:
    if stat.S_ISCHR(found.st_mode):
        return None
    if not stat.S_ISREG(found.st_mode):
        return "it isn't a regular file, and a slow reader would block the loop: choose a file"
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        return "the file belongs to another user: remove it first"
    return "the file has a second name (a hard link): remove it first" if found.st_nlink > 1 else None


class Sink:
    """A buffered, bounded file. After an error or at its limit it takes no more."""

    __slots__ = ("_file", "_left_bytes", "_name", "_waiting")

    def __init__(self, file: BinaryIO, most_bytes: int) -> None:
        self._file: BinaryIO | None = file
        self._name = getattr(file, "name", "")
        self._left_bytes = most_bytes
        self._waiting = bytearray()

    def write(self, text: str) -> bool:
        """Write to the buffer. Return False if there is no room: then call `close`, with the last text."""
        data = text.encode()
        self._left_bytes -= len(data)
        if self._left_bytes >= 0:
            self._waiting += data
            if len(self._waiting) >= CHUNK_BYTES:
                self.flush()
        elif self._file is not None:
            logger.warning("trace ended: %s has reached its size limit", self._name, extra={"event": "trace_ends"})
            return False
        return True

    def flush(self) -> None:
        """Write the buffer to the file."""
        waiting, self._waiting = self._waiting, bytearray()
        try:
            while waiting and self._file is not None:
                taken: int | None = self._file.write(waiting)
                if taken is None:  # a terminal that isn't read
                    raise OSError(errno.EAGAIN, "its reader is too slow")
                del waiting[:taken]
            if self._file is not None:
                self._file.flush()  # it may have its own buffer
        except OSError as error:
            text = f"trace ended: can't write {self._name}: {error.strerror}"
            logger.error(text, extra={"event": "trace_ends"})
            self._close()

    def close(self, last: str = "") -> None:
        """Write the last text and close the file. A second call does nothing."""
        self._waiting += last.encode()
        self.flush()
        self._close()

    def leave(self) -> None:
        """Close a forked child's copy of the file. The parent writes the buffer."""
        self._waiting.clear()
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class TraceFile:
    """Owns a Sink: what JsonLines and Perfetto have in common."""

    __slots__ = ("_sink",)

    def __init__(self, file: BinaryIO, most_bytes: int) -> None:
        self._sink = Sink(file, most_bytes)

    @classmethod
    def open(cls, path: str, **options: Any) -> Self:
        """Return one that writes to a new file. Raise OSError."""
        return cls(open_file(path), **options)

    def close(self) -> None:
        """Write the buffer and close the file. A second call does nothing."""
        self._sink.close()

    def leave(self) -> None:
        """Leave the file to the parent, in a forked child."""
        self._sink.leave()

    def __enter__(self) -> Self:
        """Return the sink itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self.close()


class JsonLines(TraceFile):
    """Writes each event as a line of JSON, after a header. The player shows `title` and `about`.

    `clock` is the kind of the loop's clock ("monotonic", "simulated"). The trace ends at `most_bytes`, with a last line
    that says so.
    """

    __slots__ = ()

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
        super().__init__(file, most_bytes + len(first))
        self._sink.write(first)

    def __call__(self, event: Event) -> None:
        """Write one event."""
        if not self._sink.write(_line(event)):
            reason = {"reason": "the file has reached its size limit"}
            self._sink.close(_line(event._replace(kind="ended", who="", line="", via=(), fields=reason)))
        if event.kind == "turn":
            self._sink.flush()

    def flush(self) -> None:
        """Write the buffer to the file."""
        self._sink.flush()


def header_line(title: str = "", about: str = "", clock: str = "monotonic") -> str:
    """Return the first line of a trace: its format, title and the versions of the traced sources."""
    sources = {}
    for path, name in FILES.items():
        with contextlib.suppress(OSError), open(path, "rb") as source:  # a zipped package has no files
            sources[name] = fingerprint(source.read())
    values = ("reactor", FORMAT, title, about, clock, platform.python_version(), sources)
    return json.dumps(dict(zip(HEADER_KEYS, values, strict=True))) + "\n"


def fingerprint(source: bytes) -> str:
    """Return the first 12 digits of a source's SHA-256, which identify its version."""
    return hashlib.sha256(source).hexdigest()[:12]


def _line(event: Event) -> str:
    return ENCODER.encode(event.document()) + "\n"
