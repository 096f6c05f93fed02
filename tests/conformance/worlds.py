"""The two worlds in which each test must pass: this machine's kernel on loopback, and the simulated network."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import selectors
import socket
from typing import Any, Protocol, cast

from reactor.fastpath.splice import KernelPipe, Pipe
from reactor.sockets.opening import Socket
from reactor.testing import SimulatedNetwork
from reactor.testing.kernel.endpoint import POLLERR, POLLHUP, POLLIN, POLLOUT, POLLPRI, POLLRDHUP, SimulatedSocket
from tests.support.basics import PATIENCE_S

HERE = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0, 0, 0)}
NAMES = {POLLIN: "IN", POLLPRI: "PRI", POLLOUT: "OUT", POLLERR: "ERR", POLLHUP: "HUP", POLLRDHUP: "RDHUP"}
ALL_BITS = POLLIN | POLLPRI | POLLOUT | POLLRDHUP


class World(Protocol):
    """Makes sockets and returns what poll(2) reports for them."""

    def selector(self) -> selectors.BaseSelector:
        """A selector that works like epoll."""

    def socket(self, family: int, type: int) -> Socket:
        """A non-blocking socket."""

    def poll(self, sock: Socket, asked: int = ALL_BITS) -> set[str]:
        """The bits of poll(2), by name."""

    def wait(self, sock: Socket, *names: str) -> set[str]:
        """Return poll's bits once all of `names` are among them."""

    def keep(self, sock: Socket) -> Socket:
        """Register an accepted socket, so that it is closed at the end."""

    def pipe(self) -> Pipe:
        """A pipe between sockets."""

    def lose(self, number: int) -> None:
        """Close a descriptor by its number: its socket doesn't know."""


class KernelWorld:
    """Real sockets on loopback."""

    def __init__(self) -> None:
        self.made: list[Socket | selectors.BaseSelector | Pipe] = []

    def selector(self) -> selectors.BaseSelector:
        made = selectors.DefaultSelector()
        self.made.append(made)
        return made

    def pipe(self) -> Pipe:
        made = KernelPipe()
        self.made.append(made)
        return made

    def socket(self, family: int, type: int) -> Socket:
        return self.keep(socket.socket(family, type))

    def keep(self, sock: Socket) -> Socket:
        sock.setblocking(False)
        self.made.append(sock)
        return sock

    def poll(self, sock: Socket, asked: int = ALL_BITS, timeout_ms: int = 0) -> set[str]:
        poll = select.poll()
        poll.register(sock, asked)
        ready = poll.poll(timeout_ms)
        return _names(ready[0][1] if ready else 0)

    def wait(self, sock: Socket, *names: str) -> set[str]:
        """Wait for `names` only: other level-triggered bits, such as OUT, would end the wait at once."""
        for bit, name in NAMES.items():
            if name in names:
                assert self.poll(sock, bit, int(PATIENCE_S * 1000)) >= {name} or bit in (POLLERR, POLLHUP)
        return self.poll(sock)

    def close(self) -> None:
        for sock in self.made:
            with contextlib.suppress(OSError):  # other code has closed it
                sock.close()

    lose = staticmethod(os.close)


class SimulatedWorld:
    """The same calls on a simulated network without faults."""

    def __init__(self) -> None:
        self.network = SimulatedNetwork(0)
        self.lose = self.network.lose

    def selector(self) -> selectors.BaseSelector:
        return self.network.selector()

    def pipe(self) -> Pipe:
        return self.network.pipe()

    def socket(self, family: int, type: int) -> Socket:
        return self.keep(self.network.socket(family, type))

    def keep(self, sock: Socket) -> Socket:
        sock.setblocking(False)
        return sock

    def poll(self, sock: Socket, asked: int = ALL_BITS) -> set[str]:
        return _names(cast(SimulatedSocket, sock).poll() & (asked | POLLERR | POLLHUP))

    def wait(self, sock: Socket, *names: str) -> set[str]:
        found = self.poll(sock)
        assert found >= set(names), found
        return found

    def close(self) -> None:
        """Do nothing: the simulated world is garbage-collected."""


def _names(bits: int) -> set[str]:
    return {name for bit, name in NAMES.items() if bits & bit}


class Sockets:
    """Sockets of one world, connected and not."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.poll, self.wait = world.poll, world.wait

    def tcp(self, family: int = socket.AF_INET) -> Socket:
        return self.world.socket(family, socket.SOCK_STREAM)

    def listener(self, family: int = socket.AF_INET, backlog: int = 8, *, inline: bool = False) -> Socket:
        sock = self.tcp(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, int(inline))
        sock.bind(HERE[socket.AddressFamily(family)])
        sock.listen(backlog)
        return sock

    def call(self, listener: Socket) -> Socket:
        """Return a client that has connected, from its own point of view."""
        client = self.tcp(listener.family)
        assert client.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        self.wait(client, "OUT")
        return client

    def answer(self, listener: Socket) -> Socket:
        self.wait(listener, "IN")
        accepted, _ = listener.accept()
        return self.world.keep(accepted)

    def pair(self, family: int = socket.AF_INET, *, inline: bool = False) -> tuple[Socket, Socket]:
        """Return (server's end, client's end)."""
        listener = self.listener(family, inline=inline)
        client = self.call(listener)
        server = self.answer(listener)
        listener.close()
        return server, client

    def udp(self, family: int = socket.AF_INET, address: Any = None) -> Socket:
        sock = self.world.socket(family, socket.SOCK_DGRAM)
        sock.bind(address or HERE[socket.AddressFamily(family)])
        return sock
