"""Time the server's own steps: what one call, message or datagram costs the server's thread, without its clients.

    python3 -m benchmarks.steps [ROW …] [--before FOLDER] [--rounds 5]

Clients and server take turns on one thread, and only the server's turns count: from the moment when the loop asks the
kernel what is ready until it asks again. Printed are the minimum and the median of many repetitions, in microseconds
per call, message or datagram, system calls included. Another version of the project (`--before`) runs in processes of
its own, one after the other with today's; the ratio is that of the minimums. A difference of two percent shows here. In
a whole run, fifteen percent may not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator

from benchmarks.build import last_line
from benchmarks.process import environment, free_port
from benchmarks.servers import PROJECT
from echo7.server import EchoServer
from reactor import Reactor
from reactor.fastpath.epoll import LeanEpollSelector
from reactor.sockets.wrapped_selector import Ready, WrappedSelector

Clients = Generator[bool, None, None]  # after False, the server takes a turn; True ends one repetition
WARM_UP_REPETITIONS, MEASURED_S, WITHIN_S = 5, 1.0, 120.0


class Stopwatch(WrappedSelector):
    """Lets the clients act before each select, and counts the time of the server's turns, select included."""

    def __init__(self, inner: selectors.BaseSelector) -> None:
        super().__init__(inner)
        self.act: Callable[[], object] = int
        self.turns_ns, self._began_ns = 0, time.perf_counter_ns()

    def select(self, timeout: float | None = None) -> Ready:
        """Stop the watch, let the clients act, and start it again."""
        self.turns_ns += time.perf_counter_ns() - self._began_ns
        self.act()
        self._began_ns = time.perf_counter_ns()
        return self.inner.select(0.0)


def calls(count: int, port: int) -> Clients:
    """Connect, echo 64 bytes and close, `count` clients at once."""
    while True:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]
            for client in clients:
                client.send(bytes(64))
                client.shutdown(socket.SHUT_WR)
                client.setblocking(False)
            yield from until_received(clients, 64)
            yield from until_received(clients, 0)
        yield True


def messages(count: int, port: int) -> Clients:
    """Echo one KiB on each of `count` connections."""
    return exchanges(socket.SOCK_STREAM, count, port, 1024)


def datagrams(count: int, port: int) -> Clients:
    """Echo a datagram of 512 bytes on each of `count` sockets. The server serves every address."""
    return exchanges(socket.SOCK_DGRAM, count, port, 512)


def exchanges(kind: socket.SocketKind, count: int, port: int, size_bytes: int) -> Clients:
    """Send on all, wait for all, again and again."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_INET, kind)) for _ in range(count)]
        for client in clients:
            client.connect(("127.0.0.1", port))
            client.setblocking(False)
        while True:
            for client in clients:
                client.send(bytes(size_bytes))
            yield from until_received(clients, size_bytes)
            yield True


def until_received(clients: list[socket.socket], size_bytes: int) -> Clients:
    """Let the server take turns until each client has got its bytes back; for 0, until the server's FIN."""
    for client in clients:
        left_bytes = size_bytes
        while left_bytes or not size_bytes:
            try:
                received_bytes = len(client.recv(left_bytes or 1))
            except BlockingIOError:
                yield False
                continue
            if not received_bytes:
                break
            left_bytes -= received_bytes


ROWS: dict[str, tuple[Callable[[int, int], Clients], int, str]] = {
    "calls-1": (calls, 1, "TCP: connect, echo 64 B, close"),
    "calls-20": (calls, 20, "the same, 20 at once"),
    "messages-1": (messages, 1, "TCP: echo 1 KiB"),
    "messages-50": (messages, 50, "the same, 50 connections ready at once"),
    "datagrams-1": (datagrams, 1, "UDP: echo 512 B, each alone"),
    "datagrams-8": (datagrams, 8, "the same in batches of 8"),
    "datagrams-20": (datagrams, 20, "the same in batches of 20"),
    "datagrams-50": (datagrams, 50, "the same in batches of 50"),
}


def times_us(name: str) -> list[float]:
    """Measure one row. Return the server's time for each repetition, divided by the number of clients."""
    make, count, _ = ROWS[name]
    udp = make is datagrams
    found: list[float] = []
    with contextlib.ExitStack() as stack:
        watch = Stopwatch(LeanEpollSelector())
        reactor = stack.enter_context(Reactor(selector=watch))
        server = EchoServer(["0.0.0.0" if udp else "127.0.0.1"], free_port(), tcp=not udp, udp=udp)
        server.start(reactor)
        clients = stack.enter_context(contextlib.closing(make(count, server.addresses[0].port)))
        end_s = time.monotonic() + MEASURED_S

        def act() -> None:
            while next(clients):
                found.append(watch.turns_ns / count / 1000)
                watch.turns_ns = 0
            if time.monotonic() > end_s:
                reactor.stop()

        watch.act = act
        reactor.run()
    return found[WARM_UP_REPETITIONS:]


def measured(folder: str, name: str) -> tuple[float, float]:
    """Measure one row of the version in `folder`, in a process of its own. Return minimum and median."""
    program = f"import json, runpy; print(json.dumps(runpy.run_path({__file__!r})['times_us']({name!r})))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment() | {"PYTHONPATH": folder},
        capture_output=True, text=True, timeout=WITHIN_S, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"steps: {name} failed in {folder}: {last_line(done.stderr)}")
    times = json.loads(done.stdout)
    return min(times), statistics.median(times)


def main() -> int:
    """Measure the rows, in turns if there are two versions, and print a table."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.steps", description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"from {', '.join(ROWS)}, or a first part: calls")
    parser.add_argument("--before", metavar="FOLDER", help="another version of the project, to compare with")
    parser.add_argument("--rounds", type=int, default=5, help="processes for each row and version (default: 5)")
    options = parser.parse_args()
    names = [name for name in ROWS if not options.rows or {name, name.partition("-")[0]} & set(options.rows)]
    if unknown := set(options.rows) - {*ROWS, *(name.partition("-")[0] for name in ROWS)}:
        parser.error(f"no such row: {', '.join(sorted(unknown))}; choose from {', '.join(ROWS)}")
    if options.before and not pathlib.Path(options.before, "echo7", "server.py").is_file():
        parser.error(f"--before {options.before}: no version of the project is there; git worktree add FOLDER COMMIT")
    folders = [str(PROJECT), *([os.path.abspath(options.before)] if options.before else [])]
    print(
        f"{'row':14} {'minimum':>9} {'median':>9}   " + ("before: minimum, ratio   " if options.before else "") + "µs"
    )
    for name in names:
        found = [[measured(folder, name) for folder in folders] for _ in range(options.rounds)]
        lows = [min(row[i][0] for row in found) for i in range(len(folders))]
        text = f"{name:14} {lows[0]:9.2f} {statistics.median(row[0][1] for row in found):9.2f}"
        if options.before:
            text += f"   {lows[1]:15.2f}, {lows[0] / lows[1]:.3f} "
        print(f"{text}   {ROWS[name][2]}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
