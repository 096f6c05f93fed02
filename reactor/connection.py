"""The central chapter: what a TCP connection does, and why no byte is lost, changed or invented.

    state        means                                      next state
    OPEN         reading and writing                        HALF_CLOSED  after half_close()
                                                            DRAINING     after close() or the peer's FIN
    HALF_CLOSED  reading; sending what is pending, and FIN  as OPEN
    DRAINING     not reading; sending what is pending       LINGERING    after the last byte and our FIN
                                                            CLOSED       the same, if the peer's FIN was read before
    LINGERING    reading and discarding                     CLOSED       at the peer's FIN, or after `linger_timeout_s`
    CLOSED       the socket is closed                       (every state gets here on an error or abort())

A connection lingers because closing a socket with unread input makes the kernel send RST, and an RST destroys sent
bytes that haven't arrived yet (RFC 9293 §3.6.1).

Laws. Interest is computed from the state by `_wanted`, never toggled. Above the high-water mark a connection doesn't
read, so one that writes no more than it receives holds at most `Limits.bound_bytes`. One receive or run per readiness.
"""

from __future__ import annotations

import enum
import socket

from reactor.buffer import Bytes, SendBuffer
from reactor.limits import DEFAULT_LIMITS, SEND_RETRY_S, Limits
from reactor.loop import READ, WRITE, Reactor
from reactor.sockets.errors import OUT_OF_MEMORY, WOULD_BLOCK
from reactor.sockets.factory import Transport
from reactor.sockets.opening import close_socket, reset_on_close
from reactor.timers import Timer


