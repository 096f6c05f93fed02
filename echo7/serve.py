"""`echo7 serve`: options → a frozen config → a service under signals → an exit status.

    0  served, and ended in order        1  couldn't start, or the last serving socket broke, or workers failed
    2  the options make no sense         128 + n  ended at once by a second signal n

Law: what makes no sense is refused before anything is bound; what was begun is finished, and the last line says how.
"""

from __future__ import annotations

import argparse
import os
import select
from collections.abc import Callable
from typing import TYPE_CHECKING

from echo7.arguments import checked, metrics_address, number, seconds
from echo7.policy.ports import DEFAULT_PORTS, parse_ports
from echo7.policy.rate import parse_rate
from echo7.policy.sources import BY_BIND, SourceLimits
from echo7.process import restart
from echo7.process.service import serve
from echo7.settings import Settings
from echo7.sockets import reuseport
from echo7.sockets.binding import ECHO_PORT
from reactor.limits import BACKLOG

if TYPE_CHECKING:
    from echo7.process.privileges import Identity

WORKERS_LIMIT = 256  # many times the processors of any machine that needs no more than echo
LEVELS = ("debug", "info", "warning", "error")
EXAMPLES = """\
examples:
  echo7 serve                                  this machine only, port 7
  echo7 serve --port 7007                      no privilege needed
  echo7 serve --host '*'                       every address, IPv4 and IPv6
  echo7 serve --host 192.0.2.1 --host fe80::1%eth0 --no-udp
  echo7 serve --log-format json 2>>echo7.logs.log
  echo7 serve --host '*' --allow 192.0.2.0/24 2001:db8::/32 --idle-timeout 600
  sudo echo7 serve --host '*' --user nobody    root binds port 7, and nobody serves it
  echo7 serve --config /etc/echo7.toml         options from a file, such as: port = 7007
  echo7 serve --workers auto                   a process for each CPU (Linux), one in charge of them

A systemd socket unit may hand the sockets in; --host and --port then have no effect.

signals:
  TERM, INT   finish in order; the second one ends at once
  HUP         start afresh, without an outage: new program, new options from the file
  USR1        log the counters
  USR2        log what the loop has: handlers, buffers, timers

exit status:
  0  ended in order                       2        the options make no sense
  1  couldn't start, or a failure later   128 + n  ended at once by a second signal n
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = "Serve the Echo Protocol over TCP and UDP."
    parser.epilog = EXAMPLES
    _add_what_to_serve(parser.add_argument_group("what to serve").add_argument)
    _add_whom_to_serve(parser.add_argument_group("limits for each source").add_argument)
    _add_how_to_serve(parser.add_argument_group("how to serve").add_argument)
    _add_what_is_logged(parser.add_argument_group("log").add_argument)
    _add_seeing_inside(parser.add_argument_group("seeing inside").add_argument)
    _add_as_whom_to_serve(parser.add_argument_group("processes").add_argument)
    _add_where_it_is_said(parser.add_argument_group("configuration").add_argument)


def run(options: argparse.Namespace) -> int:
    """Do what the options say, and return the exit status. Raise SystemExit(2) after one line if they make no sense."""
    config = configure(options)
    before = os.environ.get(restart.CHECK)
    if before is None and not options.check_config:
        return serve(config)
    mistake = restart.changed(before or "", config.fixed())
    if mistake is not None:
        options.parser.error(mistake)
    return 0


def configure(options: argparse.Namespace) -> Settings:
    """Turn options into a config. Raise SystemExit(2) after one line on stderr."""
    if options.no_tcp and options.no_udp:
        options.parser.error("--no-tcp and --no-udp together leave nothing to serve; drop one of them")
    if options.workers > 1 and not reuseport.AVAILABLE:
        options.parser.error("--workers above 1 needs Linux, where the kernel balances among them; leave it out")
    if options.workers > 1 and (options.narrate or options.trace is not None):
        options.parser.error("--trace and --narrate show one loop, and --workers has several; leave one of them out")
    if options.narrate and options.log_level in LEVELS[LEVELS.index("info") + 1 :]:
        options.parser.error(
            f"--narrate speaks at level info, and --log-level {options.log_level} is deaf to that; drop one"
        )
    if options.selector == "lean" and not hasattr(select, "epoll"):
        options.parser.error("--selector lean needs Linux's epoll, which isn't here; leave it out")
    return Settings(
        hosts=tuple(options.host),
        port=options.port,
        tcp=not options.no_tcp,
        udp=not options.no_udp,
        udp_batch=not options.no_udp_batch,
        splice=not options.no_splice,
        max_connections=options.max_connections,
        backlog=options.backlog,
        socket_buffer_bytes=options.socket_buffer,
        drain_timeout_s=options.drain_timeout,
        idle_timeout_s=options.idle_timeout,
        sources=_sources(options),
        busy_poll_s=options.busy_poll / 1e6,
        selector=options.selector,
        log_level=options.log_level,
        log_format=options.log_format,
        workers=options.workers,
        user=options.user,
        slow_callback_s=options.slow_callback / 1e3 if options.slow_callback else None,
        metrics=options.metrics,
        trace=options.trace,
        narrate=options.narrate,
    )


def _sources(options: argparse.Namespace) -> SourceLimits:
    return SourceLimits(
        allow=tuple(options.allow),
        deny=tuple(options.deny),
        connections=options.max_connections_per_source,
        udp_rate=options.udp_rate,
        udp_rate_total=options.udp_rate_total,
        log_only=options.rate_log_only,
        ports=options.refuse_source_ports,
    )


def _add_what_to_serve(add: Callable[..., object]) -> None:
    add(
        "--host",
        action="append",
        default=[],
        metavar="HOST",
        type=_host,
        help="address or name to serve on, or '*' for every address; may repeat (default: this machine only)",
    )
    add(
        "--port",
        type=number(0, 65_535),
        default=ECHO_PORT,
        metavar="PORT",
        help="port for TCP and UDP; 0 takes a free one (default: %(default)s)",
    )
    add("--no-tcp", action="store_true", help="don't serve TCP")
    add("--no-udp", action="store_true", help="don't serve UDP")
    add(
        "--max-connections",
        type=number(1),
        metavar="N",
        help="at this many, callers wait in the kernel's queue (default: what the descriptor limit allows)",
    )


def _add_whom_to_serve(add: Callable[..., object]) -> None:
    for name, what in {"--allow": "serve nobody but these networks", "--deny": "don't serve these networks"}.items():
        add(
            name,
            action="extend",
            nargs="+",
            default=[],
            metavar="CIDR",
            type=checked(_network),
            help=f"{what}; may repeat; the smallest network that a source is in decides",
        )
    add(
        "--max-connections-per-source",
        type=checked(number(1), none=True),
        default=BY_BIND,
        metavar="N",
        help="more from one IPv4 address or IPv6 /64 are closed at once (default: a quarter of --max-connections; "
        "none where only loopback is served)",
    )
    add(
        "--udp-rate",
        type=checked(parse_rate, none=True),
        default=BY_BIND,
        metavar="PER_SECOND[:BURST]",
        help="answers to one IPv4 address or IPv6 /64 (default: 10000:20000, but not to loopback; none where only "
        "loopback is served)",
    )
    add(
        "--udp-rate-total",
        type=checked(parse_rate, none=True),
        metavar="PER_SECOND[:BURST]",
        help="answers to all sources together (default: none)",
    )
    add("--rate-log-only", action="store_true", help="count and log what is over a UDP rate, but answer it")
    add(
        "--refuse-source-ports",
        type=checked(parse_ports),
        default=DEFAULT_PORTS,
        metavar="SPEC",
        help="no answers over UDP to these: none, default, own, responders, 53, 6000-6100, '<1024', or several with "
        "commas (default: own,responders); never to 0",
    )


def _add_how_to_serve(add: Callable[..., object]) -> None:
    add("--no-udp-batch", action="store_true", help="answer UDP one datagram at a time")
    add("--no-splice", action="store_true", help="copy the bytes of bulk connections too")
    add(
        "--backlog",
        type=number(1, 2**31 - 1),
        default=BACKLOG,
        metavar="N",
        help="callers that may wait in the kernel's queue (default: %(default)s)",
    )
    add(
        "--socket-buffer",
        type=number(1024, 2**30),
        metavar="BYTES",
        help="cap the kernel's receive and send buffer of each socket (default: the kernel's own tuning)",
    )
    add(
        "--drain-timeout",
        type=seconds,
        default=5.0,
        metavar="SECONDS",
        help="how long to deliver and wait for callers' ends when stopping (default: %(default)g)",
    )
    add(
        "--idle-timeout",
        type=checked(_idle_timeout, none=True),
        metavar="SECONDS",
        help="let go of a connection when no byte has moved for so long (default: none, as the RFC has it)",
    )
    add(
        "--busy-poll",
        type=number(0, 1_000_000),
        default=0,
        metavar="MICROSECONDS",
        help="after activity, poll for so long before sleeping: answers come sooner (default: 0, off)",
    )
    add(
        "--selector",
        choices=("standard", "lean"),
        default="standard",
        help="what asks the kernel: Python's own, or a thinner layer over epoll (Linux) (default: %(default)s)",
    )


def _add_what_is_logged(add: Callable[..., object]) -> None:
    add("--log-level", choices=LEVELS, default="info", help="the least that is logged (default: %(default)s)")
    add("--log-format", choices=("text", "json"), default="text", help="form of the log lines (default: %(default)s)")


def _add_where_it_is_said(add: Callable[..., object]) -> None:
    add(
        "--config",
        metavar="FILE",
        help="a TOML file with these options under the same names; what is given here wins (default: none)",
    )
    add("--check-config", action="store_true", help="only say whether the options make sense")


def _add_as_whom_to_serve(add: Callable[..., object]) -> None:
    add(
        "--workers",
        type=_workers,
        default=1,
        metavar="N",
        help="processes that share the port, or 'auto' for one for each CPU; Linux only (default: %(default)s)",
    )
    add(
        "--user",
        type=_identity,
        metavar="NAME[:GROUP]",
        help="once the port is bound, be this user for good, without any other rights (default: whoever starts it)",
    )


def _add_seeing_inside(add: Callable[..., object]) -> None:
    add(
        "--slow-callback",
        type=number(0, 60_000),
        default=0,
        metavar="MILLISECONDS",
        help="log which callback has held all others up for so long (default: 0, off)",
    )
    add(
        "--metrics",
        type=metrics_address,
        metavar="HOST:PORT",
        help="serve /metrics for Prometheus and /healthz there, to whoever asks (default: none)",
    )
    add(
        "--trace",
        metavar="FILE",
        help="write there what the loop does, for 'python -m reactor.player'; or, if its name ends in .json, for "
        "ui.perfetto.dev (default: none)",
    )
    add("--narrate", action="store_true", help="log what the loop does, in plain words")


def _host(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty host names nothing; use '*' for every address")
    return text


def _network(text: str) -> str:
    from echo7.policy.access import network  # only who asks for it waits for it

    network(text)
    return text


def _idle_timeout(text: str) -> float:
    value = seconds(text)
    if not value:
        raise argparse.ArgumentTypeError("0 seconds would be the end of every connection; leave it out for no timeout")
    return value


def _identity(text: str) -> Identity:
    from echo7.process import privileges  # and the lists of users and groups: for those alone who ask for it

    return privileges.identity(text)


def _workers(text: str) -> int:
    if text == "auto":
        return min(len(os.sched_getaffinity(0)), WORKERS_LIMIT) if reuseport.AVAILABLE else 1
    try:
        return number(1, WORKERS_LIMIT)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor 'auto'") from None
