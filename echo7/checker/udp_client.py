"""UdpClient: one UDP socket of a case. It keeps datagrams that aren't answered yet, and counts answers that aren't due.

Law: every answer is compared with what was sent, until the end of the run. A bounded number of surplus answers is read.
"""

from __future__ import annotations

import collections

from echo7.checker.tcp_client import Waiting, difference
from echo7.checker.verdict import Failure, Fault
from reactor import Address, Datagram, DatagramProtocol, format_address

MOST_SURPLUS = 64
KEY_BYTES = 16  # of a datagram, to recognise its duplicate


def host_of(address: Address) -> str:
    """Return the numeric host, without the scope of a link-local address."""
    return str(address[0]).partition("%")[0]


class UdpClient(DatagramProtocol):
    """A UDP socket that sends to the server under test. Made by `Session.udp_client` and `connected_udp_client`."""

    def __init__(self, session: Waiting, target: Address, destination: Address | None) -> None:
        self.sent_count = self.sent_bytes = 0
        self.answers_count = self.answers_bytes = 0
        self.doubles = self.surplus = 0
        self.source: Address | None = None  # of the last answer
        self.error: OSError | None = None  # the last error of ICMP or of our own kernel
        self.failure: Failure | None = None
        self.endpoint: Datagram  # set by `Session`
        self._session = session
        self._target, self._destination = target, destination  # no destination: the socket is connected
        self._waiting: collections.Counter[bytes] = collections.Counter()
        self._answered: set[bytes] = set()
        self._forgotten: set[bytes] = set()

    # ------------------------------------------------------------ for stories

    def send(self, data: bytes) -> bool:
        """Send one datagram. Return whether the kernel took it; if not, `error` says why."""
        self._waiting[data] += 1
        self.sent_count, self.sent_bytes = self.sent_count + 1, self.sent_bytes + len(data)
        return self.endpoint.send(data, self._destination)

    @property
    def due(self) -> int:
        """How many datagrams aren't answered."""
        return self._waiting.total()

    @property
    def due_bytes(self) -> int:
        """How many bytes aren't answered."""
        return sum(len(data) * count for data, count in self._waiting.items())

    async def answered(self, count: int, timeout_s: float) -> bool:
        """Wait until `count` right answers, a failure or an error have come. Return whether the answers have."""
        await self._session.until(
            lambda: self.answers_count >= count or self.error or self.failure, timeout_s=timeout_s
        )
        return self.answers_count >= count

    def forget(self) -> int:
        """Stop waiting for unanswered datagrams, and return how many there are. A late answer changes nothing."""
        lost = self.due
        self._forgotten.update(data[:KEY_BYTES] for data in self._waiting)
        self._waiting.clear()
        return lost

    def check(self) -> None:
        """Raise the failure so far, if there is one."""
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Close the socket."""
        self.endpoint.close()

    # ------------------------------------------------------------ for the loop

    def datagram_received(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        """Compare with what was sent."""
        if data in self._waiting:
            self._answer(data, source)
        elif data[:KEY_BYTES] in self._forgotten:
            self._forgotten.discard(data[:KEY_BYTES])
        elif self._session.is_here or source[1] == self._target[1] or data[:KEY_BYTES] in self._answered:
            self._surplus(data)
        # anything else comes from a stranger who sends to every port
        self._session.news()

    def error_received(self, endpoint: Datagram, error: OSError) -> None:
        """Keep the error."""
        self.error = error
        self._session.news()

    def _answer(self, data: bytes, source: Address) -> None:
        self._waiting[data] -= 1
        if not self._waiting[data]:
            del self._waiting[data]
        self._answered.add(data[:KEY_BYTES])
        self.answers_count, self.answers_bytes = self.answers_count + 1, self.answers_bytes + len(data)
        self.source = source
        if source[1] != self._target[1]:
            text = f"sent to port {self._target[1]}, answered by {format_address(source[:2])}"
            self.failure = self.failure or Failure(Fault.CONDUCT, text)

    def _surplus(self, data: bytes) -> None:
        self.surplus += 1
        if self.surplus >= MOST_SURPLUS:
            self.close()
        came = self.answers_count + self.surplus
        if data[:KEY_BYTES] in self._answered:
            self.doubles += 1
            if self._session.is_here or self.surplus >= MOST_SURPLUS:
                text = f"{came:,} answers to {self.sent_count:,} datagrams"
                self.failure = Failure(Fault.EXCESS, text)
        elif self.failure is None:
            self.failure = self._strange(data, came)

    def _strange(self, data: bytes, came: int) -> Failure:
        if self.due == 1:
            return compare(next(iter(self._waiting)), data)
        sizes = f"an answer of {len(data):,} bytes matches none of {self.sent_count:,} datagrams"
        is_more = came > self.sent_count or self.answers_bytes + len(data) > self.sent_bytes
        return Failure(Fault.EXCESS if is_more else Fault.LOSSY, sizes)


def compare(sent: bytes, came: bytes) -> Failure:
    """Return how an answer differs from the datagram that it answers."""
    if len(came) > len(sent):
        return Failure(Fault.EXCESS, f"{len(came):,} bytes came back for {len(sent):,}")
    if sent.startswith(came):
        return Failure(Fault.LOSSY, f"cut to {len(came):,} of {len(sent):,} bytes")
    return Failure(Fault.LOSSY, difference(sent, came, 0))
