"""Log lines that never block, and what they say about the service.

Read `log` first.
"""
