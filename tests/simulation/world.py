"""The whole EchoServer in a simulated world, and everything that must be true at every step.

`World` holds the real server on a SimulatedNetwork, its clients, and an Auditor that watches every system call. The
swarm, the state machine and the planted bugs all use it.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import functools
import math
import random
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast
from unittest import mock

from echo7.policy.echo import DatagramEcho, StreamEcho
from echo7.policy.guard import RESPONDER_PORTS
from echo7.policy.rate import Rate
from echo7.policy.sources import NO_LIMITS, SourceLimits
from echo7.server import EchoServer
from reactor import READ, WRITE, Connection, Datagram, Handler, Listener, Reactor, State
from reactor.fastpath.batch import DatagramBatch
from reactor.limits import DEFAULT_LIMITS, SEND_HOLD_S, Limits
from reactor.sockets.addresses import Address, family_of
from reactor.testing import CALLBACK_FAULTS, DatagramPeer, Peer, SimulatedNetwork, Watcher, pieces, random_mix
from reactor.testing.chance import mix_of
from reactor.testing.kernel.datagram import DatagramSocket
from reactor.testing.kernel.endpoint import SimulatedSocket
from reactor.testing.kernel.stream import StreamSocket

PORT = 7
DRAIN_S = 5.0
PATIENCE_S = 100.0  # longer than any delay or partition
TCP_HOSTS = ("10.0.0.1", "10.0.0.2", "fd00::1", "127.0.0.1")
UDP_HOSTS = (*TCP_HOSTS, "fd00::2", "10.0.0.255")
REFUSED_PORTS = (0, PORT, *RESPONDER_PORTS)
NO_DATAGRAMS = ("receive_", "accept_", "refused_", "idle_")  # reasons of drops that aren't received datagrams
ALMOST = 0.999999
USR1, TERM = 10, 15  # their numbers on Linux; no real signal is sent


def swarm_mix(seed: int) -> dict[str, float]:
    """Return the faults of a seed: those that any scenario gets, and those of callbacks."""
    return mix_of(seed) | random_mix(random.Random(f"{seed} mix of callbacks"), CALLBACK_FAULTS)


class Ledger:
    """One connection of the server: the bytes it received, and how many of them it has sent back."""

    def __init__(self, sock: SimulatedSocket) -> None:
        self.sock = sock
        self.received = bytearray()
        self.sent_bytes = 0
        self.moved_s = 0.0  # when a byte last moved, either way
        self.crowd = 0  # open connections of the same source when it was accepted
        self.owed_bytes: int | None = None  # fixed by our FIN: bytes that come while we linger are thrown away


def host_of(sock: SimulatedSocket) -> str:
    """Return the source of a connection."""
    return str(sock.remote[0]) if sock.remote is not None else ""


def interest_of(connection: Connection) -> int:
    """Return the interest of an echo connection: the table of states, written a second time."""
    pending_bytes = connection.pending_bytes
    held_back = pending_bytes > connection.limits.high_water_bytes
    reading = connection.state is State.LINGERING or (connection.state is State.OPEN and not held_back)
    return (READ if reading else 0) | (WRITE if pending_bytes else 0)


class Auditor(Watcher):
    """Watches the server's system calls. Findings go into `network.violations`; `select` raises them at once."""

    def __init__(self, network: SimulatedNetwork, reactor: Reactor, max_connections: int | None) -> None:
        self.network, self.reactor, self.max_connections = network, reactor, max_connections
        self.selector = network.selectors[-1]
        self.ledgers: dict[SimulatedSocket, Ledger] = {}
        self.unanswered: collections.Counter[tuple[Address, bytes, str]] = collections.Counter()
        self.requests = self.answers = 0
        self.began_s = network.clock()
        self.moved_s = network.clock()
        self.limits, self.idle_timeout_s = NO_LIMITS, math.inf
        self.server: EchoServer | None = None
        self.pipes = self.above_bound = 0  # only so many connections may be above their bound
        self.answered: collections.Counter[str] = collections.Counter()  # by source

    def call(self, name: str, sock: SimulatedSocket, data: bytes) -> None:
        self.moved_s = self.network.clock()
        if name == "accept":
            self.ledgers[sock] = Ledger(sock)
            self.ledgers[sock].moved_s = self.moved_s
            self.ledgers[sock].crowd = self._inside_from(host_of(sock))
            return
        ledger = self.ledgers[sock]
        if name in ("recv", "send"):
            ledger.moved_s = self.moved_s
        if name == "recv":
            ledger.received += data
        elif name == "fin":
            ledger.owed_bytes = len(ledger.received)
        elif name == "send":
            at = ledger.sent_bytes
            ledger.sent_bytes += len(data)
            if ledger.sent_bytes > len(ledger.received):
                self.found("more was sent than was received")
            elif ledger.received[at : at + len(data)] != data:
                self.found(f"changed bytes at {at}")

    def datagram(self, name: str, sock: SimulatedSocket, data: bytes, peer: Address, local: str) -> None:
        key = (peer, data, local)
        if name == "request":
            self.requests += 1
            self.unanswered[key] += 1
            return
        self.answers += 1
        self._check_rate(peer[0])
        self.unanswered[key] -= 1
        if self.unanswered[key] < 0:
            self.found(f"an unasked answer of {len(data)} bytes from {local}")
        if peer[1] in REFUSED_PORTS or self.network.routing.is_broadcast(local):
            self.found(f"an answer to port {peer[1]} from {local}")

    def select(self, timeout_s: float | None) -> None:
        """Check that state, interest and descriptors agree. All handlers have run."""
        owners = set()
        held = sum(isinstance(handler, Connection) for handler in self.reactor.handlers)
        if self.max_connections is not None and held > self.max_connections:
            self.found(f"{held} connections where {self.max_connections} may be")
        self._check_caps()
        self.above_bound = 0
        for handler in self.reactor.handlers:
            owners.add(handler.fileno())
            if handler.closed:
                self.found(f"{handler!r} is closed and still there")
            if isinstance(handler, Connection):
                self._check_connection(handler)
        for number, key in self.selector.get_map().items():
            if key.data.closed or key.events != key.data.interest or key.data.fileno() != number:
                self.found(f"descriptor {number} is watched for {key.events}, its handler is {key.data!r}")
        for number in self.network.descriptors.open.keys() - owners:
            sock = self.network.descriptors.open[number]
            if sock.faulty:
                self.found(f"descriptor {number} has no handler")
        self.network.check()

    def _inside_from(self, host: str) -> int:
        """Count the connections of one source, with lost ones that the server hasn't noticed yet."""
        connections = self.server.handlers[2] if self.server is not None else []
        return sum(host_of(cast(SimulatedSocket, connection.socket)) == host for connection in connections)

    def _check_caps(self) -> None:
        most = self.limits.connections
        if isinstance(most, int):
            held = collections.Counter(host_of(sock) for sock in self._held())
            if held and max(held.values()) > most:
                self.found(f"{held} connections, one source may have {most}")

    def _held(self) -> Iterator[SimulatedSocket]:
        for handler in self.reactor.handlers:
            if isinstance(handler, Connection):
                yield cast(SimulatedSocket, handler.socket)

    def _check_rate(self, host: str) -> None:
        rate = self.limits.udp_rate
        self.answered[host] += 1
        if isinstance(rate, Rate):
            most = rate.burst + rate.per_second * (self.network.clock() - self.began_s)
            if self.answered[host] > most:
                self.found(f"{self.answered[host]} answers to {host}, no more than {most} are allowed")

    def _check_connection(self, connection: Connection) -> None:
        if connection.interest != interest_of(connection):
            self.found(f"interest is {connection.interest}, the state says {interest_of(connection)}")
        limits = connection.limits
        self.above_bound += connection.pending_bytes > limits.bound_bytes
        if connection.pending_bytes > max(limits.bound_bytes, limits.pipe_bytes) or self.above_bound > self.pipes:
            self.found(
                f"{connection.pending_bytes} bytes are pending; {self.above_bound} connections are above the bound"
            )
        ledger = self.ledgers[cast(SimulatedSocket, connection.socket)]
        owed_bytes = len(ledger.received) if ledger.owed_bytes is None else ledger.owed_bytes
        if ledger.sent_bytes + connection.pending_bytes != owed_bytes:
            self.found(f"{len(ledger.received)} bytes came, {ledger.sent_bytes} went, {connection.pending_bytes} wait")

    def found(self, what: str) -> None:
        self.network.violations.append(what)


