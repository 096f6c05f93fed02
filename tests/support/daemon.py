"""`python -m echo7 serve` as an operator runs it."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import pytest

from echo7 import cli, serve
from echo7.settings import Settings
from tests.support.basics import PATIENCE_S, PROJECT, until

METRICS_PACKAGES = ("h11", "prometheus_client")
# For a daemon whose descriptors a test looks at: only root may look into a restricted process.
LOOKED_INTO = ("--sandbox", "off") if hasattr(os, "geteuid") and os.geteuid() else ()


def serve_config(*arguments: str) -> Settings:
    """Return the settings that `echo7 serve` reads from these arguments. Raise SystemExit(2) as it does."""
    return serve.configure(cli.parse(["serve", *arguments]))


# A restricted process can't write what coverage has measured.
MEASURED = ["--sandbox", "off"] if any(name.startswith("COVERAGE_") for name in os.environ) else []


class Installation(NamedTuple):
    """Where the code is, and the Python that runs it."""

    python: str
    folder: pathlib.Path


@contextlib.contextmanager
def readable_copy() -> Iterator[Installation]:
    """Copy the packages to a folder that every user may read, and find a Python that every user may run, or skip."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can become another user")
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        if _any_user_runs(python):
            break
    else:
        pytest.skip("no Python of 3.11 or later here that every user may run")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for package in ("reactor", "echo7"):
            shutil.copytree(PROJECT / package, pathlib.Path(folder, package))
        yield Installation(python, pathlib.Path(folder))


def _any_user_runs(python: str) -> bool:
    code = "import sys, json, ctypes; sys.exit(sys.version_info < (3, 11))"
    with contextlib.suppress(OSError):
        done = subprocess.run([python, "-c", code], user=65534, group=65534, capture_output=True, cwd="/", check=False)
        return done.returncode == 0
    return False


class EchoProcess:
    """`python -m echo7 serve` as an operator runs it. It is ready inside of the `with` block, and killed at its end.

    `lines` are the JSON log lines so far; `next_line` waits for one more. Those of --sandbox are in `restrictions`,
    because they depend on the kernel. `program`: what Python runs. Without a `port`, no option names it.
    """

    def __init__(
        self,
        *arguments: str,
        port: int | None = 0,
        wait: bool = True,
        prefix: Sequence[str] = (),
        installation: Installation | None = None,
        program: Sequence[str] = ("-m", "echo7"),
        **popen: Any,
    ) -> None:
        self.lines: list[dict[str, Any]] = []
        self.restrictions: list[dict[str, Any]] = []
        self._wait = wait
        python, folder = installation or Installation(sys.executable, PROJECT)
        options = [*([] if port is None else ["--port", str(port)]), "--log-format", "json", *MEASURED, *arguments]
        whole = [*prefix, python, *program, "serve", *options]
        self.process = subprocess.Popen(whole, cwd=folder, stderr=subprocess.PIPE, text=True, **popen)

    def __enter__(self) -> Self:
        if self._wait:
            self.wait_until_ready()
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        assert self.process.stderr is not None
        self.process.stderr.close()

    @property
    def port(self) -> int:
        """The port that is being served."""
        port: int = next(line["port"] for line in self.lines if line["event"] == "listening")
        return port

    def wait_until_ready(self) -> None:
        """Wait for a `listening` line, then for a first answer: the daemon logs every line before it serves."""
        line = self.next_line("listening")
        family = socket.AF_INET6 if ":" in line["address"] else socket.AF_INET
        kind = socket.SOCK_STREAM if line["transport"] == "tcp" else socket.SOCK_DGRAM
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(line["address"], line["address"])
        with socket.socket(family, kind) as client:
            client.settimeout(PATIENCE_S)
            client.connect((host, line["port"]))
            client.send(b"ready?")
            assert client.recv(6) == b"ready?"

    def next_line(self, event: str) -> dict[str, Any]:
        """Read log lines up to the next one of this event, and return it."""
        assert self.process.stderr is not None
        overdue = threading.Timer(PATIENCE_S, self.process.kill)
        overdue.start()
        try:
            return self._read_up_to(event)
        finally:
            overdue.cancel()

    def _read_up_to(self, event: str) -> dict[str, Any]:
        assert self.process.stderr is not None
        for text in self.process.stderr:
            line = self._keep(text)
            if line["event"] == event:
                return line
        raise AssertionError(f"the process ended ({self.process.wait()}) without {event!r}; its log: {self.lines}")

    def finish(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal, read the log to its end, and return the exit status."""
        self.process.send_signal(signum)
        assert self.process.stderr is not None
        for text in self.process.stderr:
            self._keep(text)
        return self.process.wait(PATIENCE_S)

    def _keep(self, text: str) -> dict[str, Any]:
        line = self._parsed(text)
        (self.restrictions if line["event"] == "sandbox" else self.lines).append(line)
        return line

    def _parsed(self, text: str) -> dict[str, Any]:
        """Parse a line of the log. Other output on stderr fails the test, with the whole traceback."""
        said = [text]
        while said[-1].startswith(("Traceback", " ")):
            assert self.process.stderr is not None
            said.append(self.process.stderr.readline())
        assert text.startswith("{"), f"not a line of the log: {''.join(said)}"
        line: dict[str, Any] = json.loads(text)
        return line

    def connect(self, host: str = "127.0.0.1") -> socket.socket:
        """Return a connected TCP client, blocking with a time-out."""
        return socket.create_connection((host, self.port), PATIENCE_S)


class WorkersProcess(EchoProcess):
    """`echo7 serve --workers N`. `pids` maps the workers' numbers to their process ids, from the log."""

    def __init__(self, *arguments: str, count: int = 2, **options: Any) -> None:
        super().__init__("--workers", str(count), *arguments, **options)

    def __exit__(self, *exception: object) -> None:
        """Kill the supervisor, and wait for its workers: they share its stderr, which ends with the last worker."""
        if self.process.poll() is None:
            self.process.kill()
            assert self.process.stderr is not None
            overdue = threading.Timer(PATIENCE_S, self._send_workers, [signal.SIGKILL])
            overdue.start()
            self._send_workers(signal.SIGCONT)  # the test may have stopped a worker
            self.process.stderr.read()
            overdue.cancel()
        super().__exit__(*exception)

    def _send_workers(self, signum: int) -> None:
        for pid in self.pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    @property
    def pids(self) -> dict[int, int]:
        """The workers that were started last."""
        found: dict[int, int] = {}
        for line in self.lines:
            if line["event"] == "workers":
                found = dict(enumerate(line["pids"], 1))
            elif line["event"] == "worker_ready":
                found[line["worker"]] = line["pid"]
        return found

    def halt(self, number: int) -> int:
        """Stop a worker (SIGSTOP), wait until it has stopped, and return its pid."""
        pid = self.pids[number]
        os.kill(pid, signal.SIGSTOP)
        until(lambda: pathlib.Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] == "T")
        return pid
