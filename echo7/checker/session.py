"""Session: runs one case. A case is a coroutine, called a story; the loop runs while the story waits.

Law: every wait has a deadline. What a time-out cut short counts against the server only if others were served at once
meanwhile. TCP sockets are closed when the case is over; UDP sockets stay open until the end of the run, for late
answers.

A story waits for a condition or for time to pass. It yields the deadline of its wait. It is stepped again at that time,
or earlier, when something happens to one of its sockets; then it checks its condition itself.
"""

from __future__ import annotations

import random
import string
import types
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, NamedTuple

from echo7.checker.effort import FEWEST, Effort
from echo7.checker.tcp_client import HELLO, TcpClient
from echo7.checker.udp_client import UdpClient
from echo7.checker.verdict import Case, Failure, Fault, Finding, Undecided, Verdict
from reactor import Address, Reactor, connect_tcp, connect_udp, open_udp
from reactor.limits import Limits
from reactor.sockets.addresses import unspecified

if TYPE_CHECKING:
    from reactor.timers import Timer

QUIET_S = 0.25  # how long to wait for bytes that should not come
# How long a client must have waited in vain, at least, before that counts against a server. TCP's own pauses after lost
# segments are shorter (RFC 6298).
STALLED_FOR_S = 6.0
LONG_S = 1e6  # longer than any run
SLOW = 5  # times longer that a count may take with a slow server
PROMPT = 10  # "at once": others wait at most a tenth as long
REFERENCES = {"tcp": 3, "udp": 12}  # other clients that are tried
LETTERS = (string.ascii_letters + string.digits + "+/").encode() * 4
# A client that sends much must go on reading, or client and server wait for each other without end.
NO_HIGH_WATER = 1 << 30


@types.coroutine
def wait_until(deadline_s: float) -> Generator[float, None, None]:
    """Yield the deadline of a wait to `Session._step`."""
    yield deadline_s


class Run(NamedTuple):
    """What all sessions of one run at one address share."""

    reactor: Reactor
    target: Address
    is_here: bool  # an address of this machine: no network loses or doubles a datagram
    timeout_s: float
    effort: Effort
    seed: int


