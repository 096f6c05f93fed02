"""Metrics: what a service has done and how it is, for Prometheus to fetch. The extra `metrics`; off by default.

    counters, watch ─► Snapshot ─► families ─► text ─► HTTP ─► a Prometheus server
                          ▲
      each worker, once a second, over its channel

Start with `snapshot` (what one process reports, and sums of it; needs no package), then `families` (names and kinds,
prometheus-client), `http` (pages over HTTP, h11), `service` (all of it on a loop). Imports `reactor`, `echo7.server`,
`echo7.sockets` and `echo7.logs`; `echo7.probe` uses `families` and `service`, and isn't imported here.
"""
