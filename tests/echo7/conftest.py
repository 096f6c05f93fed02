"""Fixtures of the tests of echo7."""

from collections.abc import Iterator

import pytest

from tests.support.daemon import Installation, readable_copy


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """The code, in a place that every user may read."""
    with readable_copy() as made:
        yield made
