"""UdpClient: one UDP socket of a case, and the answers that came to it.

Law: a bounded number of answers is kept, and the rest are counted.
"""

from __future__ import annotations

from typing import NamedTuple

from echo7.checker.tcp_client import Waiting, difference
from echo7.checker.verdict import Failure, Fault
from reactor import Address, Datagram, DatagramProtocol

MOST_ANSWERS = 64


class Answer(NamedTuple):
    """One datagram that came."""

    data: bytes
    source: Address


class UdpClient(DatagramProtocol):
    """A UDP socket that sends to the server under test. Made by `Session.udp_client` and `connected_udp_client`."""

    def __init__(self, session: Waiting, destination: Address | None) -> None:
        self.answers: list[Answer] = []
        self.answers_count = 0
        self.error: OSError | None = None  # the last error of ICMP or of our own kernel
        self._session = session
        self._destination = destination  # None: the socket is connected
        self.endpoint: Datagram  # set by `Session`

    # ------------------------------------------------------------ for stories

    def send(self, data: bytes) -> bool:
        """Send one datagram. Return whether the kernel took it; if not, `error` says why."""
        return self.endpoint.send(data, self._destination)

    async def answered(self, count: int, timeout_s: float) -> bool:
        """Wait until `count` datagrams or an error have come. Return whether the datagrams have."""
        await self._session.until(lambda: self.answers_count >= count or self.error, timeout_s=timeout_s)
        return self.answers_count >= count

    def close(self) -> None:
        """Close the socket."""
        self.endpoint.close()

    # ------------------------------------------------------------ for the loop

    def datagram_received(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        """Count the answer, and keep it if there is room."""
        self.answers_count += 1
        if len(self.answers) < MOST_ANSWERS:
            self.answers.append(Answer(data, source))
        self._session.news()

    def error_received(self, endpoint: Datagram, error: OSError) -> None:
        """Keep the error."""
        self.error = error
        self._session.news()


def compare(sent: bytes, came: bytes) -> None:
    """Raise Failure unless a datagram came back as it was sent."""
    if came == sent:
        return
    if len(came) > len(sent):
        raise Failure(Fault.EXCESS, f"{len(came):,} bytes came back for {len(sent):,}")
    if sent.startswith(came):
        raise Failure(Fault.LOSSY, f"cut to {len(came):,} of {len(sent):,} bytes")
    raise Failure(Fault.LOSSY, difference(sent, came, 0))
