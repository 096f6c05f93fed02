"""SIGHUP: a restart without an outage, over real processes, with clients that never pause."""

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
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from echo7.process.child import Children, Drain
from echo7.process.restart import Check, NoNotifier, Restart
from echo7.sockets import reuseport
from echo7.sockets.binding import bind_all
from reactor import Reactor
from tests.echo7.process.test_notify import Ear
from tests.echo7.process.test_workers import udp_client
from tests.echo7.sockets.test_activation import HAND_IN
from tests.echo7.test_cli import fill_until_stuck, only_line
from tests.support.basics import PATIENCE_S, PROJECT, until
from tests.support.clients import connect_small, receive_exactly, receive_to_end
from tests.support.daemon import LOOKED_INTO, MEASURED, EchoProcess, Installation
from tests.support.echo import EchoByHand
from tests.support.loops import turn_idle, turn_until

if not hasattr(signal, "SIGHUP"):
    pytest.skip("this system has no SIGHUP", allow_module_level=True)

LINUX = pytest.mark.skipif(not reuseport.AVAILABLE, reason="Linux alone balances, and has /proc")
HOST = ("--host", "127.0.0.1")
WAYS = [(), ("--workers", "2"), ("--plain", "--busy-poll", "50")]


def long_after(first: int, *values: Any) -> list[Any]:
    """Mark all values but the first ones as long."""
    return [*values[:first], *(pytest.param(value, marks=pytest.mark.long) for value in values[first:])]


PREAMBLE = """
import os, signal, sys, time, types
from echo7 import cli
from echo7.process import previous, restart, service, supervisor
NEW, CHECK = "ECHO7_HANDOVER" in os.environ, "ECHO7_CHECK" in os.environ
"""
REFUSED = "restart refused, still serving: "


