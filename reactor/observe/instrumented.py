"""Instrumented parts: a traced loop uses them in place of its selector, sockets, buffers and timers.

Law: each does what the plain part does, and reports it. The loop gets them once, at construction, through
`doors.Observer`; an untraced loop has none of them. A part reports from within the call of the loop's own line, so
`trace` can find that line.
"""

from __future__ import annotations

import contextlib
import functools
import math
import selectors
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from reactor.buffer import Bytes, SendBuffer
from reactor.connection import Connection
from reactor.handler import Handler
from reactor.loop import READ, WRITE
from reactor.sockets.addresses import Address, format_address
from reactor.sockets.errors import WOULD_BLOCK, errno_name
from reactor.sockets.wrapped_selector import Ready, WrappedSelector
from reactor.timers import Arguments, Callback, Timer, Timers


class Telling(Protocol):
    """What the parts need of a trace."""

    def tell(self, kind: str, who: object, **facts: Any) -> None:
        """Report one event."""

    def begin_turn(self, timeout_s: float | None) -> bool:
        """Report a new turn. Return False if the trace has ended."""

    def end_select(self, ready: list[tuple[Handler, int]]) -> None:
        """Report the result of select."""


def mask_name(mask: int) -> str:
    """Return a mask as "", "R", "W" or "RW"."""
    return ("R" if mask & READ else "") + ("W" if mask & WRITE else "")


def peer_name(peer: Any) -> str:
    """Return an address as text, "" for a peer without one or of another family."""
    try:
        return format_address(peer)
    except Exception:
        return ""


@contextlib.contextmanager
def buffer_told(trace: Telling, handler: Handler, size: Callable[[], int]) -> Iterator[None]:
    """Report a change of the pending bytes within the block."""
    before = size()
    yield
    after = size()
    if before != after:
        trace.tell("buffer", handler, before=before, after=after)


class Dispatched:
    """Stands for a handler in the selector, and reports when the loop calls or skips it."""

    __slots__ = ("_trace", "mask", "observed_handler")

    def __init__(self, trace: Telling, handler: Handler) -> None:
        self._trace, self.observed_handler = trace, handler
        self.mask = 0  # from the latest select

    def __getattr__(self, name: str) -> Any:
        """Return the handler's attribute."""
        return getattr(self.observed_handler, name)

    @property
    def closed(self) -> bool:
        """Whether the handler was closed earlier in the same batch."""
        closed = self.observed_handler.closed
        if closed:
            self._trace.tell("stale", self.observed_handler, mask=mask_name(self.mask))
        return closed

    def on_event(self, mask: int) -> None:
        """Report, then call the handler."""
        self._trace.tell("dispatch", self.observed_handler, mask=mask_name(mask))
        self.observed_handler.on_event(mask)


