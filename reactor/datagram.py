"""Datagram: one UDP socket, many peers, none of which can harm another.

Law: an error of one datagram is counted, the datagram is dropped, and the service goes on. A turn receives a bounded
number. If the kernel's send buffer is full, one datagram is held for a moment, and none is received meanwhile
(`sockets/congestion.py`). An answer leaves from the address that was asked, the `path` (RFC 1122 §4.1.3.5).
"""

from __future__ import annotations

import socket

from reactor.buffer import Bytes
from reactor.limits import DATAGRAM_BYTES, DATAGRAMS_PER_TURN
from reactor.loop import READ, WRITE, Reactor
from reactor.sockets.addresses import Address
from reactor.sockets.congestion import Congestion
from reactor.sockets.errors import BUSY, CALLBACK, RECEIVE, SEND, TRUNCATED, WOULD_BLOCK, errno_name
from reactor.sockets.opening import close_socket
from reactor.sockets.pktinfo import MSG_TRUNC, Control, path_of, receiver, reply_control


class DatagramProtocol:
    """What a UDP endpoint calls."""

    def datagram_received(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        """Called with a datagram of 0 … 65,527 bytes. Pass `path` to `send` to answer from the address asked."""

    def error_received(self, endpoint: Datagram, error: OSError) -> None:
        """Called when a datagram can't be sent, or ICMP reports an error (connected sockets only: udp(7))."""

    def dropped(self, endpoint: Datagram, reason: str, peer: Address | None) -> None:
        """Called for each datagram counted in `drops`, from or to `peer` (None: unknown)."""

    def endpoint_lost(self, endpoint: Datagram, error: Exception | None) -> None:
        """Called once, last. `error` is None after `close()`, else the reason."""


class Datagram:
    """A UDP socket on a loop, bound and non-blocking. `open_udp` makes one. `drops` counts by reason."""

    __slots__ = (
        "_congestion", "_held", "_reactor", "_receive", "_socket", "address", "bytes_received", "bytes_sent", "closed",
        "datagrams_received", "datagrams_sent", "detach", "drops", "fileno", "interest", "protocol",
    )  # fmt: skip

    def __init__(self, reactor: Reactor, sock: socket.socket, protocol: DatagramProtocol) -> None:
        self.interest, self.closed = 0, False
        self.address: Address = sock.getsockname()  # with the port that the kernel chose for port 0
        self.datagrams_received = self.bytes_received = self.datagrams_sent = self.bytes_sent = 0
        self.drops: dict[str, int] = {}
        self._reactor, self.protocol = reactor, protocol
        self.fileno, self.detach = sock.fileno, sock.detach
        self._socket = reactor.observer.socket(self, sock)
        self._receive = receiver(self._socket)
        self._held: tuple[bytes, Address | None, bytes] | None = None  # for a full send buffer
        self._congestion = Congestion(reactor.now, reactor.call_later, lambda: self.on_event(WRITE))
        reactor.register(self)
        reactor.set_interest(self, READ)

    def send(self, data: Bytes, destination: Address | None = None, path: bytes = b"") -> bool:
        """Send one datagram from the address in `path`. Return False if it was dropped and counted in `drops`.

        While one is held, and after `close`, others are dropped as `busy`. A connected socket needs no `destination`.
        """
        if self._held is not None or self.closed:
            self.drop(BUSY, destination)
            return False
        try:
            if path:
                sent = self._socket.sendmsg((data,), reply_control(path), 0, destination)
            elif destination is not None:
                sent = self._socket.sendto(data, destination)
            else:
                sent = self._socket.send(data)
        except OSError as error:
            is_full = isinstance(error, WOULD_BLOCK)
            if is_full and self._congestion.waits():
                self._held = (bytes(data), destination, path)  # a copy: the sender may reuse its memory
                self._reactor.tell("buffer", self, before=0, after=len(data))
                self._reactor.set_interest(self, WRITE)
                return True
            self.drop(BUSY if is_full else SEND + errno_name(error), destination, error)
            return False
        self.datagrams_sent += 1
        self.bytes_sent += sent
        return True

    @property
    def pending_bytes(self) -> int:
        """The size of the held datagram."""
        return 0 if self._held is None else len(self._held[0])

    def drop(self, reason: str, peer: Address | None = None, error: OSError | None = None) -> None:
        """Count one datagram that gets no answer, and call the protocol, also with the `error` of its system call."""
        self._reactor.tell("dropped", self, reason=reason, count=1, peer=peer)
        self.drops[reason] = self.drops.get(reason, 0) + 1
        try:
            self._reactor.guard(self.protocol.dropped, self, reason, peer)
        finally:
            if error is not None:
                self._reactor.guard(self.protocol.error_received, self, error)

    def abort(self, error: Exception | None = None) -> None:
        """Close now, drop a held datagram, and call the protocol with the reason. A second call does nothing."""
        if self.closed:
            return
        self.closed = True
        self._congestion.is_over()
        self._reactor.unregister(self, error)
        close_socket(self._socket)
        self._reactor.call_soon(self.protocol.endpoint_lost, self, error)
        if self._held is not None:
            self.drop(BUSY, self._held[1])

    close = abort

    def on_event(self, mask: int) -> None:
        """Send the held datagram, or receive until none is left, DATAGRAMS_PER_TURN is reached, or one is held."""
        if self._held is not None:
            held, self._held = self._held, None
            self._reactor.tell("buffer", self, before=len(held[0]), after=0)
            self._reactor.set_interest(self, READ)
            self.send(*held)
            if self._held is None:
                self._congestion.is_over()
            return
        failures = 0
        for _ in range(DATAGRAMS_PER_TURN):
            if not self.interest & READ:
                return
            try:
                data, control, flags, source = self._receive(DATAGRAM_BYTES)
            except WOULD_BLOCK:
                return
            except OSError as error:
                failures += 1
                goes_on = self._reactor.goes_on_after(self, error, failures)
                self.drop(RECEIVE + errno_name(error), None, error if goes_on else None)
                if not goes_on:
                    return
            else:
                self._deliver(data, control, flags, source)

    def _deliver(self, data: bytes, control: Control, flags: int, source: Address) -> None:
        self.datagrams_received += 1
        self.bytes_received += len(data)
        if flags & MSG_TRUNC:
            self.drop(TRUNCATED, source)
            return
        try:
            self.protocol.datagram_received(self, data, source, path_of(control) if control else b"")
        except BaseException as error:
            self.drop(CALLBACK, source)
            self._reactor.callback_failed(error)
