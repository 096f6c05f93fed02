"""Limits for each source and the idle timeout, in good worlds and in bad ones; and that it shows when they fail."""

from __future__ import annotations

import os
from typing import Any

import pytest

from echo7.policy.idle import IdleWatch
from echo7.policy.rate import SourceBuckets
from echo7.policy.sources import ConnectionGate, DatagramGate
from reactor import Connection
from reactor.testing import SimulatedNetwork, SimulationFailed, simulate
from tests.simulation.test_teeth import Plant
from tests.simulation.world import PATIENCE_S, Auditor, World, limits_scenario

SEEDS = {"ci": 400, "deep": 10_000}.get(os.environ.get("HYPOTHESIS_PROFILE", "dev"), 150)
TEETH_SEEDS = 200


def checked_scenario(network: SimulatedNetwork) -> World:
    """Nobody is let go too early; the Auditor looks at all the rest."""
    too_early: list[str] = []
    right = IdleWatch._end

    def look(self: Any, connection: Any, silent_s: float) -> bool:
        [auditor] = [watcher for watcher in network.watchers if isinstance(watcher, Auditor)]
        really_s = network.clock() - auditor.ledgers[connection.socket].moved_s
        if not really_s >= silent_s >= self._timeout_s:
            too_early.append(f"let go after {really_s} s, taken for {silent_s}")
        return right(self, connection, silent_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IdleWatch, "_end", look)
        world = limits_scenario(network)
    assert not too_early, too_early
    return world


def test_in_good_worlds_limits_are_kept_and_everybody_else_is_served() -> None:
    drops: set[str] = set()

    def noted_scenario(network: SimulatedNetwork) -> None:
        drops.update(checked_scenario(network).server.counters.drops)

    simulate(noted_scenario, seeds=100, faults={})
    assert {"idle_timeout", "idle_stuck", "refused_source_cap", "rate_source", "rate_total"} <= drops


def test_in_bad_worlds_limits_are_kept_and_no_promise_is_broken() -> None:
    """Issue: caps, buckets and idle timeout, "simulation … for schedules"."""
    report = simulate(checked_scenario, seeds=SEEDS)
    assert len(report.injected) > 50


def a_cap_that_lets_one_more_in(patch: pytest.MonkeyPatch) -> None:
    right = ConnectionGate.refusal
    patch.setattr(ConnectionGate, "refusal", lambda self, host, most: right(self, host, most + 1))


def a_door_that_forgets_who_has_left(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ConnectionGate, "leave", lambda self, source: None)


def a_bucket_without_a_bottom(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SourceBuckets, "take", lambda self, source, count, now_s: count)


def a_rate_that_drops_whole_batches(patch: pytest.MonkeyPatch) -> None:
    """Its drops are counted by the batch, and not by the datagram."""
    right = DatagramGate.refusals
    patch.setattr(DatagramGate, "refusals", lambda *asked: dict(list(right(*asked).items())[:1]))


def an_idle_end_that_comes_too_early(patch: pytest.MonkeyPatch) -> None:
    def watch(self: Any, connection: Connection) -> None:
        self._timeout_s = PATIENCE_S / 4
        right(self, connection)

    right = IdleWatch.watch
    patch.setattr(IdleWatch, "watch", watch)


BUGS: list[Plant] = [
    a_cap_that_lets_one_more_in,
    a_door_that_forgets_who_has_left,
    a_bucket_without_a_bottom,
    a_rate_that_drops_whole_batches,
    an_idle_end_that_comes_too_early,
]


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: str(plant.__name__))
def test_a_limit_that_fails_is_noticed(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(SimulationFailed):
        simulate(limits_scenario, seeds=TEETH_SEEDS, shrinking_s=0.0)
