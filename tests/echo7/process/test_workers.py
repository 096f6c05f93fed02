"""`--workers N`: several processes on one port, and their supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from echo7 import assembly
from echo7.process import limits
from echo7.sockets import reuseport
from echo7.sockets.binding import Bound, bind_all
from tests.echo7.sockets.test_activation import HAND_IN
from tests.echo7.test_cli import fill_until_stuck, only_line, refused
from tests.support.basics import PATIENCE_S, PROJECT, quiet_port
from tests.support.clients import connect_small, echo_and_close, receive_exactly, receive_to_end
from tests.support.daemon import MEASURED, EchoProcess, WorkersProcess, serve_config

pytestmark = pytest.mark.skipif(not reuseport.AVAILABLE, reason="Linux alone balances")
HOST = ("--host", "127.0.0.1")
CLIENTS = 24  # each of two workers gets some of them, except once in eight million runs


def udp_client(port: int) -> socket.socket:
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(PATIENCE_S)
    client.connect(("127.0.0.1", port))
    return client


@contextlib.contextmanager
def clients_of(port: int, transport: str) -> Iterator[list[socket.socket]]:
    """Many clients, each with its own flow."""
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", port)
        yield [
            stack.enter_context(
                udp_client(port) if transport == "udp" else socket.create_connection(address, PATIENCE_S)
            )
            for _ in range(CLIENTS)
        ]


def patched(code: str) -> list[str]:
    """Return what Python runs: it breaks something, then does what `-m echo7` does."""
    program = (
        "import os, signal, sys\nfrom echo7 import cli, server\n"
        f"from echo7.process import service, slot, supervisor, worker\n{code}\nsys.exit(cli.main(sys.argv[1:]))"
    )
    return ["-c", program]


class Patched(WorkersProcess):
    """Workers of such a program. The service may never serve."""

    def __init__(self, code: str, *arguments: str) -> None:
        super().__init__(*HOST, *arguments, wait=False, program=patched(code))


# ---------------------------------------------------------------- serving


def test_both_workers_serve_and_their_log_lines_name_them() -> None:
    with WorkersProcess(*HOST, "--log-level", "debug") as echo, clients_of(echo.port, "tcp") as clients:
        for client in clients:
            client.sendall(b"hello")
            assert receive_exactly(client, 5) == b"hello"
            client.close()
        assert echo.finish() == 0
        served = {(line["worker"], line["pid"]) for line in echo.lines if "connection from" in line["message"]}
        assert served == set(echo.pids.items())
        assert len(set(echo.pids.values()) | {echo.process.pid}) == 3
        assert (echo.lines[-1]["event"], echo.lines[-1]["connections"]) == ("stopped", CLIENTS + 1)


def test_addresses_are_logged_once_after_the_workers() -> None:
    with WorkersProcess(*HOST, count=3) as echo:
        assert echo.finish() == 0
        events = [line["event"] for line in echo.lines]
        assert events == ["limits", "workers", "listening", "listening", "stopping", "stopped"]
        assert [(line["transport"], line["port"]) for line in echo.lines[2:4]] == [
            ("tcp", echo.port),
            ("udp", echo.port),
        ]
        assert (echo.lines[1]["workers"], len(set(echo.lines[1]["pids"]))) == (3, 3)


def test_sigusr1_logs_the_sum_of_all_workers() -> None:
    with WorkersProcess(*HOST) as echo, clients_of(echo.port, "tcp") as streams, clients_of(echo.port, "udp") as flows:
        for client in streams + flows:
            client.send(b"12345")
            assert client.recv(5) == b"12345"
        echo.process.send_signal(signal.SIGUSR1)
        line = echo.next_line("counters")
        assert (line["connections"], line["connections_open"]) == (CLIENTS + 1, CLIENTS)
        assert line["tcp_bytes_received"] == line["tcp_bytes_sent"] == 6 + 5 * CLIENTS
        assert (line["datagrams_received"], line["datagrams_sent"]) == (CLIENTS, CLIENTS)
        assert line["udp_bytes_sent"] == 5 * CLIENTS
        for client in streams:
            client.close()
        assert echo.finish() == 0
        assert echo.lines[-1].keys() == line.keys()


def test_sigusr2_makes_every_process_or_one_worker_log_its_loop() -> None:
    with WorkersProcess(*HOST) as echo:
        echo.process.send_signal(signal.SIGUSR2)
        said = [echo.next_line("dump") for _ in range(3)]
        assert sorted(line.get("worker", 0) for line in said) == [0, 1, 2]
        os.kill(echo.pids[2], signal.SIGUSR2)
        assert echo.next_line("dump")["worker"] == 2
        assert echo.finish() == 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("first", "second", "transport", "other"),
    [(1, 1, "tcp", "--no-udp"), (1, 2, "udp", "--no-tcp"), (2, 1, "udp", "--no-tcp"), (2, 2, "tcp", "--no-udp")],
)
def test_second_daemon_is_refused_whichever_has_workers(first: int, second: int, transport: str, other: str) -> None:
    """With SO_REUSEPORT it would get half of the clients."""
    port = quiet_port()
    with WorkersProcess(*HOST, other, count=first, port=port):
        command = [sys.executable, "-m", "echo7", "serve", *HOST, other, "--port", str(port), "--workers", str(second)]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    assert f" error cannot bind {transport} 127.0.0.1:{port}: Address already in use; " in only_line(done.stderr)


def test_sockets_from_systemd_are_shared_by_all_workers() -> None:
    """There is one socket for each address: any free worker takes the next client."""
    bound = bind_all(socket, ["127.0.0.1"], 0)
    with bound.tcp[0] as tcp, bound.udp[0] as udp:
        port, numbers = tcp.getsockname()[1], (tcp.fileno(), udp.fileno())
        prefix = [sys.executable, "-c", HAND_IN, ",".join(map(str, numbers))]
        with WorkersProcess(prefix=prefix, pass_fds=numbers) as echo:
            echo.halt(1)
            with clients_of(port, "tcp") as streams, clients_of(port, "udp") as flows:
                for client in streams + flows:
                    client.send(b"shared")
                    assert client.recv(10) == b"shared"
                os.kill(echo.pids[1], signal.SIGCONT)
            assert echo.finish() == 0
            assert "loopback_only" not in {line["event"] for line in echo.lines}


# ---------------------------------------------------------------- a worker ends, others go on


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_clients_that_waited_for_a_killed_worker_are_served_by_the_next(transport: str) -> None:
    """Connections and datagrams wait in the kernel: the supervisor keeps the sockets open."""
    with WorkersProcess(*HOST) as echo:
        victim = echo.halt(1)
        with clients_of(echo.port, transport) as clients:
            for client in clients:
                client.send(b"wait")
            os.kill(victim, signal.SIGKILL)
            for client in clients:
                assert client.recv(10) == b"wait"
            ended = echo.next_line("worker_ended")
            assert (ended["worker"], ended["pid"], ended["exit_code"]) == (1, victim, -signal.SIGKILL)
            assert ended["restart_delay_s"] == 0.1
            assert "ended by SIGKILL; the next one starts in 0.1 s" in ended["message"]
            assert echo.next_line("worker_ready")["pid"] != victim
            for client in clients:
                client.send(b"again")
                assert client.recv(10) == b"again"
        assert echo.finish() == 0, "an earlier crash doesn't count"


def test_clients_of_other_workers_do_not_notice_a_killed_one() -> None:
    with WorkersProcess(*HOST) as echo, asking_without_pause(echo.port) as answers:
        for number in (1, 2, 1, 2):
            os.kill(echo.pids[number], signal.SIGKILL)
            assert echo.next_line("worker_ready")["worker"] == number
    assert answers.count(b"hello") > 0
    assert len(answers) - answers.count(b"hello") <= 4, "one connection at a time for each worker"


@contextlib.contextmanager
def asking_without_pause(port: int) -> Iterator[list[bytes]]:
    """Run a client in a thread, one connection after another; yield the answer of each, up to FIN or RST."""
    answers: list[bytes] = []
    enough = threading.Event()

    def ask() -> None:
        while not enough.is_set():
            answers.append(b"")
            with contextlib.suppress(ConnectionResetError):
                with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client:
                    answers[-1] = echo_and_close(client, b"hello")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        enough.set()
        thread.join()


def test_counters_of_a_killed_worker_stay_in_the_sum() -> None:
    with WorkersProcess(*HOST) as echo, clients_of(echo.port, "tcp") as clients:
        for client in clients:
            client.sendall(b"12345")
            receive_exactly(client, 5)
        echo.process.send_signal(signal.SIGUSR1)
        before = echo.next_line("counters")
        for pid in echo.pids.values():
            os.kill(pid, signal.SIGKILL)
        for _ in echo.pids:
            echo.next_line("worker_ready")
        echo.process.send_signal(signal.SIGUSR1)
        line = echo.next_line("counters")
        assert line["connections"] == before["connections"] == CLIENTS + 1
        assert line["tcp_bytes_sent"] == before["tcp_bytes_sent"]
        assert line["connections_open"] == 0
        assert echo.finish() == 0


def test_worker_on_term_delivers_and_is_replaced() -> None:
    """An operator replaces a worker this way."""
    with WorkersProcess(*HOST, "--drain-timeout", "20", "--log-level", "debug") as echo:
        with echo.connect() as client:
            client.sendall(b"first")
            receive_exactly(client, 5)
            line = echo.next_line("connection_opened")
            while str(client.getsockname()[1]) not in line["message"]:
                line = echo.next_line("connection_opened")
            os.kill(line["pid"], signal.SIGTERM)
            assert echo.next_line("leaving")["pid"] == line["pid"]
            os.kill(line["pid"], signal.SIGTERM)
            assert client.recv(10) == b"", "an orderly end"
        assert echo.next_line("worker_ended")["exit_code"] == 0
        assert echo.next_line("worker_ready")["worker"] == line["worker"]
        assert echo.finish() == 0


@pytest.mark.long
@pytest.mark.parametrize("plain", [(), ("--plain",)], ids=["fast", "plain"])
@pytest.mark.parametrize("stopped", [(1,), (1, 2)], ids=["one hangs", "all hang"])
def test_hanging_worker_is_killed_and_replaced(plain: tuple[str, ...], stopped: tuple[int, ...]) -> None:
    """Story: `kill -STOP` of one of two workers. Half of all clients timed out for ever, and nothing was logged."""
    with Patched(QUICK_LOOKS, *HOST, *plain) as echo:
        echo.wait_until_ready()
        hanging = {echo.halt(number) for number in stopped}
        with clients_of(echo.port, "tcp") as streams, clients_of(echo.port, "udp") as flows:
            for client in streams + flows:
                client.send(b"wait")
            for client in streams + flows:
                assert client.recv(10) == b"wait"
        while len({line["pid"] for line in echo.lines if line["event"] == "worker_ready"}) < len(stopped):
            echo.next_line("worker_ready")
        killed = [line for line in echo.lines if line["event"] == "worker_killed"]
        assert {line["pid"] for line in killed} == hanging
        assert {line["reason"] for line in killed} == {"silent"}
        assert echo.finish() == 0


QUICK_LOOKS = "slot.LOOK_INTERVAL_S = supervisor.LOOK_INTERVAL_S = 0.1; worker.REPORT_INTERVAL_S = 0.1"


@pytest.mark.long
@pytest.mark.parametrize("garbage", ["b'x' * (1 << 20)", 'b\'{"say": "counters"}\\n\'', "b'\\n'"], ids=str)
def test_worker_that_sends_garbage_is_killed_and_replaced(garbage: str) -> None:
    code = f"""if True:
        report = worker.Worker.report
        def garble(self, question=0):
            report(self, question)
            if question == 1: self.channel.finish.__self__.write({garbage})
        worker.Worker.report = garble
    """
    with Patched(code) as echo:
        echo.wait_until_ready()
        echo.process.send_signal(signal.SIGUSR1)
        reasons = [echo.next_line("worker_killed")["reason"] for _ in range(2)]
        assert reasons == ["broken", "broken"]
        for _ in range(2 - sum(line["event"] == "worker_ready" for line in echo.lines)):
            echo.next_line("worker_ready")
        assert echo.finish() == 0
        assert [line["connections"] for line in echo.lines if line["event"] == "counters"] == [1]


# ---------------------------------------------------------------- the end


@contextlib.contextmanager
def stuck(*arguments: str, **options: Any) -> Iterator[tuple[WorkersProcess, socket.socket, bytes]]:
    """Yield workers, and a client that has sent a lot and reads nothing."""
    with WorkersProcess(*HOST, "--socket-buffer", "65536", *arguments, **options) as echo:
        client = connect_small(("127.0.0.1", echo.port), 16_384)
        sent = fill_until_stuck(echo, client)
        yield echo, client, sent
        client.close()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_whole_process_group_gives_one_orderly_end(signum: signal.Signals) -> None:
    """^C in a terminal, or systemd's stop: every process gets it. Each delivers what it has read, then sends FIN."""
    with stuck("--drain-timeout", "20", start_new_session=True) as (echo, client, sent):
        os.killpg(echo.process.pid, signum)
        echo.next_line("stopping")
        received = receive_to_end(client)
        client.close()
        summary = echo.next_line("stopped")
        assert echo.process.wait(PATIENCE_S) == 0
    assert sent.startswith(received)
    assert len(received) + 6 == summary["tcp_bytes_received"] == summary["tcp_bytes_sent"]
    assert "worker_ended" not in {line["event"] for line in echo.lines}


