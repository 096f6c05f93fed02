"""The table of servers. A new peer is a new entry, and a program under peers/ that takes `tcp|udp HOST PORT`.

A command may use {python}, {peers}, {program}, {host}, {port}, {config} and {before}. This module starts only compilers
and commands that print a version.
"""

from __future__ import annotations

import functools
import getpass
import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.build import Build, BuildError, last_line
from echo7 import __version__

PROJECT = pathlib.Path(__file__).resolve().parent.parent
PEERS = PROJECT / "benchmarks" / "peers"
ANY_NUMBER = 1_000_000
ASK_TIMEOUT_S = 20.0
BEFORE = "ECHO7_BEFORE"  # environment variable: a folder with another version of this project

Command = tuple[str, ...]


class MissingError(Exception):
    """A server isn't available. The text is one line."""


@dataclass(frozen=True, slots=True)
class Server:
    """One row of every table."""

    name: str
    title: str
    commands: dict[str, Command]  # by kind of workload: tcp, udp, timers, spawn
    package: str | None = None  # a Python package that must be importable
    program: str | None = None  # a program that must be on the PATH
    build: Build | None = None
    config: str | None = None  # a template of a configuration file under peers/
    most_connections: int = ANY_NUMBER
    why_no_more: str = ""  # the reason for the limit
    version: Command = ()
    ours: bool = False
    before: bool = False  # of another version


def _peer(file: str, *more: str, kinds: Sequence[str] = ("tcp", "udp")) -> dict[str, Command]:
    return {kind: ("{python}", f"{{peers}}/{file}", kind, "{host}", "{port}", *more) for kind in kinds}


def _compiled(*command: str) -> dict[str, Command]:
    return {kind: (*command, kind, "{host}", "{port}") for kind in ("tcp", "udp")}


def _echo7(*more: str) -> dict[str, Command]:
    serve = ("{python}", "-m", "echo7", "serve", "--host", "{host}", "--port", "{port}", "--log-level", "error", *more)
    return {"tcp": serve, "udp": serve}


def _timers(loop: str) -> dict[str, Command]:
    return {"timers": ("{python}", "-m", "benchmarks.timers", loop)}


_C = Build("peers/epoll_echo.c", ("cc", "-O2", "-o", "epoll_echo", "epoll_echo.c"), "epoll_echo")
_GO = Build("peers/echo.go", ("go", "build", "-o", "echo", "echo.go"), "echo")
_RACKET = Build("peers/echo.rkt", ("raco", "make", "echo.rkt"), "echo.rkt")
_BUSY_POLL_US = "200"
_RATE_NEVER_REACHED = "10000000"  # each source has a bucket, and no datagram is over the rate

