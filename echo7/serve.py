"""`echo7 serve`: options → settings → a service under signals → an exit status.

Law: invalid options are refused before anything is bound; the last log line says how the service ended.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from typing import Any, NoReturn

from echo7.logs import log
from echo7.process import restart
from echo7.process.service import serve
from echo7.settings import OPTIONS, Settings, by_group
from reactor.console.commandline import USAGE

EXIT_STATUSES = {
    "0": "ended in order",
    "1": "couldn't start, the last serving socket broke, or workers failed",
    "2": "invalid options",
    "128 + n": "ended by a second signal n",
}
EXAMPLES = """\
examples:
  echo7 serve                                  this machine only, port 7
  echo7 serve --port 7007                      no privilege needed
  sudo echo7 serve --host '*' --user nobody    every address, not as root
  echo7 serve --config /etc/echo7.toml         such as: port = 7007
"""
logger = logging.getLogger("echo7")

EPILOG = EXAMPLES + "\nSignals, exit statuses and every option in full: man echo7, echo7/docs/reference"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.usage, parser.epilog = "%(prog)s [OPTION]...", EPILOG
    parser.description = "Serve the Echo Protocol over TCP and UDP. Defaults are in brackets."
    for title, options in by_group().items():
        group = parser.add_argument_group(title)
        for option in options:
            option.add_to(group.add_argument)


def run(options: argparse.Namespace) -> int:
    """Serve, or only check the options; return the exit status. Raise SystemExit(2) after one line about a mistake."""
    config = configure(options)
    before = os.environ.get(restart.CHECK)
    if before is None and "check_config" not in options:
        return serve(config)
    mistake = restart.changed(before or "", config.fixed())
    if mistake is not None:
        options.parser.error(mistake)
    return 0


def configure(options: argparse.Namespace) -> Settings:
    """Return the settings: the defaults, then the file, then the command line. Raise SystemExit(2) after one line."""
    values: dict[str, Any] = {}
    if "config" in options:
        # imported only when a file is given: it needs a TOML parser
        from echo7 import configfile

        try:
            values = configfile.read(options.config)
        except configfile.FileError as error:
            refuse(options.parser, f"{options.config}: {error}", getattr(options, "log_format", error.log_format))
    for field, option in OPTIONS.items():
        if option.dest in options:
            value = getattr(options, option.dest)
            values[field] = tuple(value) if option.repeat else value
    settings = Settings(**values)
    mistake = settings.mistake()
    if mistake is not None:
        refuse(options.parser, mistake, settings.log_format)
    return settings


def refuse(parser: argparse.ArgumentParser, message: str, log_format: object) -> NoReturn:
    """Report a mistake in one line, in the form of the log. Raise SystemExit(2)."""
    # a check child's last line is quoted in its parent's log
    if log_format != "json" or restart.CHECK in os.environ:
        parser.error(message)
    handler = log.set_up("error", "json")
    log.event(logger, logging.ERROR, "usage_error", f"{parser.prog}: {message}; see '{parser.prog} --help'")
    handler.flush()
    raise SystemExit(USAGE)


def form_of_errors(argv: Sequence[str]) -> str:
    """Return the form of the log that a command line asks for, although it may be wrong elsewhere."""
    forms = ["text"]
    for word, after in zip(argv, [*argv[1:], ""], strict=True):
        # argparse takes abbreviations
        flag, equals, value = word.partition("=")
        if flag.startswith("--log-f") and "--log-format".startswith(flag):
            forms.append(value if equals else after)
    return forms[-1]
