"""Ratios and tables from made-up rounds."""

from __future__ import annotations

import pytest

from benchmarks.measure import figures
from benchmarks.report import table
from benchmarks.results import Results, Spread, spread_of
from benchmarks.workloads import SHAPE_COUNTS, WORKLOADS, chosen

PINGPONG = WORKLOADS[0]


def rounds(**by_server: list[float]) -> Results:
    results = Results(list(by_server))
    for server, numbers in by_server.items():
        for number in numbers:
            results.add(server, {"per_second": number, "cpu_us": 1 / number, "core_percent": 50})
    return results


def test_ratio_is_taken_within_each_round() -> None:
    """A machine that is twice as slow in the second round changes no ratio, though it moves both medians."""
    results = rounds(echo7=[100, 50, 400], asyncio=[50, 25, 200])
    assert results.ratio("asyncio", "per_second") == Spread(2, 2, 2)


def test_summary_is_the_median_of_ratios() -> None:
    results = rounds(echo7=[10, 20, 90], go=[10, 40, 30])
    assert results.ratio("go", "per_second") == Spread(1, 0.5, 3)
    assert results.spread("go", "per_second") == Spread(30, 10, 40)


def test_without_figures_there_is_no_median() -> None:
    assert spread_of([]) is None
    assert rounds(echo7=[1.0]).spread("echo7", "unknown") is None
    assert rounds(echo7=[1.0]).ratio("nobody", "per_second") is None
    assert rounds(echo7=[1.0], go=[0.5]).ratio("go", "unknown") is None


def test_server_that_failed_once_has_no_figure() -> None:
    results = rounds(echo7=[100, 100], go=[50])
    results.fail("go", "load: a byte was changed")
    assert results.spread("go", "per_second") is None
    assert results.ratio("go", "per_second") is None
    assert results.rounds["go"][1] is None
    text = table(PINGPONG, results)
    assert "go failed: load: a byte was changed" in text
    assert "echo7" in text


def test_without_the_baseline_there_is_no_ratio() -> None:
    results = rounds(echo7=[100], go=[50])
    results.fail("echo7", "didn't answer")
    assert results.ratio("go", "per_second") is None
    assert "go " in table(PINGPONG, results)


def test_table_shows_medians_and_ratios() -> None:
    text = table(PINGPONG, rounds(echo7=[100, 300, 200], asyncio=[50, 100, 200]))
    _, head, ours, theirs = text.splitlines()
    assert "messages/s ↑" in head
    assert "CPU µs/message ↓" in head
    assert ours.split()[:2] == ["echo7", "200"]
    assert "≈ 2.00 (1.00–3.00)" in theirs


@pytest.mark.parametrize(
    ("theirs", "shown"),
    [([50, 50], "2.00 (2.00–2.00)"), ([50, 400], "≈ 1.12 (0.25–2.00)"), ([400, 200], "0.38 (0.25–0.50)")],
)
def test_ratio_whose_rounds_disagree_is_marked(theirs: list[float], shown: str) -> None:
    [*_, last] = table(PINGPONG, rounds(echo7=[100, 100], go=theirs)).splitlines()
    assert shown in last
    assert ("≈" in last) == ("≈" in shown)


def test_figures_come_from_the_load_and_the_clock() -> None:
    said = {"messages": 1000, "bytes": 2_000_000, "lost": 3, "seconds": 0.5, "timely_messages": 900,
            "timely_bytes": 1_000_000, "p50_us": 20.0, "p99_us": 40.0, "max_us": 80.0}  # fmt: skip
    found = figures(said, count=50, cpu_s=0.2, timely_cpu_s=0.1, grown_bytes=5000)
    assert found["per_second"] == 1800
    assert found["mb_per_s"] == 2
    assert found["cpu_us"] == pytest.approx(200)
    assert found["cpu_s_per_gb"] == pytest.approx(100)
    assert found["core_percent"] == pytest.approx(20)
    assert found["bytes_per_connection"] == 100
    assert (found["lost"], found["p99_ms"]) == (3, 0.04)


def test_workload_is_chosen_by_name_or_group() -> None:
    assert [workload.name for workload in chosen(["udp-512"])] == ["udp-512"]
    assert [workload.name for workload in chosen(["udp"])] == ["udp-512", "udp-64", "udp-60k"]
    assert [workload.count for workload in chosen(["shape"])] == list(SHAPE_COUNTS)
    assert [workload.name for workload in chosen(["bulk-8"])] == ["bulk-8-16k", "bulk-8-64k", "bulk-8-1024k"]
    assert chosen([]) == list(WORKLOADS)
    with pytest.raises(KeyError):
        chosen(["sing"])


def test_names_are_unique_and_every_workload_can_be_drawn() -> None:
    assert len({workload.name for workload in WORKLOADS}) == len(WORKLOADS)
    assert all(workload.figures and workload.figures[0].ratio for workload in WORKLOADS)
