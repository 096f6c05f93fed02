"""Log lines that never block, and what they say about the service.

Read `log` first, then `quiet` (limits lines that clients cause), `drops` and `report`. The text of a line is in the
call that logs it; docs/reference/log-events.md lists every text with its file.
"""
