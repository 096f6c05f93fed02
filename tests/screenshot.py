"""`python -m tests.screenshot`: take the picture of the player for the READMEs, with the system's Chromium.

It shows the moment after `send` has taken three of ten bytes.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile

import pytest

from reactor.player.gallery import bundled
from reactor.player.page import page
from tests.support.basics import PROJECT
from tests.support.browser import chromium

PICTURE = PROJECT / "reactor" / "player" / "player.png"
MOMENT = "#trace=partial-write&n=18"
SIZE = {"width": 1280, "height": 790}


def take(picture: pathlib.Path) -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        path = pathlib.Path(folder) / "gallery.html"
        path.write_text(page(bundled()), encoding="utf-8")
        shown = browser.new_page(viewport=SIZE, color_scheme="light", reduced_motion="reduce")
        shown.goto(path.as_uri() + MOMENT)
        shown.screenshot(path=picture)


def main() -> int:
    """Take the picture; return the exit status."""
    try:
        take(PICTURE)
    except pytest.skip.Exception as missing:
        print(f"no picture: {missing}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
