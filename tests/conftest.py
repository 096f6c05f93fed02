"""Hypothesis profiles, chosen by HYPOTHESIS_PROFILE: dev (quick), ci (the default suite in .ci/run), deep (by hand).

`tests.mutation` uses another: the same examples each time, and no time spent on making a failing one small.
"""

import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, settings

from echo7.server import EchoServer

QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]  # real sockets take their time
settings.register_profile("dev", max_examples=25, deadline=None, suppress_health_check=QUIET)
settings.register_profile("ci", max_examples=60, deadline=None, suppress_health_check=QUIET, print_blob=True)
settings.register_profile("deep", max_examples=2_000, deadline=None, suppress_health_check=QUIET, print_blob=True)
settings.register_profile(
    "mutation",
    max_examples=40,
    deadline=None,
    suppress_health_check=QUIET,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """Put back what a command changes about its loggers when it runs in our own process."""
    loggers = [logging.getLogger(name) for name in ("reactor", "echo7")]
    before = [(logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    yield
    for logger, (level, handlers, propagate) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:], logger.propagate = handlers, propagate


@pytest.fixture(scope="module", params=[False, True], ids=["fast", "plain"])
def plain(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Every EchoServer that a test makes takes the fast paths, then none."""
    if not request.param and sys.platform != "linux":
        pytest.skip("there is one path here")
    defaults = cast(Any, EchoServer.__init__).__kwdefaults__
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(defaults, "plain", request.param)
        yield request.param
