"""TcpClient: one TCP connection of a case. It keeps every byte that was sent and hasn't come back.

Law: received bytes are compared with the sent ones and dropped. After the first difference nothing more is read, so an
endless answer costs neither memory nor time.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Protocol

from echo7.checker.verdict import Failure, Fault, Undecided
from reactor import Connection, Connector, StreamProtocol

HELLO = b"echo7 check: are you there?\n"
SHOWN_BYTES = 8  # of a difference
TCP_INFO_BYTES, UNACKED_AT = 104, 24  # of struct tcp_info (linux/tcp.h)
UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM)


class Waiting(Protocol):
    """What a client needs of its session."""

    timeout_s: float
    is_here: bool  # no network between us and the server

    @property
    def stalled_s(self) -> float:
        """How long to wait before a missing answer can count against the server."""

    async def serves_others(self, waited_s: float) -> bool:
        """Whether the server answers new clients at once; see `Session.serves_others`."""

    def news(self) -> None:
        """Something has happened."""

    async def until(
        self, condition: Callable[[], object], *, timeout_s: float | None = None, moving: Callable[[], object] = bool
    ) -> bool:
        """Wait for a condition; see `Session.until`."""


def fault_of(error: OSError) -> Fault:
    """Return why there is no connection."""
    if error.errno in UNREACHABLE:
        return Fault.UNREACHABLE
    return Fault.TIMED_OUT if error.errno == errno.ETIMEDOUT else Fault.REFUSED


def _slow(waited_s: float) -> str:
    return f"nothing for {waited_s:g} s, but others wait too: it may only be slow"


def difference(sent: bytes, came: bytes, offset: int) -> str:
    """Describe the first difference of two byte strings, which start at `offset` in the stream."""
    at = next((i for i, (a, b) in enumerate(zip(sent, came, strict=False)) if a != b), min(len(sent), len(came)))
    was, is_now = sent[at : at + SHOWN_BYTES].hex(" "), came[at : at + SHOWN_BYTES].hex(" ")
    return f"at byte {offset + at:,}: sent {was or 'nothing'}, came back {is_now or 'nothing'}"


class TcpClient(StreamProtocol):
    """A connection to the server under test. Made by `Session.connect` and `Session.dial`."""

    def __init__(self, session: Waiting) -> None:
        self.connector: Connector  # set by `Session.dial`
        self.connection: Connection  # set when the connection is made
        self.made = False
        self.sent_bytes = self.received_bytes = 0
        self.ended = False  # the server has sent its FIN
        self.reset = False  # the server has sent a reset
        self.over = False  # nothing more will come, or be read
        self.failure: Failure | None = None
        self._session = session
        self._expected = bytearray()  # sent, and not yet back
        self._urgent_bytes = 0  # not counted by `connection.bytes_sent`

    # ------------------------------------------------------------ for stories

    def send(self, data: bytes) -> None:
        """Send bytes and expect them back. Without a connection they are expected too, so their loss is reported."""
        self._expected += data
        self.sent_bytes += len(data)
        if self.made:
            self.connection.write(data)

    def send_urgent(self, byte: bytes) -> None:
        """Send one byte as urgent data (RFC 9293 §3.8.5), and expect it back in its place."""
        self._expected += byte
        self.sent_bytes += 1
        self._urgent_bytes += self.connection.socket.send(byte, socket.MSG_OOB)

    async def echo(self, data: bytes) -> None:
        """Send bytes and wait until all of them are back. Raise Failure."""
        self.send(data)
        await self.answered()

    async def answered(self) -> None:
        """Wait until everything that was sent is back. Raise Failure, or Undecided if the server may only be slow."""
        stalled_s = self._session.stalled_s
        if not await self._session.until(self._is_settled, moving=lambda: self.received_bytes, timeout_s=stalled_s):
            await self._blame(stalled_s)
        self._check_complete()

    async def finished(self) -> None:
        """Wait for the server's FIN after all its bytes. Raise Failure, or Undecided if the server may only be slow."""
        stalled_s = self._session.stalled_s
        over = await self._session.until(
            lambda: self.over or self.ended, moving=lambda: self.received_bytes, timeout_s=stalled_s
        )
        if not over and not await self._session.serves_others(stalled_s):
            raise Undecided(_slow(stalled_s))
        self._check_complete()
        if not self.ended:
            instead = "then a reset came instead of FIN" if self.reset else "but no FIN after them"
            raise Failure(Fault.CONDUCT, f"all {self.sent_bytes:,} bytes came back, {instead}")

    def _is_settled(self) -> bool:
        return self.over or not self._expected

    async def _blame(self, stalled_s: float) -> None:
        """Return if the missing bytes are lost: the server ends without them, or serves others at once meanwhile."""
        before = self.received_bytes
        self.connection.half_close()
        await self._session.until(
            lambda: self.ended or self._is_settled(), moving=lambda: self.received_bytes, timeout_s=stalled_s / 2
        )
        if self._is_settled() and not self.over:
            held = self.sent_bytes - before
            raise Failure(Fault.CONDUCT, f"{held:,} of {self.sent_bytes:,} bytes came back only after our FIN")
        if not (self.over or self.ended or await self._session.serves_others(stalled_s)):
            raise Undecided(_slow(stalled_s))

    def check(self) -> None:
        """Raise the failure so far, if there is one."""
        if self.failure is not None:
            raise self.failure

    @property
    def is_answered(self) -> bool:
        """Whether everything that was sent is back."""
        return not self._expected and self.failure is None

    @property
    def is_refused(self) -> bool:
        """Whether the server, or its kernel, refused the connection."""
        return self.failure is not None and self.failure.fault is Fault.REFUSED

    @property
    def is_taken(self) -> bool:
        """Whether the server's kernel has taken all that was sent. If not, TCP itself is still trying (tcp(7))."""
        if not self.made:
            return False
        try:
            info = self.connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
        except (OSError, AttributeError, TypeError):
            # closed, or a system without TCP_INFO, or a simulated socket
            return True
        return len(info) < UNACKED_AT + 4 or not any(info[UNACKED_AT : UNACKED_AT + 4])

    def close(self) -> None:
        """Close the connection: with FIN if nothing is pending, else with a reset."""
        if not self.made:
            self.connector.abort()
        elif self.connection.pending_bytes:
            self.connection.abort()
        else:
            self.connection.close()

    def _check_complete(self) -> None:
        self.check()
        if self._expected:
            how = "and then it was reset" if self.reset else "and then the server closed"
            if not (self.over or self.ended):
                how = f"and then nothing for {self._session.stalled_s:g} s, while others are served at once"
            raise Failure(Fault.LOSSY, f"{self.received_bytes:,} of {self.sent_bytes:,} bytes came back {how}")

    # ------------------------------------------------------------ for the loop

    def failed(self, error: OSError) -> None:
        """Record that the connection failed; see `connect_tcp`."""
        self.over = True
        fault = fault_of(error)
        self.failure = Failure(fault, f"{fault.value}: {error.strerror}")
        self._session.news()

    def connection_made(self, connection: Connection) -> None:
        """Keep the connection."""
        self.connection, self.made = connection, True
        self._session.news()

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Compare with what was sent."""
        self._compare(connection, data)
        self._session.news()

    def drained(self, connection: Connection) -> None:
        """Step the story, which may wait for an empty buffer."""
        self._session.news()

    def eof_received(self, connection: Connection) -> bool:
        """Record the server's FIN; the story decides whether it was right."""
        self.ended = True
        self._session.news()
        return False

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Record the end of the connection."""
        self.over = True
        self.reset = isinstance(error, OSError) and self.failure is None
        self._session.news()

    def _compare(self, connection: Connection, data: bytes) -> None:
        size_bytes = len(data)
        before, self.received_bytes = self.received_bytes, self.received_bytes + size_bytes
        sent_bytes = connection.bytes_sent + self._urgent_bytes
        if self.received_bytes > sent_bytes:
            text = f"{self.received_bytes:,} bytes came when {sent_bytes:,} had been sent"
            self.failure = Failure(Fault.EXCESS, text)
        elif not self._expected.startswith(data):
            expected = bytes(self._expected[:size_bytes])
            self.failure = Failure(Fault.LOSSY, difference(expected, data, before))
        else:
            del self._expected[:size_bytes]
            return
        self.over = True
        connection.abort() if self.failure.fault is Fault.EXCESS else connection.close()