class Phoenix(EchoProcess):
    """A service that restarts. `code` breaks something in each generation first."""

    def __init__(self, *arguments: str, code: str = "", where: Sequence[str] = HOST, **options: Any) -> None:
        if code:
            options["program"] = ["-c", f"{PREAMBLE}\n{code}\nsys.exit(cli.main(sys.argv[1:]))"]
        super().__init__(*where, *arguments, port=0 if where else None, **options)

    def restart(self) -> dict[str, Any]:
        """Restart the service; return its log line."""
        self.process.send_signal(signal.SIGHUP)
        return self.next_line("restarted")

    def refuses(self) -> str:
        """Ask for a restart that fails; return the reason, once the service has answered again."""
        self.process.send_signal(signal.SIGHUP)
        line = self.next_line("restart_refused")
        assert line["level"] == "error"
        self.answers()
        message: str = line["message"]
        return message.removeprefix(REFUSED)

    def answers(self) -> None:
        """Check that it serves both transports."""
        with self.connect() as client, udp_client(self.port) as flow:
            for sock in (client, flow):
                sock.sendall(b"hello")
                assert sock.recv(5) == b"hello"

    def children(self) -> list[int]:
        """The pids of its children, zombies too."""
        pid = self.process.pid
        return [int(each) for each in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def events(self) -> list[str]:
        return [line["event"] for line in self.lines]


def ask(client: socket.socket, data: bytes = b"still there?") -> None:
    client.sendall(data)
    assert receive_exactly(client, len(data)) == data


class Tireless:
    """Clients in threads that never pause: one reconnects each time, one never leaves, one is UDP."""

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


# ---------------------------------------------------------------- no client notices


def restart_often(echo: Phoenix, times: int) -> None:
    """No client fails, no old generation is left, and the pid is the same."""
    before = len(os.listdir(f"/proc/{echo.process.pid}/fd"))
    with Tireless(echo.port) as clients:
        for _ in range(times):
            echo.restart()
            clients.go_on()
    assert clients.failures == []
    workers = max(len(line.get("pids", ())) for line in echo.lines)
    until(lambda: len(echo.children()) == workers)
    until(lambda: len(os.listdir(f"/proc/{echo.process.pid}/fd")) <= before)
    assert echo.process.poll() is None
    assert echo.finish() == 0
    assert not {"failed", "previous_ended", "supervisor_gone", "drain_timeout"} & set(echo.events())
    assert echo.events().count("drained") == times * (workers or 1)
    served = [line for line in echo.lines if line["event"] in ("drained", "stopped")]
    total = {key: sum(line[key] for line in served) for key in ("connections", "tcp_bytes_sent", "datagrams_sent")}
    assert total["datagrams_sent"] == clients.counts["datagrams"]
    assert total["connections"] == clients.counts["calls"] + 2, "the first connection tested whether the service is up"


@pytest.mark.long
@LINUX
@pytest.mark.parametrize("way", long_after(2, *WAYS), ids=" ".join)
def test_restarts_under_clients_that_never_pause_fail_none(way: tuple[str, ...]) -> None:
    """Issue: "under a client that connects and echoes without pause, TCP and UDP, zero failures"."""
    with Phoenix(*way, *LOOKED_INTO) as echo:
        restart_often(echo, 2)


@pytest.mark.long
@LINUX
@pytest.mark.parametrize("workers", long_after(1, "1", "2"))
def test_restarts_after_root_was_dropped_fail_no_client(installation: Installation, workers: str) -> None:
    with Phoenix("--user", "nobody", "--workers", workers, installation=installation) as echo:
        restart_often(echo, 2)


@pytest.mark.long
@LINUX
@pytest.mark.parametrize(("way", "count"), [(WAYS[0], 100), (WAYS[1], 50), (WAYS[2], 25)], ids=str)
def test_hundred_restarts_under_clients_that_never_pause_fail_none(way: tuple[str, ...], count: int) -> None:
    with Phoenix(*way, *LOOKED_INTO) as echo:
        restart_often(echo, count)


@LINUX
@pytest.mark.parametrize(("workers", "count"), [pytest.param("1", 1000, marks=pytest.mark.long), ("2", 200)])
def test_thousand_open_connections_are_served_through_two_restarts(workers: str, count: int) -> None:
    with contextlib.ExitStack() as stack, Phoenix("--workers", workers) as echo:
        clients = [stack.enter_context(echo.connect()) for _ in range(count)]
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


@pytest.mark.long
@LINUX
@pytest.mark.parametrize("way", long_after(1, *WAYS[:2], ("--plain",)), ids=" ".join)
def test_bulk_through_restarts_comes_back_without_a_wrong_byte(way: tuple[str, ...]) -> None:
    """The previous generation keeps the data in its pipes, as it keeps the connection."""
    with Phoenix(*way) as echo, contextlib.ExitStack() as stack:
        sent, received, enough = hashlib.sha256(), hashlib.sha256(), threading.Event()
        client = stack.enter_context(echo.connect())
        piece = random.Random(7).randbytes(1 << 20)

        def send() -> None:
            while not enough.wait(0.005):
                client.sendall(piece)
                sent.update(piece)
            client.shutdown(socket.SHUT_WR)

        def receive() -> None:
            while data := client.recv(1 << 18):
                received.update(data)

        threads = [threading.Thread(target=each) for each in (send, receive)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            echo.restart()
            echo.answers()
        enough.set()
        for thread in threads:
            thread.join()
        assert sent.digest() == received.digest()
        assert echo.finish() == 0


def test_client_that_does_not_read_gets_everything_after_the_restart() -> None:
    with Phoenix("--socket-buffer", "65536") as echo, connect_small(("127.0.0.1", echo.port), 16_384) as client:
        sent = fill_until_stuck(echo, client)
        echo.restart()
        client.shutdown(socket.SHUT_WR)
        assert receive_to_end(client) == sent
        drained = echo.next_line("drained")
        assert (drained["tcp_bytes_sent"], drained["connections_open"]) == (len(sent) + 6, 0)
        assert echo.finish() == 0


@LINUX
def test_previous_generation_ends_with_its_last_connection_and_is_reaped() -> None:
    with Phoenix() as echo, echo.connect() as first, echo.connect() as second:
        ask(first)
        ask(second)
        [pid] = echo.restart()["previous"]
        assert echo.children() == [pid]
        first.close()
        ask(second)
        assert echo.children() == [pid]
        second.close()
        line = echo.next_line("drained")
        assert (line["pid"], line["previous_generation"], line["connections"]) == (pid, True, 3)
        until(lambda: echo.children() == [])
        assert echo.finish() == 0


@pytest.mark.long
@LINUX
def test_sockets_from_systemd_are_handed_over() -> None:
    for arguments in ((), ("--workers", "2")):
        bound = bind_all(socket, ["127.0.0.1"], 0)
        with bound.tcp[0] as tcp, bound.udp[0] as udp:
            numbers = (tcp.fileno(), udp.fileno())
            prefix = [sys.executable, "-c", HAND_IN, ",".join(map(str, numbers))]
            with Phoenix(*arguments, prefix=prefix, pass_fds=numbers) as echo:
                for _ in range(2):
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


def test_new_generation_does_what_the_file_says_now(file: pathlib.Path) -> None:
    with Phoenix("--config", str(file)) as echo:
        file.write_text("drain-timeout = 2.5\nbacklog = 9\nsocket-buffer = 8192\nplain = true")
        echo.restart()
        assert echo.finish() == 0
        assert "delivering for up to 2.5 s" in next(x["message"] for x in echo.lines if x["event"] == "stopping")


WHERE = 'host = "127.0.0.1"\nport = 0\n'
MISTAKES = {
    WHERE + "prot = 7": "there is no option 'prot'; did you mean 'port'?",
    WHERE + "backlog = 5\nno-udp =\n": "Invalid value (at line 4, column 9)",
    WHERE + "drain-timeout = 'soon'": "argument --drain-timeout: 'soon' is not a number of seconds",
    WHERE + "no-udp = true": "--no-udp was False and is now True: that needs a restart, SIGHUP can't change it",
    WHERE + "workers = 2": "--workers was 1 and is now 2: that needs a restart",
    WHERE + "user = '4711:4712'": "--user was the default and is now 4711:4712: that needs a restart",
    WHERE.replace("0.1", "0.2"): "--host was 127.0.0.1 and is now 127.0.0.2: that needs a restart",
    WHERE.replace("port = 0", "port = 7"): "--port was 0 and is now 7: that needs a restart",
}


@pytest.mark.long
@LINUX
def test_mistake_in_the_configuration_leaves_the_service_untouched(file: pathlib.Path) -> None:
    """Issue: "The new configuration is validated before anything else; an error leaves the old service untouched and
    says so".
    """
    file.write_text(WHERE)
    with Phoenix("--config", str(file), where=()) as echo, echo.connect() as client:
        ask(client)
        for text, why in MISTAKES.items():
            file.write_text(text)
            assert why in echo.refuses()
            ask(client)
            assert echo.children() == []
        file.unlink()
        assert f"{file}: cannot be read: No such file or directory" in echo.refuses()
        file.write_text(WHERE)
        echo.restart()
        client.close()
        assert echo.finish() == 0


def test_missing_program_leaves_the_service_untouched(tmp_path: pathlib.Path) -> None:
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
        "the check of the configuration ended by SIGKILL",
    ),
    "the program is gone after the check": (
        "def gone(*args): raise FileNotFoundError(2, 'No such file or directory')\nos.execve = gone",
        "cannot start the new program: No such file or directory; free what it needs, and send SIGHUP again",
    ),
    "the program is gone, and the previous generation too": (
        """if True:
            def gone(*args):
                pid = int(open(f"/proc/self/task/{os.getpid()}/children").read().split()[-1])
                os.kill(pid, 9)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
                raise FileNotFoundError(2, "No such file or directory")
            os.execve = gone
        """,
        "cannot start the new program: No such file or directory; free what it needs, and send SIGHUP again",
    ),
    "no process": (
        "def no(): raise BlockingIOError(11, 'Resource temporarily unavailable')\nos.fork = no",
        "cannot start the new program: Resource temporarily unavailable; ",
    ),
    "no descriptor for the previous generation": (
        "def full(*args): raise OSError(24, 'Too many open files')\n"
        "previous.assembly = types.SimpleNamespace(new_selector=full)",
        "the process for the open connections cannot serve on: Too many open files",
    ),
    "the previous generation dies": (
        "previous.serve_on = lambda *args: os.kill(os.getpid(), 9)",
        "the process for the open connections cannot serve on: it has ended",
    ),
    "the previous generation raises": (
        "def fail(*args): raise KeyError('lost')\nprevious.serve_on = fail",
        "the process for the open connections cannot serve on: it has ended",
    ),
    "the previous generation hangs": (
        "previous.PREPARATION_PATIENCE_S = 0.2\nprevious.serve_on = lambda *args: time.sleep(1000)",
        "the process for the open connections cannot serve on: it doesn't answer",
    ),
}


