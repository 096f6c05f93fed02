"""Pure decisions: what is echoed, to which sources, and how much. No sockets, no clock: time comes in as a number.

Read `echo` first, then `guard`. A datagram meets `guard` (with `ports`), `loops`, `shares` and `sources` (with
`access` and `rate`). A connection meets `sources`, `crowd` and `idle`. `reasons` names why one is refused.
May import `reactor`'s types; never `echo7.sockets` or `echo7.process`.
"""
