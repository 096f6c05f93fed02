"""One server process: started on its core, waited for, looked at from outside, ended with all its children.

Linux tells a process's CPU time to the nanosecond, ended threads included, through the clock that belongs to it
(clock_getcpuclockid(3)); of children that have ended and been waited for, only in ticks of 10 ms (proc(5)).
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.build import last_line
from benchmarks.servers import PROJECT, Server, command_of

SERVER_CORE, LOAD_CORE = 0, 1
READY_WITHIN_S, READY_PAUSE_S = 15.0, 0.0005
PROBE_TIMEOUT_S = 0.1
PROBE = b"are you there?"


class FailedError(Exception):
    """A server didn't do its work. The text is one line that says how."""


@dataclass(slots=True)
class Running:
    """A server that answers."""

    pid: int
    port: int
    start_s: float  # from before it was spawned until it had answered once

    def cpu_s(self) -> float:
        """Return the CPU time of the process and its children so far."""
        return sum(_cpu_s(pid) for pid in family(self.pid))

    def memory_bytes(self) -> int:
        """Return the memory of the process and its children; what several share is shared out among them."""
        return sum(_memory_bytes(pid) for pid in family(self.pid))


@contextlib.contextmanager
def started(server: Server, kind: str, host: str) -> Iterator[Running]:
    """Start a server and wait until it answers; end it afterwards. Raise FailedError when it doesn't answer."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        command = command_of(server, kind, host, port, folder)
        before_s = time.monotonic()
        with on_core(SERVER_CORE):
            process = subprocess.Popen(
                command, cwd=PROJECT, env=environment(), stdout=subprocess.DEVNULL, stderr=errors,
                start_new_session=True,
            )  # fmt: skip
        try:
            if not _answers(process, kind, port, before_s + READY_WITHIN_S):
                errors.seek(0)
                raise FailedError(f"didn't answer: {last_line(errors.read()) or 'it says nothing'}")
            yield Running(process.pid, port, time.monotonic() - before_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a session of its own: its children, and nobody else's
            process.wait()


def environment() -> dict[str, str]:
    """Return ours without what would have Python compile everything anew at each start: nobody installs it so."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _answers(process: subprocess.Popen[bytes], kind: str, port: int, end_s: float) -> bool:
    probe = _tcp_probe if kind == "tcp" else _udp_probe
    while time.monotonic() < end_s and process.poll() is None:
        if probe(port):
            return True
        time.sleep(READY_PAUSE_S)
    return False


def _tcp_probe(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), READY_WITHIN_S) as client:
        client.sendall(PROBE)
        return bool(client.recv(len(PROBE)))
    return False


def _udp_probe(port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PROBE_TIMEOUT_S)
        client.connect(("127.0.0.1", port))
        client.send(PROBE)
        return client.recv(2 * len(PROBE)) == PROBE
    return False


def free_port() -> int:
    """Return a port that is free for TCP and UDP, and that the kernel gives to no client."""
    for port in random.sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("0.0.0.0", port))
            udp.bind(("0.0.0.0", port))
            return port
    raise FailedError("no port is free")


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Whatever is started inside stays on one core, where there are two."""
    if not two_cores():
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[core]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def two_cores() -> bool:
    """Tell whether server and load can have a core each."""
    return len(os.sched_getaffinity(0)) > 1


def raise_descriptor_limit() -> int:
    """Raise the soft limit of descriptors to the hard one, for what is started too; return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [pid]
    for member in found:  # grows while it is walked
        for path in pathlib.Path(f"/proc/{member}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, path.read_text().split())
    return found


def _cpu_s(pid: int) -> float:
    try:
        used_s = time.clock_gettime((~pid << 3) | 2)  # what clock_getcpuclockid(3) computes
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0  # it has just ended
    return used_s + (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def _memory_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError):
        return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
