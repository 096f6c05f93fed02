"""Limits for each source and the idle timeout, in good worlds and in bad ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from echo7.policy.idle import IdleWatch
from reactor import Connection, Reactor
from reactor.testing import SimulatedNetwork, simulate
from tests.simulation.test_swarm import CLOSES, INTERRUPTS, LOST, SEEDS
from tests.simulation.world import ALMOST, Auditor, World, limits_scenario


def checked_scenario(network: SimulatedNetwork) -> World:
    """Check that no connection ends too early; the Auditor checks everything else."""
    too_early: list[str] = []
    right = IdleWatch.__init__

    def begin(self: IdleWatch, reactor: Reactor, timeout_s: float, ended: Callable[[Connection, str], object]) -> None:
        def check(connection: Any, reason: str) -> None:
            [auditor] = [watcher for watcher in network.watchers if isinstance(watcher, Auditor)]
            silent_s = network.clock() - auditor.ledgers[connection.socket].moved_s
            if silent_s < timeout_s * ALMOST:
                too_early.append(f"{reason} after {silent_s} s, not {timeout_s}")
            ended(connection, reason)

        right(self, reactor, timeout_s, check)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IdleWatch, "__init__", begin)
        world = limits_scenario(network)
    assert not too_early, too_early
    return world


@pytest.mark.parametrize("seeds", SEEDS)
def test_good_worlds_keep_limits_and_serve_other_clients(seeds: range) -> None:
    drops: set[str] = set()

    def noted_scenario(network: SimulatedNetwork) -> None:
        drops.update(checked_scenario(network).server.counters.drops)

    simulate(noted_scenario, seeds=seeds, faults={})
    assert {"idle_timeout", "idle_stuck", "refused_source_cap", "rate_source", "rate_total"} <= drops


@pytest.mark.parametrize("faults", [INTERRUPTS, CLOSES, LOST], ids=["interrupts", "closes", "lost"])
def test_faults_of_callbacks_change_no_limit(faults: dict[str, float]) -> None:
    assert simulate(checked_scenario, seeds=10, faults=faults).injected.keys() == faults.keys()


@pytest.mark.parametrize("seeds", SEEDS)
def test_bad_worlds_keep_limits_and_break_no_promise(seeds: range) -> None:
    """Issue: caps, buckets and idle timeout, "simulation … for schedules"."""
    assert len(simulate(checked_scenario, seeds=seeds).injected) > 40, "too little went wrong"
