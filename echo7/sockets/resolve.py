"""From a host that somebody typed to numeric addresses, or one line that says what is wrong and what to do.

Law: names are looked up here, before any loop runs, because a look-up blocks (`reactor` refuses names). Whatever the
text is, and whatever the system says of it, the outcome is a list with at least one address, or an UnresolvedName.

The order is the system's own (RFC 6724 on most): the first address is the one to try first.
"""

from __future__ import annotations

import ipaddress
import socket

from reactor.sockets.addresses import Address

SHOWN_CHARACTERS = 80  # of a host in a message
FAMILIES = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}


class UnresolvedName(Exception):
    """One line: which host, why not, and what to do."""


def resolve(host: str, port: int, family: int = socket.AF_UNSPEC) -> list[Address]:
    """Return the addresses of a name or numeric address, of one family or of both; at least one. Blocks.

    An address may stand in brackets, and a link-local one carries its interface: `fe80::1%eth0` (RFC 4007 §11).
    Raise UnresolvedName.
    """
    literal = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not literal.strip():
        raise UnresolvedName("an empty host names nothing; give a name or an address")
    try:
        answers = socket.getaddrinfo(literal, port, family, socket.SOCK_STREAM)
    except (OSError, UnicodeError, ValueError, OverflowError) as error:
        raise UnresolvedName(_explained(error, host, literal, family)) from None
    found = dict.fromkeys(address for kind, _, _, _, address in answers if kind in FAMILIES)
    if not found:
        raise UnresolvedName(f"{_shown(host)} has no address of IPv4 or IPv6; give another name, or an address")
    for address in found:
        _refuse_without_interface(address)
    return list(found)


def _explained(error: Exception, host: str, literal: str, family: int) -> str:
    what = f"cannot resolve {_shown(host)}: "
    if not isinstance(error, OSError):
        return what + "not a host name; give a name or an address"
    reason = error.strerror or "the system doesn't say why"
    if "%" in literal and _is_ipv6(literal.partition("%")[0]):
        return what + f"{reason}; after the % must be an interface of this machine ('ip link' lists them)"
    if family in FAMILIES and _is_numeric(literal):
        return what + f"it is no {FAMILIES[socket.AddressFamily(family)]} address; leave out the -4 or -6"
    if error.errno == socket.EAI_AGAIN:
        return what + f"{reason}; try again, or give an address"
    only = f", and that it has an {FAMILIES[socket.AddressFamily(family)]} address" if family in FAMILIES else ""
    return what + f"{reason}; check the spelling{only}, or give an address"


def _refuse_without_interface(address: Address) -> None:
    """Raise UnresolvedName for a link-local address that could be on any interface: the kernel would say EINVAL."""
    host = str(address[0])
    if len(address) > 3 and address[3] == 0 and ipaddress.IPv6Address(host.partition("%")[0]).is_link_local:
        raise UnresolvedName(f"the link-local address {host} needs its interface, as in {host}%eth0")


def _is_numeric(literal: str) -> bool:
    try:
        ipaddress.ip_address(literal)
    except ValueError:
        return False
    return True


def _is_ipv6(literal: str) -> bool:
    return ":" in literal and _is_numeric(literal)


def _shown(host: str) -> str:
    """Return a host for a message: one line, quoted, and no longer than a line can bear."""
    return repr(host if len(host) <= SHOWN_CHARACTERS else host[:SHOWN_CHARACTERS] + "…")
