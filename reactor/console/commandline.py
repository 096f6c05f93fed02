"""The command-line parser of both packages.

Law: a wrong command line costs one line on stderr, which says what is wrong, why and what to do. The status is 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

USAGE = 2  # the exit status


class OneLineParser(argparse.ArgumentParser):
    """Reports an error in one line that points to `--help`, in place of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with status 2."""
        self.exit(USAGE, f"{self.prog}: {message}; see '{self.prog} --help'\n")


def give_up_stdout() -> None:
    """Redirect a broken stdout to /dev/null, or the interpreter reports it again when it exits."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
