"""The arguments of all commands: options as data, converters with bounds, and a help page.

Law: a mistake in an option costs one line that says what is wrong, why and what to do; never a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

LONGEST_S = 86_400.0
STDOUT, TERMINAL_COLUMNS, HELP_COLUMN = 1, 80, 34


class Option(NamedTuple):
    """One option: how it is written, read and explained. A field of `settings.Settings` carries it."""

    flag: str
    # returns the field's value, or raises ValueError or ArgumentTypeError; None: the option is a switch
    parse: Callable[[str], Any] | None
    metavar: str = ""
    group: str = ""
    # one line of the help page
    help: str = ""
    # in a word or two; if empty, the field's default is shown
    default: str = ""
    # what the manual page and the reference add to `help`
    details: str = ""
    # "append": one value each time; "extend": one or several
    repeat: str = ""
    # the word `none` is accepted too, and gives None
    none: bool = False
    # changes only with a real restart, not by SIGHUP
    restart: bool = False
    # the value as it is compared at a restart
    text: Callable[[Any], str] = str
    # the field's value when the switch is given
    sets: bool = True

    @property
    def key(self) -> str:
        """The name in a file."""
        return self.flag[2:]

    @property
    def dest(self) -> str:
        """The name in argparse's namespace."""
        return self.key.replace("-", "_")

    @property
    def explained(self) -> str:
        """The whole explanation, for the manual page and the reference."""
        return "; ".join(filter(None, (self.help, self.details)))

    def convert(self, text: str) -> Any:
        """Return the field's value. Raise ArgumentTypeError."""
        if self.parse is None or (self.none and text == "none"):
            return None
        try:
            return self.parse(text)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise argparse.ArgumentTypeError(f"{error}{', nor none' if self.none else ''}") from None

    def add_to(self, add: Callable[..., object]) -> None:
        """Declare the option by a group's `add_argument`. An option that isn't given is absent from the namespace."""
        words = f"{self.help} [{self.default}]" if self.default else self.help
        shape: dict[str, Any] = {"help": words.replace("%", "%%"), "default": argparse.SUPPRESS}
        if self.parse is None:
            shape |= {"action": "store_const", "const": self.sets}
        else:
            shape |= {"type": self.convert, "metavar": self.metavar}
        if self.repeat:
            shape |= {"action": self.repeat} | ({"nargs": "+"} if self.repeat == "extend" else {})
        add(self.flag, **shape)

    def compared(self, value: Any) -> str:
        """Return the value as text, to compare it with that of another generation."""
        if self.parse is None:
            return str(value == self.sets)
        return "" if value is None else self.text(value)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formats help to the width of the terminal. argparse would import five modules to find the width."""

    def __init__(self, prog: str, max_help_position: int = HELP_COLUMN) -> None:
        columns = TERMINAL_COLUMNS
        # stdout may not be a terminal, nor COLUMNS a number
        with contextlib.suppress(OSError, ValueError):
            columns = int(os.environ.get("COLUMNS") or os.get_terminal_size(STDOUT).columns or TERMINAL_COLUMNS)
        super().__init__(prog, max_help_position=max_help_position, width=columns - 2)


def refuse_dashes(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit with status 2 if argparse has lost the value of `--port=--`, as some versions do."""
    for name, value in vars(options).items():
        if isinstance(value, list) and ([] in value if value else parser.get_default(name) != []):
            parser.error(f"argument --{name.replace('_', '-')}: '--' is no value")


def seconds(text: str) -> float:
    """Convert to seconds, 0 to a day. Raise ArgumentTypeError for anything else."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= LONGEST_S:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to {LONGEST_S:.0f}")


def host_and_port(text: str) -> tuple[str, int]:
    """Convert `127.0.0.1:9107`, `[::1]:9107` or `name:9107`. Raise ArgumentTypeError for anything else."""
    host, colon, port = text.rpartition(":")
    if colon and host.strip("[]") and (":" not in host or (host[0] == "[" and host[-1] == "]")):
        with contextlib.suppress(argparse.ArgumentTypeError):
            return host, number(0, 65_535)(port)
    raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:9107 or [::1]:9107")


def metrics_address(text: str) -> tuple[str, int]:
    """Convert as `host_and_port`. Raise ArgumentTypeError also if the packages for --metrics aren't installed."""
    where = host_and_port(text)
    try:
        importlib.import_module("echo7.metrics.service")
    except ImportError:
        raise argparse.ArgumentTypeError("this needs prometheus-client and h11: pip install 'echo7[metrics]'") from None
    return where


def number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a converter to whole numbers within bounds, which raises ArgumentTypeError for anything else."""
    bounds = f"from {least} to {most}" if most is not None else f"of at least {least}"

    def convert(text: str) -> int:
        with contextlib.suppress(ValueError):
            value = int(text)
            if value >= least and (most is None or value <= most):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {bounds}")

    return convert


def one_of(*words: str) -> Callable[[str], str]:
    """Return a converter that accepts these words, and raises ArgumentTypeError for anything else."""

    def convert(text: str) -> str:
        if text not in words:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(words)}")
        return text

    return convert
