"""SendBuffer: bytes that the kernel hasn't taken yet.

Law: a byte leaves only by `consume`, after the kernel has taken it; the work is linear in the bytes, because CPython
deletes the front of a bytearray by moving its start (`tests/reactor/test_buffer.py`).
"""

Bytes = bytes | bytearray | memoryview  # what may be written; a memoryview must be of single bytes


class SendBuffer:
    """A FIFO of bytes waiting to be sent. It has no limit; `Connection` stops reading above its high-water mark."""

    __slots__ = ("_pending",)

    def __init__(self, pending: Bytes = b"") -> None:
        self._pending = bytearray(pending)

    def __len__(self) -> int:
        """The number of bytes still to be sent."""
        return len(self._pending)

    def append(self, data: Bytes, start: int = 0) -> None:
        """Add a copy of `data` from byte `start` on."""
        self._pending += memoryview(data)[start:]

    def peek(self) -> bytearray:
        """Return all that is pending, for `send`. It is not a copy: neither keep nor change it."""
        return self._pending

    def clear(self) -> None:
        """Forget everything: it won't be sent."""
        self._pending.clear()

    def consume(self, count: int) -> None:
        """Forget the first `count` bytes: the kernel has them. Raise ValueError for more than there are."""
        if not 0 <= count <= len(self._pending):
            raise ValueError(f"{count} bytes can't leave a buffer of {len(self._pending)}")
        del self._pending[:count]


class SharedEmptyBuffer(SendBuffer):
    """Shared by all connections that have nothing pending. It takes no byte, which would reach the wrong peer."""

    __slots__ = ()
    append = None  # type: ignore[assignment]  # a call raises TypeError
