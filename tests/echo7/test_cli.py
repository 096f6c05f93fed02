"""The command line as an operator meets it: options, start-up lines, signals, exit statuses."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import logging
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import echo7
from echo7 import cli
from echo7.logs import log
from echo7.process.service import Service
from echo7.settings import OPTIONS, by_group
from echo7.sockets.binding import bind_all
from reactor import Reactor
from reactor.console import commandline
from reactor.sockets.errors import os_error
from tests.support.basics import PATIENCE_S, PROJECT, has_ipv6, quiet_port
from tests.support.clients import connect_small, echo_and_close, fill, receive_exactly, receive_to_end
from tests.support.commands import run_echo7
from tests.support.daemon import MEASURED, EchoProcess, serve_config
from tests.support.faults import FlakySockets
from tests.support.root import without_capabilities

IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
LOOPBACK = ["127.0.0.1", "::1"] if has_ipv6() else ["127.0.0.1"]
UNPRIVILEGED = pathlib.Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
SECONDS = st.floats(0, 86_400)


def run(*arguments: str, flags: Sequence[str] = (), prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run the command until it ends by itself."""
    command = [*prefix, sys.executable, *flags, "-m", "echo7", *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def only_line(text: str) -> str:
    """Return the only line."""
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    return text.rstrip("\n")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Parse invalid arguments; return the error line."""
    with pytest.raises(SystemExit) as end:
        serve_config(*arguments)
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return only_line(captured.err)


@contextlib.contextmanager
def text_log(*arguments: str) -> Iterator[list[str]]:
    """Serve with the default log format; yield the lines up to the last `listening` one, then end it."""
    command = [sys.executable, "-m", "echo7", "serve", *MEASURED, "--port", "0", *arguments]
    sockets = len(serve_config(*command[4:]).hosts or LOOPBACK) * (
        2 - sum(a in ("--no-tcp", "--no-udp") for a in arguments)
    )
    with subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines: list[str] = []
        while sum(" listening " in line for line in lines) < sockets:
            line = process.stderr.readline()
            assert line, lines
            lines.append(line.rstrip("\n"))
        try:
            yield lines
        finally:
            process.kill()


# ---------------------------------------------------------------- options


@given(st.integers(0, 65_535), SECONDS, st.integers(1, 2**31 - 1))
def test_number_within_bounds_reaches_the_settings(port: int, drain_timeout_s: float, backlog: int) -> None:
    """Ports 0 … 65535, and time-outs in seconds, with fractions."""
    arguments = [f"--port={port}", f"--drain-timeout={drain_timeout_s!r}", f"--backlog={backlog}"]
    config = serve_config(*arguments)
    assert (config.port, config.drain_timeout_s, config.backlog) == (port, drain_timeout_s, backlog)


@given(
    st.one_of(st.integers(max_value=-1), st.integers(65_536), st.floats().map(repr), st.text("abc-+.x# ", max_size=5))
)
@example("nan")
@example("9" * 5000)
def test_invalid_port_is_refused(capsys: pytest.CaptureFixture[str], port: int | str) -> None:
    """Issue: "Usage errors: exit 2". Law: "one line that says what, why and what to do: never a traceback"."""
    assert "--port" in refused(capsys, f"--port={port}")


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-1", "-0.001", "86401", "soon", "", "1e999"])
def test_invalid_drain_timeout_is_refused(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """A timer's deadline must be finite: NaN and infinity would never come."""
    assert "is not a number of seconds from 0 to 86400" in refused(capsys, f"--drain-timeout={text}")


REFUSED_VALUES = {
    "--port": "-1 65536 echo",
    "--max-connections": "0 many",
    "--backlog": f"0 {2**31}",
    "--socket-buffer": "1",
    "--drain-timeout": "-1",
    "--idle-timeout": "0 -1 never",
    "--allow": "10.0.0.1/8",
    "--max-connections-per-source": "0 few",
    "--udp-rate": "0 1000:",
    "--udp-rate-total": "fast",
    "--refuse-source-ports": "70000 none,7",
    "--busy-poll": "-1 0.5 1000001",
    "--slow-callback": "-1 60001",
    "--metrics": "9107 :9107 []:1 ::1:9107 [::1:9107 h: h:65536 h:http",
    "--log-level": "loud",
    "--log-format": "xml",
    "--workers": "0 -1 x 100000",
}


@pytest.mark.parametrize(
    "arguments",
    [
        *([option, value] for option, values in REFUSED_VALUES.items() for value in values.split()),
        *(["--port"], ["--allow"], ["--host", ""], ["--host", "  "], ["--metrics", ""], ["--unknown"], ["surplus"]),
        *(["--no-tcp", "--no-udp"], ["--deny", "192.0.2.0/24", "example.org"]),
    ],
    ids=" ".join,
)
def test_usage_error_is_one_line_that_names_the_option(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """Law: "a mistake in an option costs one line"; the line names the option."""
    line = refused(capsys, *arguments)
    assert line.startswith("echo7")
    assert arguments[0].strip("-") in line


# a host or a file may have any name, so later Pythons accept `--`
@pytest.mark.parametrize("option", sorted({o.key for o in OPTIONS.values() if o.parse is not None} - {"host", "trace"}))
def test_two_dashes_as_a_value_are_refused(capsys: pytest.CaptureFixture[str], option: str) -> None:
    """Story: argparse of Python 3.11 took `--port=--` for an empty list, which went as far as bind(2)."""
    assert f"--{option}" in refused(capsys, f"--{option}=--")


@pytest.mark.parametrize(("name", "value"), [("port", []), ("host", ["127.0.0.1", []])])
def test_value_that_argparse_loses_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, value: list[object]
) -> None:
    """The same for any version of argparse: some lose the value of `--port=--`."""
    options = cli.parse(["serve"])
    setattr(options, name, value)
    monkeypatch.setattr(commandline.OneLineParser, "parse_args", lambda parser, argv: options)
    assert f"argument --{name}: '--' is no value" in refused(capsys)


@pytest.mark.parametrize("arguments", [["serve", "--port", "x"], [], ["sevre"], ["serve", "--no-tcp", "--no-udp"]])
def test_usage_error_ends_the_process_with_status_2(arguments: list[str]) -> None:
    """Issue: "Usage errors: exit 2", on stderr, without a traceback."""
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert only_line(done.stderr).startswith("echo7")


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"]])
def test_help_goes_to_stdout_with_status_0(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """So that it can be piped into a pager."""
    with pytest.raises(SystemExit) as end:
        cli.parse(arguments)
    captured = capsys.readouterr()
    assert end.value.code == 0
    assert captured.err == ""
    assert captured.out.startswith("usage: echo7")


# ---------------------------------------------------------------- starting


@IPV6
def test_help_of_serve_fits_one_screen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue: "`echo7 serve --help` under 60 lines of 80 columns", one line for each option, examples last."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 80
    found = [line.split()[0] for line in lines if line.startswith("  -")]
    assert found == ["-h,", *(option.flag for options in by_group().values() for option in options)]
    assert not [line for line in lines if line.startswith(" " * 3)], "an option or its help goes on in a second line"
    titles = [line.rstrip(":") for line in lines if line.endswith(":")]
    assert titles == ["options", *by_group(), "examples"]


def test_default_start_logs_a_loopback_hint_and_a_line_for_each_socket() -> None:
    """Issue: "one line per socket to stderr, ending in `tcp 127.0.0.1:7` / `udp [::1]:7`"; "the start-up line says
    that it is reachable from this machine only and how to open it".
    """
    with text_log("--sandbox", "off") as (hint, limit, *listening):
        assert re.search(r" info at most [\d,]+ connections at once, with [\d,]+ descriptors$", limit)
        port = listening[0].rpartition(":")[2]
        assert "reachable from this machine only" in hint
        assert "--host '*'" in hint
        ends = [line.split(" listening on ")[1] for line in listening]
        assert ends == [f"tcp 127.0.0.1:{port}", f"tcp [::1]:{port}", f"udp 127.0.0.1:{port}", f"udp [::1]:{port}"]
        assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info ", line) for line in [hint, *listening])


@pytest.mark.parametrize(("option", "kind"), [("--no-udp", "tcp"), ("--no-tcp", "udp")])
def test_transport_that_is_off_has_no_line(option: str, kind: str) -> None:
    """One transport is served; and with --host there is no hint about loopback."""
    with text_log("--host", "127.0.0.1", "--sandbox", "off", option) as lines:
        assert [line for line in lines if "listening" in line] == [lines[-1]]
        assert f" listening on {kind} 127.0.0.1:" in lines[-1]


@pytest.mark.parametrize("arguments", [[], ["--plain", "--sandbox", "off"]])
def test_udp_is_answered_with_and_without_fast_paths(arguments: list[str]) -> None:
    """`--plain`: "use no fast path"; no client sees the difference."""
    with EchoProcess("--host", "*", *arguments) as echo, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE_S)
        client.connect(("127.0.0.7", echo.port))
        for number in range(200):
            client.send(b"%d" % number)
            if number % 10 == 9:
                assert [client.recv(100) for _ in range(10)] == [b"%d" % n for n in range(number - 9, number + 1)]
        maps = pathlib.Path(f"/proc/{echo.process.pid}/maps")
        if arguments and maps.exists():
            assert "_ctypes" not in maps.read_text()
        assert echo.finish() == 0


@IPV6
def test_json_lines_have_stable_keys() -> None:
    """Issue: "(JSON: `event`, `transport`, `address`, `port`)", and only when all are logged is anything served."""
    with EchoProcess() as echo:
        while len(echo.lines) < 6:
            echo.next_line("listening")
        hint, limit, *listening = echo.lines
        assert limit["event"] == "limits"
        assert hint["event"] == "loopback_only"
        assert [line["event"] for line in listening] == ["listening"] * 4
        found = [(line["transport"], line["address"], line["port"]) for line in listening]
        assert found == [(kind, host, echo.port) for kind in ("tcp", "udp") for host in LOOPBACK]
        assert echo.finish() == 0


def test_star_is_served_without_the_loopback_hint() -> None:
    """`--host '*'`: every machine can connect; a hint about loopback would be wrong."""
    with EchoProcess("--host", "*") as echo:
        assert {line["event"] for line in echo.lines} - {"serving_as_root", "limits"} == {"listening"}
        assert echo.lines[-1]["address"] == "0.0.0.0"


def test_bare_interpreter_serves() -> None:
    """Issue: "`python3 -m echo7 serve` # … nothing to install": site-packages isn't used either."""
    code = "import sys, echo7.__main__; print(*{name.partition('.')[0] for name in sys.modules})"
    flags = ["-S", "-B", "-W", "error"]
    done = subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.stderr == ""
    allowed = {*sys.stdlib_module_names, "echo7", "reactor", "__main__", "__mp_main__", "sitecustomize"}
    assert set(done.stdout.split()) - allowed == set()
    assert run("serve", "--help", flags=flags).returncode == 0


def test_importing_the_command_does_not_run_it() -> None:
    """Tools that import every module (pydoc, a linter, multiprocessing) must not start a service."""
    assert callable(importlib.import_module("echo7.__main__").main)


def test_interrupt_at_start_leaves_no_traceback() -> None:
    """Story: ^C while a name is being looked up, before the service has installed its handlers."""
    code = """if True:
        import os, signal, socket, sys
        from echo7 import cli
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for its background
        def interrupted(*args, **options):
            os.kill(os.getpid(), signal.SIGINT)
            while True:  # the interpreter checks for signals now and then
                pass
        socket.getaddrinfo = interrupted
        sys.exit(cli.main(["serve", "--host", "slow.test", "--port", "0"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "")


def test_start_without_descriptors_ends_with_one_line_and_status_1() -> None:
    """`ulimit -n` is too low for the selector and the waker: the error is one line."""
    code = """if True:
        import os, resource, sys
        from echo7 import cli
        while (free := os.dup(2)) < 20:  # the next descriptor
            pass
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 2, free + 2))  # a selector and a pair need three
        sys.exit(cli.main(["serve", "--port", "0", "--log-format", "json"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    line = json.loads(only_line(done.stderr))
    assert (done.returncode, line["event"], line["level"]) == (1, "start_failed", "error")
    assert line["message"] == "cannot start: Too many open files; raise 'ulimit -n'"


# ---------------------------------------------------------------- failed binds


def unbindable(*arguments: str, prefix: Sequence[str] = ()) -> str:
    """Try to serve; return the error line."""
    done = run("serve", *arguments, prefix=prefix)
    assert (done.returncode, done.stdout) == (1, "")
    return only_line(done.stderr)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_port_in_use_ends_with_one_line_and_status_1(transport: str) -> None:
    """Issue: "one clear line that names the address, the reason and the remedy …, exit status 1, no traceback"."""
    port = quiet_port()
    holder = bind_all(socket, ["127.0.0.1"], port, tcp=transport == "tcp", udp=transport == "udp")
    other = {"tcp": "--no-udp", "udp": "--no-tcp"}[transport]  # another process may have that port
    line = unbindable("--host", "127.0.0.1", "--port", str(port), other)
    holder.close()
    assert f" error cannot bind {transport} 127.0.0.1:{port}: Address already in use; " in line
    assert "--port" in line


def test_port_7_without_privilege_ends_with_one_line_and_the_remedies() -> None:
    """Issue: "port 7 without privilege: sudo, an ambient capability, a systemd socket, or `--port`"."""
    if not UNPRIVILEGED.exists() or int(UNPRIVILEGED.read_text()) <= 7:
        pytest.skip("port 7 needs no privilege here")
    line = unbindable("--port", "7", prefix=without_capabilities("net_bind_service"))
    assert " error cannot bind tcp 127.0.0.1:7: Permission denied; " in line
    for remedy in ("sudo", "ambient capability", "systemd socket", "--port"):
        assert remedy in line


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "cannot bind tcp 192.0.2.1:7007: Cannot assign requested address; "),
        ("two..dots", "cannot serve on 'two..dots': not a host name; "),
        ("fe80::1%no-such-interface", "cannot serve on 'fe80::1%no-such-interface': "),
    ],
)
def test_host_that_is_not_local_ends_with_one_line_and_status_1(host: str, reason: str) -> None:
    """An unknown name, or an address of another machine: the address, the reason and the remedy."""
    assert reason in unbindable("--host", host, "--port", "7007")


