"""`echo7 ping` as a process: its lines and its exit status."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import pathlib
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from echo7 import cli
from echo7.probe import command, once
from echo7.probe.plan import Plan
from echo7.process import limits
from reactor import Connection, StreamProtocol, listen_tcp, open_udp
from reactor.sockets.errors import os_error
from tests.echo7.probe.world import LOST, ScriptedEcho, flipped
from tests.support.basics import PATIENCE_S, PROJECT, has_ipv6, quiet_port, until
from tests.support.commands import Done, assert_help_is_readable, run
from tests.support.echo import EchoThread
from tests.support.loops import LoopThread
from tests.support.root import in_network_namespace, without_capabilities

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def arguments_for(port: int, *arguments: str, host: str = "127.0.0.1") -> list[str]:
    return [sys.executable, "-m", "echo7", "ping", host, "--port", str(port), *arguments]


def ping(port: int, *arguments: str, host: str = "127.0.0.1", **options: Any) -> Done:
    return run(arguments_for(port, *arguments, host=host), **options)


def only_line(text: str) -> str:
    assert text.count("\n") == 1, text
    return text.rstrip("\n")


@pytest.fixture(scope="module")
def server() -> Iterator[EchoThread]:
    with EchoThread() as thread:
        yield thread


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    """Restore the signals and loggers that the command changes."""
    signals = {signum: signal.getsignal(signum) for signum in once.ENDING_SIGNALS}
    loggers = [logging.getLogger(name) for name in ("reactor", "echo7")]
    before = [(logger.level, list(logger.handlers), logger.propagate) for logger in loggers]
    yield
    for signum, handler in signals.items():
        signal.signal(signum, handler)
    for logger, (level, handlers, propagate) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


# ---------------------------------------------------------------- exit statuses


@pytest.mark.parametrize("transport", ["--udp", "--tcp"])
def test_status_0_when_replies_came(server: EchoThread, transport: str) -> None:
    done = ping(server.port, transport, "-c", "3", "-i", "0.01")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"ECHO 127.0.0.1 (127.0.0.1:{server.port}) over {transport[2:]}: 56 bytes of payload"
    for number, line in enumerate(lines[1:4], 1):
        assert re.fullmatch(rf"56 bytes from 127\.0\.0\.1:{server.port}: seq={number} time=\d+\.\d{{3}} ms", line)
    assert lines[5] == f"--- 127.0.0.1 port {server.port} ({transport[2:]}) echo statistics ---"
    assert lines[6].startswith("3 sent, 3 replies, 0 lost, 0 late, loss 0%, time ")


def test_status_1_when_all_timed_out() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        done = ping(silent.getsockname()[1], "-c", "2", "-i", "0.01", "-W", "0.05")
    assert (done.returncode, done.stderr) == (1, "")
    assert "seq=1 timed out\nseq=2 timed out\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "0"], "--port"),
        (["-c", "0"], "--count"),
        (["-c", "many"], "--count"),
        (["-i", "-1"], "--interval"),
        (["-i", "nan"], "--interval"),
        (["-i", "0.000001"], "an interval of 1000 ns"),
        (["-W", "0"], "a time-out of 0 ns"),
        (["-s", "x"], "--size"),
        (["-s", "-1"], "--size"),
        (["-s", "65508"], "over IPv4 a datagram carries at most 65507 bytes"),
        (["-s", "70000"], "a size of 70000"),
        (["-s", "1:2"], "neither a size nor MIN:MAX:STEP"),
        (["-s", "2:1:1"], "neither a size nor MIN:MAX:STEP"),
        (["-s", "1:2:0"], "neither a size nor MIN:MAX:STEP"),
        (["-s", "1:9999999999:1"], "no datagram carries 9999999999 bytes"),
        (["-s", "1:60000:1"], "60000 sizes"),
        (["--tcp", "-s", "0"], "a size of 0; tcp takes 1"),
        (["--tcp", "--df"], "'don't fragment' is for UDP"),
        (["--tcp", "--udp"], "not allowed with"),
        (["-4", "-6"], "not allowed with"),
        (["--json", "--jsonl"], "not allowed with"),
        (["--flows", "0"], "--flows"),
        (["--flows", "2", "--source-port", "65535"], "the last source port would be 65536"),
        (["--unknown"], "--unknown"),
        (["another"], "several hosts need --metrics"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_status_2_for_options_that_make_no_sense(
    capfd: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    """Law: one line on stderr "that says what, why and what to do"."""
    with contextlib.suppress(SystemExit):
        assert in_process(["127.0.0.1", *arguments]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert words in only_line(captured.err)


def test_usage_error_is_status_2_of_the_process() -> None:
    for arguments in (["-c", "x"], ["-W", "0"], []):
        command_line = arguments_for(7, *arguments) if arguments else [sys.executable, "-m", "echo7", "ping"]
        done = run(command_line)
        assert (done.returncode, done.stdout) == (2, "")
        assert only_line(done.stderr).startswith("echo7 ping: ")
        assert done.stderr.endswith("see 'echo7 ping --help'\n")


@pytest.mark.parametrize("transport", ["--udp", "--tcp"])
def test_status_3_when_refused(transport: str) -> None:
    done = ping(quiet_port(), transport, "-c", "2", "-i", "0.01")
    assert (done.returncode, done.stderr) == (3, "")
    assert "seq=1 refused: nothing listens on that port" in done.stdout


@LINUX
@pytest.mark.parametrize("transport", ["--udp", "--tcp"])
def test_status_4_when_unreachable(transport: str) -> None:
    """A namespace with only a loopback has no routes."""

    def body() -> None:
        done = ping(7, transport, "-c", "2", "-i", "0.01", host="192.0.2.7")
        assert (done.returncode, done.stderr) == (4, "")
        assert "seq=1 unreachable: Network is unreachable" in done.stdout

    in_network_namespace([], body)


def test_status_5_when_a_name_cannot_be_resolved() -> None:
    for host in ("", "a..b", "fe80::1%nowhere", "x" * 64):
        done = ping(7, host=host)
        assert (done.returncode, done.stdout) == (5, "")
        assert only_line(done.stderr).startswith("echo7 ping: ")


def test_address_of_the_other_family_is_status_5() -> None:
    assert "leave out the -4 or -6" in ping(7, "-6").stderr


@IPV6
def test_ipv6_with_and_without_brackets() -> None:
    with EchoThread(["::1"]) as server:
        for host in ("::1", "[::1]"):
            done = ping(server.port, "-6", "-c", "1", host=host)
            assert done.returncode == 0
            assert f"from [::1]:{server.port}: seq=1" in done.stdout


# ---------------------------------------------------------------- signals


class Running:
    """A ping without end; its lines are read as they come."""

    def __init__(self, port: int, *arguments: str, **options: Any) -> None:
        self.process = subprocess.Popen(
            arguments_for(port, "-i", "0.02", *arguments),
            cwd=PROJECT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )  # fmt: skip
        self._overdue = threading.Timer(PATIENCE_S, self.process.kill)

    def __enter__(self) -> Running:
        self._overdue.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()
        self._overdue.cancel()

    def until(self, words: str, stream: str = "stdout") -> str:
        for line in getattr(self.process, stream):
            if words in line:
                return str(line)
        raise AssertionError(f"it ended without {words!r}")

    def finish(self, signum: int) -> tuple[int, str, str]:
        self.process.send_signal(signum)
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_run_with_the_summary(server: EchoThread, signum: int) -> None:
    """Issue: "a summary at the end and on Ctrl-C"; the exit status depends on the answers."""
    with Running(server.port) as running:
        running.until("seq=3")
        status, out, err = running.finish(signum)
    assert (status, err) == (0, "")
    assert "echo statistics ---" in out
    assert re.search(r"^(\d+) sent, \1 replies", out, re.MULTILINE) or "outstanding" in out


def test_signal_before_any_answer_is_status_1() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with Running(silent.getsockname()[1], "-W", "60") as running:
            running.until("ECHO")
            status, out, _ = running.finish(signal.SIGINT)
    assert status == 1
    assert "loss 0%" in out


def test_quit_prints_the_summary_so_far_on_stderr(server: EchoThread) -> None:
    with Running(server.port) as running:
        running.until("seq=2")
        running.process.send_signal(signal.SIGQUIT)
        assert "echo statistics" in running.until("---", "stderr")
        running.until("seq=10")
        assert running.finish(signal.SIGINT)[0] == 0


@LINUX
def test_second_signal_ends_the_run_even_if_the_summary_is_not_read(server: EchoThread) -> None:
    """A full pipe blocks the summary; a second ^C needn't wait for it."""
    before = server.server.counters.datagrams_received
    with Running(server.port, "-i", "0") as running:
        running.until("seq=1 ")
        # their lines are much more than a pipe holds
        server.wait_for(lambda: server.server.counters.datagrams_received > before + 5000)
        running.process.send_signal(signal.SIGINT)
        waits_where = pathlib.Path(f"/proc/{running.process.pid}/wchan")
        until(lambda: "pipe" in waits_where.read_text())
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(PATIENCE_S) == -signal.SIGINT


