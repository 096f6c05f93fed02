"""`check` and `echo7 check` on real sockets."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import echo7
from echo7 import check, cli
from echo7.checker import CASES, QUICK, Case, Fault, Finding, Verdict, one_of_each_family, table
from echo7.checker import command as check_command
from echo7.checker.tcp_client import TcpClient, difference, fault_of
from echo7.checker.verdict import score
from echo7.sockets.resolve import UnresolvedName
from reactor.sockets.errors import os_error
from tests.support.basics import PATIENCE_S, has_ipv6, quiet_port
from tests.support.commands import Done, assert_help_is_readable, run, run_echo7
from tests.support.echo import EchoThread

HOST = "127.0.0.1"
TIMEOUT_S = 2.0
IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
ONE_EACH = ["tcp-1", "udp-1"]
WITH_ENDS = ["tcp-answers", "tcp-1", "tcp-alive", "udp-answers", "udp-1", "udp-alive"]
BRIEF = QUICK._replace(clients=20, connections=20, resets=1, exchanges=20, datagrams=60, stream_mib=1, late_s=0.02)


def run_check(*arguments: str, **options: Any) -> Done:
    return run_echo7("check", *arguments, **options)


@pytest.mark.long
@IPV6
def test_echo7_passes_its_own_check_over_both_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "The echo server that passes its own conformance test": every case, and the score that its port allows."""
    with EchoThread(hosts=["127.0.0.1", "::1"]) as one:
        ports = {address.port for address in one.server.addresses}
        if len(ports) != 1:
            pytest.skip("no port was free in both families")
        both = [("127.0.0.1", one.port), ("127.0.0.2", one.port), ("::1", one.port, 0, 0)]
        monkeypatch.setattr("echo7.checker.resolve", lambda host, port, family: both)
        report = check("both.test", one.port, timeout_s=TIMEOUT_S, effort=BRIEF)
    bad = [finding for finding in report.findings if finding.verdict is not Verdict.PASS]
    assert [f for f in bad if f.case.name != "udp-loop-guard"] == []  # only root can bind port 19
    assert {finding.address for finding in report.findings} == {"127.0.0.1", "::1"}
    assert report.status == 0
    assert score(one.port, report.findings).reasons == (f"the port is {one.port}, not 7",)


@pytest.mark.long
@pytest.mark.parametrize("options", [{"plain": True}, {"plain": False, "pipes": 4}])
def test_echo7_passes_with_and_without_its_fast_paths(options: dict[str, Any]) -> None:
    with EchoThread(**options) as one:
        report = check(HOST, one.port, timeout_s=TIMEOUT_S, effort=BRIEF)
    assert report.status == 0
    assert {f.verdict for f in report.findings if f.case.required} == {Verdict.PASS}


