"""The stale event.

`select` returns a batch. The first handler of the batch closes a second one that is in the batch too. The kernel gives
the freed descriptor number to the next new socket, perhaps one that a third handler of the same batch opens. A naive
server looks connections up by number, and so delivers the second one's event to the new socket: it reads from it,
writes another client's bytes to it, or closes it because "it" was reset.

What prevents it: the selector's `data` is the handler itself, a closed handler is skipped, and nothing is looked up by
number. So a new handler can't be mistaken for the old one that had its number.
"""

import logging
import os
import selectors
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7.server import EchoServer
from reactor import READ, Connection, Listener, Reactor, StreamProtocol, listen_tcp
from tests.support.basics import PATIENCE_S
from tests.support.clients import receive_exactly, reset, tcp_pair
from tests.support.loops import (
    SELECTORS,
    Recorder,
    RecordingSelector,
    server_side,
    turn_idle,
    turn_until,
    wait_readable,
)


class OrderedSelector(RecordingSelector):
    """A selector that orders each batch by `rank(handler)`; kernels promise no order."""

    def __init__(self, inner: selectors.BaseSelector) -> None:
        super().__init__(inner)
        self.rank: Callable[[Any], int] = lambda handler: 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return sorted(super().select(timeout), key=lambda event: self.rank(event[0].data))


class Successor:
    """A connected pair that is registered under a descriptor number as soon as that number is free."""

    def __init__(self) -> None:
        self.near, self.far = tcp_pair()
        self.recorder = Recorder(echo=True)

    def take(self, reactor: Reactor, number: int) -> None:
        """Register as descriptor `number`."""
        os.dup2(self.near.fileno(), number, inheritable=False)
        self.near.close()
        self.connection = Connection(reactor, socket.socket(fileno=number), self.recorder)
        self.connection.open()
        assert self.connection.fileno() == number

    def assert_unharmed(self, reactor: Reactor) -> None:
        """Check that it got no event of another handler, and that it works."""
        assert self.recorder.events == [("made",)]
        self.far.send(b"hello")
        turn_until(reactor, lambda: self.recorder.received == b"hello")
        self.far.settimeout(PATIENCE_S)
        assert receive_exactly(self.far, 5) == b"hello"

    def close(self) -> None:
        self.near.close()
        self.far.close()


class Victim(Recorder):
    """A connection that, on its event, closes others and gives their numbers to successors."""

    def __init__(self, scene: "Scene", number: int) -> None:
        super().__init__()
        self.scene = scene
        self.near, self.far = tcp_pair()
        self.connection = Connection(scene.reactor, self.near, self)
        self.number = number

    def data_received(self, connection: Connection, data: bytes) -> None:
        super().data_received(connection, data)
        for target in self.scene.kills.get(self.number, ()):
            self.scene.kill(target)


class Scene:
    """Handlers that all have an event in the same batch, and a table that says which one closes which."""

    def __init__(self, reactor: Reactor, size: int, kills: dict[int, Sequence[int]]) -> None:
        self.reactor = reactor
        self.kills = kills
        self.successors: list[Successor] = []
        self.spare = [Successor() for _ in range(size)]
        self.victims = [Victim(self, number) for number in range(size)]
        for victim in self.victims:
            victim.connection.open()

    def kill(self, number: int) -> None:
        """Close one, and register a successor under its number at once."""
        connection = self.victims[number].connection
        if not connection.closed:
            descriptor = connection.fileno()
            connection.abort()
            successor = self.spare.pop()
            successor.take(self.reactor, descriptor)
            self.successors.append(successor)

    def close(self) -> None:
        for pair in [*self.spare, *self.successors]:
            pair.close()
        for victim in self.victims:
            victim.far.close()


def expected_receivers(order: Iterable[int], kills: dict[int, Sequence[int]]) -> set[int]:
    """Return what should happen: go through the batch in order, and skip each one that is closed by then."""
    dead: set[int] = set()
    receivers: set[int] = set()
    for number in order:
        if number not in dead:
            receivers.add(number)
            dead.update(kills.get(number, ()))
    return receivers


@pytest.mark.parametrize("by_reset", [False, True], ids=["data", "reset"])
@pytest.mark.parametrize("selector_class", SELECTORS)
def test_of_two_handlers_that_close_each_other_only_the_first_acts(
    selector_class: type[selectors.BaseSelector], by_reset: bool
) -> None:
    """'A handler that closes another in the same batch, with the number reused at once, does no harm' (promise 8)."""
    with Reactor(selector=selector_class()) as reactor:
        scene = Scene(reactor, 3, {0: [1, 2], 1: [0, 2]})
        for victim in scene.victims:
            victim.far.send(b"x")
            wait_readable(victim.connection)
        if by_reset:
            reset(scene.victims[2].far)
        turn_idle(reactor, 1)
        heard = [victim.number for victim in scene.victims[:2] if victim.received]
        assert len(heard) == 1, "the second one was closed before its event was dispatched"
        assert len(scene.successors) == 2
        turn_idle(reactor)
        for successor in scene.successors:
            successor.assert_unharmed(reactor)
        scene.close()


