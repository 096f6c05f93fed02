"""One server, alone in a network namespace, judged on port 7: what `golf` and `judged` have in common.

Law: a server is judged where nothing else is: no other port, no other program, no way out. Without the right to make a
namespace, root's own loopback will do; without either, it is said why not, and nothing is judged.

    namespace()  →  unshare … python3 -m benchmarks.alone HOST COMMAND…  →  a report as JSON on stdout
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import signal
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

PORT = 7
PROJECT = pathlib.Path(__file__).resolve().parent.parent
READY_WITHIN_S, READY_PAUSE_S, PROBE_TIMEOUT_S = 20.0, 0.02, 0.2
JUDGED_WITHIN_S = 600.0
CASE_TIMEOUT_S = 2.0
PROBE = b"are you there?\n"
LOOPBACK = "127.0.0.1"
ADDRESSES = ("10.7.7.1", "10.7.7.2")  # of the namespace; who asks the second one does it from the first
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFADDR, IFF_UP = 0x8913, 0x8914, 0x8916, 1  # netdevice(7)
# Root's; an unprivileged user's, in which a server that would drop its privileges can't.
NAMESPACES = (("unshare", "-n"), ("unshare", "-rn"))


class AloneError(Exception):
    """A server couldn't be judged. The text is one line."""


def namespace() -> tuple[str, ...]:
    """Return the prefix of a command that gives it a network of its own. Raise AloneError when port 7 can't be had."""
    for prefix in NAMESPACES:
        with contextlib.suppress(OSError):
            if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
                return prefix
    if os.geteuid() == 0:
        return ()
    raise AloneError("no network namespace may be made here (unshare -rn), and port 7 is for root; run this as root")


def judge_alone(prefix: Sequence[str], command: Sequence[str]) -> dict[str, Any]:
    """Start a server by itself, judge it, end it. Return the report's document. Raise AloneError."""
    host = ADDRESSES[1] if prefix else LOOPBACK
    whole = [*prefix, sys.executable, "-m", "benchmarks.alone", host, *command]
    try:
        done = subprocess.run(
            whole, cwd=PROJECT, env=environment(), capture_output=True, text=True, timeout=JUDGED_WITHIN_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise AloneError(f"not judged within {JUDGED_WITHIN_S:g} s") from None
    if done.returncode != 0:
        raise AloneError(last_line(done.stderr) or f"status {done.returncode}, and not a word")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def main(arguments: Sequence[str]) -> int:
    """Be the process inside: loopback up, the server started, judged and ended. Return the exit status."""
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
    """Run a server while the block lasts. Raise AloneError when it doesn't come up."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=errors, stderr=errors, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            end_s = time.monotonic() + READY_WITHIN_S
            while not answers(host):
                if process.poll() is not None or time.monotonic() > end_s:
                    errors.seek(0)
                    raise AloneError(f"it doesn't answer: {last_line(errors.read()) or 'it says nothing'}")
                time.sleep(READY_PAUSE_S)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a session of its own: its children, and nobody else's
            process.wait()


def answers(host: str) -> bool:
    """Tell whether anybody accepts over TCP, or answers over UDP."""
    with contextlib.suppress(OSError):
        socket.create_connection((host, PORT), PROBE_TIMEOUT_S).close()
        return True
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.settimeout(PROBE_TIMEOUT_S)
        sock.sendto(PROBE, (host, PORT))  # not connected: the answer may come from another address
        return bool(sock.recv(100))
    return False


def set_up_loopback() -> None:
    """Do what `ip link set lo up` and `ip address add` do: a new namespace's loopback is down (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        flags = struct.unpack_from("16sH", fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0)))[1]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))
        for number, address in enumerate(ADDRESSES):
            label = f"lo:{number}".encode()
            fcntl.ioctl(sock, SIOCSIFADDR, struct.pack("16sH2x4s8x", label, socket.AF_INET, socket.inet_aton(address)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
