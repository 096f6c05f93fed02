"""Source ports that get no answer, as `--refuse-source-ports` names them. Pure: a text in, a set of ports out.

Law: the text says exactly which ports are refused. Only port 0 is always refused, because it can't be answered.

    default        own,responders; the same as without the option
    own            the ports that this server serves
    responders     ports of services that answer any datagram (`guard.RESPONDER_PORTS`)
    none           no port; can't be combined
    53  <1024  6000-6100    a port, or a range
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

# the first number that isn't a port
PORTS_END = 65_536
NO_LIST: frozenset[int] = frozenset()


class SourcePorts(NamedTuple):
    """Which source ports get no answer."""

    own: bool = True
    responders: bool = True
    listed: frozenset[int] = NO_LIST


DEFAULT_PORTS = SourcePorts()
NAMES = {
    "default": DEFAULT_PORTS,
    "own": SourcePorts(own=True, responders=False),
    "responders": SourcePorts(own=False, responders=True),
    "none": SourcePorts(own=False, responders=False),
}


def parse_ports(text: str) -> SourcePorts:
    """Read a list with commas. Raise ValueError with one line of text for a word that isn't in the table above."""
    items = [item.strip() for item in text.split(",")]
    if "none" in items and len(items) > 1:
        raise ValueError(f"{text!r} combines 'none' with other ports; leave one of them out")
    found = NAMES["none"]
    for item in items:
        more = NAMES.get(item) or SourcePorts(own=False, responders=False, listed=frozenset(_range(item)))
        found = SourcePorts(found.own or more.own, found.responders or more.responders, found.listed | more.listed)
    return found


def _range(item: str) -> range:
    """Return the ports of one number, `<N` or `A-B`."""
    first, dash, last = item.partition("-")
    with contextlib.suppress(ValueError):
        if item.startswith("<"):
            ports = range(_number(item[1:]))
        else:
            ports = range(_number(first), _number(last if dash else first) + 1)
        if ports and ports.stop <= PORTS_END:
            return ports
    raise ValueError(f"{item!r} is not a port (53), a range (6000-6100, <1024), nor one of {', '.join(NAMES)}")


def _number(digits: str) -> int:
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError
    # six digits are never a port, whatever follows
    return int(digits[:6])
