"""Soak: the real daemon under mixed load for minutes, every byte compared, memory and descriptors watched.

    python3 -m tests.soak [--minutes 10] [--connections 50] [--seed N]

Starts `echo7 serve` and keeps N clients busy at once, each in a role: talkers (random bytes of random sizes,
half-close, FIN), breakers (the same, ended by RST at a random moment), slow readers, idlers, and hoarders (they write,
and read only at the end). Some bytes are urgent. UDP clients send datagrams of 0 to 65,507 bytes. SIGUSR1 comes now and
then. Each byte that comes back is compared.

Violations, each of which makes the exit status 1:

- a byte that is wrong, missing, extra or too early; a datagram changed or answered twice; a client refused or reset;
- memory: more resident bytes at the end than at 10 % of the time, plus an allowance. Each client may hold 131,072 bytes
  in the process at one moment and none at another; the allocator may keep 1 MiB. A leak for each connection doesn't fit
  into that: 50 clients make 150,000 connections in ten minutes, so 60 bytes for each would show;
- more descriptors than at the start when all clients have left; a log line of level `error`; more bytes sent than
  received, by the daemon's own counters; an exit status other than 0 on SIGTERM.

Lost datagrams are counted, and are no violation. Standard library only; Linux only (proc(5)). The load has its own
loop, so that the code under test doesn't test itself.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import errno
import heapq
import json
import math
import os
import pathlib
import random
import re
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

PROJECT = pathlib.Path(__file__).resolve().parent.parent
SERVE = (sys.executable, "-m", "echo7")
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
DESCRIPTORS_PATIENCE_S = 6.0  # a connection ends at most `Limits.linger_timeout_s`, 5 s, after its client
PATIENCE_S = 60.0  # how long a client may wait without progress, and how long the last clients may take
END_PATIENCE_S = 20.0  # SIGTERM to exit: the daemon's drain timeout is 5 s
RESET_ON_CLOSE = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # struct linger, socket(7)
LOOK_AT_MOST_EVERY_S = 2.0
WARM_UP = 0.1  # this share of the time
BOUND_BYTES = 131_072  # what one connection may hold in the process
GRAIN_BYTES = 1 << 20
MOST_STREAM_BYTES = 24 << 20  # more than the kernel buffers, so that the daemon's buffer fills too
MOST_DATAGRAM_BYTES = 65_507
BURST_BYTES = 80_000  # so that a burst usually fits into the kernel's buffers
URGENT_SHARE = 0.1  # of the sends of a client that sends urgent bytes
VIOLATIONS_SHOWN = 20
# Only root may look into a restricted process.
LOOKED_INTO = ["--sandbox", "off"] if os.geteuid() else []


# ---------------------------------------------------------------- the daemon


class Daemon:
    """`echo7 serve` on free ports, observed through its log and /proc."""

    def __init__(self, serve: Sequence[str], options: Sequence[str] = ()) -> None:
        command = [*serve, "serve", "--port", "0", "--log-format", "json", *LOOKED_INTO, *options]
        self.process = subprocess.Popen(  # in its own session, so that ^C reaches only the soak
            command, cwd=PROJECT, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.lines: list[dict[str, Any]] = []
        self._proc = pathlib.Path(f"/proc/{self.process.pid}")
        while not self._is_ready():
            self._read_line()
        self._reader = threading.Thread(target=self._read_to_end, daemon=True)
        self._reader.start()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def addresses(self, transport: str) -> list[tuple[str, int]]:
        """Return the addresses served over "tcp" or "udp"."""
        told = (line for line in self.lines if line["event"] == "listening" and line["transport"] == transport)
        return [(line["address"], line["port"]) for line in told]

    def resident_bytes(self) -> int:
        """Return VmRSS."""
        found = re.search(r"VmRSS:\s+(\d+) kB", self._read("status"))
        return int(found[1]) * 1024 if found else 0

    def descriptors(self) -> int:
        """Return how many are open."""
        with contextlib.suppress(FileNotFoundError):
            return len(os.listdir(self._proc / "fd"))
        return 0

    def cpu_s(self) -> float:
        """Return user and system time so far."""
        fields = self._read("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0

    def finish(self) -> int | None:
        """Send SIGTERM; return the exit status, or None if the daemon doesn't end."""
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(END_PATIENCE_S)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join()  # for the last log lines
        return status

    def _read(self, name: str) -> str:
        with contextlib.suppress(
            FileNotFoundError, ProcessLookupError
        ):  # the daemon has died, which its exit status shows
            return (self._proc / name).read_text()
        return ""

    def _is_ready(self) -> bool:
        """Tell whether all sockets are logged: first each TCP socket, then as many UDP sockets."""
        return bool(self.addresses("tcp")) and len(self.addresses("tcp")) == len(self.addresses("udp"))

    def _read_line(self) -> bool:
        assert self.process.stderr is not None
        text = self.process.stderr.readline()
        if text:
            with contextlib.suppress(ValueError):  # a traceback isn't JSON; the exit status shows it
                self.lines.append(json.loads(text))
        elif not self._is_ready():
            raise RuntimeError(f"the daemon exited with {self.process.wait()} before it served; its log: {self.lines}")
        return bool(text)

    def _read_to_end(self) -> None:
        while self._read_line():
            pass


