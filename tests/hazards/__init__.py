"""Bugs that other servers had: each file tells one, what prevents it here, and tests that."""
