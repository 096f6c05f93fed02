"""The loop. One turn is five steps, and `Reactor._turn` takes them in this order:

    1. sleep     decide how long select may block: not at all if calls wait, else until the next timer
    2. select    ask the kernel which descriptors are ready
    3. dispatch  give each ready handler its mask: `handler.on_event(mask)`
    4. timers    fire the timers that are due now
    5. calls     run the calls that were queued when this step began

Laws. The selector's `data` is the handler itself, so a handler closed earlier in the same batch is skipped, and a new
one with the same number is never called by mistake. Interest changes in one place (`sockets/watchlist.py`). Every step
is bounded. A callback that raises an Exception closes its own handler and costs one log line. Another BaseException
leaves `run`, which may be called again. Other threads call only `call_soon_threadsafe`.
"""

import collections
import contextlib
import logging
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Self

from reactor.doors import NOTHING_OBSERVED, Observer, Snapshot
from reactor.handler import Handler
from reactor.signals import Waker
from reactor.sockets.factory import SignalSource, SocketFactory
from reactor.sockets.watchlist import PROCESS, Watchlist
from reactor.timers import Arguments, Callback, Timer

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

logger = logging.getLogger("reactor")


class Reactor:
    """A single-threaded event loop over a `selectors` selector.

    The arguments are its doors (`doors.py`). `guard(callback, *args, owner=None)` calls a user's callback; if that
    raises, the error is logged once and `owner` is aborted. `tell` is the observer's.
    """

    __slots__ = (
        "_running", "_select", "_stopping", "_timers", "_waker", "_watchlist", "add_signal_handler", "calls", "closed",
        "goes_on_after", "guard", "handlers", "is_forked", "now", "observer", "remove_signal_handler", "set_interest",
        "sockets", "suspend", "tell",
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
        observer.attach(self)
        watched = observer.selector(selectors.DefaultSelector() if selector is None else selector)
        self._timers, self.guard, self.tell = observer.timers(), observer.guard(self._guard), observer.tell
        self._watchlist = watchlist = Watchlist(watched, self.call_later, self.callback_failed)
        self._select, self.set_interest, self.suspend = watched.select, watchlist.set_interest, watchlist.suspend
        self.goes_on_after, self.is_forked = watchlist.goes_on_after, watchlist.is_forked
        self.handlers = watchlist.handlers  # all open handlers and their descriptors, oldest first; read-only
        self.calls: collections.deque[tuple[Callback, Arguments]] = collections.deque()  # read-only
        self._running = self._stopping = self.closed = False
        self._waker = Waker(self, signals)
        self.add_signal_handler, self.remove_signal_handler = self._waker.signals.add, self._waker.signals.remove
        self.register(self._waker)
        self.set_interest(self._waker, READ)

    def run(self, prepared: Callback = int) -> None:
        """Call `prepared()`, then turn until `stop` is called. The last turn is complete. Raise as `turn` does."""
        with self._turning():
            prepared()
            try:
                while not self._stopping:
                    self._turn()
            finally:
                self._stopping = False

    def turn(self) -> None:
        """Take one turn. Raise RuntimeError within a callback, or if the reactor is closed."""
        with self._turning():
            self._turn()

    @contextlib.contextmanager
    def _turning(self) -> Iterator[None]:
        if self._running:
            raise RuntimeError("a callback can't run its own loop: return, and the loop goes on")
        self._refuse_if_closed()
        self._waker.signals.start()
        self._running = True
        try:
            yield
        finally:
            self._waker.signals.finish()
            self._running = False

    def _turn(self) -> None:
        """Take the five steps of the module's docstring once. Block in step 2 if there is nothing to do."""
        sleep_s: float | None = None
        here = PROCESS.id
        if here != self._watchlist.process_id:
            raise RuntimeError("a forked child can't run its parent's loop: call close() or reopen_after_fork() first")
        if self.calls or self._stopping:
            sleep_s = 0.0
        elif self._timers.size:
            sleep_s = self._timers.sleep_s(self.now())
        try:
            ready = self._select(sleep_s)
        except OSError as error:
            ready = self._watchlist.select_failed(error)
        for key, mask in ready:
            handler: Handler = key.data
            if not handler.closed and PROCESS.id == here:  # a child leaves the rest to its parent
                try:
                    handler.on_event(mask)
                except Exception as error:
                    self.callback_failed(error, handler)
        if self._timers.size:
            for timer in self._timers.pop_due(self.now()):
                self.guard(timer.fire)
        if self.calls:
            self._run_calls()

    def stop(self) -> None:
        """Make `run` return after this turn. If it isn't running yet, it will return at once."""
        self._stopping = True

    def _run_calls(self) -> None:
        for _ in range(len(self.calls)):  # what these calls queue runs in the next turn
            callback, args = self.calls.popleft()
            self.tell("call", None, callback=callback, args=args)
            self.guard(callback, *args)

    def register(self, handler: Handler) -> None:
        """Add a handler, with no interest yet. `close` aborts it. Raise RuntimeError if the reactor is closed."""
        self._refuse_if_closed()
        self._watchlist.add(handler)
        self.tell("adopted", handler)

    def unregister(self, handler: Handler, error: Exception | None = None) -> None:
        """Remove a handler: the first step of its teardown, while its socket is open. `error` is why it ends."""
        if self._watchlist.remove(handler, error):
            self.tell("closed", handler, error=error)

    def _guard(self, callback: Callback, *args: object, owner: Handler | None = None) -> None:
        try:
            callback(*args)
        except Exception as error:
            self.callback_failed(error, owner)

    def callback_failed(self, error: BaseException, owner: Handler | None = None, tag: str = "callback_raised") -> None:
        """Log an Exception from a user's callback once, with its traceback, and abort `owner`. Raise any other."""
        if not isinstance(error, Exception):
            raise error
        text = tag.replace("_", " ") + " %r; " + ("its handler is closed" if owner else "the loop goes on")
        logger.error(text, error, exc_info=error, extra={"event": tag})
        self.tell("raised", owner, error=error)
        if owner is not None:
            self.guard(owner.abort, error)

    def call_later(self, delay_s: float, callback: Callback, *args: object) -> Timer:
        """Call `callback(*args)` once, `delay_s` seconds from now. Raise ValueError for NaN or infinity."""
        return self.call_at(self.now() + delay_s, callback, *args)

    def call_at(self, deadline_s: float, callback: Callback, *args: object) -> Timer:
        """Call `callback(*args)` once `now()` has reached `deadline_s`. Raise ValueError for NaN or infinity."""
        self._refuse_if_closed()
        return self._timers.add(deadline_s, callback, args, self.now())

    def call_soon(self, callback: Callback, *args: object) -> None:
        """Call `callback(*args)` in step 5 of this turn, or of the next one if step 5 has begun."""
        if self._waker.closed:
            self._refuse_if_closed()
        self.calls.append((callback, args))

    def call_soon_threadsafe(self, callback: Callback, *args: object) -> None:
        """Do what `call_soon` does, from any thread, and wake the loop. Calls run in the order of queueing."""
        self.call_soon(callback, *args)
        self._waker.wake()

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise RuntimeError("the reactor is closed and calls nothing more: make a new one")

    def snapshot(self) -> Snapshot:
        """Return what the loop holds (`observe.snapshot` makes a table of it)."""
        suspended, pending = frozenset(self._watchlist.suspended), bool(self._waker.signals.pending)
        return Snapshot(tuple(self.handlers), suspended, self._timers.live(), tuple(self.calls), pending)

    def reopen_after_fork(self, selector: selectors.BaseSelector) -> None:
        """Watch everything through a new selector. For a forked child, whose epoll instance is the parent's too."""
        self.observer.detach()
        self._select = selector.select
        self._watchlist.reopen(selector)

    def close(self) -> None:
        """Abort all handlers, call protocols, restore signals, close the selector. Raise RuntimeError inside `run`.

        In a forked child, close its copies only: what it shares with the parent is left untouched.
        """
        if self.is_forked():
            self.observer.detach()
            self._watchlist.forget_all()
            self.calls.clear()
            for timer in self._timers.live():
                timer.cancel()
            self.stop()
        elif self._running:
            raise RuntimeError("a running loop can't be closed: call stop(), and close() when run() has returned")
        self.closed = True
        for handler in tuple(self.handlers):
            if handler is not self._waker:
                self.guard(handler.abort)
        self._waker.abort()
        self._run_calls()  # among them each protocol's connection_lost
        self._watchlist.close()

    def __enter__(self) -> Self:
        """Return the reactor itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the reactor."""
        self.close()
