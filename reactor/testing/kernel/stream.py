"""StreamSocket: the TCP socket that a program sees, over a link.

Law: at every moment it gives what Linux would: the same bytes, the same error (once), the same bits of poll(2).
`tests/conformance` compares the two.
"""

from __future__ import annotations

import collections
import errno
import socket

from reactor.sockets.addresses import Address
from reactor.sockets.errors import os_error
from reactor.sockets.opening import RESET_ON_CLOSE
from reactor.testing.chance import ONE_PEER, Fault
from reactor.testing.kernel.endpoint import POLLERR, POLLHUP, POLLIN, POLLOUT, POLLPRI, POLLRDHUP, SimulatedSocket
from reactor.testing.kernel.link import CONNECTED, CONNECTING, DEAD, FRESH, LISTENING, RETRANSMIT_S, Link, Pipe, join
from reactor.testing.world import World

CONNECT_S = 127.0  # how long Linux retransmits a SYN (tcp(7), tcp_syn_retries)
SYN_RETRY_S = 1.0


class StreamSocket(SimulatedSocket):
    """A TCP socket, or one end of a socket pair."""

    __slots__ = (
        "backlog", "eof_reported", "incoming", "link", "outgoing", "queue", "read_shut", "shut_s", "state",
        "urgent_byte",
    )  # fmt: skip

    def __init__(self, world: World, family: int, inside: bool) -> None:
        super().__init__(world, family, socket.SOCK_STREAM, inside)
        self.state = FRESH
        self.link: Link | None = None
        self.incoming: Pipe | None = None
        self.outgoing: Pipe | None = None
        # a listener's connections that wait for accept
        self.queue: collections.deque[StreamSocket] = collections.deque()
        self.backlog = 0
        self.read_shut = self.eof_reported = False
        self.shut_s: float | None = None  # when our FIN was sent
        self.urgent_byte = b""  # received out of band, without SO_OOBINLINE

    @property
    def leaves_the_machine(self) -> bool:
        """Whether sent bytes cross a network. Those of a socket pair don't."""
        return self.local is not None

    @property
    def _both_have_finished(self) -> bool:
        """Whether our FIN was sent and the peer's has come: the kernel then has no connection any more."""
        return bool(self.outgoing and self.outgoing.fin and self.incoming and self.incoming.fin_arrived)

    def setsockopt(self, level: int, name: int, value: int | bytes) -> None:
        """Store an option. The size of a buffer takes effect at once."""
        super().setsockopt(level, name, value)
        if self.outgoing is not None and self.incoming is not None:
            self.outgoing.send_bytes = self.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            self.incoming.receive_bytes = self.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    @property
    def host(self) -> str:
        """The host of this end's address."""
        return str(self.local[0]) if self.local else ""

    # ------------------------------------------------------------ beginning

    def listen(self, backlog: int = 128) -> None:
        """Let clients connect: listen(2)."""
        self.check_open("listen")
        if self.local is None:
            self.bind(self.world.routing.any_address(self.family))
        self.state, self.backlog = LISTENING, backlog

    def accept(self) -> tuple[StreamSocket, Address]:
        """Take the first waiting connection: accept(2)."""
        fault = self.enter("accept")
        if self.state != LISTENING:
            raise os_error(errno.EINVAL)
        if fault is not None:
            self._refuse_to_accept(fault)
        if not self.queue:
            raise self.would_block()
        if self.inside:
            number = self.world.descriptors.take(self.queue[0])
            self.queue[0].number = number
            self.queue[0].inside = self.queue[0].faulty = True
        accepted = self.queue.popleft()
        assert accepted.remote is not None
        self.world.observe("accept", accepted, b"")
        return accepted, accepted.remote

    def _refuse_to_accept(self, fault: Fault) -> None:
        if fault.kind in ONE_PEER:
            if not self.queue:
                return  # no client waits, so no client's connection can fail
            lost = self.queue.popleft()
            assert lost.link is not None
            lost.link.reset(lost, "accept failed")
            lost.close()
        raise self.world.inject(fault).error()

    def connect_ex(self, address: Address) -> int:
        """Begin to connect, and return EINPROGRESS or the errno of a failure: connect(2)."""
        fault = self.enter("connect")
        if fault is not None:
            self.world.inject(fault)
            if fault.kind in ("ECONNREFUSED", "ETIMEDOUT"):  # the network reports these later, in SO_ERROR
                self.state = CONNECTING
                self.world.wire.call_later(0.0, lambda: self.die(getattr(errno, fault.kind)))
                return errno.EINPROGRESS
            return fault.error().errno or 0
        if self.state != FRESH:
            return errno.EISCONN if self.state == CONNECTED else errno.EALREADY
        if self.local is None:
            self.local = self.world.ports.bind(self, self.world.routing.source_for(self.family, address))
        self.remote = self.world.routing.canonical(self.family, address)
        self.state = CONNECTING
        self.world.wire.call_later(self.world.latency_s, self._syn_arrives)
        if not self.world.latency_s:
            self.world.wire.run_due()
        if self.state == CONNECTING:
            self.world.wire.call_later(CONNECT_S, self._connect_timed_out)
        return errno.EINPROGRESS

    def _syn_arrives(self) -> None:
        """Let the listener's kernel answer, before the listener accepts."""
        world = self.world
        if self.state != CONNECTING or self.remote is None:
            return
        host, port = self.remote[:2]
        if not world.wire.is_open(self.host, host):
            world.wire.when_healed(self._syn_arrives)
            return
        listener = world.ports.find(socket.SOCK_STREAM, self.family, host, port)
        if not isinstance(listener, StreamSocket) or listener.state != LISTENING:
            if world.ports.knows(host):
                self.die(errno.ECONNREFUSED)
        elif len(listener.queue) > listener.backlog:
            world.wire.call_later(SYN_RETRY_S, self._syn_arrives)
        else:
            server = StreamSocket(world, self.family, False)
            server.options.update(listener.options)
            server.local, server.remote = self.remote, self.local
            join(world, self, server)
            listener.queue.append(server)
            world.changed()

    def _connect_timed_out(self) -> None:
        if self.state == CONNECTING:
            self.die(errno.ETIMEDOUT)

    def established(self, link: Link, outgoing: Pipe, incoming: Pipe) -> None:
        """Become one end of a connection."""
        self.state = CONNECTED
        self.link, self.outgoing, self.incoming = link, outgoing, incoming

    # ------------------------------------------------------------ bytes

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Take up to `size` bytes: recv(2). One call stops at an urgent byte, as on Linux."""
        fault = self.enter("recv")
        if flags:
            return self._recv_urgent(flags)
        if fault is not None and self.state == CONNECTED:
            size = self._hamper(fault, size, len(self.incoming.arrived) if self.incoming else 0)
        pipe = self.incoming
        if pipe is None:
            if self.error:
                raise self.take_error()
            if self.state == DEAD:
                return b""
            raise self.would_block() if self.state == CONNECTING else os_error(errno.ENOTCONN)
        if pipe.arrived or not size:
            data = self._take(pipe, size)
            self.world.observe("recv", self, data)
            return data
        return self._nothing_to_read(pipe)

    def _passes_urgent(self, pipe: Pipe) -> bool:
        """Tell whether the next byte is an urgent one that isn't in the stream."""
        return pipe.mark is not None and pipe.urgent is None and pipe.mark <= pipe.received

    def _nothing_to_read(self, pipe: Pipe) -> bytes:
        if self._passes_urgent(pipe):  # recv has passed it: MSG_OOB can't read it any more
            pipe.mark, self.urgent_byte = None, b""
        if pipe.fin_arrived or (self.read_shut and not self.error):
            if not self.eof_reported:  # a second report would change nothing
                self.eof_reported = True
                self.world.observe("eof", self, b"")
            return b""
        if self.error:
            raise self.take_error()
        if self.state == DEAD:
            return b""
        raise self.would_block()

    def _take(self, pipe: Pipe, size: int) -> bytes:
        if pipe.mark is not None and 0 < pipe.mark - pipe.received < size:
            size = pipe.mark - pipe.received
        data = bytes(pipe.arrived[:size])
        del pipe.arrived[:size]
        pipe.received += len(data)
        if pipe.mark is not None and pipe.received > pipe.mark:
            pipe.mark = pipe.urgent = None
            self.urgent_byte = b""
        assert self.link is not None
        self.link.push(self.link.other(self))  # the window is open again
        return data

    def recv_into(self, buffer: bytearray | memoryview, size: int = 0) -> int:
        """Take bytes into `buffer`: recv(2)."""
        data = self.recv(size or len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def send(self, data: bytes | bytearray | memoryview, flags: int = 0) -> int:
        """Give the kernel as many bytes as it has room for: send(2)."""
        fault = self.enter("send")
        if flags not in (0, socket.MSG_OOB):
            raise NotImplementedError(f"send with flags {flags:#x} is not simulated, only MSG_OOB")
        pipe = self.outgoing
        size = len(data)
        if fault is not None and self.state == CONNECTED and pipe is not None and not pipe.fin:
            size = self._hamper(fault, size, pipe.room_bytes)
        if self.error:
            raise self.take_error()
        if self.state in (LISTENING, FRESH, DEAD) or pipe is None or pipe.fin:
            raise os_error(errno.EPIPE) if self.state != CONNECTING else self.would_block()
        if size and pipe.room_bytes <= 0:
            raise self.would_block()
        taken = bytes(memoryview(data)[: min(size, pipe.room_bytes)])
        pipe.waiting += taken
        pipe.sent += len(taken)
        if flags & socket.MSG_OOB and taken:
            pipe.urgent = pipe.mark = pipe.sent - 1
        if taken:
            self.world.observe("send", self, taken)
        assert self.link is not None
        self.link.push(self)
        return len(taken)

    def _hamper(self, fault: Fault, size: int, possible: int) -> int:
        """Apply a fault to recv or send; return how many bytes may still be moved."""
        if fault.kind == "short":
            most = min(size, possible)
            if most > 1:
                left = max(1, min(fault.amount, most - 1))
                self.world.inject(fault._replace(amount=left))
                return left
            return size
        self.world.inject(fault)
        if fault.kind in ("ECONNRESET", "EPIPE", "ETIMEDOUT") and self.link is not None:
            self.link.reset(self, "fault " + fault.kind)
            assert self.incoming is not None
            self.incoming.arrived.clear()
        raise fault.error()

    def shutdown(self, how: int) -> None:
        """Send FIN after what waits, or stop reading, or both: shutdown(2)."""
        self.enter("shutdown")
        pipe = self.outgoing
        if self.state != CONNECTED or pipe is None or self._both_have_finished:
            raise os_error(errno.ENOTCONN)
        if how in (socket.SHUT_RD, socket.SHUT_RDWR):
            self.read_shut = True
        if how in (socket.SHUT_WR, socket.SHUT_RDWR) and not pipe.fin:
            self._finish(pipe)
        self.world.changed()

    def _finish(self, pipe: Pipe) -> None:
        pipe.fin, self.shut_s = True, self.world.clock()
        self.world.observe("fin", self, b"")
        assert self.link is not None
        self.link.push(self)

    # ------------------------------------------------------------ the urgent byte

    def look_for_urgent(self) -> None:
        """Without SO_OOBINLINE, take the urgent byte out of the stream when it arrives: tcp(7)."""
        pipe = self.incoming
        if pipe is None or pipe.urgent is None or self.options.get((socket.SOL_SOCKET, socket.SO_OOBINLINE)):
            return
        place = pipe.urgent - pipe.received
        if 0 <= place < len(pipe.arrived):
            self.urgent_byte = bytes(pipe.arrived[place : place + 1])
            del pipe.arrived[place : place + 1]
            pipe.sent -= 1  # places are counted without it from now on
            pipe.urgent = None

    def write_from_kernel(self, data: bytes) -> None:
        """Send the interpreter's wake-up byte, if it fits. This is no system call of the program."""
        if self.outgoing is not None and self.link is not None and self.outgoing.room_bytes >= len(data):
            self.outgoing.waiting += data
            self.outgoing.sent += len(data)
            self.link.push(self)

    def _recv_urgent(self, flags: int) -> bytes:
        if flags != socket.MSG_OOB:
            raise NotImplementedError(f"recv with flags {flags:#x} is not simulated, only MSG_OOB")
        data, self.urgent_byte = self.urgent_byte, b""
        if not data:
            raise os_error(errno.EINVAL)
        return data

    # ------------------------------------------------------------ ends

    def ended(self) -> None:
        """Reset the connections in the queue. Send FIN, or RST if bytes are unread."""
        for waiting in self.queue:
            assert waiting.link is not None
            waiting.link.reset(waiting, "its listener was closed")
            waiting.close()
        self.queue.clear()
        if self.state == CONNECTED and self.link is not None and self.outgoing is not None:
            if self.options.get((socket.SOL_SOCKET, socket.SO_LINGER)) == RESET_ON_CLOSE:
                self.link.reset(self, "SO_LINGER")
            elif self.incoming is not None and (self.incoming.arrived or self._passes_urgent(self.incoming)):
                self.link.reset(self, "closed with bytes unread")
            elif not self.outgoing.fin:
                self._finish(self.outgoing)
        elif self.state == CONNECTING:
            self.state = DEAD

    def die(self, code: int) -> None:
        """End the connection with this SO_ERROR. The bytes that have arrived can still be read."""
        if self.state == DEAD:
            return
        self.state, self.error = DEAD, code
        if self.outgoing is not None:
            self.outgoing.waiting.clear()
        self.world.changed()

    def error_of_reset(self, code: int) -> int:
        """Return the SO_ERROR of a RST: 0 after both FINs, EPIPE after the peer's FIN, else `code` (tcp_reset)."""
        if self.incoming is None or self.outgoing is None or not self.incoming.fin_arrived:
            return code
        return 0 if self.outgoing.fin_arrived else errno.EPIPE

    def patience_s(self) -> float | None:
        """Return how long this end waits for a silent peer: forever (None), if it neither sends nor probes."""
        if self.state != CONNECTED or self.outgoing is None:
            return None
        if self.outgoing.waiting or self.outgoing.flight:
            return RETRANSMIT_S
        if not self.options.get((socket.SOL_SOCKET, socket.SO_KEEPALIVE)):
            return None
        idle_s, interval_s, probes = (
            self.options.get((socket.IPPROTO_TCP, getattr(socket, name, -1)), usual)
            for name, usual in (("TCP_KEEPIDLE", 7200), ("TCP_KEEPINTVL", 75), ("TCP_KEEPCNT", 9))
        )
        assert isinstance(idle_s, int)
        assert isinstance(interval_s, int)
        assert isinstance(probes, int)
        return idle_s + interval_s * probes

    def getpeername(self) -> Address:
        """Return the peer's address, or raise ENOTCONN."""
        if self.closed:
            raise os_error(errno.EBADF)
        if self.state != CONNECTED or self.remote is None or self._both_have_finished:
            raise os_error(errno.ENOTCONN)
        return self.remote

    def poll(self) -> int:
        """Return the bits of poll(2), as Linux computes them in tcp_poll."""
        if self.state == LISTENING:
            return POLLIN if self.queue else 0
        if self.state == CONNECTING:
            return 0
        if self.state == FRESH:
            return POLLOUT | POLLHUP
        bits = POLLPRI if self.urgent_byte or self._is_urgent(self.incoming) else 0
        if self.state == DEAD or self.incoming is None or self.outgoing is None:
            return bits | POLLIN | POLLOUT | POLLHUP | POLLRDHUP | (POLLERR if self.error else 0)
        if self.incoming.fin_arrived or self.read_shut:
            bits |= POLLIN | POLLRDHUP
            if self.outgoing.fin:
                bits |= POLLHUP
        elif self.incoming.arrived:
            bits |= POLLIN
        if self.outgoing.fin or self.outgoing.room_bytes * 3 >= self.outgoing.send_bytes:
            bits |= POLLOUT
        return bits

    @staticmethod
    def _is_urgent(pipe: Pipe | None) -> bool:
        return pipe is not None and pipe.urgent is not None and 0 <= pipe.urgent - pipe.received < len(pipe.arrived)
