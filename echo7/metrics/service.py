"""The pages of a service, `/metrics` and `/healthz`, on the serving loop or the supervisor's.

Law: an address that can't be bound is reported in one line before anything is served. Workers send a snapshot once a
second; the last snapshot of an ended worker stays in the sums. A service is healthy when all of it serves: each worker
and each socket.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily, Metric

from echo7.logs import log
from echo7.metrics.families import families, filled
from echo7.metrics.http import LIMITS, Page, PageProtocol, Pages, kept
from echo7.metrics.reserve import Reserve, ReservedListening
from echo7.metrics.snapshot import Snapshot, snapshot_maker, sockets_lost, total
from echo7.server import EchoServer
from echo7.sockets.binding import NO_IPV6, BindError, find_targets
from reactor.listener import Listener
from reactor.loop import Reactor
from reactor.sockets.addresses import format_address
from reactor.sockets.opening import Socket, bind_tcp

BACKLOG = 128
# Clients that may be connected at once. A service has more: `limits.page_places`.
PLACES = 8

Where = tuple[str, int]
Health = Callable[[], str]  # why the service is unhealthy; empty: it is healthy

logger = logging.getLogger("echo7")


class Metrics:
    """The two pages on a loop. `collect` yields the families; `health` returns why the service is unhealthy."""

    def __init__(
        self, reactor: Reactor, collect: Callable[[], Iterable[Metric]], health: Health, places: int = PLACES
    ) -> None:
        # called by the registry
        self.collect = collect
        self._reactor, self._health = reactor, health
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._places = places
        makers = {"/metrics": kept(reactor.now, self._metrics), "/healthz": self._healthz}
        self._pages = Pages(reactor, makers, self._places)
        self._listeners: list[Listener] = []
        self._reserves: list[Reserve] = []

    def start(self, where: Where) -> None:
        """Listen, and log where. Raise BindError."""
        bound = _bind(self._reactor, where)
        # one more than places: a connection is accepted before the oldest is reset
        reserve = Reserve(self._reactor.sockets, self._places + 1)
        self._reserves.append(reserve)
        for sock in bound:
            listening = ReservedListening(reserve, sock)
            new_protocol = functools.partial(PageProtocol, self._pages)
            listener = Listener(self._reactor, listening, new_protocol, LIMITS, room=self._pages.room)
            self._listeners.append(listener)
            host, port = listener.address[:2]
            text = f"metrics at http://{format_address(listener.address)}/metrics"
            log.event(logger, logging.INFO, "metrics", text, address=host, port=port)

    def close(self) -> None:
        """Stop listening."""
        for listener in self._listeners:
            listener.close()
        for reserve in self._reserves:
            reserve.close()

    def _metrics(self) -> Page:
        return Page(generate_latest(self._registry), content_type=CONTENT_TYPE_LATEST)

    def _healthz(self) -> Page:
        problem = self._health()
        return Page(f"{problem}\n".encode(), 503) if problem else Page(b"ok\n")


def serve_metrics(
    reactor: Reactor, where: Where, server: EchoServer, handler: log.StderrHandler, places: int = PLACES
) -> Metrics:
    """Serve the pages of a service with one process, on its own loop. Raise BindError."""
    take = snapshot_maker(reactor, server, handler)

    def health() -> str:
        return "stopping" if server.stopping else broken(sockets_lost(server))

    metrics = Metrics(reactor, lambda: families(take(), {}), health, places)
    metrics.start(where)
    return metrics


def broken(count: int) -> str:
    """Say how many sockets are broken; empty if none is."""
    return f"{count} serving sockets are broken" if count > 1 else "1 serving socket is broken" if count else ""


class Supervision(Protocol):
    """What a supervisor knows of its workers."""

    # of the workers that have ended
    past: Snapshot
    # how many workers were killed, by the reason
    killed: dict[str, int]

    @property
    def problem(self) -> str:
        """Why the service isn't healthy; empty if it is."""

    @property
    def silences_s(self) -> dict[int, float]:
        """How long each worker has said nothing."""

    @property
    def snapshots(self) -> dict[int, Snapshot]:
        """The last report of each worker."""


def serve_workers_metrics(
    reactor: Reactor, where: Where, handler: log.StderrHandler, supervision: Supervision, places: int = PLACES
) -> Metrics:
    """Serve the pages of a service with workers, on the supervisor's loop. Raise BindError."""

    def collect() -> Iterable[Metric]:
        return workers_families(Snapshot(log_lines_dropped=handler.dropped), supervision)

    def health() -> str:
        return supervision.problem or broken(sum(each.gauges.sockets_lost for each in supervision.snapshots.values()))

    metrics = Metrics(reactor, collect, health, places)
    metrics.start(where)
    return metrics


def workers_families(own: Snapshot, supervision: Supervision) -> Iterable[Metric]:
    """Yield the families of all processes and of each worker; `own` is the supervisor's."""
    workers = {str(worker): snapshot for worker, snapshot in supervision.snapshots.items()}
    yield from families(total([supervision.past, own, *workers.values()]), workers)
    killed = CounterMetricFamily("echo7_workers_killed", "Workers that the supervisor has killed", labels=["reason"])
    yield filled(killed, [((), supervision.killed)])
    silence = GaugeMetricFamily("echo7_worker_silence_seconds", "How long a worker hasn't reported", labels=["worker"])
    yield filled(silence, [((), {str(worker): s for worker, s in supervision.silences_s.items()})])


def _bind(reactor: Reactor, where: Where) -> list[Socket]:
    bound: list[Socket] = []
    with contextlib.ExitStack() as undo:
        for address, optional in find_targets([where[0]], where[1]):
            try:
                sock = bind_tcp(reactor.sockets, address)
                undo.callback(sock.close)
                sock.listen(BACKLOG)
            except OSError as error:
                if optional and error.errno in NO_IPV6:
                    continue
                text = f"cannot bind {format_address(address)} for --metrics: {error.strerror}"
                raise BindError(f"{text}; choose another HOST:PORT") from None
            bound.append(sock)
        undo.pop_all()
    return bound
