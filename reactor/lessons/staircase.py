"""The staircase: the thirteen lessons as data.

Law: the program is the lesson. Its docstring says what it does, fixes and breaks. This file holds only what a program
can't say of itself: where to look, what to try by hand, what to build, and where `reactor` does the same.
"""

from __future__ import annotations

import ast
import pathlib
import sys
from typing import NamedTuple

from reactor.lessons.subject import FOLDER, Program


class Place(NamedTuple):
    """A function or class to look at, and why. It is in a file of `reactor`, or in the lesson's program ("")."""

    file: str
    name: str
    why: str


class Lesson(NamedTuple):
    """One step. `serve` takes `arguments`, in this order."""

    number: int
    stem: str  # of the program's file
    arguments: str
    look: tuple[Place, ...]
    by_hand: str  # what to try while the program serves
    task: str
    read: tuple[Place, ...]
    script: str = ""  # a program to try by hand, where a client isn't enough
    see: tuple[str, ...] = ()  # titles in the player's gallery

    @property
    def program(self) -> Program:
        """The program, as the examiner loads it."""
        return Program(str(FOLDER / f"{self.stem}.py"), f"reactor.lessons.{self.stem}")

    @property
    def source(self) -> str:
        """The program's text."""
        return pathlib.Path(self.program.path).read_text(encoding="utf-8")

    @property
    def title(self) -> str:
        """The first line of the program's docstring, without the number."""
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
        (Place("", "serve", "three calls; each may sleep"),),
        "Connect two clients. Send something with the second: no answer comes until the first has left.",
        "Write `serve(listener)`: accept a client, send back all that it sends, close when it has finished, go on.",
        (Place("connection.py", "StreamProtocol", "what is left for you to write when a loop does the rest"),),
    ),
    Lesson(
        2,
        "step02_threads",
        TCP,
        (
            Place("", "serve", "accept, and start a thread at once"),
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
        (Place("", "serve", "no call sleeps: that is its strength and its weakness"),),
        "Look at `top` while no client is connected: the server takes a whole processor.",
        "Serve all clients in one thread. Let no call sleep: use `setblocking(False)`, and ask each socket in turn.",
        (Place("sockets/opening.py", "bind_tcp", "sockets don't block from the moment they are made"),),
    ),
    Lesson(
        4,
        "step04_selectors",
        TCP,
        (
            Place("", "serve", "the loop: three lines, and it stays like this to the end"),
            Place("", "echo", "the line that loses bytes"),
        ),
        "Look at `top`: no load. Then send 20 megabytes without reading (--flood): not all of it comes back.",
        "Sleep until there is work. Use a selector, and register with each socket what to do when it is ready.",
        (
            Place("loop.py", "Reactor._turn", "step 3 is the same loop: it calls the selector's data"),
            Place("sockets/watchlist.py", "Watchlist.set_interest", "the one place that calls the selector"),
        ),
    ),
    Lesson(
        5,
        "step05_buffers",
        TCP,
        (
            Place("", "Connection.flush", "a byte leaves the buffer only after `send` has taken it"),
            Place("", "Connection.on_event", "watch for WRITE only while something waits, or the loop never sleeps"),
        ),
        "Watch `top` and send 20 megabytes without reading (--flood): the memory grows, and stays.",
        "Lose no byte for a slow reader. Keep what `send` didn't take, and send it when the socket is writable.",
        (
            Place("connection.py", "Connection.write", "what happens when `send` takes only half"),
            Place("connection.py", "Connection._flush", "how the rest is sent"),
            Place("buffer.py", "SendBuffer", "the buffer, and what it costs to take from its front"),
        ),
        see=("A partial write",),
    ),
    Lesson(
        6,
        "step06_backpressure",
        TCP,
        (
            Place("", "Connection.interest", "computed from the connection's state, in one place"),
            Place("", "Connection.receive", "asks `interest` before each receive"),
        ),
        "Send 20 megabytes without reading (--flood): now your client waits. Press Ctrl-C there instead of reading: "
        "its reset ends the server.",
        "Bound the memory of each client. While more than a high-water mark of 64 KiB waits, don't read from it.",
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
            Place("", "Connection.on_event", "where a reset ends, and where draining ends"),
        ),
        "Send up to 20 megabytes (--flood), then read: all that was sent comes back, then the end. Or press Ctrl-C "
        "there: the server goes on.",
        "After the client's FIN, deliver all that waits, then close. And let no client's reset end the service.",
        (
            Place("connection.py", "Connection._enter", "five states here: see the table in the module's docstring"),
            Place("connection.py", "Connection._advance", "what happens when all is delivered"),
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
        "Send something over UDP: nc -u 127.0.0.1 7007. Then stop a TCP client with Ctrl-Z, as if its cable were "
        "pulled: its connection is still there tomorrow.",
        "Echo datagrams beside TCP: serve(listener, datagrams), both already bound.",
        (
            Place("datagram.py", "Datagram.on_event", "how many in a turn, and what an error of one means"),
            Place("datagram.py", "Datagram.send", "what happens when the kernel's buffer is full"),
        ),
    ),
    Lesson(
        9,
        "step09_timers",
        IDLE,
        (
            Place("", "Loop.run", "how long to sleep, and which calls are due"),
            Place("", "Connection.check_idle", "one timer for each connection; it looks again and is never cancelled"),
        ),
        "Connect, and send nothing for a minute: the server closes the connection.",
        "Close clients that have moved no byte for `idle_s` seconds: serve(listener, datagrams, idle_s).",
        (
            Place("timers.py", "Timers.sleep_s", "how long select may sleep"),
            Place("timers.py", "Timer.cancel", "cancel in constant time, sweep later"),
        ),
    ),
    Lesson(
        10,
        "step10_fairness",
        IDLE,
        (
            Place("", "Connection.receive", "one receive; compare it with lesson 9"),
            Place("", "Loop.pop_due", "all due timers come out before the first is called"),
        ),
        "Press Ctrl-C in the server, or send SIGTERM, before --flood reads: it gets almost nothing, and then a reset.",
        "Let no client wait for one that never pauses. Bound every piece of work, and leave the rest to the next turn.",
        (
            Place("connection.py", "Connection.on_event", "receive once, flush once"),
            Place("timers.py", "Timers.pop_due", "why a timer can't starve the sockets"),
            Place("listener.py", "Listener.on_event", "how many clients in a turn"),
        ),
        see=("A hog and a ping",),
    ),
    Lesson(
        11,
        "step11_wakeups",
        READY,
        (
            Place("", "Loop.call_soon_threadsafe", "queue the call, then wake: in this order"),
            Place("", "Loop.on_signals", "C code writes the byte even while select sleeps"),
            Place("", "Server.stop", "how a service ends in order"),
        ),
        "Send something with nc, and press Ctrl-C in the server: nc ends in order. Do the same before --flood reads: "
        "it gets a part, and then a reset, because it sent more than the server received. Lesson 12 fixes that.",
        "serve(listener, datagrams, idle_s, ready): after SIGTERM, answer all that was received, then return. Use a "
        "high-water mark of 64 KiB or more: the examiner sends 60 KiB and then SIGTERM. Call `ready(f)` once; any "
        "thread may call f(call), and your loop then makes the call.",
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
            Place("", "Echo", "what is left of lessons 4 to 7"),
            Place("", "Server.stop", "as in lesson 11, but `close` lingers"),
        ),
        "Press Ctrl-C in the server before --flood reads, then let it read within five seconds: it gets all that the "
        "server received, and then an orderly end (FIN).",
        "Go on when `accept` raises EMFILE, when a call raises, and when a client still sends while you close. "
        "Use `reactor`, or your own loop of lesson 11.",
        (
            Place("listener.py", "Listener._goes_on_after", "no descriptors: wait, while clients queue"),
            Place("loop.py", "Reactor._guard", "around every callback"),
            Place("connection.py", "Connection._linger", "why a close isn't the end"),
        ),
        see=("No descriptor left", "A stale event avoided"),
    ),
    Lesson(
        13,
        "step13_await",
        f"{READY}, handler",
        (
            Place("", "Future.__await__", "the only yield"),
            Place("", "Task.step", "runs a coroutine to its next await"),
            Place("", "Stream.movement", "a timeout resolves the same future"),
            Place("", "echo", "the result: a handler of two lines"),
        ),
        "Write your own `async def`, and give it to `serve` as `handler`, in a program like this one:",
        "Let a coroutine serve each connection: `async def handler(stream)`, with `await stream.read()`, "
        '`await stream.write(data)` and `await stream.sleep(delay_s)`. `read` returns b"" at the end. '
        "All three are `async def`. As in lesson 11, use a high-water mark of 64 KiB or more.",
        (
            Place("connection.py", "StreamProtocol", "the callbacks under the coroutines"),
            Place("loop.py", "Reactor.call_soon", "continues a task, so that no task runs inside another"),
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
    """Return a program to start from: the previous lesson, with the task in place of its docstring."""
    task = f'"""Exercise {lesson.number}. {lesson.task}\n\nCheck it: {command(lesson.number)} --check FILE\n"""\n'
    if lesson.number == 1:
        return task + SKELETON
    before = LESSONS[lesson.number - 2].source
    docstring = ast.parse(before).body[0]
    return task + "".join(before.splitlines(keepends=True)[docstring.end_lineno :])


SKELETON = '''
import socket


def serve(listener: socket.socket) -> None:
    """Echo forever. `listener` is bound and listening."""
    while True:
        client, _address = listener.accept()
'''


def command(number: int) -> str:
    """Return the command for a lesson."""
    return f"{python()} -m reactor.lessons {number}"


def python() -> str:
    """Return the name by which this Python was run: not every system has a `python`."""
    return pathlib.Path(sys.executable).name or "python3"
