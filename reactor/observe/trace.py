"""Trace: an `Observer` that reports what a loop does, event by event.

    Reactor(observer=Trace(print))     print each event; `sinks` writes files, `narrate` sentences

Law: a trace sees everything and changes nothing. The core reports its own events (`Reactor.tell`); instrumented parts
report what happens with every message (`instrumented`). Each event has the line of the loop that caused it (`line`)
and the lines that called that one (`via`).

The callback may only call the loop's `stop` and `call_soon`, because it runs in the middle of a step. If it raises, the
error is logged once and the trace ends. Finding a name here never fails, whatever objects the program uses.
"""

from __future__ import annotations

import collections
import functools
import logging
import os
import selectors
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, NamedTuple, cast

from reactor.buffer import Bytes, SendBuffer
from reactor.doors import Observer
from reactor.handler import Handler
from reactor.loop import Reactor
from reactor.observe.describe import callback_name, place, protocol_name, timer_of
from reactor.observe.instrumented import (
    InstrumentedBuffer,
    InstrumentedSelector,
    InstrumentedSocket,
    InstrumentedTimers,
    mask_name,
    peer_name,
)
from reactor.timers import Arguments, Callback, Timers

FOLDER = os.path.dirname(os.path.dirname(__file__))
SHOWN = (
    "loop timers buffer connection listener connector datagram signals verbs sockets/watchlist sockets/signaltable "
    "fastpath/batch fastpath/splice"
).split()
FILES = {os.path.join(FOLDER, *f"{name}.py".split("/")): f"{name}.py" for name in SHOWN}
AROUND_TURNS: set[CodeType] = {Reactor.run.__code__, Reactor.turn.__code__}
MOST_CALLERS = 5  # in `via`
REMEMBERED_TURNS = 2  # for names of closed handlers: their last callback is still to come

__all__ = ["Event", "EventSink", "Trace"]

logger = logging.getLogger("reactor")


class Event(NamedTuple):
    """One thing that a loop did. `kinds.py` has a table of the kinds and their fields."""

    number: int  # from 0
    turn: int  # 0 before the first
    at_s: float  # on the loop's clock
    kind: str
    who: str  # a handler's or timer's label, such as connection-2; empty for the loop
    line: str  # such as connection.py:208; empty outside the loop's files
    via: tuple[str, ...]  # the lines that called that one, innermost first
    fields: dict[str, Any]  # of this kind, in plain types for JSON

    def document(self) -> dict[str, Any]:
        """Return the event's JSON object."""
        number, turn, at_s, kind, who, line, via, fields = self
        return {"n": number, "turn": turn, "t": at_s, "kind": kind, "who": who, "at": line, "via": [*via], **fields}

    def __str__(self) -> str:
        """Return one line, for `Trace(print)`."""
        fields = " ".join(f"{name}={value!r}" for name, value in self.fields.items())
        return f"{self.turn:4} {self.at_s:.6f} {self.line:18} {self.who:14} {self.kind:10} {fields}".rstrip()


EventSink = Callable[[Event], object]


