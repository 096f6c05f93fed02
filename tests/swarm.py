"""`python -m tests.swarm --seeds N [--jobs J] [--first SEED]`: the real EchoServer in N bad worlds.

A run counts only if it could have failed. Each seed is a world with a random mix of faults and random clients.
`tests/simulation/world.py` says what is checked at each system call; `tests/simulation/test_teeth.py` shows that
planted bugs are found. The first failure is shrunk, printed with the seed and the script that repeat it, and ends the
run with exit status 1.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from reactor.testing import SimulatedNetwork, SimulationFailed, simulate
from reactor.testing.simulate import run_once
from tests.simulation.world import World, swarm_mix, swarm_scenario

SEEDS_AT_ONCE = 50
TERMINAL_PROGRESS_S, LOG_PROGRESS_S = 0.5, 20.0


@dataclass(slots=True)
class Tally:
    """The counts so far."""

    seeds: int = 0
    steps: int = 0
    faults: int = 0
    connections: int = 0
    bytes_echoed: int = 0
    datagrams: int = 0
    simulated_s: float = 0.0
    injected: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add the counts of another process."""
        for name in ("seeds", "steps", "faults", "connections", "bytes_echoed", "datagrams", "simulated_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, count in other.injected.items():
            self.injected[name] = self.injected.get(name, 0) + count
        self.failures += other.failures


def run_seeds(first: int, count: int) -> Tally:
    """Run some seeds, up to the first failure."""
    logging.getLogger("echo7").addHandler(logging.NullHandler())
    tally = Tally()
    for seed in range(first, first + count):
        network = SimulatedNetwork(seed, faults=swarm_mix(seed))
        failed = run_once(functools.partial(_live, tally), network)
        if failed is not None:
            tally.failures.append(_explained(seed, failed))
            return tally
    return tally


def _live(tally: Tally, network: SimulatedNetwork) -> None:
    _note(tally, network, swarm_scenario(network))


def _note(tally: Tally, network: SimulatedNetwork, world: World) -> None:
    counters = world.server.counters
    tally.seeds += 1
    tally.steps += network.steps
    tally.faults += len(network.chance.injected)
    tally.connections += counters.connections
    tally.bytes_echoed += counters.tcp_bytes_sent
    tally.datagrams += counters.datagrams_sent
    tally.simulated_s += network.clock() - world.began_s
    for name, number in network.chance.counts().items():
        tally.injected[name] = tally.injected.get(name, 0) + number


def _explained(seed: int, failed: BaseException) -> str:
    try:
        simulate(swarm_scenario, seeds=[seed], faults=swarm_mix)
    except SimulationFailed as small:
        return str(small)
    return f"seed {seed} failed once, but not when repeated, so a run depends on more than its seed: {failed!r}"


def run_all(first: int, seeds: int, jobs: int) -> Iterator[Tally]:
    """Run batches in `jobs` processes, and yield each tally when it is ready."""
    batches = [(at, min(SEEDS_AT_ONCE, first + seeds - at)) for at in range(first, first + seeds, SEEDS_AT_ONCE)]
    if jobs == 1:
        yield from (run_seeds(*batch) for batch in batches)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context) as pool:
        futures = [pool.submit(run_seeds, *batch) for batch in batches]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def table(tally: Tally, elapsed_s: float, command: str) -> str:
    """Return the counts as a Markdown table."""
    lines = [
        f"| `{command}` | |",
        "|---|---|",
        f"| seeds, each a world of its own | {tally.seeds:,} |",
        f"| system calls of the server | {tally.steps:,} |",
        f"| faults injected | {tally.faults:,} |",
        f"| connections accepted | {tally.connections:,} |",
        f"| bytes echoed | {tally.bytes_echoed:,} |",
        f"| datagrams answered | {tally.datagrams:,} |",
        f"| time in the simulation | {tally.simulated_s / 86_400:.1f} days |",
        f"| time it took | {elapsed_s:.0f} s |",
        f"| **violations** | **{len(tally.failures)}** |",
    ]
    kinds = sorted(tally.injected.items(), key=lambda item: (-item[1], item[0]))
    return "\n".join([*lines, "", "faults: " + ", ".join(f"{name} {count:,}" for name, count in kinds)])


class Progress:
    """Progress on stderr: one line that is overwritten on a terminal, else a new line now and then."""

    def __init__(self) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._shown_s = time.monotonic()

    def show(self, text: str) -> None:
        """Show `text`, unless the last one was shown just before."""
        now_s = time.monotonic()
        if now_s - self._shown_s >= (TERMINAL_PROGRESS_S if self._on_terminal else LOG_PROGRESS_S):
            self._shown_s = now_s
            print(f"\r{text}" if self._on_terminal else text, end="\r" if self._on_terminal else "\n", file=sys.stderr)


def main(arguments: list[str]) -> int:
    """Return 0 without a violation, 1 with one, 130 after ^C, with the counts until then."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.swarm", description="run the real EchoServer in simulated bad worlds"
    )
    parser.add_argument("--seeds", type=_positive, default=1000, help="number of worlds (default: 1000)")
    parser.add_argument(
        "--jobs", type=_positive, default=os.cpu_count() or 1, help="number of processes (default: one for each core)"
    )
    parser.add_argument("--first", type=int, default=0, help="first seed (default: 0)")
    options = parser.parse_args(arguments)
    began_s = time.monotonic()
    tally = Tally()
    progress = Progress()
    status = 0
    try:
        for part in run_all(options.first, options.seeds, options.jobs):
            tally.add(part)
            progress.show(f"{tally.seeds:,} of {options.seeds:,} seeds, {tally.faults:,} faults")
            if tally.failures:
                status = 1
                break
    except KeyboardInterrupt:
        status = 130
    command = f"python3 -m tests.swarm --seeds {options.seeds}" + (f" --first {options.first}" if options.first else "")
    print(table(tally, time.monotonic() - began_s, command))
    for failure in tally.failures:
        print(f"\n{failure}", file=sys.stderr)
    return status


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
