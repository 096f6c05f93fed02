"""What the tests share. Nothing here sleeps to synchronise: it waits for a thing to happen, or makes it happen."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import pathlib
import random
import select
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeGuard, cast

import pytest

from echo7 import cli, serve
from echo7.binding import BindError, Bound, bind_all
from echo7.echo import StreamEcho
from echo7.server import EchoServer
from reactor import READ, Connection, DatagramProtocol, Handler, Listener, Reactor, StreamProtocol, splice
from reactor.batch import DatagramBatch
from reactor.datagram import Datagram
from reactor.epoll import LeanEpollSelector
from reactor.lessons.promises import Promise, Verdict, judge
from reactor.lessons.subject import Program
from reactor.limits import DEFAULT_LIMITS, Limits
from reactor.sockets import WOULD_BLOCK, Socket, os_error

if TYPE_CHECKING:
    from reactor.mmsg import Slots

PROJECT = pathlib.Path(__file__).resolve().parent.parent
PATIENCE_S = 20.0  # how long a thing that must happen may take on a loaded machine before the test fails
MOST_TURNS = 200_000
JUDGES = 8  # lessons' programs that are judged at the same time
STALLED_TURNS = 500  # of 5 ms each, in which nothing has moved

SELECTORS: list[type[selectors.BaseSelector]] = [
    getattr(selectors, name)
    for name in ("SelectSelector", "PollSelector", "EpollSelector", "KqueueSelector", "DevpollSelector")
    if hasattr(selectors, name)
] + ([LeanEpollSelector] if hasattr(select, "epoll") else [])


def has_ipv6() -> bool:
    """Tell whether ::1 can be bound here."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        probe.bind(("::1", 0))
        return True
    return False


# ---------------------------------------------------------------- a loop turned by hand


def turn_until(reactor: Reactor, condition: Callable[[], object], turns: int = MOST_TURNS) -> None:
    """Turn the loop until `condition()` is true. A wake-up timer keeps a turn from blocking for ever."""
    patience_ends_s = time.monotonic() + PATIENCE_S
    for _ in range(turns):
        if condition():
            return
        assert time.monotonic() < patience_ends_s, f"still not so after {PATIENCE_S} s: {condition}"
        waker = reactor.call_later(0.005, int)
        reactor.turn()
        waker.cancel()
    raise AssertionError(f"still not so after {turns} turns: {condition}")


def turn_idle(reactor: Reactor, turns: int = 20) -> None:
    """Turn the loop a few times without ever blocking, so that all that is ready is done."""
    for _ in range(turns):
        reactor.call_soon(int)
        reactor.turn()


def is_endpoint(handler: Handler) -> TypeGuard[Datagram | DatagramBatch]:
    """Tell whether a handler is a UDP endpoint, on either path."""
    return isinstance(handler, Datagram | DatagramBatch)


class Recorder(StreamProtocol):
    """A protocol that writes down what happens to its connections, and does nothing (or echoes)."""

    def __init__(self, echo: bool = False, keep_open_on_eof: bool = False) -> None:
        self.echo = echo
        self.keep_open_on_eof = keep_open_on_eof
        self.events: list[tuple[Any, ...]] = []
        self.connections: list[Connection] = []
        self.received = bytearray()

    def connection_made(self, connection: Connection) -> None:
        self.connections.append(connection)
        self.events.append(("made",))

    def data_received(self, connection: Connection, data: bytes) -> None:
        self.events.append(("data", data))
        self.received += data
        if self.echo:
            connection.write(data)

    def drained(self, connection: Connection) -> None:
        self.events.append(("drained",))

    def eof_received(self, connection: Connection) -> bool:
        self.events.append(("eof",))
        return self.keep_open_on_eof

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        self.events.append(("lost", error))

    def kinds(self) -> list[str]:
        """The names of the events, runs of `data` folded into one."""
        names: list[str] = []
        for event in self.events:
            if not (names and names[-1] == event[0] == "data"):
                names.append(event[0])
        return names


