"""Commands that run to their end, with their output as text."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tests.support.basics import PATIENCE_S, PROJECT

Done = subprocess.CompletedProcess[str]


def run(command: Sequence[str], stdout: Any = subprocess.PIPE, **options: Any) -> Done:
    return subprocess.run(
        command,
        cwd=PROJECT,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        **options,
    )


def run_echo7(*arguments: str, **options: Any) -> Done:
    return run([sys.executable, "-m", "echo7", *arguments], **options)


def assert_help_is_readable(command: str, headings: Sequence[str]) -> None:
    """Assert under 60 lines of 80 columns, one line for each option, and these headings in this order, then no more."""
    done = run_echo7(command, "--help", env={**os.environ, "COLUMNS": "80"})
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) < 60
    assert [line for line in lines if len(line) > 80] == []
    assert [line[:-1] for line in lines if re.fullmatch(r"\w[\w ]*:", line)] == ["options", *headings]
    usage, _, options = done.stdout.partition("\n\n")
    options = options[options.index("options:") : options.index(f"{headings[3]}:")]
    rows = [line for line in options.splitlines() if line.startswith("  ")]
    assert [row for row in rows if not re.match(r"  \S.*\S {2,}\S", row)] == []
    assert usage.startswith(f"usage: echo7 {command} ")
