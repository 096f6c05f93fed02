"""For tests that need root: forged packets, network namespaces, capabilities."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

import pytest


def without_capabilities(*names: str) -> list[str]:
    """Return a prefix for a command that takes these capabilities (`net_bind_service`, …) away, even from root."""
    if os.getuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv(1), to give up a capability")
    return ["setpriv", "--bounding-set", ",".join(f"-{name}" for name in names)]


def udp_over_ipv4(source: tuple[str, int], destination: tuple[str, int], data: bytes, checksum: int = 0) -> bytes:
    """Return an IPv4 packet with a UDP datagram from any source (RFC 791, RFC 768). Checksum 0: none."""
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination[0])
    header = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, 64, socket.IPPROTO_UDP, 0)
    return header + addresses + struct.pack("!HHHH", source[1], destination[1], 8 + len(data), checksum) + data


def forge(packet: bytes) -> None:
    """Send an IPv4 packet to this machine over loopback. Skip the test where raw sockets aren't allowed."""
    host = socket.inet_ntoa(packet[16:20])
    assert host.startswith("127."), "forged packets stay on loopback"
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    except PermissionError:
        pytest.skip("raw sockets need CAP_NET_RAW")
    with raw:
        raw.sendto(packet, (host, 0))


def in_network_namespace(commands: Sequence[str], body: Callable[[], object]) -> None:
    """Run `ip` commands, then `body`, in a new network namespace, which ends with them.

    On Linux a thread can have its own namespace: sockets that `body` opens are in it, all others stay outside. Skip the
    test where that isn't allowed.
    """
    problems: list[BaseException] = []

    def run() -> None:
        try:
            _enter_network_namespace(commands)
            body()
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if problems:
        raise problems[0]


def _enter_network_namespace(commands: Sequence[str]) -> None:
    new_network_namespace()
    run_ip(commands)
    wait_for_network()


def new_network_namespace() -> None:
    """Move this thread into a new network namespace. Skip the test where that isn't allowed."""
    if not sys.platform.startswith("linux") or shutil.which("ip") is None:
        pytest.skip("needs Linux and iproute2")
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) != 0:  # CLONE_NEWNET
        pytest.skip(f"can't make a network namespace: {os.strerror(ctypes.get_errno())}")
    run_ip(["link set lo up"])


def run_ip(commands: Sequence[str]) -> None:
    """Run `ip` commands in this thread's network namespace. Skip the test where a command fails.

    Commands in a row share one process, for speed. `-6` is an option of that process, not of a command.
    """
    for is_ipv6, group in itertools.groupby(commands, lambda command: command.startswith("-6 ")):
        lines = "\n".join(command.removeprefix("-6 ") for command in group)
        program = ["ip", *(["-6"] if is_ipv6 else []), "-batch", "-"]
        done = subprocess.run(program, input=lines, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"{' '.join(program)}: {done.stderr.strip()} in {lines!r}")


def wait_for_network() -> None:
    """Return when the links and addresses of this thread's network namespace can be used."""
    for _ in range(5000):
        if _network_is_settled():
            return
    raise AssertionError("the links and addresses of the namespace don't come up")


def _network_is_settled() -> bool:
    """Tell whether links are up and IPv6 addresses have routes. Until then the kernel loses packets."""

    def lines(*arguments: str) -> list[str]:
        done = subprocess.run(["ip", "-o", *arguments], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    if not all("state UP" in link or "state UNKNOWN" in link for link in lines("link", "show", "up")):
        return False
    addresses = {line.split()[3].partition("/")[0] for line in lines("-6", "addr", "show", "up")}
    return addresses <= {line.split()[1] for line in lines("-6", "route", "show", "table", "local")}