def test_second_signal_ends_all_at_once_with_a_true_summary() -> None:
    with stuck("--drain-timeout", "3600") as (echo, client, _):
        before = echo.lines[-1]
        echo.process.send_signal(signal.SIGTERM)
        echo.next_line("stopping")
        assert echo.finish(signal.SIGINT) == 128 + signal.SIGINT
        assert echo.lines[-1]["event"] == "stopped"
        assert echo.lines[-1]["tcp_bytes_received"] == before["tcp_bytes_received"]
        with pytest.raises(ConnectionResetError):
            receive_to_end(client)


def test_hanging_worker_is_killed_at_a_second_signal() -> None:
    with Patched("service.ABORT_GRACE_S = 0.2") as echo:
        echo.wait_until_ready()
        echo.halt(2)
        echo.process.send_signal(signal.SIGTERM)
        echo.next_line("stopping")
        assert echo.finish(signal.SIGTERM) == 128 + signal.SIGTERM
        assert 2 in {line["worker"] for line in echo.lines if line["event"] == "worker_killed"}


def test_worker_that_hangs_in_its_drain_is_killed_in_time() -> None:
    with Patched("service.DRAIN_GRACE_S = 0.5", "--drain-timeout", "0") as echo:
        echo.wait_until_ready()
        echo.halt(1)
        assert echo.finish() == 1, "a killed worker is no orderly end"
        assert 1 in {line["worker"] for line in echo.lines if line["event"] == "worker_killed"}
        ended = {line["worker"]: line["exit_code"] for line in echo.lines if line["event"] == "worker_ended"}
        assert ended[1] == -signal.SIGKILL
        assert echo.lines[-1]["event"] == "stopped"


