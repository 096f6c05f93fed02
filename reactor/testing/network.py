"""SimulatedNetwork: a kernel, the world around it, and everything that can go wrong, from one seed.

    network = SimulatedNetwork(7, faults={"send.short": 0.2, "recv.EAGAIN": 0.1})
    reactor = network.reactor()          # the real Reactor, on simulated sockets, selector, clock and signals

Law: the program under test can't tell the difference, and the same seed gives the same run. No real socket, thread or
sleep is used. The world moves only while the program makes a system call: a peer may reset at any of them.
"""

from __future__ import annotations

import collections
import contextlib
import math
import random
import selectors
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from reactor.doors import NOTHING_OBSERVED
from reactor.fastpath.busypoll import BusyPollSelector
from reactor.loop import Reactor
from reactor.observe.trace import EventSink, Trace
from reactor.sockets.addresses import Address, family_of
from reactor.sockets.opening import Socket, closed_on_error
from reactor.testing.callbacks import Callbacks
from reactor.testing.chance import Chance, Fault, source_apart, source_of
from reactor.testing.clock import SimulatedClock
from reactor.testing.kernel.datagram import DatagramSocket
from reactor.testing.kernel.endpoint import SimulatedSocket
from reactor.testing.kernel.link import join
from reactor.testing.kernel.pipe import SplicePipe
from reactor.testing.kernel.ports import Descriptors, Ports
from reactor.testing.kernel.routing import Routing
from reactor.testing.kernel.selector import Quiet, SimulatedSelector
from reactor.testing.kernel.signals import SimulatedSignals
from reactor.testing.kernel.stream import StreamSocket
from reactor.testing.peers import PEER_HOSTS, DatagramPeer, Peer, PeerServer, outside
from reactor.testing.recording import Recording
from reactor.testing.turns import POLLS, Turns
from reactor.testing.wire import Wire

LOCAL_ADDRESSES = ("127.0.0.1", "::1", "10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2")
LONGEST_SHORTAGE_S = 2.0
SHORTAGES = ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ENOSPC", "EACCES")


class Watcher:
    """Observes the program under test. Subclass it to check something after every step."""

    def call(self, name: str, sock: SimulatedSocket, data: bytes) -> None:
        """Handle a call on a stream: `accept`, `recv` and `send` with the bytes moved, `eof`, `fin`."""

    def datagram(self, name: str, sock: SimulatedSocket, data: bytes, peer: Address, local: str) -> None:
        """Handle a `request` that was received, or an `answer` that is sent; `local` is this machine's address."""

    def select(self, timeout_s: float | None) -> None:
        """Check the state between two turns: all handlers have run, and the loop is about to call select."""


