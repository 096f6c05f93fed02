"""SIGHUP: a fresh start without an outage, over real processes, with callers who never pause."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from echo7.logs import log
from echo7.process import lifecycle, restart
from echo7.process import previous as elder
from echo7.sockets import reuseport
from echo7.sockets.binding import bind_all
from reactor import Reactor
from tests.echo7.process.test_notify import Ear
from tests.echo7.sockets.test_activation import HAND_IN
from tests.echo7.test_cli import fill_until_stuck, only_line
from tests.support.basics import PATIENCE_S, PROJECT, until
from tests.support.clients import connect_small, receive_exactly, receive_to_end
from tests.support.daemon import EchoProcess, Installation, serve_config
from tests.support.echo import EchoByHand
from tests.support.loops import turn_until

if not hasattr(signal, "SIGHUP"):
    pytest.skip("this system has no SIGHUP", allow_module_level=True)

LINUX = pytest.mark.skipif(not reuseport.AVAILABLE, reason="Linux alone balances, and has /proc")
HOST = ("--host", "127.0.0.1")
WAYS = [(), ("--workers", "2"), ("--selector", "lean", "--busy-poll", "50", "--no-udp-batch")]
PREAMBLE = """
import os, signal, sys, time
from echo7 import cli, serve
from echo7.process import lifecycle, restart, supervisor
from echo7.process import previous as elder
NEW, CHECK = "ECHO7_HANDOVER" in os.environ, "ECHO7_CHECK" in os.environ
"""
NOT_AFRESH = "not starting afresh, serving on as before: "


class Phoenix(EchoProcess):
    """A service that is started afresh. With `code`, something in it is broken first, in each of its images."""

    def __init__(self, *arguments: str, code: str = "", **options: Any) -> None:
        if code:
            program = f"{PREAMBLE}\n{code}\nsys.exit(cli.main(sys.argv[1:]))"
            self.lines, self._wait = [], options.pop("wait", True)
            command = [sys.executable, "-c", program, "serve", "--port", "0", "--log-format", "json", *HOST, *arguments]
            self.process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True, **options)
        else:
            super().__init__(*HOST, *arguments, **options)

    def restart(self) -> dict[str, Any]:
        """Start it afresh; return the line that says so."""
        self.process.send_signal(signal.SIGHUP)
        return self.next_line("restarted")

    def refuses(self) -> str:
        """Ask for a fresh start that fails; return why it did, when it is sure that the service goes on."""
        self.process.send_signal(signal.SIGHUP)
        line = self.next_line("restart_refused")
        assert line["level"] == "error"
        self.answers()
        message: str = line["message"]
        return message.removeprefix(NOT_AFRESH)

    def answers(self) -> None:
        """Be sure that it serves, over both."""
        with self.connect() as client, udp_client(self.port) as flow:
            for sock in (client, flow):
                sock.sendall(b"hello")
                assert sock.recv(5) == b"hello"

    def children(self) -> list[int]:
        """Its children, zombies too."""
        pid = self.process.pid
        return [int(each) for each in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def events(self) -> list[str]:
        return [line["event"] for line in self.lines]


def udp_client(port: int) -> socket.socket:
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(PATIENCE_S)
    client.connect(("127.0.0.1", port))
    return client


def ask(client: socket.socket, data: bytes = b"still there?") -> None:
    client.sendall(data)
    assert receive_exactly(client, len(data)) == data


class Tireless:
    """Callers in threads who never pause: one who calls anew each time, one who never leaves, one over UDP."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.counts = {"calls": 0, "echoes": 0, "datagrams": 0}
        self.failures: list[str] = []
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._call, self._talk, self._send)]

    def __enter__(self) -> Tireless:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def go_on(self) -> None:
        """Return when each has been served once more, or one has failed."""
        before = dict(self.counts)
        until(lambda: self.failures or all(self.counts[what] > before[what] for what in before))

    def _again(self, what: str, action: Callable[[bytes], None]) -> None:
        while not self._enough.is_set():
            data = b"%s %d" % (what.encode(), self.counts[what])
            try:
                action(data)
            except (OSError, AssertionError) as error:
                self.failures.append(f"{data!r}: {error!r}")
                return
            self.counts[what] += 1

    def _call(self) -> None:
        def once(data: bytes) -> None:
            with socket.create_connection(("127.0.0.1", self.port), PATIENCE_S) as client:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                assert receive_to_end(client) == data

        self._again("calls", once)

    def _talk(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE_S) as client:
            self._again("echoes", lambda data: ask(client, data))

    def _send(self) -> None:
        with udp_client(self.port) as client:

            def once(data: bytes) -> None:
                client.send(data)
                assert client.recv(100) == data

            self._again("datagrams", once)


