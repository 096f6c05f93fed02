"""Callbacks: what the program's own code, or other code in its process, may do at the end of any callback.

    KeyboardInterrupt, SystemExit, GeneratorExit   the callback raises it; it must leave `run`, which is called again
    close, abort                                   it closes or aborts any handler: its own, another's, a listener
    lost                                           a handler's descriptor is closed by its number, unknown to the loop

Law: the callback has done its work, so only handlers that were hit may leave anything undone.
The loop calls most callbacks through `Reactor.guard`. What it calls directly must be named: `of(MyProtocol)`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

from reactor.handler import Handler
from reactor.signals import Waker
from reactor.testing.chance import Fault
from reactor.testing.kernel.endpoint import SimulatedSocket

if TYPE_CHECKING:
    from reactor.testing.network import SimulatedNetwork

RAISED = {kind.__name__: kind for kind in (KeyboardInterrupt, SystemExit, GeneratorExit)}
AGAIN_S = 0.001  # what a program takes to call `run` again
CALLED_DIRECTLY = ("data_received", "saturated", "drained", "eof_received")


class Callbacks:
    """The callbacks of one network's loops. `hit` has each socket that was closed, aborted or lost in one."""

    __slots__ = ("_network", "_raised", "hit")

    def __init__(self, network: SimulatedNetwork) -> None:
        self._network = network
        self._raised: list[BaseException] = []  # raised, and not out of `run` yet
        self.hit: dict[SimulatedSocket, str] = {}  # socket → what was done to it

    @contextlib.contextmanager
    def of(self, *protocols: type) -> Iterator[None]:
        """Let faults come in the callbacks of these classes too.

        Open the connections within the block: each looks up `data_received` once, when it is made.
        """
        with contextlib.ExitStack() as stack:
            for protocol in protocols:
                batches = hasattr(protocol, "batch_received")  # a Datagram calls it through `datagram_received`
                for name in (*CALLED_DIRECTLY, "batch_received" if batches else "datagram_received"):
                    if hasattr(protocol, name):
                        stack.enter_context(mock.patch.object(protocol, name, self._with_faults(protocol, name)))
            yield

    def _with_faults(self, protocol: type, name: str) -> object:
        callback: Callable[..., Any] = getattr(protocol, name)

        @functools.wraps(callback)
        def called(*args: Any) -> Any:
            result = callback(*args)
            self._end_callback()
            return result

        is_static = isinstance(inspect.getattr_static(protocol, name), staticmethod)
        return staticmethod(called) if is_static else called

    def guard(self, guard: Callable[..., None]) -> Callable[..., None]:
        """Return a `Reactor.guard` whose callbacks meet faults."""

        def guarded(callback: Callable[..., object], *args: object, owner: Handler | None = None) -> None:
            guard(callback, *args, owner=owner)
            if not _is_abort(callback):
                guard(self._end_callback, owner=owner)

        return guarded

    def _end_callback(self) -> None:
        """End a callback, perhaps with a fault."""
        fault = self._network.chance.draw("callback")
        if fault is None:
            return
        if fault.kind in RAISED:
            self._network.inject(fault)
            self._raised.append(RAISED[fault.kind](str(fault)))
            raise self._raised[-1]
        handlers = [
            (handler, number)
            for reactor in self._network.reactors
            for handler, number in reactor.handlers.items()
            if not isinstance(handler, Waker)
        ]
        if handlers:
            self._hit(fault, *handlers[fault.amount % len(handlers)])

    def _hit(self, fault: Fault, handler: Handler, number: int) -> None:
        sock = self._network.descriptors.open.get(number)  # None: lost before
        if fault.kind == "lost":
            if sock is not None:
                self._network.inject(fault)
                self._network.lose(number)
            return
        self._network.inject(fault)
        if sock is not None and (fault.kind == "abort" or sock not in self.hit):
            self.hit[sock] = fault.kind
        getattr(handler, fault.kind, handler.abort)()

    def run_again_after_faults(self, run: Callable[[], object]) -> None:
        """Call `run()`, and again as long as it is left by what a callback has raised."""
        while True:
            try:
                run()
            except BaseException as error:
                if not self.has_raised(error):
                    raise
                self._raised.clear()  # the last one raised in a turn replaces the others
                self._network.clock.advance(AGAIN_S)  # or a shortage in the kernel would never pass
            else:
                return

    def has_raised(self, error: BaseException) -> bool:
        """Tell whether a fault has raised this, and no `run` was left by it."""
        return error in self._raised

    def check(self) -> None:
        """Record a violation for what a callback has raised, and `run` hasn't."""
        for error in self._raised:
            self._network.violations.append(f"{error!r} has not left the loop")
        self._raised.clear()


def _is_abort(callback: Callable[..., object]) -> bool:
    """Tell whether this ends a handler, at the loop's close or after an error: that is no callback of the program."""
    return getattr(callback, "__name__", "") == "abort" and hasattr(getattr(callback, "__self__", None), "on_event")