# ---------------------------------------------------------------- standard output


def test_closed_pipe_ends_the_run_quietly(server: EchoThread) -> None:
    """`echo7 ping … | head -2`."""
    with Running(server.port) as running:
        running.until("seq=1")
        assert running.process.stdout is not None
        running.process.stdout.close()
        assert running.process.wait(PATIENCE_S) == 128 + signal.SIGPIPE
        assert running.process.stderr is not None
        assert running.process.stderr.read() == ""
        running.process.stdout = None


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_one_line(server: EchoThread) -> None:
    with open("/dev/full", "w") as full:
        done = ping(server.port, stdout=full)
    complaint = "echo7 ping: cannot write to standard output: No space left on device; nothing more was sent\n"
    assert (done.returncode, done.stderr) == (74, complaint)


@LINUX
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors_are_not_used_for_sockets(server: EchoThread, closed: str) -> None:
    """Otherwise the first socket would get number 1, and the lines would be sent to the server."""
    line = " ".join(arguments_for(server.port, "-c", "2", "-i", "0.01"))
    done = run(["sh", "-c", f"exec {line} {closed}"])
    assert (done.returncode, done.stderr) == (0, "")


def test_dropped_lines_are_counted(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    # the first line is longer than this, and the complaint is not
    monkeypatch.setattr("echo7.probe.report.writer.MOST_WAITING_BYTES", 60)
    assert in_process(["127.0.0.1", "--port", str(quiet_port()), "-c", "1"]) == 3
    line = only_line(capfd.readouterr().err)
    assert re.fullmatch(r"echo7 ping: \d lines dropped: the reader is too slow", line)


def on_terminal(*arguments: str, port: int, encoding: str = "utf-8") -> tuple[int, str]:
    """Run it on a terminal of its own; return the exit status and the output."""
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    process = subprocess.Popen(
        arguments_for(port, *arguments), cwd=PROJECT, stdin=slave, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    found = b""
    overdue = threading.Timer(PATIENCE_S, process.kill)
    overdue.start()
    # EIO: the process has closed the terminal
    with contextlib.suppress(OSError):
        while piece := os.read(master, 1 << 16):
            found += piece
    os.close(master)
    overdue.cancel()
    return process.wait(PATIENCE_S), found.decode()


def test_terminal_gets_bars(server: EchoThread) -> None:
    status, text = on_terminal("-c", "3", "-i", "0.01", port=server.port)
    assert status == 0
    assert "█" in text


def test_ascii_terminal_gets_ascii_bars(server: EchoThread) -> None:
    """Issue: "ASCII fallback"."""
    _, text = on_terminal("-c", "3", "-i", "0.01", port=server.port, encoding="ascii")
    assert "##" in text
    assert text.isascii()


def test_quiet_on_a_terminal_has_a_live_line(server: EchoThread) -> None:
    _, text = on_terminal("-c", "3", "-i", "0.2", "-q", port=server.port)
    assert re.search(r"\r\d sent, \d replies, loss 0%, rtt p50/max [0-9./]+ ms\x1b\[K", text)
    assert "\r\x1b[K" in text
    assert "seq=" not in text


# ---------------------------------------------------------------- JSON


def test_jsonl_prints_an_object_per_probe(server: EchoThread) -> None:
    done = ping(server.port, "--jsonl", "-c", "3", "-i", "0.01")
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    assert [found["type"] for found in objects] == ["probe"] * 3 + ["summary"]
    assert [found["sequence"] for found in objects[:3]] == [1, 2, 3]
    assert all(isinstance(found["rtt_ns"], int) for found in objects[:3])
    assert {found["schema_version"] for found in objects} == {1}


def test_json_is_one_document_even_after_a_signal(server: EchoThread) -> None:
    before = server.server.counters.datagrams_received
    with Running(server.port, "--json") as running:
        server.wait_for(lambda: server.server.counters.datagrams_received > before + 2)
        status, out, err = running.finish(signal.SIGINT)
    assert (status, err) == (0, "")
    assert json.loads(out)["counts"]["replies"] >= 2


# ---------------------------------------------------------------- monitoring


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["--warn", "rtt=10s"], 0, "OK"),
        (["--warn", "rtt=1ns", "--crit", "rtt=10s"], 1, "WARNING"),
        (["--crit", "rtt=1ns"], 2, "CRITICAL"),
        (["--crit", "rtt=1"], 3, "UNKNOWN"),
        (["--warn", "rtt=1s", "-c", "0"], 3, "UNKNOWN"),
        (["--warn", "rtt=1s", "--json"], 3, "UNKNOWN"),
        (["--warn", "rtt=1s", "-s", "65508"], 3, "UNKNOWN"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_plugin_prints_one_line_and_has_its_status(
    server: EchoThread, arguments: list[str], status: int, word: str
) -> None:
    """Issue: "exit codes instead (0/1/2; 3 UNKNOWN for usage and names…)"."""
    done = ping(server.port, "-i", "0.01", *arguments)
    assert (done.returncode, done.stderr) == (status, "")
    assert only_line(done.stdout).startswith(f"ECHO {word} - ")


def test_plugin_sends_five_probes_by_default(server: EchoThread) -> None:
    assert ", 5 sent |" in ping(server.port, "-i", "0.01", "--warn", "rtt=10s").stdout
    assert ", 2 sent |" in ping(server.port, "-i", "0.01", "--warn", "rtt=10s", "-c", "2").stdout


@pytest.mark.parametrize(
    ("host", "status", "words"),
    [("a..b", 3, "ECHO UNKNOWN - cannot resolve"), ("127.0.0.1", 2, " refused: 5 sent, no reply | rtt=U;;;0 ")],
)
def test_plugin_is_unknown_without_an_address_and_critical_if_refused(host: str, status: int, words: str) -> None:
    done = ping(quiet_port(), "--crit", "loss=1%", "-i", "0.01", host=host)
    assert (done.returncode, done.stderr) == (status, "")
    assert words in done.stdout


# ---------------------------------------------------------------- before the first probe


def in_process(arguments: Sequence[str]) -> int:
    options = cli.parse(["ping", *arguments])
    status: int = options.run(options)
    return status


def test_every_option_reaches_the_plan() -> None:
    line = "ping h --tcp -c 3 -i 0.5 -s 16:32:8 -W 0.25 --flows 4 --source-port 5000 -6"
    options = cli.parse(line.split())
    assert options.family == socket.AF_INET6
    assert command.plan_of(options, False) == Plan(True, 3, 500_000_000, (16, 24, 32), 250_000_000, 4, 5000, False)
    assert command.plan_of(cli.parse(["ping", "h", "--df", "--udp"]), False) == Plan(df=True)


def test_run_over_several_sizes_ends_after_one_pass_by_default() -> None:
    """Specified: "with -s MIN:MAX:STEP one pass over the sizes unless -c"."""
    line = ["ping", "h", "-s", "16:48:8", "--flows", "3"]
    assert command.plan_of(cli.parse(line), False).probes == 15
    assert command.plan_of(cli.parse([*line, "-c", "7"]), False).probes == 7
    assert command.plan_of(cli.parse(["ping", "h"]), True).probes == 5


def test_more_flows_than_descriptors_are_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limits, "raise_descriptor_limit", lambda: 100)
    assert in_process(["127.0.0.1", "--flows", "300"]) == 2
    assert "300 flows need more than the 100 descriptors" in only_line(capfd.readouterr().err)


def test_taken_source_port_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 0))
        port = str(taken.getsockname()[1])
        assert in_process(["127.0.0.1", "--source-port", port]) == 2
        line = only_line(capfd.readouterr().err)
        assert f"cannot send from udp port {port}: Address already in use; choose another source port" in line
        assert in_process(["127.0.0.1", "--source-port", port, "--warn", "rtt=1s"]) == 3
        assert only_line(capfd.readouterr().out).startswith("ECHO UNKNOWN - cannot send from")