class DatagramRecorder(DatagramProtocol):
    """A UDP protocol that writes down what comes, and answers if asked to."""

    def __init__(self, echo: bool = False) -> None:
        self.echo = echo
        self.received: list[tuple[bytes, Any, bytes]] = []
        self.lost: list[Exception | None] = []

    def datagram_received(self, endpoint: Datagram, data: bytes, source: Any, path: bytes) -> None:
        self.received.append((data, source, path))
        if self.echo:
            endpoint.send(data, source, path)

    def endpoint_lost(self, endpoint: Datagram, error: Exception | None) -> None:
        self.lost.append(error)


def server_side(reactor: Reactor, client: socket.socket) -> Connection:
    """Turn the loop until it has accepted this client, and return the connection that serves it."""
    found: list[Connection] = []
    both_ends = client.getpeername(), client.getsockname()  # two clients of two listeners may have the same port

    def look() -> bool:
        for handler in reversed(reactor.handlers):
            with contextlib.suppress(OSError):  # one whose peer has gone
                if isinstance(handler, Connection) and both_ends == (
                    handler.socket.getsockname(),
                    handler.socket.getpeername(),
                ):
                    found.append(handler)
                    return True
        return False

    turn_until(reactor, look)
    return found[0]


def wait_readable(handler: socket.socket | Connection | Listener) -> None:
    """Return once the kernel has something for this socket. Takes nothing from it, and turns no loop."""
    ready, _, _ = select.select([handler], [], [], PATIENCE_S)
    assert ready, "nothing has arrived"


# ---------------------------------------------------------------- faults at the system calls


class Faults:
    """A script of what happens at the next system calls, by name. What isn't scripted goes to the kernel.

    An entry is None (do it), an int (do it, but with at most so many bytes), or an errno as OSError to raise.
    """

    def __init__(self) -> None:
        self.script: dict[str, list[int | OSError | None]] = {}
        self.calls: dict[str, int] = {}
        self.always: dict[str, OSError] = {}

    def add(self, call: str, *entries: int | OSError | None) -> None:
        self.script.setdefault(call, []).extend(entries)

    def next(self, call: str) -> int | None:
        self.calls[call] = self.calls.get(call, 0) + 1
        if call in self.always:
            raise self.always[call]
        entries = self.script.get(call)
        entry = entries.pop(0) if entries else None
        if isinstance(entry, OSError):
            raise entry
        return entry


EAGAIN = os_error(errno.EAGAIN)
EINTR = os_error(errno.EINTR)


class FlakySocket(socket.socket):
    """A real socket whose system calls first ask a `Faults` script."""

    faults: Faults

    def recv(self, size: int, flags: int = 0) -> bytes:
        limit = self.faults.next("recv")
        return super().recv(size if limit is None else max(1, min(size, limit)), flags)

    def send(self, data: Any, flags: int = 0) -> int:
        limit = self.faults.next("send")
        return super().send(data if limit is None else memoryview(data)[: max(1, limit)], flags)

    def recvmsg(self, *args: Any) -> Any:
        self.faults.next("recvmsg")
        return super().recvmsg(*args)

    def recvmmsg(self, slots: Slots) -> int:
        self.faults.next("recvmmsg")
        return slots.kernel_calls(self.fileno())[0]()

    def sendmmsg(self, slots: Slots, first: int, count: int) -> int:
        limit = self.faults.next("sendmmsg")
        return slots.kernel_calls(self.fileno())[1](first, count if limit is None else min(count, limit))

    def sendto(self, *args: Any) -> int:
        self.faults.next("sendto")
        return super().sendto(*args)

    def sendmsg(self, *args: Any) -> int:
        self.faults.next("sendmsg")
        return super().sendmsg(*args)

    def shutdown(self, how: int) -> None:
        self.faults.next("shutdown")
        super().shutdown(how)

    def bind(self, address: Any) -> None:
        self.faults.next("bind")
        super().bind(address)

    def listen(self, *args: Any) -> None:
        self.faults.next("listen")
        super().listen(*args)

    def accept(self) -> tuple[socket.socket, Any]:
        self.faults.next("accept")
        plain, address = super().accept()
        return adopt_socket(plain, self.faults), address


