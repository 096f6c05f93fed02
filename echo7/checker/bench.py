"""Bench: where a case is tried. A case is a coroutine, told as a story; the loop goes on between its sentences.

Law: every wait has an end, and all that a case has opened is closed when it is over, however it ends.

The machinery is small: a story only ever waits for a condition, or for a time to pass. So the coroutine hands out the
one thing that the loop must know, until when it would wait, and is stepped again at that time, or sooner, as soon as
anything has happened to any of its sockets. Then it looks for itself.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any

from echo7.checker.call import Call
from echo7.checker.inquiry import Inquiry
from echo7.checker.verdict import Case, Failure, Fault, Finding, Undecided, Verdict
from reactor import Address, Reactor, connect_tcp, connect_udp, open_udp
from reactor.limits import Limits
from reactor.sockets.addresses import unspecified

if TYPE_CHECKING:
    from reactor.timers import Timer

QUIET_S = 0.5  # how long to look for what should not come
PATIENCES_PER_CASE = 10  # a case that gets on, but slowly, is given so many time-outs in all
LETTERS = (string.ascii_letters + string.digits + "+/").encode() * 4
NO_HIGH_WATER = 1 << 30  # a caller that has much to say must read all the while, or both ends wait for ever


class Until:
    """What a story hands to the loop: I wait, but no longer than this."""

    __slots__ = ("deadline_s",)

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s

    def __await__(self) -> Generator[Until, None, None]:
        """Hand ourselves to whoever steps the story: `Bench._step`."""
        yield self


class Bench:
    """One case at one address. `run` tries it; `done` gets the finding."""

    __slots__ = (
        "_calls", "_case", "_deadline_s", "_done", "_inquiries", "_queued", "_story", "_timer", "random", "reactor",
        "target", "timeout_s",
    )  # fmt: skip

    def __init__(
        self, reactor: Reactor, target: Address, case: Case, timeout_s: float, done: Callable[[Finding], object]
    ) -> None:
        self.reactor, self.target, self.timeout_s = reactor, target, timeout_s
        self.random = random.Random(case.name)  # noqa: S311 - the same bytes every time: what was seen can be seen again
        self._case, self._done = case, done
        self._calls: list[Call] = []
        self._inquiries: list[Inquiry] = []
        self._story: Coroutine[Any, Any, str] | None = None
        self._queued = False
        self._timer: Timer | None = None
        self._deadline_s = reactor.now() + timeout_s * PATIENCES_PER_CASE

    # ------------------------------------------------------------ for stories

    async def call(self, *, buffer_bytes: int | None = None, receive_bytes: int = 65_536) -> Call:
        """Return a connection to the server. Raise Failure when there is none."""
        call = self.dial(buffer_bytes=buffer_bytes, receive_bytes=receive_bytes)
        await self.until(lambda: call.made or call.over, timeout_s=2 * self.timeout_s)  # it has its own time-out
        call.check()
        return call

    def dial(self, *, buffer_bytes: int | None = None, receive_bytes: int = 65_536) -> Call:
        """Begin a connection, and don't wait for it."""
        call = Call(self)
        limits = Limits(high_water_bytes=NO_HIGH_WATER, receive_bytes=receive_bytes)
        call.connector = connect_tcp(
            self.reactor,
            self.target,
            call,
            call.failed,
            timeout_s=self.timeout_s,
            limits=limits,
            buffer_bytes=buffer_bytes,
        )
        self._calls.append(call)
        return call

    def inquire(self, port: int = 0) -> Inquiry:
        """Return a UDP socket that hears whoever answers. Raise OSError as bind(2) does."""
        inquiry = Inquiry(self, self.target)
        inquiry.opened(open_udp(self.reactor, (unspecified(self.target)[0], port), inquiry))
        self._inquiries.append(inquiry)
        return inquiry

    def inquire_connected(self) -> Inquiry:
        """Return a UDP socket that hears the server alone, and what ICMP says of it (udp(7))."""
        inquiry = Inquiry(self, None)
        inquiry.opened(connect_udp(self.reactor, self.target, inquiry))
        self._inquiries.append(inquiry)
        return inquiry

    def payload(self, size_bytes: int) -> bytes:
        """Return random letters and digits: where the size is the question, no byte shall matter for what it means."""
        return self.random.randbytes(size_bytes).translate(LETTERS)

    async def until(
        self, condition: Callable[[], object], *, timeout_s: float | None = None, moving: Callable[[], object] = bool
    ) -> bool:
        """Wait for a condition. Return whether it has come; give up when `moving()` hasn't changed for `timeout_s`.

        Raise Undecided when the case has had its time and things still move.
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
                raise Undecided(f"not done in {self.timeout_s * PATIENCES_PER_CASE:g} s, though things still move")
            await Until(min(deadline_s, self._deadline_s))
        return True

    async def pause(self, pause_s: float) -> None:
        """Let some time pass."""
        await self.until(bool, timeout_s=pause_s)

    async def quiet(self) -> None:
        """Let so much time pass as anything that should not come would need."""
        await self.pause(min(QUIET_S, self.timeout_s))

    # ------------------------------------------------------------ the machinery

    def run(self) -> None:
        """Begin the story."""
        self._story = self._case.story(self)
        self._step()

    def news(self) -> None:
        """Something has happened to one of the sockets: let the story look, soon."""
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
            until = self._story.send(None)
        except StopIteration as end:
            self._finish(Verdict.PASS, end.value)
        except Failure as failure:
            verdict = Verdict.UNSUPPORTED if failure.fault in (Fault.REFUSED, Fault.TIMED_OUT) else Verdict.FAIL
            verdict = Verdict.UNKNOWN if failure.fault is Fault.UNREACHABLE else verdict
            self._finish(verdict, str(failure), failure.fault)
        except Undecided as reason:
            self._finish(Verdict.UNKNOWN, str(reason))
        except OSError as error:  # this machine's trouble, not the server's: no descriptors, no such address
            fault = Fault.UNREACHABLE if self._case.is_first else None
            self._finish(Verdict.UNKNOWN, f"this machine couldn't try: {error.strerror or error}", fault)
        except Exception as error:  # whoever waits for the finding shall not wait for ever
            self._finish(Verdict.UNKNOWN, f"the judge's own mistake: {error!r}")
        else:
            self._timer = self.reactor.call_at(until.deadline_s, self._step)

    def _finish(self, verdict: Verdict, seen: str, fault: Fault | None = None) -> None:
        self._story = None
        for call in self._calls:
            call.hang_up()
        for inquiry in self._inquiries:
            inquiry.close()
        self._done(Finding(self._case, str(self.target[0]), verdict, seen, fault))
