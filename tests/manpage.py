"""`python3 -m tests.manpage`: write the manual page echo7(1) from the command line's parser.

Needs argparse-manpage, of the extra `dev`. A test compares the committed page with what this command would write.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from unittest import mock

from echo7 import __version__, serve
from echo7.cli import new_parser
from echo7.settings import by_group
from tests.support.basics import PROJECT

PAGE = PROJECT / "echo7" / "deploy" / "echo7.1"
NAME = "the Echo Protocol, RFC 862, as a service, and its checker"
HEADING = re.compile(r"^(?=[a-z ]+:\n)", re.MULTILINE)
# in place of the epilog of `echo7 serve --help`
MANUAL = f"""\
{serve.EXAMPLES}\
  echo7 serve --host 192.0.2.1 --host fe80::1%eth0 --no-udp
  echo7 serve --log-format json 2>>echo7.log
  echo7 serve --host '*' --allow 192.0.2.0/24 2001:db8::/32 --idle-timeout 600
  echo7 serve --workers auto                   a process for each CPU (Linux), and a supervisor

A systemd socket unit may hand the sockets in; --host and --port then have no effect.

signals:
  TERM, INT   stop in order; a second one ends at once
  HUP         restart without an outage: new program, new options from the file
  USR1        log the counters
  USR2        log what the loop has: handlers, buffers, timers

exit status:
  0  ended in order                       2        invalid options
  1  couldn't start, or a failure later   128 + n  ended at once by a second signal n
"""
SEE_ALSO = """\
.BR systemd.socket (5),
.BR journalctl (1),
.BR ip (7),
.UR https://www.rfc\\-editor.org/rfc/rfc862
RFC 862
.UE"""


def page() -> str:
    """Return the manual page. Raise ImportError if argparse-manpage isn't installed."""
    from argparse_manpage.manpage import Manpage

    with mock.patch.dict(os.environ, {"COLUMNS": "80"}):  # the same on any terminal
        parser, commands = new_parser()
        parser.epilog = None
        _explain(commands["serve"])
        sections = _sections(commands)
        options = {
            "project_name": "echo7",
            "version": __version__,
            "manual_title": "User Commands",
            "description": NAME,
        }
        manual = Manpage(parser, options, format="single-commands-section")
        manual.date = ""  # no date, so that the page stays the same
        for title, text in sections:
            manual.add_section(title, ">", text)
        manual.add_section("see also", ">", SEE_ALSO)
        text = re.sub(r"^(.+)\n\.RS 7$", r".PP\n.I \1\n.RS 4", str(manual), flags=re.MULTILINE)  # titles of groups
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def _explain(command: argparse.ArgumentParser) -> None:
    """Put the whole explanation of each option of `echo7 serve` in place of its line of help."""
    command.epilog = MANUAL
    explained = {option.dest: option for options in by_group().values() for option in options}
    for action in command._actions:
        option = explained.get(action.dest)
        if option is not None:
            default = f" [{option.default}]" if option.default else ""
            action.help = (option.explained + default).replace("%", "%%")


def _sections(commands: Mapping[str, argparse.ArgumentParser]) -> list[tuple[str, str]]:
    """Return the sections that argparse-manpage leaves out or would reflow: the parsers' epilogs."""
    found: dict[str, list[str]] = {}
    for name, command in commands.items():
        # The options come below, each with its words.
        if command.usage is None:
            command.usage = " ".join(["%(prog)s [OPTION]...", *_positional(command)])
        for part in HEADING.split(command.epilog or ""):
            title, colon, text = part.partition(":\n")
            if colon:
                found.setdefault(title, []).append(f".SS echo7 {name}\n.nf\n{_literal(text)}\n.fi")
    return [(title, "\n".join(parts)) for title, parts in found.items()]


def _positional(command: argparse.ArgumentParser) -> list[str]:
    """Return what follows the options in the usage."""
    last = " ".join(command.format_usage().split()).rpartition("] ")[2]
    return [] if last.startswith("[-") else [last]


def _literal(text: str) -> str:
    escaped = text.rstrip().replace("\\", "\\\\").replace("-", "\\-").replace("'", "\\(aq")
    return "\n".join(line.removeprefix("  ") for line in escaped.splitlines())


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"written: {PAGE.relative_to(PROJECT)}")
