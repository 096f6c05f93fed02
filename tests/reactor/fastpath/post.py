"""A UDP endpoint of either kind on loopback, and a client connected to it. The test controls clock and system calls."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Self

from reactor import Datagram, Reactor
from reactor.fastpath.batch import BatchProtocol, Endpoint, batch_on
from reactor.fastpath.datagrams import Batch
from reactor.sockets.opening import bind_udp
from tests.support.basics import PATIENCE_S
from tests.support.faults import FlakySockets
from tests.support.loops import ManualClock, RecordingSelector, turn_idle, turn_until


class Refuser(BatchProtocol):
    """Sends back every datagram that doesn't begin with `no`, and records all."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.lost: list[Exception | None] = []

    def batch_received(self, endpoint: Endpoint, batch: Batch, count: int) -> Mapping[int, str]:
        found = [bytes(batch.payload(i)) for i in range(count)]
        self.batches.append(found)
        return {i: "refused" for i, data in enumerate(found) if data.startswith(b"no")}

    def endpoint_lost(self, endpoint: Endpoint, error: Exception | None) -> None:
        self.lost.append(error)


class Post:
    """The endpoint is a DatagramBatch or a Datagram. `receive_call` and `send_call` are the system calls that it makes.

    On a wildcard, an answer names its source, which takes another call on the plain path.
    """

    def __init__(self, batched: bool, host: str = "127.0.0.1", protocol: BatchProtocol | None = None) -> None:
        self.clock, self.sockets = ManualClock(), FlakySockets()
        self.faults = self.sockets.faults
        self.selector = RecordingSelector()
        self.reactor = Reactor(selector=self.selector, clock=self.clock, sockets=self.sockets)
        self.refuser = Refuser()
        chosen = protocol or self.refuser
        sock = bind_udp(self.sockets, (host, 0))
        made = batch_on(self.reactor, sock, chosen) if batched else Datagram(self.reactor, sock, chosen)
        assert made is not None
        self.endpoint: Endpoint = made
        plain_call = "sendmsg" if host in ("0.0.0.0", "::") else "sendto"
        self.receive_call, self.send_call = ("recvmmsg", "sendmmsg") if batched else ("recvmsg", plain_call)
        self.client = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.client.connect(("::1" if ":" in host else "127.0.0.1", made.address[1]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.reactor.close()
        self.client.close()

    def send(self, *datagrams: bytes) -> None:
        for data in datagrams:
            self.client.send(data)

    def turn(self, turns: int = 3) -> None:
        turn_idle(self.reactor, turns)

    def receive(self) -> list[bytes]:
        """Return all waiting answers."""
        self.client.setblocking(False)
        found: list[bytes] = []
        while True:
            try:
                found.append(self.client.recv(1 << 17))
            except BlockingIOError:
                self.client.settimeout(PATIENCE_S)
                return found

    def assert_serves(self) -> None:
        """Check that the next datagram is answered."""
        self.receive()
        sent = self.endpoint.datagrams_sent
        self.send(b"still there?")
        turn_until(self.reactor, lambda: self.endpoint.datagrams_sent > sent)
        assert self.client.recv(100) == b"still there?"
