"""The cases over TCP with one or two clients, and the list of all, in the order of the first round: cheap ones first.

Law: each case tests one thing, so a failure has a name. The rule of each case is RFC 862's sentence about TCP, "once a
connection is established any data received is sent back … until the calling user terminates the connection", or an RFC
that says what a connection is.
"""

from __future__ import annotations

import random

from echo7.checker import tcp_load as load
from echo7.checker.session import Session
from echo7.checker.tcp_client import HELLO, TcpClient
from echo7.checker.verdict import Case, Failure, Fault, Story, Undecided

SEGMENT_BYTES = 1460  # of a stream in one Ethernet frame
DRIBBLED_BYTES = 64
SLOW_BYTES = 2 * 1024 * 1024
STUCK_BYTES = 32 * 1024 * 1024
CHUNK_BYTES = 65_536
# Our own socket buffers, small so that the server soon meets backpressure.
SMALL_BUFFER_BYTES = 65_536
# A server that has taken nothing for so long waits for the client to read.
STALLED_S = 0.3
SLOW_PAUSE_S, SLOW_READS = 0.001, 32
BEHIND_S = 0.01  # surplus bytes come right after the echo
RETURNED = "RFC 862: any data received is sent back"
STREAM = "RFC 9293 §3.8: a stream of octets, in order"
ENDS = "RFC 862: until the calling user terminates the connection"
MANY = "RFC 862: once a connection is established"
HALF_CLOSED = "RFC 1122 §4.2.2.13, RFC 9293 §3.6"
RESET = "RFC 9293 §3.5.3: a reset ends its own connection"
TEXT = (
    "naïve café ☕ 🦉 Ω \ufeff\u2028\u0085".encode()
    + b"\r\n\n\r\r\r\n\x00\x1a\x04\x03"  # all kinds of line ends, and bytes that end a text
    + b"\xc3\x28\xff\xfe\xed\xa0\x80"  # invalid UTF-8
)
TELNET = bytes([255, 251, 1, 255, 253, 3, 255, 250, 24, 1, 255, 240, 255, 255, 255, 244, 13, 0, 13, 10])
# the same bytes in every run, so that a run can be repeated
RANDOM = random.Random(862).randbytes(4 * CHUNK_BYTES)  # noqa: S311
RUNS = b"\0" * 5000 + b"\xff" * 5000 + b"\r\n" * 2500 + b"A" * 70_000


async def answers(session: Session) -> str:
    """Check that a server is there and echoes. All other cases depend on this."""
    client = await session.connect()
    client.send(HELLO)
    if not await session.until(lambda: client.over or client.received_bytes):
        await session.until(lambda: client.over or client.received_bytes)
        if client.received_bytes:
            raise Undecided(f"it took longer than {session.timeout_s:g} s to answer; give it more time (--timeout)")
    client.check()
    if not client.received_bytes:
        closed = "the server closed" if client.ended or client.over else f"nothing within {2 * session.timeout_s:g} s"
        raise Failure(Fault.MUTE, f"connected, but no echo: {closed}")
    await client.answered()
    return "a line came back"


async def silence(session: Session) -> str:
    """Check that nothing comes before something is sent."""
    client = await session.connect()
    await session.quiet()
    client.check()
    return "nothing came before something was sent"


async def no_more(session: Session) -> str:
    """Check that nothing comes after the echo."""
    client = await session.connect()
    await client.echo(session.payload(1000))
    await session.quiet()
    client.check()
    return "1,000 bytes came back, and nothing after them"


async def client_ends(session: Session) -> str:
    """Check that the server leaves closing to the client."""
    client = await session.connect()
    await client.echo(HELLO)
    await session.quiet()
    if client.ended or client.over:
        raise Failure(Fault.CONDUCT, "the server closed the connection after its first answer")
    await client.echo(HELLO)
    return "a second line came back too"


async def empty(session: Session) -> str:
    """Check that a client that sends only FIN gets only FIN."""
    client = await session.connect()
    client.connection.half_close()
    await client.finished()
    return "no data, and the connection ended"