@pytest.mark.long
@LINUX
@pytest.mark.parametrize("failure", FAILURES)
def test_failed_restart_leaves_old_generation_serving(failure: str) -> None:
    code, why = FAILURES[failure]
    with Phoenix(code=code) as echo, echo.connect() as client:
        ask(client)
        assert echo.refuses().startswith(why)
        ask(client)
        assert echo.children() == []
        client.close()
        assert echo.finish() == 0


@LINUX
def test_workers_stay_when_the_new_program_cannot_start() -> None:
    code, why = FAILURES["the program is gone after the check"]
    with Phoenix("--workers", "2", code=code) as echo, echo.connect() as client:
        ask(client)
        workers = echo.children()
        for _ in range(2):
            assert echo.refuses().startswith(why)
            ask(client)
            assert echo.children() == workers
        client.close()
        assert echo.finish() == 0
        assert "drained" not in echo.events(), "they still report to the supervisor"


@LINUX
def test_restart_without_free_descriptors_is_refused() -> None:
    """EMFILE from the kernel: the limit is reached while clients are served."""
    code = """if True:
        def tight(): return 64
        import resource
        from echo7.process import limits
        limits.raise_descriptor_limit = tight
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    """
    with contextlib.ExitStack() as stack, Phoenix("--max-connections", "1000", "--plain", code=code) as echo:
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


