"""The report: a table for each workload, and a record of the whole run."""

from __future__ import annotations

import datetime
import os
import pathlib
import platform
from typing import Any

from benchmarks.process import two_cores
from benchmarks.results import BASELINE, Results, Spread
from benchmarks.servers import BY_NAME, version_of
from benchmarks.workloads import Figure, Workload

RECORD_FORMAT = 1
NOTHING = "–"


def table(workload: Workload, results: Results) -> str:
    """Return one workload's table: medians, and echo7's ratio to each peer."""
    with_ratio = [figure for figure in workload.figures if figure.ratio] if BASELINE in results.servers else []
    head = ["server", *(_heading(figure) for figure in workload.figures)]
    head += [f"echo7's ratio: {figure.title}" for figure in with_ratio]
    rows = [head]
    for server in results.servers:
        if server in results.failed:
            continue
        row = [server] + [_number(results.spread(server, figure.key), figure) for figure in workload.figures]
        ours = server == BASELINE
        row += ["" if ours else _ratio(results.ratio(server, figure.key)) for figure in with_ratio]
        rows.append(row)
    lines = [f"{workload.name}: {workload.title}", *_aligned(rows)]
    lines += [f"  {server} failed: {line}" for server, line in results.failed.items()]
    return "\n".join(lines)


def _heading(figure: Figure) -> str:
    return f"{figure.title} {'↓' if figure.less_is_better else '↑'}" if figure.ratio else figure.title


def _number(found: Spread | None, figure: Figure) -> str:
    return NOTHING if found is None else f"{found.median:,.{figure.digits}f}"


def _ratio(found: Spread | None) -> str:
    return NOTHING if found is None else ratio_text(found.median, found.least, found.most)


def ratio_text(median: float, least: float, most: float) -> str:
    """Return a ratio with its spread, and ≈ if the rounds don't agree on which of the two is better."""
    return f"{'≈ ' if least <= 1 <= most else ''}{median:.2f} ({least:.2f}–{most:.2f})"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def machine() -> dict[str, Any]:
    """Return a description of the machine."""
    return {
        "system": platform.system(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "server_and_load_apart": two_cores(),
        "python": platform.python_version(),
    }


def machine_line() -> str:
    """Return a description of the machine in one line."""
    found = machine()
    cores = "server and load on a core each" if found["server_and_load_apart"] else "server and load share a core"
    return (
        f"{found['system']} {found['kernel'].split('-')[0]} {found['architecture']}, {found['processor']}, "
        f"{found['cores']} cores, {cores}, CPython {found['python']}"
    )


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def record(
    results: dict[str, Results], workloads: list[Workload], skipped: list[str], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the whole run as plain data."""
    names = sorted({server for found in results.values() for server in found.servers})
    return {
        "format": RECORD_FORMAT,
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {name: version_of(BY_NAME[name]) for name in names},
        "settings": settings,
        "skipped": skipped,
        "workloads": {
            workload.name: {
                "title": workload.title,
                "figures": {
                    figure.key: {
                        "unit": figure.title,
                        "less_is_better": figure.less_is_better,
                        "digits": figure.digits,
                        "compared": figure.ratio,
                    }
                    for figure in workload.figures
                },
                **results[workload.name].record([figure.key for figure in workload.figures]),
            }
            for workload in workloads
            if workload.name in results
        },
    }
