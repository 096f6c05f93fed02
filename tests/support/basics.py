"""What every test may need: the project's folder, time-outs, free ports."""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence

from echo7.sockets.binding import BindError, bind_all

PROJECT = pathlib.Path(__file__).resolve().parent.parent.parent


PATIENCE_S = 20.0  # how long a thing that must happen may take on a loaded machine before the test fails


def has_ipv6() -> bool:
    """Tell whether ::1 can be bound here."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def until(condition: Callable[[], object]) -> None:
    """Return once another process has made `condition()` true; nothing tells us when that is, so look often."""
    patience_ends_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < patience_ends_s, f"still not so after {PATIENCE_S} s: {condition}"
        time.sleep(0.002)


def quiet_port(hosts: Sequence[str] = ("127.0.0.1",)) -> int:
    """A port that is free for TCP and UDP, and that no client gets by chance from the kernel.

    A client that connects before anything serves there might else be given the same number, and be its own peer
    (RFC 9293 §3.5, simultaneous open).
    """
    # Not the common generator: hypothesis seeds that, and two runs side by side would choose alike. Processes of one
    # run choose from different ports: one that is free now may else be another's before it is used.
    first = 20_000 + 1_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 12)
    for port in random.SystemRandom().sample(range(first, first + 1_000), 100):
        with contextlib.suppress(BindError):
            bind_all(socket, hosts, port).close()
            return port
    raise AssertionError("no port is free")


@contextlib.contextmanager
def silent_address() -> Iterator[tuple[str, int]]:
    """An address from which no answer comes: its queue is full, so the kernel drops what asks for more."""
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
