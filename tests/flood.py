"""Flood: a minute of abuse from all sides, and one well-behaved client that must be served.

    python3 -m tests.flood [--seconds 60] [-- MORE OPTIONS OF ECHO7 SERVE]

Starts `echo7 serve` and one process for each kind of abuse, all at once. Each abuser has another address than the
well-behaved client:

    syn         SYN from forged sources, and no other packet               (root only: raw sockets)
    vanish      connects, sends a few bytes, then nothing
    reset       connects and resets at once, as fast as it can
    slow        writes as much as the kernel takes, and reads a byte now and then
    garbage     connects, sends random bytes, some of them urgent, and half-closes or closes
    empty       empty datagrams
    loud        datagrams of random sizes; reads no answer
    forged      datagrams from a million forged sources                    (root only: raw sockets)

As root, everything happens in a new network namespace, which forged packets can't leave. Without root, it happens on
loopback, without the two. The well-behaved client sends 64 bytes twenty times a second over one connection, connects
anew each second, and sends a datagram beside each ping.

Violations, each of which makes the exit status 1: an error, a wrong byte or ten silent seconds of the well-behaved
client; a datagram that isn't answered within a second when the flood is over, or one lost of the hundred after that;
memory or descriptors beyond what the limits allow; a log line of level `error`; an exit status other than 0. Round-trip
times and lost datagrams are reported, and are no violation: all clients share the kernel's buffers.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from tests.soak import RESET_ON_CLOSE, SERVE, Daemon
from tests.support.root import new_network_namespace, run_ip, udp_over_ipv4

HONEST, HERE = "127.0.0.1", "127.0.0.1"
PING_BYTES, PING_INTERVAL_S = 64, 0.05
PINGS_PER_CALL = 20
PATIENCE_S = 10.0  # of the well-behaved client
RECOVERY_S = 1.0  # the first answer over UDP when the flood is over
FAREWELL_PINGS = 100
FORGED_SOURCES = 1_000_000
CONNECTIONS_LIMIT = 400
OPTIONS = ["--host", "0.0.0.0", "--max-connections", str(CONNECTIONS_LIMIT), "--udp-rate", "1000:2000",
           "--idle-timeout", "5"]  # fmt: skip
CONNECTION_BYTES = 160 * 1024  # `Limits.bound_bytes`, and what the allocator adds
SLOTS_BYTES, TABLES_BYTES, GRAIN_BYTES = 5 << 20, 5 << 20, 8 << 20
OWN_DESCRIPTORS, PIPES = 40, 64
ABUSER_CONNECTIONS = 60
KINDS: dict[str, Callable[[str, int, float], None]] = {}
ROOT_KINDS = ("syn", "forged")


def abuser(function: Callable[[str, int, float], None]) -> Callable[[str, int, float], None]:
    """Register an abuser under its name. It gets its own address, the server's port, and the time of its end."""
    KINDS[function.__name__] = function
    return function


# ---------------------------------------------------------------- the abusers


def connected(source: str, port: int) -> socket.socket:
    sock = socket.socket()
    sock.settimeout(0.5)
    sock.bind((source, 0))
    try:
        sock.connect((HERE, port))
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def whatever_happens() -> Iterator[None]:
    """Ignore an abuser's errors, and pause a moment so that it doesn't spin."""
    try:
        yield
    except OSError:
        time.sleep(0.002)


def tcp_syn(source: str, port: int, source_port: int) -> bytes:
    """Return an IPv4 packet with a TCP SYN (RFC 9293 §3.1, RFC 791)."""
    addresses = socket.inet_aton(source) + socket.inet_aton(HERE)
    segment = struct.pack("!HHIIBBHHH", source_port, port, random.getrandbits(32), 0, 0x50, 0x02, 65_535, 0, 0)
    words = struct.unpack("!16H", addresses + struct.pack("!HH", socket.IPPROTO_TCP, len(segment)) + segment)
    total = sum(words)
    total = (total >> 16) + (total & 0xFFFF)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    header = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, 64, socket.IPPROTO_TCP, 0)
    return header + addresses + segment[:16] + struct.pack("!H", checksum) + segment[18:]


