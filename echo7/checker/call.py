"""Call: one TCP connection of a case, which knows every byte that it has sent and not yet got back.

Law: nothing of the server's is kept. What comes is compared with what was sent, byte by byte, and forgotten; at the
first difference it isn't listened to any more, so that an endless answer costs neither memory nor time.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from echo7.checker.verdict import Failure, Fault
from reactor import Connection, Connector, StreamProtocol

if TYPE_CHECKING:
    from echo7.checker.bench import Bench

SHOWN_BYTES = 8  # of a difference
UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM)


def fault_of(error: OSError) -> Fault:
    """Say in one word why nobody was reached."""
    if error.errno in UNREACHABLE:
        return Fault.UNREACHABLE
    return Fault.TIMED_OUT if error.errno == errno.ETIMEDOUT else Fault.REFUSED


def difference(sent: bytes, came: bytes, offset: int) -> str:
    """Say where two byte strings begin to differ; `offset` is the place of both in the stream."""
    at = next((i for i, (a, b) in enumerate(zip(sent, came, strict=False)) if a != b), min(len(sent), len(came)))
    was, is_now = sent[at : at + SHOWN_BYTES].hex(" "), came[at : at + SHOWN_BYTES].hex(" ")
    return f"at byte {offset + at:,}: sent {was or 'nothing'}, came back {is_now or 'nothing'}"


class Call(StreamProtocol):
    """A connection to the server under judgement. Made by `Bench.call` and `Bench.dial`."""

    __slots__ = (
        "_bench", "_expected", "_urgent_bytes", "connection", "connector", "ended", "failure", "made", "over",
        "received_bytes", "reset", "sent_bytes",
    )  # fmt: skip

    def __init__(self, bench: Bench) -> None:
        self.connector: Connector  # given by who dials
        self.connection: Connection  # from the moment when it is …
        self.made = False
        self.sent_bytes = self.received_bytes = 0
        self.ended = False  # the server has sent its FIN
        self.reset = False  # or a reset
        self.over = False  # nothing will come any more, or be listened to
        self.failure: Failure | None = None
        self._bench = bench
        self._expected = bytearray()  # sent, and not yet back
        self._urgent_bytes = 0  # past the connection, so that it doesn't count them

    # ------------------------------------------------------------ for stories

    def send(self, data: bytes) -> None:
        """Send bytes, and expect them back; also when the connection has gone, so that this is told."""
        self._expected += data
        self.sent_bytes += len(data)
        if self.made:
            self.connection.write(data)

    def send_urgent(self, byte: bytes) -> None:
        """Send one byte as TCP's urgent data (RFC 9293 §3.8.5), and expect it back in its place."""
        self._expected += byte
        self.sent_bytes += 1
        self._urgent_bytes += self.connection.socket.send(byte, socket.MSG_OOB)

    async def echo(self, data: bytes) -> None:
        """Send bytes and wait until all of them are back. Raise Failure."""
        self.send(data)
        await self.answered()

    async def answered(self) -> None:
        """Wait until all that was sent is back. Raise Failure."""
        await self._bench.until(lambda: self.over or not self._expected, moving=lambda: self.received_bytes)
        self.check()
        if self._expected:
            raise Failure(Fault.LOSSY, self._how_far())

    async def finished(self) -> None:
        """Wait for the server's FIN after all its bytes. Raise Failure."""
        await self._bench.until(lambda: self.over or self.ended, moving=lambda: self.received_bytes)
        self.check()
        if self._expected:
            raise Failure(Fault.LOSSY, self._how_far())
        if not self.ended:
            instead = "then a reset came instead of FIN" if self.reset else "but no FIN after them"
            raise Failure(Fault.CONDUCT, f"all {self.sent_bytes:,} bytes came back, {instead}")

    def check(self) -> None:
        """Raise what has gone wrong so far, if anything."""
        if self.failure is not None:
            raise self.failure

    @property
    def is_answered(self) -> bool:
        """Tell whether all that was sent is back."""
        return not self._expected and self.failure is None

    def hang_up(self) -> None:
        """End the connection: in order if there is nothing on its way, else with a reset. Harmless when it has gone."""
        if not self.made:
            self.connector.abort()
        elif self.connection.pending_bytes:  # it takes no more
            self.connection.abort()
        else:
            self.connection.close()

    def _how_far(self) -> str:
        how = f"and then nothing for {self._bench.timeout_s:g} s"
        if self.over or self.ended:
            how = "and then it was reset" if self.reset else "and then the server closed"
        return f"{self.received_bytes:,} of {self.sent_bytes:,} bytes came back {how}"

    # ------------------------------------------------------------ for the loop

    def failed(self, error: OSError) -> None:
        """There is no connection: see `connect_tcp`."""
        self.over = True
        fault = fault_of(error)
        self.failure = Failure(fault, f"{fault.value}: {error.strerror}")
        self._bench.news()

    def connection_made(self, connection: Connection) -> None:
        """Note it."""
        self.connection, self.made = connection, True
        self._bench.news()

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Compare, and forget."""
        self._compare(connection, data)
        self._bench.news()

    def drained(self, connection: Connection) -> None:
        """A story may wait for this."""
        self._bench.news()

    def eof_received(self, connection: Connection) -> bool:
        """Note it; whether that was right is for the story to say."""
        self.ended = True
        self._bench.news()
        return False

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Note it."""
        self.over = True
        self.reset = isinstance(error, OSError) and self.failure is None
        self._bench.news()

    def _compare(self, connection: Connection, data: bytes) -> None:
        size_bytes = len(data)
        before, self.received_bytes = self.received_bytes, self.received_bytes + size_bytes
        if self.received_bytes > connection.bytes_sent + self._urgent_bytes:
            sent = connection.bytes_sent + self._urgent_bytes
            self.failure = Failure(Fault.EXCESS, f"{self.received_bytes:,} bytes came when {sent:,} had been sent")
        elif not self._expected.startswith(data):
            expected = bytes(self._expected[:size_bytes])
            self.failure = Failure(Fault.LOSSY, difference(expected, data, before))
        else:
            del self._expected[:size_bytes]
            return
        self.over = True
        connection.abort() if self.failure.fault is Fault.EXCESS else connection.close()
