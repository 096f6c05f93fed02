"""The cases over TCP, in the order in which they run: the cheap ones first.

Law: each case asks one thing, so a failure has a name. Behind each is RFC 862's one sentence about TCP, "once a
connection is established any data received is sent back … until the calling user terminates the connection", or the RFC
that says what a connection is.
"""

from __future__ import annotations

from echo7.checker.session import Session
from echo7.checker.tcp_client import TcpClient
from echo7.checker.verdict import Case, Failure, Fault, Story

HELLO = b"echo7 check: are you there?\n"
SEGMENT_BYTES = 1460  # what one Ethernet frame carries of a stream
CLIENTS = 50
DRIBBLED_BYTES = 64
SLOW_BYTES = 2 * 1024 * 1024
STUCK_BYTES = 32 * 1024 * 1024
CHUNK_BYTES = 65_536
SMALL_BUFFER_BYTES = 16_384  # of our own sockets, so that a server soon has a client that doesn't read
STALLED_S = 0.3  # the server waits for us to read when it has taken nothing for so long
BEHIND_S = 0.01  # surplus bytes come right after the echo
RETURNED = "RFC 862: any data received is sent back"
STREAM = "RFC 9293 §3.8: a stream of octets, in order"
ENDS = "RFC 862: until the calling user terminates the connection"
MANY = "RFC 862: once a connection is established"
TEXT = (
    "naïve café ☕ 🦉 Ω \ufeff\u2028\u0085".encode()
    + b"\r\n\n\r\r\r\n\x00\x1a\x04\x03"  # line ends of all kinds, and bytes that end a text
    + b"\xc3\x28\xff\xfe\xed\xa0\x80"  # no UTF-8
)
TELNET = bytes([255, 251, 1, 255, 253, 3, 255, 250, 24, 1, 255, 240, 255, 255, 255, 244, 13, 0, 13, 10])
RUNS = b"\0" * 5000 + b"\xff" * 5000 + b"\r\n" * 2500 + b"A" * 70_000


async def answers(session: Session) -> str:
    """There is a server, and it echoes: all other cases depend on this."""
    client = await session.connect()
    client.send(HELLO)
    await session.until(lambda: client.over or client.received_bytes)
    client.check()
    if not client.received_bytes:
        closed = "the server closed" if client.ended or client.over else f"nothing within {session.timeout_s:g} s"
        raise Failure(Fault.MUTE, f"a connection, but no echo: {closed}")
    await client.answered()
    return "a line came back"


async def silence(session: Session) -> str:
    """Nothing comes before anything was sent."""
    client = await session.connect()
    await session.quiet()
    client.check()
    return "nothing came unasked"


async def no_more(session: Session) -> str:
    """Nothing comes after the echo."""
    client = await session.connect()
    await client.echo(session.payload(1000))
    await session.quiet()
    client.check()
    return "1,000 bytes came back, and nothing after them"


async def client_ends(session: Session) -> str:
    """The server leaves closing to the client."""
    client = await session.connect()
    await client.echo(HELLO)
    await session.quiet()
    if client.ended or client.over:
        raise Failure(Fault.CONDUCT, "the server ended the connection after its first answer")
    await client.echo(HELLO)
    return "still there for a second line"


async def empty(session: Session) -> str:
    """A client that sends FIN at once gets nothing but a FIN."""
    client = await session.connect()
    client.connection.half_close()
    await session.until(lambda: client.over or client.ended)
    client.check()
    if not (client.ended or client.over):
        raise Failure(Fault.CONDUCT, f"no end within {session.timeout_s:g} s of ours")
    return "nothing came, and the connection ended"


async def half_close(session: Session) -> str:
    """A client that sends FIN right after its bytes still gets all of them, and then a FIN."""
    client = await session.connect()
    client.send(session.payload(4 * CHUNK_BYTES))
    client.connection.half_close()
    await client.finished()
    return f"{client.received_bytes:,} bytes came back after our FIN, then theirs"


async def byte_by_byte(session: Session) -> str:
    """Each byte comes back before the next is sent: the server waits for no line end and no full buffer."""
    client = await session.connect()
    for byte in session.payload(DRIBBLED_BYTES):
        await client.echo(bytes([byte]))
    return f"{DRIBBLED_BYTES} bytes, each before the next"


async def random_chunks(session: Session) -> str:
    """However the writes are cut, the stream is the same."""
    client = await session.connect()
    total_bytes = 0
    while total_bytes < 4 * CHUNK_BYTES:
        size_bytes = session.random.choice((1, 2, 3, 100, 1459, 1460, 1461, 4096, 20_000))
        total_bytes += size_bytes
        client.send(session.payload(size_bytes))
        await session.pause(0)
    await client.answered()
    return f"{total_bytes:,} bytes in chunks of 1 to 20,000"


async def many(session: Session) -> str:
    """Many clients, open at once, are all answered."""
    clients = [session.dial() for _ in range(CLIENTS)]
    await session.until(lambda: all(client.made or client.over for client in clients), timeout_s=2 * session.timeout_s)
    for client in clients:
        client.send(session.payload(1000))
    await session.until(
        lambda: all(client.is_answered or client.over for client in clients),
        moving=lambda: sum(client.received_bytes for client in clients),
    )
    _raise_the_worst(clients)
    served = sum(client.is_answered and client.sent_bytes > 0 for client in clients)
    if served < CLIENTS:
        raise Failure(Fault.CONDUCT, f"{served} of {CLIENTS} clients that were connected at once got an answer")
    return f"{CLIENTS} clients at once, each got its 1,000 bytes"


