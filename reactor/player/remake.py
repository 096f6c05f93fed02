"""`python -m reactor.player.remake [FOLDER]`: record the gallery again, after the loop has changed.

Law: a bundled trace is what today's loop does, line by line. A test plays the scenarios and compares. When it fails
because a line of the loop has moved, run this command.
"""

from __future__ import annotations

import logging
import pathlib
import sys

from reactor.player.scenarios import SCENARIOS, record

GALLERY = pathlib.Path(__file__).parent / "gallery"


def main() -> int:
    """Write one file for each scenario, into the gallery or the folder that is named; return the exit status."""
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else GALLERY
    logging.getLogger("reactor").addHandler(logging.NullHandler())  # errors in the scenarios are intended
    for name, scenario in SCENARIOS.items():
        (folder / f"{name}.jsonl").write_bytes(record(scenario))
    print(f"{len(SCENARIOS)} traces are in {folder}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
