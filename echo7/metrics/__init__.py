"""echo7.metrics: what a service has done and how it is, for Prometheus to fetch. The extra `metrics`; off by default.

    Counters, Watch ─► Told ─► families ─► text ─► HTTP ─► whoever scrapes
                        ▲
      each worker, once a second, over its channel

Reading order: `told` (what one process tells, and sums; pure), `families` (names and kinds, prometheus-client),
`http` (pages over HTTP, h11), `service` (all of it on the loop that serves, or on the supervisor's); `probes` (the same
for `echo7 ping`).
"""
