"""What a run looks like: as text, as JSON, or as a monitoring plugin.

Law: a view is given events and a result, and writes to one Output. What it shows doesn't change what is measured.
Whoever sends us garbage without end gets a few lines of it shown, and the rest counted.
"""

from __future__ import annotations

from typing import Protocol

from echo7.probe import document, nagios, text
from echo7.probe.output import Output
from echo7.probe.plan import Plan
from echo7.probe.result import PingResult
from echo7.probe.words import Event

SHOWN_STRAYS = 10  # lines about bytes that belong to no probe
# Of a run, by its verdict. 2 is for usage and 5 for names, which end before there is one.
STATUSES = {"replies": 0, "timed out": 1, "undecided": 1, "refused": 3, "unreachable": 4, "too big": 4}


class View(Protocol):
    """What the command asks of each form."""

    def begin(self, plan: Plan) -> None:
        """Say what will be done."""

    def event(self, event: Event) -> None:
        """Show what has happened."""

    def end(self, result: PingResult) -> int:
        """Show what was found; return the exit status."""


class TextView:
    """As ping does it. `quiet`: no line for each event. `block`: what bars are drawn with; empty for none."""

    def __init__(self, output: Output, host: str, where: str, *, quiet: bool = False, block: str = "") -> None:
        self._output, self._host, self._where = output, host, where
        self._quiet, self._block = quiet, block
        self._many_flows = False
        self._strays = 0

    def begin(self, plan: Plan) -> None:
        """Say what will be done."""
        self._many_flows = plan.flows > 1
        self._output.line(text.first_line(self._host, self._where, plan))

    def event(self, event: Event) -> None:
        """Show what has happened."""
        if not event.sequence:
            self._strays += 1
            if self._strays == SHOWN_STRAYS + 1 and not self._quiet:
                self._output.line("more bytes that belong to no probe are only counted")
        if not self._quiet and (event.sequence or self._strays <= SHOWN_STRAYS):
            self._output.line(text.event_line(event, self._where, self._many_flows))

    def end(self, result: PingResult) -> int:
        """Show what was found."""
        self._output.line("")
        for line in text.summary(result, self._block):
            self._output.line(line)
        return STATUSES[result.verdict]


class JsonView:
    """One document at the end, or (`lines`) an object for each event, and one for all of them."""

    def __init__(self, output: Output, *, lines: bool) -> None:
        self._output, self._lines = output, lines

    def begin(self, plan: Plan) -> None:
        """Say nothing: what will be done stands in the summary."""

    def event(self, event: Event) -> None:
        """Show what has happened."""
        if self._lines:
            self._output.line(document.event_json(event))

    def end(self, result: PingResult) -> int:
        """Show what was found."""
        self._output.line(document.summary_json(result, None if self._lines else 2))
        return STATUSES[result.verdict]


class PluginView:
    """One line, for Nagios and its kin."""

    def __init__(self, output: Output, warning: nagios.Thresholds, critical: nagios.Thresholds) -> None:
        self._output, self._warning, self._critical = output, warning, critical

    def begin(self, plan: Plan) -> None:
        """Say nothing."""

    def event(self, event: Event) -> None:
        """Say nothing."""

    def end(self, result: PingResult) -> int:
        """Judge."""
        status, line = nagios.judge(result, self._warning, self._critical)
        self._output.line(line)
        return status
