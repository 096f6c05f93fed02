"""The cases over UDP. "When a datagram is received, the data from it is sent back in an answering datagram" (RFC 862).

Law: over this machine's own addresses nothing is lost or doubled, so each datagram is sent once, and gets one answer. A
network may do both. There a datagram is sent several times, and compared with others that were sent meanwhile; what is
still open then is "can't tell".
"""

from __future__ import annotations

from collections.abc import Sequence

from echo7.checker.session import Session
from echo7.checker.tcp_client import fault_of
from echo7.checker.udp_client import UdpClient, host_of
from echo7.checker.verdict import Case, Failure, Fault, Story, Undecided
from reactor import format_address

TRIES = 6  # over a network, with as many others between them
ALIVE_TRIES = 10
BURST = 32
CLIENTS = 8
WINDOW, WINDOW_BYTES = 8, 32_768  # sent and not answered; less than any socket's buffer holds
FRAME_BYTES = 1472  # of a datagram in one Ethernet frame
LARGE_EVERY = 20  # one datagram in 20 is large
MOST_PER_S = 5000  # slower than the limits of servers for one source
PACE_S = 0.005
CHARGEN_PORT = 19
BEHIND_S = 0.01  # a second answer comes right after the first; later ones are noticed at the end of the run
LARGEST_BYTES = {4: 65_507, 6: 65_527}  # by IP version; what the length field allows (RFC 768)
ANSWERED = "RFC 862: sent back in an answering datagram"
GUARD = "RFC 5358, CVE-1999-0103, CVE-2024-2169: no loops between servers"
ASKED = "RFC 1122 §4.1.3.5: from the address that was asked"


async def answers(session: Session) -> str:
    """Check that a server is there and echoes. All other cases depend on this.

    The first socket isn't connected: an answer from another address then causes no ICMP error, which stops some
    servers. If no answer comes, a connected socket tries, because it learns the reason: refused or unreachable.
    """
    first = session.udp_client()
    first.send(session.payload(32))
    if await first.answered(1, session.timeout_s / 3):
        first.check()
        return "came back"
    second = session.connected_udp_client()
    second.send(session.payload(32))
    await session.until(
        lambda: first.answers_count or second.answers_count or second.error or first.failure or second.failure,
        timeout_s=2 * session.timeout_s,
    )
    for client in (first, second):
        client.check()
    if second.error is not None:
        fault = fault_of(second.error)
        raise Failure(fault, f"{fault.value}: {second.error.strerror}")
    if not (first.answers_count or second.answers_count):
        raise Failure(Fault.TIMED_OUT, f"timed out: no answer to 2 datagrams in {2 * session.timeout_s:g} s")
    return await _came(session, first)


async def _came(session: Session, first: UdpClient) -> str:
    """Judge a first datagram that wasn't answered when a second one was."""
    if await first.answered(1, session.timeout_s):
        return "came back, slowly"
    if session.is_here:
        raise Failure(Fault.LOSSY, "1 of 2 datagrams got no answer")
    return "came back; 1 lost before"


async def alive(session: Session) -> str:
    """Check that the server still works: one right answer is enough, however late."""
    several: list[UdpClient] = []
    for attempt in range(1, ALIVE_TRIES + 1):
        several.append(session.udp_client())
        several[-1].send(session.payload(32))
        last_s = session.stalled_s if attempt == ALIVE_TRIES else 0.0
        await session.until(
            lambda: any(client.answers_count or client.failure for client in several),
            timeout_s=session.timeout_s / 3 + last_s,
        )
        for client in several:
            client.check()
        if any(client.answers_count for client in several):
            return "came back"
    waited_s = ALIVE_TRIES * session.timeout_s / 3 + session.stalled_s
    raise Failure(Fault.STOPPED, f"no answer to {ALIVE_TRIES} datagrams in {waited_s:g} s")


