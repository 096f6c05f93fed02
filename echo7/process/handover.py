"""Where a service gets its sockets: from the previous generation, systemd, or bind(2); and how it hands them over.

Law: a handover passes exec(2) in an environment variable, as systemd's sockets do. It names the process that it is for,
and is removed before a child could see it. The descriptors keep their numbers: when exec(2) fails, the old generation
serves on with them.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from echo7.sockets import reuseport
from echo7.sockets.adoption import HandedIn, adopted
from echo7.sockets.binding import BindError, Bound, bind_all
from reactor.sockets.factory import SocketFactory
from reactor.sockets.opening import ServingSocket

if TYPE_CHECKING:
    from echo7.settings import Settings

VARIABLE = "ECHO7_HANDOVER"
# in place of a worker's number: from systemd, one socket for all workers
SYSTEMD = 0


class Handover(NamedTuple):
    """What one generation hands to the process `pid`. `str` is the form in the environment.

    `sockets`: each descriptor, with the number of its worker. `previous`: pids of previous generations, which the new
    one must reap. `watches`: descriptors of parent watches; closing them retires the newest previous generation.
    """

    pid: int
    sockets: tuple[tuple[int, int], ...]
    previous: tuple[int, ...]
    watches: tuple[int, ...]

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
            raise BindError("the number of workers has changed during the handover; start the service again")
        return [self._set_of(number) for number in range(1, workers + 1)]

    def _set_of(self, number: int) -> Bound:
        bound, kind = Bound(is_prepared=True), HandedIn if number == SYSTEMD else ServingSocket
        for descriptor in [descriptor for descriptor, worker in self.sockets if worker == number]:
            sock = adopted(kind, descriptor, f"in {VARIABLE}")
            (bound.tcp if sock.type == socket.SOCK_STREAM else bound.udp).append(sock)
        return bound


def prepared(sets: Sequence[Bound], previous: Iterable[int], watches: Iterable[int]) -> Handover:
    """Return what this process hands to the program that it will become."""
    sockets: dict[int, int] = {}
    for number, bound in enumerate(sets, 1):
        for sock in bound.sockets:
            sockets[sock.fileno()] = SYSTEMD if isinstance(sock, HandedIn) else number
    return Handover(os.getpid(), tuple(sockets.items()), tuple(previous), tuple(watches))


def received(environment: MutableMapping[str, str] = os.environ) -> Handover | None:
    """Return what the previous generation has handed over, or None. Raise BindError for an invalid text."""
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
        raise BindError(f"{VARIABLE} is {text!r}, which is not a handover: only echo7 sets it, so unset it") from None
    return found if found.pid == os.getpid() else None


def open_sockets(settings: Settings, sockets: SocketFactory, before: Handover | None) -> tuple[list[Bound], bool]:
    """Return a set of sockets for each worker, and whether they were bound here. Raise BindError."""
    backlog, buffer_bytes, workers = settings.backlog, settings.socket_buffer_bytes, settings.workers
    if before is not None:
        sets = before.sets(workers)
        for bound in sets:
            bound.configure(backlog, buffer_bytes)
        return sets, False
    if os.environ.get("LISTEN_FDS"):
        # imported only under systemd
        from echo7.sockets.activation import inherited

        given = inherited(tcp=settings.tcp, udp=settings.udp, backlog=backlog, buffer_bytes=buffer_bytes)
        if given is not None:
            return [given] * workers, False
    bound = bind_all(
        sockets, settings.hosts, settings.port, tcp=settings.tcp, udp=settings.udp, backlog=backlog,
        buffer_bytes=buffer_bytes,
    )  # fmt: skip
    return reuseport.share(sockets, bound, workers, backlog, buffer_bytes) if workers > 1 else [bound], True


def command() -> list[str]:
    """Return the command line that has started this process."""
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
