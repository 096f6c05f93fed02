"""Hypothesis chooses clients, faults, time and signals in any order, against the whole EchoServer."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reactor.testing import CATALOGUE, Peer, SimulatedNetwork
from reactor.testing.simulate import close
from tests.simulation.world import DRAIN_S, TCP_HOSTS, TERM, USR1, World, closed_handlers_watched

CALLS = ("recv", "send", "accept", "recvmsg", "sendmsg", "register", "modify", "select", "segment", "packet")
FAULTS = [(call, kind) for call in CALLS for kind in CATALOGUE[call]]
WHICH = st.integers(0, 9)


class EchoMachine(RuleBasedStateMachine):
    """One server, and everything that can happen to it. The Auditor of `World` checks every system call."""

    def __init__(self) -> None:
        super().__init__()
        self.network = SimulatedNetwork(0)
        self.watch = contextlib.ExitStack()
        self.watch.enter_context(closed_handlers_watched(self.network))

    @initialize(
        buffers=st.tuples(st.integers(1, 70_000), st.integers(1, 70_000)),
        most=st.sampled_from([None, 1, 2]),
        latency_s=st.sampled_from([0.0, 0.01]),
        plain=st.booleans(),
    )
    def begin(self, buffers: tuple[int, int], most: int | None, latency_s: float, plain: bool) -> None:
        self.network.send_buffer_bytes, self.network.receive_buffer_bytes = buffers
        self.network.latency_s = latency_s
        self.world = World(self.network, most, plain=plain)

    def peer(self, which: int) -> Peer | None:
        live = [peer for peer in self.world.peers if not peer.over]
        return live[which % len(live)] if live else None

    @rule(host=st.sampled_from(TCP_HOSTS), read_bytes=st.integers(1, 70_000), write_bytes=st.integers(1, 70_000))
    def call(self, host: str, read_bytes: int, write_bytes: int) -> None:
        if len(self.world.peers) < 12:
            peer = self.world.call(host)
            peer.read_bytes, peer.write_bytes = read_bytes, write_bytes

    @rule(which=WHICH, data=st.binary(min_size=1, max_size=300), times=st.integers(1, 200), urgent=st.booleans())
    def send(self, which: int, data: bytes, times: int, urgent: bool) -> None:
        peer = self.peer(which)
        if peer is not None and not peer.finished:
            peer.send(data * times, urgent=urgent)

    @rule(which=WHICH, what=st.sampled_from("finish finish_now reset close vanish pause resume".split()))
    def act(self, which: int, what: str) -> None:
        peer = self.peer(which)
        if peer is not None:
            getattr(peer, what)()

    @rule(ipv6=st.booleans(), data=st.binary(max_size=100), times=st.integers(1, 500))
    def ask(self, ipv6: bool, data: bytes, times: int) -> None:
        if len(self.world.datagram_peers) < 8:
            peer = self.world.datagram_peer(socket.AF_INET6 if ipv6 else socket.AF_INET)
            self.world.ask(peer, data * times, "fd00::2" if ipv6 else "10.0.0.2")

    @rule(fault=st.sampled_from(FAULTS), amount=st.integers(1, 65_535), after=st.integers(0, 3))
    def plan(self, fault: tuple[str, str], amount: int, after: int) -> None:
        self.network.plan(*fault, amount, after=after)

    @rule(host=st.sampled_from(["192.0.2.1", "2001:db8::1"]), for_s=st.floats(0.001, 2000))
    def partition(self, host: str, for_s: float) -> None:
        self.network.partition(host, for_s)

    @rule(signum=st.sampled_from([USR1, USR1, TERM]))
    def signal(self, signum: int) -> None:
        self.network.signals.raise_signal(signum)

    @precondition(lambda self: self.world.running)
    @rule(turns=st.integers(1, 20))
    def turn(self, turns: int) -> None:
        count = iter(range(turns))
        self.go(until=lambda: next(count, None) is None)

    @precondition(lambda self: self.world.running)
    @rule(for_s=st.floats(0.001, 4 * DRAIN_S))
    def pass_time(self, for_s: float) -> None:
        self.go(for_s=for_s)

    def go(self, **how: Any) -> None:
        self.network.run(self.world.reactor, **how)

    @invariant()
    def nothing_is_wrong(self) -> None:
        self.network.check()

    def teardown(self) -> None:
        with self.watch:
            if hasattr(self, "world"):
                self.world.finish()
                close(self.network)
                self.network.check()


TestEchoMachine = EchoMachine.TestCase
TestEchoMachine.settings = settings(stateful_step_count=40)
