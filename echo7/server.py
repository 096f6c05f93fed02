"""EchoServer: listeners, endpoints, limits and the end, wired to a reactor that somebody else runs.

Law: a server that stops keeps its word first. It accepts no more and reads no more; what it has read, it delivers;
then it sends FIN and lingers until the caller's FIN, so that no reset destroys what is under way. Only what has not
ended by the drain timeout is aborted.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from echo7.logs.drops import DropLog, describe_peer, describe_source
from echo7.policy.echo import DatagramEcho, StreamEcho
from echo7.policy.guard import Guard
from echo7.policy.rate import Bucket, Rate, SourceBuckets, is_loopback, plain_host
from echo7.policy.reasons import ACCEPT, Reason
from echo7.policy.sources import BY_BIND, NO_LIMITS, ConnectionGate, DatagramGate, SourceLimits
from echo7.sockets.binding import Bound, bind_all
from reactor.connection import Connection
from reactor.datagram import Datagram
from reactor.fastpath.batch import Endpoint, batch_on
from reactor.fastpath.splice import MOST_PIPES, Splicer, pipes_on
from reactor.limits import BACKLOG, Limits
from reactor.listener import Listener
from reactor.loop import WRITE, Reactor
from reactor.sockets.addresses import Address, format_address, pack_host
from reactor.timers import Timer

if TYPE_CHECKING:  # only who has an idle timeout waits for it
    from echo7.policy.idle import IdleWatch

HELD_RETRY_S, HELD_TRIES = 0.01, 100  # answers that the kernel had no room for, before their socket is closed

logger = logging.getLogger("echo7")


class ServingAddress(NamedTuple):
    """One socket that is being served."""

    transport: str  # "tcp" or "udp"
    host: str  # numeric, with its scope if it is link-local
    port: int
    text: str  # as a person writes it: 127.0.0.1:7, [::1]:7


class Counters(NamedTuple):
    """What a server had done at one moment. Bytes and datagrams are those of the payload."""

    connections: int = 0
    connections_open: int = 0
    tcp_bytes_received: int = 0
    tcp_bytes_sent: int = 0
    datagrams_received: int = 0
    datagrams_sent: int = 0
    udp_bytes_received: int = 0
    udp_bytes_sent: int = 0
    datagrams_over_rate: int = 0  # answered all the same: rates are only logged
    drops: Mapping[str, int] = {}  # reason → how many: datagrams, callers that accept lost, that we refused or let go


def _serving(transport: str, address: Address) -> ServingAddress:
    text = format_address(address)
    host, _, port = text.rpartition(":")
    return ServingAddress(transport, host.strip("[]"), int(port), text)


def _peer_of(connection: Connection) -> Address | None:
    with contextlib.suppress(OSError):  # ENOTCONN: gone already
        return connection.socket.getpeername()  # type: ignore[no-any-return]
    return None


def _is_on_loopback(sock: socket.socket) -> bool:
    return is_loopback(plain_host(pack_host(sock.getsockname()[0])))


class EchoServer:
    """RFC 862 over TCP and UDP.

    `hosts`: addresses, names, `*`; none means loopback, IPv4 and IPv6. `port`: 0 takes one free number for all.
    `plain`: use no fast path: one datagram for each system call, and no pipes.
    `max_connections`: at that many, callers wait in the kernel's queue (None: as many as there are descriptors).
    `socket_buffer_bytes`: caps the kernel's memory per socket (SO_RCVBUF, SO_SNDBUF). `drain_timeout_s`: see `stop`.
    `idle_timeout_s`: let go of a connection when no byte has moved for so long, either way (None: never).
    `sources`: who is served at all, and how much one source may have.
    `pipes`: so many bulk connections at once may be echoed by splice(2), without copying (two descriptors each; Linux).
    `failed`: called when the last serving socket has broken, which no ordinary trouble does.
    """

    def __init__(
        self,
        hosts: Sequence[str] = (),
        port: int = 7,
        *,
        tcp: bool = True,
        udp: bool = True,
        plain: bool = False,
        max_connections: int | None = None,
        backlog: int = BACKLOG,
        socket_buffer_bytes: int | None = None,
        drain_timeout_s: float = 5.0,
        idle_timeout_s: float | None = None,
        sources: SourceLimits = NO_LIMITS,
        pipes: int = MOST_PIPES,
        failed: Callable[[], object] | None = None,
    ) -> None:
        if not (tcp or udp):
            raise ValueError("a server with neither TCP nor UDP serves nothing")
        if max_connections is not None and max_connections < 1:
            raise ValueError(f"max_connections must be at least 1, not {max_connections}; None is without a limit")
        if idle_timeout_s is not None and not 0 < idle_timeout_s < math.inf:
            raise ValueError(f"idle_timeout_s must be a number of seconds, not {idle_timeout_s}; None is without")
        self._bind = partial(
            bind_all, hosts=tuple(hosts), port=port, tcp=tcp, udp=udp, backlog=backlog, buffer_bytes=socket_buffer_bytes
        )
        self._plain = plain
        self._max_connections = max_connections
        self._drain_timeout_s = drain_timeout_s
        self._failed = failed
        self._limits = Limits(linger_timeout_s=drain_timeout_s)
        self._pipes = 0 if plain else pipes
        self._splicer: Splicer | None = None
        self._listeners: list[Listener] = []
        self._endpoints: list[Endpoint] = []
        self._sources, self._access = sources, sources.access()
        self._idle_timeout_s = idle_timeout_s
        self._idle: IdleWatch | None = None
        # None: every connection stays.
        self._gate: ConnectionGate | None = None if self._access is None else ConnectionGate(self._access)
        self._datagram_gates: list[DatagramGate] = []
        self._callers: dict[Connection, bytes] = {}  # whose connection_lost is still to come; their sources
        self._callers_so_far = 0
        self._caller_drops: dict[str, int] = {}
        self._bytes_received = self._bytes_sent = 0  # of the callers that have gone; `counters` adds the others
        self._debug = logger.isEnabledFor(logging.DEBUG)
        self._stopping = self._leaving = False  # the first one in a hurry
        self._stopped: list[Callable[[], object]] = []  # to be told when all is done
        self._reactor: Reactor | None = None
        self._deadline: Timer | None = None
        self.left_out: list[str] = []  # IPv6 addresses that this machine can't serve

    def start(self, reactor: Reactor, bound: Bound | None = None) -> None:
        """Bind and serve on `reactor`. Raise BindError (one line, nothing left bound).

        Names are looked up, which blocks: start before the reactor runs. `bound` gives sockets that are
        already there, such as inherited ones, in place of hosts and port. A server starts once: RuntimeError.
        """
        if self._reactor is not None:
            raise RuntimeError("this server has been started; make a new one")
        if bound is None:
            bound = self._bind(reactor.sockets)
        self._reactor, self.left_out = reactor, bound.left_out
        self._drop_log = DropLog(reactor.now)
        new_pipe = pipes_on(reactor.sockets) if self._pipes else None
        if new_pipe is not None:
            self._splicer = Splicer(new_pipe, most_pipes=self._pipes)
        if self._idle_timeout_s is not None:
            from echo7.policy.idle import IdleWatch

            self._idle = IdleWatch(reactor, self._idle_timeout_s, self._drop_caller)
        self._listeners = [self._serve_callers(reactor, sock) for sock in bound.tcp]
        self._endpoints = self._serve_datagrams(reactor, bound)

    def _serve_callers(self, reactor: Reactor, sock: socket.socket) -> Listener:
        most_per_source = self._sources.connections_on(_is_on_loopback(sock), self._max_connections)
        if most_per_source is not None and self._gate is None:
            self._gate = ConnectionGate()
        saturated = None if self._splicer is None else self._splicer.consider
        stream = StreamEcho(partial(self._connection_made, most_per_source), self._connection_lost, saturated)
        return Listener(reactor, sock, lambda: stream, self._limits, self._listener_lost)

    def _serve_datagrams(self, reactor: Reactor, bound: Bound) -> list[Endpoint]:
        guard = Guard((sock.getsockname()[1] for sock in bound.tcp + bound.udp), self._sources.ports)
        # One table for all sockets: a source is the same on each.
        buckets: dict[Rate, SourceBuckets] = {}
        total = self._sources.udp_rate_total and Bucket(self._sources.udp_rate_total)
        endpoints: list[Endpoint] = []
        for sock in bound.udp:
            # An inherited socket may have it on. Off, the kernel refuses to answer a subnet's broadcast address.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 0)
            rate = self._sources.udp_rate_on(_is_on_loopback(sock))
            gate = self._new_gate(rate and buckets.setdefault(rate, SourceBuckets(rate)), total)
            echo = DatagramEcho(guard, self._endpoint_lost, gate, self._datagrams_dropped)
            batched = None if self._plain else batch_on(reactor, sock, echo)
            endpoints.append(batched or Datagram(reactor, sock, echo))
        return endpoints

    def _new_gate(self, buckets: SourceBuckets | None, total: Bucket | None) -> DatagramGate | None:
        """Return what limits the sources of one endpoint; None where every source is answered."""
        if self._access is None and buckets is None and total is None:
            return None
        made = DatagramGate(
            self._running_on().now,
            access=self._access,
            buckets=buckets,
            total=total,
            spares_loopback=self._sources.udp_rate is BY_BIND,
            log_only=self._sources.log_only,
            noted=self._over_rate,
        )
        self._datagram_gates.append(made)
        return made

    @property
    def addresses(self) -> list[ServingAddress]:
        """The sockets being served, TCP first, with the ports that the kernel chose."""
        found = [("tcp", listener.address) for listener in self._listeners if not listener.closed]
        found += [("udp", endpoint.address) for endpoint in self._endpoints if not endpoint.closed]
        return [_serving(transport, address) for transport, address in found]

    @property
    def counters(self) -> Counters:
        """A snapshot: what has ended and what is under way, added up."""
        drops = dict(self._caller_drops)
        for endpoint in self._endpoints:
            for reason, count in endpoint.drops.items():
                drops[reason] = drops.get(reason, 0) + count
        for listener in self._listeners:
            for name, count in listener.errors.items():
                drops[ACCEPT + name] = drops.get(ACCEPT + name, 0) + count
        return Counters(
            connections=self._callers_so_far,
            connections_open=len(self._callers),
            tcp_bytes_received=self._bytes_received + sum(c.bytes_received for c in self._callers),
            tcp_bytes_sent=self._bytes_sent + sum(c.bytes_sent for c in self._callers),
            datagrams_received=sum(e.datagrams_received for e in self._endpoints),
            datagrams_sent=sum(e.datagrams_sent for e in self._endpoints),
            udp_bytes_received=sum(e.bytes_received for e in self._endpoints),
            udp_bytes_sent=sum(e.bytes_sent for e in self._endpoints),
            datagrams_over_rate=sum(gate.over_rate for gate in self._datagram_gates),
            drops=dict(sorted(drops.items())),
        )

    @property
    def handlers(self) -> tuple[list[Listener], list[Endpoint], list[Connection]]:
        """What it has on the loop, for people to look at."""
        return self._listeners, self._endpoints, list(self._callers)

    @property
    def stopping(self) -> bool:
        """Whether its end has begun."""
        return self._stopping

    def stop(self, stopped: Callable[[], object] | None = None) -> None:
        """Stop accepting and reading, deliver, FIN, linger; abort after the drain timeout; then call `stopped`.

        Asked again, it only notes the other `stopped`. Raise RuntimeError before `start`.
        """
        reactor = self._running_on()
        if stopped is not None:
            self._stopped.append(stopped)
        if self._stopping:
            self._check_stopped()
            return
        self._stopping = self._leaving = True
        for listener in self._listeners:
            listener.close()
        for endpoint in self._endpoints:
            endpoint.close()
        self._deadline = reactor.call_later(self._drain_timeout_s, self._give_up)
        for connection in self._connections():
            connection.close()
        self._check_stopped()

    def retire(self, stopped: Callable[[], object] | None = None) -> None:
        """Take no one new, and serve who is here to his own end, however long that takes; then call `stopped`.

        For a process whose place another has taken, on the same sockets: it closes only its own copies of them, and
        answers the datagrams first that it holds. `stop` may come later, and ends it sooner.
        """
        self._running_on()
        if stopped is not None:
            self._stopped.append(stopped)
        self._leaving, self._failed = True, None
        for listener in self._listeners:
            listener.close()
        self._close_endpoints(HELD_TRIES)

    def _close_endpoints(self, tries: int) -> None:
        for endpoint in self._endpoints:
            if not (tries and endpoint.interest & WRITE):
                endpoint.close()
        if any(not endpoint.closed for endpoint in self._endpoints):
            self._running_on().call_later(HELD_RETRY_S, self._close_endpoints, tries - 1)
        self._check_stopped()

    def abort(self) -> None:
        """Give up what a `stop` is still waiting for."""
        for connection in self._connections():
            connection.abort()

    def _connections(self) -> list[Connection]:
        """Return our open connections, in the order in which they came."""
        handlers = self._running_on().handlers
        return [h for h in handlers if isinstance(h, Connection) and h in self._callers]

    def _running_on(self) -> Reactor:
        if self._reactor is None:
            raise RuntimeError("this server hasn't been started")
        return self._reactor

    def _give_up(self) -> None:
        left = self._connections()
        cut = sum(1 for connection in left if connection.pending_bytes)
        text = "drain timeout: %d callers cut off with bytes pending, %d that had everything but hadn't closed"
        logger.warning(text, cut, len(left) - cut, extra={"event": "drain_timeout"})
        self.abort()

    def _check_stopped(self) -> None:
        if self._leaving and not self._callers and all(endpoint.closed for endpoint in self._endpoints):
            if self._deadline is not None:
                self._deadline.cancel()
            while self._stopped:
                self._running_on().call_soon(self._stopped.pop(0))

    def _connection_made(self, most_per_source: int | None, connection: Connection) -> None:
        source, peer = b"", _peer_of(connection) if self._gate is not None or self._debug else None
        if self._gate is not None:
            host = b"" if peer is None else pack_host(peer[0])
            reason = self._gate.refusal(host, most_per_source) if host else Reason.REFUSED_GONE
            if reason is not None:
                self._drop_caller(connection, reason)
                connection.abort()
                return
            source = self._gate.enter(host)
        if self._idle is not None:
            self._idle.watch(connection)
        if self._debug:
            logger.debug("connection from %s", describe_peer(peer))
        self._callers_so_far += 1
        self._callers[connection] = source
        if len(self._callers) == self._max_connections:
            for listener in self._listeners:
                listener.pause()

    def _connection_lost(self, connection: Connection, error: Exception | None) -> None:
        if connection not in self._callers:  # refused by the gate
            return
        if self._debug:
            how = "in order" if error is None else f"by {error!r}"
            logger.debug(
                "connection over, %s: %d bytes received, %d sent", how, connection.bytes_received, connection.bytes_sent
            )
        if self._splicer is not None:
            self._splicer.forget(connection)
        self._bytes_received += connection.bytes_received
        self._bytes_sent += connection.bytes_sent
        if len(self._callers) == self._max_connections:
            for listener in self._listeners:
                listener.resume()
        source = self._callers.pop(connection)
        if source and self._gate is not None:
            self._gate.leave(source)
        if self._idle is not None:
            self._idle.forget(connection)
        self._check_stopped()

    def _drop_caller(self, connection: Connection, reason: Reason) -> None:
        self._caller_drops[reason] = self._caller_drops.get(reason, 0) + 1
        self._drop_log.note(reason, lambda: describe_peer(_peer_of(connection)))

    def _over_rate(self, reason: Reason, source: bytes, count: int) -> None:
        self._drop_log.note(reason, partial(describe_source, source), count, event="over_rate")

    def _listener_lost(self, listener: Listener, error: OSError) -> None:
        self._check_serving()

    def _datagrams_dropped(self, reason: str, peer: Address | None, count: int) -> None:
        self._drop_log.note(reason, partial(describe_peer, peer), count)

    def _endpoint_lost(self, endpoint: Endpoint, error: Exception | None) -> None:
        if error is not None:  # None: closed by `stop`, or with the reactor
            name = format_address(endpoint.address)
            logger.error("endpoint %s is broken and closed: %s", name, error, extra={"event": "socket_broken"})
            self._check_serving()

    def _check_serving(self) -> None:
        if not (self._stopping or self.addresses) and self._failed is not None:
            failed, self._failed = self._failed, None
            failed()
