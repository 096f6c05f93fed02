"""A server under examination: a process that runs a program's `serve`, and clients that try it.

Law: everything is bounded. Each wait has a timeout, and the process has always ended when the context is left. The
results are in words that a student can use: `Broken` says what was measured, `Unusable` why nothing could be.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from reactor.console.program import running
from reactor.lessons import host

PATIENCE_S = 2.0  # an answer that takes longer counts as missing
END_S = 5.0  # how long a process may take to exit
START_S = 5.0  # how long Python may take to start, and a program to be loaded
RETURNED = "`serve` returned"  # the host's words for an orderly end
BOOT = """import importlib.util, sys
spec = importlib.util.spec_from_file_location("reactor.lessons.host", sys.argv.pop(1))
host = importlib.util.module_from_spec(spec)
spec.loader.exec_module(host)
host.main()
"""  # loads the host alone: a program that doesn't import `reactor` needn't wait for that import
FOLDER = pathlib.Path(host.__file__).parent


class Program(NamedTuple):
    """A file that defines `serve`, and the module name under which it is loaded."""

    path: str
    name: str = "student"


class Broken(Exception):
    """The server breaks a promise. The text says what was measured."""


class NotMeasured(Exception):
    """A promise can't be judged here. The text says why."""


class Unusable(Exception):
    """The program can't be judged. The text says why, in one line."""


class Subject:
    """One program in its own process. A context manager: it starts the process (or raises Unusable) and ends it.

    `serve` gets `idle_s` and at most `most` arguments; loading the program may take `start_s`. All clients stay open to
    the end: otherwise the server would be blamed for the effects of their closing.
    """

    __slots__ = (
        "_addresses", "_arguments", "_clients", "_ending", "_lines", "_process", "_program", "_start_s", "_started",
        "_terminated", "_told", "_wire", "pid", "wants",
    )  # fmt: skip

    def __init__(self, program: Program, idle_s: float, most: int, start_s: float = START_S) -> None:
        self._program, self._start_s = program, start_s
        self._arguments = [str(idle_s), str(most)]
        self._clients: list[socket.socket] = []
        self._started = self._terminated = self._told = False

    def __enter__(self) -> Self:
        """Start the process and wait until the program is loaded. It serves from the first `tcp` or `go` on."""
        with contextlib.ExitStack() as undo, socket.create_server(("127.0.0.1", 0)) as door:
            door.settimeout(START_S)
            arguments = [str(door.getsockname()[1]), self._program.path, self._program.name, *self._arguments]
            command = [sys.executable, "-P", "-c", BOOT, host.__file__, *arguments]
            nowhere = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            self._process = undo.enter_context(running(command, **nowhere))
            self.pid = self._process.pid
            self._wire, _address = door.accept()
            self._ending = undo.pop_all()
        self._wire.settimeout(self._start_s)
        self._lines = self._wire.makefile()
        try:
            self._meet()
        except Unusable:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        """End the process, whatever it is doing."""
        self.close()

    def _meet(self) -> None:
        try:
            said = self._read()
        except TimeoutError:
            raise Unusable(
                f"it was still loading after {self._start_s:g} s: the file must only define `serve`, and run nothing"
            ) from None
        if said.get("event") != "ready":
            raise Unusable(said.get("why") or f"it ended the process while it was loading ({self.status()})")
        self._addresses = {"tcp": tuple(said["tcp"]), "udp": tuple(said["udp"])}
        self.wants: int = said["wants"]
        self._wire.settimeout(PATIENCE_S)

    def close(self) -> None:
        """Hang up: the process exits, or is killed. All its descendants are killed."""
        self.hang_up()
        self._lines.close()
        self._wire.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        self._ending.close()

    def _read(self) -> dict[str, Any]:
        """Return the next line from the process, {} when it has ended. Raise TimeoutError."""
        line = ""
        with contextlib.suppress(ConnectionError):
            line = self._lines.readline()
        said: dict[str, Any] = json.loads(line or "{}")
        return said

    def order(self, do: str, answer: str, late: str = "its other threads couldn't run") -> dict[str, Any]:
        """Give the host an order and return its answer. Raise Broken, with `late`, if none comes."""
        self.go()
        with contextlib.suppress(OSError):  # the process has ended; its last words can still be read
            self._wire.sendall(json.dumps({"do": do}).encode() + b"\n")
        try:
            said = self._read()
        except TimeoutError:
            raise Broken(f"for {PATIENCE_S:g} s {late}") from None
        if said.get("event") != answer:
            raise Broken(self._epitaph(said))
        return said

    def go(self) -> None:
        """Let the host call `serve`, unless it has already."""
        if not self._started:
            self._started = True
            self._wire.sendall(b'{"do": "go"}\n')

    def observe(self) -> None:
        """Let the host record to which port the server sends. Call it before `go`."""
        self._wire.sendall(b'{"do": "observe"}\n')

    def tcp(self, buffer_bytes: int | None = None, begin: bool = True) -> socket.socket:
        """Return a connected client with a timeout. `buffer_bytes`: the size of its kernel buffers, each way.

        Without `begin`, the server isn't started: the client and what it sends wait in the kernel.
        """
        if begin:
            self.go()
        client = self._client(socket.SOCK_STREAM)
        client.settimeout(PATIENCE_S)
        if buffer_bytes is not None:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):  # must be set before connecting: tcp(7)
                client.setsockopt(socket.SOL_SOCKET, option, buffer_bytes)
        try:
            client.connect(self._addresses["tcp"])
        except OSError as error:
            raise Broken(f"a client couldn't connect: {error.strerror or error}") from None
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def udp(self) -> socket.socket:
        """Return a UDP socket that is connected to the server, with a timeout."""
        client = self._client(socket.SOCK_DGRAM)
        client.settimeout(PATIENCE_S)
        client.connect(self._addresses["udp"])
        return client

    def _client(self, kind: socket.SocketKind) -> socket.socket:
        client = socket.socket(type=kind)
        self._clients.append(client)
        return client

    def hang_up(self) -> None:
        """Close all clients."""
        for client in self._clients:
            client.close()

    def terminate(self) -> None:
        """Send SIGTERM. Raise NotMeasured on a system without it."""
        if sys.platform == "win32":
            raise NotMeasured("this system has no SIGTERM to send")
        self._terminated = True
        self._process.send_signal(signal.SIGTERM)

    def outcome(self) -> str:
        """Wait until `serve` ends, and return how. Raise Broken if it doesn't."""
        try:
            said = self._read()
            if said.get("event") == "ended":
                return str(said["why"])
            return self.status()
        except TimeoutError:
            raise Broken(f"the server still runs {PATIENCE_S:g} s later") from None

    def status(self) -> str:
        """Return how the process has ended, in words. Call it after the process has hung up."""
        code = self._process.wait(PATIENCE_S)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def obituary(self) -> str:
        """Return "; …" if the server has ended unasked and that isn't reported yet, else an empty text."""
        self._wire.settimeout(0.05)
        try:
            said = self._read()
        except OSError:  # a timeout: it hasn't ended
            return ""
        asked = self._terminated and said.get("why") == RETURNED
        return "" if self._told or asked else f"; {self._epitaph(said)}"

    def _epitaph(self, said: dict[str, Any]) -> str:
        self._told = True
        why = said["why"] if said.get("event") == "ended" else self.status()
        return f"the server has ended: {why}"


Check = Callable[[Subject], str]  # returns what was measured, or raises Broken with it, or NotMeasured
