"""Pages that show what the code declares: options, drop reasons, metrics, exit statuses, the format of a trace."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator

from echo7 import serve
from echo7.arguments import Option
from echo7.checker import command as check
from echo7.cli import new_parser
from echo7.metrics.snapshot import Snapshot
from echo7.policy import reasons
from echo7.policy.guard import RESPONDER_PORTS
from echo7.probe import command as ping
from echo7.settings import ABOUT_SETTINGS, by_group
from reactor.lessons import __main__ as lessons
from reactor.observe.kinds import EVENT_KEYS, HEADER_KEYS, KINDS, Kind
from reactor.player import __main__ as player
from reactor.sockets.errors import DROP_REASONS, RECEIVE, SEND
from tests.reference.source import made_from, table

OPTIONS_PAGE = """\
# The options of `echo7`

## `echo7 serve`

In the file of `--config`, each option has the same name without the dashes: `port = 7007`, `no-udp = true`,
`host = ["192.0.2.1", "2001:db8::1"]`. The word `none` needs quotes there. The last column says what SIGHUP does with a
changed value in the file.

"""
DROPS_PAGE = """\
# Drop reasons

A client or a datagram that isn't served is counted under one of these reasons. They are in the counters under `drops`
(`USR1`, and the last log line), in the event `dropped` under `reason`, and in [the metrics](metrics.md) as a label.

"""
METRICS_PAGE = """\
# Metrics

Metrics need `pip install 'echo7[metrics]'`.

"""
STATUSES_PAGE = """\
# Exit statuses

"""
TRACE_PAGE = """\
# The format of a trace

`echo7 serve --trace FILE`, `reactor.observe.sinks.JsonLines` and `SimulatedNetwork(seed, trace=FILE)` write this
format; `python -m reactor.player` reads it. A trace is JSON Lines: a header, then one event a line. Masks are `""`,
`"R"`, `"W"` or `"RW"`. Times are in seconds, sizes in bytes. A killed process may leave half a line at the end.