def forged_source(number: int) -> str:
    return f"10.{number >> 16 & 0xFF}.{number >> 8 & 0xFF}.{number & 0xFF}"


def forging(make: Callable[[int], bytes], ends_s: float, pause_s: float) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        number = 0
        while time.monotonic() < ends_s:
            for _ in range(50):
                number += 1
                with whatever_happens():
                    raw.sendto(make(number * 7919 % FORGED_SOURCES), (HERE, 0))
            time.sleep(pause_s)


@abuser
def syn(source: str, port: int, ends_s: float) -> None:
    forging(lambda n: tcp_syn(forged_source(n), port, 1024 + n % 60_000), ends_s, 0.02)


@abuser
def forged(source: str, port: int, ends_s: float) -> None:
    forging(lambda n: udp_over_ipv4((forged_source(n), 40_000), (HERE, port), b"x"), ends_s, 0.005)


@abuser
def vanish(source: str, port: int, ends_s: float) -> None:
    held: list[socket.socket] = []
    while time.monotonic() < ends_s:
        with whatever_happens():
            held.append(connected(source, port))
            held[-1].send(b"and then nothing")
        if len(held) > ABUSER_CONNECTIONS:
            held.pop(0).detach()  # the descriptor stays open without an owner
            time.sleep(0.1)


@abuser
def reset(source: str, port: int, ends_s: float) -> None:
    while time.monotonic() < ends_s:
        with whatever_happens(), connected(source, port) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


@abuser
def slow(source: str, port: int, ends_s: float) -> None:
    held: list[socket.socket] = []
    while time.monotonic() < ends_s:
        if len(held) < ABUSER_CONNECTIONS:
            with whatever_happens():
                held.append(connected(source, port))
                held[-1].setblocking(False)
        for sock in list(held):
            try:
                with contextlib.suppress(BlockingIOError):
                    sock.send(bytes(65_536))
                with contextlib.suppress(BlockingIOError):
                    sock.recv(1)
            except OSError:
                held.remove(sock)
                sock.close()
        time.sleep(0.02)


@abuser
def garbage(source: str, port: int, ends_s: float) -> None:
    chance = random.Random(port)
    while time.monotonic() < ends_s:
        with whatever_happens(), connected(source, port) as sock:
            for _ in range(chance.randrange(4)):
                sock.send(chance.randbytes(chance.randrange(1, 20_000)), chance.choice((0, 0, socket.MSG_OOB)))
            if chance.random() < 0.5:
                sock.shutdown(socket.SHUT_WR)


def shouting(source: str, port: int, ends_s: float, size: Callable[[], int], pause_s: float) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        while time.monotonic() < ends_s:
            for _ in range(50):
                with whatever_happens():
                    sock.sendto(bytes(size()), (HERE, port))
            time.sleep(pause_s)


@abuser
def empty(source: str, port: int, ends_s: float) -> None:
    shouting(source, port, ends_s, lambda: 0, 0.001)


@abuser
def loud(source: str, port: int, ends_s: float) -> None:
    shouting(source, port, ends_s, lambda: random.randrange(9000), 0.005)


# ---------------------------------------------------------------- the well-behaved client


