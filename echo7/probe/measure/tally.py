"""Counting: how often each outcome happened, and what depends on the order of the probes.

Law: `Tally` counts events as they happen. `InOrder` counts probes in the order of sending, each when all earlier probes
are settled, because bursts of loss and jitter aren't known before. Neither grows with time.
"""

from __future__ import annotations

import collections

from echo7.probe.measure.histogram import FINE_BITS, Histogram, Moments
from echo7.probe.measure.words import Event, Harm, Word

UNANSWERED = frozenset({Word.LATE, Word.LOST, Word.REFUSED, Word.UNREACHABLE})  # what loss consists of


class Probe:
    """One datagram, or one frame of a stream, that was sent."""

    __slots__ = ("deadline_ns", "flow", "rtt_ns", "sent_ns", "sequence", "size_bytes", "word")

    def __init__(self, flow: int, sequence: int, size_bytes: int, sent_ns: int, deadline_ns: int) -> None:
        self.word = Word.OUTSTANDING
        self.flow = flow
        self.sequence = sequence  # from 1, over all flows
        self.size_bytes = size_bytes
        self.sent_ns = sent_ns
        self.deadline_ns = deadline_ns  # when it counts as lost
        self.rtt_ns = 0  # of a reply


class Tally:
    """The outcomes of some probes: of all, of one flow, or of one size."""

    __slots__ = ("harms", "reordered", "rtts", "sent", "words")

    def __init__(self, bits: int = FINE_BITS) -> None:
        self.sent = 0
        self.words = dict.fromkeys(Word, 0)  # of probes and of stray datagrams
        self.harms = dict.fromkeys(Harm, 0)  # of all answers, duplicates included
        self.reordered = 0
        self.rtts = Histogram(bits)  # of replies, not of late answers

    def send(self) -> None:
        """Count a probe that was sent."""
        self.sent += 1
        self.words[Word.OUTSTANDING] += 1

    def count(self, event: Event, before: Word | None) -> None:
        """Count an event. `before`: the probe's outcome so far; None if the outcome doesn't change."""
        if before is not None:
            self.words[before] -= 1
        self.words[event.word] += 1
        self.reordered += event.reordered
        if event.damage is not None:
            self.harms[event.damage.kind] += 1
        if event.word is Word.REPLY and event.rtt_ns is not None:
            self.rtts.add(event.rtt_ns)

    @property
    def unanswered(self) -> int:
        """How many weren't answered in time."""
        return sum(self.words[word] for word in UNANSWERED)

    @property
    def decided(self) -> int:
        """How many were answered in time or lost: loss is a share of this."""
        return self.unanswered + self.words[Word.REPLY]


class InOrder:
    """Losses in a row and jitter, of probes in the order of sending."""

    __slots__ = ("_before", "_losses", "_waiting", "jitter", "longest_loss")

    def __init__(self) -> None:
        self.longest_loss = 0  # in a row
        self.jitter = Moments()  # |difference| of the round trips of neighbours of one size (RFC 3393)
        self._waiting: collections.deque[Probe] = collections.deque()  # from the oldest unsettled probe on
        self._losses = 0
        self._before: Probe | None = None  # the previous probe, if it was answered in time

    def send(self, probe: Probe) -> None:
        """Add the next probe."""
        self._waiting.append(probe)

    def settle(self) -> None:
        """Count the probes up to the first unsettled one."""
        while self._waiting and self._waiting[0].word is not Word.OUTSTANDING:
            self._look(self._waiting.popleft())

    def _look(self, probe: Probe) -> None:
        before, self._before = self._before, None
        if probe.word in UNANSWERED:
            self._losses += 1
            self.longest_loss = max(self.longest_loss, self._losses)
        elif probe.word is Word.REPLY:
            self._losses = 0
            self._before = probe
            if before is not None and before.size_bytes == probe.size_bytes:
                self.jitter.add(abs(probe.rtt_ns - before.rtt_ns))
