"""DatagramBatch: the fast path of UDP. One turn is one recvmmsg(2) and, if all goes well, one sendmmsg(2).

    receive up to 64 ─► the protocol says which get no answer ─► the others go back, in runs between those

Law: what `Datagram` promises, this keeps: an error that belongs to one datagram costs that one, every turn is bounded,
and an answer leaves from the address that was asked. But answers are the datagrams themselves, sent from where they
lie (see `mmsg.py`), so this serves one purpose only, sending back; and nothing in Python is done for each datagram.

When the kernel's send buffer is full, what is left of the batch is held in its slots, and nothing more is received
until it has gone: never more than 64 datagrams, which is all the room there is.

What recvmmsg meets after its first datagram, Linux tells the next call, whichever that is: such an error may be counted
as the first answer's, as one from ICMP may on the simple path.
"""

from __future__ import annotations

import socket
import sys
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reactor.loop import READ, WRITE, Reactor
from reactor.sockets.addresses import Address
from reactor.sockets.errors import BROKEN_SOCKET, ONE_PEER, WOULD_BLOCK, errno_name
from reactor.sockets.pktinfo import IP_PKTINFO, IPV6_RECVPKTINFO

if TYPE_CHECKING:  # it brings ctypes, for which only those who serve UDP on Linux shall wait
    from reactor.fastpath.mmsg import Receive, Send, Slots

NOTHING_REFUSED: Mapping[int, str] = {}
# Options with which the kernel puts something else before the address asked: time stamps (two forms of each on 32-bit
# machines), counts of losses, marks, and several datagrams in one (UDP_GRO). The numbers are Linux's.
OTHER_CONTROL = [(socket.SOL_SOCKET, number) for number in (29, 35, 37, 40, 41, 63, 64, 65, 75)] + [(17, 104)]


class BatchProtocol:
    """What a DatagramBatch calls."""

    def batch_received(self, endpoint: DatagramBatch, slots: Slots, count: int) -> Mapping[int, str]:
        """Called with 1 … 64 datagrams, in slots 0 … `count` - 1, which are the protocol's until it returns.

        Return why some get no answer, by their slots' numbers. All others are sent back.
        """
        return NOTHING_REFUSED

    def dropped(self, endpoint: DatagramBatch, reason: str, count: int, peer: Address | None) -> None:
        """Called when `count` more are counted in `drops`, one of them from or to `peer` (None: unknown). For logs."""

    def endpoint_lost(self, endpoint: DatagramBatch, error: Exception | None) -> None:
        """Called once, last. `error` is None after `close()`, else why the socket had to go."""


