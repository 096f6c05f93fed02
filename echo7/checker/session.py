"""Session: runs one case. A case is a coroutine, called a story; the loop runs while the story waits.

Law: every wait has a deadline, and every socket that a case opened is closed when the case is over.

A story waits for a condition or for time to pass. It yields the deadline of its wait. It is stepped again at that time,
or earlier, when something happens to one of its sockets; then it checks its condition itself.
"""

from __future__ import annotations

import random
import string
import types
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any

from echo7.checker.tcp_client import TcpClient
from echo7.checker.udp_client import UdpClient
from echo7.checker.verdict import Case, Failure, Fault, Finding, Undecided, Verdict
from reactor import Address, Reactor, connect_tcp, connect_udp, open_udp
from reactor.limits import Limits
from reactor.sockets.addresses import unspecified

if TYPE_CHECKING:
    from reactor.timers import Timer

QUIET_S = 0.5  # how long to wait for bytes that should not come
PATIENCES_PER_CASE = 10  # time-outs for one case, if it makes slow progress
LETTERS = (string.ascii_letters + string.digits + "+/").encode() * 4
# A client that sends much must go on reading, or client and server wait for each other without end.
NO_HIGH_WATER = 1 << 30


@types.coroutine
def wait_until(deadline_s: float) -> Generator[float, None, None]:
    """Yield the deadline of a wait to `Session._step`."""
    yield deadline_s


class Session:
    """One case at one address, with its sockets. `run` starts it; `done` gets the finding."""

    def __init__(
        self, reactor: Reactor, target: Address, case: Case, timeout_s: float, done: Callable[[Finding], object]
    ) -> None:
        self.reactor, self.target, self.timeout_s = reactor, target, timeout_s
        # the same bytes in every run, so that a run can be repeated
        self.random = random.Random(case.name)  # noqa: S311
        self._case, self._done = case, done
        self._clients: list[TcpClient | UdpClient] = []
        self._story: Coroutine[Any, Any, str] | None = None
        self._queued = False
        self._timer: Timer | None = None
        self._deadline_s = reactor.now() + timeout_s * PATIENCES_PER_CASE

    # ------------------------------------------------------------ for stories

    async def connect(self, *, buffer_bytes: int | None = None, receive_bytes: int = 65_536) -> TcpClient:
        """Connect to the server. Raise Failure if that fails."""
        client = self.dial(buffer_bytes=buffer_bytes, receive_bytes=receive_bytes)
        # the connector has a time-out of its own
        await self.until(lambda: client.made or client.over, timeout_s=2 * self.timeout_s)
        client.check()
        return client

    def dial(self, *, buffer_bytes: int | None = None, receive_bytes: int = 65_536) -> TcpClient:
        """Begin a connection without waiting for it."""
        client = TcpClient(self)
        client.connector = connect_tcp(
            self.reactor, self.target, client, client.failed, timeout_s=self.timeout_s, buffer_bytes=buffer_bytes,
            limits=Limits(high_water_bytes=NO_HIGH_WATER, receive_bytes=receive_bytes),
        )  # fmt: skip
        self._clients.append(client)
        return client

    def udp_client(self, port: int = 0) -> UdpClient:
        """Return a UDP socket that accepts answers from any address. Raise OSError as bind(2) does."""
        client = UdpClient(self, self.target)
        client.endpoint = open_udp(self.reactor, (unspecified(self.target)[0], port), client)
        self._clients.append(client)
        return client

    def connected_udp_client(self) -> UdpClient:
        """Return a UDP socket that receives only from the server, and ICMP errors about it (udp(7))."""
        client = UdpClient(self, None)
        client.endpoint = connect_udp(self.reactor, self.target, client)
        self._clients.append(client)
        return client

    def payload(self, size_bytes: int) -> bytes:
        """Return random letters and digits, which have no special meaning, for cases about sizes."""
        return self.random.randbytes(size_bytes).translate(LETTERS)

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
                raise Undecided(f"not done in {self.timeout_s * PATIENCES_PER_CASE:g} s, but still in progress")
            await wait_until(min(deadline_s, self._deadline_s))
        return True

    async def pause(self, pause_s: float) -> None:
        """Wait for some time."""
        await self.until(bool, timeout_s=pause_s)

    async def quiet(self) -> None:
        """Wait long enough to see bytes that should not come."""
        await self.pause(min(QUIET_S, self.timeout_s))

    # ------------------------------------------------------------ running the story

    def run(self) -> None:
        """Start the story."""
        self._story = self._case.story(self)
        self._step()

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
            verdict = Verdict.UNSUPPORTED if failure.fault in (Fault.REFUSED, Fault.TIMED_OUT) else Verdict.FAIL
            verdict = Verdict.UNKNOWN if failure.fault is Fault.UNREACHABLE else verdict
            self._finish(verdict, str(failure), failure.fault)
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

    def _finish(self, verdict: Verdict, seen: str, fault: Fault | None = None) -> None:
        self._story = None
        for client in self._clients:
            client.close()
        self._done(Finding(self._case, str(self.target[0]), verdict, seen, fault))
