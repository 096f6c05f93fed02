"""Stand-ins: a connection, a listener, a datagram socket or a timer that does what it always did, and tells.

Law: not a line of theirs runs otherwise. A stand-in is a subclass without slots of its own, so an object can become one
(its `__class__` is exchanged) with everything in it left in place. What differs is what its attributes are: a `Part` in
place of a slot tells when it is set, or hands out a call that tells. A loop without a trace has none of this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from reactor.buffer import Bytes, SendBuffer
from reactor.connection import NOTHING, Connection, State
from reactor.connector import Connector
from reactor.datagram import Datagram
from reactor.fastpath.batch import DatagramBatch
from reactor.listener import Listener
from reactor.sockets.addresses import Address, format_address
from reactor.sockets.errors import WOULD_BLOCK, errno_name
from reactor.timers import Timer

if TYPE_CHECKING:
    from reactor.observe.trace import Trace

Hand = Callable[[Any, Any], Any]  # owner, what is in the slot → what is handed out


class Part:
    """One attribute, in its old slot. `hand`: what is handed out; `store`: what is stored; `told`: called when set."""

    __slots__ = ("_hand", "_slot", "_store", "_told")

    def __init__(
        self, cls: type, name: str, *, hand: Hand | None = None, store: Hand | None = None, told: Any = None
    ) -> None:
        self._slot = vars(cls)[name]
        self._hand, self._store, self._told = hand, store, told

    def __get__(self, owner: Any, cls: type | None = None) -> Any:
        """Return what is in the slot, or what goes for it."""
        if owner is None:
            return self
        value = self._slot.__get__(owner)
        return value if self._hand is None else self._hand(owner, value)

    def __set__(self, owner: Any, value: Any) -> None:
        """Put it into the slot."""
        before = self._slot.__get__(owner) if self._told is not None else None
        self._slot.__set__(owner, value if self._store is None else self._store(owner, value))
        if self._told is not None:
            self._told(owner, before, value)


def stand_in(thing: Any) -> None:
    """Exchange the class of a handler or timer for one that tells, if there is one for exactly this class."""
    told = STAND_INS.get(type(thing))
    if told is not None:
        thing.__class__ = told


def _trace(handler: Any) -> Trace:
    return cast("Trace", handler._reactor._trace)


@contextlib.contextmanager
def _call(handler: Any, name: str, offered: int | None = None) -> Iterator[Callable[..., None]]:
    """Make a system call in this block, and say what came of it with what is yielded; its errors are told of here."""
    trace = _trace(handler)
    trace.inside = True
    try:
        yield lambda kind, **fields: trace.tell(kind, handler, **fields)
    except WOULD_BLOCK:
        trace.tell("blocked", handler, call=name, offered=offered)
        raise
    except OSError as error:
        trace.tell("error", handler, call=name, errno=errno_name(error), text=error.strerror or str(error))
        raise
    finally:
        trace.inside = False


# ---------------------------------------------------------------- a connection


def _receiving(connection: Connection, recv: Callable[[int], bytes]) -> Callable[[int], bytes]:
    def traced(size_bytes: int) -> bytes:
        pending_bytes = connection.pending_bytes
        with _call(connection, "recv") as tell:
            data = recv(size_bytes)
            if data:
                tell("received", bytes=len(data), asked=size_bytes)
            else:
                tell("eof")
        _pipe_moved(connection, pending_bytes)
        return data

    return recv if _trace(connection).inside else traced


def _sending(connection: Connection, send: Callable[[Bytes], int]) -> Callable[[Bytes], int]:
    def traced(data: Bytes) -> int:
        offered, pending_bytes = len(data), connection.pending_bytes
        with _call(connection, "send", offered) as tell:
            sent = send(data)
            tell("sent", bytes=sent, offered=offered)
        _pipe_moved(connection, pending_bytes)
        return sent

    return send if _trace(connection).inside else traced


def _pipe_moved(connection: Connection, before: int) -> None:
    """A SendBuffer tells of itself; a fast path's pipe has changed while bytes came or went."""
    after = connection.pending_bytes
    if after != before:
        _trace(connection).tell("buffer", connection, before=before, after=after)


