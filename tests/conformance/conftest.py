"""Each test here runs twice: on this machine's kernel, and on the simulated network."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.conformance.worlds import KernelWorld, SimulatedWorld, Sockets


@pytest.fixture(params=[KernelWorld, SimulatedWorld], ids=["kernel", "simulation"])
def net(request: pytest.FixtureRequest) -> Iterator[Sockets]:
    if request.param is KernelWorld and sys.platform != "linux":
        pytest.skip("the simulation does what Linux does")
    world = request.param()
    yield Sockets(world)
    world.close()
