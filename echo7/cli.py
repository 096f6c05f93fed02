"""The command line: which command, then that command's own options.

Law: only the module of the given command is imported: a service that starts needs no checker.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import signal
import sys
from collections.abc import Collection, Sequence

from echo7 import __version__
from echo7.arguments import HelpFormatter, refuse_dashes
from reactor.console.commandline import OneLineParser, run_command

# Name → the module that has `add_arguments` and `run`, and its line of help.
COMMANDS = {
    "serve": ("echo7.serve", "echo TCP and UDP until a signal ends it"),
    "check": ("echo7.checker.command", "test whether any echo server does what RFC 862 says"),
    "ping": ("echo7.probe.command", "probe an echo server: loss, delay, damage, order"),
}

EPILOG = """\
examples:
  echo7 serve                        serve this machine on port 7
  echo7 serve --port 7007            the same without privilege
  echo7 serve --host '*'             serve every address
  echo7 check 192.0.2.1              check that server against the RFC

'echo7 COMMAND --help' says more about each. All of it: man echo7
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status. Usage errors raise SystemExit(2), as argparse does."""
    return run_command(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> int:
    try:
        options = parse(argv)
        # `__main__` has set this for the start only
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return int(options.run(options))
    # before the command has installed its signal handlers
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Turn arguments into options; `options.run` is the command. Raise SystemExit(2) after one line on stderr."""
    asked = [argument for argument in argv if not argument.startswith("-")][:1]
    parser, found = new_parser(asked)
    if asked == ["serve"]:
        _report_as_the_log(argv, parser, *found.values())
    options = parser.parse_args(argv)
    refuse_dashes(options.parser, options)
    return options


def _report_as_the_log(argv: Sequence[str], *parsers: OneLineParser) -> None:
    """Report usage errors of `serve` as lines of its log, in the form that `argv` asks for."""
    from echo7 import serve

    form = serve.form_of_errors(argv)
    if form == "json":
        for parser in parsers:
            error = functools.partial(serve.refuse, OneLineParser(parser.prog), log_format=form)
            parser.error = error  # type: ignore[method-assign]


def new_parser(asked: Collection[str] = tuple(COMMANDS)) -> tuple[OneLineParser, dict[str, OneLineParser]]:
    """Return the parser, and those of the commands in `asked`. It knows other commands by name only."""
    parser = OneLineParser(
        prog="echo7", description="The Echo Protocol, RFC 862.", epilog=EPILOG, formatter_class=HelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"echo7 {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    found: dict[str, OneLineParser] = {}
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, formatter_class=HelpFormatter)
        if name in asked:
            chosen = importlib.import_module(module)
            command.set_defaults(parser=command, run=chosen.run)
            chosen.add_arguments(command)
            found[name] = command
    return parser, found
