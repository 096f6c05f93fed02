"""Messages between supervisor and worker: one JSON object a line, over a socket pair.

Law: neither waits for the other; each end is a connection on its owner's loop. The end of the stream is a message too:
the other process has gone. Its last messages are read first; an unfinished line is dropped.

    worker → supervisor   ready     addresses
                          counters  counters, log_lines_dropped; round: that of the question, 0 if unasked;
                                    with metrics also snapshot
    supervisor → worker   counters  round
                          restart   a new generation takes over: retire when this stream ends
                          stay      the restart has failed: forget the order `restart`
                          dump      log what your loop has
                          drain     stop in order
                          abort     stop at once
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from echo7.process.child import Stream
from reactor.loop import Reactor
from reactor.sockets.opening import Socket

# `say`, and its fields
Message = dict[str, Any]


class Channel:
    """One end of the stream. Calls `heard(message)` for each line, and `lost()` once, last.

    `fileno` returns -1 when the stream has ended. `finish` sends what waits, then ends the stream.
    """

    def __init__(
        self, reactor: Reactor, sock: Socket, heard: Callable[[Message], object], lost: Callable[[], object]
    ) -> None:
        self._heard, self._unfinished = heard, b""
        self._connection = Stream(reactor, sock, lost, self._received).connection
        self.fileno, self.finish = self._connection.fileno, self._connection.close

    @property
    def pending_bytes(self) -> int:
        """How much the other end still has to read."""
        return self._connection.pending_bytes

    def say(self, what: str, **details: object) -> None:
        """Send one message. Nothing happens when the other end has gone."""
        self._connection.write(json.dumps({"say": what} | details).encode() + b"\n")

    def _received(self, data: bytes) -> None:
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        for line in lines:
            self._heard(json.loads(line))
