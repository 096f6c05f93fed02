"""The outcome of each probe, and counting. Pure: no sockets, no clocks; imports nothing outside this folder.

Start with `words` (the outcomes), then read `payload`, `histogram` and `tally` (counting), `ledger` (the outcome of
each probe) and `paths` (which flows differ from the others).
"""
