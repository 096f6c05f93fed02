"""The log line that went to a client.

A service is started with stderr closed (`2>&-`, or by a careless supervisor). The lowest free descriptor number is 2,
so the next socket gets it. From then on every log line and every traceback is written into a client's connection.

What prevents it: at start, /dev/null is opened in place of each missing standard descriptor (promise 21).
"""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import pytest

from tests.support.basics import PATIENCE_S, PROJECT
from tests.support.clients import echo_and_close, reset
from tests.support.daemon import LOOKED_INTO

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks at /proc/PID/fd")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


@contextlib.contextmanager
def silent_daemon(closed: Sequence[int]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a daemon without these descriptors. It can't log that it is ready, so connect until it answers."""
    port = free_port()
    command = [sys.executable, "-m", "echo7", "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--log-level", "debug", *LOOKED_INTO]
    with subprocess.Popen(command, cwd=PROJECT, preexec_fn=lambda: close_all(closed)) as daemon:
        try:
            wait_for_answer(daemon, port)
            yield daemon, port
        finally:
            daemon.kill()


def wait_for_answer(daemon: subprocess.Popen[bytes], port: int) -> None:
    """Connect until there is an answer. By then the daemon also handles its signals."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s and daemon.poll() is None:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)) as client:
            assert echo_and_close(client, b"ready?") == b"ready?"
            return
    pytest.fail(f"the daemon doesn't listen; its exit status is {daemon.returncode}")


@pytest.mark.parametrize("closed", [(2,), (1, 2), (0, 1, 2)], ids=str)
def test_with_stderr_closed_no_log_line_reaches_a_client(closed: tuple[int, ...]) -> None:
    """'A closed […] stderr […] never blocks or ends the service' (promise 21), and clients get only what they sent."""
    with silent_daemon(closed) as (daemon, port):
        descriptors = pathlib.Path("/proc", str(daemon.pid), "fd")
        assert [os.readlink(descriptors / str(number)) for number in closed] == [os.devnull] * len(closed)
        clients = [socket.create_connection(("127.0.0.1", port), PATIENCE_S) for _ in range(5)]
        for _ in range(3):
            daemon.send_signal(signal.SIGUSR1)  # each makes a log line
        reset(clients.pop())
        for number, client in enumerate(clients):
            assert echo_and_close(client, b"client %d" % number) == b"client %d" % number
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(PATIENCE_S) == 0