class FlakySockets:
    """A SocketFactory of FlakySockets: hand it to `Reactor(sockets=…)`."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults if faults is not None else Faults()
        self.refused_families: dict[int, OSError] = {}  # family → what socket(2) says

    def socket(self, family: int, type: int) -> socket.socket:
        self.faults.next("socket")
        if family in self.refused_families:
            raise self.refused_families[family]
        sock = FlakySocket(family, type)
        sock.faults = self.faults
        return sock

    def socketpair(self) -> tuple[Socket, Socket]:
        return socket.socketpair()

    def pipe(self) -> splice.Pipe:
        self.faults.next("pipe")
        return FlakyPipe()


class FlakyPipe(splice.KernelPipe):
    """What goes wrong with recv and send of a FlakySocket goes wrong with splice too."""

    def fill(self, sock: Socket, most_bytes: int) -> int:
        try:
            limit = cast(FlakySocket, sock).faults.next("recv")
        except WOULD_BLOCK:
            return 0
        return super().fill(sock, most_bytes if limit is None else max(1, min(most_bytes, limit)))

    def drain(self, sock: Socket, most_bytes: int) -> int:
        limit = cast(FlakySocket, sock).faults.next("send")
        return super().drain(sock, most_bytes if limit is None else max(1, min(most_bytes, limit)))


def adopt_socket(plain: socket.socket, faults: Faults) -> FlakySocket:
    """Turn a plain socket into a flaky one."""
    family, kind, proto = plain.family, plain.type, plain.proto
    flaky = FlakySocket(family, kind, proto, fileno=plain.detach())
    flaky.faults = faults
    return flaky


class CountingSelector(selectors.DefaultSelector):
    """Counts select calls, and how many of them found nothing though they didn't wait."""

    def __init__(self) -> None:
        super().__init__()
        self.selects = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.selects += 1
        return super().select(timeout)


