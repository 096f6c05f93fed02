"""The cases over UDP. "When a datagram is received, the data from it is sent back in an answering datagram" (RFC 862).

Law: the network may lose or duplicate a datagram. So a datagram is sent up to three times, losses are reported, and
only what the network can't have done counts against the server.
"""

from __future__ import annotations

import collections

from echo7.checker.session import Session
from echo7.checker.tcp_client import fault_of
from echo7.checker.udp_client import UdpClient, compare
from echo7.checker.verdict import Case, Failure, Fault, Story, Undecided
from reactor import format_address

TRIES = 3
ASKED_AT_ONCE = 5
CHARGEN_PORT = 19
LARGEST_BYTES = {4: 65_507, 6: 65_527}  # by IP version; what the length field allows (RFC 768)
ANSWERED = "RFC 862: sent back in an answering datagram"
GUARD = "RFC 5358, CVE-1999-0103, CVE-2024-2169: no loops between servers"
ASKED = "RFC 1122 §4.1.3.5: from the address that was asked"


async def answers(session: Session) -> str:
    """Check that a server is there and echoes. All other cases depend on this.

    The first socket isn't connected: an answer from another address then causes no ICMP error, which stops some
    servers. If no answer comes, connected sockets try, because they learn the reason: refused or unreachable.
    """
    data = session.payload(32)
    for attempt in range(TRIES):
        client = session.connected_udp_client() if attempt else session.udp_client()
        if client.send(data) and await client.answered(1, session.timeout_s / TRIES):
            compare(data, client.answers[0].data)
            return _lost(attempt)
        if client.error is not None:
            fault = fault_of(client.error)
            raise Failure(fault, f"{fault.value}: {client.error.strerror}")
    raise Failure(Fault.TIMED_OUT, f"timed out: no answer to {TRIES} datagrams in {session.timeout_s:g} s")


async def ask(session: Session, data: bytes) -> tuple[UdpClient, str]:
    """Send a datagram until it is answered, at most three times. Raise Failure or Undecided."""
    client = session.udp_client()
    for attempt in range(1, TRIES + 1):
        if not client.send(data):
            reason = client.error.strerror if client.error else "no room"
            raise Undecided(f"this machine cannot send {len(data):,} bytes in one datagram: {reason}")
        if await client.answered(1, session.timeout_s / TRIES):
            compare(data, client.answers[0].data)
            return client, _lost(attempt - 1)
    fault = Fault.LOSSY if data else Fault.CONDUCT
    raise Failure(fault, f"no answer to {TRIES} datagrams of {len(data):,} bytes: lost by the network, or dropped")


def _lost(count: int) -> str:
    return f"came back; {count} lost before" if count else "came back"


def datagram(data: bytes | int) -> Story:
    """Return a story that sends these bytes, or so many letters, in one datagram and gets them back."""

    async def story(session: Session) -> str:
        return (await ask(session, session.payload(data) if isinstance(data, int) else data))[1]

    return story


async def largest(session: Session) -> str:
    """Check that the largest datagram comes back."""
    size_bytes = LARGEST_BYTES[6 if ":" in str(session.target[0]) else 4]
    return f"{size_bytes:,} bytes: " + (await ask(session, session.payload(size_bytes)))[1]


async def one_answer(session: Session) -> str:
    """Check that each datagram gets one answer."""
    client = session.udp_client()
    asked = [bytes([number]) + session.payload(99) for number in range(ASKED_AT_ONCE)]
    for data in asked:
        client.send(data)
    await client.answered(ASKED_AT_ONCE, session.timeout_s / TRIES)
    await session.quiet()
    answers = collections.Counter(answer.data for answer in client.answers)
    if strange := answers.keys() - set(asked):
        more = sum(len(answer.data) for answer in client.answers) > sum(map(len, asked))
        text = f"an answer of {len(min(strange)):,} bytes is like none of {ASKED_AT_ONCE} datagrams of {len(asked[0])}"
        raise Failure(Fault.EXCESS if more else Fault.LOSSY, text)
    twice = sum(count > 1 for count in answers.values())
    seen = f"{client.answers_count} answers to {ASKED_AT_ONCE} datagrams"
    if not answers:
        raise Failure(Fault.LOSSY, seen)
    if twice == len(answers):
        raise Failure(Fault.EXCESS, seen)
    if twice:
        raise Undecided(f"{seen}, {twice} of them twice: the network may have done that")
    return seen


async def reply_address(session: Session) -> str:
    """Check that the answer comes from the address and port that the client sent to."""
    client, _ = await ask(session, session.payload(64))
    asked, source = session.target[:2], client.answers[0].source[:2]
    if (str(source[0]).partition("%")[0], source[1]) != (str(asked[0]).partition("%")[0], asked[1]):
        raise Failure(Fault.CONDUCT, f"sent to {format_address(asked)}, answered by {format_address(source)}")
    return f"from {format_address(asked)}"


async def loop_guard(session: Session) -> str:
    """Check that a datagram from the port of another service gets no answer."""
    try:
        client = session.udp_client(CHARGEN_PORT)
    except OSError as error:
        raise Undecided(f"this machine cannot bind source port {CHARGEN_PORT}: {error.strerror}") from None
    for _ in range(TRIES):
        client.send(session.payload(32))
    if await client.answered(1, session.timeout_s / TRIES):
        raise Failure(Fault.CONDUCT, f"it answers source port {CHARGEN_PORT}: two servers could loop endlessly")
    return f"no answer to source port {CHARGEN_PORT}"


CASES = (
    Case("udp-answers", "a server is there and echoes", ANSWERED, answers),
    Case("udp-0", "an empty datagram comes back", ANSWERED, datagram(0)),
    Case("udp-1", "one byte comes back", ANSWERED, datagram(1)),
    Case("udp-512", "512 bytes come back", ANSWERED, datagram(512)),
    Case("udp-1472", "the largest payload of one Ethernet frame", ANSWERED, datagram(1472)),
    Case("udp-1473", "one byte more, in two fragments", ANSWERED, datagram(1473)),
    Case("udp-8193", "one byte more than 8 KiB", ANSWERED, datagram(8193)),
    Case("udp-largest", "65,507 bytes (IPv6: 65,527)", "RFC 768: the length field", largest),
    Case("udp-all-bytes", "all 256 byte values come back unchanged", ANSWERED, datagram(bytes(range(256)) * 2)),
    Case("udp-one-answer", "each datagram gets one answer", ANSWERED, one_answer),
    Case("udp-reply-address", "the answer comes from the address it was sent to", ASKED, reply_address, required=False),
    Case("udp-loop-guard", "no answer to the port of another server", GUARD, loop_guard, required=False),
)