class DatagramBatch:
    """A UDP socket on a loop, bound and non-blocking, whose datagrams are sent back. `batch_on` makes one.

    `drops` counts datagrams by reason: `send_EPERM`, `receive_ECONNREFUSED`, `truncated`, `callback`, `busy` (held when
    it was closed), and whatever the protocol refuses them for.
    """

    __slots__ = (
        "_batch", "_protocol", "_reactor", "_receive", "_runs", "_send", "_slots", "_socket", "address",
        "bytes_received", "bytes_sent", "closed", "datagrams_received", "datagrams_sent", "drops", "fileno", "interest",
    )  # fmt: skip

    def __init__(
        self, reactor: Reactor, sock: socket.socket, protocol: BatchProtocol, slots: Slots, calls: tuple[Receive, Send]
    ) -> None:
        self.interest, self.closed = 0, False
        self.address: Address = sock.getsockname()
        self.datagrams_received = self.bytes_received = 0
        self.datagrams_sent = self.bytes_sent = 0
        self.drops: dict[str, int] = {}
        self._reactor, self._socket, self.fileno = reactor, sock, sock.fileno
        self._protocol = protocol
        self._slots = slots
        self._receive, self._send = calls
        self._batch = 0, 0  # datagrams and bytes that are in the slots
        self._runs: list[tuple[int, int]] = []  # what is to be sent, last first: (slot, the slot after the last)
        reactor.register(self)
        reactor.set_interest(self, READ)

    def drop(self, reason: str, count: int = 1, slot: int | None = None) -> None:
        """Count datagrams that get no answer, and tell the protocol. One of them is in `slot`."""
        self.drops[reason] = self.drops.get(reason, 0) + count
        self._protocol.dropped(self, reason, count, None if slot is None else self._slots.source(slot))

    def abort(self, error: Exception | None = None) -> None:
        """Close at once, dropping what is held, and tell the protocol why. Harmless twice."""
        if self.closed:
            return
        self.closed = True
        self._drop_held()
        self._reactor.unregister(self, error)
        self._socket.close()
        self._reactor.call_soon(self._protocol.endpoint_lost, self, error)

    close = abort

    def on_event(self, mask: int) -> None:
        """Send what was held, or receive one batch and send it back."""
        if self._runs:
            self._answer()
            if not self._runs:
                self._reactor.set_interest(self, READ)
            return
        try:
            count = self._receive()
        except WOULD_BLOCK:
            return
        except OSError as error:
            self._after(error)
            return
        size_bytes = sum(self._slots.lengths[:count])
        self.datagrams_received += count
        self.bytes_received += size_bytes
        self._batch = count, size_bytes
        refused = self._refused(count)
        self._runs = runs_between(sorted(refused), count) if refused else [(0, count)]
        if self.closed:
            self._drop_held()
            return
        self._slots.turn_round(count)
        self._answer()

    def _refused(self, count: int) -> Mapping[int, str]:
        """Ask the protocol; count what it refuses, what was cut, and all of it if it raises."""
        try:
            refused = self._protocol.batch_received(self, self._slots, count)
        except Exception as error:
            self._reactor.callback_failed(error)
            refused = dict.fromkeys(range(count), "callback")
        if self._batch[1] >= self._slots.slot_bytes and (truncated := self._slots.truncated(count)):
            refused = {**refused, **dict.fromkeys(truncated, "truncated")}  # a slot that was too small is full
        for reason, count in Counter(refused.values()).items():
            self.drop(reason, count, next(slot for slot in refused if refused[slot] == reason))
        return refused

    def _answer(self) -> None:
        """Send run after run. After a datagram that fails, go on with the next; when the kernel is full, wait."""
        runs, slots = self._runs, self._slots
        while runs:
            first, end = runs.pop()
            try:
                sent = self._send(first, end - first)
            except WOULD_BLOCK:
                runs.append((first, end))
                self._reactor.set_interest(self, WRITE)
                return
            except OSError as error:
                self.drop("send_" + errno_name(error), 1, first)
                first += 1
            else:
                self.datagrams_sent += sent
                whole = sent == self._batch[0]
                self.bytes_sent += self._batch[1] if whole else sum(slots.lengths[first : first + sent])
                first += sent
            if first < end:
                runs.append((first, end))
        slots.make_room(self._batch[0])

    def _drop_held(self) -> None:
        while self._runs:
            first, end = self._runs.pop()
            self.drop("busy", end - first, first)

    def _after(self, error: OSError) -> None:
        """As `Datagram` does: what one peer has caused is only counted, a broken socket goes, a shortage needs time."""
        self.drop("receive_" + errno_name(error))
        if error.errno in BROKEN_SOCKET:
            self.abort(error)
        elif error.errno not in ONE_PEER:
            self._reactor.suspend(self)


def runs_between(refused: list[int], count: int) -> list[tuple[int, int]]:
    """Return the runs of slots that are left of `count` without the refused ones (ascending), the last run first."""
    starts, ends = [0, *(slot + 1 for slot in refused)], [*refused, count]
    return [(start, end) for start, end in zip(reversed(starts), reversed(ends), strict=True) if start < end]


def batch_on(reactor: Reactor, sock: Any, protocol: BatchProtocol) -> DatagramBatch | None:
    """Return an endpoint on a bound socket, or None where there is no fast path: then `Datagram` serves it.

    A socket with calls of its own for batches is asked for them, a real one is given the C library's, if it has them.
    One that carries IPv4 on IPv6, or tells more of a datagram than where it went to, stays on the simple path.
    """
    if sys.platform != "linux" or not is_plain(sock):
        return None
    try:
        from reactor.fastpath.mmsg import Slots

        level, name = _path_option(sock)
        slots = Slots(sock.family == socket.AF_INET6, bool(sock.getsockopt(level, name)))
        if hasattr(sock, "recvmmsg"):
            calls: tuple[Receive, Send] = (lambda: sock.recvmmsg(slots)), (lambda *run: sock.sendmmsg(slots, *run))
        elif isinstance(sock, socket.socket):
            calls = slots.kernel_calls(sock.fileno())
        else:
            return None
    except (ImportError, AttributeError, OSError):  # no ctypes, no such call, none allowed, no room for the slots
        return None
    return DatagramBatch(reactor, sock, protocol, slots, calls)


def _path_option(sock: Any) -> tuple[int, int]:
    if sock.family == socket.AF_INET6:
        return socket.IPPROTO_IPV6, IPV6_RECVPKTINFO
    return socket.IPPROTO_IP, IP_PKTINFO


def is_plain(sock: Any) -> bool:
    """Tell whether a socket's datagrams are of one family, with nothing but a path beside them."""
    if sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        return False
    return not any(_option(sock, level, name) for level, name in OTHER_CONTROL)


def _option(sock: Any, level: int, name: int) -> int:
    try:
        value: int = sock.getsockopt(level, name)
    except OSError:  # a kernel that has never heard of it doesn't do it
        return 0
    return value
