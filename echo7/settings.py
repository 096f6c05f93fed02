"""Settings: the options of `echo7 serve`, as data. Every option is declared here, and only here.

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
from echo7.policy.rate import DEFAULT_PREFIX, Rate, SourcePrefix, parse_prefix, parse_rate
from echo7.policy.sources import BY_BIND, ByBind
from echo7.process.sandbox import MODES as SANDBOXES
from echo7.sockets import reuseport
from echo7.sockets.binding import ECHO_PORT
from reactor.limits import BACKLOG

if TYPE_CHECKING:
    from echo7.process.privileges import Identity

# many times the processors of any machine
WORKERS_LIMIT = 256
LEVELS = ("debug", "info", "warning", "error")

GROUPS = WHAT, LIMITS, OPERATION, OBSERVATION = "what to serve", "limits", "operation", "observation"


def _host(text: str) -> str:
    if not text.strip():
        raise ValueError("an empty host is no address; use '*' for every address")
    return text


def _network(text: str) -> str:
    # Imported only when a network is given.
    from echo7.policy.access import network

    network(text)
    return text


def _idle_timeout(text: str) -> float:
    value = seconds(text)
    if not value:
        raise ValueError("0 seconds would close every connection; leave the option out for no timeout")
    return value


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


# fmt: off
class Settings(NamedTuple):
    """The options of `echo7 serve`, converted and checked."""

    hosts: Annotated[tuple[str, ...], Option(
        "--host", _host, "HOST", WHAT, "address, name or '*'; may repeat", "loopback",
        "'*' is every address, IPv4 and IPv6; by default only this machine itself is served",
        repeat="append", restart=True, text=" ".join)] = ()
    port: Annotated[int, Option(
        "--port", number(0, 65_535), "PORT", WHAT, "port for TCP and UDP; 0: a free one", restart=True)] = ECHO_PORT
    tcp: Annotated[bool, Option("--no-tcp", None, "", WHAT, "don't serve TCP", restart=True)] = True
    udp: Annotated[bool, Option("--no-udp", None, "", WHAT, "don't serve UDP", restart=True)] = True

    max_connections: Annotated[int | None, Option(
        "--max-connections", number(1), "N", LIMITS, "open at once; later ones wait", "ulimit -n",
        "at this many, clients wait in the kernel's queue; the default is what the descriptor limit allows")] = None
    max_connections_per_source: Annotated[int | ByBind | None, Option(
        "--max-connections-per-source", number(1), "N", LIMITS, "open at once; more are closed", "a quarter",
        "the default is a quarter of --max-connections, and no limit where only loopback is served", none=True,
    )] = BY_BIND
    keep_silent: Annotated[bool, Option(
        "--keep-silent", None, "", LIMITS, "when full, let new clients wait",
        details="by default a full server closes the longest silent connection of the source with the most of them, "
        "if no byte has moved there for 5 s; never where only loopback is served")] = False
    udp_rate: Annotated[Rate | ByBind | None, Option(
        "--udp-rate", parse_rate, "RATE[:BURST]", LIMITS, "answers a second to a source", "10000:20000",
        "BURST is how many answers it gets at once after a silence; by default there is no limit for loopback, nor "
        "where only loopback is served", none=True)] = BY_BIND
    udp_rate_total: Annotated[Rate | None, Option(
        "--udp-rate-total", parse_rate, "RATE[:BURST]", LIMITS, "answers a second to all together", "none",
        "BURST is how many answers they get at once after a silence", none=True)] = None
    source_prefix: Annotated[SourcePrefix, Option(
        "--source-prefix", parse_prefix, "IPV4,IPV6", LIMITS, "which addresses are one source", "32,56",
        "addresses that have so many leading bits in common count as one source, for connections and for rates",
    )] = DEFAULT_PREFIX
    rate_log_only: Annotated[bool, Option(
        "--rate-log-only", None, "", LIMITS, "log what exceeds a rate, but answer it")] = False
    allow: Annotated[tuple[str, ...], Option(
        "--allow", _network, "CIDR", LIMITS, "serve only these networks", "all",
        "may repeat; the smallest network that a source is in decides", repeat="extend")] = ()
    deny: Annotated[tuple[str, ...], Option(
        "--deny", _network, "CIDR", LIMITS, "don't serve these networks", "none",
        "may repeat; the smallest network that a source is in decides", repeat="extend")] = ()
    refuse_source_ports: Annotated[SourcePorts, Option(
        "--refuse-source-ports", parse_ports, "PORTS", LIMITS, "no UDP answers to them", "own,responders",
        "none, default, own, responders, 53, 6000-6100, '<1024', or several with commas; never to 0")] = DEFAULT_PORTS
    answer_loops: Annotated[bool, Option(
        "--answer-loops", None, "", LIMITS, "don't end suspected loops",
        details="by default a source that sends a datagram about a thousand times, as another echo server does, then "
        "gets no answer for a second; a source on loopback only if its port is below 32768 or our own")] = False
    idle_timeout_s: Annotated[float | None, Option(
        "--idle-timeout", _idle_timeout, "SECONDS", LIMITS, "close connections idle this long", "none",
        "a connection is idle while no byte moves either way; RFC 862 has no timeout", none=True)] = None
    backlog: Annotated[int, Option(
        "--backlog", number(1, 2**31 - 1), "N", LIMITS, "clients that may wait for accept",
        details="the length of the kernel's queue")] = BACKLOG
    socket_buffer_bytes: Annotated[int | None, Option(
        "--socket-buffer", number(1024, 2**30), "BYTES", LIMITS, "cap buffers of connections", "automatic",
        "this caps the receive and the send buffer of each connection; the default is the kernel's tuning")] = None

    drain_timeout_s: Annotated[float, Option(
        "--drain-timeout", seconds, "SECONDS", OPERATION, "on stop, deliver for up to this long",
        details="clients have as long to close; what is left then is aborted")] = 5.0
    user: Annotated["Identity | None", Option(
        "--user", _identity, "NAME[:GROUP]", OPERATION, "become this user after binding", "no change",
        "this drops root privileges permanently", restart=True, text=lambda user: f"{user.user_id}:{user.group_id}",
    )] = None
    workers: Annotated[int, Option(
        "--workers", _workers, "N", OPERATION, "processes; 'auto': one for each CPU",
        details="they share the port; Linux only", restart=True)] = 1
    busy_poll_s: Annotated[float, Option(
        "--busy-poll", lambda text: number(0, 1_000_000)(text) / 1e6,
        "MICROSECONDS", OPERATION, "poll this long before sleeping", "0: off",
        "only after activity; answers come sooner, and a processor stays busy")] = 0.0
    sandbox: Annotated[str, Option(
        "--sandbox", one_of(*SANDBOXES), "MODE", OPERATION, "restrict itself: " + ", ".join(SANDBOXES), restart=True,
        details="auto takes away what the processes don't need, with Landlock and seccomp where Linux has them; "
        "require doesn't start without both")] = SANDBOXES[0]
    plain: Annotated[bool, Option("--plain", None, "", OPERATION, "use no fast path, for comparison and tests")] = False

    log_level: Annotated[str, Option(
        "--log-level", one_of(*LEVELS), "LEVEL", OBSERVATION, ", ".join(LEVELS),
        details="log messages of this level and above")] = "info"
    log_format: Annotated[str, Option(
        "--log-format", one_of("text", "json"), "FORM", OBSERVATION, "text or json",
        details="the form of the log lines")] = "text"
    metrics: Annotated[tuple[str, int] | None, Option(
        "--metrics", metrics_address, "HOST:PORT", OBSERVATION, "serve /metrics and /healthz there", "none",
        "/metrics is for Prometheus; neither asks for a password")] = None
    slow_callback_s: Annotated[float | None, Option(
        "--slow-callback", lambda text: number(0, 60_000)(text) / 1e3 or None,
        "MILLISECONDS", OBSERVATION, "log callbacks that block this long", "0: off",
        "or longer; meanwhile the loop does nothing else")] = None
    trace: Annotated[str | None, Option(
        "--trace", str, "FILE", OBSERVATION, "record what the loop does", "none",
        "for 'python -m reactor.player'; or, if the name ends in .json, for ui.perfetto.dev")] = None
    narrate: Annotated[bool, Option("--narrate", None, "", OBSERVATION, "log in words what the loop does")] = False

    def fixed(self) -> dict[str, str]:
        """Return what SIGHUP can't change, by option, in the form that generations compare."""
        found = {name: option for name, option in OPTIONS.items() if option.restart}
        return {option.flag: option.compared(getattr(self, name)) for name, option in found.items()}

    def mistake(self) -> str | None:
        """Return which settings contradict each other, and what to do, or None."""
        if not (self.tcp or self.udp):
            return "--no-tcp and --no-udp together leave nothing to serve; drop one of them"
        if self.workers > 1 and not reuseport.AVAILABLE:
            return "--workers above 1 needs Linux, where the kernel balances among processes; leave it out"
        if self.workers > 1 and (self.narrate or self.trace is not None):
            return "--trace and --narrate show one loop, and --workers has several; leave one of them out"
        if self.narrate and LEVELS.index(self.log_level) > LEVELS.index("info"):
            return f"--narrate logs at level info, which --log-level {self.log_level} leaves out; drop one"
        return None
# fmt: on


def _declared() -> Iterator[tuple[str, Option]]:
    """Yield each field with its option, completed from the field's default."""
    for name, value in Settings()._asdict().items():
        option: Option = get_args(Settings.__annotations__[name])[1]
        if option.parse is None:
            option = option._replace(sets=not value)
        elif not option.default:
            option = option._replace(default=f"{value:g}" if isinstance(value, float) else str(value))
        yield name, option


# Field → option.
OPTIONS: dict[str, Option] = dict(_declared())
# These two have no field, and can't be in a file.
ABOUT_SETTINGS = (
    Option("--config", str, "FILE", OPERATION, "options from a TOML file", "none", "options on the command line win"),
    Option("--check-config", None, "", OPERATION, "check the options and exit"),
)


def by_group() -> dict[str, list[Option]]:
    """Return every option, by the title of its group."""
    every = (*OPTIONS.values(), *ABOUT_SETTINGS)
    return {title: [option for option in every if option.group == title] for title in GROUPS}
