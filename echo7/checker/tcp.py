"""The cases over TCP, in the order in which they are asked: the cheap ones first.

Law: each case asks one thing, so that a server fails by name. The rule behind each is RFC 862's one sentence about TCP,
"once a connection is established any data received is sent back … until the calling user terminates the connection",
or the RFC that says what a connection is.
"""

from __future__ import annotations

from echo7.checker.bench import Bench
from echo7.checker.call import Call
from echo7.checker.verdict import Case, Failure, Fault, Story

HELLO = b"echo7 check: is anybody there?\n"
SEGMENT_BYTES = 1460  # what one Ethernet frame carries of a stream
CALLERS = 50
DRIBBLED_BYTES = 64
SLOW_BYTES = 2 * 1024 * 1024
STUCK_BYTES = 32 * 1024 * 1024
CHUNK_BYTES = 65_536
SMALL_BUFFER_BYTES = 16_384  # of our own sockets, so that a server soon meets a caller who doesn't read
STALLED_S = 0.3  # nothing has been taken for so long: the server waits for us to read
BEHIND_S = 0.01  # what comes too much comes right behind
RETURNED = "RFC 862: any data received is sent back"
STREAM = "RFC 9293 §3.8: a stream of octets, in order"
ENDS = "RFC 862: until the calling user terminates the connection"
MANY = "RFC 862: once a connection is established"
TEXT = (
    "naïve café ☕ 🦉 Ω \ufeff\u2028\u0085".encode()
    + b"\r\n\n\r\r\r\n\x00\x1a\x04\x03"  # line ends as they come, and what ends a text elsewhere
    + b"\xc3\x28\xff\xfe\xed\xa0\x80"  # no UTF-8
)
TELNET = bytes([255, 251, 1, 255, 253, 3, 255, 250, 24, 1, 255, 240, 255, 255, 255, 244, 13, 0, 13, 10])
RUNS = b"\0" * 5000 + b"\xff" * 5000 + b"\r\n" * 2500 + b"A" * 70_000


async def answers(bench: Bench) -> str:
    """Whether there is a server that echoes at all: all else waits for this."""
    call = await bench.call()
    call.send(HELLO)
    await bench.until(lambda: call.over or call.received_bytes)
    call.check()
    if not call.received_bytes:
        closed = "the server closed" if call.ended or call.over else f"nothing within {bench.timeout_s:g} s"
        raise Failure(Fault.MUTE, f"a connection, but no echo: {closed}")
    await call.answered()
    return "a line came back"


async def silence(bench: Bench) -> str:
    """Nothing may come before anything was sent."""
    call = await bench.call()
    await bench.quiet()
    call.check()
    return "nothing came unasked"


async def no_more(bench: Bench) -> str:
    """Nothing may come after all is back."""
    call = await bench.call()
    await call.echo(bench.payload(1000))
    await bench.quiet()
    call.check()
    return "1,000 bytes came back, and nothing after them"


async def caller_ends(bench: Bench) -> str:
    """The server leaves the end to the caller."""
    call = await bench.call()
    await call.echo(HELLO)
    await bench.quiet()
    if call.ended or call.over:
        raise Failure(Fault.CONDUCT, "the server ended the connection after its first answer")
    await call.echo(HELLO)
    return "still there for a second line"


async def empty(bench: Bench) -> str:
    """A caller that ends at once gets nothing, and an end."""
    call = await bench.call()
    call.connection.half_close()
    await bench.until(lambda: call.over or call.ended)
    call.check()
    if not (call.ended or call.over):
        raise Failure(Fault.CONDUCT, f"no end within {bench.timeout_s:g} s of ours")
    return "nothing came, and the connection ended"


async def half_close(bench: Bench) -> str:
    """A caller that sends FIN at once after its bytes still gets all of them, and then a FIN."""
    call = await bench.call()
    call.send(bench.payload(4 * CHUNK_BYTES))
    call.connection.half_close()
    await call.finished()
    return f"{call.received_bytes:,} bytes came back after our FIN, then theirs"


async def byte_by_byte(bench: Bench) -> str:
    """Each byte comes back before the next one is sent: the server waits for no line and no full buffer."""
    call = await bench.call()
    for byte in bench.payload(DRIBBLED_BYTES):
        await call.echo(bytes([byte]))
    return f"{DRIBBLED_BYTES} bytes, each before the next"


async def random_chunks(bench: Bench) -> str:
    """Whatever the writes were, the stream is the same."""
    call = await bench.call()
    total_bytes = 0
    while total_bytes < 4 * CHUNK_BYTES:
        size_bytes = bench.random.choice((1, 2, 3, 100, 1459, 1460, 1461, 4096, 20_000))
        total_bytes += size_bytes
        call.send(bench.payload(size_bytes))
        await bench.pause(0)
    await call.answered()
    return f"{total_bytes:,} bytes in chunks of 1 to 20,000"


