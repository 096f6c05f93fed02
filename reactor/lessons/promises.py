"""The promises: what each lesson adds, as a sentence, and the check that judges a server by it.

Law: every later lesson keeps a promise once it is made, and the lesson before breaks it. The tests measure both, and so
does each demonstration in front of the student.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from reactor.lessons import checks
from reactor.lessons.subject import Broken, Check, NotMeasured, Program, Subject

IDLE_S = 30.0  # the idle timeout of a server in checks where it must not matter


class Promise(NamedTuple):
    """What a server of lesson `since` and of each later lesson keeps."""

    name: str
    since: int
    check: Check
    sentence: str
    advice: str  # for the author of a server that breaks it
    idle_s: float = IDLE_S
    arguments: int = 4  # `serve` gets at most this many


PROMISES: tuple[Promise, ...] = (
    Promise("echo", 1, checks.bytes_come_back,
            "What a client sends comes back, byte for byte.",
            'Send exactly what `recv` returned, all of it, and close when it returns b"".'),
    Promise("second-client", 2, checks.second_client,
            "A second client is served while the first is silent.",
            "Never sleep for one client: use a thread for each, or non-blocking sockets and one `select` for all."),
    Promise("no-thread-each", 3, checks.no_thread_each,
            "A client that only waits costs no thread.",
            "Use non-blocking sockets, and ask them all in one thread."),
    Promise("idle-is-free", 4, checks.idle_is_free,
            "While no client sends, the server sleeps.",
            "Sleep in `selector.select()` without a timeout; watch for WRITE only while bytes wait to be sent."),
    Promise("slow-reader", 5, checks.slow_reader,
            "A client that reads slowly gets every byte.",
            "`send` returns how much it took. Keep the rest, and send it when the selector reports WRITE."),
    Promise("bounded-memory", 6, checks.bounded_memory,
            "A client that sends and never reads is stopped before it takes unbounded memory.",
            "While more bytes wait than the high-water mark, don't watch for READ."),
    Promise("half-close", 7, checks.half_close,
            "A client that has finished sending gets the whole answer, and then the end.",
            'b"" from `recv` ends one direction only. Deliver what waits, then close.'),
    Promise("reset", 7, checks.reset_costs_one,
            "A connection that is reset ends alone.",
            "Catch OSError where you receive and send, and close that one connection."),
    Promise("udp", 8, checks.udp_beside_tcp,
            "Datagrams come back, empty ones too, while TCP goes on.",
            'Register the UDP socket with the same selector. An empty datagram is b"" too, and ends nothing.'),
    Promise("idle-time-out", 9, checks.idle_is_closed,
            "A client that is silent for `idle_s` is closed; an active one stays.",
            "Sleep in `select` until the earliest deadline at most, and handle due timers after the sockets.",
            checks.SHORT_IDLE_S),
    Promise("fairness", 10, checks.hog_and_ping,
            "A client that never pauses doesn't keep the others waiting.",
            "Receive once for each readiness: a client that sent more is ready again in the next turn."),
    Promise("orderly-end", 11, checks.orderly_end,
            "After SIGTERM everything received is answered, and `serve` returns.",
            "Let the signal wake the loop; then close the listener, stop reading, deliver what waits, and return."),
    Promise("wake-up", 11, checks.thread_wakes_loop,
            "The loop makes a call from another thread at once.",
            "Give `ready` a function that queues the call, then writes a byte to a socket that the loop watches."),
    Promise("no-descriptors", 12, checks.descriptors_run_out,
            "With no descriptor left, the server goes on, and recovers.",
            "When `accept` raises EMFILE, don't watch the listener for a moment: clients wait in the kernel's queue."),
    Promise("raising-call", 12, checks.raising_call,
            "A call that raises doesn't end the loop.",
            "Catch Exception around each callback, log it, and go on."),
    Promise("lingering", 12, checks.talking_at_the_end,
            "A client that still sends when the server closes loses no answer.",
            "After your FIN, receive and discard until the client's FIN or a timeout comes; then close."),
    Promise("dialogue", 13, checks.dialogue,
            "A handler is one `async def`, written from top to bottom.",
            "Run `handler(stream)` with a Task for each connection; a stream has `read`, `write` and `sleep` to await.",
            arguments=5),
)  # fmt: skip


class Verdict(NamedTuple):
    """What a check has found. `kept` is None where it can't be measured."""

    promise: Promise
    kept: bool | None
    measured: str


def judge(promise: Promise, program: Program) -> Verdict:
    """Judge a program, in its own process, by one promise. Raise Unusable if it can't run."""
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
    """Yield the promises that this lesson adds."""
    return (promise for promise in PROMISES if promise.since == lesson)
