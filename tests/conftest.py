"""Hypothesis profiles, chosen by HYPOTHESIS_PROFILE: dev (quick), ci (used by .ci/run), deep (by hand).

`tests.mutation` uses the profile `mutation`: the same examples in each run, and no shrinking.

No test may depend on what pytest inherits: `pytest_configure` resets signals, umask and environment.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, settings

from echo7.process.sandbox.linux import Linux
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

# A service manager or a terminal sets these for the process that runs pytest, and a daemon under test would obey them.
NOT_INHERITED = (
    "NOTIFY_SOCKET WATCHDOG_USEC WATCHDOG_PID LISTEN_PID LISTEN_FDS LISTEN_FDNAMES JOURNAL_STREAM "
    "COLUMNS LINES NO_COLOR FORCE_COLOR"
)


def pytest_configure() -> None:
    """Start the tests, in each process of pytest-xdist too, as if pytest had inherited nothing."""
    for name in NOT_INHERITED.split():
        os.environ.pop(name, None)
    os.umask(0o022)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # A process passes ignored signals on to the programs that it starts. `nohup` ignores SIGHUP, and a shell ignores
    # SIGINT for a command in the background. Python itself ignores the signals that are left out here.
    by_python = {getattr(signal, name, None) for name in ("SIGPIPE", "SIGXFSZ", "SIGXFZ")}
    for signum in signal.valid_signals() - by_python:
        if signal.getsignal(signum) is signal.SIG_IGN:
            # pytest must survive SIGHUP under nohup. A handler, unlike SIG_IGN, isn't passed on.
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else lambda *_: None)


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """Restore the loggers that a command changes when it runs in the test's own process."""
    loggers = [logging.getLogger(name) for name in ("reactor", "echo7")]
    before = [(logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    yield
    for logger, (level, handlers, propagate) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:], logger.propagate = handlers, propagate


@pytest.fixture(autouse=True)
def only_children_are_restricted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that would restrict pytest itself, permanently."""
    tests, restrict = os.getpid(), Linux.restrict

    def guarded(*arguments: Any, **options: Any) -> Any:
        assert os.getpid() != tests, "this would restrict the process of the tests: use --sandbox off, or a child"
        return restrict(*arguments, **options)

    monkeypatch.setattr(Linux, "restrict", guarded)


@pytest.fixture(scope="module", params=[False, True], ids=["fast", "plain"])
def plain(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Run the module's tests twice: every EchoServer takes the fast paths, then no fast path."""
    if not request.param and sys.platform != "linux":
        pytest.skip("there is only one path here")
    defaults = cast(Any, EchoServer.__init__).__kwdefaults__
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(defaults, "plain", request.param)
        yield request.param