class TracedBuffer(SendBuffer):
    """What a connection's SendBuffer becomes."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection, before: SendBuffer) -> None:
        super().__init__()
        super().append(before.peek())
        self._connection = connection

    def append(self, data: Bytes, start: int = 0) -> None:
        """Add, and tell."""
        before = len(self)
        super().append(data, start)
        _trace(self._connection).tell("buffer", self._connection, before=before, after=len(self))

    def consume(self, count: int) -> None:
        """Forget, and tell."""
        before = len(self)
        super().consume(count)
        _trace(self._connection).tell("buffer", self._connection, before=before, after=len(self))


def _buffer_stored(connection: Connection, pending: SendBuffer) -> SendBuffer:
    return TracedBuffer(connection, pending) if type(pending) is SendBuffer else pending


def _buffer_told(connection: Connection, before: SendBuffer, after: SendBuffer) -> None:
    if after is NOTHING and len(before):
        _trace(connection).tell("buffer", connection, before=len(before), after=0)


def _state_told(connection: Connection, before: State, after: State) -> None:
    _trace(connection).tell("state", connection, before=before.name, after=after.name)


def _paused_told(connection: Connection, before: bool, after: bool) -> None:
    if before != after:
        _trace(connection).tell("paused" if after else "resumed", connection)


class TracedConnection(Connection):
    """What a Connection becomes."""

    __slots__ = ()
    state: Any = Part(Connection, "state", told=_state_told)
    _paused: Any = Part(Connection, "_paused", told=_paused_told)
    _pending: Any = Part(Connection, "_pending", store=_buffer_stored, told=_buffer_told)
    _recv: Any = Part(Connection, "_recv", hand=_receiving)
    _send: Any = Part(Connection, "_send", hand=_sending)

    def _tear_down(self, error: Exception | None = None) -> None:
        before: State = self.state
        super()._tear_down(error)
        _trace(self).closed(self, error, before.name)


# ---------------------------------------------------------------- sockets of others


class TracedSocket:
    """A listener's or a datagram endpoint's socket, whose calls are told of."""

    __slots__ = ("_handler", "_sock")

    def __init__(self, handler: Listener | Datagram, sock: Any) -> None:
        self._handler, self._sock = handler, sock

    def __getattr__(self, name: str) -> Any:
        """Return what isn't told of: it is the socket's own."""
        return getattr(self._sock, name)

    def accept(self) -> tuple[Any, Any]:
        """Accept, and tell."""
        with _call(self._handler, "accept") as tell:
            sock, peer = self._sock.accept()
            tell("accepted", peer=_name(peer))
        return sock, peer

    def send(self, data: Bytes) -> int:
        """Send to the one peer, and tell."""
        return self._told(len(data), None, lambda: self._sock.send(data))

    def sendto(self, data: Bytes, destination: Address) -> int:
        """Send, and tell."""
        return self._told(len(data), destination, lambda: self._sock.sendto(data, destination))

    def sendmsg(self, buffers: tuple[Bytes], control: Any, flags: int, destination: Address | None) -> int:
        """Send from a chosen address, and tell."""
        call = self._sock.sendmsg
        return self._told(len(buffers[0]), destination, lambda: call(buffers, control, flags, destination))

    def _told(self, offered: int, peer: Address | None, send: Callable[[], int]) -> int:
        with _call(self._handler, "send", offered) as tell:
            sent = send()
            tell("sent", bytes=sent, offered=offered, peer=_name(peer))
        return sent


def _name(peer: Any) -> str:
    """Who has gone may have left no address, and of some families none can be written."""
    try:
        return format_address(peer)
    except Exception:
        return ""


class TracedListener(Listener):
    """What a Listener becomes."""

    __slots__ = ()
    _socket: Any = Part(Listener, "_socket", hand=TracedSocket)

    def abort(self, error: Exception | None = None) -> None:
        """Close, and have the reason told."""
        if not self.closed:
            _trace(self).reason = error
            super().abort(error)


class TracedConnector(Connector):
    """What a Connector becomes."""

    __slots__ = ()

    def abort(self, error: Exception | None = None) -> None:
        """Give up, and have the reason told."""
        if not self.closed:
            _trace(self).reason = error
            super().abort(error)


# ---------------------------------------------------------------- datagrams


def _receiving_datagrams(endpoint: Datagram, receive: Callable[[int], Any]) -> Callable[[int], Any]:
    def traced(size_bytes: int) -> Any:
        with _call(endpoint, "recv") as tell:
            received = receive(size_bytes)
            tell("received", bytes=len(received[0]), asked=size_bytes, peer=_name(received[3]))
        return received

    return traced


def _held_told(endpoint: Datagram, before: Any, after: Any) -> None:
    sizes = [0 if held is None else len(held[0]) for held in (before, after)]
    if sizes[0] != sizes[1]:  # else nothing was held and nothing is, or an empty one
        _trace(endpoint).tell("buffer", endpoint, before=sizes[0], after=sizes[1])


class TracedDatagram(Datagram):
    """What a Datagram becomes."""

    __slots__ = ()
    _socket: Any = Part(Datagram, "_socket", hand=TracedSocket)
    _receive: Any = Part(Datagram, "_receive", hand=_receiving_datagrams)
    _held: Any = Part(Datagram, "_held", told=_held_told)

    def abort(self, error: Exception | None = None) -> None:
        """Close, and have the reason told."""
        if not self.closed:
            _trace(self).reason = error
            super().abort(error)

    def drop(self, reason: str, peer: Address | None = None) -> None:
        """Tell, and drop."""
        _trace(self).tell("dropped", self, reason=reason, count=1, peer=_name(peer))
        super().drop(reason, peer)


def _receiving_batches(endpoint: DatagramBatch, receive: Callable[[], int]) -> Callable[[], int]:
    def traced() -> int:
        with _call(endpoint, "recv") as tell:
            count = receive()
            size_bytes = sum(endpoint.slots.lengths[:count])
            tell("received", bytes=size_bytes, asked=None, datagrams=count)
        return count

    return traced


def _sending_batches(endpoint: DatagramBatch, send: Callable[[int, int], int]) -> Callable[[int, int], int]:
    def traced(first: int, count: int) -> int:
        lengths = endpoint.slots.lengths
        offered = sum(lengths[first : first + count])
        with _call(endpoint, "send", offered) as tell:
            sent = send(first, count)
            tell("sent", bytes=sum(lengths[first : first + sent]), offered=offered, datagrams=sent)
        return sent

    return traced


class TracedBatch(DatagramBatch):
    """What a DatagramBatch becomes."""

    __slots__ = ()
    _receive: Any = Part(DatagramBatch, "_receive", hand=_receiving_batches)
    _send: Any = Part(DatagramBatch, "_send", hand=_sending_batches)

    def drop(self, reason: str, count: int = 1, slot: int | None = None) -> None:
        """Tell, and drop."""
        _trace(self).tell("dropped", self, reason=reason, count=count, peer="")
        super().drop(reason, count, slot)


# ---------------------------------------------------------------- timers


class TracedTimer(Timer):
    """What a Timer becomes."""

    __slots__ = ()

    def cancel(self) -> None:
        """Tell, and cancel."""
        if self.callback is not None:
            cast(Any, self._timers).trace.timer("timer_cancelled", self)
        super().cancel()


STAND_INS: dict[type, type] = {
    Connection: TracedConnection,
    Connector: TracedConnector,
    Listener: TracedListener,
    Datagram: TracedDatagram,
    DatagramBatch: TracedBatch,
    Timer: TracedTimer,
}
for _plain, _told in STAND_INS.items():  # a name in a log, a dump or a trace shall be that of what it stands for
    _told.__name__, _told.__qualname__, _told.__module__ = _plain.__name__, _plain.__qualname__, _plain.__module__
