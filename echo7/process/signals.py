"""Hold every signal back for a moment: no signal may find a process between two roles."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def signals_held() -> Iterator[set[int]]:
    """Have the kernel hold every signal back meanwhile. Yield the mask before, which is set again at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield set(before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
