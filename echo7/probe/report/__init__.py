"""What people and programs read of a run: text, JSON, a monitoring plugin's line, Prometheus's families.

Start with `views` (the forms of output), then `text`, `document` (JSON) and `nagios`, `writer` (standard output that
never blocks), `prometheus`. Imports `probe.result`, `probe.plan` and `probe.measure`; `prometheus` also
`echo7.metrics.families`.
"""
