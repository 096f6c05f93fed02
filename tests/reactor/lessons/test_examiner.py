"""The examiner judges any student's program in bounded time, and leaves no process behind."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import pathlib
import signal
import socket
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from reactor.lessons import checks, clients, host, subject
from reactor.lessons.promises import PROMISES, judge
from reactor.lessons.staircase import LESSONS, Lesson
from reactor.lessons.subject import Broken, NotMeasured, Program, Subject, Unusable
from tests.support.basics import PATIENCE_S, until
from tests.support.lessons import check_together

HOLDS_EVERYTHING_UP = "sum(range(10**13))"  # in C: no other thread can run
Write = Callable[[str], Program]


@pytest.fixture
def write(tmp_path: pathlib.Path) -> Write:
    """Write a text to a file, as a program."""

    def made(source: str) -> Program:
        path = tmp_path / "mine.py"
        path.write_text(source)
        return Program(str(path))

    return made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits for what never comes."""
    monkeypatch.setattr(subject, "PATIENCE_S", 0.3)
    monkeypatch.setattr(subject, "END_S", 0.2)


def order_until_it_fails(it: Subject) -> None:
    while True:
        it.order("usage", "usage")


@pytest.mark.parametrize(
    ("source", "end_s", "end"),
    [("while True: pass", PATIENCE_S, "exit status 0"), (HOLDS_EVERYTHING_UP, 0.2, "killed by SIGKILL")],
)
def test_endless_import_is_killed(
    source: str, end_s: float, end: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "END_S", end_s)
    it = Subject(write(source), 1.0, 4, start_s=0.3)
    with pytest.raises(Unusable, match=r"it was still loading after 0\.3 s: the file must only define `serve`"), it:
        pass
    assert it.status() == end


@pytest.mark.usefixtures("impatient")
def test_server_that_holds_the_interpreter_is_killed(write: Write) -> None:
    with Subject(write(f"def serve(listener): {HOLDS_EVERYTHING_UP}"), 1.0, 4) as it:
        it.go()
        it.tcp()
        with pytest.raises(Broken, match=r"for 0\.3 s its other threads couldn't run"):
            order_until_it_fails(it)
    assert it.status() == "killed by SIGKILL"


@pytest.mark.parametrize(
    ("body", "end"),
    [
        ("import os; os._exit(3)", "exit status 3"),
        ("1 / 0", "`serve` raised ZeroDivisionError: .*"),
        ("0", "`serve` returned"),
    ],
)
def test_end_of_a_server_is_reported_once(body: str, end: str, write: Write) -> None:
    with Subject(write(f"def serve(listener): {body}"), 1.0, 4) as it:
        with pytest.raises(Broken, match=f"the server has ended: {end}"):
            order_until_it_fails(it)
        assert it.obituary() == ""  # it is reported already


def test_signal_that_ends_a_server_is_named(write: Write) -> None:
    with Subject(write("def serve(listener):\n    while True: listener.accept()"), 1.0, 4) as it:
        it.tcp()
        it.terminate()
        assert it.outcome() == "killed by SIGTERM"


def test_server_that_does_not_listen_is_reported(write: Write) -> None:
    with Subject(write("def serve(listener):\n    listener.close()\n    while True: pass"), 1.0, 4) as it:
        while True:
            try:
                it.tcp().recv(1)
            except Broken as found:
                assert str(found) == "a client couldn't connect: Connection refused"  # noqa: PT017
                break
            except OSError:  # it was in the queue of a listener that has gone
                continue


