"""Closes connections in which no byte has moved for a time, either way. Imported only when an idle timeout is set.

Law: a message costs nothing. Each connection's byte counters are looked at sixteen times within the timeout. When they
have moved, the idle time begins again with that look. So no connection is closed too early, and none later than an
eighth after the timeout. A look takes a bounded number of connections, those that are due, from the head of a queue.

Data that came before the deadline is echoed first. The process may have been stopped meanwhile (SIGSTOP), or the loop
was busy. So a connection that seems idle is read once more, and closed only when nothing is there. The end is an
orderly one: deliver what is pending, then FIN. When a client reads nothing of what is pending for twice the timeout,
its connection is reset. Until then, a client with full buffers can still read, and get everything that it has sent.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from echo7.policy.reasons import Reason
from reactor.connection import LINGERING, OPEN, Connection
from reactor.loop import READ, Reactor
from reactor.sockets.errors import os_error

# within the timeout
LOOKS = 16
CONNECTIONS_PER_LOOK = 256
# a timeout of a nanosecond must not make the loop spin
LEAST_STEP_S = 0.01
# A look also takes connections that are due within this part of a step, so that the loop wakes less often.
EARLY = 1 / 8
# sixteen sixteenths may be a little less than one
ROUNDING = 1e-9


class Seen(NamedTuple):
    """What the last look at a connection found, and when the next look is due."""

    due_s: float
    bytes_moved: int
    idle_since_s: float


class IdleWatch:
    """Watches the connections of one server. Calls `ended(connection, reason)` for each that it closes."""

    def __init__(self, reactor: Reactor, timeout_s: float, ended: Callable[[Connection, Reason], object]) -> None:
        self._reactor = reactor
        self._timeout_s, self._step_s = timeout_s * (1 - ROUNDING), max(timeout_s / LOOKS, LEAST_STEP_S)
        self._ended = ended
        # in the order in which they are due
        self._queue: OrderedDict[Connection, Seen] = OrderedDict()
        # whether the timer is set; there is only one
        self._waiting = False

    def watch(self, connection: Connection) -> None:
        """Begin to watch a new connection."""
        self._put_back(connection, self._reactor.now())
        self._wait()

    def forget(self, connection: Connection) -> None:
        """Stop watching: the connection is lost."""
        self._queue.pop(connection, None)

    def _put_back(self, connection: Connection, idle_since_s: float) -> None:
        due_s = self._reactor.now() + self._step_s
        self._queue[connection] = Seen(due_s, _bytes_moved(connection), idle_since_s)
        self._queue.move_to_end(connection)

    def _wait(self) -> None:
        if self._queue and not self._waiting:
            self._waiting = True
            self._reactor.call_at(next(iter(self._queue.values())).due_s, self._look_round)

    def _look_round(self) -> None:
        self._waiting = False
        now_s = self._reactor.now()
        for _ in range(CONNECTIONS_PER_LOOK):
            if not self._queue:
                return
            connection, seen = next(iter(self._queue.items()))
            if seen.due_s > now_s + self._step_s * EARLY:
                break
            self._look(connection, seen, now_s)
        self._wait()

    def _look(self, connection: Connection, seen: Seen, now_s: float) -> None:
        moved = _bytes_moved(connection) != seen.bytes_moved
        idle_s = 0.0 if moved else now_s - seen.idle_since_s
        restarts = moved or (idle_s >= self._timeout_s and self._end(connection, idle_s))
        self._put_back(connection, now_s if restarts else seen.idle_since_s)

    def _end(self, connection: Connection, idle_s: float) -> bool:
        """Close a connection that is really idle. Return whether its idle time begins again."""
        if connection.state is OPEN and connection.interest & READ:
            before = _bytes_moved(connection)
            # Don't wait for select: when many sockets are ready, it may report only some of them.
            self._reactor.guard(connection.on_event, READ, owner=connection)
            if connection.state is OPEN and _bytes_moved(connection) == before:
                self._ended(connection, Reason.IDLE_TIMEOUT)
                connection.close()
        elif connection.state is OPEN and idle_s < 2 * self._timeout_s:
            # above its high-water mark: there may be more to read
            return False
        # a lingering connection has a deadline of its own
        elif not (connection.closed or connection.state is LINGERING):
            self._ended(connection, Reason.IDLE_STUCK)
            connection.abort(os_error(errno.ETIMEDOUT))
        return True


def _bytes_moved(connection: Connection) -> int:
    return connection.bytes_received + connection.bytes_sent
