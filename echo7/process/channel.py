"""Messages between supervisor and worker: one JSON object a line, over a socket pair.

Law: neither waits for the other; each end is a connection on its owner's loop. The end of the stream is a message too:
the other process has gone. Its last messages are read first; an unfinished line is dropped. Nothing that the other end
sends can raise here, or make this end grow: the first message that isn't in the table ends the stream.

    worker → supervisor   ready     it serves
                          counters  snapshot; round: that of the question, 0 if unasked; leaving: 1 if it drains
    supervisor → worker   counters  round
                          restart   a new generation takes over: retire when this stream ends
                          stay      the restart has failed: forget the order `restart`
                          dump      log what your loop has
                          drain     stop in order
                          abort     stop at once
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from echo7.metrics.snapshot import Snapshot
from echo7.policy.reasons import ACCEPT, Reason
from echo7.process.child import Stream
from reactor.loop import Reactor
from reactor.sockets.errors import DROP_REASONS, RECEIVE, SEND
from reactor.sockets.opening import Socket

# `say`, and its fields
Message = dict[str, Any]
# what may be said, with an example of its fields (see `conforms`)
Forms = Mapping[str, Message]

REPORTS: Forms = {"ready": {}, "counters": {"round": 0, "leaving": 0, "snapshot": Snapshot().as_message()}}
ORDERS: Forms = {"counters": {"round": 0}, "restart": {}, "stay": {}, "dump": {}, "drain": {}, "abort": {}}
# bounds for what another process sends: a line, and a number
LINE_BYTES = 64 * 1024
MOST = 1 << 63
REASONS = {*Reason, *DROP_REASONS}
WITH_ERRNO = (ACCEPT, SEND, RECEIVE)
# what may follow a reason like `accept_`; a newer kernel may have others, which are numbers
ERRNO = re.compile("|".join(["[0-9]{1,4}", *errno.errorcode.values()]))


class Channel:
    """One end of the stream. Calls `heard(message)` for each message in `forms`, and `lost(why)` once, last.

    `why` is empty, or says in what way the other process has broken the rules. `finish` sends what waits, then ends the
    stream; `abort` ends it at once. `fileno` returns -1 when the stream has ended.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: Socket,
        forms: Forms,
        heard: Callable[[Message], object],
        lost: Callable[[str], object],
    ) -> None:
        self._forms, self._heard, self._lost = forms, heard, lost
        self._unfinished, self._why = bytearray(), ""
        self._connection = Stream(reactor, sock, self._ended, self._received).connection
        self.fileno, self.finish, self.abort = self._connection.fileno, self._connection.close, self._connection.abort

    @property
    def pending_bytes(self) -> int:
        """How much the other end still has to read."""
        return self._connection.pending_bytes

    @property
    def received_bytes(self) -> int:
        """How much the other end has sent."""
        return self._connection.bytes_received

    def say(self, what: str, **details: object) -> None:
        """Send one message. Nothing happens when the other end has gone."""
        self._connection.write(json.dumps({"say": what} | details).encode() + b"\n")

    def _received(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._unfinished += line
            message = None if len(self._unfinished) > LINE_BYTES else understood(self._unfinished, self._forms)
            self._unfinished.clear()
            if message is None:
                self._break("an invalid message")
                return
            self._heard(message)
        self._unfinished += rest
        if len(self._unfinished) > LINE_BYTES:
            self._break("a line that is too long")

    def _break(self, why: str) -> None:
        self._why, self._unfinished = f"it has sent {why}", bytearray()
        self._connection.abort()

    def _ended(self) -> None:
        self._lost(self._why)


def understood(line: bytes | bytearray, forms: Forms) -> Message | None:
    """Return the message in a line, None if it has none of the forms."""
    try:
        message = json.loads(line)
        form = {"say": message["say"]} | forms[message["say"]]
    # not JSON; too deeply nested; not an object; not a message
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return message if conforms(message, form) else None


def conforms(value: object, form: object) -> bool:
    """Tell whether a value has the same keys, lists of the same length, the same texts, and a number for each number.

    A number is neither negative nor above MOST. An empty mapping in a form stands for numbers by drop reason.
    """
    if isinstance(form, Mapping):
        if not isinstance(value, dict):
            return False
        if not form:
            return all(is_reason(name) and conforms(number, 0) for name, number in value.items())
        return value.keys() == form.keys() and all(conforms(value[name], form[name]) for name in form)
    if isinstance(form, list | tuple):
        return isinstance(value, list) and len(value) == len(form) and all(map(conforms, value, form))
    if isinstance(form, str):
        return value == form
    # compares types, because a bool is an int in Python but not in JSON
    return type(value) in (int, type(form)) and 0 <= value <= MOST  # type: ignore[operator]


def is_reason(name: str) -> bool:
    """Tell whether a name is a drop reason. A worker that could invent names would fill the supervisor with them."""
    kind = next((kind for kind in WITH_ERRNO if name.startswith(kind)), "")
    return bool(ERRNO.fullmatch(name, len(kind))) if kind else name in REASONS