# ---------------------------------------------------------------- nobody notices


def restart_often(echo: Phoenix, times: int) -> None:
    """Callers never pause, and none fails; nothing is left of the old images, and the process is the same."""
    before = len(os.listdir(f"/proc/{echo.process.pid}/fd"))
    with Tireless(echo.port) as callers:
        for _ in range(times):
            echo.restart()
            callers.go_on()
    assert callers.failures == []
    workers = max(len(line.get("pids", ())) for line in echo.lines)
    until(lambda: len(echo.children()) == workers)
    until(lambda: len(os.listdir(f"/proc/{echo.process.pid}/fd")) <= before)
    assert echo.process.poll() is None
    assert echo.finish() == 0
    assert not {"failed", "elder_ended", "supervisor_gone", "drain_timeout"} & set(echo.events())
    assert echo.events().count("drained") == times * (workers or 1)
    served = [line for line in echo.lines if line["event"] in ("drained", "stopped")]
    total = {key: sum(line[key] for line in served) for key in ("connections", "tcp_bytes_sent", "datagrams_sent")}
    assert total["datagrams_sent"] == callers.counts["datagrams"]
    assert total["connections"] == callers.counts["calls"] + 2, "the first one asked whether it was ready"


@LINUX
@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_ten_restarts_under_callers_who_never_pause(way: tuple[str, ...]) -> None:
    """Issue: "under a client that connects and echoes without pause, TCP and UDP, zero failures"."""
    with Phoenix(*way) as echo:
        restart_often(echo, 10 if not way else 3)


@LINUX
@pytest.mark.parametrize("workers", ["1", "2"])
def test_ten_restarts_of_who_has_dropped_root(installation: Installation, workers: str) -> None:
    with Phoenix("--user", "nobody", "--workers", workers, installation=installation) as echo:
        restart_often(echo, 3)


@pytest.mark.long
@LINUX
@pytest.mark.parametrize(("way", "count"), [(WAYS[0], 100), (WAYS[1], 50), (WAYS[2], 25)], ids=str)
def test_a_hundred_restarts_under_callers_who_never_pause(way: tuple[str, ...], count: int) -> None:
    with Phoenix(*way) as echo:
        restart_often(echo, count)


@LINUX
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_thousand_callers_from_before_are_served_on(workers: str) -> None:
    with contextlib.ExitStack() as stack, Phoenix("--workers", workers) as echo:
        clients = [stack.enter_context(echo.connect()) for _ in range(1000)]
        for client in clients:
            ask(client)
        echo.restart()
        for client in clients:
            ask(client)
        echo.restart()
        for client in clients:
            ask(client)
            client.shutdown(socket.SHUT_WR)
            assert receive_to_end(client) == b""
        assert echo.finish() == 0


@LINUX
@pytest.mark.parametrize("way", [*WAYS[:2], ("--no-splice",)], ids=" ".join)
def test_bulk_goes_on_without_a_wrong_byte(way: tuple[str, ...]) -> None:
    """What is in a pipe on its way back belongs to the elder, as the caller does."""
    with Phoenix(*way) as echo, contextlib.ExitStack() as stack:
        sent, received, enough = hashlib.sha256(), hashlib.sha256(), threading.Event()
        client = stack.enter_context(echo.connect())
        piece = random.Random(7).randbytes(1 << 20)

        def send() -> None:
            while not enough.is_set():
                client.sendall(piece)
                sent.update(piece)
            client.shutdown(socket.SHUT_WR)

        def receive() -> None:
            while data := client.recv(1 << 18):
                received.update(data)

        threads = [threading.Thread(target=each) for each in (send, receive)]
        for thread in threads:
            thread.start()
        for _ in range(10 if not way else 3):
            echo.restart()
            echo.answers()
        enough.set()
        for thread in threads:
            thread.join()
        assert sent.digest() == received.digest()
        assert echo.finish() == 0