def _raise_the_worst(clients: list[TcpClient]) -> None:
    """Raise what is wrong with the bytes of any of them; `many` counts those that were refused."""
    for client in clients:
        if client.failure is not None and client.failure.fault in (Fault.EXCESS, Fault.LOSSY):
            raise client.failure


async def slow_reader(session: Session) -> str:
    """A client that sends without reading, and reads slowly later, still gets everything."""
    client = await session.connect(buffer_bytes=SMALL_BUFFER_BYTES, receive_bytes=4096)
    await _stuff(session, client, SLOW_BYTES)
    for _ in range(32):
        client.connection.resume_reading()
        before = client.received_bytes
        await session.until(lambda before=before: client.over or client.received_bytes > before)  # type: ignore[misc]
        client.connection.pause_reading()
        await session.pause(0.001)
    client.connection.resume_reading()
    await client.answered()
    return f"{client.sent_bytes:,} bytes came back"


async def stuck_peer(session: Session) -> str:
    """A client that doesn't read doesn't block another."""
    stuck = await session.connect(buffer_bytes=SMALL_BUFFER_BYTES)
    waits = await _stuff(session, stuck, STUCK_BYTES)
    other = await session.connect()
    try:
        await other.echo(HELLO)
    except Failure as failure:
        if failure.fault is Fault.LOSSY and not other.received_bytes:
            raise Failure(Fault.CONDUCT, "while one client doesn't read, another gets no answer") from None
        raise
    # a reset would be quicker, and would end some servers
    stuck.connection.resume_reading()
    await stuck.answered()
    how = "stuck" if waits else "not reading"
    return f"answered beside a client that is {how} with {stuck.sent_bytes:,} bytes, and got them later"


async def _stuff(session: Session, client: TcpClient, most_bytes: int) -> bool:
    """Send without reading, at most `most_bytes`. Return whether the server stopped taking them."""
    client.connection.pause_reading()
    while client.sent_bytes < most_bytes and not client.over:
        client.send(session.payload(CHUNK_BYTES))
        gone = session.until(
            lambda: client.over or not client.connection.pending_bytes,
            timeout_s=STALLED_S,
            moving=lambda: client.connection.pending_bytes,
        )
        if not await gone:
            return True
    return False


async def urgent(session: Session) -> str:
    """The urgent byte belongs to the stream, and comes back in its place."""
    client = await session.connect()
    client.send(b"abc")
    client.send_urgent(b"X")
    client.send(b"def")
    try:
        await client.answered()
    except Failure:
        raise Failure(Fault.LOSSY, "abc, urgent X, def: the X didn't come back in its place") from None
    return "abc, urgent X, def came back as abcXdef"


async def scramble(session: Session) -> str:
    """Random bytes of all values."""
    return await _whole(session, session.random.randbytes(4 * CHUNK_BYTES))


def exactly(size_bytes: int) -> Story:
    """Return a story that sends so many letters in one write."""
    return lambda session: _whole(session, session.payload(size_bytes))


def content(data: bytes) -> Story:
    """Return a story that sends these bytes."""
    return lambda session: _whole(session, data)


async def _whole(session: Session, data: bytes) -> str:
    client = await session.connect()
    await client.echo(data)
    await session.pause(BEHIND_S)
    client.check()
    return "1 byte came back" if len(data) == 1 else f"{len(data):,} bytes came back"


CASES = (
    Case("tcp-answers", "there is a server, and it echoes", RETURNED, answers),
    Case("tcp-silence", "nothing is sent before anything is received", RETURNED, silence),
    Case("tcp-0", "a client that ends at once gets nothing, and an end", ENDS, empty),
    Case("tcp-1", "one byte comes back", RETURNED, exactly(1)),
    Case("tcp-1459", "a byte less than a segment", RETURNED, exactly(SEGMENT_BYTES - 1)),
    Case("tcp-1460", "a full segment", RETURNED, exactly(SEGMENT_BYTES)),
    Case("tcp-1461", "a byte more than a segment", RETURNED, exactly(SEGMENT_BYTES + 1)),
    Case("tcp-64k", "64 KiB come back", RETURNED, exactly(65_536)),
    Case("tcp-all-bytes", "all 256 byte values, unchanged", RETURNED, content(bytes(range(256)) * 3)),
    Case("tcp-runs", "long runs of one byte, unchanged", RETURNED, content(RUNS)),
    Case("tcp-random", "random bytes, unchanged", RETURNED, scramble),
    Case("tcp-text", "UTF-8, line ends and control characters, unchanged", RETURNED, content(TEXT)),
    Case("tcp-telnet", "Telnet's IAC is data like any other", RETURNED, content(TELNET)),
    Case("tcp-byte-by-byte", "each byte comes back before the next is sent", RETURNED, byte_by_byte),
    Case("tcp-chunks", "random chunks make the same stream", STREAM, random_chunks),
    Case("tcp-no-more", "never more than was sent", RETURNED, no_more),
    Case("tcp-caller-ends", "closing is left to the client", ENDS, client_ends),
    Case("tcp-half-close", "after our FIN: all bytes, then FIN", "RFC 1122 §4.2.2.13, RFC 9293 §3.6", half_close),
    Case("tcp-many", f"{CLIENTS} clients at once", MANY, many),
    Case("tcp-slow-reader", "a slow reader gets everything", STREAM, slow_reader),
    Case("tcp-stuck-peer", "a client that never reads blocks no other", MANY, stuck_peer),
    Case("tcp-16m", "16 MiB come back", RETURNED, exactly(16 * 1024 * 1024)),
    Case("tcp-urgent", "an urgent byte comes back in its place", "RFC 9293 §3.8.5, RFC 6093", urgent, required=False),
)
