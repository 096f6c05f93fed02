"""`echo7 serve --trace FILE` and `--narrate`: the loop that serves, seen from outside."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import socket
import sys

import pytest

from echo7 import assembly, cli
from echo7.process import StartError, is_root
from echo7.process.privileges import Identity
from echo7.tracing import Tracing
from reactor.loop import Reactor
from reactor.observe.trace import Trace
from reactor.observe.watch import Watch
from tests.echo7.process.test_restart import Phoenix
from tests.echo7.test_cli import only_line
from tests.support.basics import PATIENCE_S
from tests.support.clients import receive_exactly
from tests.support.daemon import EchoProcess, serve_config

HOST = ("--host", "127.0.0.1")


def talk(echo: EchoProcess) -> None:
    """Echo a few bytes over each transport."""
    with echo.connect() as client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        client.sendall(b"hello")
        assert receive_exactly(client, 5) == b"hello"
        peer.settimeout(PATIENCE_S)
        peer.sendto(b"hi", ("127.0.0.1", echo.port))
        assert peer.recv(100) == b"hi"


@pytest.mark.parametrize("more", [(), ("--plain", "--slow-callback", "1000")])
def test_trace_of_the_service_is_written(tmp_path: pathlib.Path, more: tuple[str, ...]) -> None:
    """Issue: "`--trace FILE`"."""
    path = tmp_path / "trace.jsonl"
    with EchoProcess(*HOST, "--trace", str(path), *more) as echo:
        talk(echo)
        assert echo.finish() == 0
    header, *events = [json.loads(line) for line in path.read_text().splitlines()]
    assert header["trace"] == "reactor"
    assert [event["n"] for event in events] == list(range(len(events))), "from the loop's first moment to its last"
    for kind in ("received", "sent"):
        told = {(event["who"], event["bytes"]) for event in events if event["kind"] == kind}
        udp = "datagram-1" if more else "datagrambatch-1"
        assert {("connection-2", 5), (udp, 2)} <= told, "the first connection tested whether the service is up"
    assert events[-1] == {**events[-1], "kind": "closed", "who": "waker-1"}


def test_trace_named_json_is_for_perfetto(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace.json"
    with EchoProcess(*HOST, "--trace", str(path)) as echo:
        talk(echo)
        assert echo.finish() == 0
    assert any(entry["name"] == "received" for entry in json.loads(path.read_text()))


@pytest.mark.skipif(sys.platform == "win32", reason="nobody owns files there")
def test_trace_file_gets_the_user_as_owner_and_a_device_keeps_its_own(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[object, ...]] = []
    monkeypatch.setattr("os.chown", lambda *what: given.append(what))
    monkeypatch.setattr("echo7.tracing.is_root", lambda: True)
    path = str(tmp_path / "trace.jsonl")
    for name in (path, os.devnull):
        with Tracing(name, narrate=False, user=Identity(4711, 4712, "nobody")) as tracing:
            tracing.open()
    assert given == [(path, 4711, 4712)]


def test_narrator_logs_what_the_loop_does() -> None:
    """Issue: "a narrator in plain words for the terminal (`echo7 serve --narrate`)"."""
    with EchoProcess(*HOST, "--no-udp", "--narrate") as echo:
        assert echo.finish() == 0
        said = [line["message"] for line in echo.lines if line["event"] == "narration"]
    assert said[0].startswith("turn 0: waker-1 is registered: descriptor ")
    assert any("The kernel takes all 6 bytes from connection-1" in text for text in said)


def test_trace_of_a_killed_process_lacks_only_the_last_turn(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace.jsonl"
    with EchoProcess(*HOST, "--no-udp", "--trace", str(path)) as echo:
        with echo.connect() as client:
            client.sendall(b"hello")
            assert receive_exactly(client, 5) == b"hello"
            client.sendall(b"again")
            assert receive_exactly(client, 5) == b"again"
        echo.process.kill()
        echo.process.wait(PATIENCE_S)
    events = [json.loads(line) for line in path.read_text().splitlines()][1:]
    assert ("received", "connection-2") in {(event["kind"], event["who"]) for event in events}


def test_unwritable_trace_is_refused_before_anything_is_served(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine").write_text("years of work")
    for where, why in {
        "no/such": "No such file or directory",
        ".": "Is a directory",
        "mine": "the file exists and isn't a trace: remove it first",
    }.items():
        with EchoProcess(*HOST, "--trace", str(tmp_path / where), wait=False) as echo:
            assert echo.process.stderr is not None
            said = json.loads(echo.process.stderr.read())
            assert echo.process.wait(PATIENCE_S) == 1
        assert said["message"] == f"cannot write the trace {tmp_path / where}: {why}; choose another --trace"


@pytest.mark.parametrize("option", [["--trace", "x"], ["--narrate"]])
def test_trace_with_workers_is_refused(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if sys.platform != "linux":
        pytest.skip("there are no workers here")
    with pytest.raises(SystemExit) as exited:
        cli.main(["serve", "--workers", "2", *option])
    assert exited.value.code == 2
    assert "--trace and --narrate show one loop, and --workers has several" in only_line(capsys.readouterr().err)


def test_narrator_below_the_log_level_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        cli.main(["serve", "--narrate", "--log-level", "warning"])
    assert exited.value.code == 2
    assert "--narrate logs at level info, which --log-level warning leaves out" in only_line(capsys.readouterr().err)


def test_trace_with_an_impossible_name_is_refused() -> None:
    tracing = assembly.new_tracing(serve_config("--trace", "a\0b"))
    assert tracing is not None
    with pytest.raises(StartError, match="embedded null byte; choose another --trace"):
        tracing.open()


@pytest.mark.skipif(not is_root(), reason="only root can give a file away")
def test_trace_file_belongs_to_the_user_who_opens_it_after_a_restart(tmp_path: pathlib.Path) -> None:
    """`--user`: after HUP, the process that opens it runs as that user."""
    path = tmp_path / "trace.jsonl"
    tracing = assembly.new_tracing(serve_config("--trace", str(path), "--user", "4711:4712"))
    assert tracing is not None
    with tracing:
        tracing.open()
    found = path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (4711, 4712, 0o600)


def test_loop_without_options_is_not_traced() -> None:
    config = serve_config()
    assert assembly.new_tracing(config) is None
    with assembly.new_reactor(config) as loop:
        assert not isinstance(loop.observer, Trace)


@pytest.mark.parametrize("option", [[], ["--slow-callback", "20"]])
def test_watched_loop_can_be_traced_too(option: list[str], tmp_path: pathlib.Path) -> None:
    config = serve_config("--trace", str(tmp_path / "trace.jsonl"), *option)
    tracing = assembly.new_tracing(config)
    assert tracing is not None
    with tracing, assembly.new_reactor(config, tracing) as loop:
        tracing.open()
        assert type(loop.observer) is (Watch if option else Trace)
    assert '"waker-1"' in (tmp_path / "trace.jsonl").read_text()


def test_forked_child_does_not_narrate(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "echo7")
    tracing = assembly.new_tracing(serve_config("--narrate"))
    assert tracing is not None
    with tracing, Reactor(observer=Trace(tracing)):
        tracing.open()
        said = len(caplog.messages)
        assert said > 0
        tracing.leave()
    assert len(caplog.messages) == said


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_after_a_restart_the_new_generation_writes_the_trace(tmp_path: pathlib.Path) -> None:
    """The previous generation writes no more. If the file can't be opened, the new one serves without it."""
    path = tmp_path / "folder" / "trace.jsonl"
    path.parent.mkdir()
    with Phoenix("--narrate", "--trace", str(path)) as echo:
        with echo.connect() as client:
            echo.restart()
            said = len(echo.lines)
            client.sendall(b"still")
            assert receive_exactly(client, 5) == b"still", "of the previous generation"
            talked = path.read_text()
            assert '"connection-2"' not in talked
        shutil.rmtree(path.parent)
        echo.restart()
        assert [line["message"] for line in echo.lines[said:] if line["event"] == "left_out"] == [
            f"cannot write the trace {path}: No such file or directory; choose another --trace; serving without it"
        ]
        echo.answers()
        assert echo.finish() == 0