def test_failed_bind_is_an_event_in_json() -> None:
    """A program that reads the log finds the failure by its event name."""
    line = json.loads(unbindable("--host", "two..dots", "--log-format", "json"))
    assert (line["event"], line["level"]) == ("bind_failed", "error")


@pytest.mark.skipif(shutil.which("unshare") is None or os.getuid() != 0, reason="needs root and unshare(1)")
def test_machine_without_ipv6_serves_ipv4_and_logs_one_line() -> None:
    """Promise 20: "a machine without IPv6 still serves IPv4, with one log line"."""
    script = 'ip link set lo up && sysctl -qw net.ipv6.conf.all.disable_ipv6=1 || exit 77; exec "$@"'
    command = [sys.executable, "-m", "echo7", "serve", "--port", "7007", "--log-format", "json", "--sandbox", "off"]
    with subprocess.Popen(
        ["unshare", "-n", "sh", "-c", script, "sh", *command], cwd=PROJECT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines = []
        for text in process.stderr:
            if not text.startswith("{"):
                process.wait()
                pytest.skip(f"no network namespace for us: {text}")
            lines.append(json.loads(text))
            if lines[-1].get("transport") == "udp":
                break
        process.kill()
    assert [line["event"] for line in lines] == ["left_out", "loopback_only", "limits", "listening", "listening"]
    assert "this machine has no IPv6" in lines[0]["message"]
    assert [line["address"] for line in lines[3:]] == ["127.0.0.1"] * 2


@pytest.mark.parametrize(
    ("hosts", "hints", "left_out", "served"),
    [([], ["loopback_only"], "::1", "127.0.0.1"), (["--host", "*"], [], "::", "0.0.0.0")],
    ids=["default", "every address"],
)
def test_address_that_is_left_out_has_a_line_with_its_name(
    caplog: pytest.LogCaptureFixture, hosts: list[str], hints: list[str], left_out: str, served: str
) -> None:
    """The same without root: "a machine without IPv6 still serves IPv4, with one log line"."""
    caplog.set_level(logging.INFO)
    sockets = FlakySockets()
    sockets.refused_families[socket.AF_INET6] = os_error(errno.EAFNOSUPPORT)
    config = serve_config("--port", "0", "--sandbox", "off", *hosts)
    with Reactor(sockets=sockets) as reactor:
        Service(reactor, config, log.StderrHandler(), 1024).start()
    events = [vars(record)["event"] for record in caplog.records]
    if events[0] == "serving_as_root":
        caplog.records.pop(0)
        events.pop(0)
    assert events == ["left_out", *hints, "limits", "listening", "listening"]
    assert caplog.messages[0] == f"not serving {left_out}: this machine has no IPv6"
    assert [vars(record)["fields"]["address"] for record in caplog.records[-2:]] == [served] * 2


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_service_in_order_with_a_summary(signum: signal.Signals) -> None:
    """Issue: "exit 0"; "A summary line says connections, bytes, datagrams, and drops by reason"."""
    with EchoProcess("--host", "127.0.0.1") as echo:
        with echo.connect() as client:
            client.sendall(b"12345")
            receive_exactly(client, 5)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.settimeout(PATIENCE_S)
            udp.connect(("127.0.0.1", echo.port))
            udp.send(b"123")
            assert udp.recv(10) == b"123"
        assert echo.finish(signum) == 0
    summary = echo.lines[-1]
    assert summary["event"] == "stopped"
    assert (summary["connections"], summary["connections_open"]) == (
        2,
        0,
    )  # the first connection tested whether the service is up
    assert summary["tcp_bytes_received"] == summary["tcp_bytes_sent"] == 6 + 5
    assert (summary["datagrams_received"], summary["datagrams_sent"]) == (1, 1)
    assert (summary["udp_bytes_received"], summary["udp_bytes_sent"]) == (3, 3)
    assert (summary["drops"], summary["log_lines_dropped"]) == ({}, 0)
    assert [line["event"] for line in echo.lines].count("stopping") == 1


def test_drops_are_in_the_summary_by_reason() -> None:
    """Issue: "and drops by reason": a datagram from a responder's port gets no answer, and is counted."""
    with EchoProcess("--host", "127.0.0.1", "--no-tcp") as echo:
        responder = free_responder()
        with responder, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            responder.sendto(b"loop?", ("127.0.0.1", echo.port))
            udp.settimeout(PATIENCE_S)
            udp.connect(("127.0.0.1", echo.port))
            udp.send(b"after")
            assert udp.recv(10) == b"after"
        assert echo.finish() == 0
    assert echo.lines[-1]["drops"] == {"source_port_responder": 1}


def free_responder() -> socket.socket:
    """Return a socket on a responder's port that needs no privilege."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for port in (27_960, 11_211, 5353, 3702, 3283, 1900, 1434):
        with contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return sock
    sock.close()
    pytest.skip("every one of these ports is in use")


def test_text_summary_is_in_words() -> None:
    """The same as text."""
    command = [sys.executable, *"-m echo7 serve --port 0 --host 127.0.0.1 --no-udp --sandbox off".split()]
    with subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while " listening on tcp 127.0.0.1:" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        lines = process.stderr.read().splitlines()
    assert process.returncode == 0
    assert " info stopping on SIGTERM: delivering for up to 5 s" in lines[0]
    assert lines[-1].endswith(
        " info stopped: 0 connections (0 open), 0 bytes received and 0 sent over tcp; "
        "0 datagrams received and 0 answered over udp; drops: none, 0 log lines dropped"
    )


def test_sigusr1_logs_the_counters_and_serving_goes_on() -> None:
    """Issue: "SIGUSR1 logs the same counters while running"."""
    with EchoProcess("--host", "127.0.0.1") as echo, echo.connect() as client:
        for number in (1, 2):
            client.sendall(b"x" * 10)
            receive_exactly(client, 10)
            echo.process.send_signal(signal.SIGUSR1)
            line = echo.next_line("counters")
            assert (line["connections"], line["connections_open"]) == (2, 1)
            assert line["tcp_bytes_received"] == 6 + 10 * number
        assert echo.process.poll() is None
        client.close()
        assert echo.finish() == 0
    assert echo.lines[-1].keys() == line.keys(), "the summary has the same counters"


def test_sigusr2_logs_what_the_loop_has_and_changes_nothing() -> None:
    """Issue: "`SIGUSR2`/`reactor.observe.snapshot()`: handlers, interest, buffers, timers, in one readable table"."""
    with EchoProcess("--host", "127.0.0.1") as echo, echo.connect() as client:
        client.send(b"1")
        assert client.recv(1) == b"1"
        for _ in range(2):
            echo.process.send_signal(signal.SIGUSR2)
            message = echo.next_line("dump")["message"]
            assert message.startswith("what the loop has: 4 handlers, 0 bytes pending, 0 timers, 0 calls\n")
            port = client.getsockname()[1]
            [line] = [line for line in message.splitlines() if f" 127.0.0.1:{port}, StreamEcho" in line]
            assert line.split()[3] == "OPEN"
        client.send(b"2")
        assert client.recv(1) == b"2"
        client.close()
        assert echo.finish() == 0


@pytest.mark.skipif(not hasattr(os, "listdir") or not pathlib.Path("/proc/self/fd").exists(), reason="needs /proc")
def test_sigusr2_works_without_a_free_descriptor() -> None:
    """An operator needs it exactly then; no module is read at that moment."""
    with EchoProcess("--host", "127.0.0.1", "--no-udp", "--max-connections", "500", preexec_fn=low_limit) as echo:
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(echo.connect())
            echo.next_line("accept_waits")
            echo.process.send_signal(signal.SIGUSR2)
            message = echo.next_line("dump")["message"]
            [listener] = [line for line in message.splitlines() if line.startswith("Listener")]
            assert listener.split()[2] == "(r)"


def low_limit() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))


def test_stop_delivers_every_received_byte_before_fin() -> None:
    """Issue: "deliver every byte that the process has read (what is still unread in the kernel is discarded while
    lingering), FIN". A reset would raise ConnectionResetError here.
    """
    with EchoProcess("--host", "127.0.0.1", "--socket-buffer", "65536", "--drain-timeout", "20") as echo:
        client = connect_small(("127.0.0.1", echo.port), 16_384)
        sent = fill_until_stuck(echo, client)
        echo.process.send_signal(signal.SIGTERM)
        echo.next_line("stopping")
        received = receive_to_end(client)
        client.close()
        summary = echo.next_line("stopped")
        assert echo.process.wait(PATIENCE_S) == 0
    assert sent.startswith(received)
    assert len(received) + 6 == summary["tcp_bytes_received"] == summary["tcp_bytes_sent"]


def fill_until_stuck(echo: EchoProcess, client: socket.socket) -> bytes:
    """Send without reading until the process reads no more: two counts in a row are the same."""
    sent, before = bytearray(), -1
    while True:
        sent += fill(client)
        echo.process.send_signal(signal.SIGUSR1)
        counters = echo.next_line("counters")
        if counters["tcp_bytes_received"] == before and counters["tcp_bytes_received"] > counters["tcp_bytes_sent"]:
            client.setblocking(True)
            client.settimeout(PATIENCE_S)
            return bytes(sent)
        before = counters["tcp_bytes_received"]


@contextlib.contextmanager
def stuck(*arguments: str) -> Iterator[tuple[EchoProcess, socket.socket]]:
    """Yield a process, and a client that has sent a lot and reads nothing."""
    with EchoProcess("--host", "127.0.0.1", "--socket-buffer", "65536", *arguments) as echo:
        client = connect_small(("127.0.0.1", echo.port), 16_384)
        fill_until_stuck(echo, client)
        yield echo, client
        client.close()


def test_stuck_client_is_cut_off_at_the_drain_timeout() -> None:
    """Issue: "until `--drain-timeout` (default 5 s), exit 0"."""
    with stuck("--drain-timeout", "0.1") as (echo, client):
        assert echo.finish() == 0
        assert echo.lines[-1]["event"] == "stopped"
        assert echo.lines[-1]["connections_open"] == 0
        with pytest.raises(ConnectionResetError):
            receive_to_end(client)


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)],
)
def test_second_signal_ends_at_once_with_a_true_summary(first: signal.Signals, second: signal.Signals) -> None:
    """Issue: "A second signal ends at once"; `cli`: "128 + n: ended at once by a second signal n". What has been
    done is in the summary even so.
    """
    with stuck("--drain-timeout", "3600") as (echo, client):
        before = echo.lines[-1]
        echo.process.send_signal(first)
        echo.next_line("stopping")
        assert echo.finish(second) == 128 + second
        summary = echo.lines[-1]
        assert summary["event"] == "stopped"
        assert summary["tcp_bytes_received"] == before["tcp_bytes_received"]
        with pytest.raises(ConnectionResetError):
            receive_to_end(client)


def test_drain_timeout_of_zero_ends_at_once_and_in_order() -> None:
    """With 0, the service waits for no client, and the exit status is that of an orderly end."""
    with stuck("--drain-timeout", "0") as (echo, _):
        assert echo.finish() == 0
        assert echo.lines[-1]["event"] == "stopped"


def test_sigusr1_while_stopping_logs_the_counters() -> None:
    """The operator can see what delays the end."""
    with stuck("--drain-timeout", "3600") as (echo, _):
        echo.process.send_signal(signal.SIGTERM)
        echo.next_line("stopping")
        echo.process.send_signal(signal.SIGUSR1)
        assert echo.next_line("counters")["connections_open"] == 1


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"echo7 {echo7.__version__}\n"


def call_from(source: str, port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), PATIENCE_S, (source, 0))


def test_refusals_are_counted_and_logged() -> None:
    """Issue: "every drop has one counter and a rate-limited log line with the source"."""
    options = ["--host", "127.0.0.1", "--deny", "127.0.0.66", "--max-connections-per-source", "1", "--udp-rate", "1:1"]
    with EchoProcess(*options) as echo, call_from("127.0.0.65", echo.port) as inside:
        inside.sendall(b"x")
        assert inside.recv(1) == b"x"
        for source in ("127.0.0.66", "127.0.0.65"):
            # The reset may come before connect(2) returns.
            with contextlib.suppress(ConnectionResetError), call_from(source, echo.port) as refused_one:
                assert refused_one.recv(1) == b""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE_S)
            client.bind(("127.0.0.67", 0))
            client.connect(("127.0.0.1", echo.port))
            for _ in range(20):
                client.send(b"x")
            assert client.recv(1) == b"x"
        assert echo.next_line("dropped")["reason"] == "refused_denied"
        assert echo.next_line("dropped")["source"].startswith("127.0.0.65:")
        # an open connection would hold up the end until the drain timeout
        inside.close()
        assert echo.finish() == 0
    dropped = [line for line in echo.lines if line["event"] == "dropped"]
    assert {line["reason"] for line in dropped} == {"refused_denied", "refused_source_cap", "rate_source"}
    assert sum(line["reason"] == "rate_source" for line in dropped) <= 5
    assert echo.lines[-1]["drops"]["refused_denied"] == echo.lines[-1]["drops"]["refused_source_cap"] == 1
    assert echo.lines[-1]["drops"]["rate_source"] >= 18


# ---------------------------------------------------------------- mistakes as JSON


@pytest.mark.parametrize(
    ("arguments", "file", "why"),
    [
        (["--log-format", "json", "--prot"], "", "unrecognized arguments: --prot"),
        (["--port", "x", "--log-format=json"], "", "argument --port: 'x' is not a whole number"),
        (["--log-f", "json", "--no-tcp", "--no-udp"], "", "leave nothing to serve"),
        (["--log-format", "json"], "port = 'x'", "argument --port: 'x'"),
        ([], "log-format = 'json'\nprot = 7", "there is no option 'prot'"),
        ([], "log-format = 'json'\nno-tcp = true\nno-udp = true", "leave nothing to serve"),
    ],
    ids=str,
)
def test_mistake_is_a_json_line_where_the_log_is_json(
    arguments: list[str], file: str, why: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file.toml").write_text(file)
    done = run_echo7("serve", "--config", str(tmp_path / "file.toml"), *arguments)
    assert done.returncode == 2
    line = json.loads(done.stderr)
    assert (line["level"], line["event"]) == ("error", "usage_error")
    assert why in line["message"]


@pytest.mark.parametrize("arguments", [["--log-format", "text"], ["--log-format", "json", "--log-format", "text"], []])
def test_mistake_is_text_where_the_log_is_text(arguments: list[str]) -> None:
    done = run_echo7("serve", *arguments, "--port", "x")
    assert done.stderr.startswith("echo7 serve: argument --port: 'x'")


def test_mistake_in_a_check_for_a_restart_is_text() -> None:
    """The running service quotes the check's last line in its own log."""
    environment = {**os.environ, "ECHO7_CHECK": ""}
    done = run_echo7("serve", "--log-format", "json", "--port", "x", env=environment)
    assert (done.returncode, done.stderr.startswith("echo7 serve: argument --port")) == (2, True)


def test_lines_of_connections_have_events_and_fields() -> None:
    with EchoProcess("--host", "127.0.0.1", "--log-level", "debug") as echo:
        with echo.connect() as client:
            source = "{}:{}".format(*client.getsockname())
            assert echo_and_close(client, b"12345") == b"12345"
        opened = next(
            line for line in iter(lambda: echo.next_line("connection_opened"), None) if line["source"] == source
        )
        assert opened["message"] == f"connection from {source}"
        closed = next(
            line for line in iter(lambda: echo.next_line("connection_closed"), None) if line["bytes_received"] == 5
        )
        assert (closed["bytes_sent"], closed["how"], closed["level"]) == (5, "in order", "debug")
        assert echo.finish() == 0
        assert "log" not in {line["event"] for line in echo.lines}
