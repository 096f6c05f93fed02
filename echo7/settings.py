"""Settings: what `echo7 serve` was asked for, as data. Every option is declared here, and only here.

A field's annotation carries its `Option`; the field's default is the option's. The command line (`serve`), the file
(`configfile`), the comparison at a restart (`fixed`), the manual page and the reference all come from this declaration.

To add an option: a field here, and its use in `assembly`; then `python3 -m tests.reference`.
"""

# Annotations must be objects here, so this module does without `from __future__ import annotations`.
import argparse
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple, get_args

from echo7.arguments import Option, metrics_address, number, one_of, seconds
from echo7.policy.ports import DEFAULT_PORTS, SourcePorts, parse_ports
from echo7.policy.rate import Rate, parse_rate
from echo7.policy.sources import BY_BIND, ByBind
from echo7.sockets import reuseport
from echo7.sockets.binding import ECHO_PORT
from reactor.limits import BACKLOG

if TYPE_CHECKING:
    from echo7.process.privileges import Identity

# Many times the processors of any machine that serves nothing but echo.
WORKERS_LIMIT = 256
LEVELS = ("debug", "info", "warning", "error")

WHAT, SOURCES, HOW = "what to serve", "limits for each source", "how to serve"
LOG, INSIDE, PROCESSES, CONFIGURATION = "log", "seeing inside", "processes", "configuration"


def _host(text: str) -> str:
    if not text.strip():
        raise ValueError("an empty host names nothing; use '*' for every address")
    return text


def _network(text: str) -> str:
    # Imported only when a network is given.
    from echo7.policy.access import network

    network(text)
    return text


def _idle_timeout(text: str) -> float:
    value = seconds(text)
    if not value:
        raise ValueError("0 seconds would end every connection; leave it out for no timeout")
    return value


def _microseconds(text: str) -> float:
    return number(0, 1_000_000)(text) / 1e6


def _milliseconds(text: str) -> float | None:
    return number(0, 60_000)(text) / 1e3 or None


