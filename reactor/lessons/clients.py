"""What a client does to a server: ask, push without reading, read to the end.

Law: pings set the order. A loop that has answered three pings on another connection has made a turn, and has handled
all that came before the first. So nothing here sleeps until something may have happened; a pause is a slow reader's.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time

from reactor.lessons.subject import PATIENCE_S, Broken

PIECE_BYTES = 64 * 1024
PING_TURNS = 3
DRIBBLE_BYTES = 4096
QUIET_S = 0.5  # a pause of this length means that no more bytes come
STALL_S = 0.25  # longer than a kernel waits before it asks again whether there is room (tcp(7): 200 ms)


def ask(client: socket.socket, data: bytes = b"ping") -> None:
    """Send bytes and wait until they are back. Raise Broken if they aren't."""
    client.sendall(data)
    answer = bytearray()
    while len(answer) < len(data):
        try:
            piece = client.recv(len(data) - len(answer))
        except TimeoutError:
            raise Broken(f"{len(answer)} of {len(data)} bytes came back in {PATIENCE_S:g} s") from None
        if not piece:
            raise Broken(f"the server closed the connection after {len(answer)} of {len(data)} bytes")
        answer += piece
    compare(data, bytes(answer))


def compare(sent: bytes, came: bytes) -> None:
    """Raise Broken, with the first difference, unless the answer is the beginning of what was sent."""
    if sent[: len(came)] != came:
        at = next(i for i, (one, other) in enumerate(zip(sent, came, strict=False)) if one != other)
        raise Broken(f"byte {at:,} was sent as {sent[at : at + 1]!r} and came back as {came[at : at + 1]!r}")


def settle(client: socket.socket) -> None:
    """Return when the server has handled all that had arrived before."""
    for _ in range(PING_TURNS):
        ask(client)


def pattern(count: int) -> bytes:
    """Return `count` bytes in which no four-byte group occurs twice."""
    return b"".join(number.to_bytes(4, "big") for number in range(count // 4))


def push(client: socket.socket, data: bytes, other: socket.socket) -> int:
    """Send as much as the server takes, without reading; return how much. `other` is for pings."""
    client.settimeout(0.0)
    sent = 0
    while sent < len(data):
        try:
            sent += client.send(data[sent : sent + PIECE_BYTES])
        except BlockingIOError:
            settle(other)
            if not select.select([], [client], [], STALL_S)[1]:
                break
    client.settimeout(PATIENCE_S)
    return sent


def offer(client: socket.socket, data: bytes) -> int | None:
    """Send what the kernel takes at once; return how much, or None if the server has closed the connection."""
    client.settimeout(0.0)
    try:
        return client.send(data[:PIECE_BYTES]) if data else 0
    except BlockingIOError:
        return 0
    except ConnectionError:
        return None
    finally:
        client.settimeout(PATIENCE_S)


def sip(client: socket.socket, most_bytes: int, before_bytes: int) -> bytes:
    """Receive a little. Raise Broken if nothing more comes; `before_bytes` have come so far."""
    with contextlib.suppress(TimeoutError, ConnectionError):
        if piece := client.recv(most_bytes):
            return piece
    raise Broken(f"a client that read slowly, but never paused, got {before_bytes:,} bytes and was closed")


def stuff(client: socket.socket) -> int:
    """Send as much as the kernel takes, before the server begins; return how much."""
    client.settimeout(0.0)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += client.send(bytes(PIECE_BYTES))
    return sent


def pull(client: socket.socket, pace_s: float = 0.0) -> tuple[bytes, str]:
    """Read to the end, with a slow reader's pauses; return what came, and how it ended."""
    came = bytearray()
    try:
        while piece := client.recv(PIECE_BYTES):
            came += piece
            time.sleep(pace_s)
    except TimeoutError:
        return bytes(came), f"nothing more for {PATIENCE_S:g} s, and no end (FIN)"
    except ConnectionError:
        return bytes(came), "a reset"
    return bytes(came), "the end"


def expect_all(client: socket.socket, data: bytes, which: str, pace_s: float = 0.0) -> str:
    """Read to the end. Raise Broken unless all of `data` comes, and then an orderly end."""
    came, ending = pull(client, pace_s)
    compare(data, came)
    measured = f"of {len(data):,} bytes {which}, {len(came):,} came back, then {ending}"
    if len(came) < len(data) or ending != "the end":
        raise Broken(measured)
    return measured


def expect_end(client: socket.socket, name: str) -> None:
    """Raise Broken unless an orderly end comes, and nothing before it."""
    came, ending = pull(client)
    if came or ending != "the end":
        before = f"{len(came):,} bytes, and then " if came else ""
        raise Broken(f"{name} got {before}{ending}, instead of an orderly end (FIN)")


def readable(client: socket.socket, within_s: float) -> bool:
    """Tell whether bytes or an end come for this client within `within_s` seconds."""
    return bool(select.select([client], [], [], within_s)[0])


def receive_or_send(client: socket.socket, rest: bytes) -> bytes | int | None:
    """Return what came, else how many bytes could be sent, or None if neither happens for QUIET_S."""
    can_read, can_write, _ = select.select([client], [client] if rest else [], [], QUIET_S)
    if can_read:
        return client.recv(PIECE_BYTES) or None
    return client.send(rest[:DRIBBLE_BYTES]) if can_write else None


def expect_datagram(client: socket.socket, which: str) -> bytes:
    """Return the next datagram. Raise Broken if none comes."""
    try:
        return client.recv(PIECE_BYTES)
    except TimeoutError:
        raise Broken(f"{which} had no answer in {PATIENCE_S:g} s") from None


def hear(client: socket.socket, question: bytes) -> None:
    """Receive this question. Raise Broken if another or none comes."""
    try:
        came = client.recv(PIECE_BYTES)
    except TimeoutError:
        raise Broken(f"the client wasn't asked {question.decode()!r} in {PATIENCE_S:g} s") from None
    if came != question:
        raise Broken(f"the client was asked {came!r}, not {question!r}")
