"""The checks: each judges a running server by one promise, from outside.

Law: a server is judged by what it does on real sockets, never by how it is written. Each check returns what it has
measured, or raises `Broken` with it. None is decided by how fast a machine is, but by what came back, how much was
taken, in what order, or against another measurement of the same moment.
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

SHORT_IDLE_S = 0.3  # the time-out of a server whose time-outs are looked at
LONG_IDLE_S = 4 * SHORT_IDLE_S
MANY_CLIENTS = 40
WINDOW_S = 0.25  # over which processor time is measured
BUSY_S = 0.005  # of processor time in that window: ten times what a sleeping server takes, however busy the machine
SLOW_BYTES = 256 * 1024  # to a client that doesn't read at first
ENDLESS_BYTES = 8 * 1024 * 1024  # from a client that never reads: whoever takes all this has no bound
UNREAD_BYTES = 60 * 1024  # more than the kernel's buffers hold here, less than a high-water mark of 64 KiB
SMALL_BYTES = 4096  # of a client's receive buffer
HOG_BUFFER_BYTES = 192 * 1024  # asked of a kernel for what is under way, each way; it gives about twice as much
UNFAIR_BYTES = 128 * 1024  # twice what a fair loop needs: some receives while callers are taken in
WAITING_DATAGRAMS = 40
CALLS = 5
ASLEEP_S = 0.01  # after its last work a loop sleeps
PACE_S = 0.003  # between two receives of a slow reader: a reset has the time to overtake what it has yet to read
CALLERS = 16  # more than there are descriptors left
SIP_BYTES = 2048  # what a slow reader takes at a time
SIP_S = 0.015  # and how long it rests then: what waits at a high-water mark of 64 KiB lasts longer than the time-out
SIPPED_BYTES = 160 * 1024
LAST_BYTES = 32 * 1024  # are taken at once: the kernels have them, and no server could see them being read
AT_ONCE_S = 0.005  # and five pings: whoever looks for calls now and then is seldom so quick
TRYING_S = 1.0  # for a quick call on a busy machine
NAPS = 4  # in WINDOW_S: who wakes up more often than that asks, instead of being told


def bytes_come_back(subject: Subject) -> str:
    """All 256 values, one by one and in pieces of several sizes, then the server's FIN after the client's."""
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
    """A silent client holds up nobody."""
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
    """Clients that only wait cost no thread, and no process."""
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
    """Connected clients that say nothing cost no processor time."""
    ask(subject.tcp())
    ask(subject.tcp())
    before = subject.order("usage", "usage")["naps"]
    measured = f"with two silent clients it took {rest_quietly(subject)}"
    if before is None:
        return f"{measured}; whether it woke up meanwhile can't be seen here"
    naps = subject.order("usage", "usage")["naps"] - before
    measured += f", and woke up {naps} times in {WINDOW_S:g} s"
    if naps > NAPS:
        raise Broken(f"{measured}: it asks again and again, instead of sleeping until it is told")
    return measured


def slow_reader(subject: Subject) -> str:
    """A client that doesn't read for a while gets everything in the end."""
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
    """A client that sends and never reads is stopped."""
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
    """A client that has finished sending still gets the whole answer, and then the server's end."""
    data = pattern(UNREAD_BYTES)
    other, client = subject.tcp(), subject.tcp(SMALL_BYTES)
    sent = push(client, data, other)
    client.shutdown(socket.SHUT_WR)
    settle(other)
    return expect_all(client, data[:sent], "sent before the client's end (FIN)")


def reset_costs_one(subject: Subject) -> str:
    """A client that is torn away, with and without answers under way, ends nothing but itself."""
    other = subject.tcp()
    for size in (4, UNREAD_BYTES):
        client = subject.tcp(SMALL_BYTES)
        ask(client)
        push(client, bytes(size), other)
        reset_on_close(client)
        client.close()
        settle(other)
    ask(subject.tcp())
    return "two clients were torn away (RST); those beside and after them were served"


def udp_beside_tcp(subject: Subject) -> str:
    """Datagrams come back whole, the empty one too, and TCP goes on."""
    client = subject.udp()
    numbers = {number.to_bytes(2, "big") for number in range(WAITING_DATAGRAMS)}
    for number in numbers:
        client.send(number)
    beside = subject.tcp()  # from here on it serves
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
    """Who falls silent is closed when its time is up, not before; who goes on isn't; nobody has to wake the server.

    Whoever reads slowly goes on; whoever is full of answers that it doesn't read has fallen silent.
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
    """The longest pause between two beats of a client that goes on talking."""

    __slots__ = ("_last_s", "longest_s")

    def __init__(self) -> None:
        self._last_s, self.longest_s = time.monotonic(), 0.0

    def beat(self) -> None:
        """Note that it still talks."""
        now_s = time.monotonic()
        self.longest_s, self._last_s = max(self.longest_s, now_s - self._last_s), now_s

    def resume(self) -> None:
        """Begin anew: the pause before was the server's."""
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
    leaver.close()  # its timer comes all the same
    talk(LONG_IDLE_S, pulse, [talker], silent)
    closed_s = time.monotonic() - began_s
    if closed_s > LONG_IDLE_S:
        raise Broken(f"a client was still connected after {closed_s:.1f} s of silence, not {SHORT_IDLE_S} s")
    measured = f"with a time-out of {SHORT_IDLE_S} s, a client that fell silent was closed after {closed_s:.2f} s"
    if closed_s < SHORT_IDLE_S * 0.9:
        raise Broken(f"{measured}: too early")
    if not readable(talker, LONG_IDLE_S):
        raise Broken(f"{measured}; but with nobody else there to wake the server, the other was not")
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
                ask(slow)  # it is still there; from now on it is idle
        in_haste = 0 < len(data) - came <= LAST_BYTES
        sip_bytes = LAST_BYTES if in_haste else int(SIP_BYTES * rest(pulse) / SIP_S)  # its pace, however late it wakes
    return "so was one that never read, and one that read slowly wasn't"


