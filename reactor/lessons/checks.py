"""The checks: each judges a running server by one promise, from outside.

Law: a server is judged by what it does on real sockets, never by how it is written. Each check returns what it has
measured, or raises `Broken` with it. The machine's speed decides no verdict. What decides is which bytes came back, how
much was taken, in which order, or a comparison with a second measurement made at the same time.
"""

from __future__ import annotations

import importlib.util
import socket
import time
from typing import Any

from reactor.lessons.clients import (
    ask,
    compare,
    expect_all,
    expect_datagram,
    expect_end,
    hear,
    offer,
    pattern,
    push,
    readable,
    receive_or_send,
    settle,
    sip,
    stuff,
)
from reactor.lessons.subject import PATIENCE_S, RETURNED, Broken, NotMeasured, Subject
from reactor.sockets.opening import reset_on_close

SHORT_IDLE_S = 0.3  # the timeout of a server whose timeouts are checked
LONG_IDLE_S = 4 * SHORT_IDLE_S
MANY_CLIENTS = 40
WINDOW_S = 0.25  # over which processor time is measured
BUSY_S = 0.005  # of processor time in that window: ten times what a sleeping server takes on a busy machine
SLOW_BYTES = 256 * 1024  # to a client that doesn't read at first
ENDLESS_BYTES = 8 * 1024 * 1024  # from a client that never reads: a server that takes all this has no bound
UNREAD_BYTES = 60 * 1024  # more than the kernel's buffers hold here, less than a high-water mark of 64 KiB
SMALL_BYTES = 4096  # of a client's receive buffer
HOG_BUFFER_BYTES = 192 * 1024  # kernel buffer, each way; the kernel gives about twice as much
UNFAIR_BYTES = 128 * 1024  # twice what a fair loop needs: it receives a few times while it accepts clients
WAITING_DATAGRAMS = 40
CALLS = 5
ASLEEP_S = 0.01  # after its last work, a loop is asleep
PACE_S = 0.003  # between two receives of a slow reader: a reset has time to overtake the unread bytes
CROWD = 16  # more clients than there are descriptors left
SIP_BYTES = 2048  # what a slow reader takes at a time
SIP_S = 0.015  # its pause after each: 64 KiB at the high-water mark then last longer than the timeout
SIPPED_BYTES = 160 * 1024
LAST_BYTES = 32 * 1024  # the client takes these at once: they are in the kernels, where no server sees them read
AT_ONCE_S = 0.005  # plus five pings: a server that polls for calls is seldom so quick
TRYING_S = 1.0  # to find one quick call on a busy machine
NAPS = 4  # in WINDOW_S: a server that wakes up more often polls


def bytes_come_back(subject: Subject) -> str:
    """Send all 256 values, singly and in pieces of several sizes; expect the server's FIN after the client's."""
    data = bytes(range(256))
    client = subject.tcp()
    for value in data:
        ask(client, bytes([value]))
    for size in (2, 255, 1000, 4095, 4096, 4097):
        ask(client, (data * 20)[:size])
    client.shutdown(socket.SHUT_WR)
    expect_end(client, "a client that had finished")
    return "256 single bytes and 6 pieces of up to 4,097 came back as they were sent"


def second_client(subject: Subject) -> str:
    """Send with a second client while the first is silent."""
    first, second = subject.tcp(), subject.tcp()
    ask(first)
    began_s = time.monotonic()
    second.sendall(b"me too")
    if readable(second, PATIENCE_S):
        return f"the second client had its answer after {(time.monotonic() - began_s) * 1e3:.2f} ms"
    first.close()
    began_s = time.monotonic()
    came = readable(second, PATIENCE_S)
    then = f"it came {(time.monotonic() - began_s) * 1e3:.2f} ms after that had left" if came else "nor afterwards"
    raise Broken(f"the second client had no answer for {PATIENCE_S:g} s, while the first was connected; {then}")


def no_thread_each(subject: Subject) -> str:
    """Connect many clients that only wait; count threads and processes."""
    ask(subject.tcp())
    before = subject.order("usage", "usage")
    for _ in range(MANY_CLIENTS):
        ask(subject.tcp())
    after = subject.order("usage", "usage")
    threads, processes = after["threads"] - before["threads"], subject.order("children", "children")["count"]
    measured = f"{MANY_CLIENTS} more clients: {threads} more threads, {growth(before, after)}"
    if processes >= MANY_CLIENTS // 2:
        raise Broken(f"{MANY_CLIENTS} more clients, and {processes} child processes")
    if threads >= MANY_CLIENTS // 2:
        raise Broken(f"{measured}; 10,000 clients would be {10_000 * threads // MANY_CLIENTS:,} threads")
    return measured


