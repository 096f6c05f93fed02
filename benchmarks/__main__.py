"""Compare echo7 with its peers: `python3 -m benchmarks [WORKLOAD…]`. README.md explains the figures.

    0  measured; a table names the servers that failed      1  echo7 itself failed
    2  the arguments make no sense, or a compiler, Linux or matplotlib is missing

Servers take turns within each round (A B C, B C A, …). Tables go to stdout; progress and skipped servers to stderr.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import page, report
from benchmarks.build import LOAD, BuildError
from benchmarks.measure import measure
from benchmarks.process import FailedError, raise_descriptor_limit
from benchmarks.results import Results
from benchmarks.servers import BY_NAME, SERVERS, Server, missing
from benchmarks.workloads import WORKLOADS, Workload, chosen
from reactor.console.commandline import STDERR, OneLineParser, fitted, takes_escapes

SPARE_DESCRIPTORS = 100  # of load and server, beside those of the connections


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; return the exit status. Bad arguments raise SystemExit(2) after one line."""
    parser = _parser()
    options = parser.parse_args(argv)
    options.command = shlex.join(["python3", "-m", "benchmarks", *(sys.argv[1:] if argv is None else argv)])
    if options.list:
        print(_listing())
        return 0
    workloads = _workloads(parser, options.workloads)
    servers = _servers(parser, options.peers)
    _check_needs(parser, options)
    try:
        return _run(options, workloads, servers)
    except KeyboardInterrupt:
        print("\nstopped; the unfinished measurements are lost", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace, workloads: list[Workload], servers: list[Server]) -> int:
    descriptors = raise_descriptor_limit()
    skipped: list[str] = []
    servers = [server for server in servers if not _skip(skipped, server.name, missing(server))]
    results: dict[str, Results] = {}
    print(report.machine_line())
    print(f"{options.rounds} rounds of {options.seconds:g} s; medians; ratios: median (min–max) of the rounds' own")
    for workload in workloads:
        able = [s for s in servers if set(workload.kinds) & s.commands.keys()]
        able = [
            s for s in able if not _skip(skipped, f"{workload.name}: {s.name}", why_left_out(s, workload, descriptors))
        ]
        if able:
            results[workload.name] = _rounds(workload, able, options)
            print(f"\n{report.table(workload, results[workload.name])}", flush=True)
    settings = {"rounds": options.rounds, "seconds": options.seconds}
    found = report.record(results, workloads, skipped, settings)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    if options.page:
        page.write(pathlib.Path(options.page), found, report.machine_line(), options.command)
    if options.plot:
        # the only module that needs matplotlib
        from benchmarks.plot import draw_all

        draw_all(pathlib.Path(options.plot), workloads, results)
    return int(any(BY_NAME[name].ours for found in results.values() for name in found.failed))


def _rounds(workload: Workload, servers: list[Server], options: argparse.Namespace) -> Results:
    results = Results([server.name for server in servers])
    for number in range(1, options.rounds + 1):
        # no server is always the first, or always measured in the same phase of the machine
        turn = number % len(servers)
        for server in servers[turn:] + servers[:turn]:
            if server.name in results.failed:
                continue
            _progress(f"{workload.name}: round {number}/{options.rounds}: {server.name}")
            try:
                results.add(server.name, measure(server, workload, options.seconds))
            except FailedError as error:
                results.fail(server.name, str(error))
    _progress("")
    return results


def _progress(text: str) -> None:
    if takes_escapes(STDERR):
        print(f"\r\033[K{fitted(text, STDERR)}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def _skip(skipped: list[str], name: str, reason: str | None) -> bool:
    if reason is None:
        return False
    skipped.append(f"skipped {name}: {reason}")
    print(skipped[-1], file=sys.stderr)
    return True


def why_left_out(server: Server, workload: Workload, descriptors: int) -> str | None:
    """Return why a server can't be measured by a workload with so many descriptors; None if it can."""
    if "udp" in workload.kinds:
        return None  # one socket serves all clients
    if workload.mode != "cold-start" and "timers" not in workload.kinds:
        if workload.count > server.most_connections:
            return f"{workload.count:,} connections are too many: {server.why_no_more}"
        if workload.count + SPARE_DESCRIPTORS > descriptors:
            return f"{workload.count:,} connections need more descriptors than {descriptors:,}; raise 'ulimit -Hn'"
    return None


def _listing() -> str:
    lines = ["workloads (the first parts of a name select a group: 'bulk', 'bulk-8'):"]
    lines += [f"  {workload.name:14} {workload.title}" for workload in WORKLOADS]
    lines += ["servers:"]
    return "\n".join(lines + [f"  {server.name:14} {server.title}" for server in SERVERS])


def _workloads(parser: argparse.ArgumentParser, names: list[str]) -> list[Workload]:
    try:
        return chosen(names)
    except KeyError as error:
        parser.error(f"there is no workload {error.args[0]!r}; --list names them all")


def _servers(parser: argparse.ArgumentParser, peers: str | None) -> list[Server]:
    """Return echo7 and the chosen peers, in the order of the table."""
    if peers is None:
        return list(SERVERS)
    names = [name.strip() for name in peers.split(",") if name.strip()]
    for name in names:
        if name not in BY_NAME:
            parser.error(f"argument --peers: there is no server {name!r}; --list names them all")
    return [server for server in SERVERS if server.name in ("echo7", *names)]


def _check_needs(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if not sys.platform.startswith("linux"):
        parser.error("needs Linux, for /proc and epoll; run it there")
    try:
        LOAD.make()
    except BuildError as error:
        parser.error(f"cannot build the load generator: {error}; install gcc or clang as 'cc'")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib, which isn't installed; pip install 'echo7[bench]'")
    # check now, not after an hour of measuring
    try:
        if options.json:
            pathlib.Path(options.json).open("a").close()
        if options.page:
            page.check(pathlib.Path(options.page))
        if options.plot:
            pathlib.Path(options.plot).mkdir(parents=True, exist_ok=True)
    except page.PageError as error:
        parser.error(f"argument --page: {error}")
    except OSError as error:
        parser.error(f"cannot write {error.filename}: {error.strerror}; choose another path")


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python3 -m benchmarks", description="Compare echo7 with its peers in one interleaved run."
    )
    add = parser.add_argument
    add("workloads", nargs="*", metavar="WORKLOAD", help="what to measure (default: all workloads)")
    add("--peers", metavar="A,B,…", help="servers to measure beside echo7 (default: all that are installed)")
    add(
        "--rounds",
        type=_at_least(int, 1, "a whole number of at least 1"),
        default=7,
        help="measurements of each server (default: %(default)s)",
    )
    seconds = _at_least(float, 0.01, "a number of seconds from 0.01 to 3600")
    add("--seconds", type=seconds, default=1.5, help="duration of each measurement (default: %(default)s)")
    add("--json", metavar="FILE", help="write raw rounds, machine and versions to this file")
    add("--page", metavar="FILE", help="write the table into this Markdown file, between the marks of RESULTS.md")
    add("--plot", metavar="DIR", help="draw a chart of each workload in this folder, as SVG and PNG")
    add("--list", action="store_true", help="list the workloads and servers, and measure nothing")
    return parser


def _at_least(convert: Callable[[str], Any], least: float, what: str) -> Callable[[str], Any]:
    def checked(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError:
            value = -1
        if not least <= value <= 3600:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return checked


if __name__ == "__main__":
    # SIGTERM raises KeyboardInterrupt, so that the servers end too
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