def test_killed_previous_generation_costs_only_its_own_connections() -> None:
    with Phoenix() as echo, echo.connect() as client:
        ask(client)
        [pid] = echo.restart()["previous"]
        os.kill(pid, signal.SIGKILL)
        line = echo.next_line("previous_ended")
        assert (line["pid"], line["exit_code"]) == (pid, -signal.SIGKILL)
        assert client.recv(10) == b""
        echo.answers()
        assert echo.finish() == 0


# ---------------------------------------------------------------- signals at the wrong moment


@pytest.mark.long
@LINUX
@pytest.mark.parametrize("way", long_after(1, WAYS[1], WAYS[0]), ids=" ".join)
def test_service_survives_a_storm_of_restart_requests(way: tuple[str, ...]) -> None:
    with Phoenix(*way) as echo, Tireless(echo.port) as clients:
        pid = echo.process.pid
        for _ in range(2000):
            os.kill(pid, signal.SIGHUP)
        echo.next_line("restarted")
        for _ in range(20):
            os.kill(pid, signal.SIGHUP)
            echo.answers()
    assert clients.failures == []
    assert echo.process.poll() == -signal.SIGKILL, "the test has killed it, nothing else"


@pytest.mark.parametrize("way", WAYS[:2], ids=" ".join)
@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM], ids=str)
def test_term_at_the_time_of_a_restart_request_ends_the_service(way: tuple[str, ...], first: signal.Signals) -> None:
    second = signal.SIGTERM if first == signal.SIGHUP else signal.SIGHUP
    with Phoenix(*way) as echo:
        echo.process.send_signal(first)
        assert echo.finish(second) == 0
        assert echo.lines[-1]["event"] == "stopped"


