"""The staircase: the thirteen lessons as data. What each does, fixes and breaks stands in its program's docstring.

Law: the program is the lesson. Here is only what a program can't say of itself: where to look, what to try by hand,
what to build, and where `reactor` does the same.
"""

from __future__ import annotations

import ast
import pathlib
import sys
from typing import NamedTuple

from reactor.lessons.subject import FOLDER, Program


class Place(NamedTuple):
    """A function or class worth a look, and why. In a file of `reactor`, or in the lesson's own program ("")."""

    file: str
    name: str
    why: str


class Lesson(NamedTuple):
    """One step. `serve` takes `arguments`, in this order."""

    number: int
    stem: str  # of the program's file
    arguments: str
    look: tuple[Place, ...]
    by_hand: str  # what to try while it is served
    task: str
    read: tuple[Place, ...]
    script: str = ""  # a program for trying it by hand, where a client isn't enough
    see: tuple[str, ...] = ()  # titles in the player's gallery

    @property
    def program(self) -> Program:
        """The program, as the examiner takes it."""
        return Program(str(FOLDER / f"{self.stem}.py"), f"reactor.lessons.{self.stem}")

    @property
    def source(self) -> str:
        """The program's text."""
        return pathlib.Path(self.program.path).read_text(encoding="utf-8")

    @property
    def title(self) -> str:
        """What the program's docstring begins with, without the number."""
        return self.explanation[0].partition(": ")[2].rstrip(".")

    @property
    def explanation(self) -> list[str]:
        """The lines of the program's docstring."""
        return (ast.get_docstring(ast.parse(self.source)) or "").splitlines()


TCP, UDP = "listener", "listener, datagrams"
IDLE = f"{UDP}, idle_s"
READY = f"{IDLE}, ready"
GREETER = """\
import socket

from reactor.lessons.step13_await import Stream, serve


async def greet(stream: Stream) -> None:
    await stream.write(b"name? ")
    await stream.write(b"hello " + await stream.read())


tcp = socket.create_server(("127.0.0.1", 7007))
udp = socket.socket(type=socket.SOCK_DGRAM)
udp.bind(tcp.getsockname())
with tcp, udp:
    serve(tcp, udp, 60.0, lambda call_soon_threadsafe: None, greet)
"""

