"""The payload of a probe, and how an answer differs from it. Bytes in, bytes and differences out.

    key (4)  flow (2)  size (2)  sequence (4)  CRC-32 of those (4)  fill …

Law: a payload is a function of (key of the run, flow, sequence, size), so no payload is kept: it is made again to
compare an answer with it. The fill is a slice of one pseudo-random block, from a different offset for each sequence
number, so that bytes of one probe inside another are noticed.

Below 16 bytes there is no room for the header, only fill: an answer doesn't say which probe it belongs to.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from echo7.probe.measure.words import Damage, Harm

HEADER = struct.Struct("!IHHI")
HEADER_BYTES = 16  # with the checksum
MOST_BYTES = 65_535  # the header has two bytes for the size
BLOCK_BYTES = 65_536
SEQUENCE_STRIDE, FLOW_STRIDE = 40_503, 25_033  # odd, so that every offset is used before one repeats
SEQUENCES = 1 << 32  # the header has room for 32 bits
SAMPLE_BYTES = 64  # compared to find the probe of a damaged answer
MOST_CANDIDATES = 256  # compared with one damaged answer, so that garbage costs little time
BITS_PER_WRONG_BIT = 8  # an answer has at most one wrong bit in so many


class Header(NamedTuple):
    """What an intact header says about an answer."""

    flow: int
    size_bytes: int
    low_sequence: int  # modulo 2³²


class Payloads:
    """The payloads of one run."""

    def __init__(self, key: int) -> None:
        self._key = key  # 32 bits, different for each run
        block = hashlib.shake_128(key.to_bytes(4, "big")).digest(BLOCK_BYTES)
        self._block = block + block  # fill from any offset is one slice

    def make(self, flow: int, sequence: int, size_bytes: int, most_bytes: int = MOST_BYTES) -> bytes:
        """Return a probe's payload, or its first `most_bytes`."""
        wanted = min(size_bytes, most_bytes)
        start = (sequence * SEQUENCE_STRIDE + flow * FLOW_STRIDE) % BLOCK_BYTES
        if size_bytes < HEADER_BYTES:
            return self._block[start : start + wanted]
        fields = HEADER.pack(self._key, flow, size_bytes, sequence % SEQUENCES)
        header = fields + zlib.crc32(fields).to_bytes(4, "big")
        if wanted <= HEADER_BYTES:
            return header[:wanted]
        return header + self._block[start : start + wanted - HEADER_BYTES]

    def read(self, data: bytes) -> Header | None:
        """Return an intact header of this run, else None."""
        if len(data) < HEADER_BYTES:
            return None
        fields, checksum = data[: HEADER.size], data[HEADER.size : HEADER_BYTES]
        key, flow, size_bytes, low_sequence = HEADER.unpack(fields)
        if key != self._key or zlib.crc32(fields).to_bytes(4, "big") != checksum:
            return None
        return Header(flow, size_bytes, low_sequence)

    def nearest(self, data: bytes, flow: int, probes: Iterable[tuple[int, int]]) -> list[int]:
        """Find the probe of an answer with a damaged header, among (sequence, size) pairs.

        Return the sequence numbers with the fewest wrong bits: none if `data` is unlike all, several if they tie.
        """
        found: list[int] = []
        fewest = min(len(data), SAMPLE_BYTES) * 8 // BITS_PER_WRONG_BIT
        for sequence, size_bytes in probes:
            expected = self.make(flow, sequence, size_bytes, SAMPLE_BYTES)
            common = min(len(data), len(expected))
            wrong = _difference(data, expected, common).bit_count()
            if wrong * BITS_PER_WRONG_BIT > common * 8 or wrong > fewest:
                continue
            found = [*found, sequence] if found and wrong == fewest else [sequence]
            fewest = wrong
        return found


def compare(received: bytes, expected: bytes) -> Damage | None:
    """Return how an answer differs from its probe; None if it doesn't."""
    if received == expected:
        return None
    common = min(len(received), len(expected))
    difference = _difference(received, expected, common)
    if difference:
        offset = common - (difference.bit_length() + 7) // 8
        return Damage(Harm.CORRUPTED, offset, received[offset] ^ expected[offset], difference.bit_count())
    return Damage(Harm.TRUNCATED if len(received) < len(expected) else Harm.LENGTHENED, common, 0, 0)


def is_unlike(damage: Damage | None, size_bytes: int) -> bool:
    """Whether too many bits are wrong for an answer to the probe."""
    return damage is not None and damage.bits_wrong * BITS_PER_WRONG_BIT > size_bytes * 8


def _difference(one: bytes, other: bytes, common: int) -> int:
    return int.from_bytes(one[:common], "big") ^ int.from_bytes(other[:common], "big")