class Trace(Observer):
    """Calls `callback(event)` for each event of one loop. Pass it to `Reactor(observer=…)`."""

    __slots__ = (
        "_before_close", "_began_s", "_callback", "_counts", "_gone", "_labels", "_number", "_reactor", "_timers",
        "_turn",
    )  # fmt: skip

    def __init__(self, callback: EventSink) -> None:
        self._callback: EventSink | None = callback
        self._number = self._turn = 0
        self._began_s = 0.0  # when select was called
        self._counts: collections.Counter[str] = collections.Counter()
        self._labels: dict[object, str] = {}
        self._gone: dict[object, int] = {}  # → the turn of its end
        self._timers = InstrumentedTimers(self)
        self._before_close: dict[object, str] = {}  # the previous state of a connection being closed

    def attach(self, reactor: Reactor) -> None:
        """Trace this loop. Raise RuntimeError for a second one."""
        if hasattr(self, "_reactor"):
            raise RuntimeError("this Trace belongs to another loop: make a Trace for each")
        self._reactor = reactor

    def detach(self) -> None:
        """Report nothing more."""
        self._callback = None
        self._labels.clear()
        self._gone.clear()

    def selector(self, selector: selectors.BaseSelector) -> selectors.BaseSelector:
        """Return a selector that reports."""
        return InstrumentedSelector(self, selector)

    def timers(self) -> Timers:
        """Return timers that report."""
        return self._timers

    def guard(self, guard: Callable[..., None]) -> Callable[..., None]:
        """Return a guard that reports a timer before it fires."""

        def told(callback: Callback, *args: object, owner: Handler | None = None) -> None:
            timer = timer_of(callback)
            if timer is not None:
                self.tell("timer_fired", timer)
            guard(callback, *args, owner=owner)

        return told

    def socket(self, handler: Handler, sock: Any) -> Any:
        """Return a socket that reports."""
        return InstrumentedSocket(self, handler, sock)

    def buffer(self, handler: Handler, pending: Bytes) -> SendBuffer:
        """Return a buffer that reports."""
        return InstrumentedBuffer(self, handler, pending)

    def tell(self, kind: str, who: object, **facts: Any) -> None:
        """Pass one event to the callback. FIELDS turns the core's objects in `facts` into plain values."""
        if self._callback is None:
            return
        fields = FIELDS.get(kind)
        if fields is not None:
            found = fields(self, who, **facts)
            if found is None:
                return
            facts = found
        who = None if kind == "raised" else who
        line, *via = where(sys._getframe(1)) or [""]
        name = "" if who is None else self.label(who)
        event = Event(self._number, self._turn, self._reactor.now(), kind, name, line, tuple(via), facts)
        self._number += 1
        if kind in ENDS:
            self._gone[who] = self._turn
        try:
            self._callback(event)
        except Exception as error:
            self.detach()
            extra = {"event": "callback_raised"}
            logger.error("observer raised %r; the trace ends", error, exc_info=error, extra=extra)

    def begin_turn(self, timeout_s: float | None) -> bool:
        """Report a new turn. Return False if the trace has ended."""
        if self._callback is None:
            return False
        calls = len(self._reactor.calls)
        self._turn += 1
        self._forget_what_is_gone(calls > 0)
        self.tell("turn", None, sleep_s=timeout_s, calls=calls, timers=self._timers.size)
        self._began_s = self._reactor.now()
        return True

    def end_select(self, ready: list[tuple[Handler, int]]) -> None:
        """Report the result of select."""
        named = [[self.label(handler), mask_name(mask)] for handler, mask in ready]
        self.tell("select", None, ready=named, slept_s=self._reactor.now() - self._began_s)

    def label(self, thing: object) -> str:
        """Return the label of a handler or timer: its class and a number."""
        found = self._labels.get(thing)
        if found is None:
            name = type(thing).__name__.lower()
            self._counts[name] += 1
            found = self._labels[thing] = f"{name}-{self._counts[name]}"
        return found

    def _forget_what_is_gone(self, calls_wait: bool) -> None:
        """Drop the labels of closed handlers and timers after their last callback: now, if no call waits."""
        last = self._turn - REMEMBERED_TURNS if calls_wait else self._turn
        for thing in [thing for thing, turn in self._gone.items() if turn <= last]:
            del self._gone[thing]
            self._labels.pop(thing, None)

    def owner(self, callback: Callback, args: Arguments = ()) -> str:
        """Return the label of the handler or timer that a callback belongs to, or takes as an argument; "" if none."""
        target: Any = callback
        while isinstance(target, functools.partial):
            target, args = target.func, (*target.args, *args)
        for thing in (safely(lambda: target.__self__), *args):
            found = safely(functools.partial(self._labels.get, thing))  # it may be unhashable
            if found is not None:
                return str(found)
        return ""

    # The methods below make an event's fields from the facts that the core reports.

    def adopted(self, handler: Any) -> dict[str, Any]:
        """Describe a newly registered handler."""
        self._gone.pop(handler, None)
        return {
            "what": type(handler).__name__,
            "fd": safely(handler.fileno),
            "protocol": safely(lambda: protocol_name(handler)) or "",
            "where": safely(lambda: place(handler)) or "",
            # 2**53 stands for no bound: the greatest integer that every reader of JSON has.
            "high_water_bytes": safely(lambda: int(min(handler.limits.high_water_bytes, 2**53))),
        }

    def closed(self, handler: object, error: Exception | None) -> dict[str, Any]:
        """Describe why a handler was closed."""
        state = self._before_close.pop(handler, "")
        return {"error": None if error is None else words(error), "state": state}

    def state(self, handler: object, before: Any, after: Any) -> dict[str, Any]:
        """Describe a connection's change of state."""
        if after.name == "CLOSED":
            self._before_close[handler] = before.name
        return {"before": before.name, "after": after.name}

    def call(self, _who: object, callback: Callback, args: Arguments) -> dict[str, Any]:
        """Describe a queued call that is about to run."""
        error = next((words(argument) for argument in args if isinstance(argument, Exception)), None)
        return {"callback": name_of(callback), "owner": self.owner(callback, args), "error": error}

    def raised(self, owner: Any, error: Exception) -> dict[str, Any]:
        """Describe an exception from a callback."""
        owner = getattr(owner, "observed_handler", owner)
        return {"error": words(error), "owner": "" if owner is None else self.label(owner)}

    def buffered(self, _handler: object, before: int, after: int) -> dict[str, Any] | None:
        """Describe a buffer's size; None if it hasn't changed (an empty datagram)."""
        return None if before == after else {"before": before, "after": after}

    def dropped(self, _endpoint: object, reason: str, count: int, peer: Any) -> dict[str, Any]:
        """Describe dropped datagrams."""
        return {"reason": reason, "count": count, "peer": peer_name(peer)}

    def timer_set(self, timer: Any) -> dict[str, Any]:
        """Describe a new timer."""
        delay_s = max(0.0, round(timer.deadline_s - self._reactor.now(), 6))
        return {"delay_s": delay_s, "due_t": timer.deadline_s, **self.timer(timer)}

    def timer_fired(self, timer: Any) -> dict[str, Any]:
        """Describe a timer that is about to fire."""
        return {"lag_s": self._reactor.now() - timer.deadline_s, **self.timer(timer)}

    def timer(self, timer: Any) -> dict[str, Any]:
        """Describe a timer's callback."""
        callback = cast(Callback, timer.callback)
        return {"callback": name_of(callback), "owner": self.owner(callback, timer.args)}


