"""echo7: the Echo Protocol (RFC 862) over TCP and UDP, as a service and as a library.

    from reactor import Reactor
    from echo7 import EchoServer

    with Reactor() as loop:
        server = EchoServer(hosts=["127.0.0.1"], port=0)
        server.start(loop)
        print(server.addresses)
        loop.run()

Reading order: `echo` (what is done with a byte and with a datagram), `guard` (which datagrams get no answer), `batch`
(both for many datagrams at once), `binding` (names and addresses to sockets), `server` (all of it together), `cli`
(which command), `arguments`, `serve` (options to exit status), `log` and `report`. For several processes: `reuseport`
(a set of sockets for each), `channel`, `worker`, `backoff`, `supervisor`.
"""

from echo7.binding import BindError
from echo7.server import Counters, EchoServer, ServingAddress

__version__ = "0.1.0"

__all__ = ["BindError", "Counters", "EchoServer", "ServingAddress"]
