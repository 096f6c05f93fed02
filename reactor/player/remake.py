"""`python -m reactor.player.remake [FOLDER]`: make the gallery anew, as the loop is today. For who changes the loop.

Law: a bundled trace is what today's loop does, line by line. A test plays the scenarios and compares; when it fails
because a line has moved, this is the answer.
"""

from __future__ import annotations

import logging
import pathlib
import sys

from reactor.player.scenarios import SCENARIOS, record

GALLERY = pathlib.Path(__file__).parent / "gallery"


def main() -> int:
    """Write one file for each scenario, here or into the folder that is named; return the exit status."""
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else GALLERY
    logging.getLogger("reactor").addHandler(logging.NullHandler())  # what goes wrong there is meant
    for name, scenario in SCENARIOS.items():
        (folder / f"{name}.jsonl").write_bytes(record(scenario))
    print(f"{len(SCENARIOS)} traces are in {folder}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
