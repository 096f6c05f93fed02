"""Links: two pipes between two sockets, and how a connection ends.

Law: a pipe is three bounded places in a row: the sender's kernel, the wire, and the receiver's kernel. A byte is in one
place at a time. Only a reset loses bytes. A reset comes when a socket is closed with unread bytes, when bytes reach a
closed socket, when the program asks for one (SO_LINGER of zero), or by a fault.
"""

from __future__ import annotations

import collections
import errno
import functools
import socket
from typing import TYPE_CHECKING

from reactor.testing.world import World

if TYPE_CHECKING:
    from reactor.testing.kernel.stream import StreamSocket

RETRANSMIT_S = 924.0  # how long Linux retransmits (tcp(7), tcp_retries2)
FRESH, LISTENING, CONNECTING, CONNECTED, DEAD = "fresh", "listening", "connecting", "connected", "dead"


class Pipe:
    """One direction of a connection. Places in the stream are counted from its first byte."""

    __slots__ = (
        "arrived", "fin", "fin_arrived", "flight", "flight_bytes", "mark", "receive_bytes", "received", "send_bytes",
        "sent", "urgent", "waiting",
    )  # fmt: skip

    def __init__(self, send_bytes: int, receive_bytes: int) -> None:
        self.send_bytes, self.receive_bytes = send_bytes, receive_bytes  # the two kernels' bounds
        self.waiting = bytearray()  # in the sender's kernel
        self.flight: collections.deque[bytes | None] = collections.deque()  # on the wire; b"" is FIN, None is RST
        self.flight_bytes = 0
        self.arrived = bytearray()  # in the receiver's kernel
        self.fin = False  # the sender has ended the stream
        self.fin_arrived = False
        self.sent = 0  # place after the last byte that the sender has written
        self.received = 0  # place of the first byte that the receiver hasn't taken
        self.urgent: int | None = None  # place of the last urgent byte, while it is in the stream
        self.mark: int | None = None  # and where it makes recv stop

    @property
    def room_bytes(self) -> int:
        """How many bytes the sender's kernel still takes."""
        return self.send_bytes - len(self.waiting)


class Link:
    """Two connected sockets: client and server. `fate` says what ended the connection, unless two FINs did."""

    __slots__ = ("_reset_code", "_silent", "_world", "broken_by", "cut", "ends", "fate", "reset_s")

    def __init__(self, world: World, client: StreamSocket, server: StreamSocket) -> None:
        self._world = world
        self.ends = (client, server)
        self.fate = ""
        self.broken_by: StreamSocket | None = None  # the end that sent RST, and when it did
        self.reset_s = 0.0
        self.cut = False  # one end has vanished
        self._silent = 0  # number of silences so far
        self._reset_code = errno.ECONNRESET

    @property
    def is_open(self) -> bool:
        """Whether segments get through."""
        one, other = self.ends
        return not self.cut and self._world.wire.is_open(one.host, other.host)

    def other(self, end: StreamSocket) -> StreamSocket:
        """Return the other end."""
        return self.ends[end is self.ends[0]]

    def push(self, end: StreamSocket) -> None:
        """Send from `end` what fits into the other end's window."""
        pipe = end.outgoing
        if pipe is None or end.state == DEAD or not (pipe.waiting or pipe.fin):
            return
        if not self.is_open:
            self._world.wire.when_healed(lambda: self.push(end))
            self._world.wire.call_later(RETRANSMIT_S, functools.partial(self._give_up, end, self._silent))
            return
        room_bytes = pipe.receive_bytes - len(pipe.arrived) - pipe.flight_bytes
        if pipe.waiting and room_bytes > 0:
            segment = bytes(pipe.waiting[:room_bytes])
            del pipe.waiting[: len(segment)]
            pipe.flight.append(segment)
            pipe.flight_bytes += len(segment)
            self._send(end, pipe)
        if pipe.fin and not pipe.waiting and not pipe.fin_arrived and b"" not in pipe.flight:
            pipe.flight.append(b"")
            self._send(end, pipe)

    def _send(self, end: StreamSocket, pipe: Pipe) -> None:
        world = self._world
        fault = world.chance.draw("segment") if end.leaves_the_machine else None
        delay_s = world.latency_s if end.leaves_the_machine else 0.0
        if fault is not None:
            delay_s += world.inject(fault).amount / 1e4
        if delay_s or len(pipe.flight) > 1:  # late segments hold back later ones: a stream keeps its order
            world.wire.call_later(delay_s, lambda: self._land(end, pipe))
        else:
            self._land(end, pipe)

    def _land(self, end: StreamSocket, pipe: Pipe) -> None:
        """Take the first segment off the wire."""
        if not self.is_open:
            self._world.wire.when_healed(lambda: self._land(end, pipe))
            return
        segment = pipe.flight.popleft()
        receiver = self.other(end)
        if segment is None:
            receiver.die(receiver.error_of_reset(self._reset_code))
        elif not segment:
            pipe.fin_arrived = receiver.state == CONNECTED
        else:
            pipe.flight_bytes -= len(segment)
            if receiver.closed and not self.fate:
                self.reset(receiver, "bytes reached a closed socket")
            elif receiver.state == CONNECTED and not receiver.closed:
                pipe.arrived += segment
                receiver.look_for_urgent()
            else:  # the receiver has given up; its kernel has no connection
                end.die(end.error_of_reset(errno.ECONNRESET))
        self._world.changed()

    def reset(self, by: StreamSocket, fate: str, code: int = errno.ECONNRESET) -> None:
        """Send RST from `by`, after what is on the wire. Both kernels' send buffers are lost."""
        if not self.fate:
            self.fate, self.broken_by, self.reset_s = fate, by, self._world.clock()
            self._reset_code = code
            by.die(0)
            assert by.outgoing is not None
            by.outgoing.flight.append(None)
            self._send(by, by.outgoing)

    def fall_silent(self) -> None:
        """Let each end give up if the silence lasts: after retransmissions, or after keepalive probes."""
        self._silent += 1
        for end in self.ends:
            patience_s = end.patience_s()
            if patience_s is not None:
                self._world.wire.call_later(patience_s, functools.partial(self._give_up, end, self._silent))

    def _give_up(self, end: StreamSocket, silence: int) -> None:
        if not self.is_open and silence == self._silent and end.state == CONNECTED:
            self.fate = self.fate or "timed out"
            end.die(errno.ETIMEDOUT)
            self._world.wire.when_healed(lambda: self._probe(self.other(end)))

    def _probe(self, end: StreamSocket) -> None:
        """Reset an end when its keepalive probes reach a host that has given up."""
        patience_s = end.patience_s()
        if patience_s is not None:
            self._world.wire.call_later(patience_s, lambda: end.die(end.error_of_reset(errno.ECONNRESET)))


def join(world: World, client: StreamSocket, server: StreamSocket) -> Link:
    """Connect two sockets, with the buffer sizes of their options."""

    def pipe(sender: StreamSocket, receiver: StreamSocket) -> Pipe:
        send_bytes = sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        return Pipe(send_bytes, receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))

    link = Link(world, client, server)
    there, back = pipe(client, server), pipe(server, client)
    client.established(link, there, back)
    server.established(link, back, there)
    return link
