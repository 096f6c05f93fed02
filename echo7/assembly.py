"""Assembly: from settings to the parts of a service. The only module that knows which setting becomes which part."""

from __future__ import annotations

import contextlib
import importlib
import select
import selectors
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from echo7.logs import report
from echo7.policy.sources import SourceLimits
from echo7.process import limits
from echo7.server import EchoServer
from echo7.settings import Settings
from echo7.sockets.binding import Bound
from reactor.doors import NOTHING_OBSERVED, Observer
from reactor.loop import Reactor

if TYPE_CHECKING:
    from echo7.tracing import Tracing


def new_reactor(settings: Settings, tracing: Tracing | None = None) -> Reactor:
    """Return the loop of one process that serves. Raise OSError when there are no descriptors for it."""
    return Reactor(selector=new_selector(settings), observer=new_observer(settings, tracing))


def new_observer(settings: Settings, tracing: Tracing | None) -> Observer:
    """Return the loop's observer: a trace, a watch around it, or both. Imports only what the settings need."""
    observer = NOTHING_OBSERVED
    if tracing is not None:
        from reactor.observe.trace import Trace

        observer = Trace(tracing)
    if settings.slow_callback_s is not None or settings.metrics is not None:
        from reactor.observe.watch import Watch

        observer = Watch(settings.slow_callback_s, observer)
    return observer


def new_tracing(settings: Settings) -> Tracing | None:
    """Return the observer for --trace or --narrate, if one of them is set."""
    if settings.trace is None and not settings.narrate:
        return None
    from echo7.tracing import Tracing

    return Tracing(settings.trace, settings.narrate)


def new_selector(settings: Settings) -> selectors.BaseSelector:
    """Return the selector. Raise OSError when there is no descriptor for it."""
    selector: selectors.BaseSelector
    if settings.plain or not hasattr(select, "epoll"):
        selector = selectors.DefaultSelector()
    else:
        from reactor.fastpath.epoll import LeanEpollSelector

        selector = LeanEpollSelector()
    if settings.busy_poll_s:
        from reactor.fastpath.busypoll import BusyPollSelector

        selector = BusyPollSelector(selector, time.monotonic, settings.busy_poll_s)
    return selector


def new_server(settings: Settings, descriptors: int, bound: Bound, failed: Callable[[], object]) -> EchoServer:
    """Return the server of one process that may open `descriptors`, for these sockets."""
    return EchoServer(
        plain=settings.plain,
        pipes=limits.default_pipes(descriptors, settings.workers),
        max_connections=max_connections(settings, descriptors, bound),
        connections_possible=connections_possible(settings, descriptors, bound),
        drain_timeout_s=settings.drain_timeout_s,
        idle_timeout_s=settings.idle_timeout_s,
        sources=source_limits(settings),
        failed=failed,
    )


def import_parts(settings: Settings) -> None:
    """Import the parts that the functions above import when they are asked for.

    For the parent of workers: a worker may have no right to read them, and later the files may be another version's.
    """
    wanted = {
        "reactor.fastpath.epoll": not settings.plain and hasattr(select, "epoll"),
        "reactor.fastpath.mmsg": not settings.plain and settings.udp,
        "reactor.fastpath.busypoll": settings.busy_poll_s > 0,
        "reactor.observe.watch": settings.slow_callback_s is not None or settings.metrics is not None,
        **dict.fromkeys(report.READ_AHEAD, True),
        "echo7.metrics.snapshot": settings.metrics is not None,
        "echo7.policy.crowd": settings.tcp and not settings.keep_silent,
        "echo7.policy.idle": settings.idle_timeout_s is not None,
    }
    for name in [name for name, is_wanted in wanted.items() if is_wanted]:
        # A Python without ctypes has no mmsg: then datagrams are served one by one.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def max_connections(settings: Settings, descriptors: int, bound: Bound) -> int:
    """Return how many connections one process may have."""
    if settings.max_connections is not None:
        return -(-settings.max_connections // settings.workers)
    return connections_possible(settings, descriptors, bound)


def connections_possible(settings: Settings, descriptors: int, bound: Bound) -> int:
    """Return how many connections the descriptors of one process allow."""
    if settings.metrics is not None:
        # one for each client of the pages, and two for the reserve itself
        descriptors -= limits.page_places(descriptors) + 2
    pipes = 0 if settings.plain else limits.default_pipes(descriptors, settings.workers)
    return limits.default_max_connections(descriptors, len(bound.sockets), pipes)


def log_limits(settings: Settings, descriptors: int, bound: Bound) -> None:
    """Log how many connections all processes together may have."""
    if bound.tcp:
        possible = connections_possible(settings, descriptors, bound) * settings.workers
        report.log_limits(settings.max_connections or possible, possible, descriptors)


def source_limits(settings: Settings) -> SourceLimits:
    """Return the limits for each source in one process."""
    return SourceLimits(
        allow=settings.allow,
        deny=settings.deny,
        connections=settings.max_connections_per_source,
        udp_rate=settings.udp_rate,
        udp_rate_total=settings.udp_rate_total,
        log_only=settings.rate_log_only,
        ports=settings.refuse_source_ports,
        prefix=settings.source_prefix,
        keep_silent=settings.keep_silent,
        answer_loops=settings.answer_loops,
    ).share(settings.workers)
