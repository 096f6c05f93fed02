"""Watchlist: which descriptors the selector watches, for which handler, and what to do if the kernel can't.

    trouble                                          what happens
    no memory to watch, or to receive                the handler is suspended: not watched for a while
    a receive that fails FAILURES_IN_A_ROW times     the same, whatever the errno, so that the loop doesn't spin
    the kernel refuses to watch a descriptor         its handler is aborted
    other code has closed a descriptor               its handler is aborted, when the selector notices or when a new
                                                     handler has the same number; the new one isn't touched
    a forked child                                   nothing reaches the selector, which the parent uses too

Law: the selector's entries agree with `interest` of all handlers that aren't suspended. Each descriptor has one owner.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
from collections.abc import Callable
from selectors import BaseSelector, SelectorKey

from reactor.handler import Handler
from reactor.limits import FAILURES_IN_A_ROW, SHORTAGE_RETRY_S
from reactor.sockets.errors import BROKEN_SOCKET, NO_ROOM_TO_WATCH, ONE_PEER, os_error
from reactor.timers import Timer

Ready = list[tuple[SelectorKey, int]]


class Process:
    """This process's id, without a system call: a forked child renews it."""

    __slots__ = ("id",)

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Ask the kernel."""
        self.id = os.getpid()


PROCESS = Process()
getattr(os, "register_at_fork", dict)(after_in_child=PROCESS.renew)  # Windows has neither


class Watchlist:
    """The handlers of one loop, and its selector. `failed(error, handler, event)` logs an error and aborts."""

    __slots__ = ("_call_later", "_failed", "_owners", "_selector", "handlers", "process_id", "suspended")

    def __init__(
        self,
        selector: BaseSelector,
        call_later: Callable[..., Timer],
        failed: Callable[[Exception, Handler, str], None],
    ) -> None:
        self._selector, self._call_later, self._failed = selector, call_later, failed
        self.handlers: dict[Handler, int] = {}  # all that are open, oldest first, with their descriptors; read-only
        self._owners: dict[int, Handler] = {}  # the same by descriptor
        self.suspended: dict[Handler, Timer] = {}  # those that aren't watched for a while; read-only
        self.process_id = PROCESS.id  # of the process that the loop runs in

    def is_forked(self) -> bool:
        """Tell whether this process is a child that shares its parent's epoll instance."""
        return PROCESS.id != self.process_id

    def add(self, handler: Handler) -> None:
        """Add a handler, with no interest yet. An earlier owner of its descriptor has lost it, and is aborted."""
        number = handler.fileno()
        if number < 0:
            raise os_error(errno.EBADF)
        if number in self._owners:
            self._release([self._owners[number]])
        self.handlers[handler], self._owners[number] = number, handler

    def set_interest(self, handler: Handler, interest: int) -> None:
        """Set what the selector watches: READ, WRITE, both, or 0 for nothing.

        With no interest a handler leaves the selector, because poll(2) and epoll(7) report HUP and ERR anyway.
        """
        before, handler.interest = handler.interest, interest
        if before == interest or handler in self.suspended or PROCESS.id != self.process_id:
            return
        number = self.handlers[handler]
        try:
            if not interest:
                self._selector.unregister(number)
            elif before:
                self._selector.modify(number, interest, handler)
            elif handler.fileno() == number:
                self._selector.register(number, interest, handler)
            else:
                raise os_error(errno.EBADF)
        except OSError as error:
            self._refused(handler, number, error, bool(before))

    def _refused(self, handler: Handler, number: int, error: OSError, expected: bool) -> None:
        """Suspend or abort a handler that the selector refuses to watch, and has forgotten."""
        was_watched = _forget(self._selector, number)
        if error.errno in NO_ROOM_TO_WATCH:
            self.suspended[handler] = self._call_later(SHORTAGE_RETRY_S, self._watch_again, handler)
            return
        handler.interest = 0
        if error.errno == errno.ENOENT and expected and not was_watched:
            handler.detach()  # the number is another descriptor's now
        self._failed(error, handler, "selector_failed")

    def suspend(self, handler: Handler, pause_s: float = SHORTAGE_RETRY_S) -> None:
        """Stop watching `handler` for `pause_s`, whatever its interest: a shortage in the kernel needs time."""
        if handler.interest and handler not in self.suspended and not self.is_forked():
            self.suspended[handler] = self._call_later(pause_s, self._watch_again, handler)
            self._selector.unregister(self.handlers[handler])

    def remove(self, handler: Handler, error: Exception | None) -> bool:
        """Remove a handler that ends because of `error`. Return whether it was there."""
        if handler.interest:
            self.set_interest(handler, 0)
        if handler in self.suspended:
            self.suspended.pop(handler).cancel()
        number = self.handlers.pop(handler, None)
        if number is None:
            return False
        if self._owners.get(number) is handler:  # pragma: no branch - else the kernel has given it to another
            del self._owners[number]
        if error and isinstance(error, OSError) and error.errno == errno.ENOTSOCK and not stat.S_ISSOCK(_mode(number)):
            handler.detach()  # other code has closed it, and the number is that of a file now
        return True

    def forget_all(self) -> None:
        """Close a forked child's copies. Each number stays in use, so a late close can't close another's descriptor."""
        reading, writing = os.pipe()
        for handler, number in self.handlers.items():
            handler.closed = True
            if handler.fileno() == number:  # pragma: no branch - else other code has closed it
                os.dup2(reading, number, inheritable=False)
        os.close(reading)
        os.close(writing)
        self.handlers.clear()
        self._owners.clear()

    def goes_on_after(self, handler: Handler, error: OSError, failures: int) -> bool:
        """Act on an error of a receive, the `failures`th in a row. Return whether `handler` can receive again now."""
        if error.errno in BROKEN_SOCKET:
            handler.abort(error)
        elif error.errno not in ONE_PEER or failures >= FAILURES_IN_A_ROW:
            self.suspend(handler)
        return not handler.closed and handler not in self.suspended

    def select_failed(self, error: OSError) -> Ready:
        """Release the handlers whose descriptors are closed. Raise `error` if there is none."""
        lost = [handler for handler, number in self.handlers.items() if handler.interest and not _mode(number)]
        if not lost:
            raise error
        self._release(lost)
        return []

    def reopen(self, selector: BaseSelector) -> None:
        """Watch everything through a new selector, in a forked child."""
        inherited, self._selector, self.process_id = self._selector, selector, PROCESS.id
        for handler in tuple(self.handlers):
            wanted, handler.interest = handler.interest, 0
            self.set_interest(handler, wanted)
        with contextlib.suppress(OSError):  # kqueue(2): not inherited, so already closed
            inherited.close()

    def close(self) -> None:
        """Close the selector."""
        with contextlib.suppress(OSError):  # kqueue(2), in a forked child
            self._selector.close()

    def _watch_again(self, handler: Handler) -> None:
        del self.suspended[handler]
        interest, handler.interest = handler.interest, 0
        self.set_interest(handler, interest)

    def _release(self, lost: list[Handler]) -> None:
        for handler in lost:
            self.set_interest(handler, 0)
            handler.detach()  # closing it would close the number's new owner
            self._failed(os_error(errno.EBADF), handler, "descriptor_lost")


def _forget(selector: BaseSelector, number: int) -> bool:
    """Remove a number from an epoll instance: after a failed modify, `selectors` leaves it there.

    Return False if it wasn't there: then other code has closed the descriptor, and the number is another's.
    """
    try:
        with select.epoll.fromfd(os.dup(selector.fileno())) as epoll:  # type: ignore[attr-defined]
            epoll.unregister(number)
    except FileNotFoundError:
        return False
    except (AttributeError, OSError):  # another kind of selector, or no descriptor is left
        return True
    return True


def _mode(number: int) -> int:
    """Return what kind of file a descriptor is, 0 if the number is unused."""
    try:
        return os.fstat(number).st_mode
    except OSError:
        return 0
