"""echo7: the Echo Protocol (RFC 862) over TCP and UDP, as a service and as a library.

    from reactor import Reactor
    from echo7 import EchoServer

    with Reactor() as loop:
        server = EchoServer(hosts=["127.0.0.1"], port=0)
        server.start(loop)
        print(server.addresses)
        loop.run()

Read first: `server` (EchoServer), `policy.echo` (what happens to a byte and to a datagram), `settings` (every option of
`echo7 serve`), `assembly` (which setting becomes which part). The rooms:

    policy     pure decisions: echo, guard, ports, loops, access, sources, rate, shares, crowd, idle
    sockets    from names and addresses to bound sockets; sockets from systemd; a set for each worker
    process    signals, privileges, sandbox, notify, restart, workers, supervisor
    logs       log lines that never block; drops and counters in the log
    metrics    /metrics and /healthz, an extra
    checker    `echo7 check`, `check`: does an echo server do what RFC 862 says?
    probe      `echo7 ping`, `ping`: loss, delay, damage, order
    deploy     systemd units, a container, the manual page
"""

from __future__ import annotations

import importlib

# type checkers take this as True; importing `typing` for it would slow the start
TYPE_CHECKING = False
if TYPE_CHECKING:
    from echo7.checker import check
    from echo7.policy.rate import Rate
    from echo7.policy.sources import SourceLimits
    from echo7.probe import ping
    from echo7.server import Counters, EchoServer, ServingAddress
    from echo7.sockets.binding import BindError

__version__ = "0.1.0"

__all__ = ["BindError", "Counters", "EchoServer", "Rate", "ServingAddress", "SourceLimits", "check", "ping"]

# Imported on first use: a tool needs no service, a service needs no tool, and the command must hold signals back first.
HOMES = {
    "BindError": "echo7.sockets.binding",
    "Counters": "echo7.server",
    "EchoServer": "echo7.server",
    "Rate": "echo7.policy.rate",
    "ServingAddress": "echo7.server",
    "SourceLimits": "echo7.policy.sources",
    "check": "echo7.checker",
    "ping": "echo7.probe",
}


def __getattr__(name: str) -> object:
    """Return a public class or function (PEP 562)."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names too."""
    return sorted([*globals(), *HOMES])
