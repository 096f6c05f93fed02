"""Any callback may end anything.

A callback closes its own handler, or another that is ready in the same batch, or raises. Each of these works alone.
Combined, one may read a closed socket, send to a number that belongs to another, register again what was just released,
or miss its last callback.

What prevents it: every step after a callback looks at the handler's state again. This is the product of all callbacks
and all actions on all handlers.
"""

from __future__ import annotations

import errno
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from reactor import Connection, Connector, Datagram, Listener
from reactor.fastpath.batch import DatagramBatch
from reactor.sockets.errors import os_error
from tests.hazards.test_base_exceptions import CALLBACKS, Own, Rig
from tests.support.basics import open_descriptors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="DatagramBatch needs Linux")
TARGETS: dict[str, Callable[[Rig], list[Any]]] = {
    "connection": lambda rig: rig.stream.connections[:1],
    "listener": lambda rig: [rig.listener],
    "datagram": lambda rig: [rig.datagram],
    "batch": lambda rig: [rig.batch],
    "own": lambda rig: [rig.own],
    "connector": lambda rig: [handler for handler in rig.reactor.handlers if isinstance(handler, Connector)],
    "all": lambda rig: [
        handler
        for handler in rig.reactor.handlers
        if isinstance(handler, Connection | Listener | Datagram | DatagramBatch | Own)
    ],
}
ACTIONS: dict[str, Callable[[Any], object]] = {
    "close": lambda handler: getattr(handler, "close", handler.abort)(),
    "abort": lambda handler: handler.abort(os_error(errno.EIO)),
}


class ActionError(Exception):
    """Raised by a callback, alone or after its action."""


def product() -> Iterator[Any]:
    """Yield every combination. By default every third pair of callback and target runs in one way, in turn."""
    ways = list(itertools.product(ACTIONS, (False, True)))
    for number, (callback, target) in enumerate(itertools.product(CALLBACKS, TARGETS)):
        for index, (action, raises) in enumerate(ways):
            marks = [] if number % 3 == 0 and index == number % len(ways) else [pytest.mark.long]
            yield pytest.param(callback, action, target, raises, marks=marks)


@pytest.mark.parametrize(("callback", "action", "target", "raises"), list(product()))
def test_callback_that_ends_any_handler_leaves_a_sound_loop(
    callback: str, action: str, target: str, raises: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that ends is released after one last callback; the others go on; a closed loop leaves nothing."""
    before = open_descriptors()
    rig = Rig(callback.strip(), ActionError)
    if callback not in ("connection_made", "factory"):
        rig.run_until(lambda: rig.stream.connections)
    acted: list[str] = []
    calls: list[str] = []

    def trap(name: str) -> None:
        calls.append(name)
        if name == callback.strip() and not acted:
            acted.append(name)
            for handler in TARGETS[target](rig):
                ACTIONS[action](handler)
            if raises:
                raise ActionError(name)

    rig.trap.act = trap
    CALLBACKS[callback](rig)
    rig.run_until(lambda: acted)
    turns = 0
    over: list[int] = []
    rig.reactor.call_later(0.01, over.append, 1)
    while not over:
        rig.reactor.turn()
        turns += 1
    assert turns < 200, "the loop spins"
    for handler in rig.reactor.handlers:
        assert not handler.closed
    counts = [calls.count(name) for name in ("endpoint_lost", "batch_lost", "lost", "failed")]
    assert max(counts) <= 1
    for endpoint, name in ((rig.datagram, "endpoint_lost"), (rig.batch, "batch_lost")):
        assert endpoint.closed == (name in calls)
        answered_too = endpoint.drops.get("callback", 0) if endpoint is rig.datagram else 0
        counted = endpoint.datagrams_sent + sum(endpoint.drops.values())
        assert endpoint.datagrams_received >= counted - answered_too - endpoint.drops.get("receive_EBADF", 0)
    errors = [record for record in caplog.records if record.exc_info]
    assert len(errors) == raises, "each exception is logged once, and no other is raised"
    if target != "all":
        rig.assert_neighbours_go_on()
    rig.close()
    rig.own.abort()
    assert open_descriptors() == before
    assert rig.stream.lost == len(set(rig.stream.connections))
