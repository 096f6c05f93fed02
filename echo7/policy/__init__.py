"""Pure decisions: what is echoed, to which sources, and how much. No sockets, no clock: time comes in as a number.

Read `echo` first. May import `reactor`'s types; never `echo7.sockets` or `echo7.process`.
"""
