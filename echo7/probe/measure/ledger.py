"""Ledger: the outcome of each probe. Payloads, times and errors in, events and counts out.

    send ─► OUTSTANDING ─► REPLY        its answer came in time
                       ├─► LOST         no answer in time, or the connection was lost   ─► LATE, if an answer comes
                       ├─► REFUSED, UNREACHABLE, TOO_BIG      an error came             ─► LATE, if an answer comes
                       └─► UNKNOWN      below 16 bytes: an answer came, perhaps to an earlier probe

Laws. Each received datagram makes one event, and each probe has one outcome at any moment. "In time" is measured by the
round trip (RFC 2681), not by when the loop read the answer. An answer is reordered if a later probe of its flow was
answered before (RFC 4737). Only the last 65,536 probes are remembered, so memory is bounded.

Below 16 bytes a flow has one outstanding probe. If an earlier probe with the same bytes was lost recently, its answer
may still come, and nothing tells the two answers apart: such an answer counts as unknown.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence

from echo7.probe.measure.histogram import COARSE_BITS
from echo7.probe.measure.payload import HEADER_BYTES, MOST_CANDIDATES, SEQUENCES, Header, Payloads, compare, is_unlike
from echo7.probe.measure.tally import InOrder, Probe, Tally
from echo7.probe.measure.words import Damage, Event, Word

REMEMBERED = 65_536
SUSPECT_TIMEOUTS = 3  # how long the answer to a lost probe may still come
TIMED_OUT = "timed out"
NO_PROBE = "it answers no probe of this run"
UNTELLABLE = "below 16 bytes an answer doesn't say which probe it belongs to"
FORGOTTEN = "it answers a forgotten probe"
UNEXPLAINED = frozenset({Word.OUTSTANDING, Word.LOST})  # outcomes that an error may still explain
GIVEN_UP = frozenset({Word.LOST, Word.REFUSED, Word.UNREACHABLE, Word.TOO_BIG})


class FlowBook:
    """The state of one flow."""

    __slots__ = ("highest", "in_order", "outstanding", "small", "suspect", "tally")

    def __init__(self) -> None:
        self.tally = Tally(COARSE_BITS)
        self.in_order = InOrder()
        self.outstanding: dict[int, Probe] = {}  # by sequence number, oldest first
        self.highest = 0  # the last sequence number that was answered
        self.small = False  # whether a probe had less than 16 bytes
        self.suspect: Probe | None = None  # the last small probe that was lost


class Ledger:
    """All probes of one run."""

    def __init__(
        self, payloads: Payloads, flows: int, sizes: Sequence[int], timeout_ns: int, stream: bool = False
    ) -> None:
        self.next_sequence = 1
        self.origin_ns = 0  # when the run started
        self._stream = stream  # the place of a frame says which probe it answers
        self.total = Tally()
        self.in_order = InOrder()
        self.flows = [FlowBook() for _ in range(flows)]
        self.sizes = {size_bytes: Tally(COARSE_BITS) for size_bytes in sizes}
        self._payloads = payloads
        self._timeout_ns = timeout_ns
        self._ring: list[Probe | None] = [None] * REMEMBERED  # by sequence number modulo its length
        self._timing: collections.deque[Probe] = collections.deque()  # outstanding and settled probes, by deadline

    @property
    def outstanding(self) -> int:
        """How many probes may still be answered in time."""
        return self.total.words[Word.OUTSTANDING]

    def has_room(self, flow: int, size_bytes: int) -> bool:
        """Whether a probe may be sent: below 16 bytes it must be alone on its flow, and memory is bounded."""
        book = self.flows[flow]
        first = next(iter(book.outstanding.values()), None)
        if first is not None and min(size_bytes, first.size_bytes) < HEADER_BYTES and not self._stream:
            return False
        oldest = self._ring[self.next_sequence % REMEMBERED]
        return oldest is None or oldest.word is not Word.OUTSTANDING

    # ------------------------------------------------------------ sending

    def send(self, flow: int, size_bytes: int, sent_ns: int) -> Probe:
        """Add a probe that was sent, or that waits for a connection."""
        probe = Probe(flow, self.next_sequence, size_bytes, sent_ns, sent_ns + self._timeout_ns)
        self._ring[probe.sequence % REMEMBERED] = probe
        self.next_sequence += 1
        book = self.flows[flow]
        book.outstanding[probe.sequence] = probe
        book.small = book.small or size_bytes < HEADER_BYTES
        for tally in self._tallies(probe):
            tally.send()
        self.in_order.send(probe)
        book.in_order.send(probe)
        self._timing.append(probe)
        # drops settled probes
        self.next_deadline_ns()
        return probe

    def sent_later(self, sequence: int, sent_ns: int) -> Probe | None:
        """Set the time of sending of a probe that waited for a connection. Return None if the probe is settled."""
        probe = self._remembered(sequence)
        if probe is None or probe.word is not Word.OUTSTANDING:
            return None
        probe.sent_ns = sent_ns
        return probe

    # ------------------------------------------------------------ receiving

    def arrived(self, flow: int, data: bytes, at_ns: int, queued_ns: int = 0) -> Event:
        """Find the probe that a datagram answers, and settle it.

        `queued_ns`: how long the datagram waited in the kernel, from its wall-clock stamp; ignored if impossible.
        """
        header = self._payloads.read(data)
        if header is not None:
            return self._with_header(flow, header, data, at_ns, queued_ns)
        book = self.flows[flow]
        oldest = next(iter(book.outstanding.values()), None)
        if oldest is not None and oldest.size_bytes < HEADER_BYTES:
            return self._small(book, oldest, data, at_ns, queued_ns)
        if oldest is None:
            return self._stray(flow, data, *((Word.UNKNOWN, UNTELLABLE) if book.small else (Word.FOREIGN, NO_PROBE)))
        latest = itertools.islice(reversed(book.outstanding.values()), MOST_CANDIDATES)
        nearest = self._payloads.nearest(data, flow, ((probe.sequence, probe.size_bytes) for probe in latest))
        if len(nearest) > 1:
            return self._stray(flow, data, Word.UNKNOWN, "damaged, and equally like several probes")
        if not nearest:
            return self._stray(flow, data, Word.FOREIGN, NO_PROBE)
        probe = book.outstanding[nearest[0]]
        return self._answered(probe, data, compare(data, self._made(probe)), at_ns, queued_ns)

    def frame(self, sequence: int, flow: int, data: bytes, at_ns: int) -> Event:
        """Compare the bytes in this probe's place in a stream, and settle it."""
        probe = self._remembered(sequence)
        if probe is None:
            return self._stray(flow, data, Word.UNKNOWN, FORGOTTEN)
        damage = compare(data, self._made(probe))
        if is_unlike(damage, probe.size_bytes):
            return self._stray(flow, data, Word.FOREIGN, NO_PROBE)
        return self._answered(probe, data, damage, at_ns, 0)

    def foreign(self, flow: int, data: bytes) -> Event:
        """Count bytes that came when no probe was outstanding."""
        return self._stray(flow, data, Word.FOREIGN, NO_PROBE)

    def failed(self, probe: Probe, word: Word, reason: str) -> Event:
        """Settle a probe without an answer, for this reason."""
        before = probe.word
        event = self._event(word, probe, reason)
        self._settle(probe, event, before)
        if word is Word.LOST and probe.size_bytes < HEADER_BYTES:
            self.flows[probe.flow].suspect = probe
        return event

    # ------------------------------------------------------------ time-outs and errors

    def next_deadline_ns(self) -> int | None:
        """Return the deadline of the next outstanding probe, or None."""
        timing = self._timing
        while timing and timing[0].word is not Word.OUTSTANDING:
            timing.popleft()
        return timing[0].deadline_ns if timing else None

    def expired(self, now_ns: int) -> Iterator[Event]:
        """Settle the probes with deadlines in the past as lost, and yield their events."""
        while (deadline_ns := self.next_deadline_ns()) is not None and deadline_ns <= now_ns:
            yield self.failed(self._timing[0], Word.LOST, TIMED_OUT)

    def probe_of_error(self, flow: int, data: bytes = b"") -> Probe | None:
        """Return the probe of an error: the one quoted in `data`, or else the oldest outstanding one.

        It may have timed out already, because routers can take longer to report an error.
        """
        header = self._payloads.read(data)
        if header is not None:
            named = self._remembered(self._full_sequence(header.low_sequence))
            return named if named is not None and named.flow == flow and named.word in UNEXPLAINED else None
        for probe in self.flows[flow].outstanding.values():
            return probe
        for back in range(1, min(self.next_sequence, MOST_CANDIDATES)):
            latest = self._remembered(self.next_sequence - back)
            if latest is not None and latest.flow == flow:
                return latest if latest.word is Word.LOST else None
        return None

    def larger_than(self, flow: int, size_bytes: int) -> list[Probe]:
        """Return the outstanding probes of a flow with more than `size_bytes`."""
        return [probe for probe in self.flows[flow].outstanding.values() if probe.size_bytes > size_bytes]

    def outstanding_of(self, flow: int, sequences: Iterable[int]) -> list[Probe]:
        """Return the outstanding ones of these probes."""
        outstanding = self.flows[flow].outstanding
        return [outstanding[sequence] for sequence in sequences if sequence in outstanding]

    # ------------------------------------------------------------ book-keeping

    def _with_header(self, flow: int, header: Header, data: bytes, at_ns: int, queued_ns: int) -> Event:
        sequence = self._full_sequence(header.low_sequence)
        probe = self._remembered(sequence)
        if probe is None and 0 < sequence < self.next_sequence and header.flow == flow:
            return self._stray(flow, data, Word.UNKNOWN, FORGOTTEN)
        if probe is None or (probe.flow, probe.size_bytes) != (flow, header.size_bytes) or header.flow != flow:
            return self._stray(flow, data, Word.FOREIGN, NO_PROBE)
        return self._answered(probe, data, compare(data, self._made(probe)), at_ns, queued_ns)

    def _small(self, book: FlowBook, probe: Probe, data: bytes, at_ns: int, queued_ns: int) -> Event:
        made, suspect = self._made(probe), book.suspect
        if data != made:
            return self._stray(probe.flow, data, Word.UNKNOWN, UNTELLABLE)
        if suspect is not None and self._made(suspect) == made:
            if at_ns - suspect.sent_ns < SUSPECT_TIMEOUTS * self._timeout_ns:
                event = self._event(Word.UNKNOWN, probe, UNTELLABLE)._replace(received_bytes=len(data))
                self._settle(probe, event, Word.OUTSTANDING)
                return event
            book.suspect = None
        return self._answered(probe, data, None, at_ns, queued_ns)

    def _answered(self, probe: Probe, data: bytes, damage: Damage | None, at_ns: int, queued_ns: int) -> Event:
        rtt_ns = max(0, at_ns - probe.sent_ns)
        if 0 <= queued_ns <= rtt_ns:
            rtt_ns -= queued_ns
        before: Word | None = probe.word
        word, reordered, book = Word.DUPLICATE, False, self.flows[probe.flow]
        if before in GIVEN_UP or (before is Word.OUTSTANDING and rtt_ns > self._timeout_ns):
            word = Word.LATE
        elif before is Word.OUTSTANDING:
            word, reordered = Word.REPLY, probe.sequence < book.highest
            probe.rtt_ns = rtt_ns
            book.highest = max(book.highest, probe.sequence)
        event = self._event(word, probe)._replace(
            received_bytes=len(data), rtt_ns=rtt_ns, reordered=reordered, damage=damage
        )
        self._settle(probe, event, None if word is Word.DUPLICATE else before)
        return event

    def _event(self, word: Word, probe: Probe, reason: str = "") -> Event:
        sent_ns = probe.sent_ns - self.origin_ns
        return Event(word, probe.flow, probe.sequence, probe.size_bytes, reason=reason, sent_ns=sent_ns)

    def _settle(self, probe: Probe, event: Event, before: Word | None) -> None:
        for tally in self._tallies(probe):
            tally.count(event, before)
        if before is None:
            return
        probe.word = event.word
        book = self.flows[probe.flow]
        book.outstanding.pop(probe.sequence, None)
        self.in_order.settle()
        book.in_order.settle()

    def _stray(self, flow: int, data: bytes, word: Word, reason: str) -> Event:
        event = Event(word, flow, received_bytes=len(data), reason=reason)
        for tally in (self.total, self.flows[flow].tally):
            tally.count(event, None)
        return event

    def _tallies(self, probe: Probe) -> tuple[Tally, Tally, Tally]:
        return self.total, self.flows[probe.flow].tally, self.sizes[probe.size_bytes]

    def _made(self, probe: Probe) -> bytes:
        return self._payloads.make(probe.flow, probe.sequence, probe.size_bytes)

    def _remembered(self, sequence: int) -> Probe | None:
        probe = self._ring[sequence % REMEMBERED]
        return probe if probe is not None and probe.sequence == sequence else None

    def _full_sequence(self, low_sequence: int) -> int:
        """Return the last sequence number so far with these lower 32 bits; it may be below 1."""
        last = self.next_sequence - 1
        return last - (last - low_sequence) % SEQUENCES
