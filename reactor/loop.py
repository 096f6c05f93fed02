"""The loop. One turn is five steps, and `Reactor.turn` takes them in this order:

    1. sleep     decide how long select may block: not at all if calls wait, else until the next timer
    2. select    ask the kernel which descriptors are ready
    3. dispatch  give each ready handler its mask: `handler.on_event(mask)`
    4. timers    remove every due timer from the heap, then fire them
    5. calls     run the calls that were queued when this step began

Laws. The selector's `data` is the handler itself; nothing is looked up by descriptor number. So a handler closed
earlier in the same batch is skipped, and a new handler with the same number is never called by mistake. Interest
changes in one place, `set_interest`. Every step is bounded. A callback that raises closes its own handler and costs
one log line with a traceback; the loop goes on. Other threads may only call `call_soon_threadsafe`.
"""

import collections
import contextlib
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from typing import NamedTuple, Self

from reactor.doors import NOTHING_OBSERVED, Handler, Observer
from reactor.limits import SHORTAGE_RETRY_S
from reactor.signals import Waker
from reactor.sockets.errors import NO_ROOM_TO_WATCH
from reactor.sockets.factory import SignalSource, SocketFactory
from reactor.timers import Arguments, Callback, Timer

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

logger = logging.getLogger("reactor")


class Snapshot(NamedTuple):
    """What a loop holds at one moment. Handlers show the rest in their own public attributes."""

    handlers: tuple[Handler, ...]  # oldest first
    suspended: frozenset[Handler]  # not watched for a while, whatever their interest
    timers: tuple[Timer, ...]  # the live ones, unordered
    calls: tuple[tuple[Callback, Arguments], ...]  # in the order in which they run
    signals_pending: bool  # one has arrived and isn't handled yet: exec(2) would lose it