def test_a_caller_who_does_not_read_gets_everything_later() -> None:
    with Phoenix("--socket-buffer", "65536") as echo, connect_small(("127.0.0.1", echo.port), 16_384) as client:
        sent = fill_until_stuck(echo, client)
        echo.restart()
        client.shutdown(socket.SHUT_WR)
        assert receive_to_end(client) == sent
        drained = echo.next_line("drained")
        assert (drained["tcp_bytes_sent"], drained["connections_open"]) == (len(sent) + 6, 0)
        assert echo.finish() == 0


@LINUX
def test_the_elder_ends_with_its_last_caller_and_is_reaped() -> None:
    with Phoenix() as echo, echo.connect() as first, echo.connect() as second:
        ask(first)
        ask(second)
        [pid] = echo.restart()["elders"]
        assert echo.children() == [pid]
        first.close()
        ask(second)
        assert echo.children() == [pid]
        second.close()
        line = echo.next_line("drained")
        assert (line["pid"], line["elder"], line["connections"]) == (pid, True, 3)
        until(lambda: echo.children() == [])
        assert echo.finish() == 0


@LINUX
def test_sockets_from_systemd_are_handed_on() -> None:
    for arguments in ((), ("--workers", "2")):
        bound = bind_all(socket, ["127.0.0.1"], 0)
        with bound.tcp[0] as tcp, bound.udp[0] as udp:
            numbers = (tcp.fileno(), udp.fileno())
            prefix = [sys.executable, "-c", HAND_IN, ",".join(map(str, numbers))]
            with Phoenix(*arguments, prefix=prefix, pass_fds=numbers) as echo:
                for _ in range(3):
                    echo.restart()
                    echo.answers()
                assert echo.port == tcp.getsockname()[1]
                assert "serving_as_root" not in echo.events()
                assert echo.finish() == 0


# ---------------------------------------------------------------- the new configuration


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    made = tmp_path / "echo7.toml"
    made.write_text("")
    return made


def test_the_new_image_does_what_the_file_says_now(file: pathlib.Path) -> None:
    with Phoenix("--config", str(file)) as echo:
        file.write_text("drain-timeout = 2.5\nbacklog = 9\nsocket-buffer = 8192\nno-splice = true")
        echo.restart()
        assert echo.finish() == 0
        assert "delivering for up to 2.5 s" in next(x["message"] for x in echo.lines if x["event"] == "stopping")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("prot = 7", "there is no option 'prot'; did you mean 'port'?"),
        ("backlog = 5\nhost =\n", "Invalid value (at line 2, column 7)"),
        ("drain-timeout = 'soon'", "argument --drain-timeout: 'soon' is not a number of seconds"),
        ("no-udp = true", "--no-udp was False and is now True: that needs a restart, SIGHUP can't change it"),
        ("workers = 2", "--workers was 1 and is now 2: that needs a restart"),
        ("user = '4711:4712'", "--user was the default and is now 4711:4712: that needs a restart"),
    ],
)
@LINUX
def test_a_mistake_leaves_the_service_untouched(file: pathlib.Path, text: str, why: str) -> None:
    """Issue: "The new configuration is validated before anything else; an error leaves the old service untouched and
    says so".
    """
    with Phoenix("--config", str(file)) as echo, echo.connect() as client:
        ask(client)
        file.write_text(text)
        assert why in echo.refuses()
        ask(client)
        assert echo.children() == []
        file.write_text("")
        echo.restart()
        client.close()
        assert echo.finish() == 0


