"""Hypothesis profiles, chosen by HYPOTHESIS_PROFILE: dev (quick), ci (the default suite in .ci/run), deep (by hand)."""

import os

from hypothesis import HealthCheck, settings

QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]  # real sockets take their time
settings.register_profile("dev", max_examples=25, deadline=None, suppress_health_check=QUIET)
settings.register_profile("ci", max_examples=60, deadline=None, suppress_health_check=QUIET, print_blob=True)
settings.register_profile("deep", max_examples=2_000, deadline=None, suppress_health_check=QUIET, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