@pytest.fixture(autouse=True)
def sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits: on this machine, bytes that should not come would come at once."""
    for name, value in (
        ("session.QUIET_S", 0.05),
        ("session.STALLED_FOR_S", 0.5),
        ("tcp_cases.STALLED_S", 0.05),
        ("tcp_cases.SMALL_BUFFER_BYTES", 65_536),
    ):
        monkeypatch.setattr(f"echo7.checker.{name}", value)


@contextlib.contextmanager
def blocking_server(serve: object) -> Iterator[int]:
    """A TCP server that runs `serve(socket)` in a thread for each connection, until the block ends."""
    with socket.create_server((HOST, 0)) as listener:
        done = threading.Event()

        def accept() -> None:
            while not done.is_set():
                with contextlib.suppress(OSError):
                    client = listener.accept()[0]
                    threading.Thread(target=one, args=(client,), daemon=True).start()

        def one(client: socket.socket) -> None:
            with client, contextlib.suppress(OSError):
                serve(client)  # type: ignore[operator]

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        done.set()
        with contextlib.suppress(OSError):
            socket.create_connection(listener.getsockname(), PATIENCE_S).close()
        thread.join(PATIENCE_S)


def flood(client: socket.socket) -> None:
    """Endless data."""
    while True:
        client.sendall(b"x" * 65_536)


def garbage(client: socket.socket) -> None:
    """As many bytes as were sent, but others."""
    while data := client.recv(65_536):
        client.sendall(os.urandom(len(data)))


def hang_up(client: socket.socket) -> None:
    """Close at once."""


def say_nothing(client: socket.socket) -> None:
    """Never answer."""
    while client.recv(65_536):
        pass


@pytest.mark.long
@pytest.mark.parametrize(
    ("serve", "fault", "factor"),
    [
        (flood, Fault.EXCESS, "ω"),
        (garbage, Fault.LOSSY, "×8"),
        (hang_up, Fault.MUTE, "ω"),
        (say_nothing, Fault.MUTE, "ω"),
    ],
)
def test_hostile_server_gets_a_clear_verdict_in_bounded_time(serve: object, fault: Fault, factor: str) -> None:
    """Issue: "endless data, garbage, immediate close, never answering"."""
    with blocking_server(serve) as port:
        report = check(HOST, port, timeout_s=0.5, effort=BRIEF)
    assert fault in {finding.fault for finding in report.findings if finding.case.transport == "tcp"}
    assert report.status == 1
    assert score(port, report.findings).text == factor


@pytest.mark.long
def test_backlog_that_is_never_served_is_mute() -> None:
    """The kernel accepts for the server: there is a connection, and no program behind it."""
    with socket.create_server((HOST, 0)) as listener:
        report = check(HOST, listener.getsockname()[1], transports=["tcp"], timeout_s=0.3)
    (finding,) = report.findings
    assert (finding.fault, finding.verdict, report.status) == (Fault.MUTE, Verdict.FAIL, 1)


def test_only_runs_the_named_cases_and_gives_no_score() -> None:
    with EchoThread() as one:
        seen: list[str] = []

        def note(case: Case, address: str, finding: Finding | None) -> None:
            seen.append(case.name)

        report = check(HOST, one.port, only=ONE_EACH, timeout_s=TIMEOUT_S, effort=BRIEF, progress=note)
    assert [finding.case.name for finding in report.findings] == WITH_ENDS
    assert seen == [name for name in ["tcp-answers", "tcp-1", "udp-answers", "udp-1"] for _ in "12"] + [
        name for name in ["tcp-alive", "udp-alive"] for _ in "12"
    ]
    assert report.score is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"only": ["tcp-on"]}, "there is no case 'tcp-on' here; did you mean tcp-"),
        ({"only": ["udp-1"], "transports": ["tcp"]}, "there is no case 'udp-1' here"),
        ({"transports": ["sctp"]}, "no transport to check; give tcp or udp"),
        ({"timeout_s": 0}, "timeout_s must be above 0"),
        ({"timeout_s": float("nan")}, "timeout_s must be above 0"),
    ],
)
def test_arguments_that_make_no_sense_raise_value_error(options: dict[str, Any], said: str) -> None:
    """Story: a misspelt case was reported as a server that doesn't answer."""
    with pytest.raises(ValueError, match=said.partition("'")[0]) as error:
        check(HOST, **options)
    assert said in str(error.value)


def test_unknown_host_raises_unresolved_name() -> None:
    with pytest.raises(UnresolvedName):
        check("no-such-host.invalid")


def test_package_exports_check_and_no_module_shadows_it() -> None:
    assert callable(echo7.check)
    assert "check" in dir(echo7)
    with pytest.raises(AttributeError):
        _ = echo7.no_such_thing


# ---------------------------------------------------------------- small rules


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (errno.ECONNREFUSED, Fault.REFUSED),
        (errno.ECONNRESET, Fault.REFUSED),
        (errno.EHOSTUNREACH, Fault.UNREACHABLE),
        (errno.ENETUNREACH, Fault.UNREACHABLE),
        (errno.ETIMEDOUT, Fault.TIMED_OUT),
    ],
)
def test_refused_unreachable_and_timed_out_are_different_faults(code: int, fault: Fault) -> None:
    assert fault_of(os_error(code)) is fault


@pytest.mark.parametrize(
    ("sent", "came", "said"),
    [
        (b"\r\n", b"\n\r", "at byte 100: sent 0d 0a, came back 0a 0d"),
        (b"abc", b"abX", "at byte 102: sent 63, came back 58"),
        (b"abc", b"ab", "at byte 102: sent 63, came back nothing"),
    ],
)
def test_difference_says_its_place_and_its_bytes(sent: bytes, came: bytes, said: str) -> None:
    assert difference(sent, came, 100) == said