class World:
    """A running server, and its clients."""

    def __init__(
        self,
        network: SimulatedNetwork,
        max_connections: int | None = None,
        *,
        busy_poll_s: float = 0.0,
        limits: Limits = DEFAULT_LIMITS,
        pipes: int = 0,
        plain: bool = False,
        idle_timeout_s: float | None = None,
        sources: SourceLimits = NO_LIMITS,
    ) -> None:
        self.network, self.max_connections = network, max_connections
        self.reactor = network.reactor(busy_poll_s=busy_poll_s)
        self.auditor = Auditor(network, self.reactor, max_connections)
        network.watchers.append(self.auditor)
        # of small pipes, some get full
        pipe_bytes = 2 * limits.bound_bytes if pipes and not plain else 0
        self.limits = limits._replace(linger_timeout_s=DRAIN_S, pipe_bytes=pipe_bytes)
        with mock.patch("echo7.server.Limits", return_value=self.limits):  # no option of the server
            self.server = EchoServer(
                ["*"], PORT, drain_timeout_s=DRAIN_S, max_connections=max_connections, pipes=pipes, plain=plain,
                idle_timeout_s=idle_timeout_s, sources=sources,
            )  # fmt: skip
        self.auditor.limits, self.auditor.server = sources, self.server
        self.auditor.pipes = 0 if plain else pipes
        if idle_timeout_s is not None:
            self.auditor.idle_timeout_s = idle_timeout_s
        self.server.start(self.reactor)
        self.serving = self.server.addresses
        self.peers: list[Peer] = []
        self.datagram_peers: list[DatagramPeer] = []
        self.asked: collections.Counter[tuple[Address, bytes]] = collections.Counter()
        self.began_s = network.clock()
        self.stopped_s: float | None = None  # when stopping began
        self.running = True
        self.signals_seen = 0
        self.reactor.add_signal_handler(TERM, self.stop)
        self.reactor.add_signal_handler(USR1, self.look)

    def stop(self) -> None:
        """Do what the command does on SIGTERM; here a second signal changes nothing."""
        if self.stopped_s is None:
            self.stopped_s = self.network.clock()
            self.server.stop(self._stopped)

    def _stopped(self) -> None:
        assert self.stopped_s is not None
        took_s = self.network.clock() - self.stopped_s
        if took_s > DRAIN_S + 0.1 and "select.late" not in self.network.chance.counts():
            self.auditor.found(f"the end took {took_s} s")
        self.running = False
        self.reactor.stop()

    def look(self) -> None:
        """Do what the command does on SIGUSR1."""
        self.signals_seen = self.network.signals.raised[USR1]
        counters = self.server.counters
        if counters.tcp_bytes_sent > counters.tcp_bytes_received:
            self.auditor.found("the counters say that more was sent than received")

    def call(self, host: str = "10.0.0.1", source: str = "") -> Peer:
        """Let a client connect."""
        peer = self.network.peer((host, PORT), source=source)
        self.peers.append(peer)
        return peer

    def datagram_peer(self, family: int = socket.AF_INET, port: int = 0) -> DatagramPeer:
        """Add a peer that sends datagrams."""
        source = "192.0.2.7" if family == socket.AF_INET else "2001:db8::7"
        peer = self.network.udp_peer(source=source, port=port)
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        self.datagram_peers.append(peer)
        return peer

    def ask(self, peer: DatagramPeer, data: bytes, host: str) -> None:
        """Send a datagram to the server."""
        peer.send(data, (host, PORT))
        self.asked[peer.address, data] += 1

    def finish(self) -> None:
        """Let everything come to rest, stop the service as SIGTERM does, and check everything."""
        self.network.run(self.reactor, until=self._is_enough)
        if self.stopped_s is None:
            self._check_served()
            self.network.signals.raise_signal(TERM)
        self.network.run(self.reactor)
        self.network.settle()
        if self.running or self.server.counters.connections_open:
            self.auditor.found("the server doesn't end, or has ended with connections open")
        self._check_ends()
        self._check_datagrams()
        self.network.check()

    def _is_enough(self) -> bool:
        """Return whether to end the run. At rest a run ends anyway, but a full server tries accept forever."""
        nothing_moves = self.network.clock() > self.auditor.moved_s + PATIENCE_S
        return self.stopped_s is not None or (self.network.descriptors.is_full and nothing_moves)

    def _check_served(self) -> None:
        """Check a server that is at rest and was not stopped: every client that wasn't reset has all its bytes."""
        if not self.network.descriptors.is_full:  # else the run was cut off
            self._check_nothing_is_missing()
        for sock in self.network.descriptors.open.values():
            if isinstance(sock, DatagramSocket) and sock.inbox:
                self.auditor.found("an endpoint has stopped receiving")
            full = self.network.descriptors.is_full  # the run was cut off: dead connections may be noticed later
            if isinstance(sock, StreamSocket) and sock.link is not None and sock.link.fate and not full:
                self.auditor.found(f"a dead connection is kept: {sock.link.fate}")
        hit = self.hit("close", "abort", "lost")
        gone = {(sock.type, sock.family) for sock in hit if sock.remote is None}  # listeners and endpoints
        if len(self.server.addresses) + sum(sock.remote is None for sock in hit) < len(self.serving):
            self.auditor.found(f"of {self.serving}, only {self.server.addresses} are still served")
        descriptors = self.network.descriptors
        if self.network.signals.raised[USR1] != self.signals_seen and not descriptors.is_full:
            self.auditor.found("a signal was raised, and its handler was not called")
        full = self.server.counters.connections_open == self.max_connections or descriptors.is_full
        for peer in self.peers:
            refused = peer.link is None and peer.error is not None and peer.error.errno == errno.ECONNREFUSED
            if refused and (socket.SOCK_STREAM, peer.socket.family) not in gone:
                self.auditor.found("a client was refused")
            if peer.lost or peer.paused or peer.link is None or (peer.socket.closed and not peer.eof):
                continue
            if peer.link.other(peer.socket) in hit:
                continue  # our end was closed first; `_check_ends` compares what was read before
            if full and (not peer.link.is_open or peer.link.other(peer.socket) not in self.auditor.ledgers):
                continue  # the run was cut off while it waited for a place, or behind a partition
            if peer.received != peer.sent:
                self.auditor.found(
                    f"{len(peer.sent)} bytes were sent, {len(peer.received)} came back, and that was all"
                )
            if peer.finished and not peer.eof:
                self.auditor.found("a client has sent FIN and never got one")

    def hit(self, *kinds: str) -> set[SimulatedSocket]:
        """Return the server's sockets to which a callback has done this."""
        return {sock for sock, kind in self.network.callbacks.hit.items() if kind in kinds}

    def _check_ends(self) -> None:
        for peer in self.peers:
            if not peer.sent.startswith(peer.received):
                self.auditor.found("what came back isn't what was sent")
            if peer.link is None:
                continue
            end = peer.link.other(peer.socket)
            ledger = self.auditor.ledgers.get(end)
            if ledger is None or end in self.hit("abort", "lost"):
                continue  # never accepted, or cut off by a callback
            if not peer.link.fate:
                if ledger.owed_bytes is not None and ledger.sent_bytes != ledger.owed_bytes:
                    self.auditor.found(f"FIN after {ledger.sent_bytes} of {ledger.owed_bytes} bytes")
                gave_up = peer.paused or (peer.socket.closed and not peer.eof)
                if not gave_up and (peer.received != ledger.received[: ledger.owed_bytes] or not peer.eof):
                    self.auditor.found(f"{len(ledger.received)} bytes were read, {len(peer.received)} came back")
            elif peer.link.broken_by is end:
                self._check_reset(peer, end)

    def _check_reset(self, peer: Peer, end: StreamSocket) -> None:
        """Check that a reset by the server has a reason: a fault, a refusal or a timeout."""
        link = peer.link
        assert link is not None
        if link.fate.startswith(("fault", "accept failed", "its listener was closed")):
            return
        if self.stopped_s is not None and link.reset_s >= self.stopped_s + DRAIN_S:
            return  # the drain timeout
        if end.shut_s is not None and link.reset_s >= end.shut_s + DRAIN_S:
            return  # the linger timeout is the same
        ledger, most = self.auditor.ledgers[end], self.auditor.limits.connections
        if isinstance(most, int) and ledger.crowd >= most and not ledger.received:
            return  # over the limit of its source
        if link.reset_s >= ledger.moved_s + self.auditor.idle_timeout_s * ALMOST:
            return  # stuck
        self.auditor.found(f"the server reset a connection without need: {link.fate}")

    def _check_datagrams(self) -> None:
        counters, auditor = self.server.counters, self.auditor
        if counters.tcp_bytes_sent != sum(ledger.sent_bytes for ledger in auditor.ledgers.values()):
            auditor.found(f"other bytes were sent than {counters} says")
        if (counters.datagrams_received, counters.datagrams_sent) != (auditor.requests, auditor.answers):
            auditor.found(f"{auditor.requests} requests, {auditor.answers} answers; {counters}")
        if not 0 <= self._counted_twice() <= counters.drops.get("callback", 0):
            self.auditor.found(f"datagrams unaccounted for: {counters}")
        answered = collections.Counter(
            (peer.address, data) for peer in self.datagram_peers for data, _ in peer.received
        )
        for key, count in answered.items():
            if not self.asked[key]:
                self.auditor.found("an answer that no peer has asked for")
            if count > self.asked[key] and "packet.duplicate" not in self.network.chance.counts():
                self.auditor.found("more answers than questions")

    def _counted_twice(self) -> int:
        """Return how many datagrams were answered or dropped, and refused too because their callback then raised.

        A Datagram can't know what its protocol has done before it raised.
        """
        counters = self.server.counters
        refused = sum(n for name, n in counters.drops.items() if not name.startswith(NO_DATAGRAMS))
        return counters.datagrams_sent + refused - counters.datagrams_received

    def _check_nothing_is_missing(self) -> None:
        """Check that every valid datagram got its answer, unless a fault has lost one of the two."""
        # of a family whose endpoint was hit, nobody answers any more
        gone = {sock.family for sock in self.hit("close", "abort", "lost") if isinstance(sock, DatagramSocket)}
        deserving = sum(
            n
            for (address, _), n in self.asked.items()
            if address[1] not in REFUSED_PORTS and family_of(address) not in gone
        )
        answered = sum(len(peer.received) for peer in self.datagram_peers if peer.socket.family not in gone)
        injected = self.network.chance.counts()
        kinds = {name.partition(".")[2] for name in injected if name.startswith(("recvmsg.", "sendmsg."))}
        # The next call reports a saved error, whichever datagram it carries.
        excuses = {"destination_broadcast", "rate_source", "rate_total"} | {f"send_{kind}" for kind in kinds}
        late = [fault for fault in self.network.chance.injected if (fault.call, fault.kind) == ("select", "late")]
        stopped_s = sum(fault.amount for fault in late) / 1e3
        if stopped_s > SEND_HOLD_S or any(name.startswith("modify.") for name in injected):
            excuses.add("busy")  # the endpoint hears too late that there is room again (`sockets/congestion.py`)
        if any(name.startswith("callback.") for name in injected):
            excuses.add("callback")  # a batch that raised has refused its datagrams; a Datagram may have answered too
        excused = sum(n for reason, n in self.server.counters.drops.items() if reason in excuses)
        excused += self.network.datagrams_lost + injected.get("packet.loss", 0) - self._counted_twice()
        if answered + excused < deserving:
            self.auditor.found(f"{deserving} datagrams deserved an answer, {answered} got one")


