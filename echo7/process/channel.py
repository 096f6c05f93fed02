"""What supervisor and worker say to each other: one JSON object a line, over a socket pair.

Law: neither waits for the other; each end is a connection on its owner's loop. The end of the stream is a message too:
the other process has gone. What it said before is read first; an unfinished line is dropped.

    worker → supervisor   ready     addresses
                          counters  counters, log_lines_dropped; round: that of the question, 0 if unasked;
                                    with metrics also snapshot
    supervisor → worker   counters  round
                          restart   another generation takes over: when this stream ends, retire
                          stay      no, it doesn't
                          dump      log what your loop has
                          drain     finish in order
                          abort     finish at once
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from reactor.connection import Connection, StreamProtocol
from reactor.loop import Reactor
from reactor.sockets.opening import Socket

# `say`, and what belongs to it
Message = dict[str, Any]


class Channel(StreamProtocol):
    """One end. Calls `heard(message)` for each line, and `lost()` once, last."""

    __slots__ = ("_connection", "_heard", "_lost", "_unfinished", "fileno", "finish")

    def __init__(
        self, reactor: Reactor, sock: Socket, heard: Callable[[Message], object], lost: Callable[[], object]
    ) -> None:
        self._heard, self._lost, self._unfinished = heard, lost, b""
        sock.setblocking(False)
        self._connection = Connection(reactor, sock, self)
        self._connection.open()
        # the descriptor of this end, -1 when the stream has ended
        self.fileno = self._connection.fileno
        # sends what waits, then the end; `lost` is called when the other end has closed too
        self.finish = self._connection.close

    @property
    def pending_bytes(self) -> int:
        """How far the other end is behind with its reading."""
        return self._connection.pending_bytes

    def say(self, what: str, **details: object) -> None:
        """Send one message. Nothing happens when the other end has gone."""
        self._connection.write(json.dumps({"say": what} | details).encode() + b"\n")

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Hand on each whole line."""
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        for line in lines:
            self._heard(json.loads(line))

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Tell the owner; how it ended makes no difference."""
        self._lost()
