"""The system's Chromium, driven by playwright."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Start the system's Chromium, driven by playwright. Skip the test where either is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"no browser is installed; looked for {', '.join(names)}")
    options = ["--disable-dev-shm-usage"]  # a container's /dev/shm may be too small
    options += ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to start as root with a sandbox
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()
