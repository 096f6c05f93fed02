"""The doors of the core: the interfaces by which a `Reactor` gets its parts and reports its events.

    Reactor(selector=…, clock=…, sockets=…, signals=…, observer=…)

Law: the core doesn't know whether it is tested or observed. The defaults are the standard library's; a simulation
passes objects of the same shape. A selector is a `selectors.BaseSelector`, a clock a function that returns monotonic
seconds. An observer or a faster part is chosen at construction, so a plain loop pays nothing for it. With a
SelectSelector, limit the process to 1,024 descriptors (select(2)).
"""

from __future__ import annotations

from collections.abc import Callable
from selectors import BaseSelector
from typing import Any, NamedTuple

from reactor.buffer import Bytes, SendBuffer
from reactor.handler import Handler
from reactor.timers import Arguments, Callback, Timer, Timers


class Snapshot(NamedTuple):
    """What a loop holds at one moment. Handlers show the rest in their own public attributes."""

    handlers: tuple[Handler, ...]  # oldest first
    suspended: frozenset[Handler]  # not watched for a while, whatever their interest
    timers: tuple[Timer, ...]  # the live ones, unordered
    calls: tuple[tuple[Callback, Arguments], ...]  # in the order in which they run
    signals_pending: bool  # one has arrived and isn't handled yet: exec(2) would lose it


class Observer:
    """Sees what one loop does, and changes nothing. By default each method does nothing: override what you need.

    The core asks it for parts once, when the loop or a handler is made. It reports other events with `tell`.
    """

    __slots__ = ()

    def attach(self, reactor: Any) -> None:
        """Called first, once, by the Reactor's constructor."""

    def detach(self) -> None:
        """Called in a forked child: report nothing more."""

    def selector(self, selector: BaseSelector) -> BaseSelector:
        """Return the loop's selector: `selector` or a wrapper around it."""
        return selector

    def timers(self) -> Timers:
        """Return the loop's timers."""
        return Timers()

    def guard(self, guard: Callable[..., None]) -> Callable[..., None]:
        """Return what calls every callback but `on_event`: `guard` or a wrapper around it."""
        return guard

    def socket(self, handler: Handler, sock: Any) -> Any:
        """Return the socket that `handler` will use: `sock` or a wrapper around it."""
        return sock

    def buffer(self, handler: Handler, pending: Bytes) -> SendBuffer:
        """Return a new send buffer for a connection, holding `pending`."""
        return SendBuffer(pending)

    def tell(self, kind: str, who: object, **facts: Any) -> None:
        """Receive one event (`observe.narrate` has the kinds). `who` is a handler, a timer or None."""


def _tell_nothing(  # by name: to collect the core's facts in a dict takes twice as long
    kind: str, who: object, before: Any = None, after: Any = None, error: Any = None, callback: Any = None,
    args: Any = None, reason: Any = None, count: Any = None, peer: Any = None, **others: Any,
) -> None:  # fmt: skip
    """Do nothing."""


class Unobserved(Observer):
    """The observer of a loop that has none."""

    __slots__ = ()
    tell = staticmethod(_tell_nothing)


NOTHING_OBSERVED: Observer = Unobserved()