async def half_close(session: Session) -> str:
    """Check that a client that half-closes right after its bytes gets all of them, then FIN."""
    for size_bytes in (1, SEGMENT_BYTES, 4 * CHUNK_BYTES):
        client = await session.connect()
        client.send(session.payload(size_bytes))
        client.connection.half_close()
        await client.finished()
    return f"{client.received_bytes:,} bytes came back after our FIN, then the server's FIN"


async def late_reader(session: Session) -> str:
    """Check that a client gets every byte that it reads only after its FIN, and slowly."""
    client = await session.connect(buffer_bytes=SMALL_BUFFER_BYTES)
    await _stuff(session, client, STUCK_BYTES)
    client.connection.half_close()
    await _read_slowly(session, client)
    await client.finished()
    return f"{client.received_bytes:,} bytes came back to a client that read them after its FIN"


async def byte_by_byte(session: Session) -> str:
    """Check that each byte comes back before the next is sent: no wait for a line end or a full buffer."""
    client = await session.connect()
    for byte in session.payload(DRIBBLED_BYTES):
        await client.echo(bytes([byte]))
    return f"{DRIBBLED_BYTES} bytes came back, each before the next was sent"


async def random_chunks(session: Session) -> str:
    """Check that writes of random sizes make the same stream."""
    client = await session.connect()
    total_bytes = 0
    while total_bytes < 4 * CHUNK_BYTES:
        size_bytes = session.random.choice((1, 2, 3, 100, 1459, 1460, 1461, 4096, 20_000))
        total_bytes += size_bytes
        client.send(session.random.randbytes(size_bytes))
        await session.pause(0)
    await client.answered()
    return f"{total_bytes:,} bytes came back, sent in chunks of 1 to 20,000"


async def slow_reader(session: Session) -> str:
    """Check that a client that sends without reading, and reads slowly later, gets every byte."""
    client = await session.connect(buffer_bytes=SMALL_BUFFER_BYTES, receive_bytes=4096)
    await _stuff(session, client, SLOW_BYTES)
    await _read_slowly(session, client)
    await client.answered()
    return f"{client.sent_bytes:,} bytes came back"


async def stuck_peer(session: Session) -> str:
    """Check that a client that doesn't read doesn't block another client."""
    stuck = await session.connect(buffer_bytes=SMALL_BUFFER_BYTES)
    waits = await _stuff(session, stuck, STUCK_BYTES)
    other = session.dial(timeout_s=session.stalled_s)
    await session.until(lambda: other.made or other.over, timeout_s=session.stalled_s)
    other.check()
    other.send(HELLO)
    served = await session.until(lambda: other.over or other.is_answered, timeout_s=session.stalled_s)
    # a reset would be faster, but that is another case
    stuck.connection.resume_reading()
    await stuck.answered()
    if not served:
        stuck.connection.half_close()
        if await session.until(lambda: other.over or other.is_answered, timeout_s=session.stalled_s):
            raise Failure(Fault.CONDUCT, "while one client doesn't read, another client gets no answer")
    await other.answered()
    how = "stuck" if waits else "not reading"
    return f"answered while another client is {how} with {stuck.sent_bytes:,} bytes, which came later"


async def _stuff(session: Session, client: TcpClient, most_bytes: int) -> bool:
    """Send without reading, at most `most_bytes`. Return whether the server stopped taking them."""
    client.connection.pause_reading()
    while client.sent_bytes < most_bytes and not client.over:
        client.send(session.random.randbytes(CHUNK_BYTES))
        flushed = session.until(
            lambda: client.over or not client.connection.pending_bytes,
            timeout_s=STALLED_S,
            moving=lambda: client.connection.pending_bytes,
        )
        if not await flushed:
            return True
    return False


async def _read_slowly(session: Session, client: TcpClient) -> None:
    """Read more slowly than any server sends, so that its buffers stay full; then go on reading."""
    for _ in range(SLOW_READS):
        before = client.received_bytes
        client.connection.resume_reading()
        await session.until(lambda before=before: client.over or client.received_bytes > before)  # type: ignore[misc]
        client.connection.pause_reading()
        await session.pause(SLOW_PAUSE_S)
        if client.received_bytes in (before, client.sent_bytes):
            break
    client.connection.resume_reading()


