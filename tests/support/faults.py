"""Real sockets with scripted failures of their system calls."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any, cast

from reactor.fastpath import splice
from reactor.sockets.errors import WOULD_BLOCK, os_error
from reactor.sockets.opening import Socket

if TYPE_CHECKING:
    from reactor.fastpath.mmsg import Slots


class Faults:
    """A script of what happens at the next system calls, by name. Other calls go to the kernel.

    An entry is None (make the call), an int (make it with at most so many bytes), or the OSError to raise. A copy is
    raised each time: an exception that is raised again keeps its traceback, which would grow with every call.
    """

    def __init__(self) -> None:
        self.script: dict[str, list[int | OSError | None]] = {}
        self.calls: dict[str, int] = {}
        self.always: dict[str, OSError] = {}

    def add(self, call: str, *entries: int | OSError | None) -> None:
        self.script.setdefault(call, []).extend(entries)

    def next(self, call: str) -> int | None:
        self.calls[call] = self.calls.get(call, 0) + 1
        if call in self.always:
            raise copy_of(self.always[call])
        entries = self.script.get(call)
        entry = entries.pop(0) if entries else None
        if isinstance(entry, OSError):
            raise copy_of(entry)
        return entry


def copy_of(error: OSError) -> OSError:
    """Return a new exception that says the same, without a traceback."""
    return type(error)(*error.args)


EAGAIN = os_error(errno.EAGAIN)
EINTR = os_error(errno.EINTR)


class FlakySocket(socket.socket):
    """A real socket. Each system call first asks a `Faults` script."""

    faults: Faults

    def recv(self, size: int, flags: int = 0) -> bytes:
        limit = self.faults.next("recv")
        return super().recv(size if limit is None else max(1, min(size, limit)), flags)

    def send(self, data: Any, flags: int = 0) -> int:
        limit = self.faults.next("send")
        return super().send(data if limit is None else memoryview(data)[: max(1, limit)], flags)

    def recvmsg(self, *args: Any) -> Any:
        self.faults.next("recvmsg")
        return super().recvmsg(*args)

    def recvmmsg(self, slots: Slots) -> int:
        self.faults.next("recvmmsg")
        return slots.kernel_calls(self.fileno())[0]()

    def sendmmsg(self, slots: Slots, first: int, count: int) -> int:
        limit = self.faults.next("sendmmsg")
        return slots.kernel_calls(self.fileno())[1](first, count if limit is None else min(count, limit))

    def sendto(self, *args: Any) -> int:
        self.faults.next("sendto")
        return super().sendto(*args)

    def sendmsg(self, *args: Any) -> int:
        self.faults.next("sendmsg")
        return super().sendmsg(*args)

    def shutdown(self, how: int) -> None:
        self.faults.next("shutdown")
        super().shutdown(how)

    def bind(self, address: Any) -> None:
        self.faults.next("bind")
        super().bind(address)

    def listen(self, *args: Any) -> None:
        self.faults.next("listen")
        super().listen(*args)

    def accept(self) -> tuple[socket.socket, Any]:
        self.faults.next("accept")
        plain, address = super().accept()
        return adopt_socket(plain, self.faults), address


class FlakySockets:
    """A SocketFactory of FlakySockets: hand it to `Reactor(sockets=…)`."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults if faults is not None else Faults()
        self.refused_families: dict[int, OSError] = {}  # family → what socket(2) raises

    def socket(self, family: int, type: int) -> socket.socket:
        self.faults.next("socket")
        if family in self.refused_families:
            raise copy_of(self.refused_families[family])
        sock = FlakySocket(family, type)
        sock.faults = self.faults
        return sock

    def socketpair(self) -> tuple[Socket, Socket]:
        return socket.socketpair()

    def pipe(self) -> splice.Pipe:
        self.faults.next("pipe")
        return FlakyPipe()


class FlakyPipe(splice.KernelPipe):
    """A pipe that fails as the script says for recv and send of its FlakySocket."""

    def fill(self, sock: Socket, most_bytes: int) -> int:
        try:
            limit = cast(FlakySocket, sock).faults.next("recv")
        except WOULD_BLOCK:
            return 0
        return super().fill(sock, most_bytes if limit is None else max(1, min(most_bytes, limit)))

    def drain(self, sock: Socket, most_bytes: int) -> int:
        limit = cast(FlakySocket, sock).faults.next("send")
        return super().drain(sock, most_bytes if limit is None else max(1, min(most_bytes, limit)))


def adopt_socket(plain: socket.socket, faults: Faults) -> FlakySocket:
    """Turn a plain socket into a flaky one."""
    family, kind, proto = plain.family, plain.type, plain.proto
    flaky = FlakySocket(family, kind, proto, fileno=plain.detach())
    flaky.faults = faults
    return flaky