@LINUX
@pytest.mark.long
@pytest.mark.parametrize("way", WAYS[:2], ids=" ".join)
def test_term_at_any_moment_of_a_restart_ends_the_service(way: tuple[str, ...]) -> None:
    """The moments: before the check, during it, at exec(2), at the start of the new generation."""
    for turn in range(6):
        with Phoenix(*way) as echo:
            echo.process.send_signal(signal.SIGHUP)
            echo.next_line("restarting")
            threading.Event().wait(turn * 0.06)
            assert echo.finish() == 0, echo.lines
            assert echo.lines[-1]["event"] == "stopped"


@LINUX
def test_signals_that_came_before_the_exec_are_not_forgotten() -> None:
    """Story: a signal was noted, but not handled, when the process became another program."""
    code = """if True:
        become, moments = service.Service.become_next_generation, [1]
        def late(self):
            if moments:
                moments.clear()
                os.kill(os.getpid(), signal.SIGTERM)
            become(self)
        service.Service.become_next_generation = late
    """
    for way in WAYS[:2]:
        with Phoenix(*way, code=code) as echo:
            assert echo.finish(signal.SIGHUP) == 0
            assert "restarted" not in echo.events(), "the signal to stop came first"
            assert echo.lines[-1]["event"] == "stopped"


@pytest.mark.parametrize("way", WAYS[:2], ids=" ".join)
def test_restart_request_before_the_service_serves_restarts_it_later(way: tuple[str, ...]) -> None:
    """Issue: "SIGHUP during startup before handlers are set must not kill the process"."""
    code = """if not NEW and not CHECK:
        raised = service.limits.raise_descriptor_limit
        service.limits.raise_descriptor_limit = lambda: os.kill(os.getpid(), signal.SIGHUP) or raised()
    """
    with Phoenix(*way, code=code) as echo:
        echo.next_line("restarted")
        assert echo.finish() == 0


def test_restart_request_during_the_check_starts_another_check(file: pathlib.Path) -> None:
    """The first check may have read half of a change."""
    code = f"""if True:
        if CHECK and not os.path.exists({str(file)!r} + ".seen"):
            open({str(file)!r} + ".seen", "w").close()
            while not os.path.exists({str(file)!r} + ".go"): time.sleep(0.01)
    """
    # a restricted check can't write the file
    with Phoenix("--config", str(file), "--sandbox", "off", code=code) as echo:
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


@pytest.mark.long
@pytest.mark.parametrize(
    ("way", "group", "signum"),
    [
        (WAYS[0], False, signal.SIGTERM),
        (WAYS[0], True, signal.SIGINT),
        (WAYS[1], False, signal.SIGINT),
        (WAYS[1], True, signal.SIGTERM),
    ],
)
def test_service_that_ends_waits_for_previous_generation(
    way: tuple[str, ...], group: bool, signum: signal.Signals
) -> None:
    with Phoenix(*way, "--drain-timeout", "20", start_new_session=True) as echo, echo.connect() as client:
        ask(client)
        echo.restart()
        (os.killpg if group else os.kill)(echo.process.pid, signum)
        assert client.recv(10) == b"", "an orderly end"
        assert echo.process.poll() is None, "it waits for them"
        client.close()
        assert echo.process.wait(PATIENCE_S) == 0
        echo.next_line("stopped")
        assert "previous_ended" not in echo.events()


@pytest.mark.parametrize("way", long_after(1, *WAYS[:2]), ids=" ".join)
def test_second_signal_ends_previous_generation_at_once(way: tuple[str, ...]) -> None:
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
def test_previous_generation_that_hangs_at_the_end_is_killed() -> None:
    with Phoenix("--drain-timeout", "0", code="service.DRAIN_GRACE_S = 0.3") as echo, echo.connect() as client:
        ask(client)
        [pid] = echo.restart()["previous"]
        os.kill(pid, signal.SIGSTOP)
        assert echo.finish() == 0
        assert [line["exit_code"] for line in echo.lines if line["event"] == "previous_ended"] == [-signal.SIGKILL]