@contextlib.contextmanager
def closed_handlers_watched(network: SimulatedNetwork) -> Iterator[None]:
    """Record a violation for each handler that runs after its close, even if it does nothing."""

    def watched(on_event: Callable[[Any, int], None]) -> Callable[[Any, int], None]:
        def checked(self: Any, mask: int) -> None:
            if self.closed:
                network.violations.append(f"{self!r} is closed, and was called")
            on_event(self, mask)

        return checked

    with contextlib.ExitStack() as stack:
        for kind in (Connection, Listener, Datagram, DatagramBatch):
            stack.enter_context(mock.patch.object(kind, "on_event", watched(kind.on_event)))
        yield


@contextlib.contextmanager
def last_callbacks_counted(network: SimulatedNetwork) -> Iterator[None]:
    """Record a violation for each connection or endpoint that isn't told once that it is over.

    The same for a handler that is told twice that its descriptor is lost.
    """
    ends: dict[object, int] = {}
    losses: collections.Counter[object] = collections.Counter()
    register, failed = Reactor.register, Reactor.callback_failed

    def registered(self: Reactor, handler: Handler) -> None:
        register(self, handler)
        if isinstance(handler, Connection | Datagram | DatagramBatch):
            ends[handler] = 0

    def noted(self: Reactor, error: BaseException, owner: Handler | None = None, tag: str = "callback_raised") -> None:
        losses[owner] += tag == "descriptor_lost"
        failed(self, error, owner, tag)

    def ended(end: Callable[..., None]) -> Callable[..., None]:
        def counted(self: object, handler: object, error: Exception | None) -> None:
            ends[handler] += 1
            end(self, handler, error)

        return counted

    with (
        mock.patch.object(Reactor, "register", registered),
        mock.patch.object(Reactor, "callback_failed", noted),
        mock.patch.object(StreamEcho, "connection_lost", ended(StreamEcho.connection_lost)),
        mock.patch.object(DatagramEcho, "endpoint_lost", ended(DatagramEcho.endpoint_lost)),
    ):
        yield
    network.violations += [
        f"{who!r} was told {count} times that it is over" for who, count in ends.items() if count != 1
    ] + [f"{who!r} was told {count} times that its descriptor is lost" for who, count in losses.items() if count > 1]


