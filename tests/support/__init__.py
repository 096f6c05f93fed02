"""Helpers for tests, one module for each subject."""
