"""A machine that lacks what most machines have.

In a bare container there is no /dev/null, in a strict sandbox no /proc; a supervisor starts services without HOME, in a
folder that is deleted meanwhile, with SIGCHLD and SIGINT ignored, and with some standard descriptors closed. Programs
that were never tried there end in a traceback, or hang.

What prevents it: the programs need none of this. They leave out what is missing, or use something else.
"""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest

from tests.support.basics import PATIENCE_S, PROJECT
from tests.support.daemon import EchoProcess
from tests.support.echo import EchoThread

pytestmark = [pytest.mark.long, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="makes namespaces")]

IGNORING = """
import os, signal, sys
for signum in (signal.SIGCHLD, signal.SIGINT): signal.signal(signum, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""
# name → the command that runs the rest of its arguments without it
WITHOUT: dict[str, Sequence[str]] = {
    "/dev": ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh"),
    "/proc": ("unshare", "-m", "sh", "-c", 'umount -l /proc && exec "$@"', "sh"),
    "/dev and /proc": ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev && umount -l /proc && exec "$@"', "sh"),
    "environment": ("env", "-i"),
    "folder": ("sh", "-c", f'd=$(mktemp -d) && cd $d && rmdir $d && PYTHONPATH="{PROJECT}" exec "$@"', "sh"),
    "signals": (sys.executable, "-c", IGNORING),
}
CLOSED = [(), (0,), (2,), (0, 1), (1, 2), (0, 1, 2)]
COMMANDS: dict[str, Sequence[str]] = {
    "check": ("-m", "echo7", "check", "127.0.0.1", "--port", "PORT", "--only", "udp-0"),
    "ping": ("-m", "echo7", "ping", "127.0.0.1", "--port", "PORT", "-c", "1"),
    "lessons": ("-m", "reactor.lessons", "2", "--source"),
    "serve": ("-m", "echo7", "serve", "--port", "0", "--check-config"),
}
# every command in every environment, and every set of closed descriptors with each; the product is a long test
TURNS = {name: number for number, name in enumerate(WITHOUT)}
ALL = [
    pytest.param(
        what, name, closed,
        marks=[] if CLOSED[(TURNS[what] + number) % len(CLOSED)] == closed else pytest.mark.long,
    )
    for what, (number, name), closed in itertools.product(WITHOUT, enumerate(COMMANDS), CLOSED)
]  # fmt: skip


def prefix_without(what: str) -> Sequence[str]:
    """Return a prefix for a command. Skip the test where it isn't allowed."""
    done = subprocess.run([*WITHOUT[what], "/bin/true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"not allowed here: {done.stderr.strip()}")
    return WITHOUT[what]


@pytest.fixture(scope="module")
def port() -> Iterator[str]:
    with EchoThread() as server:
        yield str(server.port)


@pytest.mark.parametrize(("what", "name", "closed"), ALL)
def test_command_needs_nothing_outside(what: str, name: str, closed: tuple[int, ...], port: str) -> None:
    words = [port if word == "PORT" else word for word in COMMANDS[name]]

    def close() -> None:
        for number in closed:
            os.close(number)

    done = subprocess.run(
        [*prefix_without(what), sys.executable, *words],
        cwd=PROJECT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        preexec_fn=close,
    )  # fmt: skip
    # a closed stdout that nothing can take the place of can't be written
    lost = name == "ping" and 1 in closed and "/dev" in what
    assert done.returncode == (74 if lost else 0)
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr == "" or lost


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.long)])
@pytest.mark.parametrize("what", WITHOUT)
def test_service_serves_and_restarts_without(what: str, workers: str) -> None:
    with EchoProcess("--host", "127.0.0.1", "--workers", workers, prefix=prefix_without(what)) as daemon:
        daemon.process.send_signal(signal.SIGHUP)
        daemon.next_line("restarted")
        assert daemon.finish() == 0
        assert {line["level"] for line in daemon.lines} == {"info"}
