"""Measure one server under one workload, once.

Each round starts a new server. The load connects, reports and waits; the server's use is read; the load works and
reports when every answer is in; the server's use is read again. So only the work is counted.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time

from benchmarks.build import LOAD, last_line
from benchmarks.process import LOAD_CORE, SERVER_CORE, FailedError, Running, on_core, started
from benchmarks.results import Figures
from benchmarks.servers import PROJECT, Server, command_of
from benchmarks.workloads import Workload

FAIR_S = 5.0  # a hundred pings, for a 99th percentile
PATIENCE_S = 60.0  # beside the measured time; the load gives up after ten silent seconds


def measure(server: Server, workload: Workload, seconds: float) -> Figures:
    """Return the figures of one round. Raise FailedError."""
    kind = next(kind for kind in workload.kinds if kind in server.commands)
    if kind == "timers":
        return _timers(server, workload)
    if kind == "spawn":
        return _spawn(server)
    with started(server, kind, "0.0.0.0" if kind == "udp" else "127.0.0.1") as running:
        if workload.mode == "cold-start":
            return {"start_ms": running.start_s * 1e3}
        return _under_load(running, workload, max(seconds, FAIR_S) if workload.mode == "fair" else seconds)


def _under_load(running: Running, workload: Workload, seconds: float) -> Figures:
    before_bytes = running.memory_bytes()
    words = [workload.mode, "127.0.0.1", running.port, workload.count, workload.size_bytes, seconds]
    with on_core(LOAD_CORE):
        load = subprocess.Popen(
            [str(LOAD.make()), *map(str, words)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    impatience = threading.Timer(seconds + PATIENCE_S, load.kill)
    impatience.start()
    try:
        _expect(load)
        grown_bytes = running.memory_bytes() - before_bytes
        before_s = running.cpu_s()
        _go(load)
        _expect(load)
        timely_cpu_s = running.cpu_s() - before_s
        said = json.loads(_expect(load))
        cpu_s = running.cpu_s() - before_s
    finally:
        impatience.cancel()
        load.kill()
        load.communicate()
    return figures(said, workload.count, cpu_s, timely_cpu_s, grown_bytes)


def _expect(load: subprocess.Popen[str]) -> str:
    assert load.stdout is not None
    assert load.stderr is not None
    line = load.stdout.readline()
    if not line:
        raise FailedError(last_line(load.stderr.read()) or "the load took too long")
    return line


def _go(load: subprocess.Popen[str]) -> None:
    assert load.stdin is not None
    # BrokenPipeError: the load has failed, and its message is read next
    with contextlib.suppress(BrokenPipeError):
        load.stdin.write("go\n")
        load.stdin.flush()


def figures(said: Figures, count: int, cpu_s: float, timely_cpu_s: float, grown_bytes: int) -> Figures:
    """Return all figures that follow from the load's report and the server's use of CPU and memory."""
    found = {key: said[key] for key in ("messages", "bytes", "lost", "seconds")}
    found |= {"cpu_s": cpu_s, "bytes_per_connection": grown_bytes / count}
    if said["seconds"] > 0:
        found["per_second"] = said["timely_messages"] / said["seconds"]
        found["mb_per_s"] = said["timely_bytes"] / said["seconds"] / 1e6
        found["core_percent"] = 100 * timely_cpu_s / said["seconds"]
    if said["messages"]:
        found["cpu_us"] = cpu_s / said["messages"] * 1e6
    if said["bytes"]:
        found["cpu_s_per_gb"] = cpu_s / said["bytes"] * 1e9
    for name in ("p50", "p99", "max"):
        if f"{name}_us" in said:
            found |= {f"{name}_us": said[f"{name}_us"], f"{name}_ms": said[f"{name}_us"] / 1e3}
    return found


def _spawn(server: Server) -> Figures:
    """Measure a process that does nothing: the part of a cold start that no server can save."""
    before_s = time.monotonic()
    _run(command_of(server, "spawn", "", 0, ""))
    return {"start_ms": (time.monotonic() - before_s) * 1e3}


def _timers(server: Server, workload: Workload) -> Figures:
    what = workload.mode.removeprefix("timers-")
    said = _run([*command_of(server, "timers", "", 0, ""), what, str(workload.count)])
    return {"us_per_timer": float(said) / workload.count * 1e6}


def _run(command: list[str]) -> str:
    with on_core(SERVER_CORE):
        process = subprocess.Popen(
            command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
    try:
        out, errors = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise FailedError(f"not done after {PATIENCE_S:g} s") from None
    if process.returncode != 0:
        raise FailedError(last_line(errors) or f"exit status {process.returncode}")
    return out