@dataclass
class Report:
    """The result."""

    pings_s: list[float] = field(default_factory=list)
    calls: int = 0
    datagrams: int = 0
    datagrams_lost: int = 0
    recovery_s: float = 0.0
    lost_afterwards: int = 0
    before_bytes: int = 0
    most_bytes: int = 0
    most_descriptors: int = 0
    last_line: dict[str, object] = field(default_factory=dict)
    abusers: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def percentile_ms(self, percent: float) -> float:
        """Return the longest round trip of the quickest `percent` of the pings."""
        ordered = sorted(self.pings_s) or [0.0]
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] * 1e3

    def __str__(self) -> str:
        """Return a table."""
        rows = {
            "abusers": ", ".join(self.abusers),
            "pings over TCP": f"{len(self.pings_s)} on {self.calls} connections",
            "their round trip, p50 / p99 / most": " / ".join(f"{self.percentile_ms(p):.1f}" for p in (50, 99, 100))
            + " ms",
            "datagrams lost meanwhile": f"{self.datagrams_lost} of {self.datagrams}",
            "first answer over UDP afterwards": f"{self.recovery_s * 1e3:.1f} ms",
            f"lost of the next {FAREWELL_PINGS}": str(self.lost_afterwards),
            "resident before / at the most": f"{self.before_bytes / 1e6:.1f} / {self.most_bytes / 1e6:.1f} MB",
            "descriptors at the most": str(self.most_descriptors),
            "the daemon's drops": str(self.last_line.get("drops")),
            "violations": str(len(self.violations)),
        }
        return "\n".join([f"{name:36} {value}" for name, value in rows.items()] + self.violations)


class Honest:
    """The well-behaved client: twenty pings a second, over TCP and UDP."""

    def __init__(self, port: int, report: Report) -> None:
        self._port, self._report = port, report
        self._tcp: socket.socket | None = None
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((HONEST, 0))
        self._udp.connect((HERE, port))

    def ping(self) -> None:
        """Ping over TCP, and over UDP."""
        report = self._report
        data = random.randbytes(PING_BYTES)
        self._send_datagram(data)
        try:
            if self._tcp is None or len(report.pings_s) % PINGS_PER_CALL == 0:
                self._call()
            assert self._tcp is not None
            began_s = time.monotonic()
            self._tcp.sendall(data)
            received = b""
            while len(received) < PING_BYTES:
                piece = self._tcp.recv(PING_BYTES)
                if not piece:
                    raise ConnectionError("the server ended the connection")
                received += piece
            report.pings_s.append(time.monotonic() - began_s)
            if received != data:
                raise ValueError("the echo differs from what was sent")
        except (OSError, ValueError) as error:
            report.violations.append(f"the well-behaved client: {error!r} after {len(report.pings_s)} pings")
            self._tcp = None
        report.datagrams_lost += not self._is_answered(data, PING_INTERVAL_S)

    def _call(self) -> None:
        if self._tcp is not None:
            self._tcp.close()
        self._tcp = socket.create_connection((HERE, self._port), PATIENCE_S, (HONEST, 0))
        self._report.calls += 1

    def _send_datagram(self, data: bytes) -> None:
        self._report.datagrams += 1
        with contextlib.suppress(OSError):
            self._udp.send(data)

    def _is_answered(self, data: bytes, patience_s: float) -> bool:
        """Tell whether a datagram has come back. Late answers to earlier ones are ignored."""
        ends_s = time.monotonic() + patience_s
        while True:
            self._udp.settimeout(max(0.002, ends_s - time.monotonic()))
            try:
                if self._udp.recv(2 * PING_BYTES) == data:
                    return True
            except OSError:
                if time.monotonic() >= ends_s:
                    return False

    def look_at_the_end(self) -> None:
        """Check that UDP is served again at once, and loses nothing."""
        report, began_s = self._report, time.monotonic()
        while not self._ping_over_udp(PING_INTERVAL_S):
            if time.monotonic() > began_s + 10 * RECOVERY_S:
                break
        report.recovery_s = time.monotonic() - began_s
        if report.recovery_s > RECOVERY_S:
            report.violations.append(f"UDP was answered again only after {report.recovery_s:.1f} s")
        report.lost_afterwards = sum(not self._ping_over_udp(RECOVERY_S) for _ in range(FAREWELL_PINGS))
        if report.lost_afterwards:
            report.violations.append(f"{report.lost_afterwards} datagrams were lost after the flood")

    def _ping_over_udp(self, patience_s: float) -> bool:
        data = random.randbytes(PING_BYTES)
        with contextlib.suppress(OSError):
            self._udp.send(data)
        return self._is_answered(data, patience_s)

    def close(self) -> None:
        """Close both sockets."""
        self._udp.close()
        if self._tcp is not None:
            self._tcp.close()