LESSONS: tuple[Lesson, ...] = (
    Lesson(
        1,
        "step01_blocking",
        TCP,
        (Place("", "serve", "three calls, and each may sleep"),),
        "Connect two clients. Say something with the second: no answer, until the first has left.",
        "Write `serve(listener)`: accept a client, send back all that it sends, close when it has finished, go on.",
        (Place("connection.py", "StreamProtocol", "what is left for you to write when a loop does the rest"),),
    ),
    Lesson(
        2,
        "step02_threads",
        TCP,
        (
            Place("", "serve", "accept, and hand over at once"),
            Place("", "echo", "lesson 1's inner loop, now in a thread of its own"),
        ),
        "Connect three clients, and look at the process: ps -o nlwp,rss,args -p PID shows four threads.",
        "Serve a second client while the first is silent. A thread for each is the shortest way.",
        (Place("connection.py", "Connection", "what a client costs here: one object, no stack"),),
    ),
    Lesson(
        3,
        "step03_busy",
        TCP,
        (Place("", "serve", "no call sleeps: that is its virtue, and its vice"),),
        "Look at `top`, with no client connected: it takes all of a processor.",
        "One thread for all clients. Don't let any call sleep: `setblocking(False)`, and go round.",
        (Place("sockets/opening.py", "bind_tcp", "sockets don't block from the moment when they are made"),),
    ),
    Lesson(
        4,
        "step04_selectors",
        TCP,
        (
            Place("", "serve", "the loop: three lines, and it will look like this to the end"),
            Place("", "echo", "the hope, in one line"),
        ),
        "Look at `top`: nothing. Then send 20 megabytes without reading (--flood): not all of it comes back.",
        "Sleep until there is something to do. Ask a selector, and keep with each socket what to do when it is ready.",
        (
            Place("loop.py", "Reactor.turn", "step 3 is the same loop: the data of the selector is called"),
            Place("loop.py", "Reactor.set_interest", "the one place where the selector is told what to watch"),
        ),
    ),
    Lesson(
        5,
        "step05_buffers",
        TCP,
        (
            Place("", "Connection.flush", "a byte leaves the buffer after `send` has taken it, not before"),
            Place("", "Connection.on_event", "watch for WRITE only while something waits, or the loop never sleeps"),
        ),
        "Send 20 megabytes without reading (--flood), with `top` beside it: the memory grows, and stays.",
        "Lose nothing against a slow reader. Keep what `send` didn't take, and send it when the socket is writable.",
        (
            Place("connection.py", "Connection.write", "what happens when `send` takes only half"),
            Place("connection.py", "Connection._flush", "and how the rest goes on"),
            Place("buffer.py", "SendBuffer", "the buffer, and what it costs to take from its front"),
        ),
        see=("A partial write",),
    ),
    Lesson(
        6,
        "step06_backpressure",
        TCP,
        (
            Place("", "Connection.interest", "computed from what the connection is, in one place"),
            Place("", "Connection.receive", "asks it before each receive"),
        ),
        "Send 20 megabytes without reading (--flood): now it is your client that waits. Press Ctrl-C there, instead of "
        "reading: its reset ends the server.",
        "Give each client a bound. Above a high-water mark of 64 KiB that wait, don't read from it.",
        (
            Place("connection.py", "Connection._wanted", "the same decision, with all states"),
            Place("limits.py", "Limits", "every bound, on one screen"),
        ),
        see=("Backpressure",),
    ),
    Lesson(
        7,
        "step07_halfclose",
        TCP,
        (
            Place("", "State", "three states; each decision looks at them and at nothing else"),
            Place("", "Connection.on_event", "where a reset ends, and where draining does"),
        ),
        "Send 20 megabytes (--flood), as much as is taken, and read on: all that was sent comes back, then the end. Or "
        "press Ctrl-C there: the server goes on.",
        "Deliver all that waits after the client's FIN, then close. And let no client's reset end the service.",
        (
            Place("connection.py", "Connection._enter", "the table has five rows: see the module's docstring"),
            Place("connection.py", "Connection._advance", "what follows when all is delivered"),
        ),
        see=("Half-close",),
    ),
    Lesson(
        8,
        "step08_udp",
        UDP,
        (
            Place("", "serve", "two descriptors of two kinds, one loop"),
            Place("", "echo_datagrams", "no connection, no buffer, no end"),
        ),
        "Say something over UDP: nc -u 127.0.0.1 7007. Then stop a TCP client with Ctrl-Z, as if its cable had been "
        "pulled: its connection is there tomorrow.",
        "Echo datagrams beside TCP: serve(listener, datagrams), both already bound.",
        (
            Place("datagram.py", "Datagram.on_event", "so many in a turn, and what an error of one means"),
            Place("datagram.py", "Datagram.send", "what if the kernel's buffer is full"),
        ),
    ),
    Lesson(
        9,
        "step09_timers",
        IDLE,
        (
            Place("", "Loop.run", "how long to sleep, and what is due"),
            Place("", "Connection.check_idle", "one timer for each connection; it looks again, and is never cancelled"),
        ),
        "Connect, and say nothing for a minute.",
        "Close clients that have moved no byte for `idle_s` seconds: serve(listener, datagrams, idle_s).",
        (
            Place("timers.py", "Timers.sleep_s", "how long select may sleep"),
            Place("timers.py", "Timer.cancel", "cancelling in constant time, and sweeping later"),
        ),
    ),
    Lesson(
        10,
        "step10_fairness",
        IDLE,
        (
            Place("", "Connection.receive", "one receive; compare it with lesson 9's"),
            Place("", "Loop.pop_due", "all that is due comes out before any of it is called"),
        ),
        "Press Ctrl-C, or send SIGTERM, while --flood has yet to read: it gets a reset, and next to nothing before.",
        "Let no client wait for one that never pauses. Bound every piece of work, and trust in the next turn.",
        (
            Place("connection.py", "Connection.on_event", "receive once, flush once"),
            Place("timers.py", "Timers.pop_due", "why a timer can't starve the sockets"),
            Place("listener.py", "Listener.on_event", "so many clients in a turn"),
        ),
        see=("A hog and a ping",),
    ),
    Lesson(
        11,
        "step11_wakeups",
        READY,
        (
            Place("", "Loop.call_soon_threadsafe", "note it, then wake: in this order"),
            Place("", "Loop.on_signals", "C writes the byte even while select sleeps"),
            Place("", "Server.stop", "how a service ends: the most that most programs never do"),
        ),
        "Say something with nc, and press Ctrl-C in the server: nc ends in order. While --flood has yet to read: it "
        "gets a part, and then a reset, for it had sent more than the server had received. Lesson 12 mends that.",
        "serve(listener, datagrams, idle_s, ready): return after SIGTERM when all that was received is answered. Let "
        "the high-water mark be 64 KiB at least, as the examiner sends 60 KiB and then SIGTERM. Call "
        "`ready(f)` once; f(call), from any thread, has the loop make the call.",
        (
            Place("signals.py", "Waker", "the socket pair, and why a lost byte does no harm"),
            Place("loop.py", "Reactor.call_soon_threadsafe", "the two lines"),
        ),
    ),
    Lesson(
        12,
        "step12_reactor",
        READY,
        (
            Place("", "Echo", "all that is left of lessons 4 to 7"),
            Place("", "Server.stop", "as in lesson 11, but `close` lingers"),
        ),
        "Press Ctrl-C in the server while --flood has yet to read, and read within five seconds: it gets all that "
        "the server had received, and then an orderly end (FIN).",
        "Go on when `accept` raises EMFILE, when a call raises, and when a client still talks while you close. "
        "With `reactor`, or with your own loop of lesson 11.",
        (
            Place("listener.py", "Listener._goes_on_after", "no descriptors: wait, and let the clients queue"),
            Place("loop.py", "Reactor._guard", "around every callback"),
            Place("connection.py", "Connection._linger", "why closing isn't the end"),
        ),
        see=("No descriptor left", "A stale event avoided"),
    ),
    Lesson(
        13,
        "step13_await",
        f"{READY}, handler",
        (
            Place("", "Future.__await__", "the only yield"),
            Place("", "Task.step", "a coroutine is sent on, as far as it comes"),
            Place("", "Stream.movement", "a time-out is one more that may resolve a future"),
            Place("", "echo", "what it was all for"),
        ),
        "Write an `async def` of your own, and hand it to `serve` as `handler`, in a program such as this one:",
        "Have a coroutine serve each connection: `async def handler(stream)`, with `await stream.read()`, "
        '`await stream.write(data)` and `await stream.sleep(delay_s)`. `read` returns b"" at the end. '
        "All three are `async def`. As in lesson 11, let the high-water mark be 64 KiB at least.",
        (
            Place("connection.py", "StreamProtocol", "the callbacks on which coroutines stand"),
            Place("loop.py", "Reactor.call_soon", "what sends a task on, so that no task runs inside another"),
        ),
        GREETER,
    ),
)