@given(data=st.data(), selector_class=st.sampled_from(SELECTORS), size=st.integers(2, 6))
def test_handlers_closing_each_other_in_any_order_leave_new_ones_alone(
    data: st.DataObject, selector_class: type[selectors.BaseSelector], size: int
) -> None:
    """In any order of the batch, with any handler closing any (itself too), each event reaches only its own handler."""
    numbers = st.integers(0, size - 1)
    kills: dict[int, Sequence[int]] = data.draw(st.dictionaries(numbers, st.lists(numbers, unique=True)), "kills")
    order = data.draw(st.permutations(range(size)), "order")
    selector = OrderedSelector(selector_class())
    with Reactor(selector=selector) as reactor:
        scene = Scene(reactor, size, kills)
        rank: dict[Any, int] = {scene.victims[number].connection: place for place, number in enumerate(order)}
        selector.rank = lambda handler: rank.get(handler, -1)
        for victim in scene.victims:
            victim.far.send(b"x")
            wait_readable(victim.connection)
        turn_idle(reactor, 3)
        receivers = expected_receivers(order, kills)
        assert {victim.number for victim in scene.victims if victim.received} == receivers
        ended = {target for number in receivers for target in kills.get(number, ())}
        for victim in scene.victims:
            assert victim.kinds().count("lost") == (victim.number in ended)
        for successor in scene.successors:
            successor.assert_unharmed(reactor)
        scene.close()


class Bell:
    """A minimal handler: it records its events, then runs an action."""

    def __init__(self, reactor: Reactor, near: socket.socket, then: Callable[[], object] = int) -> None:
        self.interest, self.closed = 0, False
        self.reactor, self.near, self.then = reactor, near, then
        self.heard: list[int] = []
        reactor.register(self)
        reactor.set_interest(self, READ)

    def fileno(self) -> int:
        return self.near.fileno()

    def detach(self) -> int:
        return self.near.detach()

    def on_event(self, mask: int) -> None:
        self.heard.append(mask)
        self.then()

    def abort(self, error: Exception | None = None) -> None:
        if not self.closed:
            self.closed = True
            self.reactor.unregister(self)
            self.near.close()


@pytest.mark.parametrize("selector_class", SELECTORS)
def test_stale_event_reaches_neither_the_closed_handler_nor_its_successor(
    selector_class: type[selectors.BaseSelector],
) -> None:
    """A Connection would ignore a stale event. This handler wouldn't, so the loop itself must not deliver it."""
    selector = OrderedSelector(selector_class())
    with Reactor(selector=selector) as reactor:
        (first_near, first_far), (near, far), (next_near, next_far) = tcp_pair(), tcp_pair(), tcp_pair()
        successors: list[Bell] = []

        def replace() -> None:
            number = doomed.fileno()
            doomed.abort()
            os.dup2(next_near.fileno(), number, inheritable=False)
            successors.append(Bell(reactor, socket.socket(fileno=number)))

        doomed = Bell(reactor, near)
        first = Bell(reactor, first_near, replace)
        selector.rank = lambda handler: int(handler is doomed)
        for client, handler in ((far, doomed), (first_far, first)):
            client.send(b"x")
            wait_readable(handler.near)
        turn_idle(reactor, 1)
        assert first.heard == [READ]
        assert doomed.heard == []
        assert successors[0].heard == []
        next_far.send(b"x")
        wait_readable(next_near)
        first.abort()
        turn_idle(reactor, 1)
        assert successors[0].heard == [READ]
        for sock in (first_far, far, next_far, next_near):
            sock.close()


class Closer(StreamProtocol):
    """Aborts the connections in `targets` when it receives data."""

    def __init__(self) -> None:
        self.targets: list[Connection] = []

    def data_received(self, connection: Connection, data: bytes) -> None:
        for target in self.targets:
            target.abort()


class NoLowerNumber:
    """Takes every free descriptor number below `number`, so that the next socket gets exactly `number`."""

    def __init__(self, number: int) -> None:
        self.taken: list[int] = []
        while (descriptor := os.open(os.devnull, os.O_RDONLY)) < number:
            self.taken.append(descriptor)
        os.close(descriptor)

    def give_back(self) -> None:
        for descriptor in self.taken:
            os.close(descriptor)


@pytest.mark.parametrize("reset_too", [False, True], ids=["data", "reset"])
@pytest.mark.parametrize("selector_class", SELECTORS)
def test_client_accepted_under_a_number_just_freed_is_echoed(
    selector_class: type[selectors.BaseSelector], reset_too: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """End to end, in one batch: a callback aborts a connection, the listener accepts, the stale event comes."""
    selector = OrderedSelector(selector_class())
    closer = Closer()
    with Reactor(selector=selector) as reactor:
        server = EchoServer(("127.0.0.1",), 0)
        server.start(reactor)
        port = server.addresses[0].port
        control_port = listen_tcp(reactor, ("127.0.0.1", 0), lambda: closer).address[1]
        control = socket.create_connection(("127.0.0.1", control_port), PATIENCE_S)
        controlling = server_side(reactor, control)
        victim = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        doomed = server_side(reactor, victim)
        closer.targets.append(doomed)
        freed = doomed.fileno()
        selector.rank = lambda handler: 2 if handler is doomed else int(isinstance(handler, Listener))

        victim.sendall(b"for the dead one")
        wait_readable(doomed)
        if reset_too:
            reset(victim)
        control.sendall(b"!")
        wait_readable(controlling)
        successor = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        for handler in [h for h in reactor.handlers if isinstance(h, Listener) and h.address[1] == port]:
            wait_readable(handler)
        plugs = NoLowerNumber(freed)
        turn_idle(reactor, 1)
        plugs.give_back()

        assert doomed.closed
        served = server_side(reactor, successor)
        assert served.fileno() == freed, "the number was to be reused in the same batch"
        assert served.bytes_received == 0
        successor.sendall(b"for me")
        turn_until(reactor, lambda: served.bytes_sent == 6)
        assert receive_exactly(successor, 6) == b"for me"
        assert server.counters.connections_open == 1
        assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
        for sock in (control, victim, successor):
            sock.close()
