"""DatagramBatch: the fast path of UDP. A turn usually takes one recvmmsg(2) and one sendmmsg(2).

    receive up to 64 ─► the protocol refuses some ─► send the others back, in runs between the refused

Law: it keeps the promises of `Datagram`: an error of one datagram costs only that one, every turn is bounded, and an
answer leaves from the address that was asked. It can only send datagrams back, from the memory in which they arrived
(`mmsg.py`), so no Python code runs for each. If the kernel's send buffer is full, the rest of the batch stays in its
slots for a moment, and nothing is received until it is sent. So it never holds more than 64 datagrams.

If recvmmsg(2) fails after its first datagram, Linux reports the error to the next call, so it may be counted as an
error of sending. The plain path does the same with errors from ICMP.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from reactor.datagram import Datagram, DatagramProtocol
from reactor.fastpath.datagrams import NOTHING_REFUSED, Batch, Single
from reactor.limits import FAILURES_IN_A_ROW
from reactor.loop import READ, WRITE, Reactor
from reactor.sockets.addresses import Address
from reactor.sockets.congestion import Congestion
from reactor.sockets.errors import BUSY, CALLBACK, RECEIVE, SEND, TRUNCATED, WOULD_BLOCK, errno_name
from reactor.sockets.opening import close_socket
from reactor.sockets.pktinfo import IP_PKTINFO, IPV6_RECVPKTINFO

# mmsg imports ctypes, which only a UDP server on Linux needs.
if TYPE_CHECKING:
    from reactor.fastpath.mmsg import Receive, Send, Slots

FAILED_TURNS = 4  # failed receives in a row, whatever the errno, before the endpoint is suspended
# Options that put other control data before the pktinfo: time stamps (two forms of each on 32-bit machines), counts of
# losses, marks, and several datagrams in one (UDP_GRO). The numbers are Linux's.
OTHER_CONTROL = [(socket.SOL_SOCKET, number) for number in (29, 35, 37, 40, 41, 63, 64, 65, 75)] + [(17, 104)]


class BatchProtocol(DatagramProtocol):
    """The callbacks of a DatagramBatch. It works on a Datagram too: there each batch has one datagram."""

    def batch_received(self, endpoint: Endpoint, batch: Batch, count: int) -> Mapping[int, str]:
        """Called with 1 … 64 datagrams. Return drop reasons by index; all other datagrams are sent back."""
        return NOTHING_REFUSED

    def datagram_received(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        """Decide as for a batch, then send back or drop."""
        refused = self.batch_received(endpoint, Single((data, source, path)), 1)
        if refused:
            endpoint.drop(refused[0], source)
        else:
            endpoint.send(data, source, path)

    def dropped(self, endpoint: Endpoint, reason: str, peer: Address | None, count: int = 1) -> None:
        """Called for `count` datagrams counted in `drops`; one is from or to `peer` (None: unknown). For logs."""

    def endpoint_lost(self, endpoint: Endpoint, error: Exception | None) -> None:
        """Called once, last. `error` is None after `close()`, else the reason."""


class Calls(NamedTuple):
    """The two system calls of a batch, as an observer gets them."""

    recvmmsg: Receive
    sendmmsg: Send
    lengths: memoryview  # of the datagrams in the slots


class DatagramBatch:
    """A UDP socket on a loop that sends its datagrams back. `batch_on` makes one.

    `drops` counts by reason: `send_EPERM`, `receive_ECONNREFUSED`, `truncated`, `callback`, `busy` (held at the close),
    and the protocol's reasons.
    """

    __slots__ = (
        "_batch", "_congestion", "_failures", "_reactor", "_receive", "_runs", "_send", "_socket", "address",
        "bytes_received", "bytes_sent", "closed", "datagrams_received", "datagrams_sent", "detach", "drops", "fileno",
        "interest", "protocol", "slots",
    )  # fmt: skip

    def __init__(
        self, reactor: Reactor, sock: socket.socket, protocol: BatchProtocol, slots: Slots, calls: tuple[Receive, Send]
    ) -> None:
        self.interest, self.closed = 0, False
        self.address: Address = sock.getsockname()
        self.datagrams_received = self.bytes_received = self.datagrams_sent = self.bytes_sent = 0
        self.drops: dict[str, int] = {}
        self._reactor, self._socket, self.fileno, self.detach = reactor, sock, sock.fileno, sock.detach
        self._failures = 0  # to receive, in a row
        self.protocol, self.slots = protocol, slots
        observed = reactor.observer.socket(self, Calls(*calls, slots.lengths))
        self._receive, self._send = observed.recvmmsg, observed.sendmmsg
        self._batch = 0, 0  # datagrams and bytes in the slots
        self._congestion = Congestion(reactor.now, reactor.call_later, lambda: self.on_event(WRITE))
        self._runs: list[tuple[int, int]] = []  # to be sent, the last run first: (slot, the slot after the run)
        reactor.register(self)
        reactor.set_interest(self, READ)

    @property
    def pending_bytes(self) -> int:
        """The size of the held answers."""
        return sum(sum(self.slots.lengths[first:end]) for first, end in self._runs)

    def drop(self, reason: str, count: int = 1, slot: int | None = None) -> None:
        """Count datagrams that get no answer, one of them in `slot`, and call the protocol."""
        self._reactor.tell("dropped", self, reason=reason, count=count, peer=None)
        self.drops[reason] = self.drops.get(reason, 0) + count
        source = None if slot is None else self.slots.source(slot)
        self._reactor.guard(self.protocol.dropped, self, reason, source, count)

    def abort(self, error: Exception | None = None) -> None:
        """Close now, drop what is held, and call the protocol with the reason. A second call does nothing."""
        if self.closed:
            return
        self.closed = True
        self._congestion.is_over()
        self._reactor.unregister(self, error)
        close_socket(self._socket)
        self._reactor.call_soon(self.protocol.endpoint_lost, self, error)
        self._drop_held()

    close = abort

    def on_event(self, mask: int) -> None:
        """Send what is held, or receive one batch and send it back."""
        if self._runs:
            self._answer()
            return
        try:
            count = self._receive()
        except WOULD_BLOCK:
            return
        except OSError as error:
            self._failures += 1
            self._reactor.goes_on_after(self, error, self._failures * FAILURES_IN_A_ROW // FAILED_TURNS)
            self.drop(RECEIVE + errno_name(error))
            return
        self._failures = 0
        size_bytes = sum(self.slots.lengths[:count])
        self.datagrams_received += count
        self.bytes_received += size_bytes
        self._batch = count, size_bytes
        refused: Mapping[int, str] | None = None  # if it raises
        try:
            refused = self.protocol.batch_received(self, self.slots, count)
        except Exception as error:
            self._reactor.callback_failed(error)
        finally:
            self._send_back(count, refused)

    def _send_back(self, count: int, refused: Mapping[int, str] | None) -> None:
        """Count what the protocol refuses (all, if it raised) and what was truncated. Send the others back."""
        if refused is None:
            refused = dict.fromkeys(range(count), CALLBACK)
        # A truncated datagram has filled its slot, so it is worth looking only then.
        if self._batch[1] >= self.slots.slot_bytes and (truncated := self.slots.truncated(count)):
            refused = {**refused, **dict.fromkeys(truncated, TRUNCATED)}
        self._runs = runs_between(sorted(refused), count) if refused else [(0, count)]
        self.slots.turn_round(count)
        if not refused and not self.closed:  # the usual case: an ExitStack would cost two microseconds
            self._answer()
            return
        with contextlib.ExitStack() as steps:  # the last is taken first, and each, whatever `dropped` raises
            steps.callback(self._drop_held if self.closed else self._answer)
            for reason, number in Counter(refused.values()).items():
                slot = next(slot for slot in refused if refused[slot] == reason)
                steps.callback(self.drop, reason, number, slot)

    def _answer(self) -> None:
        """Send the runs. If the kernel's send buffer is full, or `dropped` ends the loop's run, wait for WRITE."""
        runs = self._runs
        try:
            while runs and self._send_run(*runs.pop()):
                pass
        finally:
            if not runs:
                self.slots.make_room(self._batch[0])
            wanted = WRITE if runs else READ
            if wanted != self.interest and not self.closed:
                if not runs:
                    self._congestion.is_over()
                self._reactor.set_interest(self, wanted)

    def _send_run(self, first: int, end: int) -> bool:
        """Send a part of a run, and keep the rest. Skip a datagram that fails. Return False if the buffer is full."""
        runs = self._runs
        try:
            sent = self._send(first, end - first)
        except OSError as error:
            is_full = isinstance(error, WOULD_BLOCK)
            if is_full and self._congestion.waits():
                runs.append((first, end))
                return False
            if first + 1 < end:
                runs.append((first + 1, end))
            self.drop(BUSY if is_full else SEND + errno_name(error), 1, first)
            return True
        self.datagrams_sent += sent
        whole = sent == self._batch[0]
        self.bytes_sent += self._batch[1] if whole else sum(self.slots.lengths[first : first + sent])
        if first + sent < end:
            runs.append((first + sent, end))
        return True

    def _drop_held(self) -> None:
        if self._runs:
            first = self._runs[-1][0]
            count = sum(end - first for first, end in self._runs)
            self._runs.clear()
            self.drop(BUSY, count, first)


Endpoint = Datagram | DatagramBatch  # a protocol can't tell the difference


def runs_between(refused: list[int], count: int) -> list[tuple[int, int]]:
    """Return the runs of slots that aren't refused, the last run first. `refused` is sorted."""
    starts, ends = [0, *(slot + 1 for slot in refused)], [*refused, count]
    return [(start, end) for start, end in zip(reversed(starts), reversed(ends), strict=True) if start < end]