async def many(bench: Bench) -> str:
    """Many callers at once, all open, all answered."""
    calls = [bench.dial() for _ in range(CALLERS)]
    await bench.until(lambda: all(call.made or call.over for call in calls), timeout_s=2 * bench.timeout_s)
    for call in calls:
        call.send(bench.payload(1000))
    await bench.until(
        lambda: all(call.is_answered or call.over for call in calls),
        moving=lambda: sum(call.received_bytes for call in calls),
    )
    _raise_the_worst(calls)
    served = sum(call.is_answered and call.sent_bytes > 0 for call in calls)
    if served < CALLERS:
        raise Failure(Fault.CONDUCT, f"{served} of {CALLERS} callers who were there at once got an answer")
    return f"{CALLERS} callers at once, each got its 1,000 bytes"


def _raise_the_worst(calls: list[Call]) -> None:
    """Raise what is wrong with the bytes of any of them; to be refused is counted by the caller instead."""
    for call in calls:
        if call.failure is not None and call.failure.fault in (Fault.EXCESS, Fault.LOSSY):
            raise call.failure


async def slow_reader(bench: Bench) -> str:
    """A caller that sends without reading, and reads slowly later, still gets everything."""
    call = await bench.call(buffer_bytes=SMALL_BUFFER_BYTES, receive_bytes=4096)
    await _stuff(bench, call, SLOW_BYTES)
    for _ in range(32):  # a sip at a time
        call.connection.resume_reading()
        before = call.received_bytes
        await bench.until(lambda before=before: call.over or call.received_bytes > before)  # type: ignore[misc]
        call.connection.pause_reading()
        await bench.pause(0.001)
    call.connection.resume_reading()
    await call.answered()
    return f"{call.sent_bytes:,} bytes came back"


async def stuck_peer(bench: Bench) -> str:
    """A caller that never reads stands in nobody's way."""
    stuck = await bench.call(buffer_bytes=SMALL_BUFFER_BYTES)
    waits = await _stuff(bench, stuck, STUCK_BYTES)
    other = await bench.call()
    try:
        await other.echo(HELLO)
    except Failure as failure:
        if failure.fault is Fault.LOSSY and not other.received_bytes:
            raise Failure(Fault.CONDUCT, "while one caller doesn't read, another gets no answer") from None
        raise
    stuck.connection.resume_reading()  # a reset would end it sooner, and some servers with it
    await stuck.answered()
    how = "stuck" if waits else "not reading"
    return f"answered beside a caller that is {how} with {stuck.sent_bytes:,} bytes, who got them later"


async def _stuff(bench: Bench, call: Call, most_bytes: int) -> bool:
    """Send without reading, until the server takes no more or there is no more. Return whether it has stopped."""
    call.connection.pause_reading()
    while call.sent_bytes < most_bytes and not call.over:
        call.send(bench.payload(CHUNK_BYTES))
        gone = bench.until(
            lambda: call.over or not call.connection.pending_bytes,
            timeout_s=STALLED_S,
            moving=lambda: call.connection.pending_bytes,
        )
        if not await gone:
            return True
    return False


async def urgent(bench: Bench) -> str:
    """The urgent byte is a byte of the stream, and comes back in its place."""
    call = await bench.call()
    call.send(b"abc")
    call.send_urgent(b"X")
    call.send(b"def")
    try:
        await call.answered()
    except Failure:
        raise Failure(Fault.LOSSY, "abc, urgent X, def: the X didn't come back in its place") from None
    return "abc, urgent X, def came back as abcXdef"


async def scramble(bench: Bench) -> str:
    """Random bytes of all values."""
    return await _whole(bench, bench.random.randbytes(4 * CHUNK_BYTES))


def exactly(size_bytes: int) -> Story:
    """Return a story of so many letters in one write."""
    return lambda bench: _whole(bench, bench.payload(size_bytes))


def content(data: bytes) -> Story:
    """Return a story of these very bytes."""
    return lambda bench: _whole(bench, data)


async def _whole(bench: Bench, data: bytes) -> str:
    call = await bench.call()
    await call.echo(data)
    await bench.pause(BEHIND_S)
    call.check()
    return "1 byte came back" if len(data) == 1 else f"{len(data):,} bytes came back"


CASES = (
    Case("tcp-answers", "there is a server, and it echoes", RETURNED, answers),
    Case("tcp-silence", "nothing is sent before anything is received", RETURNED, silence),
    Case("tcp-0", "a caller that ends at once gets nothing, and an end", ENDS, empty),
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
    Case("tcp-caller-ends", "the end is left to the caller", ENDS, caller_ends),
    Case("tcp-half-close", "after our FIN: all bytes, then FIN", "RFC 1122 §4.2.2.13, RFC 9293 §3.6", half_close),
    Case("tcp-many", f"{CALLERS} callers at once", MANY, many),
    Case("tcp-slow-reader", "a slow reader gets everything", STREAM, slow_reader),
    Case("tcp-stuck-peer", "a caller that never reads blocks no other", MANY, stuck_peer),
    Case("tcp-16m", "16 MiB come back", RETURNED, exactly(16 * 1024 * 1024)),
    Case("tcp-urgent", "an urgent byte comes back in its place", "RFC 9293 §3.8.5, RFC 6093", urgent, required=False),
)
