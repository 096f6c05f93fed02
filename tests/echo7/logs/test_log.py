"""A log line never blocks, never raises, and never reaches a client, for any kind of stderr."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import pty
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import tty
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from echo7.logs import log
from echo7.logs.log import COURIER_PIECES, Courier
from echo7.process.child import forked
from tests.support.basics import PATIENCE_S, PROJECT, quiet_port
from tests.support.clients import receive_exactly
from tests.support.daemon import MEASURED
from tests.support.root import without_capabilities

NOBODY = 65_534
ROUNDS = 40  # of SIGUSR1, each a line of about 300 bytes
SMALL_PIPE_BYTES = 4096
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pipe sizes and /dev/full are Linux's")

texts = st.text(st.characters(), max_size=200)  # every code point, controls and lone surrogates included
values = st.one_of(st.none(), st.booleans(), st.integers(), texts)


# ---------------------------------------------------------------- records and formatters


def record_of(
    message: str, level: int = logging.INFO, error: BaseException | None = None, **extra: Any
) -> logging.LogRecord:
    exc_info = (type(error), error, error.__traceback__) if error is not None else None
    record = logging.LogRecord("echo7", level, "", 0, "%s", (message,), exc_info)
    vars(record).update(extra)
    return record


def raised(error: Exception) -> Exception:
    """The same exception, with a traceback."""
    try:
        raise error
    except Exception as caught:
        return caught


class Unprintable(Exception):
    """An exception that can't be formatted."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")

    __str__ = __repr__


@given(texts, st.dictionaries(st.text(st.characters(codec="ascii"), min_size=1, max_size=8), values, max_size=4))
@example("line\nfeed \r\x85\u2028\x1b[31m \ud800 \x00", {})
def test_any_record_is_one_json_line(message: str, fields: dict[str, Any]) -> None:
    """Issue: "`--log-format text|json`": one object a line, so no character in it may end the line or the object."""
    record = record_of(message, event="name", fields={f"x_{name}": value for name, value in fields.items()})
    line = log.JsonFormatter().format(record)
    assert line.isascii()
    assert line.isprintable()
    document = json.loads(line)
    assert (document["message"], document["event"], document["level"]) == (message, "name", "info")
    assert {name: document[f"x_{name}"] for name in fields} == fields


@given(texts)
def test_traceback_stays_on_its_json_line(message: str) -> None:
    """Promise 17: "one traceback logged"; it has many lines, but the JSON log has one."""
    line = log.JsonFormatter().format(record_of("failed", logging.ERROR, raised(ValueError(message))))
    assert line.isprintable()
    text = json.loads(line)["message"]
    assert text.startswith("failed\nTraceback (most recent call last):\n")
    assert "ValueError" in text


def test_text_line_has_time_level_and_message_with_the_traceback_below() -> None:
    """`2026-01-31T12:00:00Z info listening on tcp 127.0.0.1:7`, in UTC."""
    record = record_of("it is so", logging.WARNING)
    record.created, record.msecs = 1_769_860_800.25, 250.0
    assert log.TextFormatter().format(record) == "2026-01-31T12:00:00.250Z warning it is so"
    first, second, *_, last = log.TextFormatter().format(record_of("failed", error=raised(KeyError("k")))).splitlines()
    assert first.endswith(" info failed")
    assert second == "Traceback (most recent call last):"
    assert last == "KeyError: 'k'"


def test_both_formats_have_the_same_time() -> None:
    """Two logs can be compared line by line."""
    record = record_of("x")
    assert log.TextFormatter().format(record).split()[0] == json.loads(log.JsonFormatter().format(record))["time"]


