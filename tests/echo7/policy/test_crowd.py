"""A full server makes room for clients that come: silent connections of the largest source go first, and no other."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7.policy.crowd import LOOKS, SILENT_S, Crowd
from echo7.policy.sources import BY_BIND, SourceLimits
from echo7.server import ROOM_RETRY_S
from reactor import Reactor
from tests.support.clients import reset
from tests.support.echo import EchoByHand
from tests.support.loops import ManualClock, turn_idle

OPEN_TO_ALL = SourceLimits(connections=BY_BIND, keep_silent=False)


class House:
    """A server with a few places on every address, and clients from any of 127/8."""

    def __init__(self, places: int, sources: SourceLimits = OPEN_TO_ALL, host: str = "0.0.0.0") -> None:
        self.clock = ManualClock()
        self.echo = EchoByHand([host], {"clock": self.clock}, udp=False, max_connections=places, sources=sources)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> House:
        self._stack.enter_context(self.echo)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def call(self, source: int) -> socket.socket:
        """Return a client from 127.0.1.`source`. The server hasn't accepted it yet."""
        client = self._stack.enter_context(socket.socket())
        client.bind((f"127.0.1.{source}", 0))
        client.connect(("127.0.0.1", self.echo.port))
        client.setblocking(False)
        self.turn()
        return client

    def turn(self) -> None:
        turn_idle(self.echo.reactor, 5)

    def is_served(self, client: socket.socket) -> bool:
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            client.send(b"served?")
            self.turn()
            return client.recv(100).endswith(b"served?")
        return False

    @property
    def open(self) -> int:
        return self.echo.server.counters.connections_open

    @property
    def drops(self) -> dict[str, int]:
        return dict(self.echo.server.counters.drops)


def test_four_silent_sources_leave_room_for_a_fifth(caplog: pytest.LogCaptureFixture) -> None:
    """Issue: "A full house made by four silent sources […]: the fifth source gets nothing, and nothing is logged"."""
    caplog.set_level(logging.INFO, "echo7")
    with House(8) as house:
        silent = [house.call(source) for source in range(4) for _ in range(2)]
        assert house.open == 8
        fifth = house.call(5)
        assert not house.is_served(fifth), "no connection has been silent for long"
        assert [record.event for record in caplog.records] == ["full"]  # type: ignore[attr-defined]
        house.clock.advance(SILENT_S)
        house.turn()
        assert fifth.recv(100) == b"served?", "it had waited"
        assert house.drops == {"idle_made_room": 1}
        assert house.open == 8
        assert "idle_made_room of 127.0.1.0:" in caplog.text
        assert [house.is_served(client) for client in silent] == [False] + [True] * 7


def test_waiting_client_is_served_within_a_second_of_a_silence_that_is_long_enough() -> None:
    with House(4) as house:
        for source in range(4):
            house.call(source)
        fifth = house.call(5)
        waited_s = 0.0
        while not house.drops:
            house.clock.advance(0.25)
            waited_s += 0.25
            house.turn()
        assert waited_s <= SILENT_S + ROOM_RETRY_S
        assert house.is_served(fifth)


def test_full_server_without_waiting_clients_closes_nothing() -> None:
    with House(4) as house:
        clients = [house.call(source) for source in range(4)]
        house.clock.advance(100 * SILENT_S)
        house.turn()
        assert house.drops == {}
        assert all(house.is_served(client) for client in clients)


def test_connection_that_is_used_stays() -> None:
    with House(4) as house:
        clients = [house.call(source) for source in range(4)]
        house.clock.advance(SILENT_S)
        clients[0].send(b"not read yet: the process was stopped")
        assert house.is_served(house.call(9)), "the second one went"
        assert house.is_served(clients[0])
        assert not house.is_served(clients[1])


def test_source_with_the_most_connections_goes_first() -> None:
    with House(8, OPEN_TO_ALL._replace(connections=None)) as house:
        few = [house.call(1), house.call(2)]
        many = [house.call(3) for _ in range(6)]
        house.clock.advance(SILENT_S)
        late = [house.call(4 + number) for number in range(4)]
        assert all(map(house.is_served, [*few, *late]))
        assert [house.is_served(client) for client in many] == [False] * 4 + [True] * 2


