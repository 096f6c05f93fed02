"""Trace: what a loop does, told event by event to whoever asks. A room beside the simple path.

    Reactor(observer=print)     each event on a line; `sinks` has files of them, `narrate` plain words

Law: the loop's code isn't touched, so nothing is paid while nobody looks. What is exchanged is its data, for data that
does the same and tells:

    the loop's      becomes           and tells
    _select         Traced select     turn, select; while its result is gone through: dispatch, stale
    _selector       TracedSelector    interest
    _timers         TracedTimers      timer_set, timer_cancelled; of those that are due: timer_fired
    _calls          TracedCalls       call
    handlers        TracedHandlers    adopted, closed; and there each handler becomes one that tells (`standins`)

So each event is told in the middle of the very line that makes it so, and `line` says which, `via` who called it. Only
what a callback has raised is told by the loop itself, in `callback_failed`.

An observer sees everything and changes nothing: of the loop it may call `stop` and `call_soon`, and nothing else, as it
is called in the middle of things. One that raises is logged once, and told no more. What a program may do without an
observer it may do with one, so whoever is asked for a name here may fail to have one.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import linecache
import logging
import os
import selectors
import sys
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from reactor.doors import Handler, Observer
from reactor.loop import READ, WRITE, Reactor
from reactor.observe.describe import callback_name, place, protocol_name
from reactor.observe.instrumented import TracedConnection, stand_in
from reactor.sockets.errors import errno_name
from reactor.timers import Arguments, Callback, Timer, Timers

if TYPE_CHECKING:
    from reactor.fastpath.busypoll import Ready, Select

FOLDER = os.path.dirname(os.path.dirname(__file__))
SHOWN = "loop timers buffer connection listener connector datagram signals verbs fastpath/batch fastpath/splice".split()
FILES = {os.path.join(FOLDER, *f"{name}.py".split("/")): f"{name.rpartition('/')[2]}.py" for name in SHOWN}
LINES = {  # of events that come just before a line of `turn`: it is that one which is meant
    "dispatch": "handler.on_event(mask)",
    "stale": "if not handler.closed:",
    "timer_fired": "self.guard(timer.fire)",
}
MOST_CALLERS = 5  # of the line that an event comes from
REMEMBERED_TURNS = 2  # are the names of those that have gone: their last words are still to come

logger = logging.getLogger("reactor")


class Event(NamedTuple):
    """One thing that a loop did. `player/README.md` has a table of the kinds and their fields."""

    number: int  # from 0
    turn: int  # 0 before the first one
    at_s: float  # on the loop's clock
    kind: str
    who: str  # a handler or timer, by a name that it keeps: connection-2, timer-5; empty for the loop
    line: str  # from which it comes: connection.py:208; empty where that is none of the loop's
    via: tuple[str, ...]  # the loop's lines that called that one, innermost first
    fields: dict[str, Any]  # of this kind; of plain types, fit for JSON

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        number, turn, at_s, kind, who, line, via, fields = self
        return {"n": number, "turn": turn, "t": at_s, "kind": kind, "who": who, "at": line, "via": [*via], **fields}

    def __str__(self) -> str:
        """Return it on one line, for `observer=print`."""
        fields = " ".join(f"{name}={value!r}" for name, value in self.fields.items())
        return f"{self.turn:4} {self.at_s:.6f} {self.line:18} {self.who:14} {self.kind:10} {fields}".rstrip()


class Trace:
    """What stands between one loop and its observer. `Reactor(observer=…)` makes it."""

    __slots__ = ("_counts", "_gone", "_labels", "_lines", "_number", "_observer", "inside", "now", "reason", "turn")

    def __init__(self, reactor: Reactor, observer: Observer) -> None:
        self._observer: Observer | None = observer
        self.now = reactor.now
        self._lines = lines_of_turn()
        self._number = self.turn = 0
        self._counts: collections.Counter[str] = collections.Counter()
        self._labels: dict[object, str] = {}
        self._gone: dict[object, int] = {}  # in which turn
        self.reason: Exception | None = None  # with which a handler has just been aborted
        self.inside = False  # a system call that is told of: what a fast path does in it is part of it
        reactor.handlers = TracedHandlers(self)
        reactor._timers = TracedTimers(self)
        reactor._heap = reactor._timers.heap
        reactor._calls = TracedCalls(self)
        reactor._select = self._traced_select(reactor, reactor._select)
        reactor._selector = TracedSelector(self, reactor._selector)

    def tell(self, kind: str, who: object, **fields: Any) -> None:
        """Tell the observer of one event, on behalf of the line that has called this room."""
        if self._observer is None:
            return
        line, *via = where(sys._getframe(1)) or [""]
        line = self._lines.get(kind, line)
        name = "" if who is None else self.label(who)
        event = Event(self._number, self.turn, self.now(), kind, name, line, tuple(via), fields)
        self._number += 1
        try:
            self._observer(event)
        except Exception as error:
            self.end()
            extra = {"event": "callback_raised"}
            logger.error("the observer raised %r; it is told no more", error, exc_info=error, extra=extra)

    def end(self) -> None:
        """Tell no more."""
        self._observer = None
        self._labels.clear()
        self._gone.clear()

    @property
    def ended(self) -> bool:
        """Whether nobody is told any more."""
        return self._observer is None

    def label(self, thing: object) -> str:
        """Return the name of a handler or timer: its class's and a number."""
        found = self._labels.get(thing)
        if found is None:
            name = type(thing).__name__.lower()
            self._counts[name] += 1
            found = self._labels[thing] = f"{name}-{self._counts[name]}"
        return found

    def forget(self, thing: object) -> None:
        """Let go of something that has ended, in a while."""
        self._gone[thing] = self.turn

    def keep(self, thing: object) -> None:
        """It is there again."""
        self._gone.pop(thing, None)

    def _forget_those_gone(self, calls_wait: bool) -> None:
        """At the beginning of a turn. Where no call waits, everybody has said his last word."""
        last = self.turn - REMEMBERED_TURNS if calls_wait else self.turn
        for thing in [thing for thing, turn in self._gone.items() if turn <= last]:
            del self._gone[thing]
            self._labels.pop(thing, None)

    def owner(self, callback: Callback, args: Arguments = ()) -> str:
        """Return the name of the handler that a callback belongs to or is about, if it is one that we know."""
        target: Any = callback
        while isinstance(target, functools.partial):
            target, args = target.func, (*target.args, *args)
        for thing in (safely(lambda: target.__self__), *args):
            found = safely(functools.partial(self._labels.get, thing))  # many things can't be hashed
            if found is not None:
                return str(found)
        return ""

    def raised(self, error: Exception, owner: Handler | None) -> None:
        """Tell of a callback that has raised. Called by the loop."""
        self.tell("raised", None, error=words(error), owner="" if owner is None else self.label(owner))

    def timer(self, kind: str, timer: Timer, **fields: Any) -> None:
        """Tell of a timer that has its callback still, and forget it unless it has just been set."""
        if self.ended:
            return
        callback = cast(Callback, timer.callback)
        self.tell(kind, timer, **fields, callback=name_of(callback), owner=self.owner(callback, timer.args))
        if kind != "timer_set":
            self.forget(timer)

    def closed(self, handler: Handler, error: Exception | None, state: str) -> None:
        """Tell that a handler is gone, and why."""
        self.tell("closed", handler, error=None if error is None else words(error), state=state)

    def _traced_select(self, reactor: Reactor, select: Select) -> Select:
        def traced(timeout_s: float | None = None) -> Ready:
            if self.ended:
                return select(timeout_s)
            self.turn += 1
            self._forget_those_gone(bool(reactor._calls))
            self.tell("turn", None, sleep_s=timeout_s, calls=len(reactor._calls), timers=len(reactor._heap))
            began_s = self.now()
            ready = select(timeout_s)
            seen = ready[:]  # a copy: to go through the list itself is what is measured, where it is one that measures
            named = [[self.label(key.data), mask_name(mask)] for key, mask in seen]
            self.tell("select", None, ready=named, slept_s=self.now() - began_s)
            return TracedReady(ready, self)

        return traced


