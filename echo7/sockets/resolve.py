"""From a host as an operator writes it to numeric addresses, or one line that says what is wrong and what to do.

Law: names are looked up here, before any loop runs, because a look-up blocks (`reactor` refuses names). For any text,
the result is a list with at least one address, or an UnresolvedName.

The order is that of the system (RFC 6724 on most): try the first address first.
"""

from __future__ import annotations

import ipaddress
import socket

from reactor.sockets.addresses import Address, unmapped

# of a host in a message
SHOWN_CHARACTERS = 80
FAMILIES = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}


class UnresolvedName(Exception):
    """One line: which host, why not, and what to do."""


def resolve(host: str, port: int, family: int = socket.AF_UNSPEC) -> list[Address]:
    """Return at least one address of a name or numeric address, of one family or of both. Blocks.

    Brackets around an address are allowed. A link-local address has its interface: `fe80::1%eth0` (RFC 4007 §11).
    Raise UnresolvedName.
    """
    literal = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not literal.strip():
        raise UnresolvedName("an empty host names nothing; give a name or an address")
    try:
        answers = socket.getaddrinfo(literal, port, family, socket.SOCK_STREAM)
    except (OSError, UnicodeError, ValueError, OverflowError) as error:
        raise UnresolvedName(_explained(error, host, literal, family)) from None
    found = dict.fromkeys(unmapped(address) for kind, _, _, _, address in answers if kind in FAMILIES)
    if family == socket.AF_INET6 and any(len(address) == 2 for address in found):
        raise UnresolvedName(f"{_shown(host)} is an IPv4 address in the notation of IPv6; leave out the -6")
    if not found:
        raise UnresolvedName(f"{_shown(host)} has no address of IPv4 or IPv6; give another name, or an address")
    for host, *_, scope_id in (address for address in found if len(address) > 3):
        # it could be on any interface: the kernel would say EINVAL
        if not scope_id and ipaddress.IPv6Address(host.partition("%")[0]).is_link_local:
            raise UnresolvedName(f"the link-local address {host} needs its interface, as in {host}%eth0")
    return list(found)


def _explained(error: Exception, host: str, literal: str, family: int) -> str:
    what = f"cannot resolve {_shown(host)}: "
    if not isinstance(error, OSError):
        return what + "not a host name; give a name or an address"
    reason = error.strerror or "the system doesn't say why"
    if "%" in literal and ":" in literal and _is_numeric(literal.partition("%")[0]):
        return what + f"{reason}; after the % must be an interface of this machine ('ip link' lists them)"
    if family in FAMILIES and _is_numeric(literal):
        return what + f"it is not an {FAMILIES[socket.AddressFamily(family)]} address; leave out the -4 or -6"
    if error.errno == socket.EAI_AGAIN:
        return what + f"{reason}; try again, or give an address"
    only = f", and that it has an {FAMILIES[socket.AddressFamily(family)]} address" if family in FAMILIES else ""
    return what + f"{reason}; check the spelling{only}, or give an address"


def _is_numeric(literal: str) -> bool:
    try:
        ipaddress.ip_address(literal)
    except ValueError:
        return False
    return True


def _shown(host: str) -> str:
    """Return a host for a message: quoted, and shortened to fit one line."""
    return repr(host if len(host) <= SHOWN_CHARACTERS else host[:SHOWN_CHARACTERS] + "…")