def idle_is_free(subject: Subject) -> str:
    """Measure processor time and wake-ups while two connected clients are silent."""
    ask(subject.tcp())
    ask(subject.tcp())
    before = subject.order("usage", "usage")["naps"]
    measured = f"with two silent clients it took {rest_quietly(subject)}"
    if before is None:
        return f"{measured}; whether it woke up meanwhile can't be seen here"
    naps = subject.order("usage", "usage")["naps"] - before
    measured += f", and woke up {naps} times in {WINDOW_S:g} s"
    if naps > NAPS:
        raise Broken(f"{measured}: it polls, instead of sleeping until the kernel reports readiness")
    return measured


def slow_reader(subject: Subject) -> str:
    """Send without reading for a while, then read everything."""
    data = pattern(SLOW_BYTES)
    other, client = subject.tcp(), subject.tcp(SMALL_BYTES)
    sent = push(client, data, other)
    unread = sent
    settle(other)
    came = bytearray()
    while len(came) < len(data) and (piece := receive_or_send(client, data[sent:])) is not None:
        sent += piece if isinstance(piece, int) else 0
        came += piece if isinstance(piece, bytes) else b""
    measured = f"of {sent:,} bytes, {unread:,} of them sent before any was read, {len(came):,} came back"
    if len(came) < len(data):
        raise Broken(measured)
    compare(data, bytes(came))
    return measured


def bounded_memory(subject: Subject) -> str:
    """Send without end and never read, until the server stops taking."""
    other, client = subject.tcp(), subject.tcp(SMALL_BYTES)
    ask(other)
    before = subject.order("usage", "usage")
    taken = push(client, bytes(ENDLESS_BYTES), other)
    settle(other)
    grown = growth(before, subject.order("usage", "usage"))
    if taken >= ENDLESS_BYTES:
        raise Broken(f"it took all of {taken:,} bytes from a client that read none of the answers: {grown}")
    return f"a client that read none of the answers was stopped after {taken:,} bytes: {grown}"


def half_close(subject: Subject) -> str:
    """Send, half-close, then read: the whole answer comes, and then the server's FIN."""
    data = pattern(UNREAD_BYTES)
    other, client = subject.tcp(), subject.tcp(SMALL_BYTES)
    sent = push(client, data, other)
    client.shutdown(socket.SHUT_WR)
    settle(other)
    return expect_all(client, data[:sent], "sent before the client's end (FIN)")


def reset_costs_one(subject: Subject) -> str:
    """Reset two connections, one with unread answers; then ping on others."""
    other = subject.tcp()
    for size in (4, UNREAD_BYTES):
        client = subject.tcp(SMALL_BYTES)
        ask(client)
        push(client, bytes(size), other)
        reset_on_close(client)
        client.close()
        settle(other)
    ask(subject.tcp())
    return "two clients sent a reset (RST); clients beside and after them were served"


def udp_beside_tcp(subject: Subject) -> str:
    """Send datagrams of several sizes, the empty one too, and ping over TCP between them."""
    client = subject.udp()
    numbers = {number.to_bytes(2, "big") for number in range(WAITING_DATAGRAMS)}
    for number in numbers:
        client.send(number)
    beside = subject.tcp()  # from here on the server runs
    ask(beside)
    came: set[bytes] = set()
    while len(came) < len(numbers):
        came.add(expect_datagram(client, f"datagram {len(came) + 1} of {len(numbers)} that waited when it began"))
    if came != numbers:
        raise Broken("what came back in datagrams is not what was sent")
    for size in (0, 1, 1400, 9000):
        client.send(bytes(size))
        if len(expect_datagram(client, f"a datagram of {size:,} bytes")) != size:
            raise Broken(f"a datagram of {size:,} bytes came back with another length")
        ask(beside)
    return f"{len(came)} datagrams that waited when it began came back; so did others, of 0 to 9,000 bytes"


def idle_is_closed(subject: Subject) -> str:
    """Let clients fall silent, go on, read slowly, or never read; see which ones the server closes, and when.

    A slow reader is active. A client with unread answers that takes none of them is silent.
    """
    pulse = Pulse()
    try:
        measured = _fall_silent(subject, pulse)
        return f"{measured}; {_read_slowly_or_never(subject, pulse)}"
    except (Broken, OSError):
        if pulse.longest_s > SHORT_IDLE_S / 2:
            text = f"this machine is too busy: a client that should go on was held up for {pulse.longest_s:.2f} s"
            raise NotMeasured(text) from None
        raise


