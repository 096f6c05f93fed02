"""SimulatedSelector: epoll over simulated sockets.

Law: level-triggered, as the loop expects. When no socket is ready, it doesn't wait: the simulated world goes on, and
time jumps to the next event. When no event is left, it raises `Quiet`.
"""

from __future__ import annotations

import errno
import math
import selectors
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reactor.sockets.errors import os_error
from reactor.testing.chance import Fault
from reactor.testing.kernel.endpoint import POLLERR, POLLHUP, POLLIN, POLLOUT

if TYPE_CHECKING:
    from reactor.testing.network import SimulatedNetwork

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
Ready = list[tuple[selectors.SelectorKey, int]]


class Quiet(Exception):
    """The run is over: the loop would sleep forever, or `run` has reached its end."""


class SimulatedSelector(selectors.BaseSelector):
    """A selector for `Reactor(selector=…)`."""

    def __init__(self, network: SimulatedNetwork) -> None:
        self._world = network
        self._keys: dict[int, selectors.SelectorKey] = {}
        self.lost: set[int] = set()  # closed by other code while watched: epoll has forgotten them (epoll(7))

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Watch a descriptor. Raise ValueError and KeyError as other selectors do, OSError as epoll_ctl(2)."""
        fault = self._world.enter("register")
        if fault is not None:
            raise self._world.inject(fault).error()
        number = _number(fileobj)
        if not events or events & ~(READ | WRITE):
            raise ValueError(f"invalid events: {events!r}")
        if number in self._keys:
            raise KeyError(f"{number} is already registered")
        if number not in self._world.descriptors.open:
            raise os_error(errno.EBADF)
        self.lost.discard(number)
        key = self._keys[number] = selectors.SelectorKey(fileobj, number, events, data)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Change what a descriptor is watched for. Raise OSError as epoll_ctl(2), and stop watching it."""
        fault = self._world.enter("modify")
        number = _number(fileobj)
        if number not in self._keys:
            raise KeyError(f"{number} is not registered")
        if fault is not None or number in self.lost:
            del self._keys[number]  # as `selectors` does
            self.lost.discard(number)
            if fault is not None:
                raise self._world.inject(fault).error()
            raise os_error(errno.ENOENT if number in self._world.descriptors.open else errno.EBADF)
        key = self._keys[number] = selectors.SelectorKey(fileobj, number, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Stop watching a descriptor."""
        self._world.enter("unregister")
        number = _number(fileobj)
        if number not in self._keys:
            raise KeyError(f"{number} is not registered")
        self.lost.discard(number)
        return self._keys.pop(number)

    def select(self, timeout: float | None = None) -> Ready:
        """Return what is ready. Meanwhile let the world go on, `timeout` seconds at most. Raise Quiet."""
        world = self._world
        fault = world.enter("select")
        world.about_to_select(timeout)
        world.move_peers()
        ready = self._ready()
        until_s = None if timeout is None else world.clock() + _rounded_up_s(timeout)
        if fault is not None and fault.kind == "early" and timeout != 0:
            world.inject(fault)  # epoll_wait(2) may be interrupted
            return ready
        while not ready and world.go_on(until_s):
            ready = self._ready()
        world.looked(bool(ready), timeout)
        return self._hampered(ready, fault) if fault is not None else ready

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Return the registered keys by descriptor."""
        return self._keys

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """Return the key of a descriptor. Raise KeyError."""
        return self._keys[_number(fileobj)]

    def close(self) -> None:
        """Unregister everything."""
        self._keys.clear()

    def _ready(self) -> Ready:
        sockets, ready = self._world.descriptors.open, []
        for number, key in self._keys.items():
            sock = sockets.get(number)
            if sock is None or number in self.lost:
                continue
            bits = sock.poll()
            # as in `selectors`: HUP and ERR count as both, whatever the interest
            mask = (READ if bits & ~POLLOUT & ANY else 0) | (WRITE if bits & ~POLLIN & ANY else 0)
            if mask & key.events:
                ready.append((key, mask & key.events))
        return ready

    def _hampered(self, ready: Ready, fault: Fault) -> Ready:
        world = self._world
        keys = [key for number, key in self._keys.items() if number not in self.lost]
        if fault.kind == "spurious" and keys:
            key = keys[fault.amount % len(keys)]
            world.inject(fault)
            return [entry for entry in ready if entry[0] is not key] + [(key, key.events)]
        if fault.kind == "shuffle" and len(ready) > 1:
            world.inject(fault)
            turn = fault.amount % len(ready)
            return ready[turn:] + ready[:turn] if fault.amount % 2 else (ready[turn:] + ready[:turn])[::-1]
        if fault.kind == "fewer" and len(ready) > 1:
            world.inject(fault)
            return ready[: max(1, fault.amount % len(ready))]
        if fault.kind == "late":
            world.inject(fault)
            world.clock.advance(fault.amount / 1e3)  # the process was stopped for a while
        return ready


ANY = POLLIN | POLLOUT | POLLERR | POLLHUP


def _number(fileobj: Any) -> int:
    number: int = fileobj if isinstance(fileobj, int) else fileobj.fileno()
    if number < 0:
        raise ValueError(f"invalid file descriptor: {number}")
    return number


def _rounded_up_s(timeout_s: float) -> float:
    """Round a timeout up to whole milliseconds, as epoll does."""
    return math.ceil(max(timeout_s, 0.0) * 1e3) * 1e-3
