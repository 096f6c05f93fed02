"""reactor: a single-threaded, non-blocking event loop, small enough to be read in an evening.

    socket ─► selector.select() ─► Reactor.turn() ─► handler.on_event(mask)
                                                        │
              ┌─────────────────────────────────────────┘
              ▼
    Connection: receive ─► protocol.data_received ─► write ─► SendBuffer ─► flush ─► socket

Read it in this order: `protocol` (what a user implements), `loop` (one turn), `timers`, `buffer`, `connection` (THE
chapter), `listener`, `connector`, `datagram`, `signals`. Beside them: `limits` (every bound on one screen), `seams`
(where a simulated world can come in), `sockets` (what sockets are asked for, and what their errors mean), `control`
(the small print of UDP), `verbs` (with which a user starts), `fork` (what a child process must let go of),
`commandline` (a mistake costs one line). In rooms of their own, fast paths that the simple one can do without: `batch`
and `mmsg` (UDP, many datagrams a call), `splice` (bulk TCP, nothing copied), `busypoll` (looking instead of sleeping);
and rooms for those who look inside: `dump` (all that a loop has, as a table), `watch` (who holds it up), `describe`
(what things are called), `trace` and `standins` (everything that a loop does, event by event), `sinks`, `perfetto` and
`narrate` (what becomes of the events).

`README.md` in this folder is the guide. Three folders: `testing` (a simulated world), `lessons` (the loop from nothing,
in thirteen programs), `player` (a trace, step by step).
"""

from reactor.connection import Connection, State, StreamProtocol
from reactor.connector import Connector
from reactor.datagram import Datagram, DatagramProtocol
from reactor.doors import Handler, SignalSource, SocketFactory
from reactor.fastpath.batch import BatchProtocol, DatagramBatch, batch_on
from reactor.limits import Limits
from reactor.listener import Listener
from reactor.loop import READ, WRITE, Reactor
from reactor.sockets.addresses import Address, format_address
from reactor.sockets.opening import bind_tcp, bind_udp
from reactor.sockets.pktinfo import is_unicast, report_paths
from reactor.timers import Timer
from reactor.verbs import connect_tcp, connect_udp, listen_tcp, open_udp

__all__ = [
    "READ",
    "WRITE",
    "Address",
    "BatchProtocol",
    "Connection",
    "Connector",
    "Datagram",
    "DatagramBatch",
    "DatagramProtocol",
    "Handler",
    "Limits",
    "Listener",
    "Reactor",
    "SignalSource",
    "SocketFactory",
    "State",
    "StreamProtocol",
    "Timer",
    "batch_on",
    "bind_tcp",
    "bind_udp",
    "connect_tcp",
    "connect_udp",
    "format_address",
    "is_unicast",
    "listen_tcp",
    "open_udp",
    "report_paths",
]
