"""Format a report: as a table for people, as a document for programs.

Law: the table has a line for each case. When a key or word of the document changes, its `schema` number does too.
"""

from __future__ import annotations

from collections.abc import Sequence

from echo7.checker.verdict import Case, Finding, Report, Verdict
from reactor import format_address

SCHEMA = 2
COLOURS = {Verdict.PASS: "32", Verdict.FAIL: "31", Verdict.UNSUPPORTED: "31", Verdict.UNKNOWN: "33"}  # ECMA-48 §8.3.117
STATUS = (
    "all required cases pass", "required cases fail", "", "nothing answered",
    "no required case fails, but some can't be decided",
)  # fmt: skip
HEADINGS = ("case", "verdict", "seen", "rule")


def text(report: Report, *, colour: bool = False) -> str:
    """Return the report as lines for a terminal or a file."""
    rows = [(f.case.name, f.verdict.value, f.seen, f.case.clause) for f in report.findings]
    widths = [max(len(row[column]) for row in [HEADINGS, *rows]) for column in range(3)]
    lines: list[str] = []
    place = None
    for finding, row in zip(report.findings, rows, strict=True):
        if place != (place := (finding.address, finding.case.transport)):
            where = format_address((finding.address, report.port))
            lines += ["", f"{finding.case.transport.upper()} at {where}", _line(HEADINGS, widths)]
        lines.append(_line(row, widths, COLOURS[finding.verdict] if colour else ""))
    return "\n".join([*lines[1:], "", *summary(report)])


def summary(report: Report) -> list[str]:
    """Return the last lines: the count of each verdict, failures that don't count, and the score."""
    if not report.answered:
        said = ", ".join(f"{f.case.transport.upper()} {f.seen} ({f.address})" for f in report.findings)
        return [f"nothing answered at {report.host}, port {report.port}: {said}"]
    counts = ", ".join(f"{sum(f.verdict is v for f in report.findings)} {v.value}" for v in Verdict)
    lines = [f"{len(report.findings)} cases: {counts}; {STATUS[report.status]}"]
    beyond = [f.case.name for f in report.findings if f.verdict is Verdict.FAIL and not f.case.required]
    if beyond:
        lines.append(f"failed, but not required: {', '.join(dict.fromkeys(beyond))}")
    if report.left_out:
        lines.append(f"tried less: {report.left_out}")
    lines.append(f"payloads and order are from seed {report.seed} (--seed {report.seed} repeats them)")
    if report.score is not None:
        why = f" ({'; '.join(report.score.reasons)})" if report.score.reasons else ""
        lines.append(f"score of the smallest-server challenge: bytes of source {report.score.text}{why}")
    return lines


def document(report: Report) -> dict[str, object]:
    """Return the report in types that JSON has."""
    score = report.score
    return {
        "schema": SCHEMA,
        "host": report.host,
        "port": report.port,
        "status": report.status,
        "answered": report.answered,
        "seed": report.seed,
        "left_out": report.left_out,
        "score": score and {"text": score.text, "factor": score.factor, "reasons": list(score.reasons)},
        "findings": [_finding(finding) for finding in report.findings],
    }


def listing(cases: Sequence[Case]) -> str:
    """Return a line for each case: its name, its promise and its rule."""
    rows = [(case.name, case.promise + ("" if case.required else " (beyond)"), case.clause) for case in cases]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(_line(row, widths) for row in rows)


def _finding(finding: Finding) -> dict[str, object]:
    case = finding.case
    return {
        "case": case.name,
        "transport": case.transport,
        "address": finding.address,
        "promise": case.promise,
        "rule": case.clause,
        "required": case.required,
        "verdict": finding.verdict.value,
        "fault": finding.fault and finding.fault.name.lower(),
        "seen": finding.seen,
    }


def _line(cells: Sequence[str], widths: Sequence[int], colour: str = "") -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, [*widths, 0], strict=True)]
    if colour:
        padded[1] = f"\x1b[{colour}m{padded[1]}\x1b[0m"
    return "  " + "  ".join(padded).rstrip()