@pytest.mark.parametrize("text", ["100%", "%s %d %(name)s", "{}"])
def test_text_of_an_event_is_not_a_format(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """An address with a scope has a percent sign (fe80::1%eth0), which isn't a format."""
    log.event(logging.getLogger("tests.echo7.log"), logging.ERROR, "name", text, key=1)
    (record,) = caplog.records
    assert record.getMessage() == text
    assert (vars(record)["event"], vars(record)["fields"]) == ("name", {"key": 1})


@pytest.fixture
def loggers() -> Iterator[list[logging.Logger]]:
    """The two loggers, restored afterwards."""
    both = [logging.getLogger(name) for name in ("reactor", "echo7")]
    before = [(logger.level, logger.handlers[:], logger.propagate) for logger in both]
    yield both
    for logger, (level, handlers, propagate) in zip(both, before, strict=True):
        logger.level, logger.handlers[:], logger.propagate = level, handlers, propagate


@pytest.mark.parametrize(("form", "formatter"), [("json", log.JsonFormatter), ("text", log.TextFormatter)])
def test_second_set_up_replaces_the_first(loggers: list[logging.Logger], form: str, formatter: type) -> None:
    """A line must not be written twice."""
    log.set_up("info", form)
    handler = log.set_up("warning", form)
    for logger in loggers:
        assert logger.handlers == [handler]
        assert logger.level == logging.WARNING
        assert not logger.propagate
    assert isinstance(handler.formatter, formatter)


# ---------------------------------------------------------------- the handler, by itself


@contextlib.contextmanager
def small_pipe() -> Iterator[tuple[int, log.StderrHandler]]:
    """A handler on a pipe that takes one page, and the pipe's other end."""
    reading, writing = os.pipe()
    try:
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, SMALL_PIPE_BYTES)
        handler = log.StderrHandler(writing)
        handler.setFormatter(log.JsonFormatter())
        yield reading, handler
    finally:
        os.close(reading)
        os.close(writing)


def waiting_text(descriptor: int) -> str:
    """What is in the pipe now."""
    text = bytearray()
    while select.select([descriptor], [], [], 0)[0]:
        piece = os.read(descriptor, 1 << 16)
        if not piece:
            break
        text += piece
    return text.decode()


def waiting_lines(descriptor: int) -> list[str]:
    """The same as lines."""
    return waiting_text(descriptor).splitlines()


def fill_up(handler: log.StderrHandler) -> int:
    """Log until there is no room; return how many lines there were, the one that was dropped included."""
    count = 0
    while not handler.dropped:
        handler.handle(record_of(f"line {count}"))
        count += 1
    return count


def test_full_pipe_drops_and_counts_lines_and_reports_them_when_there_is_room() -> None:
    """Promise 21: "lines that had to be dropped are counted"."""
    with small_pipe() as (reading, handler):
        written = fill_up(handler) - 1
        for _ in range(9):
            handler.handle(record_of("into the void"))
        assert handler.dropped == 10
        lines = waiting_lines(reading)
        assert [json.loads(line)["message"] for line in lines] == [f"line {number}" for number in range(written)]
        for text in ("afterwards", "and again"):
            handler.handle(record_of(text))
        messages = [json.loads(line)["message"] for line in waiting_lines(reading)]
        assert messages == ["10 log lines were dropped", "afterwards", "and again"]
        assert handler.dropped == 10


@given(st.lists(st.one_of(st.just("read"), texts), max_size=60))
def test_every_line_is_either_read_or_counted(steps: list[str]) -> None:
    """For any order of reads and writes, lines read plus lines reported as dropped are the lines logged."""
    with small_pipe() as (reading, handler):
        lines, logged = [], 0
        for step in [*steps, "read"]:
            if step == "read":
                lines += waiting_lines(reading)
            else:
                handler.handle(record_of(step, event="mine"))
                logged += 1
        handler.handle(record_of("last", event="mine"))
        lines += waiting_lines(reading)
        documents = [json.loads(line) for line in lines]
        mine = sum(document["event"] == "mine" for document in documents)
        reported = sum(int(d["message"].split()[0]) for d in documents if d["message"].endswith("lines were dropped"))
        assert reported == handler.dropped
        assert mine + handler.dropped == logged + 1


@linux_only
def test_line_after_a_cut_line_is_whole() -> None:
    """Story: of a long line the first piece fitted, the second didn't, and the next line was glued to it."""
    with small_pipe() as (reading, handler):
        handler.handle(record_of("long" * SMALL_PIPE_BYTES))
        text = waiting_text(reading)
        handler.handle(record_of("next"))
        text += waiting_text(reading)
        assert json.loads(text.splitlines()[-1])["message"] == "next"
        assert "1 log lines were dropped" in [json.loads(line)["message"] for line in text.splitlines()[1:]]


def test_reader_that_has_gone_costs_only_lines() -> None:
    """EPIPE doesn't concern the service."""
    reading, writing = os.pipe()
    handler = log.StderrHandler(writing)
    os.close(reading)
    for _ in range(3):
        handler.handle(record_of("a line without a reader"))
    os.close(writing)
    assert handler.dropped == 3


