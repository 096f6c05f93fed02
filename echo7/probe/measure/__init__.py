"""What becomes of each probe, and how it is counted. Pure: no sockets, no clocks; imports nothing outside this folder.

Start with `words` (what can become of a probe), then `payload` (what it carries), `histogram` and `tally` (counting),
`ledger` (the outcome of each probe), `paths` (which flows differ from the others).
"""
