"""`echo7 check`: options → a report → a table or a document, and an exit status.

Law: stdout has the result and nothing else. Progress is shown on stderr, if that is a terminal.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys

from echo7.arguments import number, seconds
from echo7.checker import TIMEOUT_S, Case, Finding, check, table
from echo7.checker.checker import chosen
from echo7.checker.verdict import ECHO_PORT, TRANSPORTS
from echo7.sockets.resolve import UnresolvedName
from reactor.console.commandline import explain_statuses
from reactor.console.output import show

NOTHING_ANSWERED = 3
CLEAR_LINE = "\r\x1b[K"
EXIT_STATUSES = {
    "0": "all required cases pass",
    "1": "some fail, or the check couldn't start, or stdout can't be written",
    "2": "the options make no sense",
    "3": "nothing answered: refused, unreachable, timed out, or the name can't be resolved",
    "130": "ended by Ctrl-C",
}
EXAMPLES = """\
examples:
  echo7 check 192.0.2.1                   everything, over IPv4 and IPv6 where the name has both
  echo7 check localhost --port 7007 --tcp
  echo7 check example.net --only udp-512 udp-largest
  echo7 check example.net --json >report.json
  echo7 check --list                      list the cases, each with the rule behind it
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = "Check any server of the Echo Protocol (RFC 862) by what it does."
    parser.epilog = f"{EXAMPLES}\n{explain_statuses(EXIT_STATUSES)}"
    add = parser.add_argument
    add("host", nargs="?", metavar="HOST", help="address or name of the server")
    add("--port", type=number(1, 65_535), default=ECHO_PORT, metavar="PORT", help="its port (default: %(default)s)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--tcp", action="store_true", help="check TCP only")
    which.add_argument("--udp", action="store_true", help="check UDP only")
    family = parser.add_mutually_exclusive_group()
    family.add_argument("-4", dest="ipv4", action="store_true", help="use IPv4 only")
    family.add_argument("-6", dest="ipv6", action="store_true", help="use IPv6 only")
    add(
        "--timeout",
        type=seconds,
        default=TIMEOUT_S,
        metavar="SECONDS",
        help="give a case up when nothing has happened for so long (default: %(default)g)",
    )
    add("--only", nargs="+", default=[], metavar="NAME", help="try these cases only (see --list)")
    add("--list", action="store_true", help="list the cases and exit")
    add("--json", action="store_true", help="print one JSON document instead of the table")


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
            options.host,
            options.port,
            transports=transports,
            only=options.only,
            family=family,
            timeout_s=options.timeout,
            progress=progress,
        )
    except UnresolvedName as error:
        print(f"echo7 check: {error}", file=sys.stderr)
        return NOTHING_ANSWERED
    except OSError as error:
        # no descriptors for a loop
        print(f"echo7 check: cannot begin: {error.strerror}; raise 'ulimit -n'", file=sys.stderr)
        return 1
    finally:
        progress.end()
    if options.json:
        result = json.dumps(table.document(report), indent=2)
    else:
        result = table.text(report, colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
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
        options.parser.error("argument --timeout: with no time at all nothing can answer; give some seconds")


class Progress:
    """A line on the terminal that says which case is being tried."""

    __slots__ = ("_shown",)

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def __call__(self, case: Case, address: str, finding: Finding | None) -> None:
        """Show the case that begins; see `check`."""
        if finding is None:
            self._write(f"{CLEAR_LINE}{case.name} at {address}: {case.promise} …")

    def end(self) -> None:
        """Clear the line."""
        self._write(CLEAR_LINE)

    def _write(self, text: str) -> None:
        if self._shown:
            sys.stderr.write(text)
            sys.stderr.flush()
