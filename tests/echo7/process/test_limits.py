"""How many descriptors, and so connections, the service may have."""

from __future__ import annotations

import contextlib
import pathlib
import resource
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7.process import limits
from tests.support.basics import PATIENCE_S, PROJECT
from tests.support.clients import receive_exactly
from tests.support.daemon import EchoProcess

UNLIMITED = resource.RLIM_INFINITY
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


class FakeResource:
    """What getrlimit(2) and setrlimit(2) say on another system."""

    RLIMIT_NOFILE, RLIM_INFINITY = resource.RLIMIT_NOFILE, UNLIMITED

    def __init__(self, soft: int, hard: int, refuses: Exception | None = None) -> None:
        self.limit = (soft, hard)
        self.refuses = refuses

    def getrlimit(self, what: int) -> tuple[int, int]:
        return self.limit

    def setrlimit(self, what: int, limit: tuple[int, int]) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.limit = limit


def with_limit(soft: int, hard: int) -> Callable[[], None]:
    """Return what a child must call first to get these limits of open descriptors."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@given(st.integers(0, 4096), st.integers(0, 1 << 20))
def test_soft_limit_is_raised_to_the_hard_one(soft: int, more: int) -> None:
    """Promise 15: "raise the soft limit to the hard one at start"."""
    system: Any = FakeResource(soft, soft + more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "resource", system)
        assert limits.raise_descriptor_limit() == soft + more
    assert system.limit == (soft + more, soft + more)


@pytest.mark.parametrize("refusal", [ValueError("not allowed"), OSError("not allowed")])
def test_system_that_refuses_to_raise_the_limit_keeps_its_soft_limit(
    monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    """MacOS "refuses to go to unlimited": the service starts with what it has."""
    monkeypatch.setattr(limits, "resource", FakeResource(256, UNLIMITED, refusal))
    assert limits.raise_descriptor_limit() == 256


def test_unlimited_gives_a_large_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """RLIM_INFINITY is -1: taken as a number it would allow one connection."""
    monkeypatch.setattr(limits, "resource", FakeResource(1024, UNLIMITED))
    assert limits.raise_descriptor_limit() == limits.WITHOUT_LIMIT


def test_system_without_getrlimit_has_the_limit_of_select(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no `resource` module, and select(2) with FD_SETSIZE."""
    monkeypatch.setattr(limits, "resource", None)
    assert limits.raise_descriptor_limit() == limits.SELECT_DESCRIPTORS


def test_service_works_without_the_resource_module() -> None:
    """The same from the import on, as on Windows."""
    code = """if True:
        import sys
        sys.modules["resource"] = None  # the import raises ImportError
        from echo7.process import limits
        print(limits.raise_descriptor_limit())
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.stdout, done.stderr) == (f"{limits.SELECT_DESCRIPTORS}\n", "")


def test_limit_is_no_higher_than_the_selector_can_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the default selector is select(2), descriptor numbers above FD_SETSIZE can't be watched."""
    monkeypatch.setattr(limits, "resource", FakeResource(4096, 4096))
    monkeypatch.setattr(selectors, "DefaultSelector", selectors.SelectSelector)
    assert limits.raise_descriptor_limit() == limits.SELECT_DESCRIPTORS


@given(st.integers(0, 1 << 20), st.integers(0, 100))
def test_default_keeps_back_descriptors_for_the_service(descriptors: int, sockets: int) -> None:
    """The service needs some descriptors, its sockets one each, and each pipe two; but one connection is allowed."""
    pipes = limits.default_pipes(descriptors)
    assert 0 <= 2 * pipes <= descriptors / 8
    kept = limits.kept_back(descriptors, sockets)
    assert limits.OWN_DESCRIPTORS <= kept - sockets <= limits.OWN_DESCRIPTORS + descriptors / limits.SPARE_SHARE
    assert kept - sockets <= limits.OWN_DESCRIPTORS + limits.MOST_SPARE
    assert limits.default_max_connections(descriptors, sockets, pipes) == max(1, descriptors - kept - 2 * pipes)


