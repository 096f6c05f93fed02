"""`echo7 ping --metrics`: several targets on one loop, and the numbers of each."""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import itertools
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("h11", reason="the extra `metrics` isn't installed")
pytest.importorskip("prometheus_client", reason="the extra `metrics` isn't installed")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from echo7 import cli
from echo7.probe import command
from echo7.probe import exporter as exporter_module
from echo7.probe.datagram import DatagramFlow
from echo7.probe.exporter import RETRY_S, Exporter
from echo7.probe.plan import NS_PER_S, Plan
from echo7.probe.report.prometheus import Target, families
from echo7.sockets.resolve import UnresolvedName
from reactor import Address, Reactor, open_udp
from reactor.sockets.errors import os_error
from reactor.testing import SimulatedNetwork
from tests.echo7.probe.world import LATENCY_S, LOST, TWICE, ScriptedEcho, after, cut, flipped, plan
from tests.support.basics import PATIENCE_S, PROJECT, until
from tests.support.commands import run_echo7
from tests.support.echo import EchoThread
from tests.support.loops import turn_until

HOST = "10.0.0.1"
Found = dict[tuple[str, ...], float]


class World:
    """Two echoes, `one` on port 7 and `two` on port 8, and an exporter that probes both, in simulated time."""

    def __init__(self, asked: Plan, script: dict[int, Any] | None = None) -> None:
        self.network = SimulatedNetwork(0, latency_s=LATENCY_S)
        self.reactor = self.network.reactor()
        self.echoes = [ScriptedEcho(self.reactor, script), ScriptedEcho(self.reactor)]
        for port, echo in zip((7, 8), self.echoes, strict=True):
            open_udp(self.reactor, (HOST, port), echo)
        self.targets = [Target("one", 7, (HOST, 7)), Target("two", 8, (HOST, 8))]
        clock = self.network.clock
        self.exporter = Exporter(
            self.reactor,
            asked,
            self.targets,
            self.reactor.stop,
            lambda host: (HOST, 7),
            clock_ns=lambda: round(clock() * NS_PER_S),
        )

    def run(self) -> Found:
        self.exporter.start()
        self.network.run(self.reactor)
        return exposed(self.targets)


def exposed(targets: list[Target]) -> Found:
    """(name, label values …) → value, written and parsed again."""

    class Collector:
        def collect(self) -> Any:
            return families(targets)

    registry = CollectorRegistry()
    registry.register(Collector())
    return parsed(generate_latest(registry).decode())


def parsed(text: str) -> Found:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(s.name, *(value for _, value in sorted(s.labels.items()))): s.value for s in samples}


def test_each_target_has_its_own_numbers() -> None:
    """Issue: "RTT histogram, loss, corrupt, late, per target; several targets on one loop"."""
    script = {2: LOST, 3: flipped(20, 1), 4: cut(30), 5: TWICE, 6: after(3.0), 7: after(1.5)}
    found = World(plan(count=10), script).run()
    assert found["echo7_probe_sent_total", "one:7"] == found["echo7_probe_sent_total", "two:8"] == 10
    for name, count in {"unanswered": 2, "late": 1, "duplicates": 1, "reordered": 1}.items():
        assert found[f"echo7_probe_{name}_total", "one:7"] == count
    damaged = {
        kind: found["echo7_probe_damaged_total", kind, "one:7"] for kind in ("corrupted", "truncated", "lengthened")
    }
    assert damaged == {"corrupted": 1, "truncated": 1, "lengthened": 0}
    assert found["echo7_probe_rtt_seconds_count", "one:7"] == 8
    assert found["echo7_probe_rtt_seconds_sum", "one:7"] == 8 * 2 * LATENCY_S + 1.5
    assert found["echo7_probe_rtt_seconds_bucket", "0.25", "two:8"] == 10
    assert found["echo7_probe_rtt_seconds_bucket", "0.1", "two:8"] == 0
    for name in ("unanswered", "late", "duplicates", "refused", "unreachable", "too_big", "foreign", "unknown"):
        assert found[f"echo7_probe_{name}_total", "two:8"] == 0
    assert found["echo7_probe_running", f"{HOST}:7", "one:7"] == 1
    assert found["echo7_probe_outstanding", "one:7"] == 0
    assert found["echo7_probe_send_lag_seconds_count", "two:8"] == 10


class Noting(list[Any]):
    """Records the time of each append instead of its source."""

    def __init__(self, times: list[float], clock: Callable[[], float]) -> None:
        super().__init__()
        self.times, self.clock = times, clock

    def append(self, source: Any) -> None:
        self.times.append(self.clock())


