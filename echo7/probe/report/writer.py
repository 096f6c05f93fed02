"""LineWriter: standard output that never delays a probe.

Law: while probes are sent, no write blocks. When the reader stops reading, lines are dropped and counted, and probes
are still sent on time. At the end the rest is written, which may block. After the first error of a write (no reader, a
full disk) nothing more is written.

A pipe or terminal is opened anew, because O_NONBLOCK on the inherited descriptor would affect every process that
shares it. (`reactor.console.output` prints one result and may block.)
"""

from __future__ import annotations

import contextlib
import os
import select
import stat

from reactor.console.commandline import fitted, takes_escapes

MOST_WAITING_BYTES = 1024 * 1024
PIECE_BYTES = 4096  # PIPE_BUF on Linux: up to this size, a pipe takes all or nothing (pipe(7))


class LineWriter:
    """Writes lines to one descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.dropped = 0  # lines that had no room
        self.error: OSError | None = None  # why nothing more is written
        self._descriptor = descriptor
        self._own = _opened_anew(descriptor)
        self._waiting = bytearray()

    @property
    def is_terminal(self) -> bool:
        """Whether the descriptor is a terminal."""
        return os.isatty(self._descriptor)

    @property
    def takes_escapes(self) -> bool:
        """Whether a line may be replaced by another."""
        return takes_escapes(self._descriptor)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes wait to be written."""
        return len(self._waiting)

    def line(self, text: str) -> None:
        """Write a line, or keep it until the descriptor takes it."""
        data = (text + "\n").encode("utf-8", "backslashreplace")
        if len(self._waiting) + len(data) > MOST_WAITING_BYTES:
            self.dropped += 1
        elif self.error is None:
            self._waiting += data
        self.push()

    def live(self, text: str) -> None:
        """Replace the last live line, if no earlier line waits."""
        if not self._waiting and self.error is None:
            row = fitted(text, self._descriptor)
            self._waiting += f"\r{row}\x1b[K".encode("utf-8", "backslashreplace")
        self.push()

    def push(self) -> None:
        """Write what the descriptor takes without blocking."""
        before = -1
        while self._waiting and len(self._waiting) != before:
            before = len(self._waiting)
            self._write(self._own)

    def finish(self) -> None:
        """Write the rest, and close our own descriptor. May block."""
        while self._waiting and self.error is None:
            self._write(self._descriptor)
            if self._waiting and self.error is None:
                # another process has set O_NONBLOCK on it
                select.select([], [self._descriptor], [])
        if self._own != self._descriptor:
            os.close(self._own)
            self._own = self._descriptor

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
    """Return a non-blocking descriptor of the same pipe or terminal, or else the same descriptor."""
    # it fails for a closed descriptor, for another user's terminal and on Windows
    with contextlib.suppress(OSError, AttributeError):
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            return os.open(f"/dev/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return descriptor