async def ask(session: Session, data: bytes) -> tuple[UdpClient, str]:
    """Send a datagram until it is answered. Raise Failure or Undecided."""
    client = session.udp_client()
    for attempt in range(1 if session.is_here else TRIES):
        if not client.send(data):
            reason = client.error.strerror if client.error else "no room"
            raise Undecided(f"this machine cannot send {len(data):,} bytes in one datagram: {reason}")
        if await client.answered(1, session.timeout_s / (1 if session.is_here else 3)):
            await session.pause(BEHIND_S)
            client.check()
            lost = "" if session.is_here or not attempt else f"; {attempt} lost before"
            client.forget()
            return client, f"came back{lost}"
        client.check()
    await blame(session, [client], f"no answer to {client.sent_count} of {len(data):,} bytes")
    return client, "came back, slowly"


async def blame(session: Session, clients: Sequence[UdpClient], seen: str) -> None:
    """Raise Failure if later datagrams are answered and these aren't; Undecided if others wait too.

    Return if all answers have come meanwhile.
    """
    serves_others = await session.serves_others(session.stalled_s)
    await session.until(lambda: not any(client.due for client in clients), timeout_s=session.stalled_s / 2)
    for client in clients:
        client.check()
    if not any(client.due for client in clients):
        return
    if not serves_others:
        raise Undecided(f"{seen}, but others wait too: the server may be slow, or the network may lose them")
    smallest = min(client.sent_bytes for client in clients)
    raise Failure(Fault.LOSSY if smallest else Fault.CONDUCT, f"{seen}, while others are answered at once")


def datagram(data: bytes | int) -> Story:
    """Return a story that sends these bytes, or this number of bytes, in one datagram and gets them back."""

    async def story(session: Session) -> str:
        return (await ask(session, session.payload(data) if isinstance(data, int) else data))[1]

    return story


async def largest(session: Session) -> str:
    """Check that the largest datagram comes back."""
    size_bytes = LARGEST_BYTES[_version(session)]
    return f"{size_bytes:,} bytes: " + (await ask(session, session.payload(size_bytes)))[1]


def _version(session: Session) -> int:
    return 6 if ":" in str(session.target[0]) else 4


async def one_answer(session: Session) -> str:
    """Check that each datagram of a burst gets one answer."""
    client = session.udp_client()
    for number in range(BURST):
        client.send(bytes([number]) + session.payload(99))
    await _all_answered(session, [client])
    await session.pause(BEHIND_S)
    client.check()
    return f"{client.answers_count} answers to {BURST} datagrams at once"


async def clients(session: Session) -> str:
    """Check that each of several clients gets its own answers, when their datagrams are mixed."""
    several = [session.udp_client() for _ in range(CLIENTS)]
    for size_bytes in (20, 0, 300):
        for client in several:
            client.send(session.random.randbytes(size_bytes))
        await _all_answered(session, several)
    return f"each of {CLIENTS} clients got its own answers"


async def _all_answered(session: Session, several: Sequence[UdpClient]) -> None:
    """Wait for all answers. Raise Failure or Undecided."""
    await session.until(
        lambda: not any(c.due for c in several) or any(c.failure for c in several),
        moving=lambda: sum(c.answers_count for c in several),
    )
    for client in several:
        client.check()
    if any(client.due for client in several):
        due, sent = sum(client.due for client in several), sum(client.sent_count for client in several)
        await blame(session, several, f"{due} of {sent} got no answer")


