"""`echo7 serve`: options → settings → a service under signals → an exit status.

Law: invalid options are refused before anything is bound; the last log line says how the service ended.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from echo7.process import restart
from echo7.process.service import serve
from echo7.settings import OPTIONS, Settings, by_group

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
            options.parser.error(f"{options.config}: {error}")
    for field, option in OPTIONS.items():
        if option.dest in options:
            value = getattr(options, option.dest)
            values[field] = tuple(value) if option.repeat else value
    settings = Settings(**values)
    mistake = settings.mistake()
    if mistake is not None:
        options.parser.error(mistake)
    return settings