"""


# ---- options


def options() -> str:
    """Return the page of options."""
    parts = [OPTIONS_PAGE, made_from("`echo7/settings.py` and the parsers of the other commands")]
    for title, group in by_group().items():
        rows = [_option(option) for option in group]
        parts.append(f"\n### {title.capitalize()}\n\n" + table(("option", "what it does", "default", "SIGHUP"), rows))
    _, commands = new_parser()
    for name in sorted(commands.keys() - {"serve"}):
        rows = [*_arguments(commands[name])]
        parts.append(f"\n## `echo7 {name}`\n\n" + table(("option", "what it does"), rows))
    return "".join(parts)


def _option(option: Option) -> tuple[str, ...]:
    applies = "" if option in ABOUT_SETTINGS else "refused: needs a restart" if option.restart else "applies"
    name = f"{option.flag} {option.metavar}".rstrip()
    return f"`{name}`", _marked(option.explained), _marked(option.default or "off"), applies


def _arguments(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    formatter = argparse.HelpFormatter("")
    for action in parser._actions:
        if "--help" not in action.option_strings:
            value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
            name = ", ".join(action.option_strings) + value
            yield f"`{name.strip()}`", _marked(formatter._expand_help(action))


def _marked(text: str) -> str:
    """Return help as Markdown: what is quoted there is code here."""
    return text.replace("'*'", "`*`").replace("'<1024'", "`<1024`")


# ---- drop reasons


def drop_reasons() -> str:
    """Return the page of drop reasons."""
    found = {str(reason): reason.meaning for reason in reasons.Reason} | DROP_REASONS
    found |= {reasons.ACCEPT: reasons.ACCEPT_MEANING}
    families = {"refused_": "Connections", "accept_": "Connections", "idle_": "Connections"}

    def family(reason: str) -> str:
        return next((name for start, name in families.items() if reason.startswith(start)), "Datagrams")

    parts = [DROPS_PAGE, made_from("`echo7/policy/reasons.py` and `reactor/datagram.py`")]
    for title in ("Datagrams", "Connections"):
        rows = [(_reason(reason), meaning) for reason, meaning in found.items() if family(reason) == title]
        parts.append(f"\n## {title}\n\n" + table(("reason", "why"), rows))
    ports = ", ".join(f"{port} ({name})" for port, name in RESPONDER_PORTS.items())
    return "".join([*parts, "\n## The ports of `source_port_responder`\n\n", textwrap.fill(f"{ports}.", 118), "\n"])


def _reason(reason: str) -> str:
    return f"`{reason}ERRNO`" if reason in (SEND, RECEIVE, reasons.ACCEPT) else f"`{reason}`"


# ---- metrics


class NoWorkers:
    """A supervisor that has seen nothing yet."""

    def __init__(self) -> None:
        self.problem, self.past, self.killed = "", Snapshot(), {"silent": 0}
        self.silences_s, self.snapshots = {1: 0.0}, {1: Snapshot()}


def metrics() -> str:
    """Return the page of metrics. Raise ImportError without prometheus-client."""
    from echo7.metrics.service import workers_families
    from echo7.probe.report import prometheus

    serving = [*workers_families(Snapshot(), NoWorkers())]
    probing = [*prometheus.families([])]
    parts = [METRICS_PAGE, made_from("`echo7/metrics` and `echo7/probe/report/prometheus.py`")]
    for title, found in (("`echo7 serve --metrics`", serving), ("`echo7 ping --metrics`", probing)):
        parts.append(f"\n## {title}\n\n" + table(("metric", "type", "labels", "what it is"), map(_metric, found)))
    return "".join(parts)


def _metric(family: object) -> tuple[str, str, str, str]:
    found = vars(family)
    suffix = {"counter": "_total", "info": "_info"}.get(found["type"], "")
    labels = found["_labelnames"] or dict.fromkeys(label for sample in found["samples"] for label in sample.labels)
    named = ", ".join(f"`{label}`" for label in labels if label != "le")
    return f"`{found['name']}{suffix}`", found["type"], named, found["documentation"]


# ---- exit statuses


def exit_statuses() -> str:
    """Return the page of exit statuses."""
    commands = {
        "echo7 serve": serve.EXIT_STATUSES,
        "echo7 check": check.EXIT_STATUSES,
        "echo7 ping": ping.EXIT_STATUSES,
        "echo7 ping --warn … --crit …": ping.PLUGIN_STATUSES,
        "python3 -m reactor.lessons": lessons.EXIT_STATUSES,
        "python3 -m reactor.player": player.EXIT_STATUSES,
    }
    parts = [STATUSES_PAGE, made_from("the tables from which `--help` and the manual page are made")]
    for name, statuses in commands.items():
        parts.append(f"\n## `{name}`\n\n" + table(("status", "when"), statuses.items()))
    return "".join(parts)


# ---- the trace


def trace_format() -> str:
    """Return the page of the trace's format."""
    kinds = [(f"`{name}`", _kind_fields(kind), kind.meaning) for name, kind in KINDS.items()]
    return "".join([
        TRACE_PAGE,
        made_from("`reactor/observe/kinds.py`"),
        "\n## The header\n\n", table(("key", "what it is"), _keys(HEADER_KEYS)),
        "\n## Every event\n\n", table(("key", "what it is"), _keys(EVENT_KEYS)),
        "\n## The kinds\n\nFields in brackets are in some events of the kind only.\n\n",
        table(("kind", "fields", "what happened"), kinds),
    ])  # fmt: skip


def _keys(keys: dict[str, str]) -> Iterator[tuple[str, str]]:
    return ((f"`{key}`", meaning) for key, meaning in keys.items())


def _kind_fields(kind: Kind) -> str:
    return ", ".join([*(f"`{name}`" for name in kind.fields), *(f"[`{name}`]" for name in kind.optional)])