def lines_of_turn() -> dict[str, str]:
    """Find the lines of LINES in the source; none where there is no source."""
    first, lines = TURN.co_firstlineno, linecache.getlines(TURN.co_filename)
    found = {
        kind: [n for n, line in enumerate(lines, 1) if words in line and n > first] for kind, words in LINES.items()
    }
    return {kind: f"loop.py:{numbers[0]}" for kind, numbers in found.items() if numbers}


def where(frame: FrameType | None) -> list[str]:
    """Return the lines of the loop that led here, the innermost first, to the loop's `turn` at the furthest."""
    lines: list[str] = []
    while frame is not None and len(lines) <= MOST_CALLERS:
        name = FILES.get(frame.f_code.co_filename)
        if name is not None:
            lines.append(f"{name}:{frame.f_lineno}")
            if frame.f_code is TURN:
                break
        frame = frame.f_back
    return lines


TURN: CodeType = Reactor.turn.__code__


def safely(ask: Callable[[], Any]) -> Any:
    """Return what `ask()` returns, None if it fails: names are asked of other people's objects."""
    try:
        return ask()
    except Exception:
        return None


def name_of(callback: Callback) -> str:
    """Return where a callback is defined, or at least its class."""
    return safely(lambda: callback_name(callback)) or type(callback).__name__


def words(error: BaseException) -> str:
    """Return an exception in words, or at least its class: one that can't be printed must not end the loop."""
    try:
        return str(error) if isinstance(error, OSError) and str(error) else repr(error)
    except Exception:
        return type(error).__name__


def mask_name(mask: int) -> str:
    """Return a mask as "", "R", "W" or "RW"."""
    return ("R" if mask & READ else "") + ("W" if mask & WRITE else "")


