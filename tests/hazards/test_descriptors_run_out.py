"""The service that has run out of descriptors.

With every descriptor in use, accept(2) fails with EMFILE. The client stays in the kernel's queue, so the listening
socket stays readable. A naive server tries again at once, fails again and logs it: it burns a core and fills the disk
with one line, just when it is busiest. Another naive server takes the error for fatal and exits.

What prevents it: at start, the soft limit is raised to the hard one. At the limit, the listener is suspended for a
moment, logs that once, and tries again. The clients wait in the queue and are served later.
"""

import contextlib
import errno
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from echo7.server import EchoServer
from reactor import Reactor
from reactor.sockets.errors import os_error
from tests.support.basics import PATIENCE_S
from tests.support.clients import receive_exactly
from tests.support.daemon import LOOKED_INTO, EchoProcess
from tests.support.faults import FlakySockets
from tests.support.loops import ManualClock, turn_idle, turn_until

resource = pytest.importorskip("resource")

MOST_ACCEPTS_PER_S = 20
LIMIT = 48
CLIENTS = 70
WATCH_S = 1.0
LOCAL = ("--host", "127.0.0.1", "--drain-timeout", "0")


def limit_descriptors(soft: int, hard: int) -> Callable[[], None]:
    """Return a function that limits the descriptors of a child process; for `preexec_fn`."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def ask(client: socket.socket, data: bytes) -> None:
    """Send, and receive the echo."""
    client.sendall(data)
    assert receive_exactly(client, len(data)) == data


@contextlib.contextmanager
def crowded() -> Iterator[tuple[EchoProcess, list[socket.socket]]]:
    """Start a daemon, and connect more clients than it has descriptors: the first are served, the last wait."""
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(
            EchoProcess(*LOCAL, "--max-connections", "1000", preexec_fn=limit_descriptors(LIMIT, LIMIT))
        )
        clients = [stack.enter_context(daemon.connect()) for _ in range(CLIENTS)]
        daemon.next_line("accept_waits")
        yield daemon, clients


def test_without_descriptors_clients_wait_until_others_leave() -> None:
    """'At the limit, the listener pauses and retries […], and recovers when descriptors free up' (promise 15)."""
    with crowded() as (daemon, clients):
        for client in clients[:5]:
            ask(client, b"open connections go on")
        for number, client in enumerate(clients):
            client.sendall(b"client %d" % number)
        for client in clients[: CLIENTS // 2]:
            client.shutdown(socket.SHUT_WR)
        for number, client in enumerate(clients):
            expected = b"client %d" % number
            assert receive_exactly(client, len(expected)) == expected
        assert daemon.finish() == 0
        assert sum(line["event"] == "accept_waits" for line in daemon.lines) == 1, "'few log lines'"


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("strace"), reason="counts system calls with strace")
def test_without_descriptors_accept_is_tried_a_few_times_a_second(tmp_path: pathlib.Path) -> None:
    """'No spin: fewer than 20 accept calls a second' (promise 15), counted from outside the process."""
    trace = tmp_path / "trace"
    with crowded() as (daemon, _):
        command = ["strace", "-f", "-e", "trace=accept4,accept", "-o", str(trace), "-p", str(daemon.process.pid)]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert tracer.stderr is not None
        first_line = tracer.stderr.readline()
        if "attached" not in first_line:
            tracer.wait(PATIENCE_S)
            tracer.stderr.close()
            pytest.skip(f"strace may not look at processes here: {first_line.strip()}")
        time.sleep(WATCH_S)  # no synchronisation: calls are counted over this time
        tracer.send_signal(signal.SIGINT)
        tracer.wait(PATIENCE_S)
        tracer.stderr.close()
        accepts = trace.read_text().count("EMFILE")
        assert 1 <= accepts < MOST_ACCEPTS_PER_S * WATCH_S


def test_listener_without_descriptors_retries_seldom_and_logs_once(caplog: pytest.LogCaptureFixture) -> None:
    """The same with a manual clock that moves by a millisecond, for two seconds. And 'few log lines': one."""
    clock, sockets = ManualClock(), FlakySockets()
    with Reactor(clock=clock, sockets=sockets) as reactor:
        server = EchoServer(("127.0.0.1",), 0)
        server.start(reactor)
        sockets.faults.always["accept"] = os_error(errno.EMFILE)
        with socket.create_connection(("127.0.0.1", server.addresses[0].port), PATIENCE_S) as client:
            for _ in range(2_000):
                turn_idle(reactor, 1)
                clock.advance(0.001)
            assert 2 <= sockets.faults.calls["accept"] <= 2 * MOST_ACCEPTS_PER_S
            assert len(caplog.records) == 1
            del sockets.faults.always["accept"]
            clock.advance(1.0)
            client.sendall(b"at last")
            turn_until(reactor, lambda: server.counters.tcp_bytes_sent == 7)
            assert client.recv(8) == b"at last"


def test_soft_descriptor_limit_is_raised_to_the_hard_one() -> None:
    """'Raise the soft limit to the hard one at start' (promise 15): with a soft limit of 40, 100 clients are served."""
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(EchoProcess(*LOCAL, preexec_fn=limit_descriptors(40, 200)))
        clients = [stack.enter_context(daemon.connect()) for _ in range(100)]
        for client in clients:
            ask(client, b"room for all")
        assert daemon.finish() == 0
        assert daemon.lines[-1]["connections"] >= 100
        assert daemon.lines[-1]["drops"] == {}


def test_default_limits_keep_some_descriptors_in_reserve() -> None:
    """The default connection limit is below the descriptor limit, so clients wait and accept(2) doesn't fail."""
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(EchoProcess(*LOCAL, *LOOKED_INTO, preexec_fn=limit_descriptors(LIMIT, LIMIT)))
        clients = [stack.enter_context(daemon.connect()) for _ in range(CLIENTS)]
        for number, client in enumerate(clients):
            ask(client, b"one after another")
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
            if number == 0 and os.path.isdir("/proc"):
                assert len(os.listdir(f"/proc/{daemon.process.pid}/fd")) < LIMIT
        assert daemon.finish() == 0
        assert daemon.lines[-1]["drops"] == {}
