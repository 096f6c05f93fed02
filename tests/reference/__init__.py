"""The reference: pages that are derived from the code. `python3 -m tests.reference` writes them.

Start with `pages` (which page shows what). `source` reads the code as text, `events` finds log events, `api` finds the
public names, `tables` has the pages that show a declared table. `--check` compares, as tests/test_reference.py does.
"""
