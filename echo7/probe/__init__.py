"""echo7.probe: what becomes of datagrams that are sent to an echo server. `echo7 ping`, and the same as a library.

    from echo7 import ping

    result = ping("192.0.2.7", count=10, interval_s=0.1)
    print(result.counts.replies, result.counts.loss, result.rtt)

                     ┌─► DatagramFlow ─┐
    Plan ─► Prober ──┤                 ├──► Ledger ─► Event … PingResult ─► text, JSON, a monitoring plugin's line
                     └─► StreamFlow ───┘

Reading order: `words` (what can become of a probe), `payload` (what it carries), `histogram` and `tally` (counting),
`ledger` (what becomes of each), all pure; `plan` (what was asked for), `roles` (what a run and a flow are to each
other), `flow` and `stream` (UDP and TCP), `prober` (the run), `paths` and `result` (what was found), `once` (one call);
and for people and programs `text`, `document`, `nagios`, `output`, `views`, `exporter` (for Prometheus), `command`.
"""

from echo7.probe.once import ping
from echo7.probe.plan import Plan
from echo7.probe.prober import CannotProbe, Prober
from echo7.probe.result import PingResult, result_of
from echo7.probe.words import Damage, Event, Harm, Word
from echo7.sockets.resolve import UnresolvedName

__all__ = [
    "CannotProbe",
    "Damage",
    "Event",
    "Harm",
    "PingResult",
    "Plan",
    "Prober",
    "UnresolvedName",
    "Word",
    "ping",
    "result_of",
]