@pytest.mark.parametrize(("descriptors", "least"), [(16, 1), (24, 6), (64, 30), (1024, 860), (1_048_576, 1_048_000)])
def test_small_limits_leave_room_for_connections(descriptors: int, least: int) -> None:
    """Story: 32 descriptors were kept back from any limit, so 24 gave one connection, and nothing was logged."""
    assert limits.default_max_connections(descriptors, 4, limits.default_pipes(descriptors)) >= least


@pytest.mark.parametrize(("workers", "pipes"), [(1, 32), (2, 16), (31, 1), (64, 1)])
def test_workers_share_the_pipes_of_one_user(workers: int, pipes: int) -> None:
    """pipe(7): beyond the user's limit, every new pipe of the user is tiny, in any program."""
    assert limits.default_pipes(1 << 20, workers) == pipes


def test_without_splice_no_descriptor_is_kept_for_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "pipes_on", lambda sockets: None)
    assert limits.default_pipes(1 << 20) == 0


@linux_only
def test_service_raises_its_own_limit_at_start() -> None:
    """The same with the kernel: a shell's usual soft limit doesn't bound a server."""
    with EchoProcess(preexec_fn=with_limit(256, 777)) as echo:
        text = pathlib.Path(f"/proc/{echo.process.pid}/limits").read_text()
        (line,) = [line for line in text.splitlines() if line.startswith("Max open files")]
    assert line.split()[3:5] == ["777", "777"]


@pytest.mark.parametrize("limit", [24, 44, 100])
def test_service_at_its_default_limit_still_has_descriptors_to_spare(limit: int) -> None:
    """At the default limit clients wait in the queue, nothing runs out, and the next is served when one leaves."""
    with contextlib.ExitStack() as stack:
        echo = stack.enter_context(EchoProcess(preexec_fn=with_limit(limit, limit)))
        (said,) = [line for line in echo.lines if line["event"] == "limits"]
        assert said["message"] == f"at most {said['max_connections']} connections at once, with {limit} descriptors"
        clients = [stack.enter_context(echo.connect()) for _ in range(said["max_connections"])]
        for client in clients:
            assert ping(client) == b"ping"
        waiting = stack.enter_context(echo.connect())
        waiting.sendall(b"ping")
        echo.process.send_signal(signal.SIGUSR1)
        counters = echo.next_line("counters")
        assert (counters["connections_open"], counters["drops"]) == (len(clients), {})
        clients[0].close()
        assert receive_exactly(waiting, 4) == b"ping"


@pytest.mark.parametrize("workers", [1, 2])
def test_service_warns_that_so_many_connections_cannot_be_had(workers: int) -> None:
    options = ["--max-connections", "1000", "--workers", str(workers)]
    with EchoProcess(*options, preexec_fn=with_limit(100, 100)) as echo:
        (said,) = [line for line in echo.lines if line["event"] == "limits_exceeded"]
        assert said["level"] == "warning"
        assert said["max_connections"] == 1000
        assert said["possible"] in range(60 * workers, 90 * workers)
        assert echo.finish() == 0


def test_service_without_tcp_has_no_limit_to_report() -> None:
    with EchoProcess("--no-tcp") as echo:
        assert echo.finish() == 0
        assert {"limits", "limits_exceeded"}.isdisjoint(line["event"] for line in echo.lines)


@pytest.mark.parametrize("limit", [6, 10, 15])
def test_too_few_descriptors_to_start_give_one_line(limit: int) -> None:
    with EchoProcess(wait=False, preexec_fn=with_limit(limit, limit)) as echo:
        assert f"{limit} open descriptors are too few" in echo.next_line("start_failed")["message"]
        assert echo.process.wait(PATIENCE_S) == 1
        assert len(echo.lines) == 1


def ping(client: socket.socket) -> bytes:
    client.sendall(b"ping")
    return receive_exactly(client, 4)
