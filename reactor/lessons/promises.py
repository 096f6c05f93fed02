"""The promises: what each lesson adds, as a sentence, and the check that judges a server by it.

Law: a promise, once made, is kept by every later lesson, and the lesson before the one that makes it breaks it. Both
are measured, by the tests and before the student's eyes, never merely said.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from reactor.lessons import checks
from reactor.lessons.subject import Broken, Check, NotMeasured, Program, Subject

IDLE_S = 30.0  # the idle time-out of a server where it shall not matter


class Promise(NamedTuple):
    """What a server of lesson `since` and later keeps."""

    name: str
    since: int
    sentence: str
    check: Check
    advice: str  # to whoever's server breaks it
    idle_s: float = IDLE_S
    arguments: int = 4  # the most that `serve` is given


PROMISES: tuple[Promise, ...] = (
    Promise(
        "echo",
        1,
        "What a client sends comes back, byte for byte.",
        checks.bytes_come_back,
        'Send exactly what `recv` has returned, all of it, and close when it returns b"".',
    ),
    Promise(
        "second-client",
        2,
        "A second client is served while the first is silent.",
        checks.second_client,
        "Never sleep for one client: a thread each, or sockets that don't block and one `select` for all.",
    ),
    Promise(
        "no-thread-each",
        3,
        "A client that only waits costs no thread.",
        checks.no_thread_each,
        "Use sockets that don't block, and ask them all in one thread.",
    ),
    Promise(
        "idle-is-free",
        4,
        "When nobody says anything, the server sleeps.",
        checks.idle_is_free,
        "Sleep in `selector.select()` without a time-out; watch for WRITE only while something waits to be sent.",
    ),
    Promise(
        "slow-reader",
        5,
        "A client that reads slowly gets every byte.",
        checks.slow_reader,
        "`send` says how much it took. Keep the rest, and send it when the selector says that the socket is writable.",
    ),
    Promise(
        "bounded-memory",
        6,
        "A client that sends and never reads is stopped, and takes no memory without bound.",
        checks.bounded_memory,
        "Above a high-water mark of waiting bytes, don't watch for READ.",
    ),
    Promise(
        "half-close",
        7,
        "A client that has finished sending gets the whole answer, and then the end.",
        checks.half_close,
        'b"" from `recv` ends one direction only. Deliver what waits, then close.',
    ),
    Promise(
        "reset",
        7,
        "A client that is torn away ends nothing but itself.",
        checks.reset_costs_one,
        "Catch OSError where you receive and send, and close that one connection.",
    ),
    Promise(
        "udp",
        8,
        "Datagrams come back, the empty one too, while TCP goes on.",
        checks.udp_beside_tcp,
        'Register the UDP socket with the same selector. An empty datagram is b"" as well, and no end.',
    ),
    Promise(
        "idle-time-out",
        9,
        "A client that says nothing for `idle_s` is closed, one that goes on isn't.",
        checks.idle_is_closed,
        "Sleep in `select` no longer than until the earliest deadline, and look at what is due after the sockets.",
        checks.SHORT_IDLE_S,
    ),
    Promise(
        "fairness",
        10,
        "A client that never pauses doesn't keep the others waiting.",
        checks.hog_and_ping,
        "Receive once for each readiness: who has more is ready again in the next turn.",
    ),
    Promise(
        "orderly-end",
        11,
        "After SIGTERM all that was received is answered, and `serve` returns.",
        checks.orderly_end,
        "Have the signal wake the loop; then close the listener, read no more, deliver what waits, and return.",
    ),
    Promise(
        "wake-up",
        11,
        "A call from another thread is made at once, by the loop.",
        checks.thread_wakes_loop,
        "Give `ready` a function that first notes the call, then writes a byte to a socket that the loop watches.",
    ),
    Promise(
        "no-descriptors",
        12,
        "With no descriptor left, the server goes on, and recovers.",
        checks.descriptors_run_out,
        "When `accept` raises EMFILE, don't watch the listener for a moment: the callers wait in the kernel's queue.",
    ),
    Promise(
        "raising-call",
        12,
        "A call that raises doesn't end the loop.",
        checks.raising_call,
        "Catch Exception around each callback, log it, and go on.",
    ),
    Promise(
        "lingering",
        12,
        "A client that still talks when the server closes loses no answer.",
        checks.talking_at_the_end,
        "After your FIN, go on receiving and throw it away until the client's FIN comes, or a time-out; then close.",
    ),
    Promise(
        "dialogue",
        13,
        "A handler is one `async def`, written from top to bottom.",
        checks.dialogue,
        "Run `handler(stream)` with a Task for each connection; a stream has `read`, `write` and `sleep` to await.",
        arguments=5,
    ),
)


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
        except Broken as found:
            return Verdict(promise, False, f"{found}{subject.obituary()}")
        except OSError as error:
            return Verdict(promise, False, f"a client's connection failed ({error.strerror}){subject.obituary()}")


def asked(lesson: int) -> Iterator[Promise]:
    """Yield the promises that a server of this lesson keeps."""
    return (promise for promise in PROMISES if promise.since <= lesson)


def added(lesson: int) -> Iterator[Promise]:
    """Yield those that this lesson adds."""
    return (promise for promise in PROMISES if promise.since == lesson)