@LINUX
def test_source_port_that_needs_privilege_is_one_line() -> None:
    done = run([*without_capabilities("net_bind_service"), *arguments_for(7, "--source-port", "7")])
    if done.returncode != 0 and pathlib.Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text() == "0\n":
        pytest.skip("on this machine no port needs privilege")
    assert (done.returncode, "Permission denied" in done.stderr) == (2, True)


def test_machine_without_ipv6_is_unreachable(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_such_family(*_: object) -> None:
        raise os_error(errno.EAFNOSUPPORT)

    monkeypatch.setattr(command, "resolve", lambda *_: [("::1", 7, 0, 0)])
    monkeypatch.setattr("echo7.probe.datagram.bind_udp", no_such_family)
    assert in_process(["::1"]) == 4
    assert "is unreachable: Address family not supported" in only_line(capfd.readouterr().err)
    assert in_process(["::1", "--crit", "loss=1%"]) == 2
    assert only_line(capfd.readouterr().out).startswith("ECHO CRITICAL - ::1 is unreachable")


def test_too_few_descriptors_for_the_loop_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise os_error(errno.EMFILE)

    monkeypatch.setattr(once, "Reactor", full)
    assert in_process(["127.0.0.1"]) == 2
    assert "raise 'ulimit -n'" in only_line(capfd.readouterr().err)


# ---------------------------------------------------------------- in this process, for coverage


@pytest.mark.parametrize("form", [[], ["-q"], ["--json"], ["--jsonl"], ["--warn", "rtt=10s"]], ids=str)
def test_every_form_of_output_prints_a_result(
    server: EchoThread, capfd: pytest.CaptureFixture[str], form: list[str]
) -> None:
    assert in_process(["127.0.0.1", "--port", str(server.port), "-c", "2", "-i", "0.01", *form]) == 0
    captured = capfd.readouterr()
    assert captured.out
    assert captured.err == ""


def test_usage_error_is_unknown_for_monitoring(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """argparse takes abbreviations: `--cr` is --crit, and `--co` isn't."""
    for argument, status in (("--cr=loss=1%", 3), ("--co=1", 2)):
        monkeypatch.setattr(sys, "argv", ["echo7", "ping", "h", argument, "--flows", "x"])
        with pytest.raises(SystemExit) as end:
            cli.parse(sys.argv[1:])
        assert end.value.code == status
        captured = capfd.readouterr()
        assert (captured.out if status == 3 else captured.err).count("\n") == 1


def test_help_fits_a_screen_with_one_line_for_each_option_and_examples_last() -> None:
    assert_help_is_readable("ping", ["target", "probes", "output", "limits", "signals", "exit status", "examples"])


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.parse(["ping", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for (
        option
    ) in "--port --udp --tcp -4 -6 -c -i -s -W --flows --source-port --df --json --jsonl -q --warn --crit".split():
        assert f" {option}" in text
    assert "%%" not in text


# ---------------------------------------------------------------- hostile servers


class Hostile(StreamProtocol):
    """A TCP server that does one thing to each client."""

    def __init__(self, deed: Callable[[Connection], object]) -> None:
        self.deed = deed

    def connection_made(self, connection: Connection) -> None:
        self.deed(connection)

    def drained(self, connection: Connection) -> None:
        self.deed(connection)


@pytest.mark.parametrize(
    ("deed", "word"),
    [
        (lambda connection: connection.write(bytes(1 << 20)), "foreign"),
        (Connection.close, "closed by the other end"),
        (Connection.abort, "Connection reset by peer"),  # before or after the connection is seen
        (Connection.pause_reading, "timed out"),
    ],
    ids=["endless data", "immediate close", "reset", "never reads"],
)
def test_hostile_server_gets_a_clear_verdict_in_bounded_time(deed: Any, word: str) -> None:
    """Issue: "Hostile servers: endless data, garbage, immediate close, never answering"."""
    with LoopThread() as thread:
        listener = thread.call(listen_tcp, thread.reactor, ("127.0.0.1", 0), lambda: Hostile(deed))
        done = ping(listener.address[1], "--tcp", "-c", "3", "-i", "0.01", "-W", "0.2")
    assert (done.returncode, done.stderr) == (1, "")
    assert word in done.stdout
    assert "3 sent, 0 replies, 3 lost" in done.stdout


def test_flood_against_a_server_that_stops_ends_in_order() -> None:
    with EchoThread() as server, Running(server.port, "-i", "0", "-q") as running:
        server.wait_for(lambda: server.server.counters.datagrams_received > 1000)
        server.call(server.server.stop, int)
        running.until("ECHO")
        status, out, err = running.finish(signal.SIGINT)
    assert (status, err) == (0, "")
    assert "replies" in out


def test_output_has_the_numbers_of_the_script(server: EchoThread) -> None:
    with LoopThread() as thread:
        echo = ScriptedEcho(thread.reactor, {2: LOST, 3: flipped(20, 1)})
        endpoint = thread.call(open_udp, thread.reactor, ("127.0.0.1", 0), echo)
        done = ping(endpoint.address[1], "-c", "4", "-i", "0.01", "-W", "1")
    assert done.returncode == 0
    assert "seq=2 timed out" in done.stdout
    assert "(corrupted at byte 20: bits 01, 1 wrong in all)" in done.stdout
    assert "4 sent, 3 replies, 1 lost, 0 late, loss 25%" in done.stdout
    assert "1 corrupted" in done.stdout