def test_targets_take_turns_within_the_interval() -> None:
    world = World(plan(count=2))
    sent: list[float] = []
    sources = Noting(sent, world.network.clock)
    for echo in world.echoes:
        echo.sources = sources
    world.run()
    assert [later - sooner for sooner, later in itertools.pairwise(sent)] == [0.5, 0.5, 0.5]


def test_counters_never_get_smaller_when_a_lost_answer_comes_late() -> None:
    """Prometheus takes a smaller counter for a new process, and shows a burst that never happened."""
    world = World(plan(count=20), {number: after(2.5) if number % 3 else TWICE for number in range(20)})
    before: Found = {}

    def look() -> None:
        nonlocal before
        found = exposed(world.targets)
        for key, value in before.items():
            if key[0].endswith(("_total", "_bucket", "_count", "_sum")):
                assert found[key] >= value, key
        before = found
        world.reactor.call_later(0.25, look)

    world.reactor.call_later(0.0, look)
    world.run()
    assert before["echo7_probe_late_total", "one:7"] > 5


def test_target_without_a_route_is_tried_again_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(plan(count=None))
    no_route = [True]

    def new_flow(reactor: Reactor, address: Address, *arguments: Any, **options: Any) -> DatagramFlow:
        if no_route[0] and address[1] == 8:
            raise os_error(errno.ENETUNREACH)
        return DatagramFlow(reactor, address, *arguments, **options)

    monkeypatch.setattr("echo7.probe.prober.DatagramFlow", new_flow)
    caplog.set_level(logging.INFO, "echo7")
    health: list[str] = []

    def later() -> None:
        health.append(world.exporter.health())
        no_route[0] = False

    world.reactor.call_later(3.0, later)
    world.reactor.call_later(
        3.0, lambda: health.append(str(exposed(world.targets)["echo7_probe_running", f"{HOST}:8", "two:8"]))
    )
    world.reactor.call_later(RETRY_S + 2.0, world.reactor.stop)
    found = world.run()
    assert health == ["cannot probe two:8", "0.0"]
    assert world.exporter.health() == ""
    assert found["echo7_probe_sent_total", "one:7"] > found["echo7_probe_sent_total", "two:8"] > 0
    [warning] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.startswith(f"cannot probe two:8: {HOST} is unreachable: Network is unreachable")


class SlowNames:
    """A look-up that fails once, then finds the address."""

    def __init__(self, *answers: Address | UnresolvedName) -> None:
        self.answers = list(answers)

    def __call__(self, host: str) -> Address:
        answer = self.answers.pop(0)
        if isinstance(answer, UnresolvedName):
            raise answer
        return answer


