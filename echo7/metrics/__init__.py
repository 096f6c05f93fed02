"""Metrics: counters and health of a service, for Prometheus to fetch. Needs the extra `metrics`; off by default.

    counters, watch ─► Snapshot ─► families ─► text ─► HTTP ─► a Prometheus server
                          ▲
      each worker, once a second, over its channel

Start with `snapshot` (the numbers of one process, and their sums; needs no package). Then read `families` (names of
metrics; prometheus-client), `http` (pages; h11) and `service` (the pages on a loop). Imports `reactor`, `echo7.server`,
`echo7.sockets` and `echo7.logs`; `echo7.probe` imports `families` and `service`.
"""
