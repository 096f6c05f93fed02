"""`echo7 serve`: options → settings → a service under signals → an exit status.

Law: options that make no sense are refused before anything is bound; the last log line says how the service ended.
"""

from __future__ import annotations

import argparse
import os
from itertools import groupby
from typing import Any

from echo7.process import restart
from echo7.process.service import serve
from echo7.settings import ABOUT_SETTINGS, OPTIONS, Settings
from reactor.console.commandline import explain_statuses

EXIT_STATUSES = {
    "0": "ended in order",
    "1": "couldn't start, the last serving socket broke, or workers failed",
    "2": "the options make no sense",
    "128 + n": "ended at once by a second signal n",
}
EXAMPLES = """\
examples:
  echo7 serve                                  this machine only, port 7
  echo7 serve --port 7007                      no privilege needed
  echo7 serve --host '*'                       every address, IPv4 and IPv6
  echo7 serve --host 192.0.2.1 --host fe80::1%eth0 --no-udp
  echo7 serve --log-format json 2>>echo7.log
  echo7 serve --host '*' --allow 192.0.2.0/24 2001:db8::/32 --idle-timeout 600
  sudo echo7 serve --host '*' --user nobody    bind port 7 as root, serve as user nobody
  echo7 serve --config /etc/echo7.toml         options from a file, such as: port = 7007
  echo7 serve --workers auto                   a process for each CPU (Linux), and a supervisor

A systemd socket unit may hand the sockets in; --host and --port then have no effect.

signals:
  TERM, INT   stop in order; a second one ends at once
  HUP         restart without an outage: new program, new options from the file
  USR1        log the counters
  USR2        log what the loop has: handlers, buffers, timers
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = "Serve the Echo Protocol over TCP and UDP."
    parser.epilog = f"{EXAMPLES}\n{explain_statuses(EXIT_STATUSES)}"
    for title, options in groupby([*OPTIONS.values(), *ABOUT_SETTINGS], lambda option: option.group):
        group = parser.add_argument_group(title)
        for option in options:
            option.add_to(group.add_argument)


def run(options: argparse.Namespace) -> int:
    """Do what the options say, and return the exit status. Raise SystemExit(2) after one line if they make no sense."""
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
        # Imported only when a file is given: it needs a parser of TOML.
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
