"""A few seconds of the flood; `python3 -m tests.flood --seconds 60` by hand."""

from __future__ import annotations

import sys

import pytest

from tests.flood import Report, flood, in_own_namespace

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory and descriptors are looked up in proc(5)"),
]
SECONDS = 8.0


def test_well_behaved_client_sees_no_error_during_a_flood() -> None:
    """Issue: "a 20 Hz honest TCP client sees zero errors and UDP recovers at once afterwards"."""
    report: Report = in_own_namespace(lambda forging: flood(SECONDS, forging))
    print(report)
    assert not report.violations
    assert len(report.pings_s) > SECONDS  # it was there all the time
