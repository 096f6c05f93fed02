"""`python3 -m benchmarks.judged`: run `echo7 check` on well-known echo servers of this machine, and print one table.

Law: each server runs as its manual says, with TCP and UDP, on every address, alone in a network namespace (see
`benchmarks/alone.py`). It is checked at its second address, which shows answers from the first one. A server that isn't
installed is skipped with one line; `--program NAME=PATH` gives the path of one that isn't on the PATH.
"""

from __future__ import annotations

import contextlib
import importlib.util
import pathlib
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.alone import PORT, AloneError, judge_alone, namespace
from benchmarks.build import BuildError
from benchmarks.servers import BY_NAME, PEERS
from reactor.console.commandline import OneLineParser

ANY = "0.0.0.0"
INETD = "echo stream tcp nowait root internal\necho dgram udp wait root internal\n"
XINETD = """\
service echo
{{
    type = INTERNAL
    id = echo-stream
    socket_type = stream
    protocol = tcp
    user = root
    wait = no
{limits}}}
service echo
{{
    type = INTERNAL
    id = echo-dgram
    socket_type = dgram
    protocol = udp
    user = root
    wait = yes
{limits}}}
""".format(limits="    flags = NOLIBWRAP\n    cps = 100000 1\n    instances = UNLIMITED\n    per_source = UNLIMITED\n")


class Subject(NamedTuple):
    """A server to check. Its shell `command` may use {program}, {config}, {python} and {peers}."""

    name: str
    command: str
    program: str | None = None  # must be on the PATH
    package: str | None = None  # or a Python package that must be importable
    build: str | None = None  # or a peer of the benchmarks that is compiled
    config: str = ""


def _both(command: str) -> str:
    """Return one command that runs a peer twice, for TCP and for UDP."""
    return f"{command.format(kind='tcp')} & {command.format(kind='udp')} & wait"


def _python_peer(name: str, file: str, *more: str) -> Subject:
    command = " ".join(["{{python}} {{peers}}/" + file, "{kind}", ANY, str(PORT), *more])
    return Subject(name, _both(command), package=None if name == "asyncio" else name)


SUBJECTS = (
    Subject("echo7", f"{{python}} -m echo7 serve --host {ANY} --log-level error"),
    Subject("xinetd", "{program} -dontfork -f {config}", "xinetd", config=XINETD),
    Subject("inetutils-inetd", "{program} -d {config}", "inetutils-inetd", config=INETD),
    Subject("openbsd-inetd", "{program} -d {config}", "openbsd-inetd", config=INETD),
    Subject("busybox inetd", "{program} inetd -f {config}", "busybox", config=INETD),
    Subject(
        "socat",
        f"{{program}} TCP4-LISTEN:{PORT},reuseaddr,fork,backlog=1024 PIPE & {{program}} -b 65536 "
        f"UDP4-RECVFROM:{PORT},fork EXEC:/bin/cat & wait",
        "socat",
    ),
    Subject(
        "ncat",
        f"{{program}} -4 -l -k -m 200 -p {PORT} --exec /bin/cat & "
        f"{{program}} -4 -u -l -k -p {PORT} --exec /bin/cat & wait",
        "ncat",
    ),
    _python_peer("asyncio", "asyncio_echo.py"),
    _python_peer("uvloop", "asyncio_echo.py", "uvloop"),
    _python_peer("twisted", "twisted_echo.py"),
    Subject("Node", _both(f"{{{{program}}}} {{{{peers}}}}/echo.js {{kind}} {ANY} {PORT}"), "node"),
    Subject("Go", _both(f"{{{{program}}}} {{kind}} {ANY} {PORT}"), build="go"),
    Subject("C, epoll", _both(f"{{{{program}}}} {{kind}} {ANY} {PORT}"), build="c-epoll"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Check the servers and print the table. Return the exit status: 0 when there is a table."""
    parser = OneLineParser(prog="python3 -m benchmarks.judged", description="Run echo7 check on known servers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these servers (default: all)")
    parser.add_argument("--program", action="append", default=[], metavar="NAME=PATH", help="path of a program")
    options = parser.parse_args(argv)
    known = [subject.name for subject in SUBJECTS]
    for name in options.names:
        if name not in known:
            parser.error(f"there is no server {name!r}; choose from {', '.join(known)}")
    for text in options.program:
        if "=" not in text:
            parser.error(f"argument --program: {text!r} has no '=' between a server's name and a path")
    try:
        prefix = namespace()
    except AloneError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(markdown(judge_all(prefix, options.names or known, dict(text.split("=", 1) for text in options.program))))
    return 0


def judge_all(
    prefix: Sequence[str], names: Sequence[str], programs: Mapping[str, str]
) -> Iterator[tuple[Subject, dict[str, Any]]]:
    """Check one server after the other; report skipped ones on stderr."""
    for subject in SUBJECTS:
        if subject.name not in names:
            continue
        try:
            program = find(subject, programs)
            print(f"checking {subject.name} …", file=sys.stderr)
            with command_of(subject, program) as command:
                yield subject, judge_alone(prefix, ["sh", "-c", command])
        except AloneError as error:
            print(f"skipped {subject.name}: {error}", file=sys.stderr)


def find(subject: Subject, programs: Mapping[str, str]) -> str:
    """Return the program's path, or an empty string if it needs none. Raise AloneError when it is missing."""
    if subject.package and importlib.util.find_spec(subject.package) is None:
        raise AloneError(f"the Python package {subject.package!r} isn't installed (pip install -e '.[bench]')")
    if subject.build:
        build = BY_NAME[subject.build].build
        try:
            return str(build.make()) if build else ""
        except BuildError as error:
            raise AloneError(str(error)) from None
    if not subject.program:
        return ""
    path = programs.get(subject.name) or shutil.which(subject.program)
    if path is None or shutil.which(path) is None:
        raise AloneError(f"needs {subject.program!r}, which isn't on the PATH (--program {subject.name}=PATH)")
    return path


@contextlib.contextmanager
def command_of(subject: Subject, program: str) -> Iterator[str]:
    """Fill in a command, with its configuration file if it has one."""
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "config"
        config.write_text(subject.config)
        parts = {"program": program, "config": str(config), "python": sys.executable, "peers": str(PEERS)}
        yield subject.command.format(**{name: shlex.quote(value) for name, value in parts.items()})


def markdown(judged: Iterator[tuple[Subject, dict[str, Any]]]) -> str:
    """Return the table."""
    lines = [
        "| server | score | TCP | UDP | urgent byte | reply address | no loops | required cases not passed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for subject, document in judged:
        found = {finding["case"]: finding["verdict"] for finding in document["findings"]}
        required = [finding for finding in document["findings"] if finding["required"]]
        bad = [finding["case"] for finding in required if finding["verdict"] != "pass"]
        counts = [
            f"{sum(f['verdict'] == 'pass' for f in of)}/{len(of)}"
            for of in ([f for f in required if f["transport"] == transport] for transport in ("tcp", "udp"))
        ]
        beyond = [word(found.get(name, "")) for name in ("tcp-urgent", "udp-reply-address", "udp-loop-guard")]
        score = document["score"]["text"] if document["score"] else "-"
        lines.append(f"| {' | '.join([subject.name, score, *counts, *beyond, ', '.join(bad)])} |")
    return "\n".join(lines)


def word(verdict: str) -> str:
    """Return the cell of a table for a verdict."""
    return {"pass": "yes", "fail": "no", "": "-"}.get(verdict, "?")


if __name__ == "__main__":
    sys.exit(main())
