"""The command-line parser of both packages.

Law: a wrong command line costs one line on stderr, which says what is wrong, why and what to do. The status is 2.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from typing import NoReturn

USAGE = 2  # the exit status
STATUSES_COLUMNS = 78


class OneLineParser(argparse.ArgumentParser):
    """Reports an error in one line that points to `--help`, in place of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with status 2."""
        self.exit(USAGE, f"{self.prog}: {message}; see '{self.prog} --help'\n")


def explain_statuses(statuses: Mapping[str, str]) -> str:
    """Return the part of a command's help that explains its exit statuses."""
    width = max(map(len, statuses))
    return "exit status:\n" + "".join(f"  {status:{width}}  {meaning}\n" for status, meaning in statuses.items())


def list_statuses(statuses: Mapping[str, str]) -> str:
    """Return the same part on a few lines: each meaning up to its first colon or semicolon."""
    lines = [""]
    for status, meaning in statuses.items():
        words = f" {status} {re.split('[:;]', meaning)[0]};"
        if len(lines[-1]) + len(words) > STATUSES_COLUMNS:
            lines.append("")
        lines[-1] += words
    return "exit status:\n" + "".join(f" {line}\n" for line in lines)[:-2] + "\n"


def give_up_stdout() -> None:
    """Redirect a broken stdout to /dev/null, or the interpreter reports it again when it exits."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
