"""Check one server on port 7, alone in a network namespace. Shared by `golf` and `judged`.

Law: no other program listens or sends in the namespace, and it has no way out. Without the right to make a namespace,
root's own loopback is used. Without either, one line says why, and nothing is checked.

    namespace()  →  unshare … python3 -m benchmarks.alone HOST COMMAND…  →  a report as JSON on stdout
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.build import last_line
from benchmarks.process import environment
from echo7.checker import check, table
from reactor.console import program

PORT = 7
PROJECT = pathlib.Path(__file__).resolve().parent.parent
READY_WITHIN_S, READY_PAUSE_S, PROBE_TIMEOUT_S = 20.0, 0.02, 0.2
JUDGED_WITHIN_S = 600.0
CASE_TIMEOUT_S = 2.0
PROBE = b"are you there?\n"
LOOPBACK = "127.0.0.1"
# Of the namespace. A client of the second address sends from the first.
ADDRESSES = ("10.7.7.1", "10.7.7.2")
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFADDR, IFF_UP = 0x8913, 0x8914, 0x8916, 1  # netdevice(7)
# For root; for other users, where a server can't drop its privileges.
NAMESPACES = (("unshare", "-n"), ("unshare", "-rn"))


class AloneError(Exception):
    """A server couldn't be checked. The text is one line."""


def namespace() -> tuple[str, ...]:
    """Return the prefix that gives a command its own network. Raise AloneError when port 7 isn't available."""
    for prefix in NAMESPACES:
        with contextlib.suppress(OSError):
            if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
                return prefix
    if os.geteuid() == 0:
        return ()
    raise AloneError("cannot make a network namespace (unshare -rn), and port 7 is for root; run this as root")


def judge_alone(prefix: Sequence[str], command: Sequence[str]) -> dict[str, Any]:
    """Start a server alone, check it and end it. Return the report's document. Raise AloneError."""
    host = ADDRESSES[1] if prefix else LOOPBACK
    whole = [*prefix, sys.executable, "-m", "benchmarks.alone", host, *command]
    try:
        done = subprocess.run(
            whole, cwd=PROJECT, env=environment(), capture_output=True, text=True, timeout=JUDGED_WITHIN_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise AloneError(f"the check takes longer than {JUDGED_WITHIN_S:g} s") from None
    if done.returncode != 0:
        raise AloneError(last_line(done.stderr) or f"status {done.returncode}, without a message")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def main(arguments: Sequence[str]) -> int:
    """Run inside the namespace: start, check and end the server, and print the report. Return the exit status."""
    host, *command = arguments
    if host in ADDRESSES:
        set_up_loopback()
    try:
        with started(host, command):
            print(json.dumps(table.document(check(host, PORT, timeout_s=CASE_TIMEOUT_S))))
    except AloneError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def started(host: str, command: Sequence[str]) -> Iterator[None]:
    """Run a server while the block lasts. Raise AloneError when the server doesn't answer."""
    with (
        tempfile.TemporaryFile("w+") as errors,
        program.running(command, stdout=errors, stderr=errors, stdin=subprocess.DEVNULL) as process,
    ):
        end_s = time.monotonic() + READY_WITHIN_S
        while not answers(host):
            if process.poll() is not None or time.monotonic() > end_s:
                errors.seek(0)
                raise AloneError(f"it doesn't answer: {last_line(errors.read()) or 'no message'}")
            time.sleep(READY_PAUSE_S)
        yield


def answers(host: str) -> bool:
    """Return whether a server accepts over TCP or answers over UDP."""
    with contextlib.suppress(OSError):
        socket.create_connection((host, PORT), PROBE_TIMEOUT_S).close()
        return True
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.settimeout(PROBE_TIMEOUT_S)
        # not connected, because the answer may come from another address
        sock.sendto(PROBE, (host, PORT))
        return bool(sock.recv(100))
    return False


def set_up_loopback() -> None:
    """Set loopback up and add ADDRESSES, as `ip` does: in a new namespace it is down (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        flags = struct.unpack_from("16sH", fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0)))[1]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))
        for number, address in enumerate(ADDRESSES):
            label = f"lo:{number}".encode()
            fcntl.ioctl(sock, SIOCSIFADDR, struct.pack("16sH2x4s8x", label, socket.AF_INET, socket.inet_aton(address)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