class ManualClock:
    """A monotonic clock that moves only when told to."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


# ---------------------------------------------------------------- a loop in a thread


class LoopThread:
    """A Reactor that runs in a thread of its own; `call` runs a function there and returns its result."""

    def __init__(self, **options: Any) -> None:
        self.reactor = Reactor(**options)
        self._thread = threading.Thread(target=self.reactor.run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.reactor.call_soon_threadsafe(self.reactor.stop)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the loop didn't stop"
        self.reactor.close()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run `function(*args)` on the loop and return what it returns, or raise what it raises."""
        done = threading.Event()
        box: list[tuple[Any, Exception | None]] = []

        def run() -> None:
            try:
                box.append((function(*args), None))
            except Exception as error:
                box.append((None, error))
            done.set()

        self.reactor.call_soon_threadsafe(run)
        assert done.wait(PATIENCE_S), "the loop is stuck"
        result, error = box[0]
        if error is not None:
            raise error
        return result

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Return once `condition()` is true on the loop, looking again on each of its turns."""
        done = threading.Event()

        def look() -> None:
            if condition():
                done.set()
            else:
                self.reactor.call_later(0.002, look)

        self.reactor.call_soon_threadsafe(look)
        assert done.wait(PATIENCE_S), f"still not so after {PATIENCE_S} s: {condition}"


class EchoThread(LoopThread):
    """An EchoServer on loopback, any free port, in a thread."""

    def __init__(
        self, hosts: Sequence[str] = ("127.0.0.1",), reactor_options: dict[str, Any] | None = None, **options: Any
    ) -> None:
        super().__init__(**(reactor_options or {}))
        self.server = EchoServer(hosts, 0, **options)
        self.server.start(self.reactor)
        self.port = self.server.addresses[0].port
        self.host = hosts[0]

    def connect(self, host: str | None = None) -> socket.socket:
        """Return a connected TCP client, blocking with a time-out."""
        sock = socket.create_connection((host or self.host, self.port), PATIENCE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def udp(self, host: str | None = None) -> socket.socket:
        """Return a UDP client connected to the server, with a time-out."""
        target = host or self.host
        sock = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(PATIENCE_S)
        sock.connect((target, self.port))
        return sock


# ---------------------------------------------------------------- clients


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """Receive `count` bytes; fail on an earlier end."""
    received = bytearray()
    while len(received) < count:
        piece = sock.recv(min(1 << 16, count - len(received)))
        assert piece, f"the stream ended after {len(received)} of {count} bytes"
        received += piece
    return bytes(received)


def receive_to_end(sock: socket.socket) -> bytes:
    """Receive until FIN. A reset raises ConnectionResetError."""
    received = bytearray()
    while piece := sock.recv(1 << 16):
        received += piece
    return bytes(received)


def send_in_background(sock: socket.socket, data: bytes, then: Callable[[], object] = int) -> threading.Thread:
    """Send everything from a thread, so that the caller can read meanwhile; then call `then`."""

    def run() -> None:
        with contextlib.suppress(OSError):  # the reading side will show what went wrong
            sock.sendall(data)
            then()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def echo_and_close(sock: socket.socket, data: bytes) -> bytes:
    """Send all, half-close, and return everything that came back up to FIN."""
    sender = send_in_background(sock, data, lambda: sock.shutdown(socket.SHUT_WR))
    received = receive_to_end(sock)
    sender.join(PATIENCE_S)
    sock.close()
    return received


def fill(sock: socket.socket, most_bytes: int = 1 << 28) -> bytes:
    """Send a non-repeating pattern until the kernel takes no more; return what it took. Real backpressure, no sleep."""
    sock.setblocking(False)
    sent = bytearray()
    number = 0
    while len(sent) < most_bytes:
        piece = b"".join((number + i).to_bytes(8, "big") for i in range(512))
        try:
            count = sock.send(piece)
        except BlockingIOError:
            break
        sent += piece[:count]
        number += 512
    return bytes(sent)


def drain(sock: socket.socket) -> bytes:
    """Receive all that is there now, without waiting."""
    sock.setblocking(False)
    received = bytearray()
    with contextlib.suppress(BlockingIOError):
        while piece := sock.recv(1 << 16):
            received += piece
    return bytes(received)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected TCP sockets on loopback, non-blocking."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    one.setblocking(False)
    other.setblocking(False)
    return one, other


def reset(sock: socket.socket) -> None:
    """Close a TCP socket with RST instead of FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    sock.close()


def whole_dribbled_trailing(data: bytes) -> Iterator[list[bytes]]:
    """Yield three ways to send the same bytes: in one piece, byte by byte, and with the last byte on its own."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    yield [data[:-1], data[-1:]]


# ---------------------------------------------------------------- the real daemon


def serve_config(*arguments: str) -> serve.ServeConfig:
    """What `echo7 serve` makes of its arguments. Raise SystemExit(2) as it does."""
    return serve.configure(cli.parse(["serve", *arguments]))


class House(NamedTuple):
    """Where the code is, and the Python that runs it."""

    python: str
    folder: pathlib.Path


@contextlib.contextmanager
def open_house() -> Iterator[House]:
    """A copy of the packages that every user may read, and such a Python. Skips the test where there is none."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        if _nobody_runs(python):
            break
    else:
        pytest.skip("no Python of 3.11 or later here that everybody may run")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for package in ("reactor", "echo7"):
            shutil.copytree(PROJECT / package, pathlib.Path(folder, package))
        yield House(python, pathlib.Path(folder))


def _nobody_runs(python: str) -> bool:
    code = "import sys, json, ctypes; sys.exit(sys.version_info < (3, 11))"
    with contextlib.suppress(OSError):
        done = subprocess.run([python, "-c", code], user=65534, group=65534, capture_output=True, cwd="/", check=False)
        return done.returncode == 0
    return False