def test_workers_of_a_killed_supervisor_deliver_and_end() -> None:
    """Nothing else could stop them. They share its stderr, which ends with the last of them."""
    with stuck("--drain-timeout", "20") as (echo, client, sent):
        echo.process.kill()
        for _ in range(2):
            echo.next_line("supervisor_gone")
        received = receive_to_end(client)
        client.close()
        assert echo.finish() == -signal.SIGKILL
        assert sent.startswith(received)


def test_term_during_a_back_off_ends_at_once() -> None:
    code = "slot.BackOff.hopeless = False\nworker.run = lambda *args: 3"
    with Patched(code) as echo:
        assert [echo.next_line("worker_ended")["exit_code"] for _ in range(2)] == [3, 3]
        assert echo.finish() == 0
        assert echo.lines[-1]["event"] == "stopped"


# ---------------------------------------------------------------- failures at the start


def fails(code: str) -> list[dict[str, object]]:
    """Serve until it gives up, with status 1; return the log."""
    command = [
        sys.executable,
        *patched(code),
        "serve",
        *MEASURED,
        *HOST,
        "--port",
        "0",
        "--workers",
        "2",
        "--log-format",
        "json",
    ]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1, done.stderr
    return [json.loads(line) for line in done.stderr.splitlines()]


@pytest.mark.long
def test_workers_that_never_serve_are_given_up() -> None:
    """Otherwise the supervisor would try without end, and seem to serve."""
    code = "def refuse(*args): raise OSError(24, 'Too many open files')\nworker.Worker.start = refuse"
    lines = fails(code)
    ends = [line for line in lines if line["event"] == "worker_ended"]
    assert [line.get("restart_delay_s") for line in ends if line["worker"] == 1][:4] == [0.1, 0.2, 0.4, 0.8]
    assert {line["message"] for line in lines if line["event"] == "start_failed"} == {
        "cannot start: Too many open files; raise 'ulimit -n'"
    }
    [last_words] = [line["message"] for line in lines if line["event"] == "failed"]
    assert last_words == "every worker has ended 5 times in a row before it served: giving up"
    assert lines[-1]["event"] == "stopped"