@pytest.mark.parametrize(
    ("before", "after", "option"),
    [("host = '127.0.0.1'", "host = ['127.0.0.1', '127.0.0.2']", "--host"), ("port = 0", "port = 7", "--port")],
)
def test_an_address_cannot_change(file: pathlib.Path, before: str, after: str, option: str) -> None:
    file.write_text(before)
    command = [sys.executable, "-m", "echo7", "serve", "--log-format", "json", "--config", str(file)]
    arguments = ["--port", "0"] if option == "--host" else ["--host", "127.0.0.1"]
    echo = Phoenix.__new__(Phoenix)
    echo.lines, echo._wait = [], True
    echo.process = subprocess.Popen([*command, *arguments], cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    with echo:
        file.write_text(after)
        assert f"{option} was " in echo.refuses()


def test_a_file_that_is_gone_leaves_the_service_untouched(file: pathlib.Path) -> None:
    with Phoenix("--config", str(file)) as echo:
        file.unlink()
        assert f"{file}: cannot be read: No such file or directory" in echo.refuses()
        assert echo.finish() == 0


def test_a_program_that_is_gone_leaves_the_service_untouched(tmp_path: pathlib.Path) -> None:
    if subprocess.run([sys.executable, "-c", "import echo7"], cwd="/", capture_output=True).returncode == 0:
        pytest.skip("echo7 is installed here too, so that it isn't gone when its folder is")
    for package in ("reactor", "echo7"):
        os.symlink(PROJECT / package, tmp_path / package)
    with Phoenix(installation=Installation(sys.executable, tmp_path)) as echo:
        os.unlink(tmp_path / "echo7")
        assert "No module named echo7" in echo.refuses()
        os.symlink(PROJECT / "echo7", tmp_path / "echo7")
        echo.restart()
        assert echo.finish() == 0


# ---------------------------------------------------------------- what fails on the way

FAILURES = {
    "the interpreter is gone": (
        "sys.executable = '/no/such/python'",
        "cannot run a check of the configuration: No such file or directory",
    ),
    "the check ends without a word": ("if CHECK: os._exit(3)", "the check of the configuration ended with status 3"),
    "the check hangs": (
        "restart.CHECK_PATIENCE_S = 0.2\nif CHECK: time.sleep(1000)",
        "the check of the configuration ended by signal 9",
    ),
    "the program is gone after the check": (
        "def gone(*args): raise FileNotFoundError(2, 'No such file or directory')\nos.execve = gone",
        "cannot start the new image: No such file or directory; free what it needs, and send SIGHUP again",
    ),
    "the program is gone, and the elder too": (
        """if True:
            def gone(*args):
                pid = int(open(f"/proc/self/task/{os.getpid()}/children").read().split()[-1])
                os.kill(pid, 9)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                raise FileNotFoundError(2, "No such file or directory")
            os.execve = gone
        """,
        "cannot start the new image: No such file or directory; free what it needs, and send SIGHUP again",
    ),
    "no process": (
        "def no(): raise BlockingIOError(11, 'Resource temporarily unavailable')\nos.fork = no",
        "cannot start the new image: Resource temporarily unavailable; ",
    ),
    "no descriptor for the elder": (
        "def full(*args, **more): raise OSError(24, 'Too many open files')\nelder.take_over = full",
        "the process that shall go on with the callers can't: Too many open files",
    ),
    "the elder dies": (
        "elder.prepare = lambda *args: os.kill(os.getpid(), 9)",
        "the process that shall go on with the callers can't: it has ended",
    ),
    "the elder raises": (
        "def fail(*args): raise KeyError('lost')\nelder.prepare = fail",
        "the process that shall go on with the callers can't: it has ended",
    ),
    "the elder hangs": (
        "restart.PREPARATION_PATIENCE_S = 0.2\nelder.prepare = lambda *args: time.sleep(1000)",
        "the process that shall go on with the callers can't: it doesn't answer",
    ),
}


@LINUX
@pytest.mark.parametrize("failure", FAILURES)
def test_whatever_fails_leaves_the_service_untouched(failure: str) -> None:
    code, why = FAILURES[failure]
    with Phoenix(code=code) as echo, echo.connect() as client:
        ask(client)
        for _ in range(2):
            assert echo.refuses().startswith(why)
            ask(client)
        assert echo.children() == []
        client.close()
        assert echo.finish() == 0


@LINUX
def test_workers_stay_when_the_new_image_cannot_start() -> None:
    code, why = FAILURES["the program is gone after the check"]
    with Phoenix("--workers", "2", code=code) as echo, echo.connect() as client:
        ask(client)
        workers = echo.children()
        assert echo.refuses().startswith(why)
        ask(client)
        assert echo.children() == workers
        client.close()
        assert echo.finish() == 0
        assert "drained" not in echo.events(), "they have reported to the supervisor"


@LINUX
def test_without_descriptors_the_service_goes_on() -> None:
    """EMFILE, for real: the limit is reached while callers are served."""
    code = """if True:
        def tight(): return 64
        import resource
        from echo7.process import limits
        limits.raise_descriptor_limit = tight
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    """
    with contextlib.ExitStack() as stack, Phoenix("--max-connections", "1000", "--no-splice", code=code) as echo:
        clients = [stack.enter_context(echo.connect()) for _ in range(80)]
        echo.next_line("accept_waits")
        echo.process.send_signal(signal.SIGHUP)
        line = echo.next_line("restart_refused")
        assert line["message"].endswith("Too many open files")
        ask(clients[0])
        for client in clients[:40]:
            client.close()
        for client in clients[40:]:
            ask(client)


def test_an_elder_that_is_killed_costs_its_callers_alone() -> None:
    with Phoenix() as echo, echo.connect() as client:
        ask(client)
        [pid] = echo.restart()["elders"]
        os.kill(pid, signal.SIGKILL)
        line = echo.next_line("elder_ended")
        assert (line["pid"], line["exit_code"]) == (pid, -signal.SIGKILL)
        assert client.recv(10) == b""
        echo.answers()
        assert echo.finish() == 0


# ---------------------------------------------------------------- signals at the wrong moment


@LINUX
@pytest.mark.parametrize("way", WAYS[:2], ids=" ".join)
def test_a_storm_of_requests_ends_in_a_service(way: tuple[str, ...]) -> None:
    with Phoenix(*way) as echo, Tireless(echo.port) as callers:
        pid = echo.process.pid
        for _ in range(2000):
            os.kill(pid, signal.SIGHUP)
        echo.next_line("restarted")
        for _ in range(20):
            os.kill(pid, signal.SIGHUP)
            echo.answers()
    assert callers.failures == []
    assert echo.process.poll() == -signal.SIGKILL, "by the test itself, and not before"


@pytest.mark.parametrize("way", WAYS[:2], ids=" ".join)
@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM], ids=str)
def test_asked_to_end_at_the_same_time_it_ends(way: tuple[str, ...], first: signal.Signals) -> None:
    second = signal.SIGTERM if first == signal.SIGHUP else signal.SIGHUP
    with Phoenix(*way) as echo:
        echo.process.send_signal(first)
        assert echo.finish(second) == 0
        assert echo.lines[-1]["event"] == "stopped"


