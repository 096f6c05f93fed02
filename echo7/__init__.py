"""echo7: the Echo Protocol (RFC 862) over TCP and UDP, as a service and as a library.

    from reactor import Reactor
    from echo7 import EchoServer

    with Reactor() as loop:
        server = EchoServer(hosts=["127.0.0.1"], port=0)
        server.start(loop)
        print(server.addresses)
        loop.run()

Reading order: `echo` (what is done with a byte and with a datagram), `guard` and `ports` (which datagrams get no
answer), `sources` (what one source may have) on `access` and `rate`, `batch` (all that for many datagrams at once),
`idle`, `drops` and `quiet` (what is said about it), `binding` (names and addresses to sockets), `server` (all of it
together), `cli` (which command), `arguments`, `configfile`, `serve` (options to exit status), `log` and `report`. Its
beginning and end: `activation` (sockets from systemd), and the folder `process` (its README.md has the reading order).
For several processes: `reuseport` (a set of sockets for each). The judge of any echo server,
`check`: `judge`; what becomes of datagrams, `ping`: `probe`. `names` and `output` are for tools.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from echo7.policy.rate import Rate
from echo7.policy.sources import SourceLimits
from echo7.server import Counters, EchoServer, ServingAddress
from echo7.sockets.binding import BindError

if TYPE_CHECKING:
    from echo7.checker import check
    from echo7.probe import ping

__version__ = "0.1.0"

__all__ = ["BindError", "Counters", "EchoServer", "Rate", "ServingAddress", "SourceLimits", "check", "ping"]

TOOLS = {
    "check": "echo7.checker",
    "ping": "echo7.probe",
}  # imported when they are asked for: a service that starts needs none of them


def __getattr__(name: str) -> object:
    """Return a tool's function (PEP 562)."""
    if name not in TOOLS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(TOOLS[name]), name)


def __dir__() -> list[str]:
    """List the tools too."""
    return sorted([*globals(), *TOOLS])
