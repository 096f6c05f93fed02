"""What every command's arguments have in common: converters with names and bounds, and a help page.

Law: whatever a user gets wrong costs one line that says what, why and what to do: never a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
from collections.abc import Callable
from typing import Any

LONGEST_S = 86_400.0
STDOUT, TERMINAL_COLUMNS = 1, 80


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """As wide as the terminal. argparse would import five modules at every start to find that out."""

    def __init__(self, prog: str) -> None:
        columns = TERMINAL_COLUMNS
        with contextlib.suppress(OSError, ValueError):  # no terminal; a COLUMNS that is no number
            columns = int(os.environ.get("COLUMNS") or os.get_terminal_size(STDOUT).columns or TERMINAL_COLUMNS)
        super().__init__(prog, width=columns - 2)


def refuse_dashes(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit with status 2 where argparse has taken `--port=--` for no value at all, as some versions do."""
    for name, value in vars(options).items():
        if isinstance(value, list) and ([] in value if value else parser.get_default(name) != []):
            parser.error(f"argument --{name.replace('_', '-')}: '--' is no value")


def seconds(text: str) -> float:
    """Convert to seconds, 0 to a day. Raise ArgumentTypeError for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to {LONGEST_S:.0f}")
    return value


def host_and_port(text: str) -> tuple[str, int]:
    """Convert `127.0.0.1:9107`, `[::1]:9107` or `name:9107`. Raise ArgumentTypeError for anything else."""
    host, colon, port = text.rpartition(":")
    if colon and host.strip("[]") and (":" not in host or (host[0] == "[" and host[-1] == "]")):
        with contextlib.suppress(argparse.ArgumentTypeError):
            return host, number(0, 65_535)(port)
    raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:9107 or [::1]:9107")


def metrics_address(text: str) -> tuple[str, int]:
    """As `host_and_port`. Raise ArgumentTypeError also when the packages for --metrics aren't installed."""
    where = host_and_port(text)
    try:
        importlib.import_module("echo7.metrics.service")
    except ImportError:
        raise argparse.ArgumentTypeError("this needs prometheus-client and h11: pip install 'echo7[metrics]'") from None
    return where


def number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a converter to whole numbers within bounds, which raises ArgumentTypeError for anything else."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            bounds = f"from {least} to {most}" if most is not None else f"of at least {least}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {bounds}")
        return value

    return convert


def checked(convert: Callable[[str], Any], none: bool = False) -> Callable[[str], Any]:
    """Return a converter like `convert`, whose ValueError becomes an ArgumentTypeError with the same text.

    With `none`, the word `none` is accepted too, and becomes None.
    """

    def converted(text: str) -> Any:
        if none and text == "none":
            return None
        try:
            return convert(text)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise argparse.ArgumentTypeError(f"{error}{', nor none' if none else ''}") from None

    return converted
