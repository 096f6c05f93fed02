"""`echo7 ping`: options → a plan → a run → an exit status.

With --metrics it runs until a signal, and serves Prometheus. With --warn or --crit it is a monitoring plugin.

Law: what is known to be wrong before the first probe is reported before it, in one line on stderr.
"""

from __future__ import annotations

import argparse
import errno
import functools
import re
import signal
import socket
import sys
from typing import NoReturn

from echo7.arguments import HelpFormatter, metrics_address, number, seconds
from echo7.logs import log
from echo7.probe.measure.words import Event
from echo7.probe.once import ENDING_SIGNALS, handle_signals, new_reactor
from echo7.probe.plan import DEFAULT_SIZE_BYTES, LAST_PORT, MOST_FLOWS, Plan, misfit, plan_in_seconds
from echo7.probe.prober import CannotProbe, Prober
from echo7.probe.report import nagios, text
from echo7.probe.report.views import STATUSES, JsonView, PluginView, TextView, View
from echo7.probe.report.writer import LineWriter
from echo7.probe.result import counts_of, result_of, rtt_of
from echo7.process import limits
from echo7.sockets.resolve import UnresolvedName, resolve
from reactor.console.commandline import list_statuses
from reactor.loop import Reactor
from reactor.sockets.addresses import Address, format_address

DESCRIPTION = """\
Send probes to any echo server (RFC 862) at a constant rate and report the
outcome of each: answered, late, lost, damaged, reordered, refused and more.
"""
EPILOG = """\
limits:
  one or more of rtt=20ms,p99=50ms,jitter=5ms,loss=1%

signals:
  INT, TERM  end with the summary; a second one ends at once
  QUIT       print the summary so far on stderr
"""
EXAMPLES = """\
examples:
  echo7 ping 192.0.2.7                         one probe a second, until ^C
  echo7 ping fe80::1%eth0 --tcp -c 10          a link-local address
  echo7 ping host.example -i 0.01 -q           100 a second, one live line
  echo7 ping host.example --flows 16 -i 0.05   find one bad path of several
  echo7 ping host.example --df -s 1380:1480:4  find the path MTU
  echo7 ping host.example -i 0 -c 100000 -q    as fast as answers come
  echo7 ping 192.0.2.7 198.51.100.7 --metrics 127.0.0.1:9107
  echo7 ping host.example --warn rtt=20ms,loss=1% --crit rtt=100ms,loss=5%
"""
EXIT_STATUSES = {
    "0": "replies came; with --metrics: ended by a signal",
    "1": "every probe timed out; with --metrics: couldn't start",
    "2": "invalid options: they make no sense, or no socket is available",
    "3": "refused: nothing listens on that port",
    "4": "unreachable: no route, or none for so large a datagram",
    "5": "the name can't be resolved",
    "74": "stdout can't be written",
    "141": "the reader of stdout has gone",
    "128 + n": "ended by a second signal n",
}
PLUGIN_STATUSES = {
    "0": "OK",
    "1": "WARNING: a value is above its threshold of --warn",
    "2": "CRITICAL: a value is above its threshold of --crit, or no reply came",
    "3": "UNKNOWN: invalid options, or the name can't be resolved",
}

STDOUT, STDERR = 1, 2
USAGE, UNRESOLVED, OUTPUT_FAILED = 2, 5, 74  # the last is EX_IOERR of sysexits.h
PLUGIN_COUNT = 5
LIVE_S = 0.25  # between two states of the live line
PLUGIN_OPTION = re.compile("--(w|cr)")  # argparse takes abbreviations


