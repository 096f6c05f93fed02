"""SimulatedNetwork: a kernel, the world around it, and everything that can go wrong, from one seed.

    network = SimulatedNetwork(7, faults={"send.short": 0.2, "recv.EAGAIN": 0.1})
    reactor = network.reactor()          # the real Reactor, on simulated sockets, selector, clock and signals

Law: the program under test can't tell the difference, and the same seed gives the same run. No socket, thread or sleep
of the real world is used. The world moves only when the program makes a system call: a peer may reset at any of them.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import ipaddress
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
from reactor.sockets.addresses import WILDCARDS, Address, family_of
from reactor.sockets.opening import Socket, closed_on_error
from reactor.testing.chance import Chance, Fault, source_apart, source_of
from reactor.testing.clock import SimulatedClock
from reactor.testing.datagram import DatagramSocket, Packet
from reactor.testing.link import CONNECTING, LISTENING, join
from reactor.testing.peers import DatagramPeer, Peer, PeerServer
from reactor.testing.pipe import SplicePipe
from reactor.testing.ports import Descriptors, Ports
from reactor.testing.recording import Recording
from reactor.testing.selector import Quiet, SimulatedSelector
from reactor.testing.signals import SimulatedSignals
from reactor.testing.stream import SYN_RETRY_S, StreamSocket
from reactor.testing.wire import Wire

LOCAL_ADDRESSES = ("127.0.0.1", "::1", "10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2")
BROADCASTS = ("255.255.255.255", "10.0.0.255")
STRANGERS: dict[int, str] = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
LOOPBACK_INTERFACE, ROUTED_INTERFACE = 1, 2
POLLS = 4  # of a busy-polling loop before it sleeps
IDLE_TURNS = 8  # so many turns in which nothing at all changes are a spin
MOST_TURNS = 1_000_000
MOST_TURNS_AT_ONCE = 200_000  # while the clock stands still
LONGEST_SHORTAGE_S = 2.0
SHORTAGES = ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ENOSPC")


class Watcher:
    """Is told what happens; to be subclassed by whoever checks something after every step."""

    def call(self, name: str, sock: StreamSocket, data: bytes) -> None:
        """Note what the program has done on a stream: `accept`, `recv` and `send` with bytes moved, `eof`, `fin`."""

    def datagram(self, name: str, sock: DatagramSocket, data: bytes, peer: Address, asked: str) -> None:
        """Note a `request` that was received, or an `answer` that is sent, and the local address of either."""

    def select(self, timeout_s: float | None) -> None:
        """All handlers have been called, and the loop is about to look what is ready."""


class SimulatedNetwork:
    """The four seams of a Reactor, and the world behind them.

    `seed`: a number, a `random.Random`, or hypothesis's `data`. `faults`: probabilities by name (see `FAULTS`);
    `script`: exactly these, as `chance.script()` returns them. `addresses`: this machine's. Buffers and latency are
    those of every connection. `violations` lists what no program should ever do; `chance.injected` what went wrong.
    `trace`: a file for what the reactors do, to be seen in the player (see `recording`).
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
        self.random = source_of(seed)  # for scenarios: not disturbed by what goes wrong
        self.seed = seed if isinstance(seed, int) else None
        self.chance = Chance(source_apart(seed, self.random), faults or {}, script)
        self.clock = SimulatedClock()
        self.wire = Wire(self.clock)
        self.descriptors = Descriptors(descriptor_limit)
        self.ports = Ports(self)
        self.signals = SimulatedSignals(self)
        self.addresses = tuple(addresses)
        self.send_buffer_bytes, self.receive_buffer_bytes = send_buffer_bytes, receive_buffer_bytes
        self.latency_s = latency_s
        self.poll_takes_s = 0.0  # a select that must not wait and finds nothing
        self.steps = 0  # system calls of the program
        self.datagrams_lost = 0  # for want of room in a receive buffer
        self.violations: list[str] = []
        self.watchers: list[Watcher] = []
        self.journal: list[str] | collections.deque[str] | None = None  # the calls, in words, if somebody wants them
        self.reactors: list[Reactor] = []
        self.recording = None if trace is None else Recording(trace)
        self._selectors: list[SimulatedSelector] = []
        self._shortages: dict[str, tuple[float, Fault]] = {}
        self._turned_s, self._turns_at_once = 0.0, 0
        self._until: Callable[[], object] | None = None
        self._end_s = math.inf  # of the run
        self._peers: list[Peer | PeerServer | DatagramPeer] = []
        self.found_ready = False  # the last time that somebody looked
        self._changes = self._changes_before = self._idle_looks = self._turns = 0

    # ------------------------------------------------------------ the seams

    def socket(self, family: int, type: int) -> Socket:
        """Return a new socket of the program under test: socket(2). Raise OSError when there are none left."""
        fault = self.enter("socket")
        if fault is not None:
            raise self.inject(fault).error()
        made = StreamSocket if type == socket.SOCK_STREAM else DatagramSocket
        return cast(Socket, made(self, family, True))

    def socketpair(self) -> tuple[Socket, Socket]:
        """Return two connected sockets, on which nothing goes wrong."""
        one = StreamSocket(self, socket.AF_INET, True)
        with closed_on_error(cast(Socket, one)):  # there may be a number for one, and none for the other
            other = StreamSocket(self, socket.AF_INET, True)
        one.faulty = other.faulty = False
        join(self, one, other)
        return cast(Socket, one), cast(Socket, other)

    def pipe(self) -> SplicePipe:
        """Return a pipe for bytes that go from socket to socket (`fastpath.splice`). Raise OSError for none left."""
        return SplicePipe(self)

    def selector(self) -> selectors.BaseSelector:
        """Return a new selector over this network's sockets."""
        made = SimulatedSelector(self)
        self._selectors.append(made)
        return made

    def reactor(self, *, busy_poll_s: float = 0.0, observer: EventSink | None = None) -> Reactor:
        """Return a Reactor on this network. There is one thread here: one reactor can run at a time.

        With `busy_poll_s` a look that finds nothing takes a part of that time: or the polling would never end.
        """
        self.poll_takes_s = busy_poll_s / POLLS
        told = observer if self.recording is None else self.recording.observer(observer)
        selector = self.selector()
        made = Reactor(
            selector=BusyPollSelector(selector, self.clock, busy_poll_s) if busy_poll_s else selector,
            clock=self.clock,
            sockets=self,
            signals=self.signals,
            observer=NOTHING_OBSERVED if told is None else Trace(told),
        )
        self.reactors.append(made)
        return made

    def run(self, reactor: Reactor, *, until: Callable[[], object] | None = None, for_s: float | None = None) -> None:
        """Turn the loop until it stops, until nothing more will happen, until `until()` is true or time is up.

        Raise AssertionError for what no program should do, RuntimeError if a million turns don't suffice.
        """
        self._until, self._turns = until, 0
        if for_s is not None:
            self._end_s = self.clock() + for_s
            self.wire.call_later(for_s, int)  # so that the world stops there
        self.changed()  # whoever calls this may have changed anything
        try:
            with contextlib.suppress(Quiet):
                reactor.run()
        finally:
            self._until, self._end_s = None, math.inf
            if self.recording is not None:
                self.recording.save()
        self.check()

    def settle(self) -> None:
        """Let everything that is under way arrive, without the program's doing."""
        with contextlib.suppress(Quiet):
            while True:
                self.go_on(None)

    def check(self) -> None:
        """Raise AssertionError if the program has done what no program should."""
        if self.violations:
            raise AssertionError(f"{'; '.join(self.violations)} (seed {self.seed}, {len(self.chance.injected)} faults)")

    # ------------------------------------------------------------ the outside

    def peer(self, address: Address, *, source: str = "") -> Peer:
        """Have somebody outside connect to `address`, from the host `source`."""
        sock = self._stranger_stream(address, source, 0)
        sock.connect_ex(address)
        return self.add_peer(Peer(self, sock))

    def peer_server(self, address: Address, answer: Callable[[Peer, bytes], object] | None = None) -> PeerServer:
        """Have somebody outside listen on `address`, and call `answer(peer, data)` for what each caller sends."""
        sock = self._stranger_stream(address, address[0], address[1])
        sock.listen()
        server = PeerServer(self, sock, answer)
        self._peers.append(server)
        return server

    def udp_peer(self, *, source: str = "192.0.2.1", port: int = 0) -> DatagramPeer:
        """Return somebody outside who sends and receives datagrams."""
        sock = DatagramSocket(self, _family(source), False)
        sock.setblocking(False)
        sock.bind((source, port))
        peer = DatagramPeer(sock)
        self._peers.append(peer)
        return peer

    def add_peer(self, peer: Peer) -> Peer:
        """Let a peer move from now on."""
        self._peers.append(peer)
        return peer

    def _stranger_stream(self, address: Address, source: str, port: int) -> StreamSocket:
        family = _family(address[0])
        sock = StreamSocket(self, family, False)
        sock.setblocking(False)
        sock.bind((source or STRANGERS[family], port))
        return sock

    def call_later(self, delay_s: float, action: Callable[[], object]) -> None:
        """Have something happen outside after `delay_s` seconds."""
        self.wire.call_later(delay_s, action)

    def partition(self, host: str, for_s: float = math.inf) -> None:
        """Cut a host off, for a while or until `heal`."""
        self.wire.partition(host, for_s)
        streams = [sock for sock in self.descriptors.open.values() if isinstance(sock, StreamSocket)]
        for sock in streams + [waiting for listener in streams for waiting in listener.queue]:
            if sock.link is not None and sock.remote and sock.remote[0] == host:
                sock.link.fall_silent()

    def heal(self, host: str) -> None:
        """Let a host be reached again."""
        self.wire.heal(host)
        self.changed()

    def plan(self, call: str, kind: str, amount: int = 1, *, after: int = 0) -> None:
        """Have one thing go wrong at the next `call`, or `after` so many of them. Raise ValueError if there is none."""
        self.chance.plan(call, kind, amount, after=after)

    # ------------------------------------------------------------ what goes on at every system call

    def enter(self, call: str, faulty: bool = True) -> Fault | None:
        """Begin a system call of the program: the world takes a step, signals come. Return what goes wrong."""
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
        peers = [peer for peer in self._peers if isinstance(peer, Peer) and not peer.over]
        if not peers:
            return
        self.inject(fault)
        peer = peers[fault.amount % len(peers)]
        if fault.kind == "partition":
            self.partition(peer.socket.host, fault.amount / 1e3)
        else:
            {"fin": peer.finish_now, "reset": peer.reset}[fault.kind]()

    def inject(self, fault: Fault) -> Fault:
        """Note that something went wrong. A shortage lasts: it goes on at the next such call, and counts once."""
        if fault.amount == 0:
            return fault
        self.changed()
        if fault.kind in SHORTAGES:
            end_s = self.clock() + min((fault.amount - 1) / 1e3, LONGEST_SHORTAGE_S)  # 1: this call alone
            self._shortages[fault.call] = (end_s, fault._replace(amount=0))
        if self.journal is not None:
            self.journal.append(f"    -> {fault}")
        for reactor in self.reactors:
            reactor.tell("fault", None, fault=str(fault))
        return self.chance.inject(fault)

    def changed(self) -> None:
        """Note that something is otherwise than before: a loop that turns for it doesn't spin."""
        self._changes += 1

    def observe(self, name: str, sock: StreamSocket, data: bytes) -> None:
        """Tell the watchers of a call on a stream."""
        self._changes += 1
        if sock.faulty:
            if self.journal is not None:
                self.journal.append(f"    {name}({sock.number}): {len(data)} bytes")
            for watcher in self.watchers:
                watcher.call(name, sock, data)

    def observe_datagram(self, name: str, sock: DatagramSocket, data: bytes, peer: Address, local: Address) -> None:
        """Tell the watchers of a datagram."""
        self._changes += 1
        if self.journal is not None:
            self.journal.append(f"    {name}({sock.number}): {len(data)} bytes, peer {peer}, local {local[0]}")
        for watcher in self.watchers:
            watcher.datagram(name, sock, data, peer, str(local[0]))

    def about_to_close(self, number: int) -> None:
        """Note a descriptor that is closed while a selector watches it: its next owner would be taken for it."""
        self.changed()
        if any(number in selector.get_map() for selector in self._selectors):
            self.violations.append(f"descriptor {number} was closed while it was watched")

    def about_to_select(self, timeout_s: float | None) -> None:
        """Look for a loop that spins, and let the world go on a little."""
        for watcher in self.watchers:
            watcher.select(timeout_s)
        if self.clock() >= self._end_s or (self._until is not None and self._until()):
            raise Quiet
        self._count_turn()
        self._look_for_a_spin()
        self.wire.run_due()

    def _look_for_a_spin(self) -> None:
        looks_a_turn = POLLS + 2 if self.poll_takes_s else 1  # at the most: a look that finds something ends the turn
        before = self._idle_looks
        idle = self._changes == self._changes_before
        self._idle_looks = before + (looks_a_turn if self.found_ready else 1) if idle else 0
        self._changes_before = self._changes
        if before < IDLE_TURNS * looks_a_turn <= self._idle_looks:
            self.violations.append("the loop spins: it turns, and nothing changes")

    def _count_turn(self) -> None:
        self._turns += 1
        self._turns_at_once += 1
        if self.clock() != self._turned_s:
            self._turned_s, self._turns_at_once = self.clock(), 1
        if self._turns_at_once > MOST_TURNS_AT_ONCE or self._turns > MOST_TURNS:
            raise RuntimeError(
                f"the loop hasn't come to rest in {self._turns:,} turns, {self._turns_at_once:,} at once"
            )

    def move_peers(self) -> bool:
        """Let every peer take its turn; return whether any did anything."""
        moved = False
        gone = 0
        for peer in self._peers:
            if peer.over:
                gone += 1
            elif peer.move():
                moved = True
        if gone * 2 > len(self._peers):
            self._peers = [peer for peer in self._peers if not peer.over]
        return moved

    def go_on(self, until_s: float | None) -> bool:
        """Let the world go on while the loop sleeps; return false when it is time to wake. Raise Quiet at the end."""
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

    # ------------------------------------------------------------ the wire

    def call(self, caller: StreamSocket) -> None:
        """Let a SYN arrive: the listener's kernel answers, not the listener."""
        if caller.state != CONNECTING or caller.remote is None:
            return
        host, port = caller.remote[:2]
        if not self.wire.is_open(caller.host, host):
            self.wire.when_healed(lambda: self.call(caller))
            return
        listener = self.ports.find(socket.SOCK_STREAM, caller.family, host, port)
        if not isinstance(listener, StreamSocket) or listener.state != LISTENING:
            if self.ports.knows(host):
                caller.die(errno.ECONNREFUSED)
        elif len(listener.queue) > listener.backlog:
            self.wire.call_later(SYN_RETRY_S, lambda: self.call(caller))
        else:
            answerer = StreamSocket(self, caller.family, False)
            answerer.options.update(listener.options)
            answerer.local, answerer.remote = caller.remote, caller.local
            join(self, caller, answerer)
            listener.queue.append(answerer)
            self.changed()

    def carry(self, sender: DatagramSocket, data: bytes, source: Address, destination: Address, interface: int) -> None:
        """Carry a datagram to whoever is bound there, if the way is open and luck has it."""
        host = str(self.canonical(sender.family, destination)[0])
        if interface and interface != self.interface_of(host):
            return  # forced through an interface from which there is no way
        if not self.wire.is_open(str(source[0]), host):
            return

        def deliver() -> None:
            self._deliver(sender, data, source, host, destination[1])

        fault = self.chance.draw("packet")
        if fault is None:
            self.wire.call_later(self.latency_s, deliver) if self.latency_s else deliver()
            return
        self.inject(fault)
        if fault.kind == "delay":
            self.wire.call_later(self.latency_s + fault.amount / 1e4, deliver)
        elif fault.kind == "duplicate":
            deliver()
            self.wire.call_later(self.latency_s + fault.amount / 1e4, deliver)

    def _deliver(self, sender: DatagramSocket, data: bytes, source: Address, host: str, port: int) -> None:
        if self.is_broadcast(host):
            for sock in self.ports.listeners_to_all(port):
                own = str(self.source_for(sock.family, source)[0])
                cast(DatagramSocket, sock).arrive(Packet(data, source, host, own, ROUTED_INTERFACE))
            return
        found = self.ports.find(socket.SOCK_DGRAM, sender.family, host, port)
        if isinstance(found, DatagramSocket):
            found.arrive(Packet(data, source, host, host, self.interface_of(host)))
        elif self.ports.knows(host) and sender.remote is not None:  # ICMP: told to connected sockets only
            sender.error = errno.ECONNREFUSED
            self.changed()

    # ------------------------------------------------------------ addresses

    def is_local(self, host: str) -> bool:
        """Tell whether an address is this machine's."""
        return host in self.addresses or host.startswith("127.")

    def is_wildcard(self, host: str) -> bool:
        """Tell whether an address stands for all of this machine's."""
        return host in WILDCARDS

    def is_broadcast(self, host: str) -> bool:
        """Tell whether an address stands for all machines of a network."""
        return host in BROADCASTS

    def interface_of(self, host: str) -> int:
        """Return the index of the interface that has an address of ours, or by which another one is reached.

        The first address of a family is on the interface that leads outside, each other one on its own.
        """
        if host.startswith("127.") or host == "::1":
            return LOOPBACK_INTERFACE
        own = self._reachable(_family(host))
        return ROUTED_INTERFACE + (own.index(host) if host in own else 0)

    def _reachable(self, family: int) -> list[str]:
        """Return our addresses of a family that other machines can reach."""
        return [own for own in self.addresses if _family(own) == family and not own.startswith("127.") and own != "::1"]

    def any_address(self, family: int) -> Address:
        """Return the wildcard of a family, with no port."""
        return ("0.0.0.0", 0) if family == socket.AF_INET else ("::", 0, 0, 0)  # noqa: S104

    def canonical(self, family: int, address: Address) -> Address:
        """Return an address as getsockname(2) gives it. Raise EINVAL for one of another family."""
        host = str(address[0]).partition("%")[0]
        if _family(host) != family:
            raise OSError(errno.EINVAL, "an address of another family")
        host = ipaddress.ip_address(host).compressed
        return (host, address[1]) if family == socket.AF_INET else (host, address[1], *(*address[2:], 0, 0)[:2])

    def source_for(self, family: int, destination: Address) -> Address:
        """Return the address that routing picks for what is sent to `destination`, with no port."""
        host = str(destination[0])
        if not self.is_local(host):
            usable = self._reachable(family)
            host = usable[0] if usable else host
        return self.canonical(family, (host, 0))


def _family(host: str) -> int:
    return family_of((host,))
