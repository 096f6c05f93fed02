"""What the commands of both packages have in common: a mistake on the command line costs one line.

Law: it says what, why and what to do, on stderr, and the status is 2. Whatever else goes wrong costs no traceback
either.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from typing import NoReturn

USAGE = 2  # the exit status


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, and where to read on, instead of printing the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(USAGE, f"{self.prog}: {message}; see '{self.prog} --help'\n")


def explain_statuses(statuses: Mapping[str, str]) -> str:
    """Return the part of a command's help that explains its exit statuses."""
    width = max(map(len, statuses))
    return "exit status:\n" + "".join(f"  {status:{width}}  {meaning}\n" for status, meaning in statuses.items())


def give_up_stdout() -> None:
    """Lead stdout nowhere after it has failed: else the interpreter tries again at its end, and complains."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