class EchoProcess:
    """`python -m echo7 serve` as an operator runs it. Ready when the context is entered; killed when it is left.

    `lines` are the JSON log lines so far; `next_line` waits for one more.
    """

    def __init__(
        self,
        *arguments: str,
        port: int = 0,
        wait: bool = True,
        prefix: Sequence[str] = (),
        house: House | None = None,
        **popen: Any,
    ) -> None:
        self.lines: list[dict[str, Any]] = []
        self._wait = wait
        python, folder = house or House(sys.executable, PROJECT)
        command = [python, "-m", "echo7", "serve", "--port", str(port), "--log-format", "json", *arguments]
        self.process = subprocess.Popen([*prefix, *command], cwd=folder, stderr=subprocess.PIPE, text=True, **popen)

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
        """Wait for a `listening` line, then for a first answer: all lines are there before anything is served."""
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
            line = self._parsed(text)
            self.lines.append(line)
            if line["event"] == event:
                return line
        raise AssertionError(f"the process ended ({self.process.wait()}) without {event!r}; it said {self.lines}")

    def finish(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal, read the log to its end, and return the exit status."""
        self.process.send_signal(signum)
        assert self.process.stderr is not None
        for text in self.process.stderr:
            self.lines.append(self._parsed(text))
        return self.process.wait(PATIENCE_S)

    def _parsed(self, text: str) -> dict[str, Any]:
        """A line of the log. Whatever else is said there fails the test; a traceback is told whole."""
        said = [text]
        while said[-1].startswith(("Traceback", " ")):
            assert self.process.stderr is not None
            said.append(self.process.stderr.readline())
        assert text.startswith("{"), f"no line of the log: {''.join(said)}"
        line: dict[str, Any] = json.loads(text)
        return line

    def connect(self, host: str = "127.0.0.1") -> socket.socket:
        """Return a connected TCP client, blocking with a time-out."""
        return socket.create_connection((host, self.port), PATIENCE_S)


class WorkersProcess(EchoProcess):
    """`echo7 serve --workers N`, the same way. `pids` are the workers' by number, as the log says."""

    def __init__(self, *arguments: str, count: int = 2, **options: Any) -> None:
        super().__init__("--workers", str(count), *arguments, **options)

    def __exit__(self, *exception: object) -> None:
        """Kill the supervisor; its workers notice, and go. They have its stderr, so that tells when they have gone."""
        if self.process.poll() is None:
            self.process.kill()
            assert self.process.stderr is not None
            overdue = threading.Timer(PATIENCE_S, self._send_workers, [signal.SIGKILL])
            overdue.start()
            self._send_workers(signal.SIGCONT)  # the test may have stopped one
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
        """Stop a worker (SIGSTOP), and return its pid when it stands still."""
        pid = self.pids[number]
        os.kill(pid, signal.SIGSTOP)
        until(lambda: pathlib.Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] == "T")
        return pid


def until(condition: Callable[[], object]) -> None:
    """Return once another process has made `condition()` true; nothing tells us when that is, so look often."""
    patience_ends_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < patience_ends_s, f"still not so after {PATIENCE_S} s: {condition}"
        time.sleep(0.002)


# ---------------------------------------------------------------- the path that bytes take

CAN_SPLICE = splice.pipes_on(socket) is not None


