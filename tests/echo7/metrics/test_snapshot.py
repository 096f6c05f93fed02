"""Snapshots of one process, and sums of several."""

from __future__ import annotations

import errno
import json
import pathlib

import pytest

import echo7
from echo7.metrics.snapshot import Gauges, Snapshot, gauges_of, snapshot_maker, total
from echo7.server import EchoServer
from reactor import Reactor
from reactor.observe.watch import TICK_S, Watch
from reactor.sockets.errors import os_error
from tests.support.clients import connect_small
from tests.support.echo import EchoByHand
from tests.support.faults import Faults, FlakySockets
from tests.support.loops import ManualClock, turn_idle, turn_until


class Handler:
    dropped = 7


def test_snapshot_goes_through_a_channel_unchanged() -> None:
    clock = ManualClock()
    with Reactor(clock=clock, observer=Watch(0.5)) as loop:
        server = EchoServer(["127.0.0.1"], 0)
        server.start(loop)
        take = snapshot_maker(loop, server, Handler())  # type: ignore[arg-type]
        clock.advance(TICK_S)
        loop.call_soon(clock.advance, 0.5)
        loop.turn()
        loop.call_soon(int)
        loop.turn()
        snapshot = take()
        assert (snapshot.log_lines_dropped, snapshot.slow_callbacks) == (7, 1)
        assert (sum(snapshot.turns.counts), sum(snapshot.lags.counts)) == (1, 2)
        again = Snapshot.from_message(json.loads(json.dumps(snapshot.as_message())))
        assert again == snapshot
        server.stop()


def test_total_adds_live_processes_and_the_counters_of_ended_ones() -> None:
    one = Snapshot().as_message() | {
        "counters": {"connections": 3, "connections_open": 2, "drops": {"a": 1}},
        "gauges": [1, 2, 3, 4],
        "slow_callbacks": 5,
        "turns": [[1] * len(Snapshot().turns.counts), 2.5],
    }
    snapshot = Snapshot.from_message(one)
    both = total([snapshot, snapshot.after_the_end()])
    assert (both.counters.connections, both.counters.connections_open, both.counters.drops) == (6, 2, {"a": 2})
    assert both.gauges == Gauges(1, 2, 3, 4)
    assert both.slow_callbacks == 10
    assert (set(both.turns.counts), both.turns.total_s) == ({2}, 5.0)
    assert total([Snapshot()]) == Snapshot()


def test_gauges_show_held_connections_and_buffers() -> None:
    """Issue: "pause state, buffer bytes"."""
    with EchoByHand(udp=False, max_connections=2) as echo, echo.connect() as reader, echo.connect() as stuck:
        limits = {"connections_limit": 2, "connections_possible": 2}
        assert gauges_of(echo.server, echo.reactor) == Gauges(listeners_full=1, **limits)
        connection = echo.connections[1]
        echo.fill(stuck, connection)
        assert gauges_of(echo.server, echo.reactor) == Gauges(1, 0, 1, connection.pending_bytes, **limits)
        reader.close()
        turn_until(echo.reactor, lambda: len(echo.connections) == 1)
        turn_idle(echo.reactor)
        assert gauges_of(echo.server, echo.reactor).listeners_full == 0
        assert echo.server.stopping is False
        echo.server.stop()
        assert echo.server.stopping is True
        assert gauges_of(echo.server, echo.reactor).listeners_full == 0, "a closed one isn't paused"


def test_gauges_show_a_listener_short_of_descriptors() -> None:
    faults = Faults()
    with EchoByHand(udp=False, reactor_options={"sockets": FlakySockets(faults)}) as echo:
        faults.add("accept", os_error(errno.EMFILE))
        with connect_small(("127.0.0.1", echo.port), None):
            turn_until(echo.reactor, lambda: gauges_of(echo.server, echo.reactor).listeners_short)
            turn_until(echo.reactor, lambda: not gauges_of(echo.server, echo.reactor).listeners_short)


@pytest.mark.parametrize("lost", [(True, False), (False, True), (True, True)], ids=str)
def test_gauges_show_lost_sockets_until_the_server_stops(lost: tuple[bool, bool]) -> None:
    """Story: "endpoint is broken and closed" was in the log, but neither in a metric nor in the health."""
    with EchoByHand() as echo:
        listeners, endpoints, _ = echo.server.handlers
        for handler, abort in zip((listeners[0], endpoints[0]), lost, strict=True):
            if abort:
                handler.abort(os_error(errno.EBADF))
        turn_idle(echo.reactor)
        assert gauges_of(echo.server, echo.reactor) == Gauges(sockets_lost=sum(lost))
        echo.server.stop()
        assert gauges_of(echo.server, echo.reactor) == Gauges()


def test_snapshot_needs_no_package() -> None:
    text = (pathlib.Path(echo7.__file__).parent / "metrics" / "snapshot.py").read_text()
    assert "prometheus_client" not in text
    assert "h11" not in text
