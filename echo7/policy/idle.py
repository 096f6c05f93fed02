"""Idle connections: who is let go after so many seconds in which no byte moved either way. Off, it isn't even imported.

Law: nothing is done for a message. Each connection's byte counters are looked at sixteen times in the time allowed;
when they have moved, the silence begins anew with that look. So nobody is let go too early, and nobody later than an
eighth after the time. A look takes a bounded number of connections, those that are due, from the head of a queue.

What came before the deadline is echoed first. The process may have been stopped meanwhile (SIGSTOP), or the loop busy,
so whoever seems silent is read from once more, there and then; only when nothing is there does the end begin. It is an
orderly one: what is pending is delivered, then FIN. A caller who takes none of what is pending for twice the time is
reset. Until then, one who has filled his buffers may still take it, and have all that he has sent.
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

LOOKS = 16  # in the time allowed
CONNECTIONS_PER_LOOK = 256
EARLY = 1 / 8  # of the time between two looks: who is due so soon is looked at too, so that the loop wakes less often
ROUNDING = 1e-9  # sixteen sixteenths may be a little less than one


class Seen(NamedTuple):
    """What the last look at a connection has found."""

    due_s: float  # when to look again
    bytes_moved: int
    silent_since_s: float


class IdleWatch:
    """Looks after the connections of one server. `ended(connection, reason)` is called for each that is let go."""

    __slots__ = ("_ended", "_queue", "_reactor", "_step_s", "_timeout_s", "_waiting")

    def __init__(self, reactor: Reactor, timeout_s: float, ended: Callable[[Connection, Reason], object]) -> None:
        self._reactor = reactor
        self._timeout_s, self._step_s = timeout_s * (1 - ROUNDING), timeout_s / LOOKS
        self._ended = ended
        self._queue: OrderedDict[Connection, Seen] = OrderedDict()  # by when they are due
        self._waiting = False  # a timer is set; there is one at the most

    def watch(self, connection: Connection) -> None:
        """Begin with a new connection."""
        self._put_back(connection, self._reactor.now())
        self._wait()

    def forget(self, connection: Connection) -> None:
        """A connection is lost."""
        self._queue.pop(connection, None)

    def _put_back(self, connection: Connection, silent_since_s: float) -> None:
        due_s = self._reactor.now() + self._step_s
        self._queue[connection] = Seen(due_s, _bytes_moved(connection), silent_since_s)
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
        silent_s = 0.0 if moved else now_s - seen.silent_since_s
        anew = moved or (silent_s >= self._timeout_s and self._end(connection, silent_s))
        self._put_back(connection, now_s if anew else seen.silent_since_s)

    def _end(self, connection: Connection, silent_s: float) -> bool:
        """Let go of a connection that is silent indeed. Return whether the silence begins anew."""
        if connection.state is OPEN and connection.interest & READ:
            before = _bytes_moved(connection)
            # Not left to the next select: of many that are ready it may tell of some only.
            self._reactor.guard(connection.on_event, READ, owner=connection)
            if connection.state is OPEN and _bytes_moved(connection) == before:
                self._ended(connection, Reason.IDLE_TIMEOUT)
                connection.close()
        elif connection.state is OPEN and silent_s < 2 * self._timeout_s:  # held back: there may be more to be read
            return False
        elif not (connection.closed or connection.state is LINGERING):  # that has a deadline of its own
            self._ended(connection, Reason.IDLE_STUCK)
            connection.abort(os_error(errno.ETIMEDOUT))
        return True


def _bytes_moved(connection: Connection) -> int:
    return connection.bytes_received + connection.bytes_sent
