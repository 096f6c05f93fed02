"""How long a datagram waits for room in the kernel's send buffer. One policy for `Datagram` and `DatagramBatch`.

Law: usually the buffer is full for milliseconds, and waiting loses nothing. But packets to a neighbour that doesn't
answer ARP stay in it for seconds, and forged sources can fill it. So a wait takes at most SEND_HOLD_S. For CONGESTED_S
after that, a datagram without room is dropped at once, and all others are answered.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from reactor.limits import CONGESTED_S, SEND_HOLD_S
from reactor.timers import Timer


class Congestion:
    """The waits of one endpoint. `retry()` is called when one has taken too long: then nothing waits any more."""

    __slots__ = ("_call_later", "_now", "_retry", "_timer", "_until_s")

    def __init__(self, now: Callable[[], float], call_later: Callable[..., Timer], retry: Callable[[], object]) -> None:
        self._now, self._call_later, self._retry = now, call_later, retry
        self._timer: Timer | None = None
        self._until_s = -math.inf

    def waits(self) -> bool:
        """Tell whether a datagram for which there is no room may wait. If not, it must be dropped."""
        if self._now() < self._until_s:
            return False
        if self._timer is None:
            self._timer = self._call_later(SEND_HOLD_S, self._give_up)
        return True

    def is_over(self) -> None:
        """End the wait: there is room, or the endpoint has closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        self._until_s = self._now() + CONGESTED_S
        self._retry()
