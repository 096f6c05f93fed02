"""Log lines on stderr that can never hold the service up.

Law: writing a log line doesn't block and doesn't raise. If whoever reads stderr has stopped, or has gone, lines are
dropped and counted, and the count is logged before the next line that finds room. A blocked write would stop the loop,
and with it every connection: the reader of a log must not be able to do that.

Nor must whoever calls us be able to fill it. Of what the loop warns of, each kind is limited (`quiet.py`), and the next
line says how many were held back; who gets no answer is limited where it is logged (`drops.py`). `debug` tells all.

A pipe or terminal is opened anew for this, as setting O_NONBLOCK on the inherited descriptor would change it for
every process that shares it.

Where stderr is the journal's, each line begins with its priority, which journald takes off again (sd-daemon(3)).
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import stat
import threading
import time
from collections.abc import Callable, Mapping

from echo7.logs.quiet import Quiet, also

STDERR = 2
COURIER_PIECES = 256
COURIER_FAREWELL_S = 0.5
PRIORITIES = {"CRITICAL": 2, "ERROR": 3, "WARNING": 4, "INFO": 6, "DEBUG": 7}  # syslog(3)
PIECE_BYTES = 4096  # PIPE_BUF on Linux: up to this, a pipe takes all or nothing (pipe(7))


def event(logger: logging.Logger, level: int, name: str, text: str, **fields: object) -> None:
    """Log one event: `text` for people, `name` and `fields` as stable keys for machines."""
    logger.log(level, "%s", text, extra={"event": name, "fields": fields})


def set_up(level: str, form: str, worker: int | None = None, *, previous: bool = False) -> StderrHandler:
    """Send what `reactor` and `echo7` log to stderr, as text or JSON. Return the handler, which counts its drops.

    Several processes may write there; the lines of a `worker` say which one it is, and those of a `previous` generation
    that it is one.
    """
    handler = StderrHandler()
    handler.setFormatter(JsonFormatter(worker, previous) if form == "json" else TextFormatter(worker, previous))
    handler.addFilter(Repeats())
    for name in ("reactor", "echo7"):
        logger = logging.getLogger(name)
        logger.setLevel(level.upper())
        logger.handlers[:] = [handler]
        logger.propagate = False
    return handler


def ensure_standard_descriptors() -> None:
    """Open /dev/null in place of standard descriptors that the parent has closed.

    Otherwise the first socket would get number 2, and the next log line would go to a caller.
    """
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > STDERR:
            os.close(descriptor)
            return


class Repeats(logging.Filter):
    """Holds back what the loop warns of when it does so too often, and has the next line of the kind say how many."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._quiet = Quiet()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is to be written."""
        if record.name != "reactor" or record.levelno < logging.WARNING:
            return True
        held_back = self._quiet.ask(getattr(record, "event", str(record.msg)), self._now())
        if held_back:
            record.held_back = held_back
        return held_back is not None


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00Z info listening on tcp 127.0.0.1:7`."""

    def __init__(self, worker: int | None = None, previous: bool = False) -> None:
        super().__init__()
        whose = "" if worker is None else f"worker {worker}: "
        self._origin = f"previous generation {os.getpid()}: " if previous else whose

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback if there is one."""
        return f"{_timestamp(record)} {record.levelname.lower()} {self._origin}{_message(record)}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, message, and the event's own fields; other processes' say whose."""

    def __init__(self, worker: int | None = None, previous: bool = False) -> None:
        super().__init__()
        import json  # whoever logs text doesn't wait for it; and now, as later there may be no descriptor to read it

        self._dumps = json.dumps
        whose = {"previous_generation": True} if previous else {} if worker is None else {"worker": worker}
        self._origin = whose and whose | {"pid": os.getpid()}

    def format(self, record: logging.LogRecord) -> str:
        """Return the object as one line of ASCII."""
        document: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
            "message": _message(record),
        }
        held_back = {"held_back": record.held_back} if hasattr(record, "held_back") else {}
        return self._dumps(document | self._origin | held_back | getattr(record, "fields", {}), default=str)


class StderrHandler(logging.Handler):
    """Writes to a descriptor without ever blocking. `dropped` counts the lines that found no room."""

    def __init__(self, descriptor: int = STDERR) -> None:
        super().__init__()
        self.dropped = 0
        self._unreported = 0
        self._torn = False
        self._write = _writer(descriptor)
        self._to_journal = is_journal(descriptor)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, after saying how many were dropped before it."""
        if self._unreported:
            note = logging.LogRecord(
                "echo7", logging.WARNING, "", 0, "%d log lines were dropped", (self._unreported,), None
            )
            if not self._put(note):
                self._drop()
                return
            self._unreported = 0
        if not self._put(record):
            self._drop()

    def flush(self) -> None:
        """Give lines that a courier still has a moment to get out."""
        if isinstance(self._write, Courier):
            self._write.finish()

    def _drop(self) -> None:
        self.dropped += 1
        self._unreported += 1

    def _put(self, record: logging.LogRecord) -> bool:
        text = self._words(record)
        if self._to_journal:
            priority = f"<{PRIORITIES.get(record.levelname, PRIORITIES['INFO'])}>"
            text = priority + text.replace("\n", "\n" + priority)
        data = (text + "\n").encode("utf-8", "backslashreplace")
        if self._torn:  # the last line was cut short: end it first
            data = b"\n" + data
        try:
            for start in range(0, len(data), PIECE_BYTES):
                piece = data[start : start + PIECE_BYTES]
                written = self._write(piece)
                self._torn = start + written < len(data) and (self._torn or start + written > 0)
                if written < len(piece):
                    return False
        except OSError:  # EAGAIN: full. EPIPE, EIO: nobody reads any more
            return False
        return True

    def _words(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record)
        except Exception as error:  # a callback may raise something whose own repr raises
            text = f"a log record of {record.name} can't be put into words ({type(error).__name__}): {record.msg!r}"
            return self.format(logging.LogRecord(record.name, record.levelno, "", 0, text, None, None))


def is_journal(descriptor: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether a descriptor is the stream that systemd has opened to the journal (systemd.exec(5))."""
    wanted = environment.get("JOURNAL_STREAM")
    if wanted is None:
        return False
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return wanted == f"{found.st_dev}:{found.st_ino}"


def _writer(descriptor: int) -> Callable[[bytes], int]:
    """Return a function that writes to `descriptor` at once or raises OSError."""
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return _discard
    if stat.S_ISSOCK(mode) and hasattr(socket, "MSG_DONTWAIT"):  # journald gives a service one
        sock = socket.socket(fileno=os.dup(descriptor))
        return lambda data: sock.send(data, socket.MSG_DONTWAIT)
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            own = os.open(f"/dev/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except (OSError, AttributeError):  # another user's terminal; or Windows, which has no such names
            return Courier(descriptor)
        return lambda data: os.write(own, data)
    return lambda data: os.write(descriptor, data)


class Courier:
    """Writes to a descriptor that blocks and can't be opened anew, in a thread that may be held up instead of the loop.

    poll(2) wouldn't do: it tells of some room, not of how much.
    """

    def __init__(self, descriptor: int) -> None:
        self._waiting: queue.Queue[bytes] = queue.Queue(COURIER_PIECES)
        self._descriptor = descriptor
        threading.Thread(target=self._run, name="log courier", daemon=True).start()

    def __call__(self, data: bytes) -> int:
        """Take a piece to be written; 0 when too many wait."""
        try:
            self._waiting.put_nowait(data)
        except queue.Full:
            return 0
        return len(data)

    def _run(self) -> None:
        while True:
            piece = self._waiting.get()
            with contextlib.suppress(OSError):  # EPIPE, EIO: nobody reads any more
                os.write(self._descriptor, piece)
            self._waiting.task_done()

    def finish(self) -> None:
        """Give the last lines a moment, but no more: whoever holds them up must not hold up the end."""
        done = threading.Thread(target=self._waiting.join, daemon=True)
        done.start()
        done.join(COURIER_FAREWELL_S)


def _discard(data: bytes) -> int:
    return 0


def _timestamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _message(record: logging.LogRecord) -> str:
    text = record.getMessage() + also(getattr(record, "held_back", 0))
    if record.exc_info:
        text += "\n" + logging.Formatter().formatException(record.exc_info)
    return text
