"""LeanEpollSelector: epoll(7) with less work for each event.

Law: it does what `selectors.EpollSelector` does, and passes the same tests. It saves the translation of events: nearly
all mean "readable, and nothing else", and the result for that is made once, at registration. A batch is bounded: more
ready descriptors come in the next one. It saves a few percent (`echo7-lean` in `benchmarks/`).
"""

from __future__ import annotations

import math
import select
import selectors
from collections.abc import Mapping
from typing import Any

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
# A batch of bulk connections takes some ten milliseconds; timers and calls run between batches.
EVENTS_PER_BATCH = 128
# Other systems lack these names, and making a LeanEpollSelector raises AttributeError.
EPOLLIN: int = getattr(select, "EPOLLIN", 1)
EPOLLOUT: int = getattr(select, "EPOLLOUT", 4)

BITS = {READ: EPOLLIN, WRITE: EPOLLOUT, READ | WRITE: EPOLLIN | EPOLLOUT}

Ready = list[tuple[selectors.SelectorKey, int]]


class LeanEpollSelector(selectors.BaseSelector):
    """A selector for `Reactor(selector=…)`, on Linux. Raise OSError as epoll_create1(2)."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._poll = self._epoll.poll
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._readable: dict[int, tuple[selectors.SelectorKey, int]] = {}  # the results for EPOLLIN

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Watch a descriptor. Raise ValueError, KeyError if it is registered, OSError as epoll_ctl(2)."""
        bits = BITS.get(events)
        if bits is None:
            raise ValueError(f"invalid events: {events!r}")
        number = self._number(fileobj)
        if number in self._keys:
            raise KeyError(f"{number} is already registered")
        self._epoll.register(number, bits)
        return self._remember(selectors.SelectorKey(fileobj, number, events, data))

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Change the events or data. Raise as `register`, KeyError if it isn't registered."""
        before = self._keys[self._number(fileobj)]
        if events != before.events:
            try:
                self._epoll.modify(before.fd, BITS.get(events, 0))
            except OSError:
                del self._keys[before.fd], self._readable[before.fd]  # as `selectors` does: the kernel may differ
                raise
        return self._remember(selectors.SelectorKey(before.fileobj, before.fd, events, data))

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Stop watching a descriptor. Raise KeyError if it isn't registered."""
        key = self._keys.pop(self._number(fileobj))
        del self._readable[key.fd]
        try:  # noqa: SIM105 - faster than contextlib.suppress, for each connection
            self._epoll.unregister(key.fd)
        except OSError:  # already closed: the kernel has removed it (epoll(7))
            pass
        return key

    def select(self, timeout: float | None = None) -> Ready:
        """Return what is ready, at most EVENTS_PER_BATCH; wait at most `timeout` seconds, None for ever."""
        # epoll_wait(2) takes milliseconds. Rounding down would make the loop spin before a timer.
        timeout_s = -1.0 if timeout is None else math.ceil(max(timeout, 0.0) * 1e3) * 1e-3
        try:
            events = self._poll(timeout_s, EVENTS_PER_BATCH)
        except InterruptedError:
            return []
        readable = self._readable
        try:
            return [readable[fd] if event == EPOLLIN else self._translated(fd, event) for fd, event in events]
        except KeyError:  # a closed descriptor with an open copy
            return [self._translated(fd, event) for fd, event in events if fd in readable]

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Return the registered keys by descriptor."""
        return self._keys

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """Return a descriptor's key. Raise KeyError if it isn't registered."""
        return self._keys[self._number(fileobj)]

    def fileno(self) -> int:
        """Return the epoll instance's descriptor."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Close the epoll instance and forget all keys. A second call does nothing."""
        self._epoll.close()
        self._keys.clear()
        self._readable.clear()

    def _remember(self, key: selectors.SelectorKey) -> selectors.SelectorKey:
        self._keys[key.fd], self._readable[key.fd] = key, (key, READ)
        return key

    def _number(self, fileobj: Any) -> int:
        """Return the descriptor, or the registered one of a file object that is closed now."""
        number: int = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if number >= 0:
            return number
        for key in self._keys.values():
            if key.fileobj is fileobj:
                return key.fd
        raise ValueError(f"invalid file descriptor: {number}")

    def _translated(self, fd: int, event: int) -> tuple[selectors.SelectorKey, int]:
        """Return a result in which HUP and ERR count as the events asked for."""
        key = self._keys[fd]
        mask = (READ if event & ~EPOLLOUT else 0) | (WRITE if event & ~EPOLLIN else 0)
        return key, mask & key.events
