"""Fixtures of the tests of echo7."""

import importlib
import importlib.util
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from tests.support.daemon import METRICS_PACKAGES, Installation, readable_copy


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """The code, in a place that every user may read."""
    with readable_copy() as made:
        yield made


@pytest.fixture(scope="session")
def packages() -> Iterator[str]:
    """What --metrics needs, as far as it is installed, in a place that every user may read."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for name in filter(importlib.util.find_spec, METRICS_PACKAGES):
            found = importlib.import_module(name).__file__
            assert found is not None
            shutil.copytree(pathlib.Path(found).parent, pathlib.Path(folder, name))
        yield folder