class StreamProtocol:
    """The callbacks of a TCP connection, in the order of the calls."""

    def connection_made(self, connection: Connection) -> None:
        """Called once, before any data. May write, pause or close."""

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Called with 1 … `Limits.receive_bytes` bytes. The stream may be cut anywhere (RFC 9293 §3.8)."""

    def saturated(self, connection: Connection) -> None:
        """Called after data that filled a whole receive, or more: more may be waiting (see `fastpath.splice`)."""

    def drained(self, connection: Connection) -> None:
        """Called when the kernel has taken all pending bytes."""

    def eof_received(self, connection: Connection) -> bool | None:
        """Called once, at the peer's FIN. Return True to keep the connection open for writing until `close()`."""
        return False

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Called once, last. `error` is None after an orderly end, else the reason (often an OSError)."""


State = enum.Enum("State", "OPEN HALF_CLOSED DRAINING LINGERING CLOSED")  # see the table above
OPEN, HALF_CLOSED, DRAINING, LINGERING, CLOSED = State  # plain names: an Enum attribute is slower
NOTHING = SendBuffer()  # shared and never filled: saves an idle connection 100 bytes


class Connection:
    """A TCP connection on a loop. `listen_tcp` and `connect_tcp` make it; every callback gets it."""

    __slots__ = (
        "_data_received", "_deadline", "_eof", "_paused", "_pending", "_reactor", "_recv", "_send",
        "bytes_received", "bytes_sent", "closed", "interest", "limits", "protocol", "socket", "state",
    )  # fmt: skip

    def __init__(
        self, reactor: Reactor, sock: socket.socket, protocol: StreamProtocol, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self.interest, self.closed = 0, False  # read-only, like the next five
        self.state = OPEN
        self.protocol, self.limits = protocol, limits
        self.bytes_received = self.bytes_sent = 0  # handed to the protocol; taken by the kernel
        self._reactor, self.socket = reactor, sock  # public for its addresses and options
        observed = reactor.observer.socket(self, sock)
        self._pending: SendBuffer | Transport = NOTHING
        self._eof = self._paused = False  # the peer's FIN was read; `pause_reading` was called
        self._deadline: Timer | None = None  # ends lingering
        self._recv, self._send = observed.recv, observed.send  # bound once: every message uses them
        self._data_received = protocol.data_received
        reactor.register(self)

    def open(self) -> None:
        """Call `connection_made` and start reading. Listener and Connector call this once."""
        try:
            self._reactor.guard(self.protocol.connection_made, self, owner=self)
        finally:
            self._update_interest()

    @property
    def pending_bytes(self) -> int:
        """The number of written bytes that the kernel hasn't taken yet."""
        return len(self._pending)

    def write(self, data: Bytes) -> None:
        """Send bytes, now or as soon as the kernel takes them. Does nothing after `close`. Never raises OSError.

        There is no limit: a protocol that writes more than it receives must watch `pending_bytes` and `drained`.
        """
        if self.state is not OPEN:
            return
        sent = 0
        if not self.interest & WRITE:  # nothing is pending, so try at once
            try:
                sent = self._send(data)
            except WOULD_BLOCK:
                pass
            except OSError as error:
                if self._is_fatal(error):
                    return
            self.bytes_sent += sent
            if sent == len(data):
                return
        if self._pending is NOTHING:
            self._pending = self._reactor.observer.buffer(self, b"")
        self._pending.append(data, sent)
        self._update_interest()

    def pause_reading(self) -> None:
        """Stop reading until `resume_reading`; TCP then stops the peer. A reset may be noticed only then."""
        if not self._paused:
            self._paused = True
            self._reactor.tell("paused", self)
            self._update_interest()

    def resume_reading(self) -> None:
        """Undo `pause_reading`."""
        if self._paused:
            self._paused = False
            self._reactor.tell("resumed", self)
            self._update_interest()

    def half_close(self) -> None:
        """Send what is pending, then FIN; keep reading until the peer's FIN. Nothing more can be written."""
        if self.state is OPEN:
            self._enter(HALF_CLOSED)
            self._advance()

    def close(self) -> None:
        """Close in order: send what is pending (no deadline), send FIN, linger, close. Returns at once."""
        if self.state is OPEN or self.state is HALF_CLOSED:
            fin_sent = self.state is HALF_CLOSED and not self._pending
            self._enter(DRAINING)
            self._linger() if fin_sent else self._advance()

    def abort(self, error: Exception | None = None) -> None:
        """Close now: drop what is pending and send RST, so the peer knows that the stream is incomplete."""
        if self.state is CLOSED:
            return
        if self.state is not LINGERING and not self._reactor.is_forked():
            reset_on_close(self.socket)
        self._tear_down(error)

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self.socket.fileno()

    def detach(self) -> int:
        """Forget the socket's descriptor (`Handler.detach`)."""
        return self.socket.detach()

    def on_event(self, mask: int) -> None:
        """Receive once and flush once, as far as the present interest allows."""
        mask &= self.interest
        if mask & READ:
            try:
                data = self._recv(self.limits.receive_bytes)
            except WOULD_BLOCK:
                pass
            except OSError as error:
                self._is_fatal(error)
            else:
                if (self.state is OPEN or self.state is HALF_CLOSED) and data:
                    size_bytes = len(data)
                    self.bytes_received += size_bytes
                    self._data_received(self, data)
                    if size_bytes >= self.limits.receive_bytes and not self.closed:
                        self.protocol.saturated(self)
                elif not data:
                    self._end_of_stream()
        if mask & WRITE and self._pending:
            self._flush()

    def use_transport(self, transport: Transport) -> None:
        """Receive, send and keep pending bytes through `transport`. Raise RuntimeError while any are pending."""
        if self._pending or transport:
            raise RuntimeError("bytes are pending, which would be lost: change the transport when all are sent")
        observed = self._reactor.observer.socket(self, transport)
        self._recv, self._send, self._pending = observed.recv, observed.send, transport

    def use_socket(self, pending: Bytes) -> SendBuffer:
        """Go back to the plain socket, with `pending` bytes in a new buffer. Return the buffer."""
        observer = self._reactor.observer
        observed, buffer = observer.socket(self, self.socket), observer.buffer(self, pending)
        self._recv, self._send, self._pending = observed.recv, observed.send, buffer
        return buffer

    def _flush(self) -> None:
        try:
            sent = self._send(self._pending.peek())
        except WOULD_BLOCK:
            return
        except OSError as error:
            self._is_fatal(error)
            return
        self._pending.consume(sent)
        self.bytes_sent += sent
        if self.state is OPEN and not self._pending:
            self._update_interest()
            self.protocol.drained(self)
        else:
            self._advance()

    def _end_of_stream(self) -> None:
        if self.state is LINGERING:
            self._tear_down()
            return
        self._eof, keep_open = True, None
        try:
            keep_open = self.protocol.eof_received(self)
        except Exception as error:
            self._reactor.callback_failed(error, self)
        finally:
            self._update_interest() if keep_open else self.close()

    def _advance(self) -> None:
        if self._pending:
            self._update_interest()
            return
        try:
            if not self._reactor.is_forked():  # a child would end its parent's connection
                self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:  # ENOTCONN: the peer's RST came first
            self._tear_down(error)
            return
        if self.state is DRAINING or self._eof:
            self._linger()
        else:
            self._update_interest()

    def _linger(self) -> None:
        if self._eof:
            self._tear_down()
            return
        self._enter(LINGERING)
        self._deadline = self._reactor.call_later(self.limits.linger_timeout_s, self._tear_down)
        self._update_interest()

    def _enter(self, state: State) -> None:
        self._reactor.tell("state", self, before=self.state, after=state)
        self.state = state

    def _wanted(self) -> int:
        """Derive the interest from the state."""
        if self.state is LINGERING:
            return READ
        waiting_bytes = len(self._pending)  # 0 when CLOSED
        interest = WRITE if waiting_bytes else 0
        reading = (self.state is OPEN or self.state is HALF_CLOSED) and not (self._eof or self._paused)
        if reading and waiting_bytes <= self.limits.high_water_bytes:
            interest |= READ
        return interest

    def _update_interest(self) -> None:
        wanted = self._wanted()
        if wanted != self.interest:
            self._reactor.set_interest(self, wanted)

    def _is_fatal(self, error: OSError) -> bool:
        """Tear down and return True; after ENOBUFS or ENOMEM suspend and return False."""
        if error.errno in OUT_OF_MEMORY:
            self._reactor.suspend(self, SEND_RETRY_S)
            return False
        self._tear_down(error)
        return True

    def _tear_down(self, error: Exception | None = None) -> None:
        self._enter(CLOSED)
        self.closed = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._pending.clear()
        self._reactor.unregister(self, error)
        close_socket(self.socket)
        self._reactor.call_soon(self.protocol.connection_lost, self, error)
