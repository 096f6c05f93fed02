"""TCP ping-pong: echo7 beside its peers, in one interleaved run.

    python3 -m benchmarks.pingpong [--connections 50] [--bytes 1024] [--seconds 2] [--rounds 7]

Each round measures every server once, in turn, so that a machine whose speed drifts does no harm to the ratios.
The server has one core to itself and the load the other (where there are two). Printed: the median of messages per
second, of the server's CPU time per message (which doesn't depend on the load's speed), and echo7's ratio to each
peer, round by round, as median and min–max. Needs `cc` for the load and the C peer.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

HERE = pathlib.Path(__file__).parent
SERVER_CORE, LOAD_CORE = 0, 1
READY_TRIES, READY_PAUSE_S = 200, 0.05


@dataclass
class Result:
    """One server's rounds."""

    per_second: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)


def main() -> int:
    """Measure and print. Return 1 when there is no compiler or a server fails."""
    options = _options()
    if shutil.which("cc") is None:
        print("pingpong: needs a C compiler as 'cc' for the load generator; install gcc or clang", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        load = compile_c(HERE / "load.c", folder)
        servers = {
            "echo7": [
                sys.executable,
                "-m",
                "echo7",
                "serve",
                "--host",
                "127.0.0.1",
                "--no-udp",
                "--log-level",
                "error",
                "--port",
            ],
            "asyncio": [sys.executable, str(HERE / "peers" / "asyncio_echo.py")],
            "c-epoll": [compile_c(HERE / "peers" / "epoll_echo.c", folder)],
        }
        results = {name: Result() for name in servers}
        for number in range(1, options.rounds + 1):
            for name, command in servers.items():
                measure(command, load, options, results[name])
                print(f"\rround {number}/{options.rounds}: {name:10}", end="", file=sys.stderr, flush=True)
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
    report(results, options)
    return 0


def compile_c(source: pathlib.Path, folder: str) -> str:
    """Compile one C program and return its path."""
    program = str(pathlib.Path(folder) / source.stem)
    subprocess.run(["cc", "-O2", "-Wall", "-o", program, str(source)], check=True)
    return program


def measure(command: list[str], load: str, options: argparse.Namespace, result: Result) -> None:
    """Start a server, load it once, stop it, and add what was seen to `result`."""
    port = free_port()
    server = subprocess.Popen([*command, str(port)], preexec_fn=lambda: pin(SERVER_CORE), cwd=HERE.parent)
    try:
        wait_until_ready(port)
        before_s = cpu_seconds(server.pid)
        arguments = ["127.0.0.1", str(port), str(options.connections), str(options.bytes), str(options.seconds)]
        done = subprocess.run([load, *arguments], preexec_fn=lambda: pin(LOAD_CORE), check=True, capture_output=True)
        used_s = cpu_seconds(server.pid) - before_s
    finally:
        server.kill()
        server.wait()
    messages, seconds = done.stdout.split()
    result.per_second.append(int(messages) / float(seconds))
    result.cpu_us.append(used_s / int(messages) * 1e6)


def report(results: dict[str, Result], options: argparse.Namespace) -> None:
    """Print the table."""
    print(f"{options.connections} connections x {options.bytes} bytes, {options.rounds} rounds of {options.seconds} s")
    print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    print(f"{'server':10} {'msg/s':>10} {'CPU us/msg':>11}   echo7's ratio to it, median (min-max)")
    ours = results["echo7"].per_second
    for name, result in results.items():
        ratios = [a / b for a, b in zip(ours, result.per_second, strict=True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if name != "echo7" else ""
        per_second, cpu_us = statistics.median(result.per_second), statistics.median(result.cpu_us)
        print(f"{name:10} {per_second:10,.0f} {cpu_us:11.2f}   {ratio}")


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_ready(port: int) -> None:
    """Return when the server accepts. Raise TimeoutError when it doesn't."""
    for _ in range(READY_TRIES):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(READY_PAUSE_S)
    raise TimeoutError(f"nothing listens on port {port}")


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process so far (proc(5))."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pin(core: int) -> None:
    """Keep this process on one core, where there are two."""
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {core})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.pingpong", description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--bytes", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