SERVERS: tuple[Server, ...] = (
    Server("echo7", "echo7", {**_echo7(), **_timers("reactor")}, ours=True),
    Server("echo7-busy", "echo7 --busy-poll", {"tcp": _echo7("--busy-poll", _BUSY_POLL_US)["tcp"]}, ours=True),
    Server("echo7-simple", "echo7 --plain", _echo7("--plain"), ours=True),
    Server("echo7-limited", "echo7 --udp-rate", {"udp": _echo7("--udp-rate", _RATE_NEVER_REACHED)["udp"]}, ours=True),
    Server("echo7-unlimited", "echo7 --udp-rate none", {"udp": _echo7("--udp-rate", "none")["udp"]}, ours=True),
    Server("echo7-unrestricted", "echo7 --sandbox off", _echo7("--sandbox", "off"), ours=True),
    Server("echo7-traced", "echo7 --trace /dev/null", _echo7("--trace", os.devnull), ours=True),
    Server(
        "echo7-before",
        "echo7, another version",
        {kind: ("env", "-C", "{before}", *command) for kind, command in _echo7().items()},
        program="env",
        ours=True,
        before=True,
    ),
    Server("c-epoll", "C, epoll, recv + send", _compiled("{program}"), build=_C, version=("cc", "--version")),
    Server(
        "c-batches",
        "C, recvmmsg + sendmmsg",
        {"udp": ("{program}", "batches", "{host}", "{port}")},
        build=_C,
        version=("cc", "--version"),
    ),
    Server("go", "Go net", _compiled("{program}"), build=_GO, version=("go", "version")),
    Server(
        "go-copy",
        "Go io.Copy",
        {"tcp": ("{program}", "copy", "{host}", "{port}")},
        build=_GO,
        most_connections=5_000,
        why_no_more="a pipe, and so three descriptors, for each connection",
        version=("go", "version"),
    ),
    Server(
        "node",
        "Node net, dgram",
        {kind: ("node", "{peers}/echo.js", kind, "{host}", "{port}") for kind in ("tcp", "udp")},
        program="node",
        version=("node", "--version"),
    ),
    Server("uvloop", "uvloop Protocol", {**_peer("asyncio_echo.py", "uvloop"), **_timers("uvloop")}, package="uvloop"),
    Server(
        "uvloop-buffered",
        "uvloop BufferedProtocol",
        _peer("asyncio_echo.py", "uvloop", "buffered", kinds=["tcp"]),
        package="uvloop",
    ),
    Server("asyncio", "asyncio Protocol", {**_peer("asyncio_echo.py"), **_timers("asyncio")}),
    Server("twisted", "Twisted Protocol", _peer("twisted_echo.py"), package="twisted"),
    Server("gevent", "gevent StreamServer", _peer("gevent_echo.py"), package="gevent"),
    Server("trio", "trio streams", _peer("trio_echo.py"), package="trio"),
    Server(
        "threads",
        "Python threads",
        _peer("threads_echo.py"),
        most_connections=1_000,
        why_no_more="a thread for each connection",
    ),
    Server(
        "racket",
        "Racket copy-port",
        _compiled("racket", "{program}"),
        program="racket",
        build=_RACKET,
        most_connections=1_000,
        why_no_more="a green thread and two ports for each connection",
        version=("racket", "--version"),
    ),
    Server(
        "socat",
        "socat fork",
        {"tcp": ("socat", "TCP4-LISTEN:{port},bind={host},reuseaddr,nodelay,fork,backlog=4096", "PIPE")},
        program="socat",
        most_connections=100,
        why_no_more="a process for each connection",
        version=("socat", "-V"),
    ),
    Server(
        "xinetd",
        "xinetd internal",
        {"tcp": ("xinetd", "-dontfork", "-f", "{config}")},  # its UDP echo loses and cuts datagrams
        program="xinetd",
        config="xinetd.conf",
        most_connections=100,
        why_no_more="a process for each connection",
        version=("xinetd", "-version"),
    ),
    Server("python-pass", "python3 -c pass", {"spawn": ("{python}", "-c", "pass")}),
)
BY_NAME = {server.name: server for server in SERVERS}


def missing(server: Server) -> str | None:
    """Return in one line why a server isn't available, or None. Build its program if it has one."""
    if server.package is not None and importlib.util.find_spec(server.package) is None:
        return f"the package {server.package!r} isn't installed; pip install 'echo7[bench]'"
    if server.program is not None and shutil.which(server.program) is None:
        return f"needs {server.program!r}, which isn't on the PATH"
    if server.before and not pathlib.Path(os.environ.get(BEFORE) or os.devnull, "echo7", "__main__.py").is_file():
        return f"{BEFORE} names no folder with another version; git worktree add FOLDER COMMIT, then {BEFORE}=FOLDER"
    try:
        if server.build is not None:
            server.build.make()
    except BuildError as error:
        return str(error)
    return None


def command_of(server: Server, kind: str, host: str, port: int, folder: str) -> list[str]:
    """Return the arguments that start a server. Its configuration file is written into `folder`."""
    words = {
        "python": sys.executable,
        "peers": str(PEERS),
        "program": str(server.build.make()) if server.build else "",
        "host": host,
        "port": str(port),
        "before": os.environ.get(BEFORE, ""),
        "config": _configuration(server.config, host, port, folder) if server.config else "",
    }
    return [word.format(**words) for word in server.commands[kind]]


def version_of(server: Server) -> str:
    """Return the version of a server, for the record."""
    if server.package is not None:
        return importlib.metadata.version(server.package)
    if server.ours:
        return __version__
    if not server.version:
        return f"CPython {sys.version.split()[0]}"
    done = _ask(server.version)
    lines = [line for line in done.splitlines() if any(c.isdigit() for c in line)]
    return lines[0].strip() if lines else last_line(done)


def _configuration(name: str, host: str, port: int, folder: str) -> str:
    text = (PEERS / name).read_text()
    for word, value in {"USER": getpass.getuser(), "HOST": host, "PORT": str(port)}.items():
        text = text.replace(f"@{word}@", value)
    path = pathlib.Path(folder) / name
    path.write_text(text)
    return str(path)


@functools.cache
def _ask(command: Command) -> str:
    try:
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown: {error}"
    return done.stdout + done.stderr