@contextlib.contextmanager
def every_connection_spliced() -> Iterator[None]:
    """Have servers made from now on give each connection a pipe with its first byte, and leave it there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splice, "SMALL_MOVES", 1 << 60)
        patch.setattr(splice, "COPIES_AFTER_TROUBLE", 0)

        def data_received(self: StreamEcho, connection: Connection, data: bytes) -> None:
            connection.write(data)
            self.saturated(connection)

        patch.setattr(StreamEcho, "data_received", data_received)
        yield


# ---------------------------------------------------------------- an echo server turned by hand


class EchoByHand:
    """An EchoServer on a loop that the test turns itself: between two steps nothing happens but what the test does."""

    def __init__(
        self,
        hosts: Sequence[str] = ("127.0.0.1",),
        reactor_options: dict[str, Any] | None = None,
        bound: Bound | None = None,
        **options: Any,
    ) -> None:
        self.reactor = Reactor(**(reactor_options or {}))
        self.server = EchoServer(hosts, 0, **options)
        try:
            self.server.start(self.reactor, bound)
        except BaseException:
            self.reactor.close()
            raise
        self.port = self.server.addresses[0].port

    def __enter__(self) -> EchoByHand:
        return self

    def __exit__(self, *exception: object) -> None:
        self.reactor.close()

    @property
    def connections(self) -> list[Connection]:
        """The server's ends, oldest first."""
        return connections_of(self.reactor)

    def connect(self, host: str = "127.0.0.1", buffer_bytes: int | None = None) -> socket.socket:
        """Return a non-blocking TCP client that the server has accepted."""
        before = self.server.counters.connections
        sock = connect_small((host, self.port), buffer_bytes)
        sock.setblocking(False)
        turn_until(self.reactor, lambda: self.server.counters.connections > before)
        return sock

    def udp(self, host: str = "127.0.0.1") -> socket.socket:
        """Return a non-blocking UDP client connected to the server."""
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect((host, self.port))
        return sock

    def send(self, client: socket.socket, data: bytes) -> bytes:
        """Send all of it, turning the loop; return what came back meanwhile."""
        rest, received, stalled = memoryview(data), bytearray(), 0
        while rest:
            try:
                rest, stalled = rest[client.send(rest) :], 0
            except BlockingIOError:
                stalled += 1
            self._turn(stalled)
            received += drain(client)
        return bytes(received)

    def receive(self, client: socket.socket, count: int) -> bytes:
        """Turn the loop until the client has got `count` bytes, or the end; return them."""
        received, stalled = bytearray(), 0
        while len(received) < count:
            try:
                piece = client.recv(min(1 << 16, count - len(received)))
            except BlockingIOError:
                stalled += 1
                self._turn(stalled)
                continue
            if not piece:
                break
            received += piece
            stalled = 0
        return bytes(received)

    def fill(self, client: socket.socket, connection: Connection) -> bytes:
        """Send until `connection`, the client's other end, has stopped reading and the kernel takes no more.

        Return what was sent. The bound is looked at after every turn.
        """
        sent, stalled = bytearray(), 0
        while stalled < 3 or connection.interest & READ:
            piece = fill(client, most_bytes=1 << 18)
            sent += piece
            stalled = 0 if piece else stalled + 1
            for turn in range(8):
                self._turn(stalled if turn == 0 else 0)
                assert connection.pending_bytes <= connection.limits.bound_bytes
        return bytes(sent)

    def answer(self, client: socket.socket) -> bytes:
        """Turn the loop until the UDP client has got a datagram; return it."""
        for stalled in range(STALLED_TURNS + 1):
            with contextlib.suppress(BlockingIOError):
                return client.recv(1 << 17)
            self._turn(stalled)
        raise AssertionError("unreachable: _turn raises first")

    def _turn(self, stalled: int) -> None:
        """Turn once, waiting a little only if nothing moves; fail if nothing has moved for long."""
        assert stalled < STALLED_TURNS, "nothing moves any more"
        waker = self.reactor.call_later(0.005 if stalled > 1 else 0.0, int)
        self.reactor.turn()
        waker.cancel()

    def receive_to_end(self, client: socket.socket) -> bytes:
        """Turn the loop until the client has got a FIN; return what came before it. A reset raises."""
        return self.receive(client, 1 << 62)


def connections_of(reactor: Reactor) -> list[Connection]:
    """Every open Connection of a loop, oldest first."""
    return [handler for handler in reactor.handlers if isinstance(handler, Connection)]


