"""EchoServer: listeners, endpoints, limits and an orderly end, on a reactor that the caller runs.

Law: a stopping server accepts and reads no more, but delivers what it has read. Then it sends FIN, and lingers until
the client's FIN, so that no reset destroys data in flight. Only what is left at the drain timeout is aborted.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import math
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from echo7.logs.drops import DropLog, describe_peer, describe_source
from echo7.logs.log import event as log_event
from echo7.policy.echo import DatagramEcho, StreamEcho
from echo7.policy.guard import Guard
from echo7.policy.loops import LoopWatch
from echo7.policy.rate import Rate, SourceBuckets
from echo7.policy.reasons import ACCEPT, Reason
from echo7.policy.shares import Shares
from echo7.policy.sources import BY_BIND, NO_LIMITS, ConnectionGate, DatagramGate, SourceLimits
from echo7.sockets.binding import Bound, bind_all, on_loopback
from reactor.connection import Connection
from reactor.datagram import Datagram
from reactor.fastpath.batch import Endpoint, batch_on
from reactor.fastpath.splice import MOST_PIPES, Splicer, pipes_on
from reactor.limits import ACCEPTS_PER_TURN, BACKLOG, Limits
from reactor.listener import Listener
from reactor.loop import WRITE, Reactor
from reactor.sockets.addresses import Address, format_address, pack_host
from reactor.timers import Timer

if TYPE_CHECKING:
    from echo7.policy.crowd import Crowd
    from echo7.policy.idle import IdleWatch

# How often a full server looks for a silent connection to close.
ROOM_RETRY_S = 1.0
# A retiring server tries so often to send the answers that the kernel had no room for.
HELD_RETRY_S, HELD_TRIES = 0.01, 100

logger = logging.getLogger("echo7")


class ServingAddress(NamedTuple):
    """One socket that is being served: "tcp" or "udp"; a numeric host, with its scope; `text` is for people."""

    transport: str
    host: str
    port: int
    text: str


def serving_address(transport: str, address: Address) -> ServingAddress:
    """Return the ServingAddress of a socket."""
    text = format_address(address)
    host, port = text.rsplit(":", 1)
    return ServingAddress(transport, host.strip("[]"), int(port), text)


class Counters(NamedTuple):
    """What a server had done at one moment. Bytes are those of the payload.

    `datagrams_over_rate` were answered all the same: rates are only logged. `drops` counts by reason: datagrams without
    an answer, errors of accept(2), connections that were refused or closed when idle.
    """

    connections: int = 0
    connections_open: int = 0
    tcp_bytes_received: int = 0
    tcp_bytes_sent: int = 0
    datagrams_received: int = 0
    datagrams_sent: int = 0
    udp_bytes_received: int = 0
    udp_bytes_sent: int = 0
    datagrams_over_rate: int = 0
    drops: Mapping[str, int] = {}


def _peer_of(connection: Connection) -> Address | None:
    # ENOTCONN: the client has gone
    with contextlib.suppress(OSError):
        return connection.socket.getpeername()  # type: ignore[no-any-return]
    return None


class EchoServer:
    """RFC 862 over TCP and UDP. It owns its listeners, endpoints and connections.

    `hosts`: addresses, names, `*`; none means loopback, IPv4 and IPv6. `port`: 0 takes one free number for all.
    `plain`: use no fast path: one datagram for each system call, and no pipes.
    `max_connections`: at that many, clients wait in the kernel's queue (None: no limit but the descriptors).
    `connections_possible`: how many the descriptors allow, to be reported.
    `socket_buffer_bytes`: caps the kernel's memory per TCP client (SO_RCVBUF, SO_SNDBUF). `drain_timeout_s`: `stop`.
    `idle_timeout_s`: close a connection when no byte has moved for this long, either way (None: never).
    `sources`: which sources are served, and how much one source may have.
    `pipes`: how many bulk connections at once may use splice(2), which doesn't copy (two descriptors each; Linux).
    `failed`: called when the last serving socket is broken. Ordinary errors don't break a socket.
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
        connections_possible: int | None = None,
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
        self._plain, self._pipes = plain, 0 if plain else pipes
        self._max_connections, self._idle_timeout_s = max_connections, idle_timeout_s
        # as configured, and no more than the descriptors allow; 0: no limit
        limits = [limit for limit in (max_connections, connections_possible) if limit is not None]
        self.connection_limits = max_connections or 0, min(limits, default=0)
        self._drain_timeout_s, self._limits = drain_timeout_s, Limits(linger_timeout_s=drain_timeout_s)
        self._sources, self._access = sources, sources.access()
        self._failed = failed
        self._reactor: Reactor | None = None
        self._listeners: list[Listener] = []
        self._endpoints: list[Endpoint] = []
        # connections that are not lost yet, and the source of each
        self._clients: dict[Connection, bytes] = {}
        self._splicer: Splicer | None = None
        self._idle: IdleWatch | None = None
        # None: no silent connection makes room
        self._crowd: Crowd | None = None
        self._room_timer: Timer | None = None
        # None: no connection is refused
        self._gate: ConnectionGate | None = (
            None if self._access is None else ConnectionGate(self._access, sources.prefix)
        )
        # `counters` adds the bytes of open connections
        self._accepted = self._bytes_received = self._bytes_sent = self._datagrams_over_rate = 0
        self._drops: dict[str, int] = {}
        self._debug = logger.isEnabledFor(logging.DEBUG)
        # stopping: `stop` has been called; leaving: `stop` or `retire`
        self.stopping = self._leaving = False
        self._stopped: list[Callable[[], object]] = []
        self._deadline: Timer | None = None
        # addresses that this machine can't serve, as it has no IPv6
        self.left_out: list[str] = []

    def start(self, reactor: Reactor, bound: Bound | None = None) -> None:
        """Bind and serve on `reactor`. Raise BindError (one line, nothing left bound).

        Names are looked up, which blocks: start before the reactor runs. `bound` gives sockets that are
        already there, such as inherited ones, in place of hosts and port. A server starts once: RuntimeError.
        """
        if self._reactor is not None:
            raise RuntimeError("this server has been started; make a new one")
        if bound is None:
            bound = self._bind(reactor.sockets)
        elif not bound.is_prepared:
            # imported only for sockets that the caller has made
            from echo7.sockets.adoption import check

            check(bound)
        self._reactor, self.left_out = reactor, bound.left_out
        self._drop_log = DropLog(reactor.now)
        new_pipe = pipes_on(reactor.sockets) if self._pipes else None
        if new_pipe is not None:
            self._splicer = Splicer(new_pipe, most_pipes=self._pipes)
        if self._idle_timeout_s is not None:
            # imported only when an idle timeout is set
            from echo7.policy.idle import IdleWatch

            self._idle = IdleWatch(reactor, self._idle_timeout_s, self._drop_connection)
        if not (self._sources.keep_silent or self._max_connections is None or all(map(on_loopback, bound.tcp))):
            # imported only when other machines can fill the server
            from echo7.policy.crowd import Crowd

            self._crowd = Crowd(reactor)
        self._listeners = [self._serve_connections(reactor, sock) for sock in bound.tcp]
        self._endpoints = self._serve_datagrams(reactor, bound)

    def _serve_connections(self, reactor: Reactor, sock: socket.socket) -> Listener:
        most_per_source = self._sources.connections_on(on_loopback(sock), self._max_connections)
        if (self._crowd is not None or most_per_source is not None) and self._gate is None:
            self._gate = ConnectionGate(prefix=self._sources.prefix)
        saturated = None if self._splicer is None else self._splicer.consider
        stream = StreamEcho(partial(self._connection_made, most_per_source), self._connection_lost, saturated)
        room = (lambda: ACCEPTS_PER_TURN) if self._crowd is None else partial(self._room, self._crowd)
        return Listener(
            reactor, sock, lambda: stream, self._limits, lambda listener, error: self._check_serving(), room
        )

    def _serve_datagrams(self, reactor: Reactor, bound: Bound) -> list[Endpoint]:
        own_ports = {sock.getsockname()[1] for sock in bound.sockets}
        guard = Guard(own_ports, self._sources.ports)
        loops = None if self._sources.answer_loops else LoopWatch(reactor.now, own_ports)
        # one table for all sockets: a source is the same on each
        tables: dict[Rate, SourceBuckets] = {}
        total = self._sources.udp_rate_total and SourceBuckets(self._sources.udp_rate_total, 1)
        endpoints: list[Endpoint] = []
        for sock in bound.udp:
            rate = self._sources.udp_rate_on(on_loopback(sock))
            buckets = rate and tables.setdefault(rate, SourceBuckets(rate))
            gate = None
            if (self._access, buckets, total) != (None, None, None):
                gate = DatagramGate(
                    reactor.now, access=self._access, prefix=self._sources.prefix, buckets=buckets, total=total,
                    spares_loopback=self._sources.udp_rate is BY_BIND, log_only=self._sources.log_only,
                    over_rate=self._over_rate,
                )  # fmt: skip
            shares = Shares(reactor.now)
            echo = DatagramEcho(guard, self._endpoint_lost, gate, self._datagrams_dropped, loops, shares)
            batched = None if self._plain else batch_on(reactor, sock, echo)
            endpoints.append(batched or Datagram(reactor, sock, echo))
        return endpoints

    @property
    def addresses(self) -> list[ServingAddress]:
        """The sockets being served, TCP first, with the ports that the kernel chose."""
        tcp = [serving_address("tcp", listener.address) for listener in self._listeners if not listener.closed]
        return tcp + [serving_address("udp", endpoint.address) for endpoint in self._endpoints if not endpoint.closed]

    @property
    def counters(self) -> Counters:
        """A snapshot: what has ended and what is under way, added up."""
        drops = collections.Counter(self._drops)
        for endpoint in self._endpoints:
            drops.update(endpoint.drops)
        for listener in self._listeners:
            drops.update({ACCEPT + name: count for name, count in listener.errors.items()})
        return Counters(
            connections=self._accepted,
            connections_open=len(self._clients),
            tcp_bytes_received=self._bytes_received + sum(c.bytes_received for c in self._clients),
            tcp_bytes_sent=self._bytes_sent + sum(c.bytes_sent for c in self._clients),
            datagrams_received=sum(e.datagrams_received for e in self._endpoints),
            datagrams_sent=sum(e.datagrams_sent for e in self._endpoints),
            udp_bytes_received=sum(e.bytes_received for e in self._endpoints),
            udp_bytes_sent=sum(e.bytes_sent for e in self._endpoints),
            datagrams_over_rate=self._datagrams_over_rate,
            drops=dict(sorted(drops.items())),
        )

    @property
    def handlers(self) -> tuple[list[Listener], list[Endpoint], list[Connection]]:
        """What it has on the loop, to be looked at."""
        return self._listeners, self._endpoints, list(self._clients)

    def stop(self, stopped: Callable[[], object] | None = None) -> None:
        """Stop accepting and reading, deliver, FIN, linger; abort after the drain timeout; then call `stopped`.

        A second call only adds another `stopped`. Raise RuntimeError before `start`.
        """
        reactor = self._leave(stopped)
        if not self.stopping:
            self.stopping = True
            for endpoint in self._endpoints:
                endpoint.close()
            self._deadline = reactor.call_later(self._drain_timeout_s, self._give_up)
            for connection in list(self._clients):
                connection.close()
        self._check_stopped()

    def retire(self, stopped: Callable[[], object] | None = None) -> None:
        """Stop accepting, and serve open connections until their clients close them; then call `stopped`.

        For a process that another one replaces, on the same sockets: this one closes only its own copies of them, after
        it has answered the datagrams that it holds. A later `stop` ends it sooner. Raise RuntimeError before `start`.
        """
        self._leave(stopped)
        self._failed = None
        self._close_endpoints(HELD_TRIES)

    def _leave(self, stopped: Callable[[], object] | None) -> Reactor:
        reactor = self._running_on()
        if stopped is not None:
            self._stopped.append(stopped)
        self._leaving = True
        for listener in self._listeners:
            listener.close()
        return reactor

    def _close_endpoints(self, tries: int) -> None:
        for endpoint in self._endpoints:
            if not (tries and endpoint.interest & WRITE):
                endpoint.close()
        if any(not endpoint.closed for endpoint in self._endpoints):
            self._running_on().call_later(HELD_RETRY_S, self._close_endpoints, tries - 1)
        self._check_stopped()

    def abort(self) -> None:
        """Reset the connections that `stop` still waits for. Raise RuntimeError before `start`."""
        self._running_on()
        for connection in list(self._clients):
            connection.abort()

    def _running_on(self) -> Reactor:
        if self._reactor is None:
            raise RuntimeError("this server hasn't been started")
        return self._reactor

    def _give_up(self) -> None:
        left = [connection for connection in self._clients if not connection.closed]
        cut = sum(1 for connection in left if connection.pending_bytes)
        rest = len(left) - cut
        text = f"drain timeout: {cut} clients cut off with bytes pending, {rest} that had everything but hadn't closed"
        log_event(logger, logging.WARNING, "drain_timeout", text, cut_off=cut, not_closed=rest)
        self.abort()

    def _check_stopped(self) -> None:
        if self._leaving and not self._clients and all(endpoint.closed for endpoint in self._endpoints):
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
                self._drop_connection(connection, reason)
                connection.abort()
                return
            source = self._gate.enter(host)
        if self._idle is not None:
            self._idle.watch(connection)
        if self._debug:
            name = describe_peer(peer)
            log_event(logger, logging.DEBUG, "connection_opened", f"connection from {name}", source=name)
        self._accepted += 1
        self._clients[connection] = source
        if self._crowd is not None:
            self._crowd.enter(connection, source)
        elif len(self._clients) == self._max_connections:
            self._rest()

    def _room(self, crowd: Crowd) -> int:
        """Return how many waiting clients may be accepted. If the server is full, close a silent connection for one."""
        free = (self._max_connections or 0) - len(self._clients)
        if free > 0:
            return free
        silent = crowd.longest_silent()
        if silent is None:
            self._rest()
            # another listener may have asked before, in the same turn
            self._room_timer = self._room_timer or self._running_on().call_later(ROOM_RETRY_S, self._look_again)
            return 0
        if not silent.closed:
            self._drop_connection(silent, Reason.IDLE_MADE_ROOM)
            silent.abort()
        self._connection_lost(silent, None)
        return 1

    def _look_again(self) -> None:
        self._room_timer = None
        for listener in self._listeners:
            listener.resume()

    def _rest(self) -> None:
        """Accept no client until a connection is lost."""
        for listener in self._listeners:
            listener.pause()
        self._drop_log.full(len(self._clients))

    def _connection_lost(self, connection: Connection, error: Exception | None) -> None:
        # refused by the gate, or it has made room
        if connection not in self._clients:
            return
        if self._debug:
            how = "in order" if error is None else f"by {error!r}"
            text = f"connection over, {how}: {connection.bytes_received} bytes received, {connection.bytes_sent} sent"
            log_event(
                logger, logging.DEBUG, "connection_closed", text, how=how,
                bytes_received=connection.bytes_received, bytes_sent=connection.bytes_sent,
            )  # fmt: skip
        if self._splicer is not None:
            self._splicer.forget(connection)
        self._bytes_received += connection.bytes_received
        self._bytes_sent += connection.bytes_sent
        if len(self._clients) == self._max_connections:
            for listener in self._listeners:
                listener.resume()
        source = self._clients.pop(connection)
        if self._crowd is not None:
            self._crowd.leave(connection, source)
        if source and self._gate is not None:
            self._gate.leave(source)
        if self._idle is not None:
            self._idle.forget(connection)
        self._check_stopped()

    def _drop_connection(self, connection: Connection, reason: Reason) -> None:
        self._drops[reason] = self._drops.get(reason, 0) + 1
        self._drop_log.note(reason, lambda: describe_peer(_peer_of(connection)))

    def _over_rate(self, reason: Reason, source: bytes, count: int) -> None:
        self._datagrams_over_rate += count
        self._drop_log.note(reason, partial(describe_source, source, self._sources.prefix), count, event="over_rate")

    def _datagrams_dropped(self, reason: str, peer: Address | None, count: int) -> None:
        self._drop_log.note(reason, partial(describe_peer, peer), count)

    def _endpoint_lost(self, endpoint: Endpoint, error: Exception | None) -> None:
        # None: closed by `stop`, or with the reactor
        if error is not None:
            name = format_address(endpoint.address)
            logger.error("endpoint %s is broken and closed: %s", name, error, extra={"event": "socket_broken"})
            self._check_serving()

    def _check_serving(self) -> None:
        if not (self.stopping or self.addresses) and self._failed is not None:
            failed, self._failed = self._failed, None
            failed()
