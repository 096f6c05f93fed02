"""SendBuffer: a FIFO of bytes with linear work."""

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from reactor.buffer import Bytes, SendBuffer

MOST_MOVES_PER_BYTE = 10  # CPython leaves an eighth of a bytearray's size to grow into: at most about nine copies


class QueueMachine(RuleBasedStateMachine):
    """Compare with a simple model: a `bytes` object rebuilt at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer, self.model = SendBuffer(), b""

    @rule(data=st.binary(max_size=300), kind=st.sampled_from([bytes, bytearray, memoryview]))
    def append(self, data: bytes, kind: type[Bytes]) -> None:
        self.buffer.append(kind(data))
        self.model += data

    @rule(share=st.floats(0, 1))
    def consume(self, share: float) -> None:
        count = int(share * len(self.model))
        self.buffer.consume(count)
        self.model = self.model[count:]

    @rule(excess=st.integers(1, 1 << 70))
    def consume_too_many(self, excess: int) -> None:
        with pytest.raises(ValueError, match="can't leave"):
            self.buffer.consume(len(self.model) + excess)

    @rule(count=st.integers(max_value=-1))
    def consume_less_than_nothing(self, count: int) -> None:
        with pytest.raises(ValueError, match="can't leave"):
            self.buffer.consume(count)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert bytes(self.buffer.peek()) == self.model
        assert len(self.buffer) == len(self.model)
        assert bool(self.buffer) == bool(self.model)


TestABufferIsAQueueOfBytes = QueueMachine.TestCase


@pytest.mark.parametrize("count", [-1, 4])
def test_consume_with_an_impossible_count_is_refused_and_removes_nothing(count: int) -> None:
    """Raise ValueError: bytes that were never pending can't have been sent."""
    buffer = SendBuffer()
    buffer.append(b"abc")
    with pytest.raises(ValueError, match="can't leave a buffer of 3"):
        buffer.consume(count)
    assert buffer.peek() == b"abc"


def test_cleared_buffer_has_nothing_pending() -> None:
    buffer = SendBuffer(b"abc")
    buffer.clear()
    assert not buffer
    assert buffer.peek() == b""


def test_memory_can_be_reused_after_append() -> None:
    """`append` adds a copy."""
    memory = bytearray(b"abc")
    buffer = SendBuffer()
    buffer.append(memory)
    buffer.append(memoryview(memory)[1:])
    memory[:] = b"xyz"
    assert buffer.peek() == b"abcbc"


class MoveCounter:
    """Counts the bytes that are moved or copied, from the address of a buffer's contents."""

    def __init__(self) -> None:
        self.buffer = SendBuffer()
        self.moved = self.appended = 0

    def address(self) -> int:
        pending = self.buffer.peek()
        return ctypes.addressof(ctypes.c_char.from_buffer(pending)) if pending else 0

    def append(self, data: bytes) -> None:
        before, held = self.address(), len(self.buffer)
        self.buffer.append(data)
        self.appended += len(data)
        if held and self.address() != before:
            self.moved += held

    def consume(self, count: int) -> None:
        before = self.address()
        self.buffer.consume(count)
        if self.buffer and self.address() != before + count:
            self.moved += len(self.buffer)

    def consume_all(self, piece: int) -> None:
        while self.buffer:
            self.consume(min(piece, len(self.buffer)))

    def assert_linear(self) -> None:
        assert self.moved <= MOST_MOVES_PER_BYTE * self.appended, f"{self.moved} moves for {self.appended} bytes"


def test_large_buffer_sent_in_small_pieces_moves_each_byte_about_once() -> None:
    """4 MiB leave in pieces of 64 bytes."""
    counter = MoveCounter()
    counter.append(bytes(4 << 20))
    counter.consume_all(64)
    assert counter.moved <= 2 * counter.appended


def test_large_buffer_filled_in_small_pieces_is_not_copied_each_time() -> None:
    """The same for `append`."""
    counter = MoveCounter()
    for _ in range(1 << 15):
        counter.append(bytes(32))
    counter.assert_linear()


@given(st.integers(1, 1 << 20), st.integers(1, 1 << 12), st.integers(1, 1 << 12), st.integers(1, 2_000))
def test_work_is_linear_for_any_mixture_of_pieces(held: int, piece_in: int, piece_out: int, rounds: int) -> None:
    """Pieces come and go while a large buffer is held; then everything leaves."""
    counter = MoveCounter()
    counter.append(bytes(held))
    for _ in range(rounds):
        counter.append(bytes(piece_in))
        counter.consume(min(piece_out, len(counter.buffer)))
    counter.consume_all(max(piece_out, len(counter.buffer) // 1_000))
    counter.assert_linear()
