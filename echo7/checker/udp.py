"""The cases over UDP. "When a datagram is received, the data from it is sent back in an answering datagram" (RFC 862).

Law: the network may lose a datagram, and may double one; so a question is asked up to three times, what was lost is
said, and only what can't be the network's doing is held against the server.
"""

from __future__ import annotations

import collections

from echo7.checker.bench import Bench
from echo7.checker.call import fault_of
from echo7.checker.inquiry import Inquiry, compare
from echo7.checker.verdict import Case, Failure, Fault, Story, Undecided
from reactor import format_address

TRIES = 3
ASKED_AT_ONCE = 5
CHARGEN_PORT = 19
LARGEST_BYTES = {False: 65_507, True: 65_527}  # over IPv6?: what the length field leaves (RFC 768)
ANSWERED = "RFC 862: sent back in an answering datagram"
GUARD = "RFC 5358, CVE-1999-0103, CVE-2024-2169: no loops between servers"
ASKED = "RFC 1122 §4.1.3.5: from the address that was asked"


async def answers(bench: Bench) -> str:
    """Whether there is a server that echoes at all: all else waits for this.

    First a socket asks that hears anybody: if the answer comes from elsewhere, no ICMP is sent back for it, which some
    servers don't bear. Only when nothing comes, one asks that is connected, since it is told why: refused, unreachable.
    """
    data = bench.payload(32)
    for attempt in range(TRIES):
        inquiry = bench.inquire_connected() if attempt else bench.inquire()
        if inquiry.send(data) and await inquiry.answered(1, bench.timeout_s / TRIES):
            compare(data, inquiry.answers[0].data)
            return _lost(attempt)
        if inquiry.error is not None:
            fault = fault_of(inquiry.error)
            raise Failure(fault, f"{fault.value}: {inquiry.error.strerror}")
    raise Failure(Fault.TIMED_OUT, f"timed out: no answer to {TRIES} datagrams in {bench.timeout_s:g} s")


async def ask(bench: Bench, data: bytes) -> tuple[Inquiry, str]:
    """Send a datagram until it is answered, three times at the most. Return what came. Raise Failure, Undecided."""
    inquiry = bench.inquire()
    for attempt in range(1, TRIES + 1):
        if not inquiry.send(data):
            reason = inquiry.error.strerror if inquiry.error else "no room"
            raise Undecided(f"this machine can't send {len(data):,} bytes in one datagram: {reason}")
        if await inquiry.answered(1, bench.timeout_s / TRIES):
            compare(data, inquiry.answers[0].data)
            return inquiry, _lost(attempt - 1)
    fault = Fault.LOSSY if data else Fault.CONDUCT
    raise Failure(fault, f"no answer to {TRIES} datagrams of {len(data):,} bytes: lost on the way, or dropped")


def _lost(count: int) -> str:
    return f"answered; {count} lost before" if count else "answered, unchanged"


def datagram(size_bytes: int) -> Story:
    """Return a story of one size."""

    async def story(bench: Bench) -> str:
        return (await ask(bench, bench.payload(size_bytes)))[1]

    return story


async def largest(bench: Bench) -> str:
    """The most that a datagram can carry."""
    size_bytes = LARGEST_BYTES[":" in str(bench.target[0])]
    return f"{size_bytes:,} bytes: " + (await ask(bench, bench.payload(size_bytes)))[1]


async def all_bytes(bench: Bench) -> str:
    """Every byte value comes back unchanged."""
    return (await ask(bench, bytes(range(256)) * 2))[1]


async def one_answer(bench: Bench) -> str:
    """One answer to each datagram, and no more."""
    inquiry = bench.inquire()
    asked = [bytes([number]) + bench.payload(99) for number in range(ASKED_AT_ONCE)]
    for data in asked:
        inquiry.send(data)
    await inquiry.answered(ASKED_AT_ONCE, bench.timeout_s / TRIES)
    await bench.quiet()
    answers = collections.Counter(answer.data for answer in inquiry.answers)
    if strange := answers.keys() - set(asked):
        more = sum(len(answer.data) for answer in inquiry.answers) > sum(map(len, asked))
        text = f"an answer of {len(min(strange)):,} bytes that is none of {ASKED_AT_ONCE} datagrams of {len(asked[0])}"
        raise Failure(Fault.EXCESS if more else Fault.LOSSY, text)
    twice = sum(count > 1 for count in answers.values())
    seen = f"{inquiry.answers_count} answers to {ASKED_AT_ONCE} datagrams"
    if not answers:
        raise Failure(Fault.LOSSY, seen)
    if twice == len(answers):
        raise Failure(Fault.EXCESS, seen)
    if twice:
        raise Undecided(f"{seen}, {twice} of them doubled: that may be the network")
    return seen


async def reply_address(bench: Bench) -> str:
    """The answer comes from the address and the port that were asked."""
    inquiry, _ = await ask(bench, bench.payload(64))
    asked, source = bench.target[:2], inquiry.answers[0].source[:2]
    if (str(source[0]).partition("%")[0], source[1]) != (str(asked[0]).partition("%")[0], asked[1]):
        raise Failure(Fault.CONDUCT, f"asked {format_address(asked)}, answered by {format_address(source)}")
    return f"from {format_address(asked)}"


async def loop_guard(bench: Bench) -> str:
    """A datagram that seems to come from another server gets no answer."""
    try:
        inquiry = bench.inquire(CHARGEN_PORT)
    except OSError as error:
        raise Undecided(f"source port {CHARGEN_PORT} can't be bound here: {error.strerror}") from None
    for _ in range(TRIES):
        inquiry.send(bench.payload(32))
    if await inquiry.answered(1, bench.timeout_s / TRIES):
        raise Failure(Fault.CONDUCT, f"it answers source port {CHARGEN_PORT}: two servers can be made to talk for ever")
    return f"no answer to source port {CHARGEN_PORT}"


CASES = (
    Case("udp-answers", "there is a server, and it echoes", ANSWERED, answers),
    Case("udp-0", "an empty datagram is answered by an empty one", ANSWERED, datagram(0)),
    Case("udp-1", "one byte comes back", ANSWERED, datagram(1)),
    Case("udp-512", "512 bytes", ANSWERED, datagram(512)),
    Case("udp-1472", "the most that fits into an Ethernet frame", ANSWERED, datagram(1472)),
    Case("udp-1473", "a byte more: two fragments", ANSWERED, datagram(1473)),
    Case("udp-8193", "more than 8 KiB", ANSWERED, datagram(8193)),
    Case("udp-largest", "65,507 bytes (IPv6: 65,527)", "RFC 768: the length field", largest),
    Case("udp-all-bytes", "all 256 byte values, unchanged", ANSWERED, all_bytes),
    Case("udp-one-answer", "one answer to each datagram", ANSWERED, one_answer),
    Case("udp-reply-address", "the answer comes from where was asked", ASKED, reply_address, required=False),
    Case("udp-loop-guard", "no answer to the port of another server", GUARD, loop_guard, required=False),
)