def _workers(text: str) -> int:
    if text == "auto":
        return min(len(os.sched_getaffinity(0)), WORKERS_LIMIT) if reuseport.AVAILABLE else 1
    try:
        return number(1, WORKERS_LIMIT)(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{error}, nor 'auto'") from None


def _identity(text: str) -> "Identity":
    # Imported only when a user is given: it needs the lists of users and groups.
    from echo7.process import privileges

    return privileges.identity(text)


def _ids(user: "Identity") -> str:
    return f"{user.user_id}:{user.group_id}"


# fmt: off
class Settings(NamedTuple):
    """What `echo7 serve` was asked for."""

    hosts: Annotated[tuple[str, ...], Option(
        "--host", _host, "HOST", WHAT, "address or name to serve on, or '*' for every address; may repeat",
        default="this machine only", repeat="append", restart=True, text=" ".join,
    )] = ()
    port: Annotated[int, Option(
        "--port", number(0, 65_535), "PORT", WHAT, "port for TCP and UDP; 0 takes a free one", restart=True,
    )] = ECHO_PORT
    tcp: Annotated[bool, Option("--no-tcp", None, "", WHAT, "don't serve TCP", restart=True)] = True
    udp: Annotated[bool, Option("--no-udp", None, "", WHAT, "don't serve UDP", restart=True)] = True
    max_connections: Annotated[int | None, Option(
        "--max-connections", number(1), "N", WHAT, "at this many, clients wait in the kernel's queue",
        default="what the descriptor limit allows",
    )] = None

    allow: Annotated[tuple[str, ...], Option(
        "--allow", _network, "CIDR", SOURCES,
        "serve only these networks; may repeat; the smallest network that a source is in decides",
        repeat="extend", default="every network",
    )] = ()
    deny: Annotated[tuple[str, ...], Option(
        "--deny", _network, "CIDR", SOURCES,
        "don't serve these networks; may repeat; the smallest network that a source is in decides",
        repeat="extend", default="no network",
    )] = ()
    max_connections_per_source: Annotated[int | ByBind | None, Option(
        "--max-connections-per-source", number(1), "N", SOURCES,
        "close connections at once that one IPv4 address or IPv6 /64 opens beyond this many", none=True,
        default="a quarter of --max-connections; none where only loopback is served",
    )] = BY_BIND
    udp_rate: Annotated[Rate | ByBind | None, Option(
        "--udp-rate", parse_rate, "PER_SECOND[:BURST]", SOURCES, "answers to one IPv4 address or IPv6 /64", none=True,
        default="10000:20000, but not to loopback; none where only loopback is served",
    )] = BY_BIND
    udp_rate_total: Annotated[Rate | None, Option(
        "--udp-rate-total", parse_rate, "PER_SECOND[:BURST]", SOURCES, "answers to all sources together", none=True,
        default="none",
    )] = None
    rate_log_only: Annotated[bool, Option(
        "--rate-log-only", None, "", SOURCES, "count and log what exceeds a UDP rate, but answer it",
    )] = False
    refuse_source_ports: Annotated[SourcePorts, Option(
        "--refuse-source-ports", parse_ports, "SPEC", SOURCES,
        "no answers over UDP to these: none, default, own, responders, 53, 6000-6100, '<1024', or several with commas; "
        "never to 0", default="own,responders",
    )] = DEFAULT_PORTS

    backlog: Annotated[int, Option(
        "--backlog", number(1, 2**31 - 1), "N", HOW, "clients that may wait in the kernel's queue",
    )] = BACKLOG
    socket_buffer_bytes: Annotated[int | None, Option(
        "--socket-buffer", number(1024, 2**30), "BYTES", HOW,
        "cap the kernel's receive and send buffer of each socket", default="the kernel's own tuning",
    )] = None
    drain_timeout_s: Annotated[float, Option(
        "--drain-timeout", seconds, "SECONDS", HOW,
        "when stopping, how long to deliver what was received and to wait for clients to close",
    )] = 5.0
    idle_timeout_s: Annotated[float | None, Option(
        "--idle-timeout", _idle_timeout, "SECONDS", HOW, "close a connection when no byte has moved for this long",
        none=True, default="none, as in RFC 862",
    )] = None
    busy_poll_s: Annotated[float, Option(
        "--busy-poll", _microseconds, "MICROSECONDS", HOW,
        "after activity, poll for this long before sleeping: answers come sooner", default="0, off",
    )] = 0.0
    plain: Annotated[bool, Option("--plain", None, "", HOW, "use no fast path: for comparison and tests")] = False

    log_level: Annotated[str, Option(
        "--log-level", one_of(*LEVELS), "{" + ",".join(LEVELS) + "}", LOG, "log messages of this level and above",
    )] = "info"
    log_format: Annotated[str, Option(
        "--log-format", one_of("text", "json"), "{text,json}", LOG, "form of the log lines",
    )] = "text"

    slow_callback_s: Annotated[float | None, Option(
        "--slow-callback", _milliseconds, "MILLISECONDS", INSIDE,
        "log callbacks that block the loop for at least this long", default="0, off",
    )] = None
    metrics: Annotated[tuple[str, int] | None, Option(
        "--metrics", metrics_address, "HOST:PORT", INSIDE,
        "serve /metrics for Prometheus and /healthz there, without a password", default="none",
    )] = None
    trace: Annotated[str | None, Option(
        "--trace", str, "FILE", INSIDE,
        "write what the loop does to this file, for 'python -m reactor.player'; or, if its name ends in .json, for "
        "ui.perfetto.dev", default="none",
    )] = None
    narrate: Annotated[bool, Option("--narrate", None, "", INSIDE, "log what the loop does, in plain words")] = False

    workers: Annotated[int, Option(
        "--workers", _workers, "N", PROCESSES,
        "processes that share the port, or 'auto' for one for each CPU; Linux only", restart=True,
    )] = 1
    user: Annotated["Identity | None", Option(
        "--user", _identity, "NAME[:GROUP]", PROCESSES, "drop privileges to this user after binding",
        default="the user that starts it", restart=True, text=_ids,
    )] = None

    def fixed(self) -> dict[str, str]:
        """Return what SIGHUP can't change, by option, in the form in which generations compare it."""
        found = {name: option for name, option in OPTIONS.items() if option.restart}
        return {option.flag: option.compared(getattr(self, name)) for name, option in found.items()}

    def mistake(self) -> str | None:
        """Return which settings contradict each other, and what to do about it, or None."""
        if not (self.tcp or self.udp):
            return "--no-tcp and --no-udp together leave nothing to serve; drop one of them"
        if self.workers > 1 and not reuseport.AVAILABLE:
            return "--workers above 1 needs Linux, where the kernel balances among them; leave it out"
        if self.workers > 1 and (self.narrate or self.trace is not None):
            return "--trace and --narrate show one loop, and --workers has several; leave one of them out"
        if self.narrate and LEVELS.index(self.log_level) > LEVELS.index("info"):
            return f"--narrate logs at level info, which --log-level {self.log_level} leaves out; drop one"
        return None
# fmt: on


def _declared() -> Iterator[tuple[str, Option]]:
    """Yield each field with its option, complete with what the field's default says."""
    for name, value in Settings()._asdict().items():
        option: Option = get_args(Settings.__annotations__[name])[1]
        if option.parse is None:
            option = option._replace(sets=not value)
        elif not option.default:
            option = option._replace(default=f"{value:g}" if isinstance(value, float) else str(value))
        yield name, option


# Field → option.
OPTIONS: dict[str, Option] = dict(_declared())
# What to do with the settings. These two have no field, and no place in a file.
ABOUT_SETTINGS = (
    Option("--config", str, "FILE", CONFIGURATION, "a TOML file with these options; those given here win", "none"),
    Option("--check-config", None, "", CONFIGURATION, "only check that the options make sense"),
)