def test_client_that_leaves_by_itself_makes_room_and_is_no_drop() -> None:
    """Its FIN is read only when the server looks for room."""
    with House(2) as house:
        leaving, staying = house.call(1), house.call(2)
        house.clock.advance(SILENT_S)
        reset(leaving)
        assert house.is_served(house.call(3))
        assert house.is_served(staying)
        assert house.drops == {}


@pytest.mark.parametrize(
    ("host", "sources"),
    [("0.0.0.0", OPEN_TO_ALL._replace(keep_silent=True)), ("127.0.0.1", OPEN_TO_ALL)],
    ids=["option", "loopback"],
)
def test_silent_connections_are_kept(host: str, sources: SourceLimits) -> None:
    """With `--keep-silent`, and where only loopback is served."""
    with House(4, sources, host) as house:
        clients = [house.call(source) for source in range(4)]
        late = house.call(5)
        for _ in range(20):
            house.clock.advance(SILENT_S)
            house.turn()
        assert not house.is_served(late)
        assert all(house.is_served(client) for client in clients)
        clients[0].close()
        house.turn()
        assert late.recv(100) == b"served?"


def test_stopping_server_looks_for_no_room() -> None:
    with House(2) as house:
        for source in range(3):
            house.call(source)
        house.echo.server.stop()
        house.clock.advance(SILENT_S + ROOM_RETRY_S)
        house.turn()
        assert "idle_made_room" not in house.drops


# ---------------------------------------------------------------- the choice


class Stub:
    """What a Crowd sees of a connection."""

    def __init__(self, source: bytes) -> None:
        self.source, self.state, self.interest = source, None, 0
        self.bytes_received = self.bytes_sent = 0


def naive(connections: Sequence[Stub], since_s: dict[Stub, float], now_s: float) -> set[Stub]:
    """Return those that may make room: silent, and of a source with the most."""
    counts = {one.source: sum(other.source == one.source for other in connections) for one in connections}
    most = max(counts.values())
    return {one for one in connections if counts[one.source] == most and now_s - since_s[one] >= SILENT_S}


@given(st.lists(st.tuples(st.sampled_from(["enter", "leave", "talk", "choose"]), st.integers(0, 5), st.floats(0, 4))))
def test_choice_is_a_silent_one_of_a_source_with_the_most(steps: list[tuple[str, int, float]]) -> None:
    clock = ManualClock()
    with Reactor(clock=clock) as loop:
        crowd: Any = Crowd(loop)
        inside: list[Stub] = []
        moved_s: dict[Stub, float] = {}
        for what, number, pause_s in steps:
            clock.advance(pause_s)
            if what == "enter":
                inside.append(Stub(bytes([number])))
                moved_s[inside[-1]] = clock()
                crowd.enter(inside[-1], inside[-1].source)
            elif inside and what == "leave":
                gone = inside.pop(number % len(inside))
                crowd.leave(gone, gone.source)
            elif inside and what == "talk":
                talking = inside[number % len(inside)]
                talking.bytes_received += 1
                moved_s[talking] = clock()
            elif inside:
                chosen = crowd.longest_silent()
                assert chosen is None or chosen in naive(inside, moved_s, clock())


def test_choice_takes_a_bounded_number_of_looks() -> None:
    clock = ManualClock()
    looks = 0

    class Counted(Stub):
        @property
        def state(self) -> None:
            nonlocal looks
            looks += 1

        @state.setter
        def state(self, value: None) -> None:
            pass

    with Reactor(clock=clock) as loop:
        for sources in (1, 20, 1000):
            crowd: Any = Crowd(loop)
            for number in range(2000):
                connection = Counted(str(number % sources).encode())
                crowd.enter(connection, connection.source)
                connection.bytes_received = 1
            clock.advance(SILENT_S)
            looks = 0
            assert crowd.longest_silent() is None, "all have talked"
            assert 1 <= looks <= LOOKS
