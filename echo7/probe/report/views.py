"""The forms of output: text, JSON, or a monitoring plugin's line.

Law: a view gets events and a result, and writes to one LineWriter, which doesn't affect the measurement. A few lines of
endless garbage are shown, and the rest are counted.
"""

from __future__ import annotations

from typing import Protocol

from echo7.probe.measure.words import Event
from echo7.probe.plan import Plan
from echo7.probe.report import document, nagios, text
from echo7.probe.report.writer import LineWriter
from echo7.probe.result import PingResult

SHOWN_STRAYS = 10  # lines about bytes that belong to no probe
# the exit status by verdict; 2 (usage) and 5 (names) end before there is a verdict
STATUSES = {"replies": 0, "timed out": 1, "undecided": 1, "refused": 3, "unreachable": 4, "too big": 4}


class View(Protocol):
    """A form of output. By default only the end is printed."""

    def begin(self, plan: Plan) -> None:
        """Print what the run will do."""
        return

    def event(self, event: Event) -> None:
        """Print an event."""
        return

    def end(self, result: PingResult) -> int:
        """Print the result; return the exit status."""


class TextView(View):
    """Text like ping's. `quiet`: no line for each event. `block`: the character for bars, empty for none."""

    def __init__(self, output: LineWriter, host: str, where: str, *, quiet: bool = False, block: str = "") -> None:
        self._output, self._host, self._where = output, host, where
        self._quiet, self._block = quiet, block
        self._many_flows = False
        self._strays = 0

    def begin(self, plan: Plan) -> None:
        """Print what the run will do."""
        self._many_flows = plan.flows > 1
        self._output.line(text.first_line(self._host, self._where, plan))

    def event(self, event: Event) -> None:
        """Print an event."""
        if not event.sequence:
            self._strays += 1
            if self._strays == SHOWN_STRAYS + 1 and not self._quiet:
                self._output.line("from here on, bytes that belong to no probe are only counted")
        if not self._quiet and (event.sequence or self._strays <= SHOWN_STRAYS):
            self._output.line(text.event_line(event, self._where, self._many_flows))

    def end(self, result: PingResult) -> int:
        """Print the result; return the exit status."""
        self._output.line("")
        for line in text.summary(result, self._block):
            self._output.line(line)
        return STATUSES[result.verdict]


class JsonView(View):
    """One document at the end, or (`lines`) an object for each event and one at the end."""

    def __init__(self, output: LineWriter, *, lines: bool) -> None:
        self._output, self._lines = output, lines

    def event(self, event: Event) -> None:
        """Print an event."""
        if self._lines:
            self._output.line(document.event_json(event))

    def end(self, result: PingResult) -> int:
        """Print the result; return the exit status."""
        self._output.line(document.summary_json(result, None if self._lines else 2))
        return STATUSES[result.verdict]


class PluginView(View):
    """One line, for Nagios and similar monitoring."""

    def __init__(self, output: LineWriter, warning: nagios.Thresholds, critical: nagios.Thresholds) -> None:
        self._output, self._warning, self._critical = output, warning, critical

    def end(self, result: PingResult) -> int:
        """Print the line; return the exit status."""
        status, line = nagios.rate(result, self._warning, self._critical)
        self._output.line(line)
        return status
