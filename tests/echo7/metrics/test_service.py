"""`echo7 serve --metrics`: the pages of one process and of several, and errors at the start."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket

import pytest

from echo7 import assembly

pytest.importorskip("h11", reason="the extra `metrics` isn't installed")
pytest.importorskip("prometheus_client", reason="the extra `metrics` isn't installed")

from prometheus_client.parser import text_string_to_metric_families

from echo7.metrics.service import Metrics, workers_families
from echo7.metrics.snapshot import Gauges, Snapshot
from echo7.process.slot import SILENT_LOOKS
from echo7.server import Counters
from echo7.sockets.binding import NO_IPV6, BindError
from echo7.sockets.reuseport import AVAILABLE
from reactor import Reactor
from reactor.observe.watch import Watch
from reactor.sockets.errors import os_error
from tests.echo7.process.test_restart import Phoenix
from tests.echo7.process.test_workers import Patched
from tests.support.basics import PATIENCE_S, quiet_port, until
from tests.support.clients import receive_exactly
from tests.support.commands import run_echo7
from tests.support.daemon import EchoProcess, WorkersProcess, serve_config
from tests.support.faults import Faults, FlakySockets

AFRESH = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
WORKERS = pytest.mark.parametrize(
    "workers", ["1", pytest.param("2", marks=pytest.mark.skipif(not AVAILABLE, reason="--workers needs Linux"))]
)
HERE = ("--host", "127.0.0.1", "--metrics", "127.0.0.1:0")


def fetch(process: EchoProcess, path: str) -> tuple[int, str]:
    """Return status and body from the latest image."""
    line = [line for line in process.lines if line["event"] == "metrics"][-1]
    with contextlib.closing(http.client.HTTPConnection(line["address"], line["port"], timeout=PATIENCE_S)) as client:
        client.request("GET", path)
        answer = client.getresponse()
        return answer.status, answer.read().decode()


def samples(process: EchoProcess) -> dict[tuple[str, ...], float]:
    """(name, label values …) → value."""
    status, text = fetch(process, "/metrics")
    assert status == 200
    families = text_string_to_metric_families(text)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_metrics_option_gives_a_watched_loop() -> None:
    config = serve_config("--metrics", "[::1]:9107")
    assert (config.metrics, config.slow_callback_s) == (("[::1]", 9107), None)
    with assembly.new_reactor(config) as loop:
        assert isinstance(loop.observer, Watch)
        assert loop.observer.slow_s is None


def test_service_exposes_its_counters_and_its_health() -> None:
    """Issue: "`--metrics HOST:PORT` … `/healthz`"."""
    with EchoProcess(*HERE) as echo, echo.connect() as client:
        client.send(b"12345")
        assert client.recv(5) == b"12345"
        found = samples(echo)
        assert found["echo7_connections_total",] == 2
        assert found["echo7_connections_open",] == 1
        assert found["echo7_received_bytes_total", "tcp"] == found["echo7_sent_bytes_total", "tcp"] == 11
        assert found["echo7_loop_turn_seconds_count",] > 0
        until(lambda: samples(echo)["echo7_loop_lag_seconds_count",] > 0)
        assert fetch(echo, "/healthz") == (200, "ok\n")
        assert fetch(echo, "/")[0] == 404
        echo.process.send_signal(signal.SIGTERM)
        echo.next_line("stopping")
        assert fetch(echo, "/healthz") == (503, "stopping\n"), "the client is still connected"
        client.close()
        assert echo.next_line("stopped")["connections"] == 2, "fetching metrics doesn't count as a connection"
        assert echo.process.wait(PATIENCE_S) == 0


@pytest.mark.long
@pytest.mark.skipif(not AVAILABLE, reason="--workers needs Linux")
def test_supervisor_exposes_each_worker_and_sums_that_include_ended_workers() -> None:
    """Issue: "per worker and summed"."""
    with WorkersProcess(*HERE) as echo, echo.connect() as client:
        client.send(b"12345")
        assert client.recv(5) == b"12345"
        until(lambda: samples(echo)["echo7_received_bytes_total", "tcp"] == 11)
        found = samples(echo)
        each = [found["echo7_worker_received_bytes_total", "tcp", str(worker)] for worker in (1, 2)]
        assert sum(each) == 11
        assert all(found["echo7_worker_silence_seconds", str(worker)] < SILENT_LOOKS for worker in (1, 2))
        assert fetch(echo, "/healthz") == (200, "ok\n")
        for pid in echo.pids.values():
            os.kill(pid, signal.SIGKILL)
        for _ in range(2):
            echo.next_line("worker_ready")
        until(lambda: {("echo7_worker_connections_total", str(worker)) for worker in (1, 2)} <= samples(echo).keys())
        found = samples(echo)
        assert [found["echo7_worker_received_bytes_total", "tcp", str(worker)] for worker in (1, 2)] == [0, 0]
        assert found["echo7_received_bytes_total", "tcp"] == 11
        assert samples(echo)["echo7_connections_open",] == 0
        assert echo.finish() == 0


@pytest.mark.long
@WORKERS
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_lost_socket_makes_the_service_unhealthy(workers: str, transport: str) -> None:
    """The other sockets are served."""
    code = f"""if True:
        start = server.EchoServer.start
        def start_and_lose(self, reactor, bound):
            start(self, reactor, bound)
            reactor.call_soon(self.handlers[{transport == "udp":d}][0].abort, OSError(9, "Bad file descriptor"))
        server.EchoServer.start = start_and_lose
    """
    with Patched(code, *HERE, "--workers", workers) as echo:
        echo.next_line("listening")
        until(lambda: samples(echo).get(("echo7_sockets_lost",)) == int(workers))
        broken = "1 serving socket is broken" if workers == "1" else "2 serving sockets are broken"
        assert fetch(echo, "/healthz") == (503, f"{broken}\n")
        echo.process.send_signal(signal.SIGHUP)
        if workers == "1":
            assert "a serving socket is broken; start the service again" in echo.next_line("restart_refused")["message"]
        else:
            echo.next_line("restarted")
        assert echo.finish() == 0


class Supervision:
    """What a supervisor knows of its workers."""

    def __init__(self) -> None:
        self.problem, self.past, self.killed = "", Snapshot(Counters(connections=3)), {"silent": 1}
        self.silences_s = {1: 0.0, 2: 7.0}
        self.snapshots = {1: Snapshot(Counters(connections=4)), 2: Snapshot(gauges=Gauges(sockets_lost=2))}


def test_workers_have_families_of_their_own_and_sums() -> None:
    families = workers_families(Snapshot(log_lines_dropped=5), Supervision())
    found = {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}
    assert found["echo7_worker_silence_seconds", "2"] == 7
    assert found["echo7_workers_killed_total", "silent"] == 1
    assert found["echo7_sockets_lost",] == found["echo7_worker_sockets_lost", "2"] == 2
    assert (found["echo7_connections_total",], found["echo7_worker_connections_total", "1"]) == (7, 4)
    assert found["echo7_log_lines_dropped_total",] == 5


def test_wildcard_binds_both_families_or_ipv4_alone_without_ipv6() -> None:
    faults = Faults()
    with Reactor(sockets=FlakySockets(faults)) as loop:
        for code, count in ((None, 2), (min(NO_IPV6), 1)):
            faults.add("bind", None, code and os_error(code))
            metrics = Metrics(loop, list, str)
            # a machine without IPv6 refuses
            with contextlib.suppress(BindError):
                metrics.start(("*", 0))
                assert len(loop.handlers) <= 1 + count
            metrics.close()


def test_failed_bind_leaves_nothing_open() -> None:
    faults = Faults()
    faults.add("bind", None, os_error(13))
    with Reactor(sockets=FlakySockets(faults)) as loop:
        with pytest.raises(BindError, match=r"for --metrics: Permission denied; choose another HOST:PORT"):
            Metrics(loop, list, str).start(("*", 0))
        assert len(loop.handlers) == 1


@WORKERS
def test_address_in_use_is_one_line_and_status_1(workers: str) -> None:
    """Specified: "Bad HOST:PORT → one line, status 2; in use → status 1"."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        where = f"127.0.0.1:{other.getsockname()[1]}"
        done = run_echo7(*f"serve --host 127.0.0.1 --port 0 --metrics {where} --workers {workers}".split())
    assert done.returncode == 1
    pattern = rf"\S+ error cannot bind {where} for --metrics: Address already in use; choose another HOST:PORT\n"
    assert re.fullmatch(pattern, done.stderr)