class TracedReady(list[tuple[selectors.SelectorKey, int]]):
    """What select has returned. The loop goes through it; each is told of just before its turn."""

    def __init__(self, ready: Ready, trace: Trace) -> None:
        super().__init__(ready[:])
        self._ready, self._trace = ready, trace

    def __iter__(self) -> Iterator[tuple[selectors.SelectorKey, int]]:
        """Give out one by one."""
        for key, mask in self._ready:  # itself: what measures does so while it is gone through
            self._trace.tell("stale" if key.data.closed else "dispatch", key.data, mask=mask_name(mask))
            yield key, mask


class TracedSelector(selectors.BaseSelector):
    """Another selector; what it shall watch is told of."""

    def __init__(self, trace: Trace, inner: selectors.BaseSelector) -> None:
        self._trace, self._inner = trace, inner

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Hand on, and tell."""
        with self._refusals(data, "register"):
            key = self._inner.register(fileobj, events, data)
        self._trace.tell("interest", data, before="", after=mask_name(events), resting=False)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Hand on, and tell."""
        before = self._inner.get_key(fileobj).events
        with self._refusals(data, "modify"):
            key = self._inner.modify(fileobj, events, data)
        self._trace.tell("interest", data, before=mask_name(before), after=mask_name(events), resting=False)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Hand on, and tell. Who is taken out with an interest left is resting."""
        key = self._inner.unregister(fileobj)
        handler: Handler = key.data
        self._trace.tell("interest", handler, before=mask_name(key.events), after="", resting=bool(handler.interest))
        return key

    @contextlib.contextmanager
    def _refusals(self, handler: Handler, call: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._trace.tell("error", handler, call=call, errno=errno_name(error), text=error.strerror or str(error))
            raise

    def select(self, timeout: float | None = None) -> Ready:
        """Hand on: the loop has its own way to it."""
        return self._inner.select(timeout)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Hand on."""
        return self._inner.get_map()

    def close(self) -> None:
        """Hand on."""
        self._inner.close()


class TracedTimers(Timers):
    """A heap of timers that are told of."""

    __slots__ = ("_taken_out", "trace")

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        self._taken_out = TakenOut(trace)

    def add(self, deadline_s: float, callback: Callback, args: Arguments = ()) -> Timer:
        """Set a timer, and tell."""
        timer = super().add(deadline_s, callback, args)
        stand_in(timer)
        delay_s = max(0.0, round(deadline_s - self.trace.now(), 6))
        self.trace.timer("timer_set", timer, delay_s=delay_s, due_t=deadline_s)
        return timer

    def pop_due(self, now_s: float) -> list[Timer]:
        """Take out those that are due, to be told of when it is their turn."""
        due = super().pop_due(now_s)
        for timer in due:
            timer._timers = self._taken_out
        return DueTimers(due, self.trace)


class TakenOut(Timers):
    """Where timers are that are due: in no heap, but one may still cancel another."""

    __slots__ = ("trace",)

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def _cancelled_one(self) -> None:
        """There is nothing to be swept."""


class DueTimers(list[Timer]):
    """Timers about to be fired. One that another has cancelled meanwhile isn't told of."""

    def __init__(self, due: list[Timer], trace: Trace) -> None:
        super().__init__(due)
        self._trace = trace

    def __iter__(self) -> Iterator[Timer]:
        """Give out one by one."""
        trace = self._trace
        for timer in super().__iter__():
            if timer.callback is not None:
                trace.timer("timer_fired", timer, lag_s=trace.now() - timer.deadline_s)
            yield timer


class TracedCalls(collections.deque[tuple[Callback, Arguments]]):
    """The queue of `call_soon`. What is taken out is told of, as it is called then."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def popleft(self) -> tuple[Callback, Arguments]:
        """Take out the oldest."""
        callback, args = super().popleft()
        if self._trace.ended:
            return callback, args
        error = next((words(argument) for argument in args if isinstance(argument, Exception)), None)
        owner = self._trace.owner(callback, args)
        self._trace.tell("call", None, callback=name_of(callback), owner=owner, error=error)
        return callback, args


class TracedHandlers(dict[Handler, None]):
    """All open handlers. One that comes in tells what happens to it from then on."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def __setitem__(self, handler: Handler, nothing: None) -> None:
        """Take one in."""
        super().__setitem__(handler, nothing)
        stand_in(handler)
        self._trace.keep(handler)
        # Who has one is a connection; one without a bound has the greatest number that JSON's readers agree upon.
        high_water = safely(lambda: int(min(handler.limits.high_water_bytes, 2**53)))  # type: ignore[attr-defined]
        self._trace.tell(
            "adopted",
            handler,
            what=type(handler).__name__,
            fd=safely(handler.fileno),
            protocol=safely(lambda: protocol_name(handler)) or "",
            where=safely(lambda: place(handler)) or "",
            high_water_bytes=high_water,
        )

    def pop(self, handler: Handler, default: Any = None) -> None:
        """Let one go. A connection tells that itself, as it knows why."""
        if handler in self:
            super().pop(handler)
            self._trace.forget(handler)
            if not isinstance(handler, TracedConnection):
                reason, self._trace.reason = self._trace.reason, None
                self._trace.closed(handler, reason, "")
