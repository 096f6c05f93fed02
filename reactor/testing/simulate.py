"""simulate: run a scenario in many bad worlds, and shrink the first failure.

Law: every failure can be repeated. The error names the seed, and the fewest faults with which the scenario still fails.
With both, the run repeats exactly.
"""

from __future__ import annotations

import collections
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from reactor.testing.chance import Fault, mix_of, parse_script, subsets
from reactor.testing.network import SimulatedNetwork
from reactor.testing.recording import Recording

Scenario = Callable[[SimulatedNetwork], object]
JOURNAL_LINES = 30
MOST_FAULTS_SHOWN = 400
MOST_RERUNS = 400  # of a failing scenario, to shrink its faults


class SimulationFailed(AssertionError):
    """A scenario failed. `seed` and `script` repeat it."""

    def __init__(self, seed: int, script: str, cause: BaseException, journal: Iterable[str], trace: str | None) -> None:
        self.seed, self.script = seed, script
        player = "" if trace is None else f"\nto see it: python -m reactor.player {shlex.quote(trace)}"
        lines, count = "\n    ".join(journal), len(script.split())
        shown = f"script={script!r})"
        if count > MOST_FAULTS_SHOWN:  # a loop that never rests may have a million
            shown = f"script=…), {count:,} of them: this error's `script`"
        super().__init__(
            f"seed {seed} fails: {type(cause).__name__}: {cause}\n"
            f"the fewest faults with which it does: simulate(scenario, seeds=[{seed}], {shown}\n"
            f"the last calls, the clock before each:\n    {lines}{player}"
        )


@dataclass(slots=True)
class Report:
    """Counts of what happened in a simulation."""

    runs: int = 0
    steps: int = 0  # system calls
    injected: dict[str, int] = field(default_factory=dict)  # fault → how often

    def add(self, network: SimulatedNetwork) -> None:
        """Add one run."""
        self.runs += 1
        self.steps += network.steps
        for name, count in network.chance.counts().items():
            self.injected[name] = self.injected.get(name, 0) + count


def simulate(
    scenario: Scenario,
    *,
    seeds: int | Iterable[int] = 100,
    faults: Mapping[str, float] | Callable[[int], Mapping[str, float]] | None = None,
    script: str | None = None,
    shrinking_s: float = 30.0,
    trace: str | None = None,
) -> Report:
    """Call `scenario(network)` once for each seed, each time in a new world, and return the counts.

    `faults`: probabilities by name, or a function that returns them for a seed; by default each seed has its own random
    mix (see `random_mix`). `script`: exactly these faults. After the scenario, its reactors are closed. An open
    descriptor, a callback that raised or another entry in `network.violations` fails the scenario too. Raise
    SimulationFailed. With `trace`, that file then holds the smallest failing run, for the player. Raise OSError at once
    if the file can't be written, or isn't a trace.
    """
    report = Report()
    if trace is not None:
        Recording(trace)  # raises OSError now, not after an hour
    if script is not None:
        faults = {}
    elif faults is None:
        faults = mix_of
    for seed in range(seeds) if isinstance(seeds, int) else seeds:
        mix = faults(seed) if callable(faults) else faults
        network = SimulatedNetwork(seed, faults=mix, script=script or "")
        cause = run_once(scenario, network)
        report.add(network)
        if cause is not None:
            raise _smallest(scenario, seed, network.chance.injected, cause, shrinking_s, trace) from cause
    if trace is not None and os.path.isfile(trace):  # not a device
        os.remove(trace)
    return report


def run_once(scenario: Scenario, network: SimulatedNetwork) -> BaseException | None:
    """Run a scenario, check what it leaves, and return what it raised or None."""
    listener = _CallbackWatch(network)
    logger = logging.getLogger("reactor")
    logger.addHandler(listener)
    try:
        scenario(network)
        close(network)
        network.check()
    except (KeyboardInterrupt, SystemExit, GeneratorExit) as error:
        if not network.callbacks.has_raised(error):
            raise
        return error
    except BaseException as error:  # pytest.fail raises a BaseException
        return error
    finally:
        logger.removeHandler(listener)
    return None


def close(network: SimulatedNetwork) -> None:
    """Close the reactors, and record descriptors that are still open as a violation."""
    for reactor in network.reactors:
        network.callbacks.run_again_after_faults(reactor.close)
    if network.descriptors.open:
        network.violations.append(f"descriptors left open: {sorted(network.descriptors.open)}")


class _CallbackWatch(logging.Handler):
    """Records a violation for each callback that raised: the loop only logs it."""

    def __init__(self, network: SimulatedNetwork) -> None:
        super().__init__(logging.ERROR)
        self._network = network

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "event", "") == "callback_raised":
            self._network.violations.append(record.getMessage())


def _smallest(
    scenario: Scenario, seed: int, faults: list[Fault], cause: BaseException, shrinking_s: float, trace: str | None
) -> SimulationFailed:
    """Remove faults while the scenario fails in the same way (ddmin, Zeller and Hildebrandt 2002)."""
    reruns, began_s = 0, time.monotonic()
    smaller = True
    while smaller:
        smaller = False
        for candidate in subsets(faults):
            reruns += 1
            if reruns > MOST_RERUNS or time.monotonic() - began_s > shrinking_s:
                break
            network = SimulatedNetwork(seed, script=" ".join(map(str, candidate)))
            again = run_once(scenario, network)
            if again is not None and _kind(again) == _kind(cause) and len(network.chance.injected) < len(faults):
                faults, cause, smaller = network.chance.injected, again, True
                break
    script = " ".join(map(str, faults))
    network = SimulatedNetwork(seed, script=script, trace=trace)
    journal: collections.deque[str] = collections.deque(maxlen=JOURNAL_LINES)
    network.journal = journal
    again = run_once(scenario, network) or cause
    assert parse_script(script) == faults
    if network.recording is not None:
        network.recording.end(f"seed {seed}: {script or 'no fault'}", f"{type(again).__name__}: {again}")
    return SimulationFailed(seed, script, again, journal, trace)


def _kind(error: BaseException) -> tuple[type, str]:
    """Return what failures of one kind have in common: the type, and the first violation without its numbers."""
    violation = re.fullmatch(r"(.*?)(;.*)? \(seed .*\)", str(error), re.DOTALL)
    return type(error), re.sub("[^a-z ]+", "", violation[1].lower()) if violation else ""
