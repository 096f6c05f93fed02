"""Which page shows what."""

from __future__ import annotations

from collections.abc import Callable

from tests.reference import api, events, tables
from tests.support.basics import PROJECT

PAGES: dict[str, Callable[[], str]] = {
    "echo7/docs/reference/options.md": tables.options,
    "echo7/docs/reference/log-events.md": events.page,
    "echo7/docs/reference/drop-reasons.md": tables.drop_reasons,
    "echo7/docs/reference/metrics.md": tables.metrics,
    "echo7/docs/reference/exit-statuses.md": tables.exit_statuses,
    "echo7/docs/reference/api.md": api.echo7,
    "echo7/docs/reference/tools-api.md": api.tools,
    "reactor/docs/reference/api.md": api.reactor,
    "reactor/docs/reference/observe-api.md": api.observe,
    "reactor/docs/reference/testing-api.md": api.testing,
    "reactor/docs/reference/trace-format.md": tables.trace_format,
}


def stale() -> list[str]:
    """Return the pages that differ from what the code says."""
    files = {path: PROJECT / path for path in PAGES}
    return [path for path, file in files.items() if not file.exists() or file.read_text() != PAGES[path]()]