class Reactor:
    """A single-threaded event loop over a `selectors` selector.

    The arguments are its doors (`doors.py`). `close` closes the selector too. `guard(callback, *args, owner=None)`
    calls a user's callback; if that raises, the error is logged once and `owner` is aborted. `tell` is the observer's;
    `add_signal_handler(signum, callback)` and `remove_signal_handler(signum)` are the Waker's (`signals.py`).
    """

    __slots__ = (
        "_heap", "_running", "_select", "_selector", "_stopping", "_suspended", "_timers", "_waker",
        "add_signal_handler", "calls", "closed", "guard", "handlers", "now", "observer", "remove_signal_handler",
        "sockets", "tell",
    )  # fmt: skip

    def __init__(
        self,
        *,
        selector: selectors.BaseSelector | None = None,
        clock: Callable[[], float] = time.monotonic,
        sockets: SocketFactory = socket,
        signals: SignalSource = signal,
        observer: Observer = NOTHING_OBSERVED,
    ) -> None:
        self.sockets, self.observer = sockets, observer
        self.now = clock  # monotonic seconds from an arbitrary start
        self.handlers: dict[Handler, None] = {}  # an ordered set of all open handlers; read-only
        self._selector = selectors.DefaultSelector() if selector is None else selector
        observer.attach(self)
        self._selector = observer.selector(self._selector)
        self._timers, self.guard, self.tell = observer.timers(), observer.guard(self._guard), observer.tell
        self._select = self._selector.select
        self._heap = self._timers.heap  # its truth value is cheaper to ask than a method
        self.calls: collections.deque[tuple[Callback, Arguments]] = collections.deque()  # read-only
        self._suspended: dict[Handler, Timer] = {}
        self._running = self._stopping = self.closed = False
        self._waker = Waker(sockets, signals, self.call_soon)
        self.add_signal_handler, self.remove_signal_handler = self._waker.add_signal, self._waker.remove_signal
        self.register(self._waker)
        self.set_interest(self._waker, READ)

    def run(self) -> None:
        """Turn until `stop` is called. The last turn takes all its steps."""
        try:
            self._running = True
            while not self._stopping:
                self.turn()
        finally:
            self._running = self._stopping = False

    def turn(self) -> None:
        """Take the five steps of the module's docstring once. Block in step 2 if there is nothing to do."""
        sleep_s: float | None = None
        if self.calls or self._stopping:
            sleep_s = 0.0
        elif self._heap:
            sleep_s = self._timers.sleep_s(self.now())
        for key, mask in self._select(sleep_s):
            handler: Handler = key.data
            if not handler.closed:
                try:
                    handler.on_event(mask)
                except Exception as error:
                    self.callback_failed(error, handler)
        if self._heap:
            self._run_timers()
        if self.calls:
            self._run_calls()

    def stop(self) -> None:
        """Make `run` return after this turn. If it isn't running yet, it will return at once."""
        self._stopping = True

    def _run_timers(self) -> None:
        for timer in self._timers.pop_due(self.now()):
            self.guard(timer.fire)

    def _run_calls(self) -> None:
        for _ in range(len(self.calls)):  # what these calls queue runs in the next turn
            callback, args = self.calls.popleft()
            self.tell("call", None, callback=callback, args=args)
            self.guard(callback, *args)

    def register(self, handler: Handler) -> None:
        """Add a handler, with no interest yet. `close` aborts it. Raise RuntimeError if the reactor is closed."""
        if self.closed:
            raise RuntimeError("the reactor is closed and takes no more handlers; make a new one")
        self.handlers[handler] = None
        self.tell("adopted", handler)

    def set_interest(self, handler: Handler, interest: int) -> None:
        """Set what the selector watches: READ, WRITE, both, or 0 for nothing. If the kernel has no room, retry later.

        With no interest a handler leaves the selector, because poll(2) and epoll(7) report HUP and ERR anyway.
        """
        before, handler.interest = handler.interest, interest
        if before == interest or handler in self._suspended:
            return
        try:
            if not before:
                self._selector.register(handler.fileno(), interest, handler)
            elif not interest:
                self._selector.unregister(handler.fileno())
            else:
                self._selector.modify(handler.fileno(), interest, handler)
        except OSError as error:
            if error.errno not in NO_ROOM_TO_WATCH:
                handler.interest = 0
                raise
            self._suspended[handler] = self.call_later(SHORTAGE_RETRY_S, self._watch_again, handler)

    def suspend(self, handler: Handler, pause_s: float = SHORTAGE_RETRY_S) -> None:
        """Stop watching `handler` for `pause_s`, whatever its interest: a shortage in the kernel needs time."""
        if handler.interest and handler not in self._suspended:
            self._selector.unregister(handler.fileno())
            self._suspended[handler] = self.call_later(pause_s, self._watch_again, handler)

    def _watch_again(self, handler: Handler) -> None:
        del self._suspended[handler]
        interest, handler.interest = handler.interest, 0
        self.set_interest(handler, interest)

    def unregister(self, handler: Handler, error: Exception | None = None) -> None:
        """Remove a handler: the first step of its teardown, while its socket is open. `error` is why it ends."""
        self.set_interest(handler, 0)
        if handler in self._suspended:
            self._suspended.pop(handler).cancel()
        if handler in self.handlers:
            del self.handlers[handler]
            self.tell("closed", handler, error=error)

    def _guard(self, callback: Callback, *args: object, owner: Handler | None = None) -> None:
        try:
            callback(*args)
        except Exception as error:
            self.callback_failed(error, owner)

    def callback_failed(self, error: Exception, owner: Handler | None = None) -> None:
        """Log an exception from a user's callback once, with its traceback, and abort `owner`."""
        text = "callback raised %r; " + ("its handler is closed" if owner else "the loop goes on")
        logger.error(text, error, exc_info=error, extra={"event": "callback_raised"})
        self.tell("raised", owner, error=error)
        if owner is not None:
            self.guard(owner.abort, error)

    def call_later(self, delay_s: float, callback: Callback, *args: object) -> Timer:
        """Call `callback(*args)` once, `delay_s` seconds from now. Raise ValueError for NaN or infinity."""
        return self._timers.add(self.now() + delay_s, callback, args)

    def call_at(self, deadline_s: float, callback: Callback, *args: object) -> Timer:
        """Call `callback(*args)` once `now()` has reached `deadline_s`. Raise ValueError for NaN or infinity."""
        return self._timers.add(deadline_s, callback, args)

    def call_soon(self, callback: Callback, *args: object) -> None:
        """Call `callback(*args)` in step 5 of this turn, or of the next one if step 5 has begun."""
        self.calls.append((callback, args))

    def call_soon_threadsafe(self, callback: Callback, *args: object) -> None:
        """Do what `call_soon` does, from any thread, and wake the loop. Calls run in the order of queueing."""
        self.calls.append((callback, args))
        self._waker.wake()

    def snapshot(self) -> Snapshot:
        """Return what the loop holds (`observe.snapshot` makes a table of it)."""
        live = tuple(timer for _, _, timer in self._heap if timer.callback is not None)
        pending = bool(self._waker.pending)
        return Snapshot(tuple(self.handlers), frozenset(self._suspended), live, tuple(self.calls), pending)

    def reopen_after_fork(self, selector: selectors.BaseSelector) -> None:
        """Watch everything through a new selector. For a forked child, whose epoll instance is the parent's too."""
        self.observer.detach()
        inherited, self._selector, self._select = self._selector, selector, selector.select
        for handler in self.handlers:
            wanted, handler.interest = handler.interest, 0
            self.set_interest(handler, wanted)
        with contextlib.suppress(OSError):  # kqueue(2): not inherited, so already closed
            inherited.close()

    def abandon_after_fork(self) -> None:
        """Close a forked child's copies of everything, and leave what it shares with the parent untouched."""
        self.observer.detach()
        self.closed = True
        # Each number stays in use, so a late close can't close another's descriptor.
        nothing = os.open(os.sep, os.O_RDONLY)
        for handler in self.handlers:
            handler.closed = True
            os.dup2(nothing, handler.fileno(), inheritable=False)
        os.close(nothing)
        self.handlers.clear()
        with contextlib.suppress(OSError):  # kqueue(2), as above
            self._selector.close()
        self._waker.abort()

    def close(self) -> None:
        """Abort all handlers, call protocols, restore signals, close the selector. Raise RuntimeError inside `run`."""
        if self._running:
            raise RuntimeError("a running loop can't be closed: call stop(), and close() when run() has returned")
        if self.closed:
            return
        self.closed = True
        for handler in tuple(self.handlers):
            if handler is not self._waker:
                self.guard(handler.abort)
        self._run_calls()  # among them each protocol's connection_lost
        self.unregister(self._waker)
        self._waker.abort()
        self._selector.close()

    def __enter__(self) -> Self:
        """Return the reactor itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the reactor."""
        self.close()
