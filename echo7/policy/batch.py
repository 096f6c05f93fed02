"""Guard and admission on the fast path: they look at a whole batch of datagrams at once. Pure policy, as they are.

Law: `Guard.refusal` alone decides, and its reasons are counted; here is only decided who needs its look. A column is
one byte of every datagram of a batch: of the source's port, of its address, of the address asked. Each column has
bytes that are surely harmless. Deleting those from it leaves, for nearly every batch, nothing; and whoever is left is
looked at as on the simple path. So whatever is refused there must stand out in some column here. Of those that the
guard lets pass, the sources are counted, and `Admission` is asked once for each source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from echo7.logs.drops import DropLog, describe_peer
from echo7.policy.guard import Guard
from echo7.policy.sources import Admission
from reactor.fastpath.batch import NOTHING_REFUSED, BatchProtocol, DatagramBatch
from reactor.sockets.addresses import Address

if TYPE_CHECKING:
    from reactor.fastpath.mmsg import Slots

EVERY_BYTE = frozenset(range(256))
PORT_AT = 2  # where a port's high byte lies in a struct sockaddr_in and a sockaddr_in6
IPV4_ADDRESS_AT, IPV6_ADDRESS_AT = 4, 8
Column = tuple[int, bytes]  # where it begins, and its harmless bytes


def harmless(suspicious: set[int]) -> bytes:
    """Return all bytes but those."""
    return bytes(EVERY_BYTE - suspicious)


# 0.0.0.0/8, 224.0.0.0/4 (multicast), 255.255.255.255.
IPV4_SOURCE: list[Column] = [(IPV4_ADDRESS_AT, harmless({0, *range(224, 240), 255}))]
# ff00::/8 (multicast); ::ffff:0:0/96, which is IPv4 again, by its eleventh byte; `::` by its last one.
IPV6_SOURCE: list[Column] = [
    (IPV6_ADDRESS_AT, harmless({0xFF})),
    (IPV6_ADDRESS_AT + 10, harmless({0xFF})),
    (IPV6_ADDRESS_AT + 15, harmless({0})),
]
IPV6_ASKED = harmless({0xFF})


class BatchEcho(BatchProtocol):
    """UDP in batches: what arrives is sent back, unless the guard objects, or the source has had enough."""

    def __init__(
        self,
        guard: Guard,
        lost: Callable[[DatagramBatch, Exception | None], None],
        admission: Admission | None = None,
        drop_log: DropLog | None = None,
    ) -> None:
        ports: list[Column] = [(PORT_AT, harmless({port >> 8 for port in guard.refused_ports}))]
        self._sources = {False: ports + IPV4_SOURCE, True: ports + IPV6_SOURCE}  # is it IPv6? → its columns
        self._refusal = guard.refusal
        self._lost = lost
        self._admission = admission
        self._drop_log = drop_log

    def batch_received(self, endpoint: DatagramBatch, slots: Slots, count: int) -> Mapping[int, str]:
        """Return who gets no answer, and why."""
        refused = self._unanswerable(slots, count)
        if self._admission is None:
            return refused
        hosts = slots.hosts(count)
        if not refused:
            return self._admission.refusals(hosts, slots.packed)
        passing = [slot for slot in range(count) if slot not in refused]
        more = self._admission.refusals([hosts[slot] for slot in passing], slots.packed)
        return {**refused, **{passing[place]: reason for place, reason in more.items()}}

    def _unanswerable(self, slots: Slots, count: int) -> Mapping[int, str]:
        """Return what the guard refuses."""
        names, record_bytes = slots.names, slots.name_bytes
        end = count * record_bytes
        suspects: set[int] = set()
        for start, safe in self._sources[slots.is_ipv6]:
            column = names[start:end:record_bytes]
            if column.translate(None, safe):
                suspects.update(_standing_out(column, safe))
        if slots.control_bytes:
            suspects.update(_asked_many(slots, count))
        if not suspects:
            return NOTHING_REFUSED
        reasons = ((slot, self._refusal(slots.source(slot), slots.path(slot))) for slot in sorted(suspects))
        return {slot: reason for slot, reason in reasons if reason is not None}

    def dropped(self, endpoint: DatagramBatch, reason: str, count: int, peer: Address | None) -> None:
        """Log it."""
        if self._drop_log is not None:
            self._drop_log.note(reason, partial(describe_peer, peer), count)

    def endpoint_lost(self, endpoint: DatagramBatch, error: Exception | None) -> None:
        """Tell the server."""
        self._lost(endpoint, error)


def _standing_out(column: bytearray, safe: bytes) -> Iterator[int]:
    return (slot for slot, byte in enumerate(column) if byte not in safe)


def _asked_many(slots: Slots, count: int) -> list[int]:
    """Return those whose destination might not be this host alone: see `reactor.is_unicast`."""
    if slots.is_ipv6:
        record_bytes = slots.control_bytes
        column = slots.controls[slots.info_at : count * record_bytes : record_bytes]
        return list(_standing_out(column, IPV6_ASKED)) if column.translate(None, IPV6_ASKED) else []
    answering, asked = slots.answering[:count], slots.asked[:count]
    return [] if answering == asked else [slot for slot in range(count) if answering[slot] != asked[slot]]
