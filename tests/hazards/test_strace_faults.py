"""The kernel that says no, to the real daemon.

The other tests make system calls fail inside the process, at a seam. Here the process doesn't know: strace sits between
it and the kernel and injects the error. So this also covers what the seam can't see: what the interpreter itself does
with EINTR (it tries again, PEP 475), and that no call has been forgotten.

`socket.send` is sendto(2) underneath, and `socket.recv` is recvfrom(2).
"""

import contextlib
import hashlib
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

import pytest

from tests.support import PATIENCE_S, PROJECT, receive_exactly, send_in_background

PAYLOAD = random.Random(7).randbytes(3 << 20)
CALLERS = 12
FAULTS = [
    "sendto:error=EAGAIN:when=3+7",
    "sendto:error=EINTR:when=2+5",
    "sendto:error=ENOBUFS:when=40+60",
    "recvfrom:error=EINTR:when=2+3",
    "recvfrom:error=EAGAIN:when=3+5",
    "accept4:error=ECONNABORTED:when=1+2",
    "accept4:error=EMFILE:when=2+4",
    "accept4:error=EINTR:when=1+2",
    "accept4:error=EPERM:when=1+3",
    "epoll_wait:error=EINTR:when=2+3",
    "epoll_pwait:error=EINTR:when=2+3",
    "shutdown:error=ENOTCONN:when=1+2",
]
pytestmark = [pytest.mark.long, pytest.mark.skipif(not shutil.which("strace"), reason="strace isn't installed")]


class TracedDaemon:
    """The daemon under strace, its log on stderr."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def finish(self) -> int:
        """End it with SIGTERM; strace's exit status is the daemon's."""
        for pid in children(self.process.pid):
            os.kill(pid, signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


def children(pid: int) -> list[int]:
    """The daemon is strace's only child."""
    return [int(text) for text in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def traced(fault: str, trace: pathlib.Path, *arguments: str) -> Iterator[TracedDaemon]:
    call = fault.partition(":")[0]
    command = ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={call}", "-e", f"inject={fault}"]
    command += [sys.executable, "-m", "echo7", "serve", "--host", "127.0.0.1", "--port", "0", *arguments]
    with subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        try:
            for line in process.stderr:
                said.append(line)
                if "listening on" in line:
                    break
            else:
                pytest.skip(f"strace can't run it here: {said}")
            port = int(said[-1].rpartition(":")[2])
            reader = threading.Thread(target=process.stderr.read, daemon=True)
            reader.start()
            yield TracedDaemon(process, port)
            reader.join(PATIENCE_S)
        finally:
            if process.poll() is None:  # killing strace alone would set the daemon free
                for pid in children(process.pid):
                    os.kill(pid, signal.SIGKILL)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("fault", FAULTS)
def test_the_real_daemon_loses_no_byte_whatever_the_kernel_says(fault: str, tmp_path: pathlib.Path) -> None:
    """Promises 1, 15 and 16 with the real process: megabytes come back unchanged, every caller is served, exit 0."""
    trace = tmp_path / "trace"
    with traced(fault, trace) as daemon:
        callers = [socket.create_connection(("127.0.0.1", daemon.port), PATIENCE_S) for _ in range(CALLERS)]
        for number, caller in enumerate(callers):
            caller.sendall(b"caller %2d" % number)
            assert receive_exactly(caller, 9) == b"caller %2d" % number
        bulk = callers[0]
        sender = send_in_background(bulk, PAYLOAD, lambda: bulk.shutdown(socket.SHUT_WR))
        assert digest(receive_exactly(bulk, len(PAYLOAD))) == digest(PAYLOAD)
        assert bulk.recv(1) == b""
        sender.join(PATIENCE_S)
        for caller in callers:
            caller.close()
        assert daemon.finish() == 0
    if not fault.startswith("epoll_"):  # which of the two is called depends on the C library
        assert "(INJECTED)" in trace.read_text()


@pytest.mark.parametrize("code", ["EBADF", "EINVAL", "ENOTSOCK"])
def test_the_real_daemon_ends_with_status_1_when_its_last_socket_breaks(code: str, tmp_path: pathlib.Path) -> None:
    """'Close it with one line (exit 1 if it was the last)' (promise 16)."""
    with traced(f"accept4:error={code}", tmp_path / "trace", "--no-udp") as daemon:
        with contextlib.suppress(ConnectionResetError), socket.socket() as caller:
            caller.settimeout(PATIENCE_S)
            caller.connect(("127.0.0.1", daemon.port))
            assert caller.recv(1) == b""
        assert daemon.process.wait(PATIENCE_S) == 1


@pytest.mark.parametrize("code", ["EBADF", "EINVAL", "ENOTSOCK"])
def test_the_real_daemon_serves_udp_on_when_its_listener_breaks(code: str, tmp_path: pathlib.Path) -> None:
    """The same when it wasn't the last: UDP goes on, and the end is an orderly one."""
    with traced(f"accept4:error={code}", tmp_path / "trace") as daemon:
        with contextlib.suppress(ConnectionResetError), socket.socket() as caller:
            caller.settimeout(PATIENCE_S)
            caller.connect(("127.0.0.1", daemon.port))
            assert caller.recv(1) == b""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.settimeout(PATIENCE_S)
            asker.connect(("127.0.0.1", daemon.port))
            asker.send(b"and you?")
            assert asker.recv(100) == b"and you?"
        assert daemon.finish() == 0
