"""For every test: the project's folder, patience, free ports."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from echo7.sockets.binding import BindError, bind_all

PROJECT = pathlib.Path(__file__).resolve().parent.parent.parent


PATIENCE_S = 20.0  # how long an expected event may take on a loaded machine before the test fails


def has_ipv6() -> bool:
    """Tell whether ::1 can be bound here."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def told(call: Callable[..., Any], *args: Any) -> Any:
    """Return a call's result, or the name of the errno that it raises."""
    try:
        return call(*args)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def until(condition: Callable[[], object]) -> None:
    """Return when `condition()` is true. Looks often, for what another process does without a notification."""
    patience_ends_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < patience_ends_s, f"the condition is still false after {PATIENCE_S} s: {condition}"
        time.sleep(0.002)


def quiet_port(hosts: Sequence[str] = ("127.0.0.1",)) -> int:
    """Return a port that is free for TCP and UDP, below the ports that the kernel gives to clients.

    A client that connects before a server listens could otherwise get the same number and connect to itself
    (RFC 9293 §3.5, simultaneous open).
    """
    # Not the shared generator: Hypothesis seeds it, so two runs side by side would choose the same ports. Each process
    # of one run has its own range of ports: a free port could otherwise be taken by another process before its use.
    first = 20_000 + 1_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 12)
    for port in random.SystemRandom().sample(range(first, first + 1_000), 100):
        with contextlib.suppress(BindError):
            bind_all(socket, hosts, port).close()
            return port
    raise AssertionError("no port is free")


@contextlib.contextmanager
def silent_address() -> Iterator[tuple[str, int]]:
    """Yield an address that doesn't answer: its queue is full, so the kernel drops further SYNs."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        yield server.getsockname()


def open_descriptors() -> int:
    """Count this process's descriptors."""
    return len(os.listdir("/dev/fd"))