def test_exception_in_a_worker_is_logged_and_ends_only_that_worker() -> None:
    lines = fails(
        "from echo7.process import backoff\nbackoff.FAILED_STARTS_LIMIT = 1\n"
        "def refuse(*args): raise KeyError('lost')\nworker.Worker.start = refuse"
    )
    told = [str(line["message"]) for line in lines if line["event"] == "failed" and "worker" in line]
    assert len(told) >= 2
    assert all("KeyError('lost')" in message and "Traceback" in message for message in told)


def test_failed_fork_is_tried_again() -> None:
    code = """if True:
        fork, refusals = os.fork, [BlockingIOError(11, "Resource temporarily unavailable")]
        def refused():
            if refusals: raise refusals.pop()
            return fork()
        os.fork = refused
    """
    with Patched(code) as echo:
        echo.wait_until_ready()
        assert echo.lines[1]["message"] == (
            "cannot start worker 1: Resource temporarily unavailable; the next one starts in 0.1 s"
        )
        assert echo.finish() == 0


# ---------------------------------------------------------------- options


def test_auto_is_one_worker_for_each_usable_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5})
    assert serve_config("--workers", "auto").workers == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(1000)))
    assert serve_config("--workers", "auto").workers == 256


def test_workers_without_a_balancing_kernel_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reuseport, "AVAILABLE", False)
    assert serve_config("--workers", "auto").workers == 1
    assert serve_config("--workers", "1").workers == 1
    assert "--workers above 1 needs Linux" in refused(capsys, "--workers", "2")


@pytest.mark.parametrize(("most", "workers", "share"), [(None, 3, None), (7, 1, 7), (7, 2, 4), (8, 2, 4), (1, 4, 1)])
def test_max_connections_are_divided_among_the_workers(
    monkeypatch: pytest.MonkeyPatch, most: int | None, workers: int, share: int | None
) -> None:
    option = [] if most is None else [f"--max-connections={most}"]
    config = serve_config(f"--workers={workers}", *option)
    given: dict[str, Any] = {}
    monkeypatch.setattr(assembly, "EchoServer", lambda *args, **options: given.update(options))
    assembly.new_server(config, 1000, Bound(), int)
    default = limits.default_max_connections(1000, 0, limits.default_pipes(1000, workers))
    assert given["max_connections"] == (share or default)


def test_one_worker_means_a_single_process() -> None:
    with EchoProcess(*HOST, "--workers", "1") as echo:
        assert echo.finish() == 0
        assert [line["event"] for line in echo.lines] == ["limits", "listening", "listening", "stopping", "stopped"]
