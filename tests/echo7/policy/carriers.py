"""Both carriers of datagrams, alone (`Single`) and in the slots of a batch: a policy must decide the same over both."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import pytest

from echo7.policy.echo import DatagramEcho
from echo7.policy.guard import Guard
from reactor.fastpath.batch import Endpoint
from reactor.fastpath.datagrams import Batch, Single

if TYPE_CHECKING:
    from reactor.fastpath.mmsg import Slots

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has batches")
# Source and path.
Arrival = tuple[tuple[Any, ...], bytes]
Parcel = tuple[tuple[Any, ...], bytes]  # source and payload
Decide = Callable[[Batch, int], Mapping[int, str]]


@cache
def slots_for(is_ipv6: bool, paths: bool) -> Slots:
    from reactor.fastpath.mmsg import Slots

    return Slots(is_ipv6, paths)


def slots_with(arrivals: Sequence[Arrival]) -> Slots:
    """Return slots with datagrams of one family, written as the kernel does."""
    from reactor.testing.kernel.batch import pack_name

    slots = slots_for(":" in arrivals[0][0][0], bool(arrivals[0][1]))
    for index, (source, path) in enumerate(arrivals):
        name = pack_name(source if slots.is_ipv6 == (len(source) == 4) else (*source, 0, 0))
        slots.names[index * slots.name_bytes : (index + 1) * slots.name_bytes] = name
        start = index * slots.control_bytes + slots.info_at
        slots.controls[start : start + len(path)] = path
        assert slots.path(index) == path
    return slots


def one_by_one(decide: Decide, arrivals: Sequence[Arrival]) -> dict[int, str]:
    """Decide over each datagram alone."""
    singles = enumerate(Single((b"", *arrival)) for arrival in arrivals)
    return {index: refused[0] for index, single in singles if (refused := decide(single, 1))}


def refusal(guard: Guard, source: tuple[Any, ...], path: bytes = b"") -> str | None:
    """Return why a datagram gets no answer, from both carriers."""
    found = guard.refusals(Single((b"", source, path)), 1)
    is_ipv6 = ":" in source[0]
    # A scope that is text, or IPv4 on an IPv6 socket, never arrives in slots.
    if sys.platform == "linux" and "%" not in source[0] and len(path) in ((0, 20) if is_ipv6 else (0, 12)):
        assert guard.refusals(slots_with([(source, path)]), 1) == found
    return found.get(0)


def deciding(echo: DatagramEcho) -> Decide:
    """Return an echo's decision; it doesn't depend on the endpoint."""
    return lambda batch, count: echo.batch_received(cast(Endpoint, None), batch, count)


def slots_holding(parcels: Sequence[Parcel]) -> Slots:
    """Return slots with sources and payloads."""
    slots = slots_with([(source, b"") for source, _ in parcels])
    for index, (_, data) in enumerate(parcels):
        slots.lengths[index] = len(data)
        slots.payload(index)[:] = data
    return slots


def one_by_one_with(decide: Decide, parcels: Sequence[Parcel]) -> dict[int, str]:
    """Decide over each datagram alone, with its payload."""
    singles = enumerate(Single((data, source, b"")) for source, data in parcels)
    return {index: refused[0] for index, single in singles if (refused := decide(single, 1))}