class Refusal(Exception):
    """Why a run can't start: one line, an exit status, and that of a plugin."""

    def __init__(self, status: int, plugin_status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.plugin_status = status, plugin_status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = DESCRIPTION
    plugin = ", ".join(f"{status} {meaning.partition(':')[0]}" for status, meaning in PLUGIN_STATUSES.items())
    statuses = f"{list_statuses(EXIT_STATUSES)}  with --warn or --crit: {plugin}\n"
    parser.epilog = f"{EPILOG}\n{statuses}\n{EXAMPLES}"
    parser.formatter_class = functools.partial(HelpFormatter, max_help_position=26)
    if any(map(PLUGIN_OPTION.match, sys.argv)):
        # monitoring expects UNKNOWN, on stdout
        parser.error = _plugin_error  # type: ignore[method-assign]
    _add_target(parser)
    _add_probes(parser)
    _add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit status. Usage errors raise SystemExit."""
    log.set_up("error", "text")
    is_plugin = options.warn is not None or options.crit is not None
    try:
        plan = plan_of(options, is_plugin)
    except ValueError as error:
        options.parser.error(str(error))
    output = LineWriter(STDOUT)
    try:
        addresses = _addresses_of(options, plan)
        status = _run_plan(options, plan, addresses, output)
    except Refusal as refusal:
        status = refusal.plugin_status if is_plugin else refusal.status
        if is_plugin:
            output.line(nagios.line(status, str(refusal)))
        else:
            _complain(str(refusal))
    output.finish()
    return _status_of(output, status)


def plan_of(options: argparse.Namespace, is_plugin: bool) -> Plan:
    """Return the plan that the options ask for. Raise ValueError if it makes no sense."""
    _check_form(options, is_plugin)
    if is_plugin and (options.json or options.jsonl or options.quiet):
        raise ValueError("--warn and --crit print their own line; leave out --json, --jsonl or -q")
    count = options.count
    if count is None and is_plugin:
        count = PLUGIN_COUNT
    elif count is None and len(options.size) > 1:
        count = options.flows * len(options.size)
    return plan_in_seconds(
        options.interval, options.timeout, tcp=options.tcp, probes=count, sizes=options.size, flows=options.flows,
        source_port=options.source_port, df=options.df,
    )  # fmt: skip


def _check_form(options: argparse.Namespace, is_plugin: bool) -> None:
    hosts = options.hosts
    if options.metrics is None and len(hosts) > 1:
        raise ValueError("several hosts need --metrics; give one host, or add that")
    if options.metrics is not None and (is_plugin or options.json or options.jsonl or options.quiet):
        raise ValueError("--metrics serves pages instead of output; leave out --json, --jsonl, -q, --warn and --crit")
    if len({*hosts}) < len(hosts):
        raise ValueError("a host is given twice; give each host once")
    if options.source_port and len(hosts) > 1:
        raise ValueError("several hosts can't share a --source-port; leave it out")


def _addresses_of(options: argparse.Namespace, plan: Plan) -> list[Address | None]:
    descriptors = limits.raise_descriptor_limit()
    flows = plan.flows * len(options.hosts)
    if flows + limits.kept_back(descriptors) > descriptors:
        need = f"{flows} flows need" if flows > 1 else "a flow needs"
        message = f"{need} more than the {descriptors} descriptors of this process"
        raise Refusal(USAGE, nagios.UNKNOWN, f"{message}; raise 'ulimit -n', or take fewer --flows")
    addresses: list[Address | None] = []
    unresolved: list[UnresolvedName] = []
    for host in options.hosts:
        try:
            addresses.append(_look_up(options, plan, host))
        except UnresolvedName as error:
            unresolved.append(error)
            # an exporter tries it again
            addresses.append(None)
    if len(unresolved) == len(addresses):
        raise Refusal(UNRESOLVED, nagios.UNKNOWN, str(unresolved[0]))
    return addresses


def _look_up(options: argparse.Namespace, plan: Plan, host: str) -> Address:
    address = resolve(host, options.port, options.family)[0]
    if problem := misfit(plan, str(address[0])):
        raise Refusal(USAGE, nagios.UNKNOWN, problem)
    return address


def _look_up_again(options: argparse.Namespace, plan: Plan, host: str) -> Address:
    try:
        return _look_up(options, plan, host)
    except Refusal as error:
        raise UnresolvedName(str(error)) from None


def _run_plan(options: argparse.Namespace, plan: Plan, addresses: list[Address | None], output: LineWriter) -> int:
    """Run the plan on a loop of its own, and print the result. Return the exit status."""
    if options.metrics is not None:
        from echo7.probe import exporter
        from echo7.probe.report.prometheus import Target

        targets = [Target(host, options.port, address) for host, address in zip(options.hosts, addresses, strict=True)]
        return exporter.run(options.metrics, plan, targets, functools.partial(_look_up_again, options, plan))
    [host], [address] = options.hosts, filter(None, addresses)
    view = _view_of(options, address, output)
    is_live = options.quiet and output.takes_escapes
    try:
        with new_reactor(plan.flows) as reactor:
            prober = Prober(
                reactor, address, plan, ended=reactor.stop, told=lambda event: _show(prober, view, output, event)
            )
            handle_signals(reactor, prober.stop, lambda: _print(STDERR, *text.summary(result_of(prober, host))))
            prober.start()
            view.begin(plan)
            if is_live:
                _show_live(reactor, prober, output)
            reactor.run()
            # a second signal ends the process before the summary
            for signum in ENDING_SIGNALS:
                signal.signal(signum, signal.SIG_DFL)
    except CannotProbe as error:
        statuses = (STATUSES["unreachable"], nagios.CRITICAL) if error.unreachable else (USAGE, nagios.UNKNOWN)
        raise Refusal(*statuses, str(error)) from None
    if is_live:
        output.live("")
    return view.end(result_of(prober, host))


def _show(prober: Prober, view: View, output: LineWriter, event: Event) -> None:
    view.event(event)
    if output.error is not None:
        prober.stop()


def _show_live(reactor: Reactor, prober: Prober, output: LineWriter) -> None:
    """Print the live line, now and every LIVE_S."""
    total = prober.ledger.total
    output.live(text.live_line(counts_of(total), rtt_of(total.rtts)))
    reactor.call_later(LIVE_S, _show_live, reactor, prober, output)


def _view_of(options: argparse.Namespace, address: Address, output: LineWriter) -> View:
    if options.warn is not None or options.crit is not None:
        return PluginView(output, options.warn or {}, options.crit or {})
    if options.json or options.jsonl:
        return JsonView(output, lines=options.jsonl)
    block = text.block_for(getattr(sys.stdout, "encoding", None)) if output.is_terminal else ""
    return TextView(output, options.hosts[0], format_address(address), quiet=options.quiet, block=block)


def _status_of(output: LineWriter, status: int) -> int:
    if output.dropped:
        _complain(f"{output.dropped} lines dropped: the reader is too slow")
    if output.error is None:
        return status
    if output.error.errno == errno.EPIPE:
        return 128 + getattr(signal, "SIGPIPE", 13)
    _complain(f"cannot write to standard output: {output.error.strerror}; nothing more was sent")
    return OUTPUT_FAILED


def _print(descriptor: int, *lines: str) -> None:
    output = LineWriter(descriptor)
    for line in lines:
        output.line(line)
    output.finish()


def _complain(message: str) -> None:
    _print(STDERR, f"echo7 ping: {message}")


def _plugin_error(message: str) -> NoReturn:
    _print(STDOUT, nagios.line(nagios.UNKNOWN, f"{message}; see 'echo7 ping --help'"))
    raise SystemExit(nagios.UNKNOWN)


# ---------------------------------------------------------------- options


def _add_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("target")
    group.add_argument("hosts", nargs="+", metavar="HOST", help="name or address; several with --metrics")
    port_help = "port of the server (default: 7)"
    group.add_argument("--port", type=number(1, LAST_PORT), default=7, metavar="PORT", help=port_help)
    family = group.add_mutually_exclusive_group()
    for flag, kind in (("-4", socket.AF_INET), ("-6", socket.AF_INET6)):
        family.add_argument(flag, action="store_const", const=kind, dest="family", help=f"use IPv{flag[1]} only")
    transport = group.add_mutually_exclusive_group()
    transport.add_argument("--udp", action="store_false", dest="tcp", help="send datagrams (default)")
    transport.add_argument("--tcp", action="store_true", help="send frames in a stream")
    parser.set_defaults(tcp=False, family=socket.AF_UNSPEC)


def _add_probes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("probes")
    for names, convert, default, metavar, words in (
        ("-c --count", number(1), None, "N", "end after N probes (default: no end)"),
        ("-i --interval", seconds, 1.0, "SEC", "time between probes; 0: no pause (default: 1)"),
        ("-s --size", _sizes, (DEFAULT_SIZE_BYTES,), "SIZE", "payload in bytes, or MIN:MAX:STEP (default: 56)"),
        ("-W --timeout", seconds, 2.0, "SEC", "an answer that takes longer is late (default: 2)"),
        ("--flows", number(1, MOST_FLOWS), 1, "N", "use N source ports, compare their paths (default: 1)"),
        ("--source-port", number(1, LAST_PORT), 0, "PORT", "port of the first flow (default: any free ports)"),
    ):
        group.add_argument(*names.split(), type=convert, default=default, metavar=metavar, help=words)
    group.add_argument("--df", action="store_true", help="don't fragment, and report the path MTU")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    forms = group.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print one JSON document at the end")
    forms.add_argument("--jsonl", action="store_true", help="print a JSON object for each event and at the end")
    forms.add_argument("-q", "--quiet", action="store_true", help="print the summary only; a live line on a terminal")
    metrics_help = "serve /metrics and /healthz until a signal"
    group.add_argument("--metrics", type=metrics_address, metavar="HOST:PORT", help=metrics_help)
    for flag, state in (("--warn", "WARNING"), ("--crit", "CRITICAL")):
        words = f"be a monitoring plugin: {state} above LIMITS"
        group.add_argument(flag, type=_thresholds, metavar="LIMITS", help=words)


def _sizes(argument: str) -> tuple[int, ...]:
    convert = number(0)
    parts = [convert(part) for part in argument.split(":")]
    if len(parts) == 1:
        return (parts[0],)
    if len(parts) != 3 or parts[0] > parts[1] or not parts[2]:
        raise argparse.ArgumentTypeError(f"{argument!r} is neither a size nor MIN:MAX:STEP with MIN up to MAX, by STEP")
    least, most, step = parts
    if most > LAST_PORT:
        raise argparse.ArgumentTypeError(f"{argument!r}: no datagram carries {most} bytes")
    return tuple(range(least, most + 1, step))


def _thresholds(argument: str) -> dict[str, float]:
    try:
        return nagios.thresholds(argument)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
