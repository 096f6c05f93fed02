"""Bugs that other servers had. Each file describes one, says what prevents it here, and tests that."""
