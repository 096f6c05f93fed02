"""One sender's share of the datagrams, while more come than can be answered. Pure policy: a batch in, reasons out.

All datagrams wait in one queue of the kernel. When one sender sends more than the server can answer, the queue fills:
every datagram waits for as long as a whole queue takes, and those that come while it is full are lost, whatever their
source. Reading a datagram costs less than answering it, so the queue gets shorter if fewer are answered.

Law: a batch that isn't full has emptied the queue, and all of it is answered. When batches have been full for longer
than MOST_WAIT_S, a sender gets at most SHARE answers in each, but only if another sender was seen in that state within
OTHERS_S. So others wait hardly longer than MOST_WAIT_S, and a burst from one client alone is answered completely.

A sender is an address with its port: on loopback, where no rate is set, all clients have one address. Datagrams that
come one by one are never shared: there, reading costs as much as answering.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping

from echo7.policy.reasons import Reason
from reactor.fastpath.datagrams import Batch
from reactor.limits import DATAGRAMS_PER_TURN

MOST_WAIT_S, OTHERS_S = 0.02, 1.0
SHARE = 8
# A plain string is hashed faster than an enum member.
RATE_SHARE = str(Reason.RATE_SHARE.value)


class Shares:
    """Watches one socket. `now` returns monotonic seconds."""

    __slots__ = ("_full_since_s", "_now", "_others_until_s")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        # when the present row of full batches began; infinity: the last batch wasn't full
        self._full_since_s = math.inf
        self._others_until_s = -math.inf

    def refusals(self, batch: Batch, count: int, refused: Mapping[int, str]) -> Mapping[int, str]:
        """Return `refused` with the datagrams above their senders' shares added."""
        if count < DATAGRAMS_PER_TURN:
            self._full_since_s = math.inf
            return refused
        now_s = self._now()
        if now_s < self._full_since_s:
            self._full_since_s = now_s
        if now_s - self._full_since_s <= MOST_WAIT_S:
            return refused
        senders = batch.senders(count)
        different = len(set(senders))
        if different > 1:
            self._others_until_s = now_s + OTHERS_S
        # With more different senders than this, none has more than its share.
        if different > count - SHARE or now_s >= self._others_until_s:
            return refused
        over: dict[int, str] = {}
        for sender, sent in Counter(senders).items():
            if sent > SHARE:
                places = [place for place, other in enumerate(senders) if other == sender]
                over |= dict.fromkeys(places[SHARE:], RATE_SHARE)
        return {**over, **refused}
