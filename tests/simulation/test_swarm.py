"""The proof: the real EchoServer in bad worlds, and not one byte lost."""

from __future__ import annotations

import collections
import os
import subprocess
import sys

from hypothesis import assume, given
from hypothesis import strategies as st

from reactor.testing import USUAL_FAULTS, simulate
from tests.simulation.world import swarm_scenario
from tests.support.basics import PROJECT

SEEDS = {"ci": 600, "deep": 20_000}.get(os.environ.get("HYPOTHESIS_PROFILE", "dev"), 200)


def test_in_good_worlds_every_caller_gets_all_of_his_bytes_and_every_datagram_its_answer() -> None:
    report = simulate(swarm_scenario, seeds=100, faults={})
    assert not report.injected


def test_in_bad_worlds_no_promise_is_broken() -> None:
    """Each seed has its own mix of faults; `python -m tests.swarm` runs more of them."""
    report = simulate(swarm_scenario, seeds=SEEDS)
    assert len(report.injected) > 50, "the worlds were bad indeed"


@given(
    seed=st.integers(0, 2**32),
    faults=st.dictionaries(st.sampled_from(USUAL_FAULTS), st.sampled_from([0.01, 0.1, 0.4]), max_size=6),
)
def test_hypothesis_finds_no_world_in_which_a_promise_is_broken(seed: int, faults: dict[str, float]) -> None:
    """The same, with hypothesis choosing the mix: what it finds, it also makes small."""
    each: dict[str, float] = collections.defaultdict(float)
    for name, probability in faults.items():
        each[name.partition(".")[0]] += probability
    assume(all(total < 0.9 for total in each.values()))  # where a call never succeeds, a world has no end
    simulate(swarm_scenario, seeds=[seed], faults=faults)


JOURNAL = """
import hashlib, sys
from reactor.testing import SimulatedNetwork
from reactor.testing.simulate import run_once
from tests.simulation.world import swarm_scenario

for seed in (3, 7):
    network = SimulatedNetwork(seed, faults={"send.short": 0.3, "select.shuffle": 0.3, "step.fin": 0.01})
    network.journal = []
    assert run_once(swarm_scenario, network) is None
    print(len(network.journal), hashlib.sha256(repr(network.journal).encode()).hexdigest())
"""


def test_the_same_seed_gives_the_same_run_in_another_process() -> None:
    """What is decided doesn't depend on hashes, addresses of objects, or the time of day."""

    def journals(hash_seed: str) -> str:
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", JOURNAL]
        return subprocess.run(command, env=environment, cwd=PROJECT, check=True, capture_output=True, text=True).stdout

    assert journals("1") == journals("77") != ""
