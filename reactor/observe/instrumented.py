"""Instrumented parts: what a traced loop gets in place of its selector, sockets, buffers and timers.

Law: each does what the plain part does, and tells. The loop gets them once, at construction, by the doors of
`doors.Observer`; a loop without a trace has none of this. An event is told in the middle of the line of the loop that
made it so, which is how `trace` knows the line.
"""

from __future__ import annotations

import contextlib
import functools
import selectors
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from reactor.buffer import Bytes, SendBuffer
from reactor.connection import Connection
from reactor.doors import Handler
from reactor.loop import READ, WRITE
from reactor.sockets.addresses import Address, format_address
from reactor.sockets.errors import WOULD_BLOCK, errno_name
from reactor.sockets.wrapped_selector import Ready, WrappedSelector
from reactor.timers import Arguments, Callback, Timer, Timers


class Telling(Protocol):
    """What the parts need of a trace."""

    def tell(self, kind: str, who: object, **facts: Any) -> None:
        """Tell of one event."""

    def begin_turn(self, timeout_s: float | None) -> bool:
        """Tell of a new turn. Return False when nothing is told any more."""

    def end_select(self, ready: list[tuple[Handler, int]]) -> None:
        """Tell what select has found."""


def mask_name(mask: int) -> str:
    """Return a mask as "", "R", "W" or "RW"."""
    return ("R" if mask & READ else "") + ("W" if mask & WRITE else "")


def peer_name(peer: Any) -> str:
    """Return an address in words; "" for a peer that has left none, or one of another family."""
    try:
        return format_address(peer)
    except Exception:
        return ""


# ---------------------------------------------------------------- the selector


class Dispatched:
    """Stands for a handler in the selector, and tells when the loop calls it or skips it. All else is the handler's."""

    __slots__ = ("_trace", "mask", "observed_handler")

    def __init__(self, trace: Telling, handler: Handler) -> None:
        self._trace, self.observed_handler = trace, handler
        self.mask = 0  # for what it was found ready last

    def __getattr__(self, name: str) -> Any:
        """Return what the handler has by that name."""
        return getattr(self.observed_handler, name)

    @property
    def closed(self) -> bool:
        """Whether the handler was closed earlier in the same batch."""
        closed = self.observed_handler.closed
        if closed:
            self._trace.tell("stale", self.observed_handler, mask=mask_name(self.mask))
        return closed

    def on_event(self, mask: int) -> None:
        """Tell, and hand on."""
        self._trace.tell("dispatch", self.observed_handler, mask=mask_name(mask))
        self.observed_handler.on_event(mask)


