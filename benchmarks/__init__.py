"""Benchmarks: echo7 and its peers in one interleaved run. They give ratios, not absolute claims.

    python3 -m benchmarks          all workloads; README.md explains them, RESULTS.md has the figures
    python3 -m benchmarks.stuck    the memory of clients that never read

The modules, bottom up:

    build.py      programs that are compiled on first use, and cached by a hash
    servers.py    the table of servers: what each offers, its command, what it needs
    workloads.py  the table of workloads: the load's mode, the figures to show
    process.py    one server process: start it on its core, wait for it, read its use, end it
    measure.py    one server under one workload, once: a dictionary of figures
    results.py    rounds, medians and ratios: arithmetic only
    report.py     the tables and the JSON
    plot.py       the charts
    __main__.py   arguments → rounds → reports
    load.c        the load; timers.py the one workload without a network; peers/ the other servers
"""
