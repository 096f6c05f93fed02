"""Commands that run to their end, with their output as text."""

from __future__ import annotations

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