class Pulse:
    """The longest pause between two beats of a client that goes on sending."""

    __slots__ = ("_last_s", "longest_s")

    def __init__(self) -> None:
        self._last_s, self.longest_s = time.monotonic(), 0.0

    def beat(self) -> None:
        """Record a beat."""
        now_s = time.monotonic()
        self.longest_s, self._last_s = max(self.longest_s, now_s - self._last_s), now_s

    def resume(self) -> None:
        """Start again: the server caused the pause before."""
        self._last_s = time.monotonic()


def _fall_silent(subject: Subject, pulse: Pulse) -> str:
    silent, talker, leaver = subject.tcp(), subject.tcp(), subject.tcp()
    talk(SHORT_IDLE_S / 2, pulse, [talker, silent, leaver], talker)
    began_s = time.monotonic()
    try:
        ask(leaver)
        ask(silent)
    finally:
        pulse.beat()
    leaver.close()  # its timer still fires
    talk(LONG_IDLE_S, pulse, [talker], silent)
    closed_s = time.monotonic() - began_s
    if closed_s > LONG_IDLE_S:
        raise Broken(f"a client was still connected after {closed_s:.1f} s of silence, not {SHORT_IDLE_S} s")
    measured = f"with a timeout of {SHORT_IDLE_S} s, a client that fell silent was closed after {closed_s:.2f} s"
    if closed_s < SHORT_IDLE_S * 0.9:
        raise Broken(f"{measured}: too early")
    if not readable(talker, LONG_IDLE_S):
        raise Broken(f"{measured}; but with no other client to wake the server, the other was not")
    return f"{measured}, one that went on wasn't"


def _read_slowly_or_never(subject: Subject, pulse: Pulse) -> str:
    data = pattern(SIPPED_BYTES)
    slow, never = subject.tcp(SMALL_BYTES), subject.tcp(SMALL_BYTES)
    sent = came = 0
    sip_bytes, full_s, gone = SIP_BYTES, time.monotonic(), False
    while came < len(data) or not gone:
        if not gone:
            taken = offer(never, bytes(ENDLESS_BYTES))
            gone, full_s = taken is None, time.monotonic() if taken else full_s
        if not gone and time.monotonic() - full_s > LONG_IDLE_S:
            raise Broken(
                f"a client that sent and never read was still connected, {LONG_IDLE_S:.1f} s after it was full"
            )
        if came < len(data):
            sent += offer(slow, data[sent:]) or 0
            came += len(sip(slow, sip_bytes, came))
            if came == len(data):
                ask(slow)  # it is still connected; from now on it is idle
        in_haste = 0 < len(data) - came <= LAST_BYTES
        # a client that wakes late takes more, to keep its pace
        sip_bytes = LAST_BYTES if in_haste else int(SIP_BYTES * rest(pulse) / SIP_S)
    return "so was one that never read, and one that read slowly wasn't"


def rest(pulse: Pulse) -> float:
    """Pause like a slow reader between two sips; return how long the pause really was, in seconds."""
    pulse.resume()
    began_s = time.monotonic()
    time.sleep(SIP_S)
    pulse.beat()
    return time.monotonic() - began_s


def talk(for_s: float, pulse: Pulse, talkers: list[socket.socket], until: socket.socket) -> None:
    """Let clients send for `for_s` seconds, or until `until` is closed."""
    end_s = time.monotonic() + for_s
    while time.monotonic() <= end_s:
        for client in talkers:
            try:
                ask(client)
            finally:
                pulse.beat()
        if readable(until, SHORT_IDLE_S / 6):
            return


def hog_and_ping(subject: Subject) -> str:
    """Let much data of one client and one byte of another wait; see how much the server echoes before the byte.

    All of it waits in the kernel before the server begins, so only the server decides the order, on a busy machine too.
    """
    hog, ping = subject.tcp(HOG_BUFFER_BYTES, begin=False), subject.tcp(begin=False)
    subject.observe()
    waiting = stuff(hog)
    ping.sendall(b"?")
    subject.go()
    if not readable(ping, PATIENCE_S):
        raise Broken(f"another client's single byte had no answer in {PATIENCE_S:g} s, while {waiting:,} bytes waited")
    sends = subject.order("sent", "sent")["sends"]
    answered = next((i for i, (port, _) in enumerate(sends) if port == ping.getsockname()[1]), None)
    if answered is None:
        raise NotMeasured("the order of answers can only be seen if the server calls its sockets' `send`")
    passed = sum(count for _, count in sends[:answered])
    measured = f"of {waiting:,} bytes that waited, {passed:,} were echoed before another client's single byte"
    if passed > UNFAIR_BYTES:
        raise Broken(measured)
    return measured


