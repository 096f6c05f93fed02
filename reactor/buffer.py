"""SendBuffer: bytes that the kernel hasn't taken yet.

Law: a byte leaves only by `consume`, after the kernel has taken it. The work is linear in the bytes, because CPython
deletes the front of a bytearray by moving its start.
"""

Bytes = bytes | bytearray | memoryview  # what may be written; a memoryview must have single-byte items


class SendBuffer:
    """A FIFO of bytes waiting to be sent. It has no limit; `Connection` stops reading above its high-water mark."""

    __slots__ = ("_pending",)

    def __init__(self, pending: Bytes = b"") -> None:
        self._pending = bytearray(pending)

    def __len__(self) -> int:
        """The number of bytes still to be sent."""
        return len(self._pending)

    def append(self, data: Bytes, start: int = 0) -> None:
        """Add a copy of `data[start:]`."""
        self._pending += memoryview(data)[start:]

    def peek(self) -> bytearray:
        """Return all pending bytes, for `send`. It isn't a copy: don't keep or change it."""
        return self._pending

    def clear(self) -> None:
        """Drop all pending bytes."""
        self._pending.clear()

    def consume(self, count: int) -> None:
        """Remove the first `count` bytes, which the kernel has taken. Raise ValueError if there are fewer."""
        if not 0 <= count <= len(self._pending):
            raise ValueError(f"{count} bytes can't leave a buffer of {len(self._pending)}")
        del self._pending[:count]
