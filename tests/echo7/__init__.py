"""Tests of `echo7`, in folders that mirror it."""