class Session:
    """One run of a case, with its sockets. `start` starts it; `done` gets the finding and the UDP sockets."""

    def __init__(
        self, run: Run, case: Case, round_number: int, done: Callable[[Finding, list[UdpClient]], object]
    ) -> None:
        self.reactor, self.target, self.is_here = run.reactor, run.target, run.is_here
        self.timeout_s, self.effort = run.timeout_s, run.effort
        # the same bytes whenever the seed is the same, so that a run can be repeated
        self.random = random.Random(f"{run.seed} {run.target[0]} {case.name} {round_number}")  # noqa: S311
        self._case, self._round, self._done = case, round_number, done
        self._clients: list[TcpClient | UdpClient] = []
        self._story: Coroutine[Any, Any, str] | None = None
        self._queued = self._is_ending = False
        self._timer: Timer | None = None
        self._start_s = self.reactor.now()
        self._deadline_s = self._start_s + self.timeout_s * self.effort.case_patience

    # ------------------------------------------------------------ for stories

    async def connect(self, *, buffer_bytes: int | None = None, receive_bytes: int = 65_536) -> TcpClient:
        """Connect to the server. Raise Failure if that fails."""
        client = self.dial(buffer_bytes=buffer_bytes, receive_bytes=receive_bytes)
        # the connector has a time-out of its own
        await self.until(lambda: client.made or client.over, timeout_s=2 * self.timeout_s)
        client.check()
        return client

    def dial(
        self, *, timeout_s: float | None = None, buffer_bytes: int | None = None, receive_bytes: int = 65_536
    ) -> TcpClient:
        """Begin a connection without waiting for it."""
        client = TcpClient(self)
        client.connector = connect_tcp(
            self.reactor, self.target, client, client.failed,
            timeout_s=timeout_s or self.timeout_s, buffer_bytes=buffer_bytes,
            limits=Limits(high_water_bytes=NO_HIGH_WATER, receive_bytes=receive_bytes),
        )  # fmt: skip
        self._clients.append(client)
        return client

    def udp_client(self, port: int = 0) -> UdpClient:
        """Return a UDP socket that accepts answers from any address. Raise OSError as bind(2) does."""
        client = UdpClient(self, self.target, self.target)
        client.endpoint = open_udp(self.reactor, (unspecified(self.target)[0], port), client)
        self._clients.append(client)
        return client

    def connected_udp_client(self) -> UdpClient:
        """Return a UDP socket that receives only from the server, and ICMP errors about it (udp(7))."""
        client = UdpClient(self, self.target, None)
        client.endpoint = connect_udp(self.reactor, self.target, client)
        self._clients.append(client)
        return client

    def payload(self, size_bytes: int) -> bytes:
        """Return random bytes, for cases about sizes: in the first round letters, which have no special meaning.

        So the first round finds faults that depend on sizes, and later rounds also those that depend on values.
        """
        data = self.random.randbytes(size_bytes)
        return data.translate(LETTERS) if self._round == 1 else data

    async def until(
        self, condition: Callable[[], object], *, timeout_s: float | None = None, moving: Callable[[], object] = bool
    ) -> bool:
        """Wait for a condition, and return whether it came true. Give up when `moving()` is the same for `timeout_s`.

        Raise Undecided when the case's time is over and `moving()` still changes.
        """
        patience_s = self.timeout_s if timeout_s is None else timeout_s
        now_s, before = self.reactor.now(), moving()
        deadline_s = now_s + patience_s
        while not condition():
            now_s = self.reactor.now()
            if (moved := moving()) != before:
                before, deadline_s = moved, now_s + patience_s
            if now_s >= deadline_s:
                return False
            if now_s >= self._deadline_s:
                limit_s = self.timeout_s * self.effort.case_patience
                raise Undecided(f"not done in {limit_s:g} s, but still in progress")
            await wait_until(min(deadline_s, self._deadline_s))
        return True

    async def pause(self, pause_s: float) -> None:
        """Wait for some time."""
        await self.until(bool, timeout_s=pause_s)

    async def quiet(self) -> None:
        """Wait long enough to see bytes that should not come."""
        await self.pause(min(QUIET_S, self.timeout_s))

    async def until_the_end(self) -> None:
        """Wait until all other cases are over, however long that takes."""
        before_s, self._deadline_s = self._deadline_s - self._start_s, LONG_S
        await self.until(lambda: self._is_ending, timeout_s=LONG_S)
        self._deadline_s = self.reactor.now() + before_s

    def enough(self, count: int, most: int) -> bool:
        """Whether a count may end: it is complete, or half done after some time, or a slow server had long enough."""
        spent_s = self.reactor.now() - self._start_s
        return (
            count >= most
            or (2 * count >= most and spent_s >= self.effort.enough_s)
            or (FEWEST * count >= most and spent_s >= SLOW * self.effort.enough_s)
        )

    @property
    def stalled_s(self) -> float:
        """How long a client waits before a missing answer can count against the server."""
        return max(2 * self.timeout_s, STALLED_FOR_S)

    async def serves_others(self, waited_s: float) -> bool:
        """Return whether the server answers new clients at once, while one has waited for so long in vain."""
        reference = self._tcp_reference if self._case.transport == "tcp" else self._udp_reference
        answered = 0
        for number in range(1, REFERENCES[self._case.transport] + 1):
            answered += await reference(waited_s / PROMPT)
            if not answered and number == REFERENCES["tcp"]:
                break
        # what a network may have lost is no evidence
        needed = 1 if self._case.transport == "udp" and self.is_here else number * 3 // 4
        return answered >= max(needed, 1)

    async def _tcp_reference(self, most_s: float) -> bool:
        client = self.dial(timeout_s=most_s)
        await self.until(lambda: client.made or client.over, timeout_s=2 * most_s)
        client.send(HELLO)
        await self.until(lambda: client.over or client.is_answered, timeout_s=most_s)
        is_answered = client.made and client.is_answered
        client.close()
        return is_answered

    async def _udp_reference(self, most_s: float) -> bool:
        client = self.udp_client()
        client.send(self.random.randbytes(32))
        await client.answered(1, most_s)
        return bool(client.answers_count or client.surplus)

    # ------------------------------------------------------------ running the story

    def start(self) -> None:
        """Start the story."""
        self._story = self._case.story(self)
        self._step()

    def end(self) -> None:
        """Tell the story that all other cases are over."""
        self._is_ending = True
        self.news()

    @property
    def is_running(self) -> bool:
        """Whether the case isn't over."""
        return self._story is not None

    def news(self) -> None:
        """Step the story in the next turn, because something happened to one of its sockets."""
        if not self._queued and self._story is not None:
            self._queued = True
            self.reactor.call_soon(self._step)

    def _step(self) -> None:
        self._queued = False
        if self._timer is not None:
            self._timer.cancel()
        if self._story is None:
            return
        try:
            deadline_s = self._story.send(None)
        except StopIteration as end:
            self._finish(Verdict.PASS, end.value)
        except Failure as failure:
            self._finish(self._verdict(failure.fault), str(failure), failure.fault)
        except Undecided as reason:
            self._finish(Verdict.UNKNOWN, str(reason))
        except OSError as error:
            # the fault of this machine, not of the server: no descriptors, no such address
            fault = Fault.UNREACHABLE if self._case.is_first else None
            self._finish(Verdict.UNKNOWN, f"this machine cannot try: {error.strerror or error}", fault)
        except Exception as error:
            # a bug in one case must not prevent the report
            self._finish(Verdict.UNKNOWN, f"bug in the checker: {error!r}")
        else:
            self._timer = self.reactor.call_at(deadline_s, self._step)

    def _verdict(self, fault: Fault) -> Verdict:
        """Return what a fault means: only the first answer of all says whether a transport is supported."""
        if fault is Fault.UNREACHABLE:
            return Verdict.UNKNOWN
        if self._case.is_first and self._round == 1:
            return Verdict.UNSUPPORTED if fault in (Fault.REFUSED, Fault.TIMED_OUT) else Verdict.FAIL
        return Verdict.UNKNOWN if fault is Fault.TIMED_OUT else Verdict.FAIL

    def _finish(self, verdict: Verdict, seen: str, fault: Fault | None = None) -> None:
        self._story = None
        seen += f" (round {self._round})" if self._round > 1 and verdict is not Verdict.PASS else ""
        kept = []
        for client in self._clients:
            if isinstance(client, UdpClient) and not client.failure:
                kept.append(client)
            else:
                client.close()
        self._done(Finding(self._case, str(self.target[0]), verdict, seen, fault), kept)
