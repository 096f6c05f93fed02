"""`python3 -m benchmarks.golf [FILE…]`: score echo servers by size: bytes × multiplier. The least wins.

Law: a score needs a check. Each program runs alone (see `benchmarks/alone.py`), and `echo7 check` decides: ×1, doubled
if TCP or UDP is missing, quadrupled if the port isn't 7 or another required case fails, ω if the program sends more
than it received, doesn't echo, or stops working. If a required case can't be decided, there is no score. The suffix of
the name chooses the interpreter: .py, .js, .rkt.
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.alone import AloneError, judge_alone, namespace
from reactor.console.commandline import OneLineParser

ENTRIES = pathlib.Path(__file__).resolve().parent / "entries"
OURS = ("ours.py", "both.py", "threads.py", "node.js", "racket.rkt")
INTERPRETERS = {".py": (sys.executable,), ".js": ("node",), ".rkt": ("racket",)}


class Card(NamedTuple):
    """One program's score."""

    name: str
    size_bytes: int
    multiplier: str
    total: int | None  # None: ω, not decided or not checked
    remarks: str


def main(argv: Sequence[str] | None = None) -> int:
    """Score the programs and print a table. Return the exit status: 0 when all were checked."""
    parser = OneLineParser(prog="python3 -m benchmarks.golf", description="Score echo servers: bytes × multiplier.")
    parser.add_argument("files", nargs="*", type=pathlib.Path, metavar="FILE", help="programs (default: our own)")
    options = parser.parse_args(argv)
    files: list[pathlib.Path] = options.files or [ENTRIES / name for name in OURS]
    _refuse_nonsense(parser, files)
    try:
        prefix = namespace()
    except AloneError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    cards = []
    for file in files:
        print(f"checking {file.name} …", file=sys.stderr)
        cards.append(card(prefix, file))
    print(markdown(cards))
    return 0 if all(card.multiplier for card in cards) else 1


def _refuse_nonsense(parser: argparse.ArgumentParser, files: Sequence[pathlib.Path]) -> None:
    for file in files:
        if file.suffix not in INTERPRETERS:
            parser.error(f"{file}: no interpreter for this suffix; the name must end with {', '.join(INTERPRETERS)}")
        if not file.is_file():
            parser.error(f"{file}: no such file")


def card(prefix: Sequence[str], file: pathlib.Path) -> Card:
    """Check and score one program."""
    size_bytes = file.stat().st_size
    interpreter = INTERPRETERS[file.suffix]
    if shutil.which(interpreter[0]) is None:
        return Card(file.name, size_bytes, "", None, f"not checked: needs {interpreter[0]!r}, which isn't on the PATH")
    try:
        document = judge_alone(prefix, [*interpreter, str(file.resolve())])
    except AloneError as error:
        return Card(file.name, size_bytes, "", None, f"not checked: {error}")
    score: dict[str, Any] = document["score"]
    factor: int | None = score["factor"]
    remarks = "; ".join([*score["reasons"], *not_passed(document["findings"])])
    return Card(file.name, size_bytes, score["text"], None if factor is None else factor * size_bytes, remarks)


def not_passed(findings: Sequence[dict[str, Any]]) -> list[str]:
    """Return in words which cases weren't passed, by verdict."""
    words = {"fail": "fails", "not supported": "not supported:", "can't tell": "can't tell:"}
    named = {verdict: [f["case"] for f in findings if f["verdict"] == verdict] for verdict in words}
    return [f"{words[verdict]} {', '.join(names)}" for verdict, names in named.items() if names]


def markdown(cards: Sequence[Card]) -> str:
    """Return the table, best first, ω last."""
    ranked = sorted(cards, key=lambda card: (card.total is None, card.total or 0, card.size_bytes))
    rows = [
        f"| `{card.name}` | {card.size_bytes} | {card.multiplier or '?'} "
        f"| {card.total or (card.multiplier if card.multiplier == 'ω' else '?')} | {card.remarks} |"
        for card in ranked
    ]
    return "\n".join(["| program | bytes | multiplier | score | |", "|---|---|---|---|---|", *rows])


if __name__ == "__main__":
    sys.exit(main())
