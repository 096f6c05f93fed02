"""Source ports that get no answer, as `--refuse-source-ports` names them. Pure: a text in, a set of ports out.

Law: what is refused is what the text says, and nothing else; only port 0, which nobody can answer, is refused always.

    default        the same as own,responders; holds where nothing is said
    own            the ports that we serve
    responders     those where a service is known to answer whatever comes (`guard.RESPONDER_PORTS`)
    none           no port at all; stands alone
    53  <1024  6000-6100    these
"""

from __future__ import annotations

from typing import NamedTuple

PORTS_END = 65_536  # the first number that is no port
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
    """Read a list with commas. Raise ValueError, whose text is one line, for what isn't in the table above."""
    items = [item.strip() for item in text.split(",")]
    if "none" in items and len(items) > 1:
        raise ValueError(f"{text!r} says 'none' and more; leave one of them out")
    found = NAMES["none"]
    for item in items:
        more = NAMES.get(item) or SourcePorts(own=False, responders=False, listed=frozenset(_range(item)))
        found = SourcePorts(found.own or more.own, found.responders or more.responders, found.listed | more.listed)
    return found


def _range(item: str) -> range:
    """Return what one number, `<N` or `A-B` stands for."""
    first, dash, last = item.partition("-")
    if item.startswith("<"):
        ports = range(_number(item[1:], item))
    else:
        ports = range(_number(first, item), _number(last if dash else first, item) + 1)
    if not ports or ports.stop > PORTS_END:
        raise ValueError(_mistake(item))
    return ports


def _number(digits: str, item: str) -> int:
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(_mistake(item))
    return int(digits[:6])  # more digits are no port, whatever follows


def _mistake(item: str) -> str:
    return f"{item!r} is not a port (53), a range (6000-6100, <1024), nor one of {', '.join(NAMES)}"