async def urgent(session: Session) -> str:
    """Check that an urgent byte comes back in its place in the stream."""
    client = await session.connect()
    client.send(b"abc")
    client.send_urgent(b"X")
    client.send(b"def")
    try:
        await client.answered()
    except Failure:
        raise Failure(Fault.LOSSY, "sent abc, urgent X, def: the X didn't come back in its place") from None
    return "sent abc, urgent X, def: abcXdef came back"


def returned(data: bytes | int) -> Story:
    """Return a story that sends these bytes, or this number of bytes, in one write and gets them back."""

    async def story(session: Session) -> str:
        client = await session.connect()
        await client.echo(session.payload(data) if isinstance(data, int) else data)
        await session.pause(BEHIND_S)
        client.check()
        return "1 byte came back" if client.sent_bytes == 1 else f"{client.sent_bytes:,} bytes came back"

    return story


CASES = (
    Case("tcp-answers", "a server is there and echoes", RETURNED, answers),
    Case("tcp-silence", "nothing comes before something is sent", RETURNED, silence),
    Case("tcp-0", "a client that sends only FIN gets only FIN", ENDS, empty),
    Case("tcp-1", "one byte comes back", RETURNED, returned(1)),
    Case("tcp-1459", "one byte less than a segment comes back", RETURNED, returned(SEGMENT_BYTES - 1)),
    Case("tcp-1460", "a full segment comes back", RETURNED, returned(SEGMENT_BYTES)),
    Case("tcp-1461", "one byte more than a segment comes back", RETURNED, returned(SEGMENT_BYTES + 1)),
    Case("tcp-64k", "64 KiB come back", RETURNED, returned(65_536)),
    Case("tcp-all-bytes", "all 256 byte values come back unchanged", RETURNED, returned(bytes(range(256)) * 3)),
    Case("tcp-runs", "long runs of one byte come back unchanged", RETURNED, returned(RUNS)),
    Case("tcp-random", "random bytes come back unchanged", RETURNED, returned(RANDOM)),
    Case("tcp-text", "UTF-8, line ends and control characters come back", RETURNED, returned(TEXT)),
    Case("tcp-telnet", "Telnet's IAC comes back like any other byte", RETURNED, returned(TELNET)),
    Case("tcp-byte-by-byte", "each byte comes back before the next is sent", RETURNED, byte_by_byte),
    Case("tcp-chunks", "writes of random sizes make the same stream", STREAM, random_chunks),
    Case("tcp-no-more", "no more comes back than was sent", RETURNED, no_more),
    Case("tcp-caller-ends", "the server leaves closing to the client", ENDS, client_ends),
    Case("tcp-half-close", "after our FIN all bytes come back, then FIN", HALF_CLOSED, half_close),
    Case("tcp-late-reader", "bytes that wait for the reader come after our FIN", HALF_CLOSED, late_reader),
    Case("tcp-count", "hundreds of answers over one connection are right", RETURNED, load.exchanges),
    Case("tcp-many", "many clients at once are all answered, each with its own", MANY, load.many),
    Case("tcp-slow-reader", "a slow reader gets every byte", STREAM, slow_reader),
    Case("tcp-stuck-peer", "a client that never reads blocks no other client", MANY, stuck_peer),
    Case("tcp-16m", "16 MiB come back", RETURNED, returned(16 * 1024 * 1024)),
    Case("tcp-stream", "a long stream of all values comes back", RETURNED, load.stream),
    Case("tcp-again", "hundreds of clients, one after the other", MANY, load.connections),
    Case("tcp-reset", "clients that reset harm no other client", RESET, load.resets),
    Case("tcp-idle", "an idle client stays connected to the end", ENDS, load.idle),
    Case("tcp-urgent", "an urgent byte comes back in its place", "RFC 9293 §3.8.5, RFC 6093", urgent, required=False),
    Case("tcp-alive", "the server still answers at the end", RETURNED, load.alive),
)
