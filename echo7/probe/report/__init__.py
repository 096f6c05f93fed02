"""The forms of output: text, JSON, a monitoring plugin's line, Prometheus's families.

Start with `views`, then read `text`, `document` (JSON), `nagios`, `writer` (standard output that never blocks) and
`prometheus`. Imports `probe.result`, `probe.plan` and `probe.measure`; `prometheus` also `echo7.metrics.families`.
"""
