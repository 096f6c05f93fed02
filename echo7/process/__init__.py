"""One process's life, and many: signals, privileges, systemd, restart, workers.

Read `lifecycle` first. May import everything of `echo7` but the command line.
"""