FIELDS: dict[str, Callable[..., dict[str, Any] | None]] = {
    "adopted": Trace.adopted,
    "buffer": Trace.buffered,
    "call": Trace.call,
    "closed": Trace.closed,
    "dropped": Trace.dropped,
    "raised": Trace.raised,
    "state": Trace.state,
    "timer_cancelled": Trace.timer,
    "timer_fired": Trace.timer_fired,
    "timer_set": Trace.timer_set,
}
ENDS = frozenset({"closed", "timer_cancelled", "timer_fired"})


def where(frame: FrameType | None) -> list[str]:
    """Return the loop's lines in the call stack, innermost first, up to the turn's."""
    lines: list[str] = []
    while frame is not None and frame.f_code not in AROUND_TURNS and len(lines) <= MOST_CALLERS:
        name = FILES.get(frame.f_code.co_filename)
        if name is not None:
            lines.append(f"{name}:{frame.f_lineno}")
        frame = frame.f_back
    return lines


def safely(ask: Callable[[], Any]) -> Any:
    """Return `ask()`, or None if it raises: a user's object may raise anything."""
    try:
        return ask()
    except Exception:
        return None


def name_of(callback: Callback) -> str:
    """Return where a callback is defined, or its class."""
    return safely(lambda: callback_name(callback)) or type(callback).__name__


def words(error: BaseException) -> str:
    """Return an exception as text, or its class if it can't be printed."""
    try:
        return str(error) if isinstance(error, OSError) and str(error) else repr(error)
    except Exception:
        return type(error).__name__