def test_closed_descriptor_costs_only_lines() -> None:
    """A handler on a closed descriptor counts; it neither raises nor writes elsewhere."""
    reading, writing = os.pipe()
    os.close(writing)
    handler = log.StderrHandler(writing)
    handler.handle(record_of("nowhere"))
    os.close(reading)
    assert handler.dropped == 1


def test_record_that_cannot_be_formatted_does_not_raise() -> None:
    """Law: "writing a log line doesn't block and doesn't raise". Story: the exception of a callback had a `__repr__`
    that raised; logging it raised again, inside the loop, and ended the loop.
    """
    with small_pipe() as (reading, handler):
        handler.handle(logging.LogRecord("reactor", logging.ERROR, "", 0, "raised %r", (Unprintable(),), None))
        handler.handle(logging.LogRecord("reactor", logging.ERROR, "", 0, "%d", ("no number",), None))
        handler.handle(record_of("odd", fields={"error": Unprintable()}))
        handler.handle(record_of("the log goes on"))
        assert json.loads(waiting_lines(reading)[-1])["message"] == "the log goes on"


def test_lone_surrogates_in_text_are_escaped() -> None:
    """A host name that isn't UTF-8 reaches the log as a lone surrogate, which can't be encoded."""
    with small_pipe() as (reading, handler):
        handler.setFormatter(log.TextFormatter())
        handler.handle(record_of("name \udcff"))
        (line,) = waiting_lines(reading)
        assert line.endswith(" name \\udcff")


def test_inherited_pipe_stays_blocking() -> None:
    """Setting O_NONBLOCK on an inherited descriptor "would change it for every process that shares it"."""
    reading, writing = os.pipe()
    handler = log.StderrHandler(writing)
    handler.handle(record_of("x"))
    assert os.get_blocking(writing)
    os.close(reading)
    os.close(writing)


# ---------------------------------------------------------------- the service, with each kind of stderr


class Logging:
    """`echo7 serve` with a stderr that the test makes; `client` is a connection to `port` that stays open."""

    def __init__(self, stderr: int, prefix: Sequence[str] = (), port: int = 0, form: str = "json") -> None:
        arguments = ["serve", *MEASURED, "--host", "127.0.0.1", "--port", str(port), "--log-format", form]
        command = [*prefix, sys.executable, "-m", "echo7", *arguments]
        self.process = subprocess.Popen(command, cwd=PROJECT, stderr=stderr)
        self.port = port
        self.client: socket.socket

    def __enter__(self) -> Logging:
        return self

    def __exit__(self, *exception: object) -> None:
        if hasattr(self, "client"):
            self.client.close()
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def connect(self) -> None:
        """Connect, and retry until the service is up; its answer shows that its signal handlers are installed."""
        for _ in range(int(PATIENCE_S / 0.01)):
            with contextlib.suppress(ConnectionRefusedError):
                self.client = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)
                self.ping()
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.01)
                break
        raise AssertionError(f"nobody serves port {self.port}; exit status {self.process.poll()}")

    def ping(self) -> None:
        """Exchange one echo, which shows that nothing has blocked."""
        self.client.sendall(b"still there?")
        assert receive_exactly(self.client, 12) == b"still there?"

    def log_a_lot(self) -> None:
        """Make it log, and check each time that it still serves."""
        for _ in range(ROUNDS):
            self.process.send_signal(signal.SIGUSR1)
            self.ping()
        for _ in range(3):  # a signal is handled at the end of the turn after it has come
            self.ping()

    def end(self) -> int:
        """Close the connection, stop the service, and return its exit status."""
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


