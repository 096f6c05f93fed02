"""Measure the memory of clients that send and never read, in the process and in the kernel, per connection.

    python3 -m benchmarks.stuck [--peers 200] [--socket-buffer BYTES]

Each client sends until the kernel takes no more, and reads nothing. Printed per connection: the bytes in our buffer,
the growth of the process (VmRSS, proc(5)), and the kernel's memory (`TCP: mem` in /proc/net/sockstat). The clients' own
kernel buffers are as small as possible, so that most of it belongs to the server's end. No connection has a pipe: the
kernel doesn't say how much is in pipes (1 MiB at most, for 32 connections at most). Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import re
import socket
import sys
import threading
import time

from echo7.server import EchoServer
from reactor import Connection, Reactor
from reactor.limits import DEFAULT_LIMITS

QUIET_S = 0.5
PEER_BUFFER_BYTES = 4096


def main() -> int:
    """Fill the connections, measure and print. Return 1 when a buffer is above its bound."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.stuck", description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, default=200)
    parser.add_argument("--socket-buffer", type=int, default=None, metavar="BYTES")
    options = parser.parse_args()
    with Reactor() as reactor:
        server = EchoServer(["127.0.0.1"], 0, udp=False, socket_buffer_bytes=options.socket_buffer, pipes=0)
        server.start(reactor)
        before_kb, before_pages = resident_kb(), kernel_pages()
        peers = [new_peer(server.addresses[0].port) for _ in range(options.peers)]
        filler = threading.Thread(target=lambda: fill_all(peers, reactor))
        filler.start()
        reactor.run()
        filler.join()
        held = [h.pending_bytes for h in reactor.handlers if isinstance(h, Connection)]
        grown_kb, pages = resident_kb() - before_kb, kernel_pages() - before_pages
    caps = f"--socket-buffer {options.socket_buffer}" if options.socket_buffer else "the kernel's own tuning"
    print(f"{len(held)} clients that send and never read, {caps}; per connection:")
    print(
        f"  our buffer     {max(held):>10,} bytes at the most (the documented bound is {DEFAULT_LIMITS.bound_bytes:,})"
    )
    print(f"  process        {grown_kb * 1024 // len(held):>10,} bytes resident")
    print(f"  kernel         {pages * os.sysconf('SC_PAGE_SIZE') // len(held):>10,} bytes")
    return int(max(held) > DEFAULT_LIMITS.bound_bytes)


def new_peer(port: int) -> socket.socket:
    """Return a connected, non-blocking client with small kernel buffers."""
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PEER_BUFFER_BYTES)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PEER_BUFFER_BYTES)
    peer.connect(("127.0.0.1", port))
    peer.setblocking(False)
    return peer


def fill_all(peers: list[socket.socket], reactor: Reactor) -> None:
    """Send on every connection until no connection takes more for a while, then stop the reactor."""
    piece = bytes(65_536)
    quiet = 0
    while quiet < 2:
        taken = 0
        for peer in peers:
            with contextlib.suppress(BlockingIOError):
                while True:
                    taken += peer.send(piece)
        quiet = 0 if taken else quiet + 1
        # the kernel moves bytes to the server meanwhile
        time.sleep(QUIET_S)
    reactor.call_soon_threadsafe(reactor.stop)


def resident_kb() -> int:
    """Return VmRSS in KiB."""
    found = re.search(r"VmRSS:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def kernel_pages() -> int:
    """Return the pages that TCP uses on this machine."""
    found = re.search(r"TCP:.* mem (\d+)", pathlib.Path("/proc/net/sockstat").read_text())
    assert found
    return int(found[1])


if __name__ == "__main__":
    sys.exit(main())
