"""DatagramFlow: a flow over UDP. It owns one connected socket, so one source port.

Laws. Sending never blocks: a datagram that the kernel has no room for isn't sent and isn't counted. The socket is
connected, so it receives only from its peer, and gets ICMP errors (RFC 1122 §4.1.3.3). Errors are read before each
send, so that an earlier probe's error isn't taken for this one's. A turn receives a bounded number of datagrams.

On Linux errors wait in a queue, each with the start of its datagram and the address of the host that reported it
(IP_RECVERR, ip(7)); without that option the kernel doesn't report "unreachable". The queue keeps the socket readable,
so it is emptied whenever nothing else can be read or an error was seen.

On Linux the kernel stamps the arrival of a datagram (SO_TIMESTAMPNS). The stamp is wall-clock time, which jumps. It
only shows how long the datagram waited in the kernel, because that time isn't the network's.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
import time
from collections.abc import Callable

from echo7.probe.roles import Run
from reactor.limits import DATAGRAM_BYTES, DATAGRAMS_PER_TURN
from reactor.loop import READ, Reactor
from reactor.sockets.addresses import Address, family_of, unspecified
from reactor.sockets.errors import BROKEN_SOCKET, OUT_OF_MEMORY, WOULD_BLOCK
from reactor.sockets.opening import bind_udp, closed_on_error
from reactor.sockets.pktinfo import MSG_ERRQUEUE, Control, receiver

LINUX = sys.platform == "linux"
# Python lacks some of the names. The numbers are from Linux's <asm-generic/socket.h>, <bits/in.h> and <linux/in6.h>.
SO_TIMESTAMPNS = 35 if LINUX else -1
IP_MTU_DISCOVER, IP_MTU, IPV6_MTU_DISCOVER, IPV6_MTU = 10, 14, 23, 24
RECEIVE_ERRORS = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}  # IP_RECVERR
EXTENDED_ERROR = struct.Struct("=IBBBBII")  # struct sock_extended_err: errno, origin, type, code, pad, info, data
LOCAL_ORIGIN = 1  # send(2) has returned this error already
OFFENDERS = {socket.AF_INET: (socket.AF_INET, 4, 4), socket.AF_INET6: (socket.AF_INET6, 8, 16)}  # in a sockaddr
ERROR_CONTROL_BYTES = 256
PMTUDISC_DO = 2  # set "don't fragment", and refuse larger datagrams than the path MTU (ip(7))
DONT_FRAGMENT = {
    socket.AF_INET: (socket.IPPROTO_IP, IP_MTU_DISCOVER if LINUX else getattr(socket, "IP_DONTFRAG", -1)),
    socket.AF_INET6: (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER if LINUX else getattr(socket, "IPV6_DONTFRAG", -1)),
}
PATH_MTU = {socket.AF_INET: (socket.IPPROTO_IP, IP_MTU), socket.AF_INET6: (socket.IPPROTO_IPV6, IPV6_MTU)}
TIMESPEC = struct.Struct("@ll")
NS_PER_S = 1_000_000_000


def can_forbid_fragments(family: int) -> bool:
    """Whether `df` works on this system."""
    return DONT_FRAGMENT[socket.AddressFamily(family)][1] >= 0


class DatagramFlow:
    """See `roles.Flow`; a Handler of the loop. Raises OSError without a socket or if its source port is in use."""

    __slots__ = (
        "_address", "_clock_ns", "_connected", "_family", "_reactor", "_receive", "_run", "_socket", "_wall_ns",
        "closed", "detach", "fileno", "index", "interest", "source_port",
    )  # fmt: skip

    def __init__(
        self,
        reactor: Reactor,
        address: Address,
        run: Run,
        index: int,
        *,
        source_port: int = 0,
        df: bool = False,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.interest, self.closed = 0, False
        self.index = index
        self._clock_ns, self._wall_ns = clock_ns, wall_ns
        self._reactor, self._run, self._address = reactor, run, address
        self._connected = False
        self._family = family_of(address)
        any_address = (unspecified(address)[0], source_port)
        with closed_on_error(bind_udp(reactor.sockets, any_address)) as sock:
            if SO_TIMESTAMPNS >= 0:
                sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            if LINUX:
                sock.setsockopt(*RECEIVE_ERRORS[self._family], 1)
            if df:
                sock.setsockopt(*DONT_FRAGMENT[self._family], PMTUDISC_DO if LINUX else 1)
            self._socket, self.fileno, self.detach = sock, sock.fileno, sock.detach
            self.source_port = int(sock.getsockname()[1])
            self._receive = receiver(sock)
            reactor.register(self)
        reactor.set_interest(self, READ)

    def has_room(self) -> bool:
        """Return True: `send` returns the kernel's error if there is no room."""
        return True

    def send(self, sequence: int, payload: bytes) -> tuple[int, int]:
        """Send a datagram; return (0 or an errno, the time in ns). Never block or raise OSError."""
        code = errno.EBADF if self.closed else self._connect()
        if code:
            return code, self._clock_ns()
        self._read_earlier_errors()
        sent_ns = self._clock_ns()
        try:
            self._socket.send(payload)
        except OSError as error:
            return error.errno or errno.EIO, sent_ns
        return 0, sent_ns

    def path_mtu_bytes(self) -> int | None:
        """See `roles.Flow`. Only Linux knows it, for a connected socket (ip(7))."""
        try:
            return self._socket.getsockopt(*PATH_MTU[self._family]) or None if LINUX else None
        except OSError:
            return None

    def on_event(self, mask: int) -> None:
        """Receive until nothing waits or the turn's limit is reached; if nothing came, read the error queue."""
        failures = 0
        for number in range(DATAGRAMS_PER_TURN):
            try:
                data, control, _, _ = self._receive(DATAGRAM_BYTES)
            except WOULD_BLOCK:
                if number == 0:
                    self._report_errors(0)
                return
            except OSError as error:
                failures += 1
                if not self._survives(error, failures):
                    return
            else:
                # the wall clock first, so that a pause between the clocks makes no round trip shorter
                wall_ns = self._wall_ns()
                at_ns = self._clock_ns()
                self._run.arrived(self.index, data, at_ns, queued_ns(control, wall_ns))
            if self.closed:
                return

    def abort(self, error: Exception | None = None) -> None:
        """Unregister and close. Does nothing the second time."""
        if not self.closed:
            self.closed = True
            self._reactor.unregister(self)
            self._socket.close()

    close = abort

    def _connect(self) -> int:
        """Connect to the peer unless that is done; return 0 or an errno, such as ENETUNREACH without a route."""
        if not self._connected:
            code = self._socket.connect_ex(self._address)
            self._connected = code == 0
            return code
        return 0

    def _read_earlier_errors(self) -> None:
        """Read a pending error, so that the next send doesn't return it for the wrong datagram."""
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._report_errors(code)

    def _survives(self, error: OSError, failures: int) -> bool:
        if error.errno in BROKEN_SOCKET:
            self._run.trouble(self.index, error.errno or 0, b"", "")
        elif error.errno not in OUT_OF_MEMORY:
            self._report_errors(error.errno or errno.EIO)
        return self._reactor.goes_on_after(self, error, failures)

    def _report_errors(self, code: int) -> None:
        """Report the errors in the queue; if it is empty, report `code` unless that is 0."""
        for _ in range(DATAGRAMS_PER_TURN if LINUX else 0):
            try:
                data, control, _, _ = self._socket.recvmsg(DATAGRAM_BYTES, ERROR_CONTROL_BYTES, MSG_ERRQUEUE)
            except OSError:
                # EAGAIN: the queue is empty
                break
            for error, reporter in filter(None, (error_in(entry, self._family) for entry in control)):
                self._run.trouble(self.index, error, data, reporter)
                code = 0
        if code:
            self._run.trouble(self.index, code, b"", "")


def error_in(entry: tuple[int, int, bytes], family: int) -> tuple[int, str] | None:
    """Return the errno in control data and the address that reported it; None without one or for a local error."""
    level, kind, data = entry
    if (level, kind) != RECEIVE_ERRORS[socket.AddressFamily(family)] or len(data) < EXTENDED_ERROR.size:
        return None
    code, origin, *_ = EXTENDED_ERROR.unpack_from(data)
    if origin == LOCAL_ORIGIN:
        return None
    offender, start, size = OFFENDERS[socket.AddressFamily(family)]
    address = data[EXTENDED_ERROR.size + start : EXTENDED_ERROR.size + start + size]
    return code, socket.inet_ntop(offender, address) if len(address) == size and any(address) else ""


def queued_ns(control: Control, wall_ns: int) -> int:
    """Return how long a datagram waited until `wall_ns`, by the kernel's stamp; 0 without a stamp."""
    for level, kind, data in control:
        if (level, kind, len(data)) == (socket.SOL_SOCKET, SO_TIMESTAMPNS, TIMESPEC.size):
            seconds, nanoseconds = TIMESPEC.unpack(data)
            stamp_ns: int = seconds * NS_PER_S + nanoseconds
            return wall_ns - stamp_ns
    return 0
