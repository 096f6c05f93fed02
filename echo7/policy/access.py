"""Which sources may use the service: `--allow` and `--deny`. Pure policy: an address in, yes or no out.

Law: of all networks that contain a source, the smallest decides; of two equal ones, the denied one. A source outside
all of them is served, unless `--allow` is set. An IPv4 source is the same over an IPv4 socket and over an IPv6 one
(RFC 4291 §2.5.5.2).

A decision costs one dictionary look-up for each prefix length in use, however many networks there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

IPV4_BYTES, IPV6_BYTES = 4, 16
# the length of ::ffff:0:0/96
MAPPED_BITS = 96


class Network(NamedTuple):
    """A range of addresses of 4 or 16 bytes with a common prefix, a number; `rest_bits` follow it in an address."""

    address_bytes: int
    prefix: int
    rest_bits: int


def network(text: str) -> Network:
    """Read `192.0.2.0/24`, `2001:db8::/32` or one address. Raise ValueError with one line of text."""
    # Importing this takes 20 ms, so only a start with --allow or --deny does it.
    import ipaddress

    try:
        found = ipaddress.ip_network(text)
        rest_bits, number = found.max_prefixlen - found.prefixlen, int(found.network_address)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a network such as 192.0.2.0/24 or 2001:db8::/32: {error}") from None
    if found.version == 6 and found.prefixlen >= MAPPED_BITS and number >> 32 == 0xFFFF:
        return Network(IPV4_BYTES, (number & 0xFFFF_FFFF) >> rest_bits, rest_bits)
    return Network(found.max_prefixlen // 8, number >> rest_bits, rest_bits)


class Access:
    """Decides which sources one server serves. Raise ValueError for an invalid network."""

    def __init__(self, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> None:
        allowed = dict.fromkeys(map(network, allow), True)
        self._otherwise = not allowed
        self._verdicts = allowed | dict.fromkeys(map(network, deny), False)
        # by the size of an address: the lengths in use, the smallest network first
        self._lengths = {
            size: sorted({each.rest_bits for each in self._verdicts if each.address_bytes == size})
            for size in (IPV4_BYTES, IPV6_BYTES)
        }

    def allows(self, host: bytes) -> bool:
        """Tell whether a packed address of 4 or 16 bytes may use the service."""
        number, size = int.from_bytes(host, "big"), len(host)
        for rest_bits in self._lengths[size]:
            verdict = self._verdicts.get(Network(size, number >> rest_bits, rest_bits))
            if verdict is not None:
                return verdict
        return self._otherwise