def rest(pulse: Pulse) -> float:
    """Rest as long as a slow reader does between two sips; return how long that really was, in seconds."""
    pulse.resume()
    began_s = time.monotonic()
    time.sleep(SIP_S)
    pulse.beat()
    return time.monotonic() - began_s


def talk(for_s: float, pulse: Pulse, talkers: list[socket.socket], until: socket.socket) -> None:
    """Have clients talk for so long, or until one is closed."""
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
    """Somebody with much under way doesn't keep the others waiting.

    All of it waits in the kernel before the server begins, so that it is the server's own order that is seen, however
    busy this machine is.
    """
    hog, ping = subject.tcp(HOG_BUFFER_BYTES, begin=False), subject.tcp(begin=False)
    subject.observe()
    waiting = stuff(hog)
    ping.sendall(b"?")
    subject.go()
    if not readable(ping, PATIENCE_S):
        raise Broken(f"somebody else's single byte had no answer in {PATIENCE_S:g} s, while {waiting:,} bytes waited")
    sends = subject.order("sent", "sent")["sends"]
    answered = next((i for i, (port, _) in enumerate(sends) if port == ping.getsockname()[1]), None)
    if answered is None:
        raise NotMeasured("whom it answers first can only be seen of a server that calls its sockets' `send`")
    passed = sum(count for _, count in sends[:answered])
    measured = f"of {waiting:,} bytes that waited, {passed:,} were echoed before somebody else's single byte"
    if passed > UNFAIR_BYTES:
        raise Broken(measured)
    return measured


def orderly_end(subject: Subject) -> str:
    """SIGTERM: what has been received is answered, clients see an orderly end, and the server returns."""
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
    """A call handed in from another thread runs at once, on the loop's own thread."""
    client = subject.tcp()
    calls_s: list[float] = []
    pings_s: list[float] = []
    end_s = time.monotonic() + TRYING_S
    while len(calls_s) < CALLS or (min(calls_s) > AT_ONCE_S + 5 * min(pings_s) and time.monotonic() < end_s):
        began_s = time.monotonic()
        ask(client)
        pings_s.append(time.monotonic() - began_s)
        time.sleep(ASLEEP_S)  # no waiting for something to happen: this is what is measured, a loop that sleeps
        asked_s = time.monotonic()
        how = subject.order("call", "called", "a call that was handed in was not made")["how"]
        if how != "there":
            raise Broken("the call was made by the thread that handed it in" if how == "here" else how)
        calls_s.append(time.monotonic() - asked_s)
    call_s, ping_s = min(calls_s), min(pings_s)  # the best: the others may tell of a busy machine
    measured = (
        f"the sleeping loop made a call {call_s * 1e3:.2f} ms after it was handed in (a ping: {ping_s * 1e3:.2f} ms)"
    )
    if call_s > AT_ONCE_S + 5 * ping_s:
        raise Broken(measured)
    return measured


def descriptors_run_out(subject: Subject) -> str:
    """With no descriptor left, those who are connected are served, no processor burns, and later there's room again."""
    if importlib.util.find_spec("resource") is None:
        raise NotMeasured("this system has no limit on descriptors that could be lowered")
    first = subject.tcp()
    ask(first)
    subject.order("starve", "starved")
    crowd = [subject.tcp() for _ in range(CALLERS)]
    settle(first)
    share = rest_quietly(subject)
    settle(first)
    for client in crowd:
        client.close()
    ask(subject.tcp())
    served = f"{CALLERS} callers for a few descriptors: the first client was served, and the server took {share}"
    return f"{served}; when they had left, a new one was served"


def raising_call(subject: Subject) -> str:
    """A call that raises ends itself only."""
    client = subject.tcp()
    ask(client)
    how = subject.order("raise", "handed_in")["how"]
    if how != "there":
        raise Broken(how)
    settle(client)
    return "a call that was handed in raised, and clients were served as before"


def talking_at_the_end(subject: Subject) -> str:
    """A client that still sends when the server closes gets its answers all the same: no reset destroys them."""
    data = pattern(UNREAD_BYTES)
    other, client = subject.tcp(), subject.tcp(SMALL_BYTES)
    sent = push(client, data, other)
    settle(other)
    subject.terminate()
    expect_end(other, "a client with nothing under way")  # it has begun to end
    client.sendall(b"and another thing")
    return expect_all(client, data[:sent], "sent before SIGTERM", PACE_S)


def dialogue(subject: Subject) -> str:
    """Two clients at once are led through a dialogue by a coroutine of the examiner's."""
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
    """Return what part of a processor a server with nothing to do takes. Raise Broken, with it, if it doesn't sleep."""
    before, began_s = subject.order("usage", "usage")["processor_s"], time.monotonic()
    time.sleep(WINDOW_S)  # no waiting for something to happen: this is the measurement
    used_s: float = subject.order("usage", "usage")["processor_s"] - before
    measured = f"{used_s / (time.monotonic() - began_s):.0%} of a processor"
    if used_s > BUSY_S:
        raise Broken(f"with nothing to do it took {measured}")
    return measured


def growth(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Say by how much the server's memory has grown between two reports."""
    if before["memory_bytes"] is None:
        return "its memory can't be seen here"
    return f"{max(0, after['memory_bytes'] - before['memory_bytes']) // 1024:,} KiB more memory"
