"""An echo that acts like a bad network by a script, and a simulated world with it and a prober.

The script has for each probe, by sequence number, the answers: when, and how changed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from echo7.probe.measure.words import Event, Word
from echo7.probe.plan import NS_PER_S, Plan
from echo7.probe.prober import Prober
from echo7.probe.result import PingResult, result_of
from reactor import Datagram, DatagramProtocol, Reactor, open_udp
from reactor.sockets.addresses import Address
from reactor.testing import SimulatedNetwork

HERE = ("10.0.0.1", 7)
LATENCY_S = 1 / 8  # one way; floats of eighths of a second are exact
RTT_NS = 2 * NS_PER_S // 8
KEY = 0x0E0C0701


class Answer(NamedTuple):
    """One datagram that is sent back."""

    delay_s: float = 0.0
    change: Callable[[bytes], bytes] = bytes


Script = Mapping[int, Sequence[Answer]]
LOST: Sequence[Answer] = ()
USUAL: Sequence[Answer] = (Answer(),)
TWICE: Sequence[Answer] = (Answer(), Answer())


def after(delay_s: float) -> Sequence[Answer]:
    return (Answer(delay_s),)


def flipped(byte: int, bits: int) -> Sequence[Answer]:
    return (Answer(change=lambda data: data[:byte] + bytes([data[byte] ^ bits]) + data[byte + 1 :]),)


def cut(size_bytes: int) -> Sequence[Answer]:
    return (Answer(change=lambda data: data[:size_bytes]),)


def grown(more: bytes) -> Sequence[Answer]:
    return (Answer(change=lambda data: data + more),)


class ScriptedEcho(DatagramProtocol):
    """Echoes as the script says; a probe that it doesn't mention gets the usual answers."""

    def __init__(self, reactor: Reactor, script: Script | None = None, usual: Sequence[Answer] = USUAL) -> None:
        self._reactor, self._usual = reactor, usual
        self._script = script or {}
        self.requests: list[bytes] = []
        self.sources: list[Address] = []

    def datagram_received(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        self.requests.append(data)
        self.sources.append(source)
        sequence = struct.unpack("!I", data[8:12])[0] if len(data) >= 16 else len(self.requests)
        for answer in self._script.get(sequence, self._usual):
            changed = answer.change(data)
            if answer.delay_s:
                self._reactor.call_later(answer.delay_s, endpoint.send, changed, source, path)
            else:
                endpoint.send(changed, source, path)


class ProberWorld:
    """A prober on a simulated network and one loop; time is virtual."""

    def __init__(self, plan: Plan, **options: Any) -> None:
        self.network = SimulatedNetwork(0, **options)
        self.reactor = self.network.reactor()
        self.events: list[Event] = []
        self.times_ns: list[int] = []
        self.ended = 0
        self.then: Callable[[Event], object] = lambda event: None
        self.prober = Prober(self.reactor, HERE, plan, told=self.note, ended=self.end, key=KEY, clock_ns=self.clock_ns)

    def clock_ns(self) -> int:
        return round(self.network.clock() * NS_PER_S)

    def note(self, event: Event) -> None:
        self.events.append(event)
        self.times_ns.append(self.clock_ns())
        self.then(event)

    def end(self) -> None:
        self.ended += 1
        self.reactor.stop()

    def run(self) -> PingResult:
        self.prober.start()
        self.network.run(self.reactor)
        assert self.ended == 1
        return self.result

    @property
    def result(self) -> PingResult:
        return result_of(self.prober, "here")

    def words(self) -> list[tuple[int, Word]]:
        return [(event.sequence, event.word) for event in self.events]


class World(ProberWorld):
    """With a scripted echo over UDP."""

    def __init__(
        self, plan: Plan, script: Script | None = None, *, usual: Sequence[Answer] = USUAL, **options: Any
    ) -> None:
        super().__init__(plan, latency_s=LATENCY_S, **options)
        self.echo = ScriptedEcho(self.reactor, script, usual)
        open_udp(self.reactor, HERE, self.echo)


def plan(count: int | None = 10, interval_s: float = 1.0, timeout_s: float = 2.0, **others: Any) -> Plan:
    return Plan(
        probes=count, interval_ns=round(interval_s * NS_PER_S), timeout_ns=round(timeout_s * NS_PER_S), **others
    )
