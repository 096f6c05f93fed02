"""The promises: what each lesson adds, as sentences, and the checks that judge a running server by them.

Law: a server is judged from outside, by what it does on real sockets, never by how it is written. Each check returns
what it has measured, or raises `Broken` with it. None is decided by how fast a machine is: by what came back, how much
was taken, in what order, or against another measurement of the same moment.

What orders things here is the ping: a loop that has answered three pings on another connection has come round, and has
seen whatever was there before the first.
"""

from __future__ import annotations

import contextlib
import importlib.util
import select
import socket
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from reactor.lessons.subject import PATIENCE_S, Broken, Check, NotMeasured, Program, Subject
from reactor.sockets import reset_on_close

IDLE_S = 30.0  # the idle time-out that a server is given where it shall not matter
SHORT_IDLE_S = 0.3  # and where it does
MANY_CLIENTS = 40
WINDOW_S = 0.25  # over which processor time is measured
SLOW_BYTES = 256 * 1024  # to a client that doesn't read at first
ENDLESS_BYTES = 8 * 1024 * 1024  # from a client that never reads: whoever takes all this has no bound
UNREAD_BYTES = 60 * 1024  # more than the kernel's buffers hold here, less than a high-water mark of 64 KiB
SMALL_BYTES = 4096  # of a client's receive buffer
PING_TURNS = 3
HOG_RECEIVE_BYTES = 256 * 1024
HOG_WINDOW_BYTES = 2 * 1024 * 1024
UNFAIR_BYTES = 1024 * 1024  # of the hog's, before a ping is answered: several times what a fair loop needs
HOG_ROUNDS = 20
PIECE_BYTES = 64 * 1024
QUIET_S = 0.5  # no byte for so long, while the server answers others: no more will come
WAITING_DATAGRAMS = 40
CALLERS = 16  # more than there are descriptors left
AT_ONCE_S = 0.02  # and twenty pings: a call that a wake-up brings is as quick as an answer
MOST_SHARE = 0.1  # of a processor, for a server that has nothing to do


class Promise(NamedTuple):
    """What a server of lesson `since` and later keeps."""

    name: str
    since: int
    sentence: str
    check: Check
    advice: str  # to whoever's server breaks it
    idle_s: float = IDLE_S
    arguments: int = 4  # the most that `serve` is given


class Verdict(NamedTuple):
    """What a check has found. `kept` is None if it couldn't be measured here."""

    promise: Promise
    kept: bool | None
    measured: str


def judge(promise: Promise, program: Program) -> Verdict:
    """Run one program in a process of its own and judge it by one promise. Raise Unusable if it can't be run."""
    with Subject(program, promise.idle_s, promise.arguments) as subject:
        try:
            return Verdict(promise, True, promise.check(subject))
        except NotMeasured as reason:
            return Verdict(promise, None, str(reason))
        except (Broken, OSError) as found:
            return Verdict(promise, False, f"{found}{subject.obituary()}")


# ---------------------------------------------------------------- what a client does


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
    """Return when the server has come round: whatever was there for it, it has seen."""
    for _ in range(PING_TURNS):
        ask(client)