def connect_small(address: tuple[str, int], buffer_bytes: int | None) -> socket.socket:
    """Return a connected TCP client whose kernel buffers are no larger than asked (None: as the system has them)."""
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    sock.settimeout(PATIENCE_S)
    if buffer_bytes is not None:  # before connecting: the window is agreed on in the handshake
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def kernel_socket(handler: Handler) -> Iterator[socket.socket]:
    """The kernel's socket behind a handler, to read or set its options. It shares all but the descriptor's number."""
    with socket.socket(fileno=os.dup(handler.fileno())) as sock:
        yield sock


def quiet_port(hosts: Sequence[str] = ("127.0.0.1",)) -> int:
    """A port that is free for TCP and UDP, and that no client gets by chance from the kernel.

    A client that calls one before anybody serves it might else be given the same number, and be its own peer
    (RFC 9293 §3.5, simultaneous open).
    """
    # Not the common generator: hypothesis seeds that, and two runs side by side would choose alike.
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with contextlib.suppress(BindError):
            bind_all(socket, hosts, port).close()
            return port
    raise AssertionError("no port is free")


@contextlib.contextmanager
def silent_address() -> Iterator[tuple[str, int]]:
    """An address from which no answer comes: its queue is full, so the kernel drops what asks for more."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        yield server.getsockname()


# ---------------------------------------------------------------- what only root can do


def without_capabilities(*names: str) -> list[str]:
    """What to put before a command so that it lacks these capabilities (`net_bind_service`, …), even as root."""
    if os.getuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root needs setpriv(1) to do without a capability")
    return ["setpriv", "--bounding-set", ",".join(f"-{name}" for name in names)]


def udp_over_ipv4(source: tuple[str, int], destination: tuple[str, int], data: bytes, checksum: int = 0) -> bytes:
    """Return an IPv4 packet with a UDP datagram from any source at all (RFC 791, RFC 768). Checksum 0: none."""
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination[0])
    header = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, 64, socket.IPPROTO_UDP, 0)
    return header + addresses + struct.pack("!HHHH", source[1], destination[1], 8 + len(data), checksum) + data


def forge(packet: bytes) -> None:
    """Send a ready-made IPv4 packet to this machine itself. Skips the test where raw sockets aren't allowed."""
    host = socket.inet_ntoa(packet[16:20])
    assert host.startswith("127."), "forged packets stay on loopback"
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    except PermissionError:
        pytest.skip("raw sockets need CAP_NET_RAW")
    with raw:
        raw.sendto(packet, (host, 0))


def in_network_namespace(commands: Sequence[str], body: Callable[[], object]) -> None:
    """Run `ip` commands, then `body`, in a network namespace of their own; it goes when they end.

    On Linux a namespace belongs to a thread: the sockets that `body` makes are there, all others stay where they are.
    Skips the test where that isn't allowed.
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
    """Put this thread into a network namespace of its own. Skips the test where that isn't allowed."""
    if not sys.platform.startswith("linux") or shutil.which("ip") is None:
        pytest.skip("needs Linux and iproute2")
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) != 0:  # CLONE_NEWNET
        pytest.skip(f"no network namespace for us: {os.strerror(ctypes.get_errno())}")
    run_ip(["link set lo up"])


def run_ip(commands: Sequence[str]) -> None:
    """Run `ip` commands in this thread's network namespace. Skips the test where one fails."""
    for command in commands:
        done = subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"ip {command}: {done.stderr.strip()}")


def wait_for_network() -> None:
    """Return once the links and addresses of this thread's network namespace can be used."""
    for _ in range(5000):
        if _network_is_settled():
            return
    raise AssertionError("the namespace's links and addresses don't come up")


