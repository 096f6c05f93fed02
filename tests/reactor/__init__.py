"""Tests of `reactor`, in folders that mirror it."""