# ---------------------------------------------------------------- the flood


def flood(seconds: float, forging: bool, serve: Sequence[str] = SERVE, options: Sequence[str] = ()) -> Report:
    """Run the flood in this thread's network namespace, and return the report."""
    report = Report()
    with Daemon(serve, [*OPTIONS, *options]) as daemon:
        port = daemon.addresses("tcp")[0][1]
        honest = Honest(port, report)
        report.before_bytes = daemon.resident_bytes()
        ends_s = time.monotonic() + seconds
        abusers = start_abusers(port, ends_s, forging)
        report.abusers = [process.name for process in abusers]
        while time.monotonic() < ends_s:
            next_s = time.monotonic() + PING_INTERVAL_S
            honest.ping()
            report.most_bytes = max(report.most_bytes, daemon.resident_bytes())
            report.most_descriptors = max(report.most_descriptors, daemon.descriptors())
            time.sleep(max(0.0, next_s - time.monotonic()))
        for process in abusers:
            process.join(PATIENCE_S)
            process.kill()
        honest.look_at_the_end()
        honest.close()
        status = daemon.finish()
        judge(report, status, daemon)
    return report


def start_abusers(port: int, ends_s: float, forging: bool) -> list[multiprocessing.context.SpawnProcess]:
    """Start one process for each kind of abuse that this user may send."""
    context = multiprocessing.get_context("spawn")  # starts from this thread, so in its namespace
    found = []
    for number, (name, function) in enumerate(KINDS.items()):
        if name in ROOT_KINDS and not forging:
            continue
        process = context.Process(target=function, args=(f"127.0.1.{number + 1}", port, ends_s), name=name, daemon=True)
        process.start()
        found.append(process)
    return found


def judge(report: Report, status: int | None, daemon: Daemon) -> None:
    """Add the violations that show only at the end."""
    report.last_line = daemon.lines[-1]
    bound_bytes = report.before_bytes + CONNECTIONS_LIMIT * CONNECTION_BYTES + SLOTS_BYTES + TABLES_BYTES + GRAIN_BYTES
    if report.most_bytes > bound_bytes:
        report.violations.append(f"{report.most_bytes} resident bytes; at most {bound_bytes} are allowed")
    if report.most_descriptors > CONNECTIONS_LIMIT + OWN_DESCRIPTORS + 2 * PIPES:
        report.violations.append(f"{report.most_descriptors} open descriptors, more than the limits allow")
    if status != 0:
        report.violations.append(f"exit status {status}")
    report.violations += [f"logged: {line}" for line in daemon.lines if line["level"] == "error"]


def in_own_namespace(body: Callable[[bool], Report]) -> Report:
    """Run `body(True)` in a new network namespace, where packets may be forged; else `body(False)`."""
    box: list[Report] = []

    def run() -> None:
        forging = False
        with contextlib.suppress(pytest.skip.Exception):
            new_network_namespace()
            run_ip(["route add 10.0.0.0/8 dev lo"])  # answers to forged sources go nowhere
            forging = True
        box.append(body(forging))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return box[0]


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.flood", description="abuse from all sides, beside one well-behaved client"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: %(default)g)")
    parser.add_argument("options", nargs="*", metavar="OPTION", help="more options of `echo7 serve`, after --")
    options = parser.parse_args(arguments)
    report = in_own_namespace(lambda forging: flood(options.seconds, forging, options=options.options))
    print(report)
    return int(bool(report.violations))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