class Reader:
    """Reads JSON lines from a descriptor. It skips a line that was cut short."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._text = b""

    def until(self, event: str, transport: str | None = None) -> list[dict[str, Any]]:
        """Read up to a line of this event, and return the lines."""
        lines = self._read(PATIENCE_S)
        while not lines or lines[-1]["event"] != event or lines[-1].get("transport") != transport:
            lines += self._read(PATIENCE_S)
        return lines

    def read_while(self, act: Callable[[], object], key: str) -> list[dict[str, Any]]:
        """Act and read by turns, until a line has a value under this key; return the lines."""
        lines: list[dict[str, Any]] = []
        for _ in range(int(PATIENCE_S / 0.01)):
            act()
            lines += self._read(0.01)
            if any(line.get(key) for line in lines):
                return lines
        raise AssertionError(f"no {key!r} in {lines}")

    def _read(self, timeout_s: float) -> list[dict[str, Any]]:
        """Read once; return the lines that are complete now. Fail if nothing comes for long."""
        if not select.select([self._descriptor], [], [], timeout_s)[0]:
            assert timeout_s < PATIENCE_S, "no more lines"
            return []
        *complete, self._text = (self._text + os.read(self._descriptor, 1 << 16)).split(b"\n")
        lines = []
        for line in complete:
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
        return lines


def start(service: Logging, reader: Reader) -> None:
    """Read the start-up lines and connect."""
    service.port = reader.until("listening", "udp")[-1]["port"]
    service.connect()


@contextlib.contextmanager
def pipe_ends() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    with contextlib.closing(os.fdopen(reading, "rb", 0)), contextlib.closing(os.fdopen(writing, "wb", 0)):
        yield reading, writing


@contextlib.contextmanager
def terminal_ends() -> Iterator[tuple[int, int]]:
    reading, writing = pty.openpty()
    tty.setraw(writing)
    with contextlib.closing(os.fdopen(reading, "rb", 0)), contextlib.closing(os.fdopen(writing, "wb", 0)):
        yield reading, writing


@contextlib.contextmanager
def socket_ends() -> Iterator[tuple[int, int]]:
    reading, writing = socket.socketpair()
    with reading, writing:
        writing.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_PIPE_BYTES)
        yield reading.fileno(), writing.fileno()


Ends = Callable[[], contextlib.AbstractContextManager[tuple[int, int]]]
KINDS = {"pipe": pipe_ends, "terminal": terminal_ends, "socket": socket_ends}
every_kind = pytest.mark.parametrize("ends", KINDS.values(), ids=KINDS.keys())


def fill_stderr(writing: int) -> None:
    """Fill it, through a separate open file description if possible, so that flags don't change."""
    if stat.S_ISSOCK(os.fstat(writing).st_mode):
        with socket.socket(fileno=os.dup(writing)) as sock, contextlib.suppress(BlockingIOError):
            while True:
                sock.send(b" " * 512, socket.MSG_DONTWAIT)
        return
    own = os.open(f"/dev/fd/{writing}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while os.write(own, b" " * size):
                pass
    os.close(own)


@every_kind
def test_unread_stderr_never_blocks_the_service(ends: Ends) -> None:
    """Promise 21: "A closed or unread stderr (a full pipe) never blocks or ends the service; lines that had to be
    dropped are counted".
    """
    with ends() as (reading, writing), Logging(writing) as service:
        reader = Reader(reading)
        start(service, reader)
        fill_stderr(writing)
        service.log_a_lot()
        lines = reader.read_while(lambda: service.process.send_signal(signal.SIGUSR1), "log_lines_dropped")
        assert service.end() == 0
        lines += reader.until("stopped")
        notes = [re.fullmatch(r"(\d+) log lines were dropped", line.get("message", "")) for line in lines]
        assert sum(int(note[1]) for note in notes if note) == lines[-1]["log_lines_dropped"]


somebody_elses = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.getuid() != 0, reason="only root can change the owner of a descriptor"
)


@contextlib.contextmanager
def logging_to_somebody_else(ends: Ends) -> Iterator[tuple[Logging, Reader, tuple[int, int]]]:
    """A service whose stderr belongs to another user, so that it can't be reopened."""
    with ends() as (reading, writing):
        os.fchown(writing, NOBODY, NOBODY)
        os.fchmod(writing, 0o600)
        with Logging(writing, without_capabilities("dac_override", "dac_read_search")) as service:
            reader = Reader(reading)
            start(service, reader)
            yield service, reader, (reading, writing)


@somebody_elses
@pytest.mark.parametrize("ends", [pipe_ends, terminal_ends], ids=["pipe", "terminal"])
def test_stderr_of_another_user_gets_every_line_to_the_last(ends: Ends) -> None:
    """Lines are still written, and the summary isn't lost at the end."""
    with logging_to_somebody_else(ends) as (service, reader, _):
        service.process.send_signal(signal.SIGUSR1)
        reader.until("counters")
        assert service.end() == 0
        assert reader.until("stopped")[-1]["log_lines_dropped"] == 0


