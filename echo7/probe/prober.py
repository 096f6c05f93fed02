"""Prober: one run, from the first probe to the last answer, on any loop.

    timer ─► probe n is due ─► flow.send ─► Ledger ◄─ what comes back, errors, time-outs
                                              │
                                              └─► told(event), one by one; ended() at the end

Laws. Probe n is due at start + n × interval and never waits for an answer: waiting would hide the slow moments
("coordinated omission"). When the loop is late, due probes are sent at once, their round trips count from the sending,
and the lag is reported. With an interval of 0, each flow keeps a window of 64 probes instead. A turn sends and settles
a bounded number of probes. A run with a count ends with any server.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import time
from collections.abc import Callable, Sequence

from echo7.probe.datagram import DatagramFlow, can_forbid_fragments
from echo7.probe.measure.histogram import Moments
from echo7.probe.measure.ledger import TIMED_OUT, Ledger
from echo7.probe.measure.payload import HEADER_BYTES, Payloads
from echo7.probe.measure.tally import Probe
from echo7.probe.measure.words import Event, Word
from echo7.probe.plan import NS_PER_S, Plan, checked
from echo7.probe.roles import Flow
from echo7.probe.stream import StreamFlow
from reactor.loop import Reactor
from reactor.sockets.addresses import Address, family_of
from reactor.sockets.errors import errno_name, os_error
from reactor.timers import Timer

PROBES_PER_TURN = 64
TIMEOUTS_PER_TURN = 1024
WINDOW = 64  # outstanding probes of a flow, with an interval of 0
FLOOD_PAUSE_NS = 10_000_000  # after an error, to spare a server that refuses
EARLY_NS = 1000  # timers are floats of seconds, exact to a microsecond
HEADERS_BYTES = {socket.AF_INET: 28, socket.AF_INET6: 48}  # of IP and UDP
NOT_SENT = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ENOBUFS, errno.ENOMEM})
NOTHING_LISTENS = "nothing listens on that port"
UNREACHABLE_NAMES = (
    "ENETUNREACH EHOSTUNREACH ENETDOWN EHOSTDOWN ENETRESET ENONET EACCES EPERM EADDRNOTAVAIL EAFNOSUPPORT EINVAL "
    "ENOPROTOOPT EPROTO"
)
UNREACHABLE = frozenset(getattr(errno, name) for name in UNREACHABLE_NAMES.split() if hasattr(errno, name))
MAKES_NO_ROOM = frozenset({Word.LATE, Word.DUPLICATE, Word.FOREIGN})  # these settle no outstanding probe
BUSY, MISSED = "busy", "missed"  # reasons to skip a slot, beside NOT_SENT


class CannotProbe(Exception):
    """Why no probe can be sent and what to do, in one line. `unreachable`: there is no route to the target."""

    def __init__(self, message: str, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable


class Prober:
    """A run (see `roles.Run`). Calls `told` with each Event and `ended` once, never one inside the other.

    `key` marks this run's datagrams. Clocks are in nanoseconds; `clock_ns` must be the loop's own.
    """

    def __init__(
        self,
        reactor: Reactor,
        address: Address,
        plan: Plan,
        *,
        told: Callable[[Event], object] = lambda event: None,
        ended: Callable[[], object] = lambda: None,
        key: int | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.address, self.plan = address, checked(plan)
        self._reactor, self._told, self._ended = reactor, told, ended
        self._clock_ns, self._wall_ns = clock_ns, wall_ns
        self._payloads = Payloads(int.from_bytes(os.urandom(4), "big") if key is None else key)
        self.ledger = Ledger(self._payloads, plan.flows, plan.sizes, plan.timeout_ns, plan.tcp)
        self.flows: list[Flow] = []
        self.lag = Moments()  # how late probes were sent
        self.skipped: dict[str, int] = {}  # slots without a probe, by reason
        self.path_mtu_bytes: int | None = None  # from the kernel
        self._left = plan.probes  # probes still to send; None: no end
        self._flood = plan.interval_ns == 0
        self._hurt = False  # an error came during a flood
        self._slot = 0
        self._turns = [0] * plan.flows  # the index of each flow in the sizes
        self._started_ns = self._ended_ns = 0
        self.started_unix_ns = 0  # by the wall clock
        self._timer: Timer | None = None  # for the next probe
        self._expiry: Timer | None = None  # for the next time-out

    # ------------------------------------------------------------ from start to end

    def start(self) -> None:
        """Open every flow and start. Raise CannotProbe, and leave nothing open."""
        try:
            for index in range(self.plan.flows):
                self.flows.append(self._new_flow(index))
        except OSError as error:
            self._close()
            raise self._explained(error, len(self.flows)) from None
        self._started_ns = self.ledger.origin_ns = self._clock_ns()
        self.started_unix_ns = self._wall_ns()
        self._again(0)

    def stop(self) -> None:
        """End now. Outstanding probes count neither as answered nor as lost."""
        if not self._ended_ns:
            self._ended_ns = self._clock_ns()
            self._left = 0
            for timer in (self._timer, self._expiry):
                if timer is not None:
                    timer.cancel()
            self._reactor.call_soon(self._finish)

    @property
    def duration_ns(self) -> int:
        """How long the run has taken so far."""
        return (self._ended_ns or self._clock_ns()) - self._started_ns

    def _finish(self) -> None:
        if self.plan.df:
            self._ask_path_mtu(0)
        self._close()
        self._ended()

    def _close(self) -> None:
        for flow in self.flows:
            flow.close()

    def _new_flow(self, index: int) -> Flow:
        plan = self.plan
        port = plan.source_port + index if plan.source_port else 0
        if plan.tcp:
            timeout_s = plan.timeout_ns / NS_PER_S
            return StreamFlow(
                self._reactor, self.address, self, index, source_port=port, timeout_s=timeout_s, clock_ns=self._clock_ns
            )  # fmt: skip
        if plan.df and not can_forbid_fragments(family_of(self.address)):
            raise CannotProbe("this system can't forbid fragments; leave out --df")
        return DatagramFlow(
            self._reactor, self.address, self, index,
            source_port=port, df=plan.df, clock_ns=self._clock_ns, wall_ns=self._wall_ns,
        )  # fmt: skip

    def _explained(self, error: OSError, index: int) -> CannotProbe:
        if error.errno in UNREACHABLE and error.errno != errno.EACCES:
            message = f"{self.address[0]} is unreachable: {error.strerror}; try the other version of IP"
            return CannotProbe(message, unreachable=True)
        if self.plan.source_port:
            where = f"cannot send from {self.plan.transport} port {self.plan.source_port + index}"
            return CannotProbe(f"{where}: {error.strerror}; choose another source port")
        return CannotProbe(f"cannot open a socket: {error.strerror}; raise 'ulimit -n', or take fewer flows")

    # ------------------------------------------------------------ sending

    def _again(self, delay_ns: int) -> None:
        """Call `_tick` after a delay, unless an earlier call is scheduled."""
        deadline_s = self._reactor.now() + max(0, delay_ns) / NS_PER_S
        if self._timer is not None:
            if self._timer.deadline_s <= deadline_s:
                return
            self._timer.cancel()
        self._timer = self._reactor.call_at(deadline_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._flood:
            self._fill_windows()
        else:
            self._catch_up()
        self._expect()
        self._end_if_settled()

    def _catch_up(self) -> None:
        """Send due probes, at most a turn's share; skip those due longer ago than a time-out."""
        interval_ns = self.plan.interval_ns
        late_ns = self._clock_ns() - self._due_ns - self.plan.timeout_ns
        if late_ns > 0:
            # the process was stopped, or the machine slept
            missed = late_ns // interval_ns + 1
            self._slot += missed
            self._skip(MISSED, missed)
        for _ in range(PROBES_PER_TURN):
            due_ns = self._due_ns
            if self._left == 0 or due_ns - EARLY_NS > self._clock_ns():
                break
            sent_ns = self._probe(self._slot % self.plan.flows)
            self._slot += 1
            if sent_ns is not None:
                self.lag.add(max(0, sent_ns - due_ns))
        if self._left != 0:
            self._again(self._due_ns - self._clock_ns())

    @property
    def _due_ns(self) -> int:
        return self._started_ns + self._slot * self.plan.interval_ns

    def _fill_windows(self) -> None:
        """Send until every flow's window is full, an error comes, or the turn's share is used up."""
        window = WINDOW if self.plan.tcp or min(self.plan.sizes) >= HEADER_BYTES else 1
        sent = full = 0
        while sent < PROBES_PER_TURN and full < self.plan.flows and self._left != 0 and not self._hurt:
            index = self._slot % self.plan.flows
            self._slot += 1
            has_sent = len(self.ledger.flows[index].outstanding) < window and self._probe(index) is not None
            sent, full = (sent + 1, 0) if has_sent else (sent, full + 1)
        if self._hurt or not self.ledger.outstanding:
            self._hurt = False
            self._again(FLOOD_PAUSE_NS)
        elif sent == PROBES_PER_TURN:
            self._again(0)

    def _probe(self, index: int) -> int | None:
        """Send one probe on a flow. Return the time in ns, None if nothing was sent."""
        flow, ledger, sizes = self.flows[index], self.ledger, self.plan.sizes
        size_bytes = sizes[self._turns[index] % len(sizes)]
        if not (ledger.has_room(index, size_bytes) and flow.has_room()):
            self._skip(BUSY)
            self._use_up(bool(ledger.flows[index].outstanding))
            return None
        sequence = ledger.next_sequence
        code, sent_ns = flow.send(sequence, self._payloads.make(index, sequence, size_bytes))
        self._use_up(False)
        if code in NOT_SENT:
            self._skip(errno_name(os_error(code)))
            return None
        self._turns[index] += 1
        probe = ledger.send(index, size_bytes, sent_ns)
        if code:
            self._fail([probe], code, os.strerror(code))
        return sent_ns

    def _use_up(self, will_settle: bool) -> None:
        """Count down to the end, except for a slot that waits for an outstanding probe, which will settle."""
        if self._left is not None and not will_settle:
            self._left -= 1

    def _skip(self, reason: str, count: int = 1) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + count

    # ------------------------------------------------------------ reports of flows (see `roles.Run`)

    def payload_of(self, index: int, sequence: int) -> bytes | None:
        """Return the payload of a held probe; None if the probe is settled."""
        probe = self.ledger.sent_later(sequence, self._clock_ns())
        return None if probe is None else self._payloads.make(index, sequence, probe.size_bytes)

    def arrived(self, index: int, data: bytes, at_ns: int, queued_ns: int) -> None:
        """Settle the probe of a datagram."""
        self._tell(self.ledger.arrived(index, data, at_ns, queued_ns))

    def frame(self, index: int, sequence: int, data: bytes, at_ns: int) -> bool:
        """Settle the probe of a frame. Return whether the frame looks like an echo."""
        event = self.ledger.frame(sequence, index, data, at_ns)
        self._tell(event)
        return event.word is not Word.FOREIGN

    def surplus(self, index: int, data: bytes) -> None:
        """Count bytes that came when no probe was outstanding."""
        self._tell(self.ledger.foreign(index, data))

    def trouble(self, index: int, code: int, data: bytes, reporter: str) -> None:
        """Settle the probe of an error. If it was too large, settle all other probes above the path MTU too."""
        self._hurt = True
        reason = os.strerror(code) + (f", says {reporter}" if reporter else "")
        mtu_bytes = self._ask_path_mtu(index) if code == errno.EMSGSIZE else None
        if mtu_bytes is not None:
            most_bytes = mtu_bytes - HEADERS_BYTES[family_of(self.address)]
            self._fail(self.ledger.larger_than(index, most_bytes), code, reason)
        elif (probe := self.ledger.probe_of_error(index, data)) is not None:
            self._fail([probe], code, reason)

    def given_up(self, index: int, sequences: list[int], code: int, reason: str) -> None:
        """Settle the probes of a connection that couldn't be made or was lost."""
        self._hurt = True
        self._fail(self.ledger.outstanding_of(index, sequences), code, reason)

    # ------------------------------------------------------------ outcomes

    def _fail(self, probes: Sequence[Probe], code: int, reason: str) -> None:
        word = Word.LOST
        if code == errno.ECONNREFUSED:
            word, reason = Word.REFUSED, NOTHING_LISTENS
        elif code in UNREACHABLE:
            word = Word.UNREACHABLE
        elif code == errno.ETIMEDOUT:
            reason = TIMED_OUT
        elif code == errno.EMSGSIZE:
            word = Word.TOO_BIG
        self._hurt = True
        for probe in probes:
            if word is Word.TOO_BIG and (mtu_bytes := self._ask_path_mtu(probe.flow)) is not None:
                reason = f"the path MTU is {mtu_bytes}"
            self._tell(self.ledger.failed(probe, word, reason))

    def _ask_path_mtu(self, index: int) -> int | None:
        mtu_bytes = self.flows[index].path_mtu_bytes()
        self.path_mtu_bytes = mtu_bytes or self.path_mtu_bytes
        return mtu_bytes

    def _expect(self) -> None:
        """Call `_expire` at the deadline of the next probe."""
        deadline_ns = self.ledger.next_deadline_ns()
        if self._expiry is None and deadline_ns is not None and not self._ended_ns:
            delay_s = max(0, deadline_ns - self._clock_ns()) / NS_PER_S
            self._expiry = self._reactor.call_later(delay_s, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        for event in itertools.islice(self.ledger.expired(self._clock_ns() + EARLY_NS), TIMEOUTS_PER_TURN):
            self._tell(event)
        self._expect()

    def _tell(self, event: Event) -> None:
        if not self._ended_ns:
            self._reactor.guard(self._told, event)
            if self._flood and event.word not in MAKES_NO_ROOM:
                self._again(0 if event.word is Word.REPLY else FLOOD_PAUSE_NS)
            self._end_if_settled()

    def _end_if_settled(self) -> None:
        if self._left == 0 and not self.ledger.outstanding and not self._ended_ns:
            self.stop()
