"""Log lines on stderr that never block the service.

Law: writing a log line doesn't block and doesn't raise. When the reader of stderr has stopped or has gone, lines are
dropped and counted; the count is logged before the next line that finds room. A blocked write would stop the loop,
and with it every connection.

Clients can't fill the log either. The loop's warnings are limited by kind (`quiet.py`), and the next line says how many
were held back. Lines about drops are limited where they are logged (`drops.py`). Lines of level debug have no limit.

A pipe or terminal is opened anew for this, because O_NONBLOCK on the inherited descriptor would change it for every
process that shares it. Where stderr is a stream to the journal, each line begins with its priority (sd-daemon(3)).
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
# syslog(3)
PRIORITIES = {"CRITICAL": 2, "ERROR": 3, "WARNING": 4, "INFO": 6, "DEBUG": 7}
# PIPE_BUF on Linux: up to this size, a pipe takes all or nothing (pipe(7))
PIECE_BYTES = 4096


def event(logger: logging.Logger, level: int, name: str, text: str, **fields: object) -> None:
    """Log one event: `text` for people, `name` and `fields` as stable keys for machines."""
    logger.log(level, "%s", text, extra={"event": name, "fields": fields})


def set_up(level: str, form: str, worker: int | None = None, *, previous: bool = False) -> StderrHandler:
    """Send what `reactor` and `echo7` log to stderr, as text or JSON. Return the handler, which counts its drops.

    Several processes may write there, so the lines of a `worker` or a `previous` generation name it.
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


class Repeats(logging.Filter):
    """Holds back the loop's warnings that repeat too often; the next line of the kind says how many."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._quiet = Quiet()

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether to write the record."""
        if record.name != "reactor" or record.levelno < logging.WARNING:
            return True
        held_back = self._quiet.ask(getattr(record, "event", str(record.msg)), self._now())
        if held_back:
            record.held_back = held_back
        return held_back is not None


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00Z info listening on tcp 127.0.0.1:7`. Lines of other processes name the process."""

    def __init__(self, worker: int | None = None, previous: bool = False) -> None:
        super().__init__()
        name = "" if worker is None else f"worker {worker}: "
        self._origin = f"previous generation {os.getpid()}: " if previous else name

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback if there is one."""
        return f"{_timestamp(record)} {record.levelname.lower()} {self._origin}{_message(record)}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, message, and the event's own fields."""

    def __init__(self, worker: int | None = None, previous: bool = False) -> None:
        super().__init__()
        # Imported only for JSON, and now: later, there may be no descriptor left to read the module.
        import json

        self._dumps = json.dumps
        name = {"previous_generation": True} if previous else {} if worker is None else {"worker": worker}
        self._origin = name and name | {"pid": os.getpid()}

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
    """Writes to a descriptor without blocking. `dropped` counts the lines that found no room."""

    def __init__(self, descriptor: int = STDERR) -> None:
        super().__init__()
        self.dropped = 0
        self._unreported = 0
        self._torn = False
        self._write = _writer(descriptor)
        self._to_journal = is_journal(descriptor)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line. First log how many lines were dropped before it."""
        if self._unreported:
            text, count = "%d log lines were dropped", self._unreported
            if self._put(logging.LogRecord("echo7", logging.WARNING, "", 0, text, (count,), None)):
                self._unreported = 0
        if self._unreported or not self._put(record):
            self.dropped += 1
            self._unreported += 1

    def flush(self) -> None:
        """Let a courier write the lines that it has, for a moment."""
        if isinstance(self._write, Courier):
            self._write.finish()

    def _put(self, record: logging.LogRecord) -> bool:
        text = self._words(record)
        if self._to_journal:
            priority = f"<{PRIORITIES.get(record.levelname, PRIORITIES['INFO'])}>"
            text = priority + text.replace("\n", "\n" + priority)
        data = (text + "\n").encode("utf-8", "backslashreplace")
        # the last line was cut short: end it first
        if self._torn:
            data = b"\n" + data
        try:
            for start in range(0, len(data), PIECE_BYTES):
                piece = data[start : start + PIECE_BYTES]
                written = self._write(piece)
                self._torn = start + written < len(data) and (self._torn or start + written > 0)
                if written < len(piece):
                    return False
        # EAGAIN: full. EPIPE, EIO: there is no reader any more.
        except OSError:
            return False
        return True

    def _words(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record)
        # a callback may raise an exception with a repr that raises
        except Exception as error:
            text = f"cannot format a log record of {record.name} ({type(error).__name__}): {record.msg!r}"
            return self.format(logging.LogRecord(record.name, record.levelno, "", 0, text, None, None))


def is_journal(descriptor: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether a descriptor is the stream that systemd has opened to the journal (systemd.exec(5))."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _writer(descriptor: int) -> Callable[[bytes], int]:
    """Return a function that writes to `descriptor` at once or raises OSError."""
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return lambda data: 0
    # journald gives a service a socket
    if stat.S_ISSOCK(mode) and hasattr(socket, "MSG_DONTWAIT"):
        sock = socket.socket(fileno=os.dup(descriptor))
        return lambda data: sock.send(data, socket.MSG_DONTWAIT)
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            own = os.open(f"/dev/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        # another user's terminal; AttributeError: Windows has no such flags
        except (OSError, AttributeError):
            return Courier(descriptor)
        return lambda data: os.write(own, data)
    return lambda data: os.write(descriptor, data)


class Courier:
    """Writes to a descriptor that blocks and can't be opened anew, in a thread that may block instead of the loop.

    poll(2) isn't enough: it reports some room, but not how much.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        # the process that the thread is in
        self._pid = 0

    def __call__(self, data: bytes) -> int:
        """Take a piece to write; return 0 when too many pieces wait, or no thread can be started."""
        try:
            if self._pid != os.getpid():
                self._start()
            self._waiting.put_nowait(data)
        # RuntimeError: the limit of processes is reached; the next line tries again
        except (queue.Full, RuntimeError):
            return 0
        return len(data)

    def _start(self) -> None:
        """Start the thread; start it again in a forked child, which has a copy of the queue but no thread."""
        self._waiting: queue.Queue[bytes] = queue.Queue(COURIER_PIECES)
        threading.Thread(target=self._run, name="log courier", daemon=True).start()
        self._pid = os.getpid()

    def _run(self) -> None:
        while True:
            piece = self._waiting.get()
            # EPIPE, EIO: there is no reader any more
            with contextlib.suppress(OSError):
                os.write(self._descriptor, piece)
            self._waiting.task_done()

    def finish(self) -> None:
        """Let the last lines be written, but only for a moment: a stopped reader must not delay the end."""
        if self._pid == os.getpid():
            done = self._waiting.all_tasks_done
            with done:
                done.wait_for(lambda: not self._waiting.unfinished_tasks, COURIER_FAREWELL_S)


def _timestamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _message(record: logging.LogRecord) -> str:
    text = record.getMessage() + also(getattr(record, "held_back", 0))
    if record.exc_info:
        text += "\n" + logging.Formatter().formatException(record.exc_info)
    return text