def limits_scenario(network: SimulatedNetwork) -> World:
    """Run the swarm with limits for each source, and an idle timeout longer than any delay or partition."""
    source = network.random
    limits = SourceLimits(
        connections=source.choice((1, 2, 3)),
        udp_rate=source.choice((None, Rate(1.0, 5))),
        udp_rate_total=source.choice((None, Rate(1.0, 4))),
    )
    with closed_handlers_watched(network):
        return _swarm(network, sources=limits, idle_timeout_s=source.choice((1.5, 4.0)) * PATIENCE_S)


def swarm_scenario(network: SimulatedNetwork) -> World:
    """Let random clients use the service in a random world."""
    with closed_handlers_watched(network):
        return _swarm(network)


def _swarm(network: SimulatedNetwork, **limits: Any) -> World:
    with last_callbacks_counted(network), network.callbacks.of(StreamEcho, DatagramEcho):
        return _live(network, **limits)


def _live(network: SimulatedNetwork, **limits: Any) -> World:
    source = network.random
    network.send_buffer_bytes = int(2 ** source.uniform(0, 16))
    network.receive_buffer_bytes = int(2 ** source.uniform(0, 16))
    network.latency_s = source.choice((0.0, 0.0, 0.001, 0.3))
    network.descriptors.limit = source.choice((1024, 1024, 12))
    network.signals.at_random = source.choice(((USR1,), (USR1,), (USR1,), (USR1, USR1, USR1, TERM)))
    world = World(
        network,
        max_connections=source.choice((None, None, 1, 3)),
        busy_poll_s=source.choice((0.0, 0.0, 0.0, 0.0002)),
        pipes=source.choice((0, 1, 3)),
        limits=DEFAULT_LIMITS._replace(
            receive_bytes=source.choice((65_536, int(2 ** source.uniform(0, 12)), int(2 ** source.uniform(0, 6)))),
            high_water_bytes=source.choice((65_536, int(2 ** source.uniform(0, 10)))),
        ),
        plain=source.choice((False, True)),
        **limits,
    )
    for _ in range(source.randrange(1, 9)):
        network.call_later(source.choice((0.0, source.uniform(0, 3))), lambda: client(world, source))
    for _ in range(source.randrange(4)):
        crowd_of_datagrams(world, source)
    if source.random() < 0.3:
        network.call_later(source.uniform(0, 4), lambda: network.signals.raise_signal(TERM))
    world.finish()
    return world