def test_name_that_resolves_later_is_probed_then_and_the_others_meanwhile(
    servers: list[EchoThread], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Story: one name of two that didn't resolve ended the exporter with status 5, and no target was probed."""
    monkeypatch.setattr(exporter_module, "RETRY_S", 0.01)
    caplog.set_level(logging.INFO, "echo7")
    address = ("127.0.0.1", servers[0].port)
    names = SlowNames(UnresolvedName("cannot resolve 'two'"), address)
    with Reactor() as reactor:
        one, two = Target("one", address[1], address), Target("two", address[1], None)
        over: list[bool] = []
        Exporter(reactor, plan(count=1), [one, two], lambda: over.append(True), names).start()
        assert one.where != two.where == ""
        turn_until(reactor, lambda: over)
        assert None not in (one.prober, two.prober)
        assert two.address == address
    [warning] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning == f"cannot probe two:{address[1]}: cannot resolve 'two'; trying again every 0.01 s"


def test_look_up_without_a_thread_is_tried_again(servers: list[EchoThread], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter_module, "RETRY_S", 0.01)
    start, refusals = threading.Thread.start, [RuntimeError("can't start new thread")]

    def refused(thread: threading.Thread) -> None:
        if refusals:
            raise refusals.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    with Reactor() as reactor:
        target, over = Target("one", 7, None), list[bool]()
        names = SlowNames(("127.0.0.1", servers[0].port))
        Exporter(reactor, plan(count=1), [target], lambda: over.append(True), names).start()
        turn_until(reactor, lambda: over)
    assert refusals == []


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def servers() -> Iterator[list[EchoThread]]:
    with EchoThread() as one:
        yield [one]


@contextlib.contextmanager
def exporter(port: int, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    line = [*f"ping 127.0.0.1 localhost -4 --port {port} -i 0.02 --metrics 127.0.0.1:0".split(), *arguments]
    with subprocess.Popen(
        [sys.executable, "-m", "echo7", *line], cwd=PROJECT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        where = re.search(r"info metrics at http://(127\.0\.0\.1):(\d+)/metrics$", first)
        assert where, first
        try:
            yield process, (where[1], int(where[2]))
        finally:
            process.kill()


def get(address: tuple[str, int], path: str) -> tuple[int, str]:
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=PATIENCE_S)) as client:
        client.request("GET", path)
        answer = client.getresponse()
        return answer.status, answer.read().decode()


def test_exporter_probes_the_names_that_resolve_and_reports_the_other(servers: list[EchoThread]) -> None:
    port = servers[0].port
    line = f"ping 127.0.0.1 no-such-name.invalid --port {port} -i 0.02 --metrics 127.0.0.1:0".split()
    with subprocess.Popen(
        [sys.executable, "-m", "echo7", *line], cwd=PROJECT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        where = re.search(r"http://(127\.0\.0\.1):(\d+)/", process.stderr.readline())
        assert where
        address = where[1], int(where[2])
        said = [process.stderr.readline() for _ in range(2)]
        assert any(f"cannot probe no-such-name.invalid:{port}: cannot resolve" in text for text in said)
        assert any("info probing 127.0.0.1" in text for text in said)
        status, text = get(address, "/healthz")
        assert (status, "no-such-name.invalid" in text, "127.0.0.1" in text) == (503, True, False)
        assert parsed(get(address, "/metrics")[1])["echo7_probe_running", "", f"no-such-name.invalid:{port}"] == 0
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


def test_exporter_is_scraped_and_ends_in_order(servers: list[EchoThread]) -> None:
    """Issue: "a long-running prober that is scraped"."""
    port = servers[0].port
    with exporter(port) as (process, where):
        for name in (f"127.0.0.1:{port}", f"localhost:{port}"):
            key = "echo7_probe_rtt_seconds_count", name
            until(functools.partial(lambda key: parsed(get(where, "/metrics")[1])[key] > 3, key))
            assert parsed(get(where, "/metrics")[1])["echo7_probe_sent_total", name] > 3
        assert get(where, "/healthz") == (200, "ok\n")
        process.send_signal(signal.SIGQUIT)
        process.send_signal(signal.SIGUSR2)
        until(lambda: get(where, "/healthz")[0] == 200)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr is not None
        said = process.stderr.read()
        assert said.count("info summary:") == 2
        assert f"--- localhost port {port} (udp) echo statistics ---" in said
        assert "what the loop has: " in said


def test_exporter_with_a_count_ends_by_itself(servers: list[EchoThread]) -> None:
    with exporter(servers[0].port, "-c", "3") as (process, _):
        assert process.wait(PATIENCE_S) == 0


def test_address_in_use_is_one_line_and_status_1(servers: list[EchoThread]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        where = f"127.0.0.1:{other.getsockname()[1]}"
        done = run_echo7("ping", "127.0.0.1", "--metrics", where)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"\S+ error cannot bind {where} for --metrics: Address already in use; .*\n", done.stderr)


def ask(*arguments: str) -> Plan:
    """Do the first step of the command; the rest would change this process's loggers."""
    options = cli.parse(["ping", *arguments])
    try:
        return command.plan_of(options, options.warn is not None)
    except ValueError as error:
        options.parser.error(str(error))
        raise


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a b", "several hosts need --metrics; give one host, or add that"),
        ("a a --metrics h:1", "a host is given twice"),
        ("a --json --metrics h:1", "--metrics serves pages instead of output; leave out --json"),
        ("a --warn loss=1% --metrics h:1", "--metrics serves pages instead of output; leave out --json"),
        ("a b --source-port 9 --metrics h:1", "several hosts can't share a --source-port; leave it out"),
        ("a --metrics 1", "'1' is not HOST:PORT"),
    ],
)
def test_options_that_make_no_sense_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], line: str, why: str
) -> None:
    with pytest.raises(SystemExit) as end:
        ask(*line.split())
    assert end.value.code == 2
    said = "".join(capsys.readouterr())
    assert said.count("\n") == 1
    assert why in said


def test_target_has_the_name_that_was_given() -> None:
    assert Target("::1", 7, ("::1", 7, 0, 0)).name == Target("[::1]", 7, ("::1", 7, 0, 0)).name == "[::1]:7"
    assert Target("host", 7, None).name == "host:7"


def test_name_whose_new_address_does_not_fit_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may get an address that the other options rule out. That must not end the exporter."""
    kept: list[Callable[[str], Address]] = []

    def run(*given: Any) -> int:
        kept.append(given[-1])
        return 0

    monkeypatch.setattr(exporter_module, "run", run)
    assert cli.main(["ping", "127.0.0.1", "--metrics", "127.0.0.1:9"]) == 0
    monkeypatch.setattr(command, "misfit", lambda plan, host: f"{host} is of the wrong family")
    with pytest.raises(UnresolvedName, match="wrong family"):
        kept[0]("127.0.0.1")