def line_of(source: str, name: str) -> int:
    """Return the line where a class or function begins, given as Class.method or name. Raise KeyError."""
    nodes: list[ast.stmt] = ast.parse(source).body
    for part in name.split("."):
        found = next((node for node in nodes if _is_definition(node, part)), None)
        if found is None:
            raise KeyError(name)
        nodes, line = getattr(found, "body", []), found.lineno
    return line


def _is_definition(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name


def exercise(lesson: Lesson) -> str:
    """Return a program to start from: the lesson before, with the task in place of its docstring."""
    task = f'"""Exercise {lesson.number}. {lesson.task}\n\nCheck it: {command(lesson.number)} --check FILE\n"""\n'
    if lesson.number == 1:
        return task + SKELETON
    before = LESSONS[lesson.number - 2].source
    docstring = ast.parse(before).body[0]
    return task + "".join(before.splitlines(keepends=True)[docstring.end_lineno :])


SKELETON = '''
import socket


def serve(listener: socket.socket) -> None:
    """Echo for ever. `listener` is bound and listening."""
    while True:
        client, _address = listener.accept()
'''


def command(number: int) -> str:
    """Return what to type for a lesson."""
    return f"{python()} -m reactor.lessons {number}"


def python() -> str:
    """Return the name by which this Python was run: not everywhere is there a `python`."""
    return pathlib.Path(sys.executable).name or "python3"