@LINUX
@pytest.mark.parametrize("way", WAYS[:2], ids=" ".join)
def test_asked_to_end_at_any_moment_of_a_restart_it_ends(way: tuple[str, ...]) -> None:
    """The moment is another one each time: before the check, in it, at exec, in the start of the new image."""
    for turn in range(12):
        with Phoenix(*way) as echo:
            echo.process.send_signal(signal.SIGHUP)
            echo.next_line("restarting")
            threading.Event().wait(turn * 0.03)
            assert echo.finish() == 0, echo.lines
            assert echo.lines[-1]["event"] == "stopped"


@LINUX
def test_signals_that_came_before_the_exec_are_not_forgotten() -> None:
    """Story: one had been noted, and not looked at, when the process became another program."""
    code = """if True:
        become, moments = lifecycle.Lifecycle.restart, [1]
        def late(self, leaving):
            if self.restart_due and moments.pop():
                moments.append(0)
                os.kill(os.getpid(), signal.SIGTERM)
            become(self, leaving)
        lifecycle.Lifecycle.restart = late
    """
    for way in WAYS[:2]:
        with Phoenix(*way, code=code) as echo:
            assert echo.finish(signal.SIGHUP) == 0
            assert "restarted" not in echo.events(), "the end came first"
            assert echo.lines[-1]["event"] == "stopped"


