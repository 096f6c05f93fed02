"""The pages of a service, `/metrics` and `/healthz`, on the serving loop or the supervisor's.

Law: an address that can't be bound is reported in one line before anything is served. Workers send a snapshot once a
second; the last snapshot of an ended worker stays in the sums.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CollectorRegistry, GaugeMetricFamily, Metric

from echo7.logs import log
from echo7.metrics.families import families
from echo7.metrics.http import LIMITS, Page, PageProtocol, Pages, kept
from echo7.metrics.reserve import Reserve, ReservedListening
from echo7.metrics.snapshot import Snapshot, snapshot_maker, total
from echo7.server import EchoServer
from echo7.sockets.binding import NO_IPV6, BindError, find_targets
from reactor.listener import Listener
from reactor.loop import Reactor
from reactor.sockets.addresses import format_address
from reactor.sockets.opening import Socket, bind_tcp

BACKLOG = 128
# Clients that may be connected at once. A service has more: `limits.page_places`.
PLACES = 8
HEARD_S = 5.0  # a worker without a snapshot for so long is unhealthy

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
        self._reserve: Reserve | None = None

    def start(self, where: Where) -> None:
        """Listen, and log where. Raise BindError."""
        bound = _bind(self._reactor, where)
        # one more than places: a connection is accepted before the oldest is reset
        self._reserve = reserve = Reserve(self._reactor.sockets, self._places + 1)
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
        if self._reserve is not None:
            self._reserve.close()

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
    metrics = Metrics(reactor, lambda: families(take(), {}), lambda: "stopping" if server.stopping else "", places)
    metrics.start(where)
    return metrics


class WorkersMetrics:
    """The pages of a supervisor, from its workers' snapshots."""

    def __init__(self, reactor: Reactor, handler: log.StderrHandler, health: Health, places: int = PLACES) -> None:
        self._now, self._handler, self._own_health = reactor.now, handler, health
        self._live: dict[int, tuple[float, Snapshot]] = {}  # worker → time of the snapshot, snapshot
        self._past = Snapshot()  # of ended processes
        metrics = Metrics(reactor, self.collect, self.health, places)
        self.start, self.close = metrics.start, metrics.close

    def heard(self, worker: int, message: dict[str, Any]) -> None:
        """Keep a worker's snapshot."""
        self._live[worker] = self._now(), Snapshot.from_message(message)

    def ended(self, worker: int) -> None:
        """Keep the counters of an ended worker in the sums."""
        if worker in self._live:
            self._past = total([self._past, self._live.pop(worker)[1].after_the_end()])

    def collect(self) -> Iterable[Metric]:
        """Yield the families of all processes and of each worker."""
        workers = {str(worker): snapshot for worker, (_, snapshot) in sorted(self._live.items())}
        own = Snapshot(log_lines_dropped=self._handler.dropped)
        yield from families(total([self._past, own, *workers.values()]), workers)
        age = GaugeMetricFamily("echo7_worker_silence_seconds", "Age of a worker's last snapshot", labels=["worker"])
        for worker, (heard_s, _) in sorted(self._live.items()):
            age.add_metric([str(worker)], self._now() - heard_s)
        yield age

    def health(self) -> str:
        """Return why the service is unhealthy; empty if it is healthy."""
        heard = any(self._now() - heard_s < HEARD_S for heard_s, _ in self._live.values())
        return self._own_health() or ("" if heard else "no worker serves")


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