@pytest.mark.long
@AFRESH
@WORKERS
def test_after_a_restart_the_new_image_serves_metrics_on_the_same_address(workers: str) -> None:
    """The old image closes the listener before the new one binds; open connections are served to their end."""
    port = quiet_port()
    with Phoenix("--metrics", f"127.0.0.1:{port}", "--workers", workers) as echo, echo.connect() as client:
        assert fetch(echo, "/metrics")[0] == 200
        echo.restart()
        assert fetch(echo, "/metrics")[0] == 200
        assert {line["port"] for line in echo.lines if line["event"] == "metrics"} == {port}
        client.sendall(b"still here")
        assert receive_exactly(client, 10) == b"still here"


@pytest.mark.long
@AFRESH
@WORKERS
def test_failed_metrics_after_a_restart_leave_the_service_running(workers: str) -> None:
    """At a first start it would be an error, but now there are clients."""
    code = """if NEW:
        from echo7.sockets.binding import BindError
        from echo7.metrics import service
        def taken(hosts, port):
            raise BindError("it is taken")
        service.find_targets = taken
    """
    with Phoenix("--metrics", "127.0.0.1:0", "--workers", workers, code=code) as echo:
        echo.process.send_signal(signal.SIGHUP)
        assert echo.next_line("left_out")["message"] == "it is taken; serving without it"
        echo.next_line("restarted")
        echo.answers()