@pytest.mark.parametrize("way", WAYS[:2], ids=" ".join)
def test_asked_before_it_serves_it_does_both(way: tuple[str, ...]) -> None:
    """Issue: "SIGHUP during startup before handlers are set must not kill the process"."""
    code = (
        "if not NEW and not CHECK: serve.log.ensure_standard_descriptors = lambda: os.kill(os.getpid(), signal.SIGHUP)"
    )
    with Phoenix(*way, code=code) as echo:
        echo.next_line("restarted")
        assert echo.finish() == 0


def test_asked_again_while_the_check_runs_it_checks_again(file: pathlib.Path) -> None:
    """What was read first may have been half of a change."""
    code = f"""if True:
        if CHECK and not os.path.exists({str(file)!r} + ".seen"):
            open({str(file)!r} + ".seen", "w").close()
            while not os.path.exists({str(file)!r} + ".go"): time.sleep(0.01)
    """
    with Phoenix("--config", str(file), code=code) as echo:
        echo.process.send_signal(signal.SIGHUP)
        until(lambda: file.with_name(file.name + ".seen").exists())
        file.write_text("prot = 7")
        echo.process.send_signal(signal.SIGHUP)
        echo.process.send_signal(signal.SIGUSR1)
        echo.next_line("counters")
        file.with_name(file.name + ".go").touch()
        assert "did you mean 'port'?" in echo.next_line("restart_refused")["message"]
        assert "restarted" not in echo.events()
        assert echo.finish() == 0


# ---------------------------------------------------------------- the end


