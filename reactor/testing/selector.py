"""SimulatedSelector: epoll over simulated sockets.

Law: level-triggered, as the loop expects. When nothing is ready, it doesn't wait: it lets the simulated world go on,
and time jump to whatever happens next. When nothing will ever happen again, it says so by `Quiet`.
"""

from __future__ import annotations

import math
import selectors
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reactor.testing.endpoint import POLLERR, POLLHUP, POLLIN, POLLOUT

if TYPE_CHECKING:
    from reactor.testing.chance import Fault
    from reactor.testing.network import SimulatedNetwork

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
Ready = list[tuple[selectors.SelectorKey, int]]


class Quiet(Exception):
    """The run is over: the loop would sleep for ever, or whoever runs it wanted no more."""


class SimulatedSelector(selectors.BaseSelector):
    """To be handed to `Reactor(selector=…)`."""

    def __init__(self, network: SimulatedNetwork) -> None:
        self._network = network
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Watch a descriptor. Raise ValueError and KeyError as selectors do, OSError for one that isn't open."""
        fault = self._network.enter("register")
        if fault is not None:
            raise self._network.inject(fault).error()
        number = _number(fileobj)
        if not events or events & ~(READ | WRITE):
            raise ValueError(f"invalid events: {events!r}")
        if number in self._keys:
            raise KeyError(f"{number} is already registered")
        if number not in self._network.descriptors.open:
            raise ValueError(f"descriptor {number} isn't open")
        key = self._keys[number] = selectors.SelectorKey(fileobj, number, events, data)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Watch it for something else."""
        self._network.enter("modify")
        number = _number(fileobj)
        if number not in self._keys:
            raise KeyError(f"{number} is not registered")
        key = self._keys[number] = selectors.SelectorKey(fileobj, number, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Watch it no more."""
        self._network.enter("unregister")
        number = _number(fileobj)
        if number not in self._keys:
            raise KeyError(f"{number} is not registered")
        return self._keys.pop(number)

    def select(self, timeout: float | None = None) -> Ready:
        """Return what is ready; else let the world go on, for at most `timeout` seconds. Raise Quiet."""
        network = self._network
        fault = network.enter("select")
        network.about_to_select(timeout)
        network.move_peers()
        ready = self._ready()
        until_s = None if timeout is None else network.clock() + _rounded_up_s(timeout)
        if fault is not None and fault.kind == "early" and timeout != 0:
            network.inject(fault)  # epoll_wait(2) may be interrupted
            return ready
        while not ready and network.go_on(until_s):
            ready = self._ready()
        network.found_ready = bool(ready)
        if not ready and timeout == 0:
            network.clock.advance(network.poll_takes_s)
        return self._hampered(ready, fault) if fault is not None else ready

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Return what is watched, by descriptor."""
        return self._keys

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """Return what is known of one descriptor. Raise KeyError."""
        return self._keys[_number(fileobj)]

    def close(self) -> None:
        """Forget everything."""
        self._keys.clear()

    def _ready(self) -> Ready:
        sockets, ready = self._network.descriptors.open, []
        for number, key in self._keys.items():
            sock = sockets.get(number)
            if sock is None:
                continue  # closed while watched: the kernel forgets it in silence (epoll(7))
            bits = sock.poll()
            # As selectors have it: HUP and ERR count as both, though nobody can ask for them.
            mask = (READ if bits & ~POLLOUT & ANY else 0) | (WRITE if bits & ~POLLIN & ANY else 0)
            if mask & key.events:
                ready.append((key, mask & key.events))
        return ready

    def _hampered(self, ready: Ready, fault: Fault) -> Ready:
        network = self._network
        if fault.kind == "spurious" and self._keys:
            keys = list(self._keys.values())
            key = keys[fault.amount % len(keys)]
            network.inject(fault)
            return [entry for entry in ready if entry[0] is not key] + [(key, key.events)]
        if fault.kind == "shuffle" and len(ready) > 1:
            network.inject(fault)
            turn = fault.amount % len(ready)
            return ready[turn:] + ready[:turn] if fault.amount % 2 else (ready[turn:] + ready[:turn])[::-1]
        if fault.kind == "fewer" and len(ready) > 1:
            network.inject(fault)
            return ready[: max(1, fault.amount % len(ready))]
        if fault.kind == "late":
            network.inject(fault)
            network.clock.advance(fault.amount / 1e3)  # the process was stopped for a while
        return ready


ANY = POLLIN | POLLOUT | POLLERR | POLLHUP


def _number(fileobj: Any) -> int:
    number: int = fileobj if isinstance(fileobj, int) else fileobj.fileno()
    if number < 0:
        raise ValueError(f"invalid file descriptor: {number}")
    return number


def _rounded_up_s(timeout_s: float) -> float:
    """Return a time-out as epoll_wait(2) has it: whole milliseconds, not less than was asked for."""
    return math.ceil(max(timeout_s, 0.0) * 1e3) * 1e-3