def batch_on(reactor: Reactor, sock: Any, protocol: BatchProtocol) -> DatagramBatch | None:
    """Return an endpoint on a bound socket, or None if it has no fast path: then use `Datagram`.

    There is none for a socket that carries IPv4 over IPv6 or reports more than a path, nor on another Python than
    CPython: `mmsg` relies on strided memoryviews and ctypes, and PyPy scrambled a batch of two. A simulated socket has
    its own `recvmmsg` and `sendmmsg`; a real one uses the C library's.
    """
    if sys.platform != "linux" or sys.implementation.name != "cpython" or not is_plain(sock):
        return None
    try:
        from reactor.fastpath.mmsg import Slots

        is_ipv6 = sock.family == socket.AF_INET6
        path = (socket.IPPROTO_IPV6, IPV6_RECVPKTINFO) if is_ipv6 else (socket.IPPROTO_IP, IP_PKTINFO)
        slots = Slots(is_ipv6, bool(sock.getsockopt(*path)))
        if hasattr(sock, "recvmmsg"):
            calls: tuple[Receive, Send] = (lambda: sock.recvmmsg(slots)), (lambda *run: sock.sendmmsg(slots, *run))
        elif isinstance(sock, socket.socket):
            calls = slots.kernel_calls(sock.fileno())
        else:
            return None
    except (ImportError, AttributeError, OSError):  # no ctypes, call missing or forbidden, no memory for the slots
        return None
    return DatagramBatch(reactor, sock, protocol, slots, calls)


def is_plain(sock: Any) -> bool:
    """Tell whether a socket's datagrams are of one family, with no control data but a path."""
    if sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        return False
    return not any(_option(sock, level, name) for level, name in OTHER_CONTROL)


def _option(sock: Any, level: int, name: int) -> int:
    try:
        value: int = sock.getsockopt(level, name)
    except OSError:  # an older kernel doesn't know the option
        return 0
    return value
