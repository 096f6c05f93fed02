"""The prober: sends probes to an echo server and reports the outcome of each. `echo7 ping`, also as a library.

    from echo7 import ping

    result = ping("192.0.2.7", count=10, interval_s=0.1)
    print(result.counts.replies, result.counts.loss, result.rtt)

                     ┌─► DatagramFlow ─┐
    Plan ─► Prober ──┤                 ├──► Ledger ─► Event … PingResult ─► text, JSON, a monitoring plugin's line
                     └─► StreamFlow ───┘

Start with `measure` (outcomes and how they are counted; pure). Then read `plan` (the parameters of a run), `roles` (the
interfaces between a run and its flows), `datagram` and `stream` (flows over UDP and TCP), `prober` (the run), `result`,
`once` (one call), `report` (forms of output), `exporter` (for Prometheus) and `command`. Imports `reactor` and, of
echo7, `sockets`, `logs`, `process.limits`, `arguments` and (only the exporter) `metrics`.
"""

from echo7.probe.measure.words import Damage, Event, Harm, Word
from echo7.probe.once import ping
from echo7.probe.plan import Plan
from echo7.probe.prober import CannotProbe, Prober
from echo7.probe.result import PingResult, result_of
from echo7.sockets.resolve import UnresolvedName

__all__ = [
    "CannotProbe", "Damage", "Event", "Harm", "PingResult", "Plan", "Prober", "UnresolvedName", "Word", "ping",
    "result_of",
]  # fmt: skip
