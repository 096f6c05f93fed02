"""The service, whole, under the system call filters of the unit: it never needs a forbidden call.

systemd makes seccomp filters of SystemCallFilter=, RestrictAddressFamilies= and MemoryDenyWriteExecute=; here they are
made of the same lines and loaded by a program that then becomes `echo7 serve`. Each case runs twice: refused as the
unit says, and with the death of the process in place of EPERM, so that a call which Python or echo7 makes and the list
lacks can't stay unseen.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.echo7.deploy import sandbox
from tests.echo7.deploy.units import OWN_SOCKETS, SERVICE, allowed_calls, last, settings, words
from tests.echo7.sockets.test_activation import HAND_IN
from tests.support.basics import PATIENCE_S, PROJECT, has_ipv6
from tests.support.clients import echo_and_close, receive_exactly, receive_to_end
from tests.support.daemon import EchoProcess

pytestmark = pytest.mark.long

BULK_BYTES = 8 << 20  # makes the connection a bulk one

REFUSALS = ["as the unit says", "kill"]


def prefix(refusal: str, *drop_ins: object) -> list[str]:
    """Return words that put a command under the unit's filters. Skip the test where that is impossible."""
    if sys.platform != "linux":
        pytest.skip("seccomp is Linux's")
    try:
        sandbox.library()
    except OSError:
        pytest.skip("no libseccomp.so.2 here")
    unit = settings(SERVICE, *([OWN_SOCKETS] if drop_ins else []))
    what = {
        "calls": sorted(allowed_calls(unit)),
        "families": [getattr(socket, name) for name in words(unit, "RestrictAddressFamilies")],
        "no_new_code": last(unit, "MemoryDenyWriteExecute") == "yes",
        "errno": getattr(errno, last(unit, "SystemCallErrorNumber")) if refusal != "kill" else 0,
    }
    env = shutil.which("env")
    assert env is not None
    unmeasured = [
        word for name in os.environ if name.startswith("COVERAGE_") for word in ("-u", name)
    ]  # it writes files
    return [
        env,
        *unmeasured,
        *words(unit, "Environment"),
        sys.executable,
        "-m",
        "tests.echo7.deploy.sandbox",
        json.dumps(what),
    ]


def under(prefix: list[str], code: str) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-c", code]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.fixture(params=REFUSALS)
def refusal(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ---------------------------------------------------------------- the filter works


@pytest.mark.parametrize(
    "forbidden",
    [
        "os.mkdir('never')",
        "os.open('never', os.O_PATH | os.O_NOFOLLOW) and os.rename('never', 'ever')",
        "os.setuid(65534)",
        "os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "socket.socket(socket.AF_INET, socket.SOCK_STREAM)",
        "mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)",
    ],
)
def test_system_call_that_no_echo_needs_is_refused(forbidden: str) -> None:
    done = under(prefix("as the unit says"), f"import mmap, os, socket\n{forbidden}")
    assert done.returncode == 1
    assert "PermissionError" in done.stderr or "not supported by protocol" in done.stderr or "No such" in done.stderr


def test_kill_filter_kills() -> None:
    assert under(prefix("kill"), "import os; os.mkdir('never')").returncode == -signal.SIGSYS


# ---------------------------------------------------------------- with its own sockets


@pytest.fixture
def echo(request: pytest.FixtureRequest, refusal: str) -> Iterator[EchoProcess]:
    """`echo7 serve` under the filters of the unit with the drop-in own-sockets.conf."""
    with EchoProcess(*getattr(request, "param", ()), prefix=prefix(refusal, OWN_SOCKETS)) as process:
        yield process


WORKERS = pytest.mark.parametrize("echo", [(), ("--workers", "2")], ids=["one", "workers"], indirect=True)


@WORKERS
def test_sandboxed_service_echoes_logs_and_ends_in_order(echo: EchoProcess) -> None:
    data = random.Random(862).randbytes(BULK_BYTES)
    assert echo_and_close(echo.connect(), data) == data
    ask(socket.AF_INET, "127.0.0.1", echo.port)
    if has_ipv6():
        ask(socket.AF_INET6, "::1", echo.port)
    echo.process.send_signal(signal.SIGUSR1)
    assert echo.next_line("counters")["tcp_bytes_sent"] >= BULK_BYTES
    with echo.connect() as client:
        client.sendall(b"x")
        assert receive_exactly(client, 1) == b"x"
        echo.process.send_signal(signal.SIGTERM)
        assert receive_to_end(client) == b""
    assert echo.finish(0) == 0
    assert not [line for line in echo.lines if line["level"] in ("warning", "error") and "root" not in line["event"]]


@WORKERS
def test_sandboxed_service_restarts_and_keeps_its_clients(echo: EchoProcess) -> None:
    with echo.connect() as client:
        client.sendall(b"before")
        assert receive_exactly(client, 6) == b"before"
        echo.process.send_signal(signal.SIGHUP)
        echo.next_line("restarted")
        client.sendall(b"after")
        assert receive_exactly(client, 5) == b"after"
        assert echo_and_close(echo.connect(), b"new") == b"new"
    assert echo.finish() == 0


def test_sandboxed_worker_that_crashes_is_replaced(refusal: str) -> None:
    with EchoProcess("--workers", "2", prefix=prefix(refusal, OWN_SOCKETS)) as echo:
        victim = next(line["pids"][0] for line in echo.lines if line["event"] == "workers")
        os.kill(victim, signal.SIGKILL)
        echo.next_line("worker_ready")
        assert echo_and_close(echo.connect(), b"again") == b"again"
        assert echo.finish() == 0


# ---------------------------------------------------------------- with the sockets of echo7.socket


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.long)])
def test_sandboxed_service_with_handed_in_sockets_needs_only_the_unix_family(refusal: str, workers: str) -> None:
    """One socket for both families, as systemd makes it of `ListenStream=7` and `BindIPv6Only=both`."""
    with dual_stack(socket.SOCK_STREAM) as tcp, dual_stack(socket.SOCK_DGRAM, tcp.getsockname()[1]) as udp:
        port = tcp.getsockname()[1]
        numbers = [tcp.fileno(), udp.fileno()]
        handed_in = [sys.executable, "-c", HAND_IN, ",".join(map(str, numbers)), *prefix(refusal)]
        with EchoProcess("--workers", workers, prefix=handed_in, pass_fds=numbers, wait=False) as echo:
            echo.next_line("listening")
            for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                data = random.Random(port).randbytes(BULK_BYTES)
                assert echo_and_close(socket.create_connection((host, port), PATIENCE_S), data) == data
                ask(family, host, port)
            ask(socket.AF_INET, "127.0.0.7", port)
            echo.process.send_signal(signal.SIGHUP)
            echo.next_line("restarted")
            ask(socket.AF_INET, "127.0.0.7", port)
            assert echo.finish() == 0


def dual_stack(kind: int, port: int = 0) -> socket.socket:
    """Return a socket for every address of both families. Skip the test without IPv6."""
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", port))
    if kind == socket.SOCK_STREAM:
        sock.listen(16)
    return sock


def ask(family: int, host: str, port: int) -> None:
    """Exchange a datagram on a connected socket, which takes answers only from the address that it asked."""
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE_S)
        client.connect((host, port))
        for size in (0, 1, 1400, 40_000):
            client.send(bytes(size))
            assert client.recv(65_536) == bytes(size)