# ---------------------------------------------------------------- the findings


@dataclass
class Sample:
    """The daemon at one moment."""

    at_s: float
    resident_bytes: int


@dataclass
class Tally:
    """What was done and found so far."""

    connections: int = 0
    echoed_bytes: int = 0
    urgent: int = 0
    resets: int = 0
    datagrams: int = 0
    datagrams_echoed: int = 0
    datagrams_lost: int = 0
    counters_asked: int = 0
    samples: list[Sample] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def resident_at(self, share: float) -> int:
        """Return the resident bytes at this share of the samples."""
        return self.samples[min(len(self.samples) - 1, int(share * len(self.samples)))].resident_bytes

    def slope_bytes_per_minute(self) -> float:
        """Fit a line through the samples after the warm-up (least squares)."""
        late = self.samples[int(WARM_UP * len(self.samples)) :]
        mean_s = sum(sample.at_s for sample in late) / len(late)
        mean_bytes = sum(sample.resident_bytes for sample in late) / len(late)
        above = sum((sample.at_s - mean_s) * (sample.resident_bytes - mean_bytes) for sample in late)
        below = sum((sample.at_s - mean_s) ** 2 for sample in late)
        return 60 * above / below if below else 0.0


# ---------------------------------------------------------------- the load's own loop


class Loop:
    """A minimal loop of sockets and timers. It shares no code with the reactor under test."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._timers_made = 0

    def later(self, delay_s: float, callback: Callable[[], object]) -> None:
        """Call `callback()` once, after this delay."""
        self._timers_made += 1
        heapq.heappush(self._timers, (time.monotonic() + delay_s, self._timers_made, callback))

    def turn(self) -> None:
        """Wait up to 0.1 s for a socket or a timer, then serve both."""
        wait_s = min(0.1, max(0.0, self._timers[0][0] - time.monotonic())) if self._timers else 0.1
        for key, mask in self.selector.select(wait_s):
            key.data(mask)
        now_s = time.monotonic()
        while self._timers and self._timers[0][0] <= now_s:
            heapq.heappop(self._timers)[2]()


class Watched:
    """A non-blocking socket on the loop. `on_event` is called until it is closed."""

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.loop, self.sock = loop, sock
        self.closed = False
        self._interest = 0

    def watch(self, interest: int) -> None:
        """Set the interest; 0 is no interest."""
        before, self._interest = self._interest, interest
        if before and not interest:
            self.loop.selector.unregister(self.sock)
        elif interest and not before:
            self.loop.selector.register(self.sock, interest, self._on_event)
        elif interest != before:
            self.loop.selector.modify(self.sock, interest, self._on_event)

    def close(self) -> None:
        """Close. No event comes afterwards."""
        if not self.closed:
            self.closed = True
            self.watch(0)
            self.sock.close()

    def on_event(self, mask: int) -> None:
        """Do what can be done."""
        raise NotImplementedError

    def _on_event(self, mask: int) -> None:
        if not self.closed:
            self.on_event(mask)


# ---------------------------------------------------------------- TCP clients


@dataclass
class Plan:
    """What one client does."""

    role: str
    size_bytes: int
    piece_bytes: int = 1 << 16  # the most that is sent at once
    starts_after_s: float = 0.0
    reads_after_s: float = 0.0
    read_bytes: int = 1 << 18
    read_pause_s: float = 0.0
    reset_at_bytes: int | None = None  # sent and received together
    urgent: bool = False
    receive_buffer_bytes: int | None = None


def any_size(rng: random.Random, most_bytes: int) -> int:
    """Return a size, with each order of magnitude equally likely."""
    return int(most_bytes ** rng.random()) - rng.randrange(2)


def talker(rng: random.Random) -> Plan:
    """Plan a client that sends, half-closes, and reads to the end."""
    size_bytes = any_size(rng, 1 << 20)
    piece_bytes = size_bytes // 500 + 1 + any_size(rng, 1 << 17)  # a million sends of one byte would take too long
    return Plan("talker", size_bytes, piece_bytes, urgent=rng.random() < 0.1)


def breaker(rng: random.Random) -> Plan:
    """Plan a client that resets the connection at any moment."""
    size_bytes = any_size(rng, 1 << 20)
    return Plan("breaker", size_bytes, reset_at_bytes=rng.randrange(2 * size_bytes + 1), urgent=rng.random() < 0.1)


def slow_reader(rng: random.Random) -> Plan:
    """Plan a client that reads slowly, so that output piles up in the kernel, then in the daemon."""
    return Plan("slow reader", any_size(rng, 1 << 20), read_bytes=8192, read_pause_s=0.01, receive_buffer_bytes=16_384)


def idler(rng: random.Random) -> Plan:
    """Plan a client that is silent for a long time."""
    return Plan("idler", any_size(rng, 4096), starts_after_s=rng.uniform(0, 30))


def hoarder(rng: random.Random) -> Plan:
    """Plan a client that writes until the kernel takes no more, and reads later."""
    return Plan("hoarder", MOST_STREAM_BYTES, reads_after_s=rng.uniform(0, 30), receive_buffer_bytes=65_536)


ROLES = (talker, breaker, slow_reader, idler, talker, hoarder, talker, breaker, idler, talker)


class Client(Watched):
    """One TCP client that carries out a plan, and compares what comes back. `done` is called at its end."""

    def __init__(self, soak: Soak, plan: Plan, address: tuple[str, int], done: Callable[[Client], None]) -> None:
        super().__init__(soak.loop, socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET))
        self._soak, self._plan, self._done = soak, plan, done
        self._offset = soak.rng.randrange(len(soak.bytes) - plan.size_bytes + 1)
        self._sent = self._received = self._moved_before = 0
        self._connected = self._fin_sent = False
        self._may_send, self._may_read = plan.starts_after_s == 0, plan.reads_after_s == 0
        if plan.receive_buffer_bytes is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, plan.receive_buffer_bytes)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self.sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            self._connect_failed(code)
            return
        self.watch(WRITE)
        self.loop.later(PATIENCE_S, self._check_progress)

    def hurry(self) -> None:
        """Do the rest of the plan at once: the time is over."""
        self._plan.read_pause_s = 0.0
        self._start_sending()
        self._start_reading()

    def on_event(self, mask: int) -> None:
        """Connect, then send and receive."""
        try:
            if not self._connected:
                self._on_connected()
            elif mask & READ:
                self._receive()
            if mask & WRITE and not self.closed:
                self._send()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._violate(f"lost its connection: {error}")
        self._go_on()

    def _on_connected(self) -> None:
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._connect_failed(code)
            return
        self._connected = True
        self._soak.tally.connections += 1
        self.loop.later(self._plan.starts_after_s, self._start_sending)
        self.loop.later(self._plan.reads_after_s, self._start_reading)

    def _connect_failed(self, code: int) -> None:
        if code == errno.EADDRNOTAVAIL:  # the machine's ports are used up for a while
            self._finish()
        else:
            self._violate(f"can't connect: {os.strerror(code)}")

    def _send(self) -> None:
        if not self._may_send or self._fin_sent:
            return
        first = self._offset + self._sent
        size_bytes = min(self._soak.rng.randint(1, self._plan.piece_bytes), self._plan.size_bytes - self._sent)
        if size_bytes and self._plan.urgent and self._soak.rng.random() < URGENT_SHARE:
            self._sent += self.sock.send(self._soak.bytes[first : first + 1], socket.MSG_OOB)
            self._soak.tally.urgent += 1
        elif size_bytes:
            self._sent += self.sock.send(self._soak.bytes[first : first + size_bytes])
        if self._sent == self._plan.size_bytes and not self._is_reset_due():
            self.sock.shutdown(socket.SHUT_WR)
            self._fin_sent = True

    def _receive(self) -> None:
        piece = self.sock.recv(self._plan.read_bytes)
        first = self._offset + self._received
        if self._received + len(piece) > self._sent:
            self._violate("got more than it has sent")
        elif piece != self._soak.bytes[first : first + len(piece)]:
            self._violate(f"got a wrong byte in the {len(piece)} after byte {self._received}")
        elif piece:
            self._received += len(piece)
            self._soak.tally.echoed_bytes += len(piece)
            self._rest_from_reading()
        elif self._fin_sent and self._received == self._sent:
            self._finish()
        else:
            self._violate("got FIN too early")

    def _rest_from_reading(self) -> None:
        if self._plan.read_pause_s:
            self._may_read = False
            self.loop.later(self._plan.read_pause_s, self._start_reading)

    def _start_sending(self) -> None:
        self._may_send = True
        self._go_on()

    def _start_reading(self) -> None:
        self._may_read = True
        self._go_on()

    def _go_on(self) -> None:
        """Reset if that is due, else set the interest."""
        if self.closed:
            return
        if self._connected and self._is_reset_due():
            self._soak.tally.resets += 1
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self._finish()
        elif self._connected:
            sending = self._may_send and not self._fin_sent
            self.watch((WRITE if sending else 0) | (READ if self._may_read else 0))

    def _is_reset_due(self) -> bool:
        at_bytes = self._plan.reset_at_bytes
        return at_bytes is not None and self._sent + self._received >= at_bytes

    def _check_progress(self) -> None:
        if self.closed:
            return
        moved = self._sent + self._received
        if moved == self._moved_before and self._may_send and self._may_read:
            self._violate(f"has waited for {PATIENCE_S:g} s with {self._sent} bytes sent and {self._received} received")
            return
        self._moved_before = moved
        self.loop.later(PATIENCE_S, self._check_progress)

    def _violate(self, what: str) -> None:
        self._soak.tally.violations.append(f"TCP ({self._plan.role}, {self._plan.size_bytes} bytes): {what}")
        self._finish()

    def _finish(self) -> None:
        self.close()
        self.loop.later(0.0, lambda: self._done(self))


# ---------------------------------------------------------------- UDP clients


class UdpClient(Watched):
    """One UDP client that sends bursts, and compares each answer with the datagrams sent."""

    def __init__(self, soak: Soak, address: tuple[str, int], done: Callable[[UdpClient], None]) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(soak.loop, socket.socket(family, socket.SOCK_DGRAM))
        self._soak, self._done = soak, done
        self._awaited: collections.Counter[bytes] = collections.Counter()
        self._serial = soak.rng.getrandbits(64)
        self._bursts_left = 20
        self.sock.connect(address)
        self.watch(READ)
        self._next_burst()

    def on_event(self, mask: int) -> None:
        """Compare the answers."""
        with contextlib.suppress(BlockingIOError, InterruptedError):
            while True:
                try:
                    data = self.sock.recv(1 << 17)
                except ConnectionRefusedError:
                    self._soak.tally.violations.append("a datagram was refused: nothing is listening")
                    return
                self._check(data)

    def _check(self, data: bytes) -> None:
        if not self._awaited[data]:
            self._soak.tally.violations.append(f"a datagram of {len(data)} bytes came back changed, or twice")
            return
        self._awaited[data] -= 1
        self._soak.tally.datagrams_echoed += 1
        self._soak.tally.echoed_bytes += len(data)

    def _next_burst(self) -> None:
        self._awaited = +self._awaited  # keep only the unanswered ones
        if self._soak.over or not self._bursts_left:
            self.loop.later(0.0 if not self._awaited else 1.0, self._finish)  # the last answers may be in flight
            return
        self._bursts_left -= 1
        left_bytes = self._soak.rng.randint(1, BURST_BYTES)
        while left_bytes > 0:
            data = self._new_datagram()
            with contextlib.suppress(BlockingIOError, ConnectionRefusedError):  # what isn't sent isn't awaited
                self.sock.send(data)
                self._awaited[data] += 1
                self._soak.tally.datagrams += 1
            left_bytes -= 1000 + len(data)
        self.loop.later(self._soak.rng.uniform(0.02, 0.2), self._next_burst)

    def _new_datagram(self) -> bytes:
        rng = self._soak.rng
        size_bytes = rng.choice((0, MOST_DATAGRAM_BYTES, *[any_size(rng, MOST_DATAGRAM_BYTES) for _ in range(20)]))
        self._serial = self._serial + 1 & (1 << 64) - 1
        first = rng.randrange(len(self._soak.bytes) - size_bytes)
        return (self._serial.to_bytes(8, "little") + self._soak.bytes[first : first + size_bytes])[:size_bytes]

    def _finish(self) -> None:
        self.on_event(READ)
        self._soak.tally.datagrams_lost += self._awaited.total()
        self.close()
        self._done(self)


# ---------------------------------------------------------------- the soak


class Soak:
    """The load, the samples, and the checks at the end."""

    def __init__(self, daemon: Daemon, options: argparse.Namespace) -> None:
        self.loop, self.tally, self.rng = Loop(), Tally(), random.Random(options.seed)
        self.bytes = self.rng.randbytes(MOST_STREAM_BYTES + (1 << 20))  # each stream is a part of these
        self.over, self.cpu_s = False, 0.0
        self.duration_s = 60.0 * options.minutes
        self.allowance_bytes = options.connections * BOUND_BYTES + GRAIN_BYTES
        self.descriptors_at_start = self.descriptors_at_end = daemon.descriptors()
        self._daemon, self._options = daemon, options
        self._busy: set[Watched] = set()
        self._began_s = time.monotonic()
        self._next_line_s = 0.0

    def run(self) -> None:
        """Load the daemon for the given time, let all clients finish, and wait until their descriptors are closed."""
        for seat in range(self._options.connections):
            self._keep_seat_busy(seat)
        for number in range(max(1, self._options.connections // 10)):
            self._keep_sending_datagrams(number)
        self._look()
        self._ask_for_counters()
        before = signal.signal(signal.SIGINT, self._enough)  # an exception could come between a send and its count
        while self.elapsed_s() < self.duration_s and self._daemon.process.poll() is None:
            self.loop.turn()
        signal.signal(signal.SIGINT, before)
        self.over = True
        self._sample()
        self.cpu_s = self._daemon.cpu_s()
        self._let_all_finish()
        self._wait_for_descriptors()

    def _enough(self, *_: object) -> None:
        """End the load now, and report what was found so far."""
        self.duration_s = self.elapsed_s()

    def elapsed_s(self) -> float:
        """Return the time since the beginning."""
        return time.monotonic() - self._began_s

    def _keep_seat_busy(self, seat: int) -> None:
        """Keep a seat busy with one client after another, and a short pause between two."""

        def done(client: Client) -> None:
            self._busy.discard(client)
            self.loop.later(self.rng.uniform(0, 0.2), lambda: self._keep_seat_busy(seat))

        if not self.over:
            address = self.rng.choice(self._daemon.addresses("tcp"))
            self._busy.add(Client(self, ROLES[seat % len(ROLES)](self.rng), address, done))

    def _keep_sending_datagrams(self, number: int) -> None:
        def done(client: UdpClient) -> None:
            self._busy.discard(client)
            self._keep_sending_datagrams(number)

        if not self.over:
            self._busy.add(UdpClient(self, self.rng.choice(self._daemon.addresses("udp")), done))

    def _ask_for_counters(self) -> None:
        if self.over or self._daemon.process.poll() is not None:
            return
        if self.elapsed_s() > 0.5:
            self._daemon.process.send_signal(signal.SIGUSR1)
            self.tally.counters_asked += 1
        self.loop.later(self.rng.uniform(0.5, 5.0), self._ask_for_counters)

    def _look(self) -> None:
        if not self.over and self._daemon.process.poll() is None:
            self._sample()
            self._show_progress()
            self.loop.later(min(LOOK_AT_MOST_EVERY_S, self.duration_s / 20), self._look)

    def _sample(self) -> None:
        self.tally.samples.append(Sample(self.elapsed_s(), self._daemon.resident_bytes()))

    def _show_progress(self) -> None:
        elapsed_s, tally = self.elapsed_s(), self.tally
        if elapsed_s < self._next_line_s:
            return
        text = (
            f"{elapsed_s:5.0f} of {self.duration_s:.0f} s: {tally.connections:,} connections, "
            f"{tally.echoed_bytes / 1e6:,.0f} MB, {tally.datagrams:,} datagrams, resident "
            f"{tally.samples[-1].resident_bytes / 1e6:.1f} MB, {self._daemon.descriptors()} descriptors, "
            f"CPU {self._daemon.cpu_s():.0f} s, {len(tally.violations)} violations"
        )
        if sys.stderr.isatty():
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
        else:
            self._next_line_s = elapsed_s + 60.0
            print(text, file=sys.stderr, flush=True)

    def _let_all_finish(self) -> None:
        for client in tuple(self._busy):
            if isinstance(client, Client):
                client.hurry()
        deadline_s = time.monotonic() + PATIENCE_S
        while self._busy and time.monotonic() < deadline_s and self._daemon.process.poll() is None:
            self.loop.turn()
        if self._busy:
            text = f"{len(self._busy)} clients hadn't received all their bytes {PATIENCE_S:g} s after the end"
            self.tally.violations.append(text)
        for client in tuple(self._busy):
            client.close()

    def _wait_for_descriptors(self) -> None:
        deadline_s = time.monotonic() + DESCRIPTORS_PATIENCE_S
        while self._daemon.process.poll() is None:
            self.descriptors_at_end = self._daemon.descriptors()
            if self.descriptors_at_end == self.descriptors_at_start or time.monotonic() > deadline_s:
                break
            self.loop.turn()
        self.loop.selector.close()


def judge(soak: Soak, daemon: Daemon, status: int | None) -> list[str]:
    """Return the violations that show only at the end."""
    found = []
    if status != 0:
        found.append(f"exit status {status} on SIGTERM")
    grown_bytes = soak.tally.resident_at(1.0) - soak.tally.resident_at(WARM_UP)
    if grown_bytes > soak.allowance_bytes:
        found.append(f"memory: {grown_bytes:,} bytes more than after the warm-up")
    if soak.descriptors_at_end != soak.descriptors_at_start:
        found.append(f"descriptors: {soak.descriptors_at_start} at the start, {soak.descriptors_at_end} at the end")
    for line in daemon.lines:
        if line["level"] == "error":
            found.append(f"the log says: {line['message'].splitlines()[0]}")
        if line["event"] in ("counters", "stopped") and line["tcp_bytes_sent"] > line["tcp_bytes_received"]:
            found.append("by its own counters, the daemon has sent more bytes than it received")
    return found


def report(soak: Soak, status: int | None) -> None:
    """Print the table, and the violations below it."""
    tally = soak.tally
    resident = " / ".join(f"{tally.resident_at(share) / 1e6:.2f}" for share in (WARM_UP, 0.5, 1.0))
    rows = {
        "duration": f"{soak.duration_s:.0f} s",
        "connections made": f"{tally.connections:,}",
        "of them reset by the client": f"{tally.resets:,}",
        "urgent bytes sent": f"{tally.urgent:,}",
        "bytes echoed and compared": f"{tally.echoed_bytes:,}",
        "datagrams sent": f"{tally.datagrams:,}",
        "datagrams lost": f"{tally.datagrams_lost:,}",
        "SIGUSR1": f"{tally.counters_asked:,}",
        "daemon's CPU": f"{soak.cpu_s:.0f} s ({soak.cpu_s / soak.duration_s:.0%} of a core)",
        "resident at 10 / 50 / 100 %": f"{resident} MB (may grow by {soak.allowance_bytes / 1e6:.1f})",
        "slope after 10 %": f"{tally.slope_bytes_per_minute() / 1e3:+.1f} KB/minute",
        "descriptors at the start / end": f"{soak.descriptors_at_start} / {soak.descriptors_at_end}",
        "exit status on SIGTERM": f"{status}",
        "violations": f"{len(tally.violations)}",
    }
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # wipes the progress line
    print(f"| soak, {soak._options.connections} clients at once, seed {soak._options.seed} | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    for violation in tally.violations[:VIOLATIONS_SHOWN]:
        print(f"violation: {violation}")


def main(arguments: Sequence[str] | None = None, serve: Sequence[str] = SERVE) -> int:
    """Soak the daemon that `serve` starts, and report. Return 1 if there was a violation, 2 where there is no /proc."""
    options = _options(arguments)
    if not sys.platform.startswith("linux"):
        print("soak: needs Linux, for /proc", file=sys.stderr)
        return 2
    with Daemon(serve) as daemon:
        soak = Soak(daemon, options)
        soak.run()
        status = daemon.finish()
    soak.tally.violations[:0] = judge(soak, daemon, status)
    report(soak, status)
    return int(bool(soak.tally.violations))


def _raise_descriptor_limit() -> None:
    """Raise the soft limit of descriptors to the hard one."""
    import resource  # Windows has none

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m tests.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=50, metavar="N", help="clients at once (default: 50)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args(arguments)
    if not (0 < options.minutes < math.inf and options.connections > 0):
        parser.error("--minutes and --connections must be more than 0")
    return options


if __name__ == "__main__":
    if sys.platform.startswith("linux"):
        _raise_descriptor_limit()
    sys.exit(main())
