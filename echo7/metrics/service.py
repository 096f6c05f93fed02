"""The pages of a service: `/metrics` and `/healthz`, on the loop that serves, or on the supervisor's.

Law: an address that can't be bound is reported in one line before anything is served. Workers send a snapshot once a
second; the last one of a worker that has ended stays in the sums.
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
from echo7.metrics.snapshot import Snapshot, snapshot_maker, total
from echo7.server import EchoServer
from echo7.sockets.binding import NO_IPV6, BindError, find_targets
from reactor.listener import Listener
from reactor.loop import Reactor
from reactor.sockets.addresses import format_address
from reactor.sockets.opening import Socket, bind_tcp, closed_on_error

BACKLOG = 16
HEARD_S = 5.0  # a worker that has sent no snapshot for so long isn't healthy

Where = tuple[str, int]
Health = Callable[[], str]  # why the service isn't healthy; empty if it is

logger = logging.getLogger("echo7")


class Metrics:
    """Two pages on a loop. `collect` yields the families, `health` says why the service isn't healthy."""

    def __init__(self, reactor: Reactor, collect: Callable[[], Iterable[Metric]], health: Health) -> None:
        # the registry calls this
        self.collect = collect
        self._reactor, self._health = reactor, health
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._pages = Pages(reactor, {"/metrics": Kept(reactor.now, self._metrics), "/healthz": self._healthz})
        self._listeners: list[Listener] = []

    def start(self, where: Where) -> None:
        """Listen, and log where. Raise BindError."""
        for sock in _bind(self._reactor, where):
            listener = Listener(self._reactor, sock, self._pages.new_protocol, LIMITS)
            self._listeners.append(listener)
            host, port = listener.address[:2]
            text = f"metrics at http://{format_address(listener.address)}/metrics"
            log.event(logger, logging.INFO, "metrics", text, address=host, port=port)

    def close(self) -> None:
        """Stop listening."""
        for listener in self._listeners:
            listener.close()

    def _metrics(self) -> Page:
        return Page(generate_latest(self._registry), content_type=CONTENT_TYPE_LATEST)

    def _healthz(self) -> Page:
        problem = self._health()
        return Page(f"{problem}\n".encode(), 503) if problem else Page(b"ok\n")


def serve_metrics(reactor: Reactor, where: Where, server: EchoServer, handler: log.StderrHandler) -> Metrics:
    """Serve the pages of a service in one process, on its own loop. Raise BindError."""
    take = snapshot_maker(reactor, server, handler)
    metrics = Metrics(reactor, lambda: families(take(), {}), lambda: "stopping" if server.stopping else "")
    metrics.start(where)
    return metrics


class WorkersMetrics:
    """The pages of a supervisor, from the snapshots of its workers."""

    def __init__(self, reactor: Reactor, handler: log.StderrHandler, health: Health) -> None:
        self._now, self._handler, self._own_health = reactor.now, handler, health
        self._live: dict[int, tuple[float, Snapshot]] = {}  # worker → when, and what
        self._past = Snapshot()  # of processes that have ended
        self._metrics = Metrics(reactor, self.collect, self.health)

    def start(self, where: Where) -> None:
        """Listen. Raise BindError."""
        self._metrics.start(where)

    def close(self) -> None:
        """Stop listening."""
        self._metrics.close()

    def heard(self, worker: int, message: dict[str, Any]) -> None:
        """Take a worker's snapshot."""
        self._live[worker] = self._now(), Snapshot.from_message(message)

    def ended(self, worker: int) -> None:
        """Add what an ended worker had done to the sums."""
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
        """Return why the service isn't healthy; empty if it is."""
        heard = any(self._now() - heard_s < HEARD_S for heard_s, _ in self._live.values())
        return self._own_health() or ("" if heard else "no worker serves")


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
