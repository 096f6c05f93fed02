"""Endpoint: what simulated stream and datagram sockets have in common.

Law: a socket does what the kernel's would, as far as `tests/conformance` compares the two. What no program may do (use
a closed socket, close a watched one, block) is also recorded in `world.violations`.
"""

from __future__ import annotations

import errno
import socket
from typing import Self

from reactor.sockets.addresses import Address
from reactor.sockets.errors import os_error
from reactor.testing.chance import Fault
from reactor.testing.world import World

# The bits of poll(2). The module `select` lacks some on some platforms.
POLLIN, POLLPRI, POLLOUT, POLLERR, POLLHUP, POLLRDHUP = 0x1, 0x2, 0x4, 0x8, 0x10, 0x2000
LEAST_BUFFER_BYTES = 1
BUFFERS = {(socket.SOL_SOCKET, socket.SO_SNDBUF), (socket.SOL_SOCKET, socket.SO_RCVBUF)}
Buffer = bytes | bytearray | memoryview


class SimulatedSocket:
    """A socket of a simulated network. Has the methods of `socket.socket` that a non-blocking program needs.

    `inside`: it belongs to the program under test, so it has a descriptor and meets faults; a peer's socket doesn't.
    `faulty` is false for the socket pair that wakes the loop: its bytes never leave the machine.
    """

    __slots__ = (
        "blocking", "closed", "error", "family", "faulty", "inside", "local", "lost", "number", "options", "proto",
        "remote", "type", "world",
    )  # fmt: skip

    def __init__(self, world: World, family: int, kind: int, inside: bool) -> None:
        self.world, self.inside, self.faulty = world, inside, inside
        self.family, self.type, self.proto = socket.AddressFamily(family), socket.SocketKind(kind), 0
        self.local: Address | None = None
        self.remote: Address | None = None
        self.number = world.descriptors.take(self) if inside else -1
        self.closed = self.lost = False  # lost: other code has closed it by its number, which this object still has
        self.blocking = True
        self.error = 0  # SO_ERROR: the next call reports it, once
        self.options: dict[tuple[int, int], int | bytes] = {
            (socket.SOL_SOCKET, socket.SO_SNDBUF): world.send_buffer_bytes,
            (socket.SOL_SOCKET, socket.SO_RCVBUF): world.receive_buffer_bytes,
        }

    def __enter__(self) -> Self:
        """Return the socket itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the socket."""
        self.close()

    def fileno(self) -> int:
        """Return the descriptor, or -1 when closed."""
        return self.number

    def detach(self) -> int:
        """Forget the descriptor without closing it, and return it."""
        number, self.number = self.number, -1
        return number

    def setblocking(self, flag: bool) -> None:
        """Set whether calls may block. Here none can: with True, a call that would block raises RuntimeError."""
        self.blocking = flag

    def setsockopt(self, level: int, name: int, value: int | bytes) -> None:
        """Store an option. Options that matter to the simulation take effect."""
        self.check_open("setsockopt")
        if (level, name) in BUFFERS and isinstance(value, int):
            value = max(LEAST_BUFFER_BYTES, 2 * min(value, self._most_bytes(name)))  # socket(7): the kernel doubles it
        self.options[level, name] = value

    def _most_bytes(self, name: int) -> int:
        """Return the network's net.core.rmem_max or wmem_max."""
        return self.world.receive_buffer_bytes if name == socket.SO_RCVBUF else self.world.send_buffer_bytes

    def getsockopt(self, level: int, name: int) -> int:
        """Return an option, 0 if it was never set. SO_ERROR is reported once."""
        self.check_open("getsockopt")
        if (level, name) == (socket.SOL_SOCKET, socket.SO_ERROR):
            code, self.error = self.error, 0
            return code
        value = self.options.get((level, name), 0)
        return value if isinstance(value, int) else 1

    def getsockname(self) -> Address:
        """Return our own address."""
        if self.closed:
            raise os_error(errno.EBADF)
        return self.local or self.world.routing.any_address(self.family)

    def bind(self, address: Address) -> None:
        """Take a local address: bind(2)."""
        self.check_open("bind")
        if self.local is not None:
            raise os_error(errno.EINVAL)
        self.local = self.world.ports.bind(self, address)

    def close(self) -> None:
        """Close the socket, and free its descriptor's number. A second close does nothing."""
        if not self.closed:
            if self.inside:
                self.world.enter("close")
                self.world.about_to_close(self.number)
                self.world.descriptors.give_back(self.number)
            self.closed, self.number = True, -1
            self._release()
        elif self.number >= 0:
            try:
                self.check_open("close")
            finally:
                self.number = -1

    def lose(self) -> None:
        """Close the socket as other code would, by its number: later calls raise EBADF, or reach another socket."""
        self.closed = self.lost = True
        self.world.descriptors.give_back(self.number, lost=True)
        self._release()

    def _release(self) -> None:
        self.ended()
        self.world.ports.release(self)

    def ended(self) -> None:
        """Do what the kernel does at the close of the last descriptor."""
        raise NotImplementedError

    def poll(self) -> int:
        """Return the bits of poll(2). HUP and ERR are always included."""
        raise NotImplementedError

    def enter(self, call: str) -> Fault | None:
        """Begin a system call: the world takes a step. Return the call's fault or None."""
        self.check_open(call)
        return self.world.enter(call, self.faulty) if self.inside else None

    def check_open(self, call: str) -> None:
        """Raise EBADF for a closed socket. In the program under test it is a violation too, unless it was lost."""
        if self.closed:
            if self.number in self.world.descriptors.open:
                self.world.violations.append(f"{call} on descriptor {self.number}, which is another socket's by now")
            elif self.inside and not self.lost:
                self.world.violations.append(f"{call} on a closed socket")
            raise os_error(errno.EBADF)

    def would_block(self) -> Exception:
        """Return the error of a call that can't do anything yet: EAGAIN."""
        if self.blocking:
            if self.inside:
                self.world.violations.append("a call that would block")
            return RuntimeError("nothing blocks in a simulation: call setblocking(False)")
        return os_error(errno.EAGAIN)

    def take_error(self) -> OSError:
        """Return the pending error as an exception, and clear it."""
        code, self.error = self.error, 0
        return os_error(code)