def test_without_sigterm_the_promise_is_not_measured(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    by_name = {promise.name: promise for promise in PROMISES}
    verdict = judge(by_name["orderly-end"], LESSONS[10].program)
    assert (verdict.kept, verdict.measured) == (None, "this system has no SIGTERM to send")


def test_without_descriptor_limits_the_promise_is_not_measured(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with Subject(write("def serve(listener): pass"), 1.0, 4) as it, pytest.raises(NotMeasured, match="no limit"):
        checks.descriptors_run_out(it)


def test_busy_machine_makes_the_promise_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def held_up(client: socket.socket, data: bytes = b"") -> None:
        raise Broken("the server closed the connection after 0 of 4 bytes")

    monkeypatch.setattr(checks, "time", types.SimpleNamespace(monotonic=itertools.count(step=0.1).__next__))
    monkeypatch.setattr(checks, "ask", held_up)
    with Subject(LESSONS[9].program, 30.0, 4) as it, pytest.raises(NotMeasured, match="this machine is too busy"):
        checks.idle_is_closed(it)


PROCESS_EACH = """
import os, signal

def serve(listener):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        client, _ = listener.accept()
        if os.fork() == 0:
            try:
                while data := client.recv(4096):
                    client.sendall(data)
            finally:
                os._exit(0)
        client.close()
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="child processes can't be counted here")
def test_process_for_each_client_breaks_no_thread_each(write: Write) -> None:
    promise = next(promise for promise in PROMISES if promise.name == "no-thread-each")
    verdict = judge(promise, write(PROCESS_EACH))
    assert (verdict.kept, verdict.measured) == (False, "40 more clients, and 41 child processes")


def test_without_proc_no_child_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.isdir", lambda path: False)
    assert host.children() == 0


def test_without_context_switch_counts_the_check_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Subject.order
    monkeypatch.setattr(Subject, "order", lambda it, *what: order(it, *what) | {"naps": None})
    with Subject(LESSONS[3].program, 30.0, 1) as it:
        assert "can't be seen here" in checks.idle_is_free(it)


def test_unseen_order_of_answers_is_not_guessed(write: Write) -> None:
    promise = next(promise for promise in PROMISES if promise.name == "fairness")
    source = LESSONS[9].source.replace("self.sock.send(", "__import__('os').write(self.sock.fileno(), ")
    assert judge(promise, write(source)).kept is None


RESETS_THE_WIRE = """
import os, socket, struct

def serve(listener):
    kept = []
    for number in range(3, 20):
        try:
            sock = socket.socket(fileno=number)
            kept.append(sock)
            sock.getpeername()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass
    os._exit(4)
"""


def test_wire_that_is_reset_counts_as_the_end_of_the_server(write: Write) -> None:
    with Subject(write(RESETS_THE_WIRE), 1.0, 4) as it:
        with pytest.raises(Broken, match="the server has ended: exit status 4"):
            order_until_it_fails(it)


def test_unseen_memory_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", refused)
    assert host.resident_bytes() is None
    assert host.naps() is None
    assert checks.growth({"memory_bytes": None}, {}) == "its memory can't be seen here"


@pytest.mark.parametrize(
    ("serve", "count", "required"),
    [
        (lambda a, b: 0, 2, 2),
        (lambda a, b=1: 0, 2, 1),
        (lambda *a: 0, 5, 0),
        (lambda a, *, b=1: 0, 1, 1),
        (Subject.go, 1, 1),
        (pytest.MonkeyPatch().undo, 0, 0),
        (len, 1, 1),
    ],
)
def test_serve_gets_as_many_arguments_as_it_takes(serve: Callable[..., object], count: int, required: int) -> None:
    assert (host.count_arguments(serve), host.count_required(serve)) == (count, required)


def test_question_of_another_client_is_reported() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"town? ")
        with pytest.raises(Broken, match="the client was asked b'town"):
            clients.hear(ours, b"name? ")


def test_bytes_in_place_of_the_end_are_reported() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(b"more")
        theirs.close()
        with pytest.raises(Broken, match="a client got 4 bytes, and then the end, instead of an orderly end"):
            clients.expect_end(ours, "a client")


def test_answer_that_ends_too_early_is_reported() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"pi")
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(Broken, match="the server closed the connection after 2 of 4 bytes"):
            clients.ask(ours)


@pytest.mark.parametrize("lesson", LESSONS[10:], ids=lambda lesson: lesson.stem)
def test_server_without_clients_stops_at_once(lesson: Lesson) -> None:
    with Subject(lesson.program, 1.0, 4) as it:
        while it.order("call", "called")["how"] != "there":  # until it runs, and handles the signal
            pass
        it.terminate()
        assert it.outcome() == "`serve` returned"


@pytest.mark.skipif(sys.platform == "win32", reason="no signals to send")
@pytest.mark.parametrize("lesson", LESSONS[10:], ids=lambda lesson: lesson.stem)
def test_two_signals_at_once_stop_a_server_like_one(lesson: Lesson) -> None:
    with Subject(lesson.program, 30.0, 4) as it:
        while it.order("call", "called")["how"] != "there":
            pass
        client, other = it.tcp(4096), it.tcp()
        sent = clients.push(client, clients.pattern(checks.UNREAD_BYTES), other)
        clients.settle(other)  # all of it has been received
        for signum in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
            os.kill(it.pid, signum)
        assert len(clients.pull(client)[0]) == sent
        it.hang_up()
        assert it.outcome() == "`serve` returned"


def test_serve_that_needs_a_handler_gets_an_echo(write: Write) -> None:
    source = LESSONS[12].source.replace("handler: Handler = echo", "handler: Handler")
    assert "handler: Handler,\n" in source
    program = write(source)
    tried = [promise for promise in PROMISES if promise.name in {"echo", "half-close", "dialogue"}]
    assert all(verdict.kept for verdict in check_together((promise, program) for promise in tried))


def test_task_says_that_write_and_sleep_are_awaited() -> None:
    assert "await stream.write(data)" in LESSONS[12].task
    assert "await stream.sleep(" in LESSONS[12].task


def test_host_messages_are_json_lines() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        host.Host(theirs, 1.0, 4).tell("ready", why="it is")
        assert json.loads(ours.recv(100)) == {"event": "ready", "why": "it is"}


DAEMON = """
import os

def serve(listener):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            with open({path!r}, "w") as file:
                file.write(str(os.getpid()))
        else:
            os._exit(0)
    while True:
        client, _ = listener.accept()
        with client:
            while data := client.recv(4096):
                client.sendall(data)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems adopt no orphans")
def test_no_descendant_of_a_program_outlives_its_examination(write: Write, tmp_path: pathlib.Path) -> None:
    """Story: `--check` of a program that forks left its descendants alive."""
    path = tmp_path / "pid"
    with Subject(write(DAEMON.format(path=str(path))), 30.0, 1) as it:
        it.go()
        until(lambda: path.exists() and path.read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text()), 0)
