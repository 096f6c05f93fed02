"""Standard output that never holds a probe up.

Law: while probes are sent, nothing is written that could block: a reader that has stopped costs lines, which are
counted, and not the schedule. At the end, what is left is written however long that takes. When writing fails (the
reader has gone, the disk is full) that is remembered once, and nothing more is tried.

A pipe or terminal is opened anew for this, as O_NONBLOCK on the inherited descriptor would be set for every process
that shares it.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat

MOST_WAITING_BYTES = 1024 * 1024
PIECE_BYTES = 4096  # PIPE_BUF on Linux: up to this, a pipe takes all or nothing (pipe(7))


class Output:
    """One descriptor to write to."""

    __slots__ = ("_descriptor", "_own", "_waiting", "dropped", "error")

    def __init__(self, descriptor: int) -> None:
        self.dropped = 0  # lines for which there was no room
        self.error: OSError | None = None  # why nothing is written any more
        self._descriptor = descriptor
        self._own = _opened_anew(descriptor)
        self._waiting = bytearray()

    @property
    def is_terminal(self) -> bool:
        """Whether somebody watches."""
        return os.isatty(self._descriptor)

    def line(self, text: str) -> None:
        """Write a line, or keep it until it can be written."""
        data = (text + "\n").encode("utf-8", "backslashreplace")
        if len(self._waiting) + len(data) > MOST_WAITING_BYTES:
            self.dropped += 1
        elif self.error is None:
            self._waiting += data
        self._push()

    def live(self, text: str) -> None:
        """Put a line in the place of the one before, if it can be written at once."""
        if not self._waiting and self.error is None:
            self._waiting += f"\r{text}\x1b[K".encode("utf-8", "backslashreplace")
        self._push()

    def finish(self) -> None:
        """Write what is left, and let go. May block."""
        while self._waiting and self.error is None:
            self._write(self._descriptor)
            if self._waiting and self.error is None:  # it doesn't block, because somebody else has set it so
                select.select([], [self._descriptor], [])
        if self._own != self._descriptor:
            os.close(self._own)
            self._own = self._descriptor

    def _push(self) -> None:
        before = -1
        while self._waiting and len(self._waiting) != before:
            before = len(self._waiting)
            self._write(self._own)

    def _write(self, descriptor: int) -> None:
        try:
            written = os.write(descriptor, self._waiting[:PIECE_BYTES])
        except BlockingIOError:
            return
        except OSError as error:
            self.error = error
            self._waiting.clear()
            return
        del self._waiting[:written]


def _opened_anew(descriptor: int) -> int:
    """Return a descriptor of the same pipe or terminal that doesn't block, or the same one."""
    with contextlib.suppress(OSError, AttributeError):  # closed; another user's terminal; Windows has no such names
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            return os.open(f"/dev/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return descriptor
