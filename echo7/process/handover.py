"""Where a service's sockets come from: the previous generation, systemd, or bind(2); and how it hands them on.

Law: a handover travels through exec(2) in an environment variable and is taken as systemd's sockets are: it names the
process that it is for, and is removed before any child could see it. The descriptors keep their numbers, because
exec(2) may fail and the old generation then serves on with them.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from echo7.sockets import activation, reuseport
from echo7.sockets.activation import HandedIn
from echo7.sockets.binding import BindError, Bound, bind_all
from reactor.sockets.factory import SocketFactory
from reactor.sockets.opening import set_buffers

if TYPE_CHECKING:
    from echo7.settings import Settings

VARIABLE = "ECHO7_HANDOVER"
# in place of a worker's number: from systemd, one socket for all workers
SYSTEMD = 0


class Handover(NamedTuple):
    """All by number. `str` is the form in which it travels."""

    pid: int  # of the process that it is for
    sockets: tuple[tuple[int, int], ...]  # descriptor, and the number of the worker that it belongs to
    previous: tuple[int, ...]  # pids of previous generations: children that the next generation must reap
    watches: tuple[int, ...]  # descriptors of parent watches: once closed, the newest previous generation retires

    def __str__(self) -> str:
        """Return it in one word."""
        sockets = ",".join(f"{descriptor}={worker}" for descriptor, worker in self.sockets)
        previous, watches = (",".join(map(str, numbers)) for numbers in (self.previous, self.watches))
        return f"{self.pid};{sockets};{previous};{watches}"

    def sets(self, workers: int) -> list[Bound]:
        """Return a set of sockets for each worker. Raise BindError."""
        owners = {worker for _, worker in self.sockets}
        if owners == {SYSTEMD}:
            return [self._set_of(SYSTEMD)] * workers
        if owners != set(range(1, workers + 1)):
            raise BindError("the number of workers has changed while they were handed over; start again")
        return [self._set_of(number) for number in range(1, workers + 1)]

    def _set_of(self, number: int) -> Bound:
        bound, kind = Bound(), HandedIn if number == SYSTEMD else socket.socket
        for descriptor in [descriptor for descriptor, worker in self.sockets if worker == number]:
            try:
                sock = kind(fileno=descriptor)
            except OSError as error:
                raise BindError(f"descriptor {descriptor} in {VARIABLE} is no socket: {error.strerror}") from None
            sock.setblocking(False)
            sock.set_inheritable(False)
            (bound.tcp if sock.type == socket.SOCK_STREAM else bound.udp).append(sock)
        return bound


def prepared(sets: Sequence[Bound], previous: Iterable[int], watches: Iterable[int]) -> Handover:
    """Return what this process hands to the program that it is about to become."""
    sockets: dict[int, int] = {}
    for number, bound in enumerate(sets, 1):
        for sock in bound.tcp + bound.udp:
            sockets[sock.fileno()] = SYSTEMD if isinstance(sock, HandedIn) else number
    # a socket that broke is closed
    sockets.pop(-1, None)
    return Handover(os.getpid(), tuple(sockets.items()), tuple(previous), tuple(watches))


def received(environment: MutableMapping[str, str] = os.environ) -> Handover | None:
    """Return what the previous generation has handed over, None if there was none. Raise BindError for nonsense."""
    text = environment.pop(VARIABLE, None)
    if text is None:
        return None
    try:
        pid, sockets, *lists = text.split(";")
        pairs = [pair.partition("=") for pair in sockets.split(",")]
        numbers = tuple((int(descriptor), int(worker)) for descriptor, _, worker in pairs)
        previous, watches = (tuple(int(number) for number in each.split(",") if number) for each in lists)
        found = Handover(int(pid), numbers, previous, watches)
    except ValueError:
        raise BindError(f"{VARIABLE} is {text!r}, but is for echo7's own use: unset it") from None
    return found if found.pid == os.getpid() else None


def open_sockets(settings: Settings, sockets: SocketFactory, before: Handover | None) -> tuple[list[Bound], bool]:
    """Return a set of sockets for each worker, and whether they were bound here. Raise BindError."""
    backlog, buffer_bytes, workers = settings.backlog, settings.socket_buffer_bytes, settings.workers
    if before is not None:
        sets = before.sets(workers)
        for bound in sets:
            for sock in bound.tcp + bound.udp:
                if buffer_bytes is not None:
                    set_buffers(sock, buffer_bytes)
            for sock in bound.tcp:
                sock.listen(backlog)
        return sets, False
    tcp, udp = settings.tcp, settings.udp
    given = activation.inherited(tcp=tcp, udp=udp, backlog=backlog, buffer_bytes=buffer_bytes)
    if given is not None:
        return [given] * workers, False
    hosts, port = settings.hosts, settings.port
    bound = bind_all(sockets, hosts, port, tcp=tcp, udp=udp, backlog=backlog, buffer_bytes=buffer_bytes)
    if workers == 1:
        return [bound], True
    return reuseport.share(sockets, bound, workers, backlog, buffer_bytes), True


def command() -> list[str]:
    """Return how this process was started."""
    return [sys.executable, *sys.orig_argv[1:]]


def become(handover: Handover, variables: Mapping[str, str]) -> NoReturn:
    """Become the new program, with these environment variables. Raise OSError; then nothing has changed."""
    descriptors = [descriptor for descriptor, _ in handover.sockets] + list(handover.watches)
    words, environment = command(), {**os.environ, **variables, VARIABLE: str(handover)}
    try:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        os.execve(words[0], words, environment)  # noqa: S606 - the command is this process's own
    finally:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
