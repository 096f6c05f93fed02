"""The prober: what becomes of datagrams that are sent to an echo server. `echo7 ping`, and the same as a library.

    from echo7 import ping

    result = ping("192.0.2.7", count=10, interval_s=0.1)
    print(result.counts.replies, result.counts.loss, result.rtt)

                     ┌─► DatagramFlow ─┐
    Plan ─► Prober ──┤                 ├──► Ledger ─► Event … PingResult ─► text, JSON, a monitoring plugin's line
                     └─► StreamFlow ───┘

Start with `measure` (what can become of a probe, and counting it; pure). Then `plan` (what was asked for), `roles`
(what a run and its flows need of each other), `datagram` and `stream` (flows over UDP and TCP), `prober` (the run),
`result` (what it found), `once` (one call), `report` (what people and programs read), `exporter` (for Prometheus),
`command`. Imports `reactor` and, of echo7, `sockets`, `logs`, `process.limits`, `arguments` and (only the exporter)
`metrics`.
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
