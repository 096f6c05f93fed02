"""Failing system calls, in the real daemon.

Other tests make system calls fail inside the process. Here strace sits between the process and the kernel and injects
the error. This also covers what the interpreter does by itself with EINTR (it retries, PEP 475), and calls that the
other tests may have forgotten.

`socket.send` is sendto(2) underneath, and `socket.recv` is recvfrom(2). Of several faults for one call strace takes the
last, so a mixture has one fault for each call. `when=2+5` means the second call and every fifth after it.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.basics import PATIENCE_S, PROJECT
from tests.support.clients import receive_exactly

PAYLOAD_BYTES = 64 << 20
PIECE_BYTES = 1 << 20
CLIENTS = 12
EPOLL = "?epoll_wait,epoll_pwait"  # which of the two is called depends on the C library, and on the machine
FAULTS: list[tuple[str, ...]] = [
    ("sendto:error=EAGAIN:when=3+7",),
    ("sendto:error=EINTR:when=2+5",),
    ("sendto:error=ENOBUFS:when=40+60",),  # each costs SEND_RETRY_S, 50 ms
    ("splice:error=EAGAIN:when=3+7",),
    ("splice:error=EINTR:when=2+5",),
    ("splice:error=ENOMEM:when=40+60",),
    ("splice:error=EINVAL:when=1",),  # a kernel that refuses splice: the bytes are copied
    ("recvfrom:error=EINTR:when=2+3",),
    ("recvfrom:error=EAGAIN:when=3+5",),
    ("accept4:error=EINTR:when=1+2",),
    ("accept4:error=EAGAIN:when=1+2",),
    ("accept4:error=EMFILE:when=2+4",),
    ("accept4:error=ECONNABORTED:when=1+2",),
    ("accept4:error=EPERM:when=1+3",),
    (f"{EPOLL}:error=EINTR:when=2+3",),
    ("epoll_ctl:error=ENOMEM:when=2+9",),  # the second call is the listener's; each costs SHORTAGE_RETRY_S, 250 ms
    ("epoll_ctl:error=ENOSPC:when=3+9",),
    ("shutdown:error=ENOTCONN:when=1+2",),
    (
        "sendto:error=EAGAIN:when=3+4",
        "recvfrom:error=EINTR:when=2+3",
        "accept4:error=ECONNABORTED:when=1+2",
        f"{EPOLL}:error=EINTR:when=2+3",
    ),
    (
        "sendto:error=ENOBUFS:when=30+50",
        "recvfrom:error=EAGAIN:when=2+3",
        "accept4:error=EMFILE:when=2+4",
        f"{EPOLL}:error=EINTR:when=3+2",
    ),
]
DATAGRAMS = 601  # one more than the last one that a fault hits
pytestmark = [pytest.mark.long, pytest.mark.skipif(not shutil.which("strace"), reason="strace isn't installed")]


class TracedDaemon:
    """The daemon under strace. `lines` is its log, complete after its end."""

    def __init__(self, process: subprocess.Popen[str], lines: list[dict[str, Any]]) -> None:
        self.process = process
        self.lines = lines
        self.port: int = lines[-1]["port"]

    def finish(self) -> int:
        """Send SIGTERM; return the daemon's exit status, which strace passes on."""
        for pid in children(self.process.pid):
            os.kill(pid, signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


def children(pid: int) -> list[int]:
    """Return the children of a process: strace has only the daemon."""
    return [int(text) for text in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def traced(faults: tuple[str, ...], trace: pathlib.Path, *arguments: str) -> Iterator[TracedDaemon]:
    command = ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={','.join(map(call_of, faults))}"]
    for fault in faults:
        command += ["-e", f"inject={fault}"]
    command += [sys.executable, "-m", "echo7", "serve", "--host", "127.0.0.1", "--port", "0", "--log-format", "json"]
    with subprocess.Popen([*command, *arguments], cwd=PROJECT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines: list[dict[str, Any]] = []
        try:
            for text in process.stderr:
                if not text.startswith("{"):
                    pytest.skip(f"strace can't run it here: {text}")
                lines.append(json.loads(text))
                if lines[-1]["event"] == "listening":
                    break
            else:
                pytest.skip(f"strace can't run it here: {lines}")
            stderr = process.stderr
            reader = threading.Thread(target=lambda: lines.extend(map(json.loads, stderr)), daemon=True)
            daemon = TracedDaemon(process, lines)
            reader.start()
            yield daemon
            reader.join(PATIENCE_S)
        finally:
            if process.poll() is None:  # killing strace alone would leave the daemon running
                for pid in children(process.pid):
                    os.kill(pid, signal.SIGKILL)


def call_of(fault: str) -> str:
    return fault.partition(":")[0]


def send_payload(sock: socket.socket, digests: list[str]) -> None:
    """Send 64 MiB of random bytes, half-close, and append their hash."""
    source, digest = random.Random(7), hashlib.sha256()
    for _ in range(PAYLOAD_BYTES // PIECE_BYTES):
        piece = source.randbytes(PIECE_BYTES)
        digest.update(piece)
        sock.sendall(piece)
    sock.shutdown(socket.SHUT_WR)
    digests.append(digest.hexdigest())


def receive_payload(sock: socket.socket, digests: list[str]) -> None:
    """Read to FIN, check the size, and append the hash."""
    digest, size_bytes = hashlib.sha256(), 0
    while piece := sock.recv(PIECE_BYTES):
        digest.update(piece)
        size_bytes += len(piece)
    digests.append(digest.hexdigest())
    assert size_bytes == PAYLOAD_BYTES


def call_many(port: int) -> None:
    """Connect client after client, keep them all, and check that each is served."""
    with contextlib.ExitStack() as stack:
        clients = []
        for number in range(CLIENTS):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE_S))
            clients.append(client)
            client.sendall(b"client %2d" % number)
            assert receive_exactly(client, 9) == b"client %2d" % number


def assert_injected(faults: tuple[str, ...], trace: pathlib.Path) -> None:
    """Check that each call to be injected has failed with its errno."""
    injected = [line for line in trace.read_text().splitlines() if line.endswith("(INJECTED)")]
    for fault in faults:
        calls = call_of(fault).strip("?").split(",")
        code = fault.split(":")[1].removeprefix("error=")
        assert any(f"{call}(" in line and f" {code} " in line for call in calls for line in injected), fault


@pytest.mark.parametrize("faults", FAULTS, ids=" ".join)
def test_daemon_loses_no_byte_when_system_calls_fail(faults: tuple[str, ...], tmp_path: pathlib.Path) -> None:
    """Promises 1, 15 and 16 in the real process: 64 MiB come back unchanged, clients are served meanwhile."""
    trace = tmp_path / "trace"
    sent: list[str] = []
    received: list[str] = []
    path = [] if any(call_of(fault) == "splice" for fault in faults) else ["--plain"]
    with traced(faults, trace, *path) as daemon:
        with socket.create_connection(("127.0.0.1", daemon.port), PATIENCE_S) as bulk:
            sender = threading.Thread(target=send_payload, args=(bulk, sent), daemon=True)
            reader = threading.Thread(target=receive_payload, args=(bulk, received), daemon=True)
            sender.start()
            reader.start()
            call_many(daemon.port)
            sender.join(3 * PATIENCE_S)
            reader.join(PATIENCE_S)
        assert received == sent
        assert len(sent) == 1
        assert daemon.finish() == 0
    assert_injected(faults, trace)
    last = daemon.lines[-1]
    assert last["connections"] == CLIENTS + 1
    assert last["tcp_bytes_sent"] == last["tcp_bytes_received"] == PAYLOAD_BYTES + CLIENTS * len(b"client 00")


@pytest.mark.parametrize(
    "fault",
    [
        "sendto:error=EAGAIN:when=3+4",
        "sendto:error=EINTR:when=2+3",
        "recvmsg:error=EAGAIN:when=2+3",
        "recvmsg:error=EINTR:when=2+3",
        "sendmmsg:error=EAGAIN:when=3+4",
        "sendmmsg:error=EINTR:when=2+3",
        "recvmmsg:error=EAGAIN:when=2+3",
        "recvmmsg:error=EINTR:when=2+3",
        f"{EPOLL}:error=EINTR:when=2+3",
    ],
)
def test_daemon_answers_every_datagram_when_system_calls_fail(fault: str, tmp_path: pathlib.Path) -> None:
    """Promise 11 in the real process: "try again" isn't a refusal, so nothing is dropped, and nothing is sent twice."""
    assert answers_under(fault, tmp_path / "trace", {}) == list(range(1, DATAGRAMS + 1))


@pytest.mark.parametrize("code", ["ENOBUFS", "EPERM"])
def test_daemon_drops_only_the_datagrams_that_the_kernel_refuses(code: str, tmp_path: pathlib.Path) -> None:
    """Promise 14 in the real process: "counted, dropped, service goes on", as often as a fault was injected."""
    fault = f"sendto:error={code}:when=5+5"
    answered = answers_under(fault, tmp_path / "trace", {f"send_{code}": DATAGRAMS // 5})
    assert answered == [number for number in range(1, DATAGRAMS + 1) if number % 5]


def answers_under(fault: str, trace: pathlib.Path, drops: dict[str, int]) -> list[int]:
    """Send numbered datagrams in bursts of ten; return the numbers that came back, in order, and compare the drops."""
    answered: list[int] = []
    path = ["--plain"] if call_of(fault) in ("sendto", "recvmsg") else []
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with traced((fault,), trace, "--no-tcp", *path) as daemon, client:
        client.settimeout(PATIENCE_S)
        client.connect(("127.0.0.1", daemon.port))
        for number in range(1, DATAGRAMS + 1):
            client.send(number.to_bytes(4, "big") * 100)
            # These are never refused, and loopback keeps the order: all earlier ones are answered or dropped by then.
            if number % 10 == 1:
                while not answered or answered[-1] < number:
                    data = client.recv(1 << 16)
                    answered.append(int.from_bytes(data[:4], "big"))
                    assert data == data[:4] * 100
        assert daemon.finish() == 0
    assert_injected((fault,), trace)
    last = daemon.lines[-1]
    assert (last["datagrams_received"], last["datagrams_sent"]) == (DATAGRAMS, len(answered))
    assert last["drops"] == drops
    return answered


@pytest.mark.parametrize("code", ["EBADF", "EINVAL", "ENOTSOCK"])
def test_daemon_exits_with_status_1_when_its_last_socket_breaks(code: str, tmp_path: pathlib.Path) -> None:
    """'Close it with one line (exit 1 if it was the last)' (promise 16)."""
    with traced((f"accept4:error={code}",), tmp_path / "trace", "--no-udp") as daemon:
        with contextlib.suppress(ConnectionResetError), socket.socket() as client:
            client.settimeout(PATIENCE_S)
            client.connect(("127.0.0.1", daemon.port))
            assert client.recv(1) == b""
        assert daemon.process.wait(PATIENCE_S) == 1


@pytest.mark.parametrize("code", ["EBADF", "EINVAL", "ENOTSOCK"])
def test_daemon_goes_on_with_udp_when_its_listener_breaks(code: str, tmp_path: pathlib.Path) -> None:
    """The same when it wasn't the last socket: UDP goes on, and the daemon exits with 0."""
    with traced((f"accept4:error={code}",), tmp_path / "trace") as daemon:
        with contextlib.suppress(ConnectionResetError), socket.socket() as client:
            client.settimeout(PATIENCE_S)
            client.connect(("127.0.0.1", daemon.port))
            assert client.recv(1) == b""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE_S)
            client.connect(("127.0.0.1", daemon.port))
            client.send(b"and you?")
            assert client.recv(100) == b"and you?"
        assert daemon.finish() == 0