class InstrumentedSelector(WrappedSelector):
    """Reports changes of interest and the results of select."""

    def __init__(self, trace: Telling, inner: selectors.BaseSelector) -> None:
        super().__init__(inner)
        self._trace = trace

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Register, and report."""
        with self._refusals(data, "register"):
            key = self.inner.register(fileobj, events, Dispatched(self._trace, data))
        self._trace.tell("interest", data, before="", after=mask_name(events), resting=False)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Modify, and report."""
        before = self.inner.get_key(fileobj)
        with self._refusals(data, "modify"):
            key = self.inner.modify(fileobj, events, before.data)
        changed = {"before": mask_name(before.events), "after": mask_name(events)}
        self._trace.tell("interest", data, **changed, resting=False)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Unregister, and report. A handler that still has an interest is suspended."""
        key = self.inner.unregister(fileobj)
        handler = key.data.observed_handler
        suspended = bool(handler.interest)
        self._trace.tell("interest", handler, before=mask_name(key.events), after="", resting=suspended)
        return key

    def select(self, timeout: float | None = None) -> Ready:
        """Select, and report before and after."""
        if not self._trace.begin_turn(timeout):
            return self.inner.select(timeout)
        ready = self.inner.select(timeout)
        found: list[tuple[Handler, int]] = []
        # Iterate over a copy: the list itself may measure the loop's iteration (`watch.TimedReady`).
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


class InstrumentedSocket:
    """A handler's socket (or transport, or batch of calls) that reports its system calls."""

    __slots__ = ("_handler", "_sock", "_trace")

    def __init__(self, trace: Telling, handler: Handler, sock: Any) -> None:
        self._trace, self._handler, self._sock = trace, handler, sock

    def __getattr__(self, name: str) -> Any:
        """Return the socket's attribute, or a call that reports."""
        call, told = getattr(self._sock, name), TOLD.get(name)
        return call if told is None else functools.partial(told, self, call)

    def _accept(self, call: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
        sock, peer = self._try("accept", None, call)
        self._trace.tell("accepted", self._handler, peer=peer_name(peer))
        return sock, peer

    def _recv(self, call: Callable[[int], Any], size_bytes: int) -> Any:
        """Receive from a stream."""
        with self._pending_told():
            data = self._try("recv", None, call, size_bytes)
            if data:
                self._trace.tell("received", self._handler, bytes=len(data), asked=size_bytes)
            else:
                self._trace.tell("eof", self._handler)
        return data

    def _send(self, call: Callable[[Any], int], data: Any) -> int:
        if not isinstance(self._handler, Connection):
            return self._sent(len(data), {"peer": ""}, call, data)
        with self._pending_told():
            return self._sent(len(data), {}, call, data)

    def _sendto(self, call: Callable[..., int], data: Bytes, destination: Address) -> int:
        return self._sent(len(data), {"peer": peer_name(destination)}, call, data, destination)

    def _sendmsg(self, call: Callable[..., int], buffers: tuple[Bytes], control: Any, flags: int, to: Any) -> int:
        return self._sent(len(buffers[0]), {"peer": peer_name(to)}, call, buffers, control, flags, to)

    def _receive(self, call: Callable[..., Any], size_bytes: int, *room_bytes: int) -> Any:
        """Receive a datagram: recvmsg(2) or recvfrom(2)."""
        received = self._try("recv", None, call, size_bytes, *room_bytes)
        facts = {"bytes": len(received[0]), "asked": size_bytes, "peer": peer_name(received[-1])}
        self._trace.tell("received", self._handler, **facts)
        return received

    def _recvmmsg(self, call: Callable[[], int]) -> int:
        count: int = self._try("recv", None, call)
        received_bytes = sum(self._sock.lengths[:count])
        self._trace.tell("received", self._handler, bytes=received_bytes, asked=None, datagrams=count)
        return count

    def _sendmmsg(self, call: Callable[[int, int], int], first: int, count: int) -> int:
        lengths = self._sock.lengths
        offered = sum(lengths[first : first + count])
        sent: int = self._try("send", offered, call, first, count)
        sent_bytes = sum(lengths[first : first + sent])
        self._trace.tell("sent", self._handler, bytes=sent_bytes, offered=offered, datagrams=sent)
        return sent

    def _sent(self, offered: int, peer: dict[str, str], call: Callable[..., int], *args: Any) -> int:
        sent: int = self._try("send", offered, call, *args)
        self._trace.tell("sent", self._handler, bytes=sent, offered=offered, **peer)
        return sent

    def _try(self, name: str, offered: int | None, call: Callable[..., Any], *args: Any) -> Any:
        """Make a system call, and report an error."""
        trace, handler = self._trace, self._handler
        try:
            return call(*args)
        except WOULD_BLOCK:
            trace.tell("blocked", handler, call=name, offered=offered)
            raise
        except OSError as error:
            trace.tell("error", handler, call=name, errno=errno_name(error), text=error.strerror or str(error))
            raise

    def _pending_told(self) -> contextlib.AbstractContextManager[None]:
        """Report a change of a transport's pending bytes. A SendBuffer reports its own."""
        return buffer_told(self._trace, self._handler, lambda: getattr(self._handler, "pending_bytes", 0))


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


class InstrumentedBuffer(SendBuffer):
    """A connection's send buffer that reports its size."""

    __slots__ = ("_told",)

    def __init__(self, trace: Telling, handler: Handler, pending: Bytes) -> None:
        super().__init__(pending)
        self._told = functools.partial(buffer_told, trace, handler, self.__len__)

    def append(self, data: Bytes, start: int = 0) -> None:
        """Append, and report."""
        with self._told():
            super().append(data, start)

    def clear(self) -> None:
        """Clear, and report."""
        with self._told():
            super().clear()

    def consume(self, count: int) -> None:
        """Consume, and report."""
        with self._told():
            super().consume(count)


class InstrumentedTimers(Timers):
    """Timers that report when one is set or cancelled. The guard reports when one fires."""

    __slots__ = ("_trace",)

    def __init__(self, trace: Telling) -> None:
        super().__init__()
        self._trace = trace

    def add(self, deadline_s: float, callback: Callback, args: Arguments = (), now_s: float = -math.inf) -> Timer:
        """Set a timer, and report."""
        timer = super().add(deadline_s, callback, args, now_s)
        self._trace.tell("timer_set", timer)
        return timer

    def cancel(self, timer: Timer) -> None:
        """Report, and cancel."""
        self._trace.tell("timer_cancelled", timer)
        super().cancel(timer)