def test_kernel_tells_whether_the_server_has_taken_everything() -> None:
    with socket.create_server((HOST, 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        client = TcpClient(Any)  # type: ignore[arg-type]
        assert not client.is_taken
        client.made, client.connection = True, types.SimpleNamespace(socket=sock)  # type: ignore[assignment]
        assert client.is_taken


def test_one_address_of_each_family_is_checked() -> None:
    v4, v6 = [(f"192.0.2.{n}", 7) for n in (1, 2)], [(f"2001:db8::{n}", 7, 0, 0) for n in (1, 2)]
    assert one_of_each_family([*v6, *v4]) == [v6[0], v4[0]]
    assert one_of_each_family(v4) == [v4[0]]


# ---------------------------------------------------------------- the command


@pytest.mark.long
def test_quick_command_prints_a_table_and_what_it_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    with EchoThread() as one:
        assert cli.main(["check", HOST, "--port", str(one.port), "--timeout", "2", "--quick"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(case.name in out for case in CASES if not case.is_idle)
    assert "tried less: 1 instead of 2 rounds, " in out
    assert re.search(r"from seed \d+ \(--seed \d+ repeats them\)$", out, re.M)
    summary = rf"^{len(CASES) - 1} cases: 4\d pass, 0 fail, 0 not supported, [01] can't tell; all required cases pass$"
    assert re.search(summary, out, re.M)


def test_json_is_one_document() -> None:
    with EchoThread() as one:
        done = run_check(HOST, "--port", str(one.port), "--json", "--quick", "--only", *ONE_EACH)
    document = json.loads(done.stdout)
    assert (done.returncode, document["schema"], document["status"], document["score"]) == (0, 2, 0, None)
    assert [finding["case"] for finding in document["findings"]] == WITH_ENDS
    assert {finding["verdict"] for finding in document["findings"]} == {"pass"}


def test_help_fits_a_screen_with_one_line_for_each_option_and_examples_last() -> None:
    assert_help_is_readable("check", ["server", "cases", "output", "exit status", "examples"])


@pytest.mark.long
def test_failed_case_is_status_1() -> None:
    with blocking_server(garbage) as port:
        done = run_check(HOST, "-4", "--port", str(port), "--tcp", "--only", "tcp-1", "--timeout", "1")
    assert done.returncode == 1
    assert "required cases fail" in done.stdout
    assert "tcp-1 " in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("arguments", [("127.0.0.1", "-4"), pytest.param(("::1", "-6"), marks=IPV6)])
def test_no_server_is_status_3_and_says_refused(arguments: tuple[str, str]) -> None:
    port = quiet_port([arguments[0]])
    done = run_check(*arguments, "--port", str(port), "--timeout", "1")
    assert done.returncode == 3
    assert f"nothing answered at {arguments[0]}, port {port}: TCP refused: " in done.stdout
    assert "UDP refused: " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "required: HOST"),
        (["x", "--port", "0"], 2, "from 1 to 65535"),
        (["x", "--only", "tcp-on"], 2, "did you mean tcp-"),
        (["x", "--only", "zzz"], 2, "'echo7 check --list' lists them all"),
        (["x", "--tcp", "--only", "udp-1"], 2, "there is no case 'udp-1' here"),
        (["x", "--tcp", "--udp"], 2, "not allowed with"),
        (["x", "--timeout", "0"], 2, "no server answers in 0 seconds"),
        (["no-such-host.invalid"], 3, "no-such-host.invalid"),
        (["--list", "--json"], 2, "--list"),
    ],
)
def test_options_that_make_no_sense_cost_one_line(arguments: Sequence[str], status: int, said: str) -> None:
    done = run_check(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_list_names_every_case_with_its_rule() -> None:
    done = run_check("--list")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [case.name for case in CASES]
    assert all("RFC" in line for line in done.stdout.splitlines())


def test_full_disk_is_status_1_and_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = run_check("--list", stdout=full)
    assert done.returncode == 1
    assert done.stderr == "can't write to stdout: No space left on device; the result is lost\n"


def test_closed_pipe_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as gone:
        done = run_check("--list", stdout=gone)
    assert (done.returncode, done.stderr) == (0, "")


def test_locale_without_some_letters_gets_others() -> None:
    done = run_check("--list", env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "tcp-urgent" in done.stdout


def test_progress_is_shown_on_a_terminal_and_then_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(check_command, "takes_escapes", lambda descriptor: True)
    monkeypatch.setattr(sys.stderr, "write", written.append)
    progress = check_command.Progress()
    progress(CASES[0], HOST, None)
    progress.show("")
    assert written == ["\r\x1b[Ktcp-answers at 127.0.0.1: a server is there and echoes …", "\r\x1b[K"]


def test_terminal_gets_colours_and_a_file_none() -> None:
    with EchoThread() as one:
        report = check(HOST, one.port, only=ONE_EACH, effort=BRIEF)
    assert "\x1b[32mpass" in table.text(report, colour=True)
    assert "\x1b" not in table.text(report)


@pytest.mark.long
def test_unreachable_address_is_unknown_and_status_3() -> None:
    """connect(2) refuses 255.255.255.255 at once."""
    report = check("255.255.255.255", 7, timeout_s=0.3)
    assert {finding.verdict for finding in report.findings} == {Verdict.UNKNOWN}
    assert report.status == 3


def test_too_few_descriptors_cost_one_line() -> None:
    code = """if True:
        import os, resource, sys
        from echo7 import cli
        free = os.dup(2)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 2, free + 2))  # a selector and a pair need three
        sys.exit(cli.main(["check", "127.0.0.1"]))
    """
    done = run([sys.executable, "-c", code])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "echo7 check: cannot start: Too many open files; raise 'ulimit -n'\n"