@pytest.mark.long
@somebody_elses
@pytest.mark.parametrize("ends", [pipe_ends, terminal_ends], ids=["pipe", "terminal"])
def test_unread_stderr_of_another_user_never_blocks_the_service(ends: Ends) -> None:
    """Story: after `su` the terminal or pipe belongs to another user and can't be reopened (EACCES); poll(2) said
    that there was room, though not for a whole line, and the write blocked.
    """
    with logging_to_somebody_else(ends) as (service, _, (reading, writing)):
        fill_stderr(writing)
        os.read(reading, 100)  # a little room, less than a line
        service.log_a_lot()
        assert service.end() == 0


@pytest.mark.long
@every_kind
def test_reader_that_goes_away_does_not_end_the_service(ends: Ends) -> None:
    """Promise 21, for EPIPE and EIO: the reader has ended."""
    with contextlib.ExitStack() as stack:
        reading, writing = stack.enter_context(ends())
        service = stack.enter_context(Logging(writing))
        start(service, Reader(reading))
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), reading)
        service.log_a_lot()
        assert service.end() == 0


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_closed_stderr_sends_no_log_line_to_a_client(closed: str) -> None:
    """Story: a socket that gets descriptor 2 gets the next log line too."""
    with Logging(subprocess.DEVNULL, ["sh", "-c", f'exec "$@" {closed}', "sh"], quiet_port()) as service:
        service.connect()
        service.log_a_lot()
        with contextlib.suppress(FileNotFoundError):
            links = [os.readlink(f"/proc/{service.process.pid}/fd/{number}") for number in range(3)]
            assert not [link for link in links if link.startswith(("socket:", "anon_inode:"))]
        service.process.send_signal(signal.SIGTERM)
        assert service.client.recv(1 << 16) == b"", "FIN, and not a byte of the log before it"
        service.client.close()
        assert service.process.wait(PATIENCE_S) == 0


def test_log_file_is_appended_to(tmp_path: pathlib.Path) -> None:
    """`2>>echo7.log`, as the help shows it: what was there stays, and what others write there stays too."""
    path = tmp_path / "echo7.log"
    path.write_text("what was there before\n")
    with path.open("a") as file, Logging(file.fileno()) as service, path.open("a") as other:
        service.port = wait_for_port(service, path)
        service.connect()
        other.write("what others write\n")
        other.flush()
        assert service.end() == 0
    lines = path.read_text().splitlines()
    assert lines[0] == "what was there before"
    assert lines.count("what others write") == 1
    assert json.loads(lines[-1])["event"] == "stopped"
    assert all(json.loads(line) for line in lines if line.startswith("{"))


def wait_for_port(service: Logging, path: pathlib.Path) -> int:
    """Read the file until it has the last start-up line."""
    for _ in range(int(PATIENCE_S / 0.01)):
        if found := re.search(r'"transport": "udp".*"port": (\d+)', path.read_text()):
            return int(found[1])
        with contextlib.suppress(subprocess.TimeoutExpired):
            service.process.wait(0.01)
            break
    raise AssertionError(path.read_text())


@linux_only
def test_full_disk_does_not_end_the_service() -> None:
    """ENOSPC: the log is lost, the service isn't."""
    with open("/dev/full", "w") as full, Logging(full.fileno(), port=quiet_port()) as service:
        service.connect()
        service.log_a_lot()
        assert service.end() == 0


def test_courier_blocks_in_place_of_the_loop() -> None:
    """Story: poll(2) said that a terminal had room, but not for the whole line, and the write slept."""
    reading, writing = os.pipe()
    courier = Courier(writing)
    pieces = [b"%04d" % number * 1000 for number in range(COURIER_PIECES * 2)]
    taken = [piece for piece in pieces if courier(piece)]
    assert COURIER_PIECES <= len(taken) < len(pieces)
    with open(reading, "rb") as file:
        assert file.read(4000 * len(taken)) == b"".join(taken)