class SimulatedNetwork:
    """The selector, clock, sockets and signals of a Reactor, and the world behind them.

    `seed`: a number, a `random.Random`, or hypothesis's `data`. `faults`: probabilities by name (see `FAULTS`).
    `script`: exactly these faults, as `chance.script()` returns them. `addresses`: those of this machine. Buffer sizes
    and latency hold for every connection. `trace`: a file for the player (see `recording`). `violations` lists what no
    program may do, `chance.injected` the faults that happened, and `callbacks` (a `Callbacks`) what those of callbacks
    have hit.
    """

    def __init__(
        self,
        seed: int | random.Random | Any = 0,
        *,
        faults: Mapping[str, float] | None = None,
        script: str = "",
        addresses: Sequence[str] = LOCAL_ADDRESSES,
        descriptor_limit: int = 1024,
        send_buffer_bytes: int = 65_536,
        receive_buffer_bytes: int = 65_536,
        latency_s: float = 0.0,
        trace: str | None = None,
    ) -> None:
        self.random = source_of(seed)  # for scenarios: faults don't shift it
        self.seed = seed if isinstance(seed, int) else None
        of_calls = source_apart(seed, self.random, "faults")
        self.chance = Chance(of_calls, faults or {}, script, source_apart(seed, self.random, "callbacks"))
        self.callbacks = Callbacks(self)
        self.clock = SimulatedClock()
        self.wire = Wire(self.clock)
        self.routing = Routing(addresses)
        self.descriptors = Descriptors(descriptor_limit)
        self.ports = Ports(self.routing)
        self.signals = SimulatedSignals(self.descriptors)
        self.send_buffer_bytes, self.receive_buffer_bytes = send_buffer_bytes, receive_buffer_bytes
        self.latency_s = latency_s
        self.steps = 0  # system calls of the program
        self.datagrams_lost = 0  # because a receive buffer was full
        self.violations: list[str] = []
        self.watchers: list[Watcher] = []
        self.journal: list[str] | collections.deque[str] | None = None  # each system call in words, when set
        self.reactors: list[Reactor] = []
        self.selectors: list[SimulatedSelector] = []
        self.peers: list[Peer | PeerServer | DatagramPeer] = []  # peers that may still act
        self.recording = None if trace is None else Recording(trace)
        self._turns = Turns(self.clock)
        self._poll_takes_s = 0.0  # duration of a select(0) that finds nothing
        self._shortages: dict[str, tuple[float, Fault]] = {}  # call → until when it fails, and its fault
        self._until: Callable[[], object] | None = None
        self._end_s = math.inf  # the end of the run

    # ------------------------------------------------------------ the doors

    def socket(self, family: int, type: int) -> Socket:
        """Return a new socket of the program under test: socket(2). Raise OSError when none are left."""
        fault = self.enter("socket")
        if fault is not None:
            raise self.inject(fault).error()
        made = StreamSocket if type == socket.SOCK_STREAM else DatagramSocket
        return cast(Socket, made(self, family, True))

    def socketpair(self) -> tuple[Socket, Socket]:
        """Return two connected sockets without faults."""
        one = StreamSocket(self, socket.AF_INET, True)
        with closed_on_error(cast(Socket, one)):  # no descriptor may be left for the second
            other = StreamSocket(self, socket.AF_INET, True)
        one.faulty = other.faulty = False
        join(self, one, other)
        return cast(Socket, one), cast(Socket, other)

    def pipe(self) -> SplicePipe:
        """Return a pipe between two sockets (`fastpath.splice`). Raise OSError when no descriptors are left."""
        return SplicePipe(self)

    def selector(self) -> selectors.BaseSelector:
        """Return a new selector over this network's sockets."""
        self.selectors.append(SimulatedSelector(self))
        return self.selectors[-1]

    def reactor(self, *, busy_poll_s: float = 0.0, observer: EventSink | None = None) -> Reactor:
        """Return a Reactor on this network. All reactors share one thread, so one can run at a time.

        With `busy_poll_s`, a select(0) that finds nothing takes a part of that time, or polling would never end.
        """
        self._poll_takes_s = busy_poll_s / POLLS
        self._turns.looks_a_turn = POLLS + 2 if busy_poll_s else 1  # at most
        if self.recording is not None:
            observer = self.recording.observer(observer)
        selector = self.selector()
        made = Reactor(
            selector=BusyPollSelector(selector, self.clock, busy_poll_s) if busy_poll_s else selector,
            clock=self.clock,
            sockets=self,
            signals=self.signals,
            observer=NOTHING_OBSERVED if observer is None else Trace(observer),
        )
        made.guard = self.callbacks.guard(made.guard)
        self.reactors.append(made)
        return made

    def run(self, reactor: Reactor, *, until: Callable[[], object] | None = None, for_s: float | None = None) -> None:
        """Run the loop until it stops, nothing more will happen, `until()` is true, or `for_s` seconds have passed.

        Run it again when a fault of a callback has ended it. Raise AssertionError for what no program may do,
        RuntimeError if a million turns aren't enough.
        """
        self._until = until
        self._turns.begin()
        if for_s is not None:
            self._end_s = self.clock() + for_s
            self.wire.call_later(for_s, int)  # an event that does nothing: the clock stops there
        self.changed()  # the scenario may have changed anything
        try:
            with contextlib.suppress(Quiet):
                self.callbacks.run_again_after_faults(reactor.run)
        finally:
            self._until, self._end_s = None, math.inf
            if self.recording is not None:
                self.recording.save()
        self.check()

    def settle(self) -> None:
        """Let everything on the wire arrive, without a step of the program."""
        with contextlib.suppress(Quiet):
            while True:
                self.go_on(None)

    def check(self) -> None:
        """Raise AssertionError if the program has done what no program may do."""
        self.callbacks.check()
        if self.violations:
            raise AssertionError(f"{'; '.join(self.violations)} (seed {self.seed}, {len(self.chance.injected)} faults)")

    # ------------------------------------------------------------ the outside

    def peer(self, address: Address, *, source: str = "") -> Peer:
        """Return a peer that connects to `address` from the host `source`."""
        sock = outside(StreamSocket, self, source or PEER_HOSTS[family_of(address)])
        sock.connect_ex(address)
        return self.add_peer(Peer(sock))

    def peer_server(self, address: Address, answer: Callable[[Peer, bytes], object] | None = None) -> PeerServer:
        """Return a peer that listens on `address` and calls `answer(client, data)` for what each client sends."""
        sock = outside(StreamSocket, self, address[0], address[1])
        sock.listen()
        server = PeerServer(sock, answer, self.add_peer)
        self.peers.append(server)
        return server

    def udp_peer(self, *, source: str = "192.0.2.1", port: int = 0) -> DatagramPeer:
        """Return a peer that sends and receives datagrams."""
        peer = DatagramPeer(outside(DatagramSocket, self, source, port))
        self.peers.append(peer)
        return peer

    def add_peer(self, peer: Peer) -> Peer:
        """Let a peer act from now on."""
        self.peers.append(peer)
        return peer

    def call_later(self, delay_s: float, action: Callable[[], object]) -> None:
        """Call `action()` outside the program after `delay_s` seconds."""
        self.wire.call_later(delay_s, action)

    def partition(self, host: str, for_s: float = math.inf) -> None:
        """Cut a host off, for `for_s` seconds or until `heal`."""
        self.wire.partition(host, for_s)
        streams = [sock for sock in self.descriptors.open.values() if isinstance(sock, StreamSocket)]
        for sock in streams + [waiting for listener in streams for waiting in listener.queue]:
            if sock.link is not None and sock.remote and sock.remote[0] == host:
                sock.link.fall_silent()

    def heal(self, host: str) -> None:
        """Reconnect a host."""
        self.wire.heal(host)
        self.changed()

    def plan(self, call: str, kind: str, amount: int = 1, *, after: int = 0) -> None:
        """Plan a fault of the next `call`, or of a later one after `after` others. Raise ValueError."""
        self.chance.plan(call, kind, amount, after=after)

    def lose(self, number: int) -> None:
        """Close a descriptor of the program as other code would, by its number: neither socket nor selector know."""
        sock = self.descriptors.open[number]
        sock.lose()
        self.callbacks.hit[sock] = "lost"
        for selector in self.selectors:
            selector.lost.add(number)

    # ------------------------------------------------------------ at every system call

    def enter(self, call: str, faulty: bool = True) -> Fault | None:
        """Begin a system call of the program: the world takes a step, signals come. Return the call's fault or None."""
        self.steps += 1
        meanwhile = self.chance.draw("step")
        if meanwhile is not None:
            self._meanwhile(meanwhile)
        self.signals.deliver()
        if self.journal is not None:
            self.journal.append(f"{self.clock():.3f} {call}")
        if not faulty:
            return None
        fault = self.chance.draw(call)
        if self._shortages and (shortage := self._shortages.get(call)) is not None:
            until_s, lasting = shortage
            if self.clock() < until_s:
                return lasting
            del self._shortages[call]
        return fault

    def _meanwhile(self, fault: Fault) -> None:
        if fault.kind == "signal":
            if self.signals.at_random:
                self.inject(fault)
                self.signals.raise_signal(self.signals.at_random[fault.amount % len(self.signals.at_random)])
            return
        peers = [peer for peer in self.peers if isinstance(peer, Peer) and not peer.over]
        if not peers:
            return
        self.inject(fault)
        peer = peers[fault.amount % len(peers)]
        if fault.kind == "partition":
            self.partition(peer.socket.host, fault.amount / 1e3)
        else:
            {"fin": peer.finish_now, "reset": peer.reset}[fault.kind]()

    def inject(self, fault: Fault) -> Fault:
        """Record that a fault has had its effect. A shortage lasts for later calls too, and counts once."""
        if fault.amount == 0:
            return fault
        self.changed()
        if fault.kind in SHORTAGES:
            end_s = self.clock() + min((fault.amount - 1) / 1e3, LONGEST_SHORTAGE_S)  # 1: this call only
            self._shortages[fault.call] = (end_s, fault._replace(amount=0))
        if self.journal is not None:
            self.journal.append(f"    -> {fault}")
        for reactor in self.reactors:
            reactor.tell("fault", None, fault=str(fault))
        return self.chance.inject(fault)

    def changed(self) -> None:
        """Record a change: a loop that turns because of it doesn't spin."""
        self._turns.changes += 1

    def observe(
        self, name: str, sock: SimulatedSocket, data: bytes, peer: Address | None = None, local: str = ""
    ) -> None:
        """Report a call on a stream, or a datagram with its addresses, to the journal and the watchers."""
        self.changed()
        if not sock.faulty:
            return
        if self.journal is not None:
            about = "" if peer is None else f", peer {peer}, local {local}"
            self.journal.append(f"    {name}({sock.number}): {len(data)} bytes{about}")
        for watcher in self.watchers:
            if peer is None:
                watcher.call(name, sock, data)
            else:
                watcher.datagram(name, sock, data, peer, local)

    def about_to_close(self, number: int) -> None:
        """Report a descriptor that is closed while a selector watches it: the next owner would get its events."""
        self.changed()
        if any(number in selector.get_map() for selector in self.selectors):
            self.violations.append(f"descriptor {number} was closed while it was watched")

    # ------------------------------------------------------------ at every turn

    def about_to_select(self, timeout_s: float | None) -> None:
        """Begin a turn: detect a spinning loop, and let due events happen. Raise Quiet at the end of the run."""
        self.callbacks.check()  # what hasn't left the loop by now was swallowed in the last turn
        for watcher in self.watchers:
            watcher.select(timeout_s)
        if self.clock() >= self._end_s or (self._until is not None and self._until()):
            raise Quiet
        self._turns.count()
        if self._turns.begin_to_spin():
            self.violations.append("the loop spins: it turns, and nothing changes")
        self.wire.run_due()

    def looked(self, found: bool, timeout_s: float | None) -> None:
        """Record whether select found ready sockets. In a busy-polling loop, one that found none takes time."""
        self._turns.found_ready = found
        if not found and timeout_s == 0:
            self.clock.advance(self._poll_takes_s)

    def move_peers(self) -> bool:
        """Let every peer act; return whether any did."""
        moved = False
        gone = 0
        for peer in self.peers:
            if peer.over:
                gone += 1
            elif peer.move():
                moved = True
        if gone * 2 > len(self.peers):
            self.peers = [peer for peer in self.peers if not peer.over]
        return moved

    def go_on(self, until_s: float | None) -> bool:
        """Let the world go on while the loop sleeps; return False when it must wake. Raise Quiet at the end."""
        if until_s is not None and until_s <= self.clock():
            return False
        if self.clock() >= self._end_s:
            raise Quiet
        if self.move_peers() or self.wire.run_due():
            return True
        next_s = self.wire.next_s()
        if next_s is None and until_s is None:
            raise Quiet
        self.changed()
        if next_s is None or (until_s is not None and until_s < next_s):
            assert until_s is not None
            self.clock.reach(until_s)
            return False
        self.clock.reach(next_s)
        self.wire.run_due()
        return True
