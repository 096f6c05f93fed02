"""Inquiry: one UDP socket of a case, and what came to it.

Law: a bounded number of answers is kept, and the rest counted. An answer is judged by its bytes; where it came from is
a question of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from echo7.checker.call import difference
from echo7.checker.verdict import Failure, Fault
from reactor import Address, Datagram, DatagramProtocol

if TYPE_CHECKING:
    from echo7.checker.bench import Bench

MOST_ANSWERS = 64


class Answer(NamedTuple):
    """One datagram that came."""

    data: bytes
    source: Address


class Inquiry(DatagramProtocol):
    """A UDP socket that asks the server under judgement. Made by `Bench.inquire`."""

    __slots__ = ("_bench", "_destination", "_endpoint", "answers", "answers_count", "error", "sent_count")

    def __init__(self, bench: Bench, destination: Address | None) -> None:
        self.answers: list[Answer] = []
        self.answers_count = self.sent_count = 0
        self.error: OSError | None = None  # what ICMP, or our own kernel, has said last
        self._bench = bench
        self._destination = destination  # None: the socket is connected
        self._endpoint: Datagram  # given by who opens it

    def opened(self, endpoint: Datagram) -> None:
        """Take the socket."""
        self._endpoint = endpoint

    # ------------------------------------------------------------ for stories

    def send(self, data: bytes) -> bool:
        """Send one datagram. Return whether it has left; if not, `error` says why."""
        left = self._endpoint.send(data, self._destination)
        self.sent_count += left
        return left

    async def answered(self, count: int, timeout_s: float) -> bool:
        """Wait until so many datagrams have come, or an error. Return whether they have."""
        await self._bench.until(lambda: self.answers_count >= count or self.error, timeout_s=timeout_s)
        return self.answers_count >= count

    def close(self) -> None:
        """Close the socket."""
        self._endpoint.close()

    # ------------------------------------------------------------ for the loop

    def datagram_received(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        """Keep it, if there aren't many already."""
        self.answers_count += 1
        if len(self.answers) < MOST_ANSWERS:
            self.answers.append(Answer(data, source))
        self._bench.news()

    def error_received(self, endpoint: Datagram, error: OSError) -> None:
        """Keep what the kernel says."""
        self.error = error
        self._bench.news()


def compare(sent: bytes, came: bytes) -> None:
    """Raise Failure unless a datagram came back as it was sent."""
    if came == sent:
        return
    if len(came) > len(sent):
        raise Failure(Fault.EXCESS, f"{len(came):,} bytes came back for {len(sent):,}")
    if sent.startswith(came):
        raise Failure(Fault.LOSSY, f"cut to {len(came):,} of {len(sent):,} bytes")
    raise Failure(Fault.LOSSY, difference(sent, came, 0))
