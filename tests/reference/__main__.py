"""`python3 -m tests.reference [--check]`: write the reference, or say which pages differ from the code.

The page of metrics needs prometheus-client, of the extra `metrics`. The exit status is 1 when a page differs.
"""

from __future__ import annotations

import sys

from tests.reference.pages import PAGES, stale
from tests.support.basics import PROJECT


def main(arguments: list[str]) -> int:
    """Write all pages, or with `--check` compare them; return the exit status."""
    if arguments not in ([], ["--check"]):
        sys.exit(f"usage: python3 -m tests.reference [--check], not {' '.join(arguments)}")
    if arguments:
        found = stale()
        print(
            "\n".join(f"{path} differs from the code: run python3 -m tests.reference" for path in found) or "the same"
        )
        return int(bool(found))
    for path, page in PAGES.items():
        file = PROJECT / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page())
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
