"""One worker as its supervisor sees it: its sockets, its process, what it has reported, and whether it is in order.

Law: no worker is trusted. One that hangs, or breaks the protocol, is killed, and then replaced as any other that ends.
Silence is counted in the supervisor's own looks, one a second. So if the supervisor or the machine was stopped for an
hour, no worker is blamed for it.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable

from echo7.logs import log
from echo7.metrics.snapshot import Snapshot
from echo7.process.backoff import BackOff
from echo7.process.channel import Channel, Message
from echo7.process.child import Child
from echo7.sockets.binding import Bound
from reactor.timers import Timer

# Workers report once a second. After SILENT_LOOKS without a message one is unhealthy, after HUNG_LOOKS it is killed.
LOOK_INTERVAL_S = 1.0
SILENT_LOOKS, HUNG_LOOKS = 5, 10
# More than this between two looks is a flood: a report has a few kilobytes, and what waits in the kernel is bounded.
FLOOD_BYTES = 1 << 20
REPORTS_WAITING_BYTES = 64 * 1024
# how many bytes of orders may wait for a worker that doesn't read
ORDERS_WAITING_BYTES = 64 * 1024
# why a worker was killed: the values of the metric's label
SILENT, BROKEN, STOPPING = "silent", "broken", "stopping"

logger = logging.getLogger("echo7")


class Slot:
    """A place for one worker: its sockets, its history, and while `live`, a process. `killed` counts by reason."""

    def __init__(self, number: int, bound: Bound, now: Callable[[], float], killed: dict[str, int]) -> None:
        self.number, self.bound, self.backoff, self._counts = number, bound, BackOff(now), killed
        self.child: Child
        self.channel: Channel
        self.restart: Timer | None = None
        self.vacate()

    def __str__(self) -> str:
        """Name the process as the log does."""
        return f"worker {self.number} (pid {self.child.pid})"

    @property
    def fields(self) -> dict[str, int]:
        """Name the process as JSON does."""
        return {"worker": self.number, "pid": self.child.pid}

    def occupy(self, child: Child, channel: Channel) -> None:
        """Begin with a new process."""
        self.live, self.child, self.channel = True, child, channel

    def vacate(self) -> None:
        """Forget the process that was here."""
        # leaving: it drains, and will be replaced
        self.live = self._leaving = self._killed = False
        # its last report
        self.snapshot = Snapshot()
        # looks since its last message, and how much it had sent at the last look
        self._silent_looks = self._seen_bytes = 0

    def heard(self, message: Message) -> None:
        """Keep what a message says of it."""
        self._silent_looks = 0
        if message["say"] == "counters":
            self.snapshot, self._leaving = Snapshot.from_message(message["snapshot"]), message["leaving"] > 0
        elif self.backoff.ready:
            self.kill(BROKEN, "it has said twice that it is ready")

    @property
    def silent_s(self) -> float:
        """How long it has said nothing, as the supervisor has seen it."""
        return self._silent_looks * LOOK_INTERVAL_S

    @property
    def problem(self) -> str:
        """Why its clients aren't served now; empty if they are."""
        if not self.live or self._leaving or self._killed or not self.backoff.ready:
            return f"worker {self.number} doesn't serve"
        silent = self._silent_looks >= SILENT_LOOKS
        return f"worker {self.number} has been silent for {self.silent_s:g} s" if silent else ""

    def look(self, asked: int) -> None:
        """Kill the process if it hangs or breaks the rules. `asked`: the rounds of counters since the last look."""
        self._silent_looks += 1
        sent, self._seen_bytes = self.channel.received_bytes - self._seen_bytes, self.channel.received_bytes
        if self.child.exit_code is not None and self._silent_looks > 1:
            # it has ended, and a descendant of it holds the other end of the channel
            self.channel.abort()
        elif self._silent_looks >= HUNG_LOOKS:
            self.kill_if_silent()
        elif sent > FLOOD_BYTES * (1 + asked):
            self.kill(BROKEN, f"it has sent {sent} bytes in a second")
        elif self.channel.pending_bytes > ORDERS_WAITING_BYTES:
            self.kill(BROKEN, "it doesn't read its orders")

    def kill_if_silent(self) -> None:
        """Kill the process if it is unhealthy."""
        if self._silent_looks >= SILENT_LOOKS:
            self.kill(SILENT, f"it has been silent for {self.silent_s:g} s")

    def lost(self, why: str) -> None:
        """Note the end of the channel; `why` says which rule was broken."""
        if why:
            self.kill(BROKEN, why)
        self.child.stream_ended()

    def kill(self, reason: str, why: str) -> None:
        """Kill the process, once."""
        if self.child.exit_code is None and not self._killed:
            self._killed = True
            self._counts[reason] += 1
            worker = str(self)
            log.event(logger, logging.WARNING, "worker_killed", f"{worker} killed: {why}", reason=reason, **self.fields)
            self.child.send(signal.SIGKILL)
