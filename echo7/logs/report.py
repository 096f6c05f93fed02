"""What the service reports on stderr: its addresses, its counters, and on SIGUSR2 what its loop has.

Law: the same event has the same words and keys in every process. A supervisor reports for all workers, but each process
dumps its own loop.
"""

from __future__ import annotations

import collections
import importlib
import logging
import signal
from collections.abc import Callable, Iterable

from echo7.logs import log
from echo7.server import Counters, EchoServer, ServingAddress
from reactor.loop import Reactor

# Windows has none
DUMP_SIGNALS = [signal.SIGUSR2] if hasattr(signal, "SIGUSR2") else []
# for a dump; for the first traceback
READ_AHEAD = ("reactor.observe.snapshot", "tokenize")

logger = logging.getLogger("echo7")


def log_hints(left_out: Iterable[str], loopback_only: bool) -> None:
    """Log what isn't served although an operator may expect it."""
    for host in left_out:
        log.event(logger, logging.WARNING, "left_out", f"not serving {host}: this machine has no IPv6", address=host)
    if loopback_only:
        text = "reachable from this machine only; to open it to every address: --host '*'"
        log.event(logger, logging.INFO, "loopback_only", text)


def log_limits(wanted: int, possible: int, descriptors: int) -> None:
    """Log how many connections may be open at once, or warn that the descriptors allow fewer than wanted."""
    fields = {"max_connections": wanted, "possible": possible, "descriptors": descriptors}
    if wanted <= possible:
        text = f"at most {wanted:,} connections at once, with {descriptors:,} descriptors"
        log.event(logger, logging.INFO, "limits", text, **fields)
    else:
        text = (
            f"--max-connections {wanted} is too high: {descriptors:,} descriptors allow {possible:,} connections; "
            "lower it, or raise 'ulimit -n' (LimitNOFILE=)"
        )
        log.event(logger, logging.WARNING, "limits_exceeded", text, **fields)


def log_addresses(addresses: Iterable[ServingAddress]) -> None:
    """Log where the service listens, one line for each socket."""
    for transport, host, port, text in addresses:
        fields = {"transport": transport, "address": host, "port": port}
        log.event(logger, logging.INFO, "listening", f"listening on {transport} {text}", **fields)


def write_counters(name: str, counters: Counters, log_lines_dropped: int) -> None:
    """Log what the service has done so far."""
    text = f"{name}: {describe(counters)}, {log_lines_dropped} log lines dropped"
    log.event(logger, logging.INFO, name, text, **counters._asdict(), log_lines_dropped=log_lines_dropped)


def counters_logger(server: EchoServer, handler: log.StderrHandler) -> Callable[[str], None]:
    """Return a function that logs a server's counters as the event that it is given."""

    def log_counters(name: str) -> None:
        write_counters(name, server.counters, handler.dropped)

    return log_counters


def dump_on_signal(reactor: Reactor, others: Callable[[], object] = int) -> None:
    """Make SIGUSR2 log what a loop has, and call `others`, which asks other processes."""

    def asked() -> None:
        log_dump(reactor)
        others()

    for signum in DUMP_SIGNALS:
        reactor.add_signal_handler(signum, asked)
    reactor.call_soon(_read_ahead, reactor)


def _read_ahead(reactor: Reactor) -> None:
    # Import them now: later the process may have no descriptor left to read them, or no right to.
    for name in READ_AHEAD if not reactor.closed else ():
        importlib.import_module(name)


def log_dump(reactor: Reactor) -> None:
    """Log what a loop has."""
    from reactor.observe.snapshot import dump

    log.event(logger, logging.INFO, "dump", "what the loop has: " + dump(reactor))


def total(every: Iterable[Counters]) -> Counters:
    """Add up the counters of several servers."""
    parts, drops = list(every), collections.Counter[str]()
    for part in parts:
        drops.update(part.drops)
    # the drops are the last field
    numbers = map(sum, zip(*(part[:-1] for part in [Counters(), *parts]), strict=True))
    return Counters._make([*numbers, dict(sorted(drops.items()))])


def describe(counters: Counters) -> str:
    """Return the counters in words."""
    drops = ", ".join(f"{reason} {count}" for reason, count in counters.drops.items()) or "none"
    over_rate = f" ({counters.datagrams_over_rate} of them over the rate)" if counters.datagrams_over_rate else ""
    return (
        f"{counters.connections} connections ({counters.connections_open} open), "
        f"{counters.tcp_bytes_received} bytes received and {counters.tcp_bytes_sent} sent over tcp; "
        f"{counters.datagrams_received} datagrams received and {counters.datagrams_sent} answered{over_rate} over udp; "
        f"drops: {drops}"
    )
