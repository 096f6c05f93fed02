"""Which connection makes room when a server is full. Pure choice; imported only where it is wanted.

    enter ─► by source, each a queue ─► full: the source with the most connections ─► its longest silent one

Law: nothing is closed while there is room, or while no client waits for it. A connection is silent when no byte has
moved, either way, for SILENT_S. So sources that only hold connections lose them one by one to clients that come, and
the source with the most connections first. A message costs nothing: as in `idle.py`, byte counters are compared only
when room is needed. Choosing takes a bounded number of looks, whatever the number of connections: each
look takes the head of a queue, and puts it back if it isn't silent.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from itertools import islice
from typing import NamedTuple

from reactor.connection import OPEN, Connection
from reactor.loop import READ, Reactor

SILENT_S = 5.0
LOOKS = 64


class Seen(NamedTuple):
    """What the last look at a connection found, and when its silence began."""

    bytes_moved: int
    since_s: float


class Crowd:
    """The open connections of one server by source."""

    __slots__ = ("_by_count", "_by_source", "_most", "_reactor")

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        # by source, the connection that was looked at longest ago first
        self._by_source: defaultdict[bytes, OrderedDict[Connection, Seen]] = defaultdict(OrderedDict)
        # sources by their number of connections, and the largest number
        self._by_count: defaultdict[int, OrderedDict[bytes, None]] = defaultdict(OrderedDict)
        self._most = 0

    def enter(self, connection: Connection, source: bytes) -> None:
        """Add a new connection."""
        queue = self._by_source[source]
        queue[connection] = self._look(connection)
        self._count(source, len(queue) - 1, len(queue))

    def leave(self, connection: Connection, source: bytes) -> None:
        """Remove a lost connection."""
        queue = self._by_source[source]
        del queue[connection]
        self._count(source, len(queue) + 1, len(queue))
        if not queue:
            del self._by_source[source]

    def longest_silent(self) -> Connection | None:
        """Return the connection that makes room. It may just have closed. None: no silent one was found."""
        sources = self._by_count[self._most]
        for source in list(islice(sources, LOOKS)):
            sources.move_to_end(source)
            queue = self._by_source[source]
            for _ in range(max(1, LOOKS // len(sources))):
                connection, seen = next(iter(queue.items()))
                if self._reactor.now() - seen.since_s < SILENT_S:
                    break
                if self._is_silent(connection, seen):
                    return connection
                queue[connection] = self._look(connection)
                queue.move_to_end(connection)
        return None

    def _is_silent(self, connection: Connection, seen: Seen) -> bool:
        # The process may have been stopped: bytes that have arrived are served first.
        if connection.state is OPEN and connection.interest & READ:
            self._reactor.guard(connection.on_event, READ, owner=connection)
        return _bytes_moved(connection) == seen.bytes_moved

    def _look(self, connection: Connection) -> Seen:
        return Seen(_bytes_moved(connection), self._reactor.now())

    def _count(self, source: bytes, before: int, after: int) -> None:
        """Move a source to the sources with one connection more, or one less."""
        if before:
            del self._by_count[before][source]
        if after:
            self._by_count[after][source] = None
        if not self._by_count[before]:
            del self._by_count[before]
            if self._most == before:
                self._most = after
        self._most = max(self._most, after)


def _bytes_moved(connection: Connection) -> int:
    return connection.bytes_received + connection.bytes_sent
