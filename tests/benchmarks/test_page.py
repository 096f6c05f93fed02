"""The page of results: one part of it is written by a run, and the rest stays as it is."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from benchmarks import page
from benchmarks.report import record
from benchmarks.results import Results
from benchmarks.workloads import chosen
from tests.support.basics import PROJECT


def found() -> dict[str, Any]:
    results = Results(["echo7", "asyncio", "threads"])
    for number in (100, 300, 200):
        results.add("echo7", {"per_second": number, "cpu_us": 4})
        results.add("asyncio", {"per_second": number / 2, "cpu_us": number / 50})
        results.add("threads", {})
    results.fail("threads", "load: a byte was changed")
    return record({"pingpong-1k": results}, chosen(["pingpong-1k"]), [], {"rounds": 3, "seconds": 1})


def test_only_the_part_between_the_marks_is_replaced(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text(f"# Results\n\n{page.BEGIN}\n\nold\n\n{page.END}\n\nmore\n")
    for _ in range(2):
        page.check(path)
        page.write(path, found(), "a machine", "python3 -m benchmarks pingpong-1k")
        text = path.read_text()
        assert text.startswith(f"# Results\n\n{page.BEGIN}\n\n*Measured on ")
        assert text.endswith(f"\n\n{page.END}\n\nmore\n")
        assert "old" not in text


def test_part_has_the_command_the_versions_and_a_row_for_each_compared_figure() -> None:
    lines = page.part(found(), "a machine", "python3 -m benchmarks pingpong-1k").splitlines()
    assert "on a machine. " in lines[0]
    assert "asyncio: " in lines[0]
    assert "    python3 -m benchmarks pingpong-1k" in lines
    rows = [line for line in lines if line.startswith("| ") and "workload" not in line]
    assert rows[0] == "| TCP ping-pong, 50 connections × 1 KiB | messages/s ↑ | 200 | 2.00 (2.00–2.00) |  |"
    assert rows[1] == "|  | CPU µs/message ↓ | 4.00 | ≈ 1.00 (0.67–2.00) |  |"
    assert lines[-1] == "- TCP ping-pong, 50 connections × 1 KiB: threads failed: load: a byte was changed"


def test_our_page_has_its_marks() -> None:
    page.check(PROJECT / "benchmarks" / "RESULTS.md")


@pytest.mark.parametrize("text", ["", page.BEGIN, f"{page.END}\n{page.BEGIN}"])
def test_page_without_marks_is_refused_in_one_line(text: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(page.PageError, match="has no part to replace"):
        page.check(path)
