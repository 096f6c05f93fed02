"""One server process: start it on its core, wait for it, read its use of CPU and memory, end it with all its children.

Linux gives a process's CPU time to the nanosecond, with ended threads, by a clock of its own (clock_getcpuclockid(3)).
The CPU time of ended children comes in ticks of 10 ms (proc(5)).
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import resource
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.build import last_line
from benchmarks.servers import PROJECT, Server, command_of
from reactor.console import program

SERVER_CORE, LOAD_CORE = 0, 1
READY_WITHIN_S, READY_PAUSE_S = 15.0, 0.0005
PROBE_TIMEOUT_S = 0.1
PROBE = b"are you there?"


class FailedError(Exception):
    """A server failed. The text is one line that says how."""


@dataclass(slots=True)
class Running:
    """A running server that has answered once."""

    pid: int
    port: int
    start_s: float  # from before the spawn to the first answer

    def cpu_s(self) -> float:
        """Return the CPU time of the process and its children so far."""
        return sum(_cpu_s(pid) for pid in family(self.pid))

    def memory_bytes(self) -> int:
        """Return the memory of the process and its children; shared memory is divided among its users."""
        return sum(_memory_bytes(pid) for pid in family(self.pid))


@contextlib.contextmanager
def started(server: Server, kind: str, host: str) -> Iterator[Running]:
    """Start a server, wait until it answers, and end it afterwards. Raise FailedError when it doesn't answer."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        command = command_of(server, kind, host, port, folder)
        before_s = time.monotonic()
        options = {"cwd": PROJECT, "env": environment(), "stdout": subprocess.DEVNULL, "stderr": errors}
        with contextlib.ExitStack() as stack:
            with on_core(SERVER_CORE):
                process = stack.enter_context(program.running(command, **options))
            if not _answers(process, kind, port, before_s + READY_WITHIN_S):
                errors.seek(0)
                raise FailedError(f"didn't answer: {last_line(errors.read()) or 'no message'}")
            yield Running(process.pid, port, time.monotonic() - before_s)


def environment() -> dict[str, str]:
    """Return our environment, but let Python cache its bytecode, as an installed program does."""
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
    """Return a port that is free for TCP and UDP, outside the range of ephemeral ports."""
    for port in random.sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("0.0.0.0", port))
            udp.bind(("0.0.0.0", port))
            return port
    raise FailedError("no port is free")


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Keep processes that start inside the block on one core, if there are two."""
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
    """Return whether server and load can have a core each."""
    return len(os.sched_getaffinity(0)) > 1


def raise_descriptor_limit() -> int:
    """Raise the soft limit of descriptors to the hard one, also for child processes; return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    # the list grows during the loop
    for member in found:
        for path in pathlib.Path(f"/proc/{member}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, path.read_text().split())
    return found


def _cpu_s(pid: int) -> float:
    try:
        used_s = time.clock_gettime((~pid << 3) | 2)  # what clock_getcpuclockid(3) computes
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0  # the process has just ended
    return used_s + (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def _memory_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError):
        return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
