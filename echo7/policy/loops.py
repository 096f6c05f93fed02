"""Finds two echo servers that send one datagram back and forth, and lets the loop run out. Pure policy.

The guard knows a responder by its port. On any other port, two echo servers look like a client and a server: one forged
datagram goes back and forth for ever. But a loop shows itself: one sender, an address with its port, repeats itself.

    about one datagram in 128 ─► seen before, from this sender? ─► eight more of those ─► silence of a second

In the silence nothing from that sender is answered, so every datagram of its loop has ended. What still comes in the
second half of the silence comes from a client that repeats itself. That client is spared for a minute.

Law: a loop ends after about a thousand datagrams for each that goes round, and a sender that doesn't repeat itself is
never silenced. A client that repeats itself all the time loses at most a second in a minute. Between samples, a batch
costs one subtraction. All tables have a fixed size. Loopback is exempt, because benchmarks repeat themselves there;
but ports of servers are not (`SERVER_PORTS`, and our own).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from echo7.policy.rate import is_loopback, plain_host
from echo7.policy.reasons import Reason
from reactor.fastpath.datagrams import Batch
from reactor.limits import DATAGRAMS_PER_TURN

K = TypeVar("K")
V = TypeVar("V")
# A sample after 65 to 192 datagrams: at most one in a batch, and no regular traffic can avoid it.
LEAST_GAP, GAPS = DATAGRAMS_PER_TURN + 1, 128
# A repeated sample raises a sender's score, any other lowers it by one.
REPEATED, SUSPECTED = 16, 128
SILENCE_S, SPARED_S = 1.0, 60.0
MOST_SAMPLES, MOST_SENDERS = 4096, 1024
# Below the ports that Linux gives to clients by default (ip_local_port_range).
SERVER_PORTS = range(1, 32_768)


class Silence:
    """How long one sender gets no answer, and when it was heard last."""

    __slots__ = ("heard_s", "until_s")

    def __init__(self, now_s: float) -> None:
        self.until_s, self.heard_s = now_s + SILENCE_S, now_s


class LoopWatch:
    """Watches the datagrams of one server. `now` returns monotonic seconds, `own_ports` are the server's."""

    __slots__ = ("_dice", "_left", "_now", "_own_ports", "_samples", "_scores", "_silences", "_spared_until_s")

    def __init__(self, now: Callable[[], float], own_ports: Iterable[int] = ()) -> None:
        self._now, self._own_ports = now, frozenset(own_ports)
        # the state of a small generator of random numbers, and how many datagrams are left until the next sample
        self._dice, self._left = 1, LEAST_GAP
        # hashes of sender and payload, the least recently seen first
        self._samples: OrderedDict[int, None] = OrderedDict()
        # of senders that repeat themselves
        self._scores: OrderedDict[bytes, int] = OrderedDict()
        # the first to end first
        self._silences: OrderedDict[bytes, Silence] = OrderedDict()
        self._spared_until_s: OrderedDict[bytes, float] = OrderedDict()

    def refusals(self, batch: Batch, count: int, refused: Mapping[int, str]) -> Mapping[int, str]:
        """Return `refused` with the datagrams of suspected loops added."""
        place = self._left - 1
        if place >= count and not self._silences:
            self._left -= count
            return refused
        silenced = self._silenced(batch, range(min(place + 1, count)))
        if place >= count:
            self._left -= count
        else:
            # the next sample is never in the same batch
            self._left += self._gap() - count
            if place not in refused and place not in silenced:
                self._sample(batch, place)
            silenced |= self._silenced(batch, range(place + 1, count))
        return {**silenced, **refused} if silenced else refused

    def _gap(self) -> int:
        # Numerical Recipes' generator; its high bits are the random ones
        self._dice = (self._dice * 1_664_525 + 1_013_904_223) & 0xFFFF_FFFF
        return LEAST_GAP + (self._dice >> 16) % GAPS

    def _silenced(self, batch: Batch, places: range) -> dict[int, Reason]:
        found: dict[int, Reason] = {}
        if self._silences:
            now_s = self._now()
            self._end_silences(now_s)
            for place in places:
                silence = self._silences.get(batch.sender(place))
                if silence is not None:
                    silence.heard_s = now_s
                    found[place] = Reason.SUSPECTED_LOOP
        return found

    def _sample(self, batch: Batch, index: int) -> None:
        sender = batch.sender(index)
        if self._is_exempt(sender):
            return
        sample = hash((sender, bytes(batch.payload(index))))
        is_repeated = sample in self._samples
        _put(self._samples, sample, None, MOST_SAMPLES)
        score = self._scores.pop(sender, 0) + (REPEATED if is_repeated else -1)
        if score >= SUSPECTED:
            now_s = self._now()
            if self._spared_until_s.get(sender, now_s) <= now_s:
                _put(self._silences, sender, Silence(now_s), MOST_SENDERS)
        elif score > 0:
            _put(self._scores, sender, score, MOST_SENDERS)

    def _is_exempt(self, sender: bytes) -> bool:
        if not is_loopback(plain_host(sender[2:])):
            return False
        port = int.from_bytes(sender[:2])
        return port not in SERVER_PORTS and port not in self._own_ports

    def _end_silences(self, now_s: float) -> None:
        while self._silences:
            sender, silence = next(iter(self._silences.items()))
            if silence.until_s > now_s:
                return
            del self._silences[sender]
            if silence.heard_s >= silence.until_s - SILENCE_S / 2:
                _put(self._spared_until_s, sender, now_s + SPARED_S, MOST_SENDERS)


def _put(table: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Make `key` the newest entry. Evict the oldest one if the table is full."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > most:
        table.popitem(last=False)