def _network_is_settled() -> bool:
    """The kernel sets links up and adds the routes to IPv6 addresses on its own time; packets are lost until then."""

    def lines(*arguments: str) -> list[str]:
        done = subprocess.run(["ip", "-o", *arguments], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    if not all("state UP" in link or "state UNKNOWN" in link for link in lines("link", "show", "up")):
        return False
    addresses = {line.split()[3].partition("/")[0] for line in lines("-6", "addr", "show", "up")}
    return addresses <= {line.split()[1] for line in lines("-6", "route", "show", "table", "local")}


# ---------------------------------------------------------------- a connection on a stage of its own


class RecordingSelector(selectors.BaseSelector):
    """Another selector, and what was asked of it. Each entry of `failures` makes one change of interest fail."""

    def __init__(
        self, inner: selectors.BaseSelector | None = None, on_select: Callable[[], object] | None = None
    ) -> None:
        self.inner = inner if inner is not None else selectors.DefaultSelector()
        self.on_select = on_select
        self.timeouts: list[float | None] = []
        self.batches: list[list[tuple[selectors.SelectorKey, int]]] = []
        self.failures: list[OSError] = []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if self.failures:
            raise self.failures.pop(0)
        return self.inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self.inner.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if self.failures:
            self.inner.unregister(fileobj)  # as the standard library's selectors do
            raise self.failures.pop(0)
        return self.inner.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.timeouts.append(timeout)
        if self.on_select is not None:
            self.on_select()
        batch = self.inner.select(timeout)
        self.batches.append(batch)
        return batch

    def close(self) -> None:
        self.inner.close()

    def get_map(self) -> Any:
        return self.inner.get_map()


class Stage:
    """One Connection on a loop turned by hand, `peer` at its other end, and every seam in the test's hands."""

    def __init__(
        self,
        protocol: Recorder | None = None,
        selector_class: type[selectors.BaseSelector] = selectors.DefaultSelector,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.protocol = protocol if protocol is not None else Recorder()
        self.clock, self.faults = ManualClock(), Faults()
        self.selector = RecordingSelector(selector_class())
        self.reactor = Reactor(selector=self.selector, clock=self.clock)
        ours, self.peer = tcp_pair()
        self.peer.settimeout(PATIENCE_S)
        self.connection = Connection(self.reactor, adopt_socket(ours, self.faults), self.protocol, limits)

    def __enter__(self) -> Stage:
        self.connection.open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.reactor.close()
        self.peer.close()

    def until(self, condition: Callable[[], object]) -> None:
        """Turn until `condition()` is true. Time stands still."""
        turn_until(self.reactor, condition)

    def idle(self) -> None:
        """Turn until all that is ready is done."""
        turn_idle(self.reactor)


def judge_together(pairs: Iterable[tuple[Promise, Program]]) -> list[Verdict]:
    """Judge programs by promises, several at a time; those that this machine was too busy for once more, alone."""
    every = list(pairs)
    with ThreadPoolExecutor(JUDGES) as pool:
        verdicts = list(pool.map(lambda pair: judge(*pair), every))
    for i, pair in enumerate(every):
        for _ in range(3):
            if verdicts[i].kept is None:
                verdicts[i] = judge(*pair)
    return verdicts


def open_descriptors() -> int:
    """Count this process's descriptors."""
    return len(os.listdir("/dev/fd"))


# ---------------------------------------------------------------- traces, written by hand


def trace_file(*events: tuple[str, str, dict[str, Any]], **header: Any) -> bytes:
    """Return a trace of these events, each (kind, who, fields): numbered, each a millisecond after the one before."""
    lines: list[dict[str, Any]] = [{"trace": "reactor", "format": 1, "title": "", "about": "", "sources": {}} | header]
    turn = 0
    for n, (kind, who, fields) in enumerate(events):
        turn += kind == "turn"
        lines.append({"n": n, "turn": turn, "t": n / 1000, "kind": kind, "who": who, "at": ""} | fields)
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


# ---------------------------------------------------------------- a browser


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """The system's Chromium, led by playwright; the test is skipped where either is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"there is no browser here: none of {', '.join(names)}")
    options = ["--disable-dev-shm-usage"]  # a container's /dev/shm may be too small for a page
    options += ["--no-sandbox"] if os.geteuid() == 0 else []  # root has no sandbox to go into
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()
