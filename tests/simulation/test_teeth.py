"""The simulation finds each well-known bug of echo servers, planted in ours.

The same scenarios and mixes pass without the bug (`test_swarm.py`, `test_limits.py`, `test_protocols.py`). SEEDS is the
stated number: no bug may stay hidden in so many worlds.
"""

from __future__ import annotations

from typing import Any

import pytest

from reactor.testing import SimulationFailed, simulate
from tests.simulation import bugs
from tests.simulation.bugs import plant
from tests.simulation.test_protocols import HARMLESS, SIGNALS, contract_scenario, half_close_scenario, signal_scenario
from tests.simulation.test_swarm import CLOSES, INTERRUPTS, LOST, REFUSALS
from tests.simulation.world import limits_scenario, swarm_scenario

SEEDS = 200
ECHO = bugs.BYTES | bugs.READINESS | bugs.ENDS | bugs.SERVICE | bugs.DATAGRAMS | bugs.BATCHES | bugs.PIPES
SUITES: list[tuple[Any, dict[str, float] | None, dict[str, bugs.Bug]]] = [
    (swarm_scenario, None, ECHO),
    (swarm_scenario, REFUSALS, bugs.INTEREST),
    (swarm_scenario, INTERRUPTS, bugs.INTERRUPTS),
    (swarm_scenario, CLOSES, bugs.CLOSES),
    (swarm_scenario, LOST, bugs.LOST),
    (signal_scenario, SIGNALS, bugs.SIGNALS),
    (limits_scenario, None, bugs.LIMITS),
    (contract_scenario, None, bugs.CONTRACT),
    (half_close_scenario, HARMLESS, bugs.HALF_CLOSE),
]
# These need many worlds, or long ones, and run with `-m long`.
SLOW = set(
    "pipe_filled_while_lingering aborted_without_a_reset closed_without_lingering idle_timeout_too_early "
    "finished_connection_still_registered runs_begin_one_too_late runs_end_one_too_late timers_fire_early "
    "short_splice_taken_for_a_whole_one empty_splice_taken_for_the_end "
    "half_close_taken_for_the_end pipe_given_while_bytes_are_pending bytes_in_the_pipe_forgotten "
    "reading_goes_on_while_draining bucket_without_a_bottom suspended_for_no_time dead_peers_never_found "
    "eintr_taken_for_the_end answer_from_another_address pipe_left_open line_ends_converted "
    "endpoint_deaf_after_a_shortage short_batch_sent_again_from_its_start held_answer_dropped_and_counted "
    "held_answer_sent_twice closed_handler_called_in_the_same_batch no_pause_when_memory_runs_out "
    "write_overtakes_pending_bytes".split()
)
CASES = [
    pytest.param(scenario, faults, bug, id=name, marks=[pytest.mark.long] if name in SLOW else [])
    for scenario, faults, planted in SUITES
    for name, bug in planted.items()
]
assert {name for _, _, planted in SUITES for name in planted} >= SLOW


@pytest.mark.parametrize(("scenario", "faults", "bug"), CASES)
def test_planted_bug_is_found(
    scenario: Any, faults: dict[str, float] | None, bug: bugs.Bug, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within SEEDS worlds, and again by the seed and script that the failure names."""
    plant(monkeypatch, bug)
    with pytest.raises(SimulationFailed) as found:
        simulate(scenario, seeds=SEEDS, faults=faults, shrinking_s=0.0)
    again = found.value
    with pytest.raises(SimulationFailed):
        simulate(scenario, seeds=[again.seed], script=again.script, shrinking_s=0.0)
