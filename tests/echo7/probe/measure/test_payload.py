"""What a probe carries, and how an answer differs from it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from echo7.probe.measure.payload import (
    BITS_PER_WRONG_BIT,
    HEADER_BYTES,
    MOST_BYTES,
    SAMPLE_BYTES,
    SEQUENCES,
    Header,
    Payloads,
    compare,
    is_unlike,
)  # fmt: skip
from echo7.probe.measure.words import Damage, Harm

KEYS = st.integers(0, 2**32 - 1)
FLOWS = st.integers(0, 1023)
SEQUENCE_NUMBERS = st.integers(1, 2**40)
SIZES = st.integers(0, 2000) | st.integers(0, MOST_BYTES)
LARGE = st.integers(HEADER_BYTES, 2000)
PAYLOADS = Payloads(862)


@given(KEYS, FLOWS, SEQUENCE_NUMBERS, SIZES, st.integers(0, 100))
@example(0, 0, 1, 0, 0)
@example(0, 0, 1, MOST_BYTES, 100)
@example(0, 0, 1, 20, 18)
def test_payload_is_a_function_of_key_flow_sequence_and_size(
    key: int, flow: int, sequence: int, size: int, most: int
) -> None:
    """Law: "no payload is kept"; and the first bytes can be made alone."""
    payload = Payloads(key).make(flow, sequence, size)
    assert len(payload) == size
    assert payload == Payloads(key).make(flow, sequence, size)
    assert Payloads(key).make(flow, sequence, size, most) == payload[:most]


@given(KEYS, FLOWS, SEQUENCE_NUMBERS, LARGE)
def test_from_16_bytes_on_an_answer_names_its_probe(key: int, flow: int, sequence: int, size: int) -> None:
    payloads = Payloads(key)
    assert payloads.read(payloads.make(flow, sequence, size)) == Header(flow, size, sequence % SEQUENCES)


@given(FLOWS, SEQUENCE_NUMBERS, LARGE, st.integers(0, HEADER_BYTES * 8 - 1))
def test_header_with_a_wrong_bit_is_not_read(flow: int, sequence: int, size: int, bit: int) -> None:
    """A damaged sequence number must not be taken for another probe's."""
    payload = bytearray(PAYLOADS.make(flow, sequence, size))
    payload[bit // 8] ^= 1 << bit % 8
    assert PAYLOADS.read(bytes(payload)) is None


def test_header_of_another_run_is_not_read() -> None:
    assert PAYLOADS.read(Payloads(863).make(0, 1, 56)) is None
    assert PAYLOADS.read(PAYLOADS.make(0, 1, 56)[: HEADER_BYTES - 1]) is None
    assert PAYLOADS.read(b"") is None


@given(FLOWS, SEQUENCE_NUMBERS, st.integers(32, 2000))
def test_neighbours_carry_different_bytes(flow: int, sequence: int, size: int) -> None:
    """So bytes of one probe inside another are noticed."""
    one, other = (PAYLOADS.make(flow, number, size)[HEADER_BYTES:] for number in (sequence, sequence + 1))
    assert one != other
    assert PAYLOADS.make(flow + 1, sequence, size)[HEADER_BYTES:] != one


# ---------------------------------------------------------------- damage


@given(st.binary(min_size=1, max_size=300), st.data())
def test_wrong_byte_is_found_with_its_bits(expected: bytes, data: st.DataObject) -> None:
    """Issue: "*corrupted* (with the offset and the bits)"."""
    offset = data.draw(st.integers(0, len(expected) - 1))
    bits = data.draw(st.integers(1, 255))
    received = bytearray(expected)
    received[offset] ^= bits
    assert compare(bytes(received), expected) == Damage(Harm.CORRUPTED, offset, bits, bits.bit_count())


@given(st.binary(max_size=300), st.binary(max_size=300))
@example(b"", b"")
@example(b"abc", b"abc")
@example(b"ab", b"abc")
@example(b"abcd", b"abc")
@example(b"ax", b"abc")
def test_compare_agrees_with_a_byte_by_byte_loop(received: bytes, expected: bytes) -> None:
    damage = compare(received, expected)
    wrong = [at for at, (one, other) in enumerate(zip(received, expected, strict=False)) if one != other]
    if wrong:
        bits = sum((one ^ other).bit_count() for one, other in zip(received, expected, strict=False))
        assert damage == Damage(Harm.CORRUPTED, wrong[0], received[wrong[0]] ^ expected[wrong[0]], bits)
    elif len(received) == len(expected):
        assert damage is None
    else:
        kind = Harm.TRUNCATED if len(received) < len(expected) else Harm.LENGTHENED
        assert damage == Damage(kind, min(len(received), len(expected)), 0, 0)


def test_answer_with_more_than_one_wrong_bit_in_eight_is_unlike() -> None:
    assert not is_unlike(None, 0)
    assert not is_unlike(Damage(Harm.CORRUPTED, 0, 1, 56), 56)
    assert is_unlike(Damage(Harm.CORRUPTED, 0, 1, 57), 56)


# ---------------------------------------------------------------- the probe of a damaged answer


@given(st.integers(0, 2**32), st.integers(HEADER_BYTES * 8, 56 * 8), st.integers(0, HEADER_BYTES * 8 - 1))
def test_damaged_header_is_matched_by_the_fewest_wrong_bits(start: int, bit: int, header_bit: int) -> None:
    probes = [(start + number, 56) for number in range(50)]
    payload = bytearray(PAYLOADS.make(3, start + 20, 56))
    for wrong in {header_bit, min(bit, 56 * 8 - 1)}:
        payload[wrong // 8] ^= 1 << wrong % 8
    assert PAYLOADS.nearest(bytes(payload), 3, probes) == [start + 20]


@pytest.mark.parametrize("garbage", [bytes(56), b"\xff" * 56, b"GET / HTTP/1.0\r\n\r\n" * 3, bytes(range(56))])
def test_garbage_is_near_no_probe(garbage: bytes) -> None:
    assert PAYLOADS.nearest(garbage, 0, [(number, 56) for number in range(1, 100)]) == []


def test_tied_probes_are_all_named() -> None:
    """Ten bytes of an answer have no sequence number."""
    probes = [(1, 56), (2, 56), (3, 57)]
    assert PAYLOADS.nearest(PAYLOADS.make(0, 1, 56)[:10], 0, probes) == [1, 2]
    assert PAYLOADS.nearest(b"", 0, probes) == [1, 2, 3]
    assert PAYLOADS.nearest(b"", 0, []) == []


def test_only_the_start_is_compared_and_may_have_one_wrong_bit_in_eight() -> None:
    made = PAYLOADS.make(0, 1, 1000)
    tail = bytes(byte ^ 0xFF for byte in made[SAMPLE_BYTES:])
    most = SAMPLE_BYTES * 8 // BITS_PER_WRONG_BIT
    for wrong, found in ((most, [1]), (most + 8, [])):
        start = bytes(byte ^ (0xFF if at < wrong // 8 else 0) for at, byte in enumerate(made[:SAMPLE_BYTES]))
        assert PAYLOADS.nearest(start + tail, 0, [(1, 1000)]) == found
