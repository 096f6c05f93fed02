"""A client that sends and doesn't read, with which a student tries the lessons' servers by hand.

Law: it reports what has happened, in bytes, and doesn't judge. No common tool does this: `nc` reads while it sends.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections.abc import Iterator

FLOOD_BYTES = 20_000_000  # more than any kernel's buffers hold
PIECE_BYTES = 64 * 1024
REST_S = 0.002  # after each piece that is read: so the server sees the FIN before all is read
FULL_S = 1.0  # a pause of this length means that the server takes no more
QUIET_S = 3.0  # a pause of this length means that nothing more arrives


def flood(port: int, size_bytes: int = FLOOD_BYTES) -> Iterator[str]:
    """Send `size_bytes` without reading, wait for Enter, send FIN, read to the end; yield a report of each step.

    Raise OSError if nothing serves this port of 127.0.0.1.
    """
    with socket.create_connection(("127.0.0.1", port)) as client:
        sent = send_all_that_is_taken(client, size_bytes)
        rest = "" if sent == size_bytes else f" of {size_bytes:,}; no more was taken"
        yield f"sent {sent:,} bytes{rest}; read none of the answers so far"
        if sys.stdin.isatty():
            yield "Look at the server now, or press Ctrl-C there. Then press Enter here."
            sys.stdin.readline()
        came, ending = end_and_read(client)
        yield f"ended the input, then read {came:,} of {sent:,} bytes, and then {ending}"


def send_all_that_is_taken(client: socket.socket, size_bytes: int) -> int:
    """Send up to `size_bytes` zeros, and read nothing; return how many the server took."""
    client.setblocking(False)
    sent = 0
    while sent < size_bytes and select.select([], [client], [], FULL_S)[1]:
        try:
            sent += client.send(bytes(min(PIECE_BYTES, size_bytes - sent)))
        except OSError:  # the server has closed the connection
            break
    return sent


def end_and_read(client: socket.socket) -> tuple[int, str]:
    """Send FIN and read to the end; return how many bytes came, and how it ended."""
    client.settimeout(QUIET_S)
    came = 0
    try:
        client.shutdown(socket.SHUT_WR)
        while piece := client.recv(PIECE_BYTES):
            came += len(piece)
            time.sleep(REST_S)
    except TimeoutError:
        return came, f"nothing more for {QUIET_S:g} s"
    except OSError:
        return came, "a reset"
    return came, "the end (FIN)"
