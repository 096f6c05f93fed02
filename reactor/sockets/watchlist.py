"""Watchlist: which descriptors the selector watches, for which handler, and what to do if the kernel can't.

    trouble                                          what happens
    no memory to watch, or to receive                the handler is suspended: not watched for a while
    a receive that fails FAILURES_IN_A_ROW times     the same, whatever the errno, so that the loop doesn't spin
    the kernel refuses to watch a descriptor         its handler is aborted
    other code has closed a descriptor               its handler is aborted, when the selector notices or when a new
                                                     descriptor has the same number; the new one isn't touched
    a forked child                                   nothing reaches the selector, which the parent uses too

Law: the selector's entries agree with `interest` of all handlers that aren't suspended.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable
from selectors import BaseSelector, SelectorKey

from reactor.handler import Handler
from reactor.limits import FAILURES_IN_A_ROW, SHORTAGE_RETRY_S
from reactor.sockets.errors import BROKEN_SOCKET, NO_ROOM_TO_WATCH, ONE_PEER, os_error
from reactor.timers import Timer

Ready = list[tuple[SelectorKey, int]]


class Watchlist:
    """The selector of one loop. `failed(error, handler, event)` logs an error and aborts the handler."""

    __slots__ = ("_call_later", "_failed", "_numbers", "_process_id", "_selector", "suspended")

    def __init__(
        self,
        selector: BaseSelector,
        call_later: Callable[..., Timer],
        failed: Callable[[Exception, Handler, str], None],
    ) -> None:
        self._selector, self._call_later, self._failed = selector, call_later, failed
        self._numbers: dict[Handler, int] = {}  # those that are watched, with their descriptors
        self.suspended: dict[Handler, Timer] = {}  # those that aren't watched for a while; read-only
        self._process_id = os.getpid()

    def is_forked(self) -> bool:
        """Tell whether this process is a child that shares its parent's epoll instance."""
        return os.getpid() != self._process_id

    def set_interest(self, handler: Handler, interest: int) -> None:
        """Set what the selector watches: READ, WRITE, both, or 0 for nothing.

        With no interest a handler leaves the selector, because poll(2) and epoll(7) report HUP and ERR anyway.
        """
        before, handler.interest = handler.interest, interest
        if before == interest or handler in self.suspended or self.is_forked():
            return
        try:
            if not interest:
                self._selector.unregister(self._numbers.pop(handler))
            elif before:
                self._selector.modify(self._numbers[handler], interest, handler)
            else:
                self._register(handler, handler.fileno(), interest)
        except OSError as error:
            self._numbers.pop(handler, None)
            if error.errno in NO_ROOM_TO_WATCH:
                self.suspended[handler] = self._call_later(SHORTAGE_RETRY_S, self._watch_again, handler)
            else:
                handler.interest = 0
                self._failed(error, handler, "selector_failed")

    def _register(self, handler: Handler, number: int, interest: int) -> None:
        try:
            self._selector.register(number, interest, handler)
        except KeyError:  # the kernel has given the number of a closed descriptor to a new one
            self._release([owner for owner, taken in self._numbers.items() if taken == number])
            self._selector.register(number, interest, handler)
        self._numbers[handler] = number

    def suspend(self, handler: Handler, pause_s: float = SHORTAGE_RETRY_S) -> None:
        """Stop watching `handler` for `pause_s`, whatever its interest: a shortage in the kernel needs time."""
        if handler.interest and handler not in self.suspended and not self.is_forked():
            self._selector.unregister(self._numbers.pop(handler))
            self.suspended[handler] = self._call_later(pause_s, self._watch_again, handler)

    def remove(self, handler: Handler) -> None:
        """Stop watching a handler for good."""
        self.set_interest(handler, 0)
        if handler in self.suspended:
            self.suspended.pop(handler).cancel()

    def goes_on_after(self, handler: Handler, error: OSError, failures: int) -> bool:
        """Act on an error of a receive, the `failures`th in a row. Return whether `handler` can receive again now."""
        if error.errno in BROKEN_SOCKET:
            handler.abort(error)
        elif error.errno not in ONE_PEER or failures >= FAILURES_IN_A_ROW:
            self.suspend(handler)
        return not handler.closed and handler not in self.suspended

    def select_failed(self, error: OSError) -> Ready:
        """Release the handlers whose descriptors are closed. Raise `error` if there is none."""
        lost = [handler for handler, number in self._numbers.items() if _is_unused(number)]
        if not lost:
            raise error
        self._release(lost)
        return []

    def reopen(self, selector: BaseSelector) -> None:
        """Watch everything through a new selector, in a forked child."""
        inherited, self._selector, self._process_id = self._selector, selector, os.getpid()
        for handler in tuple(self._numbers):
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


def replace_descriptors(handlers: Iterable[Handler]) -> None:
    """Close a forked child's copies. Each number stays in use, so a late close can't close another's descriptor."""
    reading, writing = os.pipe()
    for handler in handlers:
        handler.closed = True
        os.dup2(reading, handler.fileno(), inheritable=False)
    os.close(reading)
    os.close(writing)


def _is_unused(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return True
    return False