class InstrumentedSelector(WrappedSelector):
    """Tells what is watched, and what select finds."""

    def __init__(self, trace: Telling, inner: selectors.BaseSelector) -> None:
        super().__init__(inner)
        self._trace = trace

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Hand on, and tell."""
        with self._refusals(data, "register"):
            key = self.inner.register(fileobj, events, Dispatched(self._trace, data))
        self._trace.tell("interest", data, before="", after=mask_name(events), resting=False)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Hand on, and tell."""
        before = self.inner.get_key(fileobj)
        with self._refusals(data, "modify"):
            key = self.inner.modify(fileobj, events, before.data)
        changed = {"before": mask_name(before.events), "after": mask_name(events)}
        self._trace.tell("interest", data, **changed, resting=False)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Hand on, and tell. A handler that is taken out with an interest left is suspended."""
        key = self.inner.unregister(fileobj)
        handler = key.data.observed_handler
        resting = bool(handler.interest)
        self._trace.tell("interest", handler, before=mask_name(key.events), after="", resting=resting)
        return key

    def select(self, timeout: float | None = None) -> Ready:
        """Hand on, and tell before and after."""
        if not self._trace.begin_turn(timeout):
            return self.inner.select(timeout)
        ready = self.inner.select(timeout)
        found: list[tuple[Handler, int]] = []
        # A copy is gone through: the list itself may be one that measures while the loop goes through it.
        for key, mask in ready[:]:
            key.data.mask = mask
            found.append((key.data.observed_handler, mask))
        self._trace.end_select(found)
        return ready

    @contextlib.contextmanager
    def _refusals(self, handler: Handler, call: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._trace.tell("error", handler, call=call, errno=errno_name(error), text=error.strerror or str(error))
            raise


# ---------------------------------------------------------------- sockets


class InstrumentedSocket:
    """A handler's socket (or transport, or batch of calls), whose system calls are told."""

    __slots__ = ("_handler", "_sock", "_trace")

    def __init__(self, trace: Telling, handler: Handler, sock: Any) -> None:
        self._trace, self._handler, self._sock = trace, handler, sock

    def __getattr__(self, name: str) -> Any:
        """Return one of the socket's own calls, or one that tells."""
        call, told = getattr(self._sock, name), TOLD.get(name)
        return call if told is None else functools.partial(told, self, call)

    def _accept(self, call: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
        """Tell of accept(2)."""
        with self._told("accept") as tell:
            sock, peer = call()
            tell("accepted", peer=peer_name(peer))
        return sock, peer

    def _recv(self, call: Callable[[int], Any], size_bytes: int) -> Any:
        """Tell of a stream's recv(2)."""
        with self._told("recv") as tell, self._pending_told():
            data = call(size_bytes)
            if data:
                tell("received", bytes=len(data), asked=size_bytes)
            else:
                tell("eof")
        return data

    def _send(self, call: Callable[[Any], int], data: Any) -> int:
        """Tell of send(2)."""
        if isinstance(self._handler, Connection):
            with self._pending_told():
                return self._sent(len(data), lambda: call(data))
        return self._sent(len(data), lambda: call(data), peer="")

    def _sendto(self, call: Callable[..., int], data: Bytes, destination: Address) -> int:
        """Tell of sendto(2)."""
        return self._sent(len(data), lambda: call(data, destination), peer=peer_name(destination))

    def _sendmsg(self, call: Callable[..., int], buffers: tuple[Bytes], control: Any, flags: int, to: Any) -> int:
        """Tell of sendmsg(2)."""
        return self._sent(len(buffers[0]), lambda: call(buffers, control, flags, to), peer=peer_name(to))

    def _receive(self, call: Callable[..., Any], size_bytes: int, *room_bytes: int) -> Any:
        """Tell of recvmsg(2) and recvfrom(2)."""
        with self._told("recv") as tell:
            received = call(size_bytes, *room_bytes)
            tell("received", bytes=len(received[0]), asked=size_bytes, peer=peer_name(received[-1]))
        return received

    def _recvmmsg(self, call: Callable[[], int]) -> int:
        """Tell of recvmmsg(2)."""
        with self._told("recv") as tell:
            count = call()
            tell("received", bytes=sum(self._sock.lengths[:count]), asked=None, datagrams=count)
        return count

    def _sendmmsg(self, call: Callable[[int, int], int], first: int, count: int) -> int:
        """Tell of sendmmsg(2)."""
        lengths = self._sock.lengths
        offered = sum(lengths[first : first + count])
        with self._told("send", offered) as tell:
            sent = call(first, count)
            tell("sent", bytes=sum(lengths[first : first + sent]), offered=offered, datagrams=sent)
        return sent

    def _sent(self, offered: int, call: Callable[[], int], **peer: str) -> int:
        with self._told("send", offered) as tell:
            sent = call()
            tell("sent", bytes=sent, offered=offered, **peer)
        return sent

    @contextlib.contextmanager
    def _told(self, name: str, offered: int | None = None) -> Iterator[Callable[..., None]]:
        """Make a system call in this block, and say what came of it with what is yielded. Errors are told here."""
        trace, handler = self._trace, self._handler
        try:
            yield functools.partial(_tell, trace, handler)
        except WOULD_BLOCK:
            trace.tell("blocked", handler, call=name, offered=offered)
            raise
        except OSError as error:
            trace.tell("error", handler, call=name, errno=errno_name(error), text=error.strerror or str(error))
            raise

    @contextlib.contextmanager
    def _pending_told(self) -> Iterator[None]:
        """Tell if a transport's pending bytes have changed in this block. A SendBuffer tells of itself."""
        before = getattr(self._handler, "pending_bytes", 0)
        yield
        after = getattr(self._handler, "pending_bytes", 0)
        if before != after:
            self._trace.tell("buffer", self._handler, before=before, after=after)


def _tell(trace: Telling, handler: Handler, kind: str, **facts: Any) -> None:
    trace.tell(kind, handler, **facts)


TOLD: dict[str, Callable[..., Any]] = {
    "accept": InstrumentedSocket._accept,
    "recv": InstrumentedSocket._recv,
    "recvfrom": InstrumentedSocket._receive,
    "recvmmsg": InstrumentedSocket._recvmmsg,
    "recvmsg": InstrumentedSocket._receive,
    "send": InstrumentedSocket._send,
    "sendmmsg": InstrumentedSocket._sendmmsg,
    "sendmsg": InstrumentedSocket._sendmsg,
    "sendto": InstrumentedSocket._sendto,
}


# ---------------------------------------------------------------- buffers and timers


class InstrumentedBuffer(SendBuffer):
    """A connection's send buffer that tells how full it is."""

    __slots__ = ("_handler", "_trace")

    def __init__(self, trace: Telling, handler: Handler, pending: Bytes) -> None:
        super().__init__(pending)
        self._trace, self._handler = trace, handler

    def append(self, data: Bytes, start: int = 0) -> None:
        """Add, and tell."""
        with self._changed():
            super().append(data, start)

    def clear(self) -> None:
        """Forget all, and tell."""
        with self._changed():
            super().clear()

    def consume(self, count: int) -> None:
        """Forget, and tell."""
        with self._changed():
            super().consume(count)

    @contextlib.contextmanager
    def _changed(self) -> Iterator[None]:
        before = len(self)
        yield
        if before != len(self):
            self._trace.tell("buffer", self._handler, before=before, after=len(self))


class InstrumentedTimers(Timers):
    """Timers that tell when one is set or cancelled. The loop tells when one fires."""

    __slots__ = ("_trace",)

    def __init__(self, trace: Telling) -> None:
        super().__init__()
        self._trace = trace

    def add(self, deadline_s: float, callback: Callback, args: Arguments = ()) -> Timer:
        """Set a timer, and tell."""
        timer = super().add(deadline_s, callback, args)
        self._trace.tell("timer_set", timer)
        return timer

    def cancel(self, timer: Timer) -> None:
        """Tell, and cancel."""
        self._trace.tell("timer_cancelled", timer)
        super().cancel(timer)
