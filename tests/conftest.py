"""Hypothesis profiles, chosen by HYPOTHESIS_PROFILE: dev (quick), ci (the default suite in .ci/run), deep (by hand).

`tests.mutation` uses another: the same examples each time, and no time spent on making a failing one small.
"""

import os

from hypothesis import HealthCheck, Phase, settings

QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]  # real sockets take their time
settings.register_profile("dev", max_examples=25, deadline=None, suppress_health_check=QUIET)
settings.register_profile("ci", max_examples=60, deadline=None, suppress_health_check=QUIET, print_blob=True)
settings.register_profile("deep", max_examples=2_000, deadline=None, suppress_health_check=QUIET, print_blob=True)
settings.register_profile(
    "mutation",
    max_examples=40,
    deadline=None,
    suppress_health_check=QUIET,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
