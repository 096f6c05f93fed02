"""dump(reactor): all that a loop holds, as one table for people.

Law: a dump changes nothing and has a bounded number of rows. Listeners and endpoints come first, then connections by
pending bytes, then timers by deadline, then calls in their order. Rows that are cut off are counted.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from reactor.connection import Connection
from reactor.handler import Handler
from reactor.loop import READ, WRITE, Reactor
from reactor.observe.describe import callback_name, place, protocol_name

__all__ = ["dump"]

MOST_ROWS = 200
HANDLER_ROWS, TIMER_ROWS, CALL_ROWS = 140, 40, 15  # plus summary, head, and a row per kind that is cut off
HEAD = ("what", "fd", "watched", "state", "pending", "received", "sent", "where")
NUMBERS = {1, 4, 5, 6}  # columns aligned to the right


def dump(reactor: Reactor) -> str:
    """Return a table of handlers, interest, buffers, timers and queued calls, of at most MOST_ROWS lines.

    Watched: `r`, `w` or `-`, in brackets while the handler is suspended. Sizes are in bytes.
    """
    handlers, suspended, timers, calls, _ = reactor.snapshot()
    pending = {handler: pending_bytes(handler) for handler in handlers}
    first = heapq.nsmallest(HANDLER_ROWS, handlers, key=lambda each: (isinstance(each, Connection), -pending[each]))
    due = heapq.nsmallest(TIMER_ROWS, timers, key=lambda timer: timer.deadline_s)
    now_s = reactor.now()
    lines = _aligned([HEAD, *(_row(handler, handler in suspended, pending[handler]) for handler in first)])
    lines += _cut(len(handlers) - len(first), "handlers", f", {_left(pending, first):,} bytes pending")
    lines += [f"timer in {t.deadline_s - now_s:.3f} s: {callback_name(t.callback)}" for t in due if t.callback]
    lines += _cut(len(timers) - len(due), "timers")
    lines += [f"call: {callback_name(callback)}" for callback, _ in calls[:CALL_ROWS]]
    lines += _cut(len(calls) - CALL_ROWS, "calls")
    held = f"{sum(pending.values()):,} bytes pending"
    return "\n".join([f"{len(handlers):,} handlers, {held}, {len(timers):,} timers, {len(calls):,} calls", *lines])


def pending_bytes(handler: Handler) -> int:
    """Return the number of bytes that a handler holds and the kernel hasn't taken."""
    return getattr(handler, "pending_bytes", 0)


def _left(pending: dict[Handler, int], shown: Iterable[Handler]) -> int:
    return sum(pending.values()) - sum(pending[handler] for handler in shown)


def _row(handler: Handler, suspended: bool, pending: int) -> tuple[str, ...]:
    watched = ("r" if handler.interest & READ else "") + ("w" if handler.interest & WRITE else "") or "-"
    where = ", ".join(part for part in (place(handler), protocol_name(handler)) if part)
    return (
        type(handler).__name__,
        str(handler.fileno()),
        f"({watched})" if suspended else watched,
        handler.state.name if isinstance(handler, Connection) else "",
        f"{pending:,}" if pending else "",
        *(f"{getattr(handler, name):,}" if hasattr(handler, name) else "" for name in ("bytes_received", "bytes_sent")),
        where,
    )


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]

    def line(row: tuple[str, ...]) -> str:
        cells = [
            cell.rjust(width) if column in NUMBERS else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return [line(row) for row in rows]


def _cut(count: int, what: str, more: str = "") -> list[str]:
    return [f"… and {count:,} more {what}{more}"] if count > 0 else []
