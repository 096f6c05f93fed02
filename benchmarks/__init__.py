"""Measurements: echo7 and its peers side by side in one interleaved run. Ratios, never absolute claims.

    python3 -m benchmarks          everything; README.md here says what is measured and what it means
    python3 -m benchmarks.stuck    what peers that never read cost

The rooms, bottom up:

    build.py      programs compiled on first use, kept under their contents' hash
    servers.py    the table of servers: what each can do, how it is started, what it needs
    workloads.py  the table of workloads: what the load does, which figures are shown
    process.py    one server process: started on its core, waited for, looked at, ended
    measure.py    one server under one workload, once: a dictionary of figures
    results.py    rounds, medians and ratios: arithmetic alone
    report.py     the tables and the JSON
    plot.py       the charts
    __main__.py   arguments → rounds → reports
    load.c        the load; timers.py the one workload without a network; peers/ the other servers
"""
