"""Tests. `reactor`, `echo7` and `benchmarks` mirror the packages; CONTRIBUTING.md says where a new test goes."""
