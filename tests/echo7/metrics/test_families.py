"""What Prometheus reads: names, kinds and numbers, through the parser of prometheus-client."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="the extra `metrics` isn't installed")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from echo7 import __version__
from echo7.metrics.families import COUNTERS, GAUGES, families
from echo7.metrics.snapshot import Durations, Gauges, Snapshot
from echo7.server import Counters
from reactor.observe.watch import BOUNDS_S

DROPS = {"accept_EMFILE": 1, "refused_denied": 2, "idle_timeout": 3, "source_port_zero": 4, "send_EPERM": 5}
ONE = Snapshot(
    Counters(10, 11, 12, 13, 14, 15, 16, 17, drops=DROPS),
    Gauges(18, 19, 20, 21),
    22,
    23,
    Durations([1, 2, *[0] * (len(BOUNDS_S) - 2), 4], 99.5),
    Durations([0] * (len(BOUNDS_S) + 1), 0.0),
)


def exposed(together: Snapshot, workers: Mapping[str, Snapshot]) -> dict[str, Any]:
    """Name → family, written and parsed again."""

    class Collector:
        def collect(self) -> Any:
            return families(together, workers)

    registry = CollectorRegistry()
    registry.register(Collector())
    return {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}


def values(family: Any, label: str = "") -> dict[str, float]:
    return {sample.labels.get(label, ""): sample.value for sample in family.samples}


def test_every_number_has_its_name() -> None:
    """Issue: "connections open/total/refused by reason, bytes and datagrams in/out, drops by reason …"."""
    found = exposed(ONE, {})
    assert values(found["echo7_build_info"], "version") == {__version__: 1}
    for name, value in {
        "connections": 10, "connections_open": 11, "datagrams_received": 14, "datagrams_sent": 15,
        "connections_held": 20, "buffer_bytes": 21, "log_lines_dropped": 22, "slow_callbacks": 23,
    }.items():  # fmt: skip
        assert values(found[f"echo7_{name}"]) == {"": value}
    assert values(found["echo7_received_bytes"], "transport") == {"tcp": 12, "udp": 16}
    assert values(found["echo7_sent_bytes"], "transport") == {"tcp": 13, "udp": 17}
    for name, reasons in {
        "connections_refused": {"accept_EMFILE": 1, "refused_denied": 2}, "connections_dropped": {"idle_timeout": 3},
        "datagrams_dropped": {"source_port_zero": 4, "send_EPERM": 5}, "listeners_paused": {"full": 18, "shortage": 19},
    }.items():  # fmt: skip
        assert values(found[f"echo7_{name}"], "reason") == reasons


def test_every_counter_of_the_server_is_exposed() -> None:
    numbers = {field: 1000 + place for place, field in enumerate(Counters._fields) if field != "drops"}
    drops = {reason: 2000 + place for place, reason in enumerate(DROPS)}
    found = exposed(Snapshot(Counters(drops=drops, **numbers)), {})
    exposed_values = {sample.value for family in found.values() for sample in family.samples}
    assert {*numbers.values(), *drops.values()} <= exposed_values


def test_turn_time_and_lag_are_histograms() -> None:
    """Issue: "loop turn time and lag histograms"."""
    turns = exposed(ONE, {})["echo7_loop_turn_seconds"]
    assert turns.type == "histogram"
    buckets = [(s.labels["le"], s.value) for s in turns.samples if s.name.endswith("_bucket")]
    assert buckets[:3] == [(str(BOUNDS_S[0]), 1), (str(BOUNDS_S[1]), 3), (str(BOUNDS_S[2]), 3)]
    assert buckets[-1] == ("+Inf", 7)
    assert [float(bound) for bound, _ in buckets[:-1]] == list(BOUNDS_S)
    rest = {s.name.rpartition("_")[2]: s.value for s in turns.samples if not s.name.endswith("_bucket")}
    assert rest == {"count": 7, "sum": 99.5}
    assert exposed(ONE, {})["echo7_loop_lag_seconds"].type == "histogram"


def test_workers_have_families_apart_from_the_sums() -> None:
    """Issue: "per worker and summed"."""
    found = exposed(ONE, {"1": ONE, "2": Snapshot()})
    assert values(found["echo7_worker_connections"], "worker") == {"1": 10, "2": 0}
    assert values(found["echo7_connections"]) == {"": 10}
    reasons = {sample.labels["reason"] for sample in found["echo7_worker_datagrams_dropped"].samples}
    assert reasons == {"source_port_zero", "send_EPERM"}
    for name, family in found.items():
        labels = [set(sample.labels) for sample in family.samples]
        assert all(("worker" in each) == name.startswith("echo7_worker_") for each in labels)


def test_names_follow_the_conventions() -> None:
    """Issue: "Naming per Prometheus conventions": base units, `_total` on counters alone, a sentence of help."""
    found = exposed(ONE, {"1": ONE})
    for name, family in found.items():
        assert re.fullmatch(r"echo7(_[a-z]+)+", name)
        assert not re.search(r"_(ms|us|ns|milliseconds|kb|kilobytes|count|sum|total|bucket)(_|$)", name)
        assert re.fullmatch(r"[A-Z].*[^.\s]", family.documentation)
        if family.type == "counter":
            assert {sample.name for sample in family.samples} <= {f"{name}_total"}
    assert len({name for name, *_ in (*COUNTERS, *GAUGES)}) == len(COUNTERS) + len(GAUGES)