def pattern(count: int) -> bytes:
    """Return so many bytes, none of which could be taken for its neighbours."""
    return b"".join(number.to_bytes(4, "big") for number in range(count // 4))


def push(client: socket.socket, data: bytes, other: socket.socket) -> int:
    """Send as much as is taken while nobody reads the answers; return how much. `other` is for pings."""
    client.settimeout(0.0)
    sent = 0
    while sent < len(data):
        try:
            sent += client.send(data[sent : sent + PIECE_BYTES])
        except BlockingIOError:
            settle(other)
            if not select.select([], [client], [], 0.05)[1]:
                break
    client.settimeout(PATIENCE_S)
    return sent


def pull(client: socket.socket) -> tuple[bytes, str]:
    """Read to the end; return what came, and how it ended."""
    came = bytearray()
    try:
        while piece := client.recv(PIECE_BYTES):
            came += piece
    except TimeoutError:
        return bytes(came), f"nothing more for {PATIENCE_S:g} s, and no end (FIN)"
    except ConnectionError:
        return bytes(came), "a reset"
    return bytes(came), "the end"


def expect_all(client: socket.socket, data: bytes, which: str) -> str:
    """Read to the end, and raise Broken unless all of `data` and then an orderly end have come."""
    came, ending = pull(client)
    compare(data, came)
    measured = f"of {len(data):,} bytes {which}, {len(came):,} came back, then {ending}"
    if len(came) < len(data) or ending != "the end":
        raise Broken(measured)
    return measured


def readable(client: socket.socket, within_s: float) -> bool:
    """Tell whether something comes for this client within so many seconds."""
    return bool(select.select([client], [], [], within_s)[0])


def growth(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Say by how much the server's memory has grown between two reports."""
    if before["memory_bytes"] is None:
        return "its memory can't be seen here"
    return f"{max(0, after['memory_bytes'] - before['memory_bytes']) // 1024:,} KiB more memory"


def busy_share(subject: Subject) -> float:
    """Return the part of a processor that the server takes over WINDOW_S. This wait is the measurement itself."""
    before, began_s = subject.order("usage", "usage")["processor_s"], time.monotonic()
    time.sleep(WINDOW_S)
    used_s: float = subject.order("usage", "usage")["processor_s"] - before
    return used_s / (time.monotonic() - began_s)


# ---------------------------------------------------------------- the checks, in the order of the lessons


def bytes_come_back(subject: Subject) -> str:
    """All 256 values, one by one and in pieces of several sizes, then the server's FIN after the client's."""
    data = bytes(range(256))
    client = subject.tcp()
    for value in data:
        ask(client, bytes([value]))
    for size in (2, 255, 1000, 4095, 4096, 4097):
        ask(client, (data * 20)[:size])
    client.shutdown(socket.SHUT_WR)
    expect_all(client, b"", "after the client's end")
    return "256 single bytes and 6 pieces of up to 4,097 came back as they were sent"


def second_client(subject: Subject) -> str:
    """A silent client holds up nobody."""
    first, second = subject.tcp(), subject.tcp()
    ask(first)
    began_s = time.monotonic()
    second.sendall(b"me too")
    if readable(second, PATIENCE_S):
        return f"the second client had its answer after {(time.monotonic() - began_s) * 1e3:.1f} ms"
    first.close()
    began_s = time.monotonic()
    came = readable(second, PATIENCE_S)
    then = f"it came {(time.monotonic() - began_s) * 1e3:.1f} ms after that had left" if came else "nor afterwards"
    raise Broken(f"the second client had no answer for {PATIENCE_S:g} s, while the first was connected; {then}")


def no_thread_each(subject: Subject) -> str:
    """Clients that only wait cost no thread."""
    ask(subject.tcp())
    before = subject.order("usage", "usage")
    for _ in range(MANY_CLIENTS):
        ask(subject.tcp())
    after = subject.order("usage", "usage")
    threads = after["threads"] - before["threads"]
    measured = f"{MANY_CLIENTS} more clients: {threads} more threads, {growth(before, after)}"
    if threads >= MANY_CLIENTS // 2:
        raise Broken(f"{measured}; 10,000 clients would be {10_000 * threads // MANY_CLIENTS:,} threads")
    return measured


def idle_is_free(subject: Subject) -> str:
    """Connected clients that say nothing cost no processor time."""
    ask(subject.tcp())
    ask(subject.tcp())
    share = busy_share(subject)
    measured = f"with two silent clients it used {share:.0%} of a processor"
    if share > MOST_SHARE:
        raise Broken(measured)
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


def receive_or_send(client: socket.socket, rest: bytes) -> bytes | int | None:
    """Return what has come, or else how many bytes could be sent, or None when neither happens for QUIET_S."""
    can_read, can_write, _ = select.select([client], [client] if rest else [], [], QUIET_S)
    if can_read:
        return client.recv(PIECE_BYTES) or None
    return client.send(rest[:SMALL_BYTES]) if can_write else None


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
    return (
        f"{len(came)} datagrams that waited when it began came back, then others of up to 9,000 bytes and an empty one"
    )


def expect_datagram(client: socket.socket, which: str) -> bytes:
    """Return the next datagram. Raise Broken if there is none."""
    try:
        return client.recv(PIECE_BYTES)
    except TimeoutError:
        raise Broken(f"{which} had no answer in {PATIENCE_S:g} s") from None


def idle_is_closed(subject: Subject) -> str:
    """Who says nothing is closed when the time is up; who goes on isn't."""
    silent, talker = subject.tcp(), subject.tcp()
    ask(silent)
    silent_s = spoke_s = time.monotonic()
    ask(talker)
    while not readable(silent, SHORT_IDLE_S / 6):
        now_s = time.monotonic()
        if now_s - silent_s > 4 * SHORT_IDLE_S:
            raise Broken(
                f"a client was still connected after {now_s - silent_s:.1f} s of silence, not {SHORT_IDLE_S} s"
            )
        if now_s - spoke_s > SHORT_IDLE_S / 2:
            raise NotMeasured(
                f"this machine is too busy: the client that shall go on was held up for {now_s - spoke_s:.2f} s"
            )
        spoke_s = now_s
        ask(talker)
    closed_s = time.monotonic() - silent_s
    ask(talker)
    measured = f"with a time-out of {SHORT_IDLE_S} s, a silent client was closed after {closed_s:.2f} s"
    if closed_s < SHORT_IDLE_S * 0.9:
        raise Broken(f"{measured}: too early")
    return f"{measured}, one that went on wasn't"


def hog_and_ping(subject: Subject) -> str:
    """Somebody who sends without a pause doesn't keep the others waiting."""
    hog, ping = subject.tcp(HOG_RECEIVE_BYTES), subject.tcp()
    ask(hog)
    ask(ping)
    flow, worst = Flow(hog), 0
    for _ in range(HOG_ROUNDS):
        flow.move(HOG_WINDOW_BYTES)  # well under way
        ping.send(b"?")
        worst = max(worst, flow.until(ping))
        if worst > UNFAIR_BYTES:
            raise Broken(f"{worst:,} bytes of a hog's were echoed before somebody else's single byte had its turn")
    return f"at most {worst:,} bytes of a hog's came between a ping and its answer, in {HOG_ROUNDS} tries"


class Flow:
    """A client that sends and reads as fast as it can, with a bounded number of bytes under way."""

    __slots__ = ("_hog", "_under_way")

    def __init__(self, hog: socket.socket) -> None:
        self._hog, self._under_way = hog, 0
        hog.settimeout(0.0)

    def step(self) -> int:
        """Send a piece and receive one, as far as that goes; return how many bytes have come."""
        with contextlib.suppress(BlockingIOError):
            if self._under_way < HOG_WINDOW_BYTES:
                self._under_way += self._hog.send(bytes(PIECE_BYTES))
        with contextlib.suppress(BlockingIOError):
            came = len(self._hog.recv(PIECE_BYTES))
            if not came:
                raise Broken("the server closed a connection that was busy")
            self._under_way -= came
            return came
        readable(self._hog, PATIENCE_S)
        return 0

    def move(self, most: int) -> None:
        """Let so many bytes come back."""
        came = 0
        while came < most:
            came += self.step()

    def until(self, ping: socket.socket) -> int:
        """Go on until the ping has its answer; return how many of our bytes came first."""
        came = 0
        while not readable(ping, 0.0) and came <= 4 * UNFAIR_BYTES:
            came += self.step()
        ping.recv(1)
        return came


def orderly_end(subject: Subject) -> str:
    """SIGTERM: what has been received is answered, clients see an orderly end, and the server returns."""
    data = pattern(UNREAD_BYTES)
    other, client = subject.tcp(), subject.tcp(SMALL_BYTES)
    sent = push(client, data, other)
    settle(other)
    subject.terminate()
    measured = expect_all(client, data[:sent], "received before SIGTERM")
    expect_all(other, b"", "of an idle client")
    subject.hang_up()
    outcome = subject.outcome()
    if outcome != "`serve` returned":
        raise Broken(f"{measured}; but then: {outcome}")
    return f"{measured}; `serve` returned"


def thread_wakes_loop(subject: Subject) -> str:
    """A call handed in from another thread runs at once, on the loop's own thread."""
    client = subject.tcp()
    calls_s, pings_s = [], []
    for _ in range(9):
        began_s = time.monotonic()
        ask(client)
        asked_s = time.monotonic()
        how = subject.order("call", "called")["how"]
        if how != "there":
            raise Broken("the call was made by the thread that handed it in" if how == "here" else how)
        calls_s.append(time.monotonic() - asked_s)
        pings_s.append(asked_s - began_s)
    call_s, ping_s = statistics.median(calls_s), statistics.median(pings_s)
    measured = (
        f"the sleeping loop made a call {call_s * 1e3:.1f} ms after it was handed in (a ping: {ping_s * 1e3:.1f} ms)"
    )
    if call_s > AT_ONCE_S + 20 * ping_s:
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
    share = busy_share(subject)
    settle(first)
    for client in crowd:
        client.close()
    ask(subject.tcp())
    measured = f"{CALLERS} callers for a few descriptors: the first client was served, {share:.0%} of a processor used"
    if share > MOST_SHARE:
        raise Broken(measured)
    return f"{measured}; when they had left, a new one was served"


def raising_call(subject: Subject) -> str:
    """A call that raises ends itself only."""
    client = subject.tcp()
    ask(client)
    subject.order("raise", "handed_in")
    settle(client)
    return "a call that was handed in raised, and clients were served as before"


def talking_at_the_end(subject: Subject) -> str:
    """A client that still sends when the server closes gets its answers all the same: no reset destroys them."""
    data = pattern(UNREAD_BYTES)
    other, client = subject.tcp(), subject.tcp(SMALL_BYTES)
    sent = push(client, data, other)
    settle(other)
    subject.terminate()
    expect_all(other, b"", "of an idle client")  # it has begun to end
    client.sendall(b"and another thing")
    return expect_all(client, data[:sent], "received before SIGTERM")


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


def hear(client: socket.socket, question: bytes) -> None:
    """Receive a question. Raise Broken if another or none comes."""
    try:
        came = client.recv(PIECE_BYTES)
    except TimeoutError:
        raise Broken(f"the client wasn't asked {question.decode()!r} in {PATIENCE_S:g} s") from None
    if came != question:
        raise Broken(f"the client was asked {came!r}, not {question!r}")


# ---------------------------------------------------------------- all of them

PROMISES: Sequence[Promise] = (
    Promise(
        "echo", 1, "What a client sends comes back, byte for byte.", bytes_come_back,
        "Send exactly what `recv` has returned, all of it, and close when it returns b\"\".",
    ),
    Promise(
        "second-client", 2, "A second client is served while the first is silent.", second_client,
        "Never sleep for one client: a thread each, or sockets that don't block and one `select` for all.",
    ),
    Promise(
        "no-thread-each", 3, "A client that only waits costs no thread.", no_thread_each,
        "Use sockets that don't block, and ask them all in one thread.",
    ),
    Promise(
        "idle-is-free", 4, "When nobody says anything, the server sleeps.", idle_is_free,
        "Sleep in `selector.select()` without a time-out; watch for WRITE only while something waits to be sent.",
    ),
    Promise(
        "slow-reader", 5, "A client that reads slowly gets every byte.", slow_reader,
        "`send` says how much it took. Keep the rest, and send it when the selector says that the socket is writable.",
    ),
    Promise(
        "bounded-memory", 6, "A client that sends and never reads is stopped, and takes no memory without bound.",
        bounded_memory, "Above a high-water mark of waiting bytes, don't watch for READ.",
    ),
    Promise(
        "half-close", 7, "A client that has finished sending gets the whole answer, and then the end.", half_close,
        "b\"\" from `recv` ends one direction only. Deliver what waits, then close.",
    ),
    Promise(
        "reset", 7, "A client that is torn away ends nothing but itself.", reset_costs_one,
        "Catch OSError where you receive and send, and close that one connection.",
    ),
    Promise(
        "udp", 8, "Datagrams come back, the empty one too, while TCP goes on.", udp_beside_tcp,
        "Register the UDP socket with the same selector. An empty datagram is b\"\" as well, and no end.",
    ),
    Promise(
        "idle-time-out", 9, "A client that says nothing for `idle_s` is closed, one that goes on isn't.", idle_is_closed,
        "Sleep in `select` no longer than until the earliest deadline, and look at what is due after the sockets.",
        SHORT_IDLE_S,
    ),
    Promise(
        "fairness", 10, "A client that never pauses doesn't keep the others waiting.", hog_and_ping,
        "Receive once for each readiness: who has more is ready again in the next turn.",
    ),
    Promise(
        "orderly-end", 11, "After SIGTERM all that was received is answered, and `serve` returns.", orderly_end,
        "Have the signal wake the loop; then close the listener, read no more, deliver what waits, and return.",
    ),
    Promise(
        "wake-up", 11, "A call from another thread is made at once, by the loop.", thread_wakes_loop,
        "Call `ready(call_soon_threadsafe)` once. Note the call first, then write a byte to a socket that the loop watches.",
    ),
    Promise(
        "no-descriptors", 12, "With no descriptor left, the server goes on, and recovers.", descriptors_run_out,
        "When `accept` raises EMFILE, don't watch the listener for a moment: the callers wait in the kernel's queue.",
    ),
    Promise(
        "raising-call", 12, "A call that raises doesn't end the loop.", raising_call,
        "Catch Exception around each callback, log it, and go on.",
    ),
    Promise(
        "lingering", 12, "A client that still talks when the server closes loses no answer.", talking_at_the_end,
        "After your FIN, go on receiving and throw it away until the client's FIN comes, or a time-out; then close.",
    ),
    Promise(
        "dialogue", 13, "A handler is one `async def`, written from top to bottom.", dialogue,
        "Give each connection's Stream to `handler` and run the coroutine with a Task; the Stream has read, write, sleep.",
        arguments=5,
    ),
)  # fmt: skip
