"""The real EchoServer in good and bad worlds: it loses no byte, and breaks no promise."""

from __future__ import annotations

import collections
import os
import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from reactor.testing import CALLBACK_FAULTS, USUAL_FAULTS, simulate
from reactor.testing.callbacks import RAISED
from tests.simulation.world import swarm_mix, swarm_scenario
from tests.support.basics import PROJECT

MANY = 20_000 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 600
SEEDS = [pytest.param(range(16), id="few"), pytest.param(range(16, MANY), id="many", marks=pytest.mark.long)]


@pytest.mark.parametrize("seeds", SEEDS)
def test_good_worlds_return_every_byte_and_answer_every_datagram(seeds: range) -> None:
    assert not simulate(swarm_scenario, seeds=seeds, faults={}).injected


@pytest.mark.parametrize("seeds", SEEDS)
def test_bad_worlds_break_no_promise(seeds: range) -> None:
    """Each seed has its own mix of faults; `python -m tests.swarm` runs more of them."""
    injected = simulate(swarm_scenario, seeds=seeds, faults=swarm_mix).injected
    assert len(injected) > 40, "too little went wrong"
    assert injected.keys() >= set(CALLBACK_FAULTS)


# With register.ENOMEM handlers are suspended, so that several timers are due at once.
INTERRUPTS = dict.fromkeys([*(f"callback.{kind}" for kind in RAISED), "register.ENOMEM"], 0.1)
CLOSES = {"callback.close": 0.1, "callback.abort": 0.1}
LOST = {"callback.lost": 0.1}
REFUSALS = {"modify.ENOMEM": 0.3, "send.short": 0.3, "accept.EACCES": 0.1, "recvmsg.EACCES": 0.1}


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize(
    "faults", [INTERRUPTS, CLOSES, LOST, REFUSALS], ids=["interrupts", "closes", "lost", "refusals"]
)
def test_frequent_faults_of_one_kind_harm_nothing_but_what_they_hit(faults: dict[str, float], seeds: range) -> None:
    """BaseExceptions, closes and aborts, descriptors that other code closes, and refusals: each kind alone."""
    assert simulate(swarm_scenario, seeds=seeds, faults=faults).injected.keys() == faults.keys()


@pytest.mark.long
@given(
    seed=st.integers(0, 2**32),
    faults=st.dictionaries(
        st.sampled_from(USUAL_FAULTS + CALLBACK_FAULTS), st.sampled_from([0.01, 0.1, 0.4]), max_size=6
    ),
)
def test_worlds_chosen_by_hypothesis_break_no_promise(seed: int, faults: dict[str, float]) -> None:
    """Hypothesis chooses the mix, and shrinks what it finds."""
    each: dict[str, float] = collections.defaultdict(float)
    for name, probability in faults.items():
        each[name.partition(".")[0]] += probability
    assume(all(total < 0.9 for total in each.values()))  # if a call never succeeds, the run never ends
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


def test_same_seed_in_another_process_gives_the_same_run() -> None:
    """A run doesn't depend on hashes, addresses of objects, or the time of day."""

    def journals(hash_seed: str) -> str:
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", JOURNAL]
        return subprocess.run(command, env=environment, cwd=PROJECT, check=True, capture_output=True, text=True).stdout

    assert journals("1") == journals("77") != ""
