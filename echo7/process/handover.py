"""What one image of the service hands to the next one through exec(2): sockets, and the processes to look after.

Law: it is taken as what systemd hands in is taken. It is meant for one process, so the number of that one stands in it
and must be ours; the variable is removed, and the descriptors are closed in whatever we may run. But they keep their
numbers: to move them to 3, 4, … would cost the old image its own, and exec(2) may fail.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, MutableMapping, Sequence
from typing import NamedTuple

from echo7.sockets.activation import HandedIn
from echo7.sockets.binding import BindError, Bound

VARIABLE = "ECHO7_HANDOVER"
SYSTEMD = 0  # in place of a worker's number: one socket for all, made by others


class Handover(NamedTuple):
    """All by number. `str` is the form in which it travels."""

    pid: int  # who shall take it
    sockets: tuple[tuple[int, int], ...]  # descriptor, and the worker whose set it belongs to
    elders: tuple[int, ...]  # children that serve on, and their number is ours to reap
    leashes: tuple[int, ...]  # descriptors; once they are closed, the newest elders take no one new

    def __str__(self) -> str:
        """Return it in one word."""
        sockets = (f"{descriptor}={owner}" for descriptor, owner in self.sockets)
        return f"{self.pid};{','.join(sockets)};{_joined(self.elders)};{_joined(self.leashes)}"

    def sets(self, workers: int) -> list[Bound]:
        """Return the sets of sockets, one for each worker. Raise BindError."""
        owners = {owner for _, owner in self.sockets}
        if owners == {SYSTEMD}:
            return [self._set_of(SYSTEMD)] * workers
        if owners != set(range(1, workers + 1)):
            raise BindError("the number of workers has changed while they were handed over; start again")
        return [self._set_of(number) for number in range(1, workers + 1)]

    def _set_of(self, number: int) -> Bound:
        bound, kind = Bound(), HandedIn if number == SYSTEMD else socket.socket
        for descriptor in [descriptor for descriptor, owner in self.sockets if owner == number]:
            try:
                sock = kind(fileno=descriptor)
            except OSError as error:
                raise BindError(f"descriptor {descriptor} in {VARIABLE} is no socket: {error.strerror}") from None
            sock.setblocking(False)
            sock.set_inheritable(False)
            (bound.tcp if sock.type == socket.SOCK_STREAM else bound.udp).append(sock)
        return bound


def prepared(sets: Sequence[Bound], elders: Iterable[int], leashes: Iterable[int]) -> Handover:
    """Return what this process hands to its next image."""
    sockets: dict[int, int] = {}
    for number, bound in enumerate(sets, 1):
        for sock in bound.tcp + bound.udp:
            sockets[sock.fileno()] = SYSTEMD if isinstance(sock, HandedIn) else number
    sockets.pop(-1, None)  # one that broke, and is closed
    return Handover(os.getpid(), tuple(sockets.items()), tuple(elders), tuple(leashes))


def received(environment: MutableMapping[str, str] = os.environ) -> Handover | None:
    """Return what the image before us has handed over, or None if there was none. Raise BindError for nonsense."""
    text = environment.pop(VARIABLE, None)
    if text is None:
        return None
    try:
        pid, sockets, elders, leashes = text.split(";")
        pairs = [pair.partition("=") for pair in sockets.split(",")]
        found = Handover(
            int(pid), tuple((int(descriptor), int(owner)) for descriptor, _, owner in pairs), _parted(elders),
            _parted(leashes),
        )  # fmt: skip
    except ValueError:
        raise BindError(f"{VARIABLE} is {text!r}, but is for our own use: unset it") from None
    return found if found.pid == os.getpid() else None


def _joined(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def _parted(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