async def count(session: Session) -> str:
    """Check a great number of datagrams of all sizes, a few at a time."""
    client, sizes = session.udp_client(), list(range(FRAME_BYTES + 1))
    session.random.shuffle(sizes)
    lost, start_s = 0, session.reactor.now()
    while not session.enough(client.sent_count, session.effort.datagrams):
        before = client.answers_count
        _fill(session, client, sizes)
        if (early_s := start_s + client.sent_count / MOST_PER_S - session.reactor.now()) > PACE_S:
            await session.pause(early_s)
        if await client.answered(before + 1, session.timeout_s / (1 if session.is_here else 3)):
            client.check()
            continue
        client.check()
        if session.is_here:
            await blame(session, [client], f"{client.due} of {client.sent_count:,} got no answer")
        lost += client.forget()
    if session.is_here:
        await _all_answered(session, [client])
    else:
        await session.until(lambda: not client.due, moving=lambda: client.answers_count)
    if lost := lost + client.forget():
        raise Undecided(f"{lost} of {client.sent_count:,} got no answer: lost by the network, or dropped")
    if client.doubles:
        raise Undecided(f"{client.doubles} of {client.sent_count:,} came twice: the network may have done that")
    return f"{client.sent_count:,} datagrams of all sizes came back, each once"


def _fill(session: Session, client: UdpClient, sizes: list[int]) -> None:
    """Send until as many datagrams are under way as the server's buffer surely holds."""
    while client.due < WINDOW:
        number = client.sent_count
        size_bytes = sizes[number % len(sizes)]
        if session.is_here and number % LARGE_EVERY == 1:
            size_bytes = session.random.randint(FRAME_BYTES, LARGEST_BYTES[_version(session)])
        if client.due and client.due_bytes + size_bytes > WINDOW_BYTES:
            return
        client.send(number.to_bytes(4, "big")[:size_bytes] + session.random.randbytes(max(size_bytes - 4, 0)))


async def reply_address(session: Session) -> str:
    """Check that the answer comes from the address that the client sent to."""
    client, _ = await ask(session, session.payload(64))
    asked, source = session.target[:2], (client.source or session.target)[:2]
    if host_of(source) != host_of(asked):
        raise Failure(Fault.CONDUCT, f"sent to {format_address(asked)}, answered by {format_address(source)}")
    return f"from {format_address(asked)}"


async def loop_guard(session: Session) -> str:
    """Check that a datagram from the port of another service gets no answer."""
    try:
        client = session.udp_client(CHARGEN_PORT)
    except OSError as error:
        raise Undecided(f"this machine cannot bind source port {CHARGEN_PORT}: {error.strerror}") from None
    for _ in range(3):
        client.send(session.payload(32))
    if await client.answered(1, session.timeout_s / 3):
        raise Failure(Fault.CONDUCT, f"it answers source port {CHARGEN_PORT}: two servers could loop endlessly")
    return f"no answer to source port {CHARGEN_PORT}"


CASES = (
    Case("udp-answers", "a server is there and echoes", ANSWERED, answers),
    Case("udp-0", "an empty datagram comes back, once", ANSWERED, datagram(0)),
    Case("udp-1", "one byte comes back", ANSWERED, datagram(1)),
    Case("udp-512", "512 bytes come back", ANSWERED, datagram(512)),
    Case("udp-1472", "the largest payload of one Ethernet frame", ANSWERED, datagram(FRAME_BYTES)),
    Case("udp-1473", "one byte more, in two fragments", ANSWERED, datagram(FRAME_BYTES + 1)),
    Case("udp-8193", "one byte more than 8 KiB", ANSWERED, datagram(8193)),
    Case("udp-largest", "65,507 bytes (IPv6: 65,527)", "RFC 768: the length field", largest),
    Case("udp-all-bytes", "all 256 byte values come back unchanged", ANSWERED, datagram(bytes(range(256)) * 2)),
    Case("udp-one-answer", "each datagram of a burst gets one answer", ANSWERED, one_answer),
    Case("udp-clients", "mixed clients get their own answers", ANSWERED, clients),
    Case("udp-count", "thousands of datagrams of all sizes come back, once", ANSWERED, count),
    Case("udp-reply-address", "the answer comes from the address it was sent to", ASKED, reply_address, required=False),
    Case("udp-loop-guard", "no answer to the port of another server", GUARD, loop_guard, required=False),
    Case("udp-alive", "the server still answers at the end", ANSWERED, alive),
)
