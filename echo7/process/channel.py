"""What supervisor and worker say to each other: one JSON object a line, over a socket pair (socketpair(2)).

Law: neither waits for the other. Both ends are connections on their owners' loops, so nothing blocks. The end of the
stream is a message too: the other process has gone, however that came about. What it had said before is read first; a
line that it didn't finish is none.

    worker → supervisor   ready     addresses
                          counters  counters, log_lines_dropped; and round, that of the question, 0 if unasked;
                                    with metrics also snapshot
    supervisor → worker   counters  round
                          restart   it will be another program: when this stream ends, retire
                          stay      no, it won't
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

Message = dict[str, Any]  # `say` and what belongs to it


class Channel(StreamProtocol):
    """One end: `heard(message)` for each line, `lost()` once, last."""

    __slots__ = ("_connection", "_heard", "_lost", "_unfinished")

    def __init__(
        self, reactor: Reactor, sock: Socket, heard: Callable[[Message], object], lost: Callable[[], object]
    ) -> None:
        self._heard, self._lost = heard, lost
        self._unfinished = b""
        sock.setblocking(False)
        self._connection = Connection(reactor, sock, self)
        self._connection.open()

    @property
    def busy(self) -> bool:
        """Whether the other end is behind with its reading."""
        return self._connection.pending_bytes > 0

    def fileno(self) -> int:
        """Return the descriptor of this end, -1 when the stream has ended."""
        return self._connection.fileno()

    def say(self, what: str, **details: object) -> None:
        """Send one message. Nothing happens when the other end has gone."""
        self._connection.write(json.dumps({"say": what} | details).encode() + b"\n")

    def close(self) -> None:
        """Send what waits, then the end; `lost` is called when the other end has closed too."""
        self._connection.close()

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Hand on each whole line."""
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        for line in lines:
            self._heard(json.loads(line))

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Tell the owner; how it ended makes no difference."""
        self._lost()
