"""`echo7 serve --trace FILE` and `--narrate`: the loop that serves, seen from outside."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator

import pytest

from echo7 import assembly, cli
from echo7.process import StartError, is_root
from reactor.loop import Reactor
from reactor.observe.trace import Trace
from reactor.observe.watch import Watch
from tests.echo7.process.test_restart import Phoenix
from tests.echo7.test_cli import only_line
from tests.support.basics import PATIENCE_S
from tests.support.clients import receive_exactly
from tests.support.daemon import EchoProcess, Installation, serve_config

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


NOBODY = 65_534


@contextlib.contextmanager
def folder_of_nobody() -> Iterator[pathlib.Path]:
    """A folder that the user of the service may write to, outside of pytest's own, which only root may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, NOBODY, NOBODY)
        yield pathlib.Path(name)


@pytest.mark.skipif(not is_root(), reason="only root can become another user")
def test_trace_file_is_opened_by_the_user_even_before_a_restart(installation: Installation) -> None:
    with folder_of_nobody() as folder:
        path = folder / "trace.jsonl"
        options = [*HOST, "--user", "nobody", "--trace", str(path)]
        with Phoenix(*options, installation=installation) as echo:
            found = path.stat()
            assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (NOBODY, NOBODY, 0o600)
            echo.restart()
            echo.answers()
            assert echo.finish() == 0
        assert "left_out" not in {line["event"] for line in echo.lines}


# What the user may have prepared under the trace's name, for root to spoil something else.
TRAPS: dict[str, Callable[[pathlib.Path, pathlib.Path], object]] = {
    "link to a file of root": lambda name, target: name.symlink_to(target),
    "link to a place of root": lambda name, target: name.symlink_to(target.with_name("new")),
    "folder that is a link": lambda name, target: name.parent.rmdir() or name.parent.symlink_to(target.parent),  # type: ignore[func-returns-value]
    "file of root": lambda name, target: target.rename(name),
    "second name of a file of root": lambda name, target: os.link(target, name),
}


@pytest.mark.long
@pytest.mark.skipif(not is_root(), reason="only root can become another user")
@pytest.mark.parametrize("trap", TRAPS)
def test_root_neither_makes_nor_gives_away_a_file_for_the_user(trap: str, installation: Installation) -> None:
    with folder_of_nobody() as folder:
        roots, inner = folder / "root", folder / "inner"
        roots.mkdir(0o755)
        inner.mkdir()
        os.chown(inner, NOBODY, NOBODY)
        target, name = roots / "empty", inner / "trace.jsonl"
        target.touch(0o600)
        before = target.stat()
        with target.open() as held:
            TRAPS[trap](name, target)
            options = [*HOST, "--user", "nobody", "--trace", str(name)]
            with EchoProcess(*options, installation=installation, wait=False) as echo:
                said = echo.next_line("start_failed")["message"]
                assert echo.process.wait(PATIENCE_S) == 1
            found = os.fstat(held.fileno())
        assert said.startswith(f"cannot write the trace {name}: ")
        assert (found.st_uid, found.st_mode, found.st_size) == (0, before.st_mode, 0)
        assert not (roots / "new").exists()
        assert not (roots / "trace.jsonl").exists()


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
