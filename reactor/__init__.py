"""reactor: a single-threaded, non-blocking event loop, small enough to be read in an evening.

    socket ─► selector.select() ─► Reactor.turn() ─► handler.on_event(mask)
                                                        │
              ┌─────────────────────────────────────────┘
              ▼
    Connection: receive ─► protocol.data_received ─► write ─► SendBuffer ─► flush ─► socket

Read in this order: `handler`, `loop` (one turn), `timers`, `buffer`, `connection` (the central chapter), `listener`,
`connector`, `datagram`, `signals`, `limits`. To write a program, start with `verbs`; to extend the loop, with `doors`.

The other folders: `sockets` (the small print), `fastpath` (faster on Linux), `observe` (traces, snapshots, slow
callbacks), `testing` (a simulated world), `lessons` (the loop from nothing), `player` (a trace, step by step),
`console` (shared by commands). `README.md` in this folder is the guide.
"""

from reactor.connection import Connection, State, StreamProtocol
from reactor.connector import Connector
from reactor.datagram import Datagram, DatagramProtocol
from reactor.doors import Observer, Snapshot
from reactor.handler import Handler
from reactor.limits import Limits
from reactor.listener import Listener
from reactor.loop import READ, WRITE, Reactor
from reactor.sockets.addresses import Address, format_address
from reactor.sockets.factory import SignalSource, SocketFactory, Transport
from reactor.sockets.opening import bind_tcp, bind_udp
from reactor.sockets.pktinfo import is_unicast, report_paths
from reactor.timers import Timer
from reactor.verbs import connect_tcp, connect_udp, listen_tcp, open_udp

__all__ = [
    "READ", "WRITE", "Address", "Connection", "Connector", "Datagram", "DatagramProtocol", "Handler", "Limits",
    "Listener", "Observer", "Reactor", "SignalSource", "Snapshot", "SocketFactory", "State", "StreamProtocol", "Timer",
    "Transport", "bind_tcp", "bind_udp", "connect_tcp", "connect_udp", "format_address", "is_unicast", "listen_tcp",
    "open_udp", "report_paths",
]  # fmt: skip