@pytest.mark.parametrize("way", WAYS[:2], ids=" ".join)
@pytest.mark.parametrize("group", [False, True], ids=["main process", "whole group"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_at_the_end_elders_end_in_order_too(way: tuple[str, ...], group: bool, signum: signal.Signals) -> None:
    with Phoenix(*way, "--drain-timeout", "20", start_new_session=True) as echo, echo.connect() as client:
        ask(client)
        echo.restart()
        (os.killpg if group else os.kill)(echo.process.pid, signum)
        assert client.recv(10) == b"", "an orderly end"
        assert echo.process.poll() is None, "it waits for them"
        client.close()
        assert echo.process.wait(PATIENCE_S) == 0
        echo.next_line("stopped")
        assert "elder_ended" not in echo.events()


@pytest.mark.parametrize("way", WAYS[:2], ids=" ".join)
def test_a_second_signal_ends_elders_at_once(way: tuple[str, ...]) -> None:
    with Phoenix(*way, "--drain-timeout", "3600", "--socket-buffer", "65536") as echo:
        client = connect_small(("127.0.0.1", echo.port), 16_384)
        fill_until_stuck(echo, client)
        echo.restart()
        echo.process.send_signal(signal.SIGTERM)
        echo.next_line("stopping")
        assert echo.finish(signal.SIGTERM) == 128 + signal.SIGTERM
        with pytest.raises(ConnectionResetError):
            receive_to_end(client)
        client.close()


@LINUX
def test_an_elder_that_hangs_at_the_end_is_killed() -> None:
    with Phoenix("--drain-timeout", "0", code="lifecycle.KILL_GRACE_S = 0.3") as echo, echo.connect() as client:
        ask(client)
        [pid] = echo.restart()["elders"]
        os.kill(pid, signal.SIGSTOP)
        assert echo.finish() == 0
        assert [line["exit_code"] for line in echo.lines if line["event"] == "elder_ended"] == [-signal.SIGKILL]


def test_an_elder_tells_its_counters_when_asked() -> None:
    with Phoenix() as echo, echo.connect() as client:
        ask(client, b"12345")
        [pid] = echo.restart()["elders"]
        os.kill(pid, signal.SIGHUP)
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGUSR1)
        line = echo.next_line("counters")
        assert (line["pid"], line["connections_open"], line["tcp_bytes_sent"]) == (pid, 1, 6 + 5)
        ask(client)
        os.kill(pid, signal.SIGTERM)
        assert client.recv(10) == b""
        client.close()
        echo.next_line("drained")
        assert echo.finish() == 0


# ---------------------------------------------------------------- what systemd is told


@LINUX
@pytest.mark.parametrize("way", WAYS[:2], ids=" ".join)
def test_systemd_is_told_of_each_step(tmp_path: pathlib.Path, file: pathlib.Path, way: tuple[str, ...]) -> None:
    ear = Ear(str(tmp_path / "notify"))
    environment = {**os.environ, "NOTIFY_SOCKET": ear.address, "WATCHDOG_USEC": "400000"}
    with contextlib.closing(ear), Phoenix(*way, "--config", str(file), env=environment) as echo:
        with echo.connect() as client:
            ask(client)
            assert ear.hear_next("READY=1")
            for _ in range(2):
                echo.restart()
                assert ear.hear_next("RELOADING=1\nMONOTONIC_USEC=")
                assert ear.hear_next("READY=1")
            file.write_text("prot = 7")
            echo.refuses()
            assert ear.hear_next("RELOADING=1\nMONOTONIC_USEC=")
            assert ear.hear_next("READY=1")
            assert ear.hear() == "WATCHDOG=1", "the new image goes on with that"
        assert echo.finish() == 0
        assert ear.hear_next("STOPPING=1")
        assert set(ear.all()) <= {"WATCHDOG=1"}, "elders say nothing"


# ---------------------------------------------------------------- what is handed over


@pytest.mark.parametrize("text", ["", "x", "1;2;3;4", ";;;", "1;3=1,x=2;;", "1;3=;;"])
def test_nonsense_in_our_own_variable_costs_one_line(text: str) -> None:
    environment = {**os.environ, "ECHO7_HANDOVER": text}
    command = [sys.executable, "-m", "echo7", "serve", "--port", "0"]
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 1
    assert "ECHO7_HANDOVER is " in only_line(done.stderr)


# ---------------------------------------------------------------- the check, alone


def test_a_check_that_has_said_all_may_take_its_time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts: list[str | None] = []
    monkeypatch.setattr(restart, "command", lambda: ["/bin/sh", "-c", "echo tired; exec >&- 2>&- sleep 1000"])
    with Reactor() as reactor:
        check = restart.Check(reactor, {}, verdicts.append)
        turn_until(reactor, lambda: check._told_all)
        check.reap()
        assert verdicts == []
        check.kill()
        while not verdicts:
            check.reap()
        check.kill()
        check.reap()
    assert verdicts == ["tired"]


def test_of_a_check_that_says_too_much_the_end_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts: list[str | None] = []
    monkeypatch.setattr(restart, "command", lambda: ["/bin/sh", "-c", "seq 100000; echo the end; exit 2"])
    with Reactor() as reactor:
        check = restart.Check(reactor, {}, verdicts.append)
        turn_until(reactor, lambda: check._told_all)
        while not verdicts:
            check.reap()
    assert verdicts == ["the end"]


def test_asked_when_it_is_due_already_nothing_more_is_to_be_done() -> None:
    """The new image reads everything anew, and later than that."""
    with Reactor() as reactor:
        life = lifecycle.Lifecycle(reactor, serve_config())
        life.restart_due = True
        life._restart_asked()
        assert life._check is None


def test_a_second_request_to_end_means_no_more_to_an_elder_than_the_first() -> None:
    """The first came to the whole group, the second was passed on by the service."""
    with EchoByHand() as echo:
        client = echo.connect()
        made = elder.Elder(echo.reactor, echo.server, log.StderrHandler())
        for _ in range(2):
            made._end()
        assert echo.receive_to_end(client) == b""
        assert len(echo.server._stopped) == 1
        client.close()
