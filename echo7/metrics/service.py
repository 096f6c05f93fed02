"""The pages of a service: `/metrics` and `/healthz`, on the loop that serves, or on the supervisor's.

Law: what can't be bound is said before anything is served, in one line. What is fetched is what was so a moment ago: a
worker tells once a second, and of one that has ended, what it told last stays in the sums.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CollectorRegistry, GaugeMetricFamily, Metric

from echo7.logs import log
from echo7.metrics.families import families
from echo7.metrics.http import LIMITS, Kept, Page, Pages
from echo7.metrics.told import Told, teller, total
from echo7.server import EchoServer
from echo7.sockets.binding import NO_IPV6, BindError, find_targets
from reactor.listener import Listener
from reactor.loop import Reactor
from reactor.sockets.addresses import format_address
from reactor.sockets.opening import Socket, bind_tcp, closed_on_error

BACKLOG = 16
HEARD_S = 5.0  # a worker that hasn't told for so long isn't well

Where = tuple[str, int]
Health = Callable[[], str]  # why it isn't well; empty: it is

logger = logging.getLogger("echo7")


class Metrics:
    """Two pages on a loop. `collect` yields the families, `health` says why it isn't well."""

    def __init__(self, reactor: Reactor, collect: Callable[[], Iterable[Metric]], health: Health) -> None:
        self.collect = collect  # for the registry
        self._reactor, self._health = reactor, health
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._pages = Pages(reactor, {"/metrics": Kept(reactor.now, self._metrics), "/healthz": self._healthz})
        self._listeners: list[Listener] = []

    def start(self, where: Where) -> None:
        """Listen, and say where. Raise BindError."""
        for sock in _bind(self._reactor, where):
            listener = Listener(self._reactor, sock, self._pages.new_protocol, LIMITS)
            self._listeners.append(listener)
            host, port = listener.address[:2]
            text = f"metrics at http://{format_address(listener.address)}/metrics"
            log.event(logger, logging.INFO, "metrics", text, address=host, port=port)

    def close(self) -> None:
        """Listen no more."""
        for listener in self._listeners:
            listener.close()

    def _metrics(self) -> Page:
        return Page(generate_latest(self._registry), content_type=CONTENT_TYPE_LATEST)

    def _healthz(self) -> Page:
        problem = self._health()
        return Page(f"{problem}\n".encode(), 503) if problem else Page(b"ok\n")


def serve_metrics(reactor: Reactor, where: Where, server: EchoServer, handler: log.StderrHandler) -> Metrics:
    """Serve the pages of a service in one process, on its own loop. Raise BindError."""
    tell = teller(reactor, server, handler)
    metrics = Metrics(reactor, lambda: families(tell(), {}), lambda: "stopping" if server.stopping else "")
    metrics.start(where)
    return metrics


class WorkersMetrics:
    """The pages of a supervisor, from what its workers tell."""

    def __init__(self, reactor: Reactor, handler: log.StderrHandler, health: Health) -> None:
        self._now, self._handler, self._own_health = reactor.now, handler, health
        self._live: dict[int, tuple[float, Told]] = {}  # worker → when it told, and what
        self._past = Told()  # of processes that have ended
        self._metrics = Metrics(reactor, self._collect, self._health)

    def start(self, where: Where) -> None:
        """Listen. Raise BindError."""
        self._metrics.start(where)

    def close(self) -> None:
        """Listen no more."""
        self._metrics.close()

    def heard(self, worker: int, message: dict[str, Any]) -> None:
        """A worker has told."""
        self._live[worker] = self._now(), Told.from_message(message)

    def ended(self, worker: int) -> None:
        """A worker has ended, and has told all."""
        if worker in self._live:
            self._past = total([self._past, self._live.pop(worker)[1].after_the_end()])

    def _collect(self) -> Iterable[Metric]:
        workers = {str(worker): told for worker, (_, told) in sorted(self._live.items())}
        own = Told(log_lines_dropped=self._handler.dropped)
        yield from families(total([self._past, own, *workers.values()]), workers)
        age = GaugeMetricFamily("echo7_worker_silence_seconds", "How long ago a worker has told", labels=["worker"])
        for worker, (heard_s, _) in sorted(self._live.items()):
            age.add_metric([str(worker)], self._now() - heard_s)
        yield age

    def _health(self) -> str:
        well = any(self._now() - heard_s < HEARD_S for heard_s, _ in self._live.values())
        return self._own_health() or ("" if well else "no worker serves")


def _bind(reactor: Reactor, where: Where) -> list[Socket]:
    bound: list[Socket] = []
    try:
        for address, optional in find_targets([where[0]], where[1]):
            try:
                sock = bind_tcp(reactor.sockets, address)
                with closed_on_error(sock):
                    sock.listen(BACKLOG)
            except OSError as error:
                if optional and error.errno in NO_IPV6:
                    continue
                text = (
                    f"cannot bind {format_address(address)} for --metrics: {error.strerror}; choose another HOST:PORT"
                )
                raise BindError(text) from None
            bound.append(sock)
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    return bound