def test_stderr_that_cannot_be_reopened_has_a_courier(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without root: "another user's terminal"."""
    reading, writing = os.pipe()
    with monkeypatch.context() as patch, open(reading) as file:
        patch.setattr(os, "open", refuse)
        handler = log.StderrHandler(writing)
        handler.setFormatter(log.TextFormatter())
        handler.handle(record_of("through the courier"))
        assert file.readline().endswith(" info through the courier\n")
    assert os.get_blocking(writing), "other processes share the descriptor: its flags stay"
    os.close(writing)


def refuse(*args: object) -> int:
    raise PermissionError


def test_courier_writes_its_last_lines_at_the_end() -> None:
    """ "Let the last lines be written": the summary is the last of them."""
    reading, writing = os.pipe()
    courier = Courier(writing)
    pieces = [b"%04d" % number for number in range(100)]
    assert all(courier(piece) for piece in pieces)
    courier.finish()
    assert os.read(reading, 1000) == b"".join(pieces)
    os.close(reading)
    os.close(writing)


def test_blocked_courier_does_not_delay_the_end() -> None:
    """ "But only for a moment: a stopped reader must not delay the end"."""
    reading, writing = os.pipe()
    courier = Courier(writing)
    fill_stderr(writing)
    courier(b"summary")
    end = threading.Thread(target=courier.finish, daemon=True)
    end.start()
    end.join(PATIENCE_S)
    assert not end.is_alive()
    with open(reading, "rb", buffering=0) as file:
        while not file.read(1 << 16).endswith(b"summary"):
            pass
    os.close(writing)


def test_courier_without_a_thread_drops_lines_and_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a limit of processes no thread can start; the service goes on."""
    reading, writing = os.pipe()
    courier = Courier(writing)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda thread: refuse_thread())
        assert courier(b"lost") == 0
        courier.finish()
    assert courier(b"kept") == 4
    courier.finish()
    assert os.read(reading, 10) == b"kept"
    os.close(reading)
    os.close(writing)


def refuse_thread() -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork(2)")
def test_courier_in_a_forked_child_has_a_thread_of_its_own() -> None:
    """The parent's thread isn't in the child, and may have held the queue's lock at the fork."""
    reading, writing = os.pipe()
    courier = Courier(writing)
    courier(b"parent ")
    courier.finish()

    def main() -> int:
        courier(b"child")
        courier.finish()
        return 0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the courier's thread, which the child doesn't use
        pid = forked("the child", main)
    assert os.waitpid(pid, 0)[1] == 0
    assert os.read(reading, 20) == b"parent child"
    os.close(reading)
    os.close(writing)


# ---------------------------------------------------------------- the journal


@pytest.mark.skipif(sys.platform == "win32", reason="journald is for Linux")
@pytest.mark.parametrize("form", ["text", "json"])
def test_line_to_the_journal_begins_with_its_priority(form: str) -> None:
    """Issue: "priority prefix `<4>` when stderr is journald's: JOURNAL_STREAM matches stderr's device:inode"."""
    reader, writer = os.pipe()
    found = os.fstat(writer)
    environment = {**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}", "NOTIFY_SOCKET": "nowhere"}
    command = [
        sys.executable,
        "-m",
        "echo7",
        "serve",
        *MEASURED,
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--log-format",
        form,
    ]
    process = subprocess.Popen(command, cwd=PROJECT, stderr=writer, env=environment)
    os.close(writer)
    with open(reader) as lines:
        heard = [next(lines) for _ in range(3)]
        process.terminate()
        heard += lines
    assert process.wait(PATIENCE_S) == 0
    assert {line[:3] for line in heard if "cannot notify" in line} == {"<4>"}
    assert {line[:3] for line in heard if "cannot notify" not in line} == {"<6>"}
    if form == "json":
        assert json.loads(heard[0][3:])["event"] == "notify_failed"


def test_each_line_of_a_traceback_to_the_journal_has_the_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line is an entry of the journal."""
    reader, writer = os.pipe()
    found = os.fstat(writer)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    handler = log.StderrHandler(writer)
    handler.setFormatter(log.TextFormatter())
    handler.emit(record_of("failed", logging.ERROR, raised(ValueError("x"))))
    heard = os.read(reader, 1 << 16).decode().splitlines()
    os.close(reader)
    os.close(writer)
    assert len(heard) > 2
    assert all(line.startswith("<3>") for line in heard)


@pytest.mark.parametrize("stream", ["", "x", "1:2", "1:2:3"])
def test_another_stream_has_no_prefix(stream: str) -> None:
    assert not log.is_journal(2, {"JOURNAL_STREAM": stream})
    assert not log.is_journal(1 << 20, {"JOURNAL_STREAM": stream}), "nor one that is closed"
    assert not log.is_journal(2, {})
