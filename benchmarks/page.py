"""The part of RESULTS.md that a run writes: when, on what, with which command, and one table of all workloads.

Law: between the two marks no figure is typed by hand. What stands there is replaced as a whole (`--page`).
"""

from __future__ import annotations

import pathlib
from typing import Any

from benchmarks.report import NOTHING, ratio_text

BEGIN, END = "<!-- Begin: written by python3 -m benchmarks --page -->", "<!-- End of what --page writes -->"
EXPLAINED = """\
The column of echo7 is a median. A peer's column is echo7's figure divided by the peer's within a round: the median of
the rounds, with the least and the most of them. Where less is better (↓), a ratio below 1 is in echo7's favour. ≈ means
that 1 is within the spread: the rounds don't agree on which of the two is better."""


class PageError(Exception):
    """The page can't be written. The text is one line."""


def check(path: pathlib.Path) -> None:
    """Raise PageError if a page lacks its marks, OSError if it can't be read."""
    if not 0 <= path.read_text().find(BEGIN) < path.read_text().find(END):
        raise PageError(f"{path} has no part to replace: it needs the lines {BEGIN!r} and {END!r}")


def write(path: pathlib.Path, record: dict[str, Any], machine: str, command: str) -> None:
    """Replace the part between the marks."""
    before, _, rest = path.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n\n{part(record, machine, command)}\n\n{END}{after}")


def part(record: dict[str, Any], machine: str, command: str) -> str:
    """Return the Markdown of one run."""
    peers = [name for name in record["versions"] if name != "echo7"]
    versions = ", ".join(f"{name}: {version}" for name, version in record["versions"].items())
    lines = [
        f"*Measured on {record['when'][:10]}* by this command, on {machine}. {versions}.",
        "",
        f"    {command}",
        "",
    ]
    lines += [EXPLAINED, "", f"| workload | figure | echo7 |{''.join(f' {name} |' for name in peers)}"]
    lines += ["|" + "---|" * (3 + len(peers))]
    for workload in record["workloads"].values():
        lines += _rows(workload, peers)
    failures = [
        f"- {workload['title']}: {server} failed: {line}"
        for workload in record["workloads"].values()
        for server, line in workload["failed"].items()
    ]
    return "\n".join([*lines, "", *failures] if failures else lines)


def _rows(workload: dict[str, Any], peers: list[str]) -> list[str]:
    rows, title = [], workload["title"]
    for key, figure in workload["figures"].items():
        if not figure["compared"]:
            continue
        ours = workload["summary"].get("echo7", {}).get(key)
        median = NOTHING if ours is None else f"{ours['median']:,.{figure['digits']}f}"
        ratios = [workload["ratios"].get(name, {}).get(key) for name in peers]
        cells = [title, f"{figure['unit']} {'↓' if figure['less_is_better'] else '↑'}", median]
        cells += ["" if found is None else ratio_text(**found) for found in ratios]
        rows.append(f"| {' | '.join(cells)} |")
        title = ""
    return rows
