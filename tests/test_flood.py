"""Eight seconds of the flood; `python3 -m tests.flood --seconds 60` runs a minute."""

from __future__ import annotations

import sys

import pytest

from tests.flood import Report, flood, in_own_namespace

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory and descriptors from /proc"),
]
SECONDS = 8.0


def test_well_behaved_client_sees_no_error_during_a_flood() -> None:
    """A TCP client at 20 Hz sees no error, and UDP is served again at once afterwards."""
    report: Report = in_own_namespace(lambda forging: flood(SECONDS, forging))
    print(report)
    assert not report.violations
    assert len(report.pings_s) > SECONDS  # it pinged all the time