def test_previous_generation_logs_its_counters_when_asked() -> None:
    with Phoenix() as echo, echo.connect() as client:
        ask(client, b"12345")
        [pid] = echo.restart()["previous"]
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


# ---------------------------------------------------------------- messages to systemd


@pytest.mark.long
@LINUX
@pytest.mark.parametrize("way", long_after(1, *WAYS[:2]), ids=" ".join)
def test_systemd_is_notified_of_each_step(tmp_path: pathlib.Path, file: pathlib.Path, way: tuple[str, ...]) -> None:
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
            assert ear.hear() == "WATCHDOG=1", "the new generation keeps sending it"
        assert echo.finish() == 0
        assert ear.hear_next("STOPPING=1")
        assert set(ear.all()) <= {"WATCHDOG=1"}, "previous generations send nothing"


# ---------------------------------------------------------------- the handover


@pytest.mark.parametrize("text", ["", "x", "1;2;3;4", ";;;", "1;3=1,x=2;;", "1;3=;;"])
def test_invalid_handover_variable_costs_one_line(text: str) -> None:
    environment = {**os.environ, "ECHO7_HANDOVER": text}
    command = [sys.executable, "-m", "echo7", "serve", *MEASURED, "--port", "0"]
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 1
    assert "ECHO7_HANDOVER is " in only_line(done.stderr)


# ---------------------------------------------------------------- the parts, without a service


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def test_check_has_ended_only_when_it_is_reaped() -> None:
    verdicts: list[str | None] = []
    children = Children()
    with Reactor() as reactor:
        check = Check(reactor, children, shell("echo tired; exec >&- 2>&- sleep 1000"), {}, verdicts.append)
        turn_until(reactor, lambda: len(reactor.handlers) == 1)
        children.reap()
        assert verdicts == []
        check.kill()
        while not verdicts:
            children.reap()
        check.kill()
        children.reap()
    assert verdicts == ["tired"]


def test_check_whose_descendant_keeps_the_output_open_ends_in_time() -> None:
    """Otherwise no restart would ever be possible again."""
    verdicts: list[str | None] = []
    children = Children()
    with Reactor() as reactor:
        check = Check(reactor, children, shell("sleep 1000 & echo $!; exit 3"), {}, verdicts.append)
        while check.running:
            children.reap()
        turn_idle(reactor)
        assert verdicts == []
        check.kill()
        turn_until(reactor, lambda: verdicts)
    os.kill(int(verdicts[0] or ""), signal.SIGKILL)


def test_check_reports_the_last_line_of_much_output() -> None:
    verdicts: list[str | None] = []
    children = Children()
    with Reactor() as reactor:
        Check(reactor, children, shell("seq 100000; echo the end; exit 2"), {}, verdicts.append)
        turn_until(reactor, lambda: len(reactor.handlers) == 1)
        while not verdicts:
            children.reap()
    assert verdicts == ["the end"]


def test_request_when_a_restart_is_due_starts_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new generation reads the configuration later than the request."""
    monkeypatch.setattr(os, "posix_spawn", lambda *words, **options: pytest.fail("a check has started"))
    with Reactor() as reactor:
        restart = Restart(reactor, Children(), {}, NoNotifier())
        restart.due = True
        restart.ask()
        assert restart.due


def test_second_term_changes_nothing_for_a_previous_generation() -> None:
    """The whole group got the first, and the service passes its own on."""
    with EchoByHand() as echo:
        client, done, terminated = echo.connect(), list[int](), list[int]()
        drain = Drain(echo.reactor, echo.server, lambda: done.append(1), lambda: terminated.append(1))
        for _ in range(2):
            drain.terminate()
        assert echo.receive_to_end(client) == b""
        client.close()
        turn_until(echo.reactor, lambda: done)
        assert (done, terminated) == ([1], [1])
