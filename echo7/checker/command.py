"""`echo7 check`: options → a report → a table or a document, and an exit status.

Law: the result goes to stdout, and nothing else does. Progress goes to stderr if that is a terminal.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import socket
import sys

from echo7.arguments import HelpFormatter, number, seconds
from echo7.checker import NORMAL, QUICK, SEEDS, THOROUGH, TIMEOUT_S, Case, Finding, check, table
from echo7.checker.checker import chosen
from echo7.checker.verdict import ECHO_PORT, TRANSPORTS
from echo7.sockets.resolve import UnresolvedName
from reactor.console.commandline import explain_statuses, fitted, takes_escapes
from reactor.console.output import show

STDOUT, STDERR = 1, 2
NOTHING_ANSWERED = 3
CLEAR_LINE = "\r\x1b[K"
EXIT_STATUSES = {
    "0": "all required cases pass",
    "1": "some fail, or the check can't start, or stdout can't be written",
    "2": "invalid options",
    "3": "nothing answered: refused, unreachable, timed out, or no such name",
    "4": "none fails, but some required cases can't be decided",
    "130": "ended by Ctrl-C",
}
EXAMPLES = """\
examples:
  echo7 check 192.0.2.1                      all cases, over IPv4 and IPv6
  echo7 check localhost --port 7007 --tcp    one transport, another port
  echo7 check example.net --only udp-512 udp-largest
  echo7 check localhost --thorough           for minutes, to find rare faults
  echo7 check example.net --json >report.json
  echo7 check --list                         every case with its rule
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = "Test whether an Echo Protocol server (RFC 862) behaves as specified."
    parser.epilog = f"{explain_statuses(EXIT_STATUSES)}\n{EXAMPLES}"
    parser.formatter_class = functools.partial(HelpFormatter, max_help_position=26)
    server = parser.add_argument_group("server")
    server.add_argument("host", nargs="?", metavar="HOST", help="address or name of the server")
    port_help = "port of the server (default: %(default)s)"
    server.add_argument("--port", type=number(1, 65_535), default=ECHO_PORT, metavar="PORT", help=port_help)
    family = server.add_mutually_exclusive_group()
    family.add_argument("-4", dest="ipv4", action="store_true", help="use IPv4 only")
    family.add_argument("-6", dest="ipv6", action="store_true", help="use IPv6 only")
    cases = parser.add_argument_group("cases")
    transport = cases.add_mutually_exclusive_group()
    transport.add_argument("--tcp", action="store_true", help="check TCP only")
    transport.add_argument("--udp", action="store_true", help="check UDP only")
    cases.add_argument("--only", nargs="+", default=[], metavar="NAME", help="run only these cases (see --list)")
    timeout_help = "end a case that makes no progress (default: %(default)g)"
    cases.add_argument("--timeout", type=seconds, default=TIMEOUT_S, metavar="SECONDS", help=timeout_help)
    effort = cases.add_mutually_exclusive_group()
    effort.add_argument("--quick", action="store_true", help="try less, in a few seconds, and say what is left out")
    effort.add_argument("--thorough", action="store_true", help="try far more, for minutes")
    seed_help = "repeat the payloads and the order of an earlier run"
    cases.add_argument("--seed", type=number(0, SEEDS - 1), metavar="NUMBER", help=seed_help)
    output = parser.add_argument_group("output")
    output.add_argument("--list", action="store_true", help="list the cases, and check no server")
    output.add_argument("--json", action="store_true", help="print one JSON document instead of the table")


def run(options: argparse.Namespace) -> int:
    """Check, print, and return the exit status. Raise SystemExit(2) after one line if the options make no sense."""
    transports = [name for name in TRANSPORTS if getattr(options, name)] or list(TRANSPORTS)
    _refuse_nonsense(options, transports)
    if options.list:
        return 0 if show(table.listing(chosen(transports, options.only))) else 1
    family = socket.AF_INET if options.ipv4 else socket.AF_INET6 if options.ipv6 else socket.AF_UNSPEC
    progress = Progress()
    try:
        report = check(
            options.host, options.port,
            transports=transports, only=options.only, family=family, timeout_s=options.timeout, progress=progress,
            effort=QUICK if options.quick else THOROUGH if options.thorough else NORMAL, seed=options.seed,
        )  # fmt: skip
    except UnresolvedName as error:
        print(f"echo7 check: {error}", file=sys.stderr)
        return NOTHING_ANSWERED
    except OSError as error:
        # too few descriptors for a loop
        print(f"echo7 check: cannot start: {error.strerror}; raise 'ulimit -n'", file=sys.stderr)
        return 1
    finally:
        progress.show("")
    if options.json:
        result = json.dumps(table.document(report), indent=2)
    else:
        result = table.text(report, colour=takes_escapes(STDOUT) and not os.environ.get("NO_COLOR"))
    return report.status if show(result) else 1


def _refuse_nonsense(options: argparse.Namespace, transports: list[str]) -> None:
    try:
        chosen(transports, options.only)
    except ValueError as error:
        options.parser.error(f"argument --only: {error}")
    if options.list and (options.json or options.host is not None):
        options.parser.error("argument --list: it checks no server; leave out HOST and --json")
    if options.host is None and not options.list:
        options.parser.error("the following arguments are required: HOST")
    if not options.timeout:
        options.parser.error("argument --timeout: no server answers in 0 seconds; give more")


class Progress:
    """A line on the terminal that says which case is running."""

    def __call__(self, case: Case, address: str, finding: Finding | None) -> None:
        """Show the case that starts; see `check`."""
        if finding is None:
            self.show(f"{case.name} at {address}: {case.promise} …")

    def show(self, text: str) -> None:
        """Replace the line; an empty text clears it."""
        if takes_escapes(STDERR):
            # the terminal may have gone
            with contextlib.suppress(OSError):
                sys.stderr.write(CLEAR_LINE + fitted(text, STDERR))
                sys.stderr.flush()