def orderly_end(subject: Subject) -> str:
    """Send SIGTERM: the received bytes are answered, clients see an orderly end, and `serve` returns."""
    data = pattern(UNREAD_BYTES)
    other, client = subject.tcp(), subject.tcp(SMALL_BYTES)
    sent = push(client, data, other)
    settle(other)
    subject.terminate()
    measured = expect_all(client, data[:sent], "sent before SIGTERM")
    expect_end(other, "a client with nothing under way")
    subject.hang_up()
    outcome = subject.outcome()
    if outcome != RETURNED:
        raise Broken(f"{measured}; but then: {outcome}")
    return f"{measured}; {RETURNED}"


def thread_wakes_loop(subject: Subject) -> str:
    """Queue calls from another thread; measure how soon they run, and in which thread."""
    client = subject.tcp()
    calls_s: list[float] = []
    pings_s: list[float] = []
    end_s = time.monotonic() + TRYING_S
    while len(calls_s) < CALLS or (min(calls_s) > AT_ONCE_S + 5 * min(pings_s) and time.monotonic() < end_s):
        began_s = time.monotonic()
        ask(client)
        pings_s.append(time.monotonic() - began_s)
        time.sleep(ASLEEP_S)  # no wait for an event: the loop must be asleep for the measurement
        asked_s = time.monotonic()
        how = subject.order("call", "called", "a queued call was not made")["how"]
        if how != "there":
            raise Broken("the call was made by the thread that queued it" if how == "here" else how)
        calls_s.append(time.monotonic() - asked_s)
    call_s, ping_s = min(calls_s), min(pings_s)  # the best: others may show a busy machine
    measured = (
        f"the sleeping loop made a call {call_s * 1e3:.2f} ms after it was queued (a ping: {ping_s * 1e3:.2f} ms)"
    )
    if call_s > AT_ONCE_S + 5 * ping_s:
        raise Broken(measured)
    return measured


def descriptors_run_out(subject: Subject) -> str:
    """Use up the descriptors: connected clients are served, the processor rests, and later new clients are served."""
    if importlib.util.find_spec("resource") is None:
        raise NotMeasured("this system has no limit on descriptors that can be lowered")
    first = subject.tcp()
    ask(first)
    subject.order("starve", "starved")
    crowd = [subject.tcp() for _ in range(CROWD)]
    settle(first)
    share = rest_quietly(subject)
    settle(first)
    for client in crowd:
        client.close()
    ask(subject.tcp())
    served = f"{CROWD} clients for a few descriptors: the first client was served, and the server took {share}"
    return f"{served}; when they had left, a new client was served"


def raising_call(subject: Subject) -> str:
    """Queue a call that raises; then ping."""
    client = subject.tcp()
    ask(client)
    how = subject.order("raise", "queued")["how"]
    if how != "there":
        raise Broken(how)
    settle(client)
    return "a queued call raised, and clients were served as before"


def talking_at_the_end(subject: Subject) -> str:
    """Send more while the server closes: no reset may destroy the answers."""
    data = pattern(UNREAD_BYTES)
    other, client = subject.tcp(), subject.tcp(SMALL_BYTES)
    sent = push(client, data, other)
    settle(other)
    subject.terminate()
    expect_end(other, "a client with nothing under way")  # the server has begun to end
    client.sendall(b"and another thing")
    return expect_all(client, data[:sent], "sent before SIGTERM", PACE_S)


def dialogue(subject: Subject) -> str:
    """Lead two clients at once through a dialogue, with a coroutine of the examiner's."""
    ann, bob = subject.tcp(), subject.tcp()
    for client in (ann, bob):
        hear(client, b"name? ")
    for client, name in ((bob, b"Bob"), (ann, b"Ann")):
        client.sendall(name)
    for client in (ann, bob):
        hear(client, b"town? ")
        client.sendall(b"Ulm")
    expect_all(bob, b"hello Bob of Ulm", "of a greeting")
    expect_all(ann, b"hello Ann of Ulm", "of a greeting")
    return "two clients were asked twice each, at the same time, by one `async def` of seven lines"


def rest_quietly(subject: Subject) -> str:
    """Return which share of a processor an idle server takes. Raise Broken, with the share, if it doesn't sleep."""
    before, began_s = subject.order("usage", "usage")["processor_s"], time.monotonic()
    time.sleep(WINDOW_S)  # no wait for an event: the measurement itself
    used_s: float = subject.order("usage", "usage")["processor_s"] - before
    measured = f"{used_s / (time.monotonic() - began_s):.0%} of a processor"
    if used_s > BUSY_S:
        raise Broken(f"with nothing to do it took {measured}")
    return measured


def growth(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return by how much the server's memory has grown between two reports, in words."""
    if before["memory_bytes"] is None:
        return "its memory can't be seen here"
    return f"{max(0, after['memory_bytes'] - before['memory_bytes']) // 1024:,} KiB more memory"