def client(world: World, source: random.Random) -> None:
    """Add one TCP client, with a random temper."""
    peer = world.call(source.choice(TCP_HOSTS))
    peer.read_bytes = int(2 ** source.uniform(0, 16))
    peer.write_bytes = int(2 ** source.uniform(0, 16))
    temper = source.choice("finish finish finish finish idle reset close vanish pause pause slow cut".split())
    buffers = world.network.send_buffer_bytes, world.network.receive_buffer_bytes
    receive_bytes = world.limits.receive_bytes
    most = 500 * min(peer.read_bytes, peer.write_bytes, receive_bytes, *buffers)  # so that the run ends in time
    if temper == "pause":  # enough to fill every buffer, or a little more than the kernels hold
        at_once = min(*buffers, peer.write_bytes, receive_bytes)
        wide = at_once >= 2048 and source.random() < 0.5
        most = 400_000 if wide else min(sum(buffers) + source.randrange(1, 500), 2000 * at_once)
    data = source.randbytes(most if temper == "pause" else min(most, int(2 ** source.uniform(0, 18))))
    for piece in pieces(source, data):
        peer.send(piece, urgent=source.random() < 0.1)
    later = world.network.call_later
    moment_s = source.choice((0.0, source.uniform(0, 5)))
    if temper == "finish":
        peer.finish()
    elif temper == "slow":
        peer.pause()
        peer.finish()
        later(moment_s, peer.resume)
    elif temper == "pause":
        peer.pause()
    elif temper == "cut":
        later(moment_s, peer.finish_now)
    elif temper != "idle":
        later(moment_s, {"reset": peer.reset, "close": peer.close, "vanish": peer.vanish}[temper])


def crowd_of_datagrams(world: World, source: random.Random) -> None:
    """Add one UDP client that sends a few datagrams of all sizes."""
    family = source.choice((socket.AF_INET, socket.AF_INET6))
    port = source.choice((0, 0, 0, 0, 19, 53))
    try:
        peer = world.datagram_peer(family, port)
    except OSError:  # the port is taken
        return
    moment_s = 0.0
    for _ in range(source.randrange(1, 20)):
        data = source.randbytes(source.choice((0, 1, 512, 1472, 1473, 8193, 65_507)))
        host = source.choice([host for host in UDP_HOSTS if (":" in host) == (family == socket.AF_INET6)])
        moment_s = source.choice((moment_s, source.uniform(0, 2)))  # some arrive at once, as a batch
        world.network.call_later(moment_s, functools.partial(world.ask, peer, data, host))
