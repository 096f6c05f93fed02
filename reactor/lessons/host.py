"""The host: it runs a program's `serve` in the process under examination.

Law: nothing that the program does can hurt the examiner. The program runs in its own process, with bounds on memory and
processor time. The process ends when the examiner hangs up, whatever the program is doing. The wire between the two
carries JSON Lines; what the program prints goes elsewhere.

    examiner ─► {"do": "go"}      ─► `serve` is called with the sockets, in the main thread
    examiner ◄─ {"event": …}      ◄─ what happened
    examiner ─► {"do": "usage"}   ─► what the process has used so far

This file holds only what it takes to call a program. `promises` says what is asked of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any

KERNEL_BUFFER_BYTES = 16 * 1024  # of the server's sockets: small, so that little traffic fills them
BACKLOG = 256
HOUSE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MOST_ARGUMENTS = 5
CO_VARARGS = 0x04  # as in `inspect`, which takes longer to import than everything else here
NOT_READY = "`ready` has not been called, so no call can be queued"
MEMORY_BYTES = 2 << 30  # of address space
PROCESSOR_S = 20
SPARE_DESCRIPTORS = 8  # left to a server that must run out of them


class Observed(socket.socket):
    """A socket that records, if asked to, how many bytes it sends to which port. Accepted sockets do the same."""

    __slots__ = ("sent",)

    sent: list[list[int]] | None

    def accept(self) -> tuple[Observed, Any]:
        """Accept as usual, but return an observed socket."""
        plain, address = super().accept()
        accepted = Observed(plain.family, plain.type, plain.proto, fileno=plain.detach())
        accepted.sent = self.sent
        return accepted, address

    def send(self, data: Any, flags: int = 0, /) -> int:
        """Send as usual. The record is made before the client can have the bytes."""
        if self.sent is None:
            return super().send(data, flags)
        note = [self.getpeername()[1], 0]
        self.sent.append(note)
        note[1] = count = super().send(data, flags)
        return count


class Host:
    """One program under examination, and the wire to the examiner."""

    __slots__ = ("_call_soon", "_go", "_most", "_sent", "_wire", "idle_s")

    def __init__(self, wire: socket.socket, idle_s: float, most: int) -> None:
        self.idle_s = idle_s
        self._wire, self._most = wire, most
        self._sent: list[list[int]] | None = None
        self._go = threading.Event()
        self._call_soon: Callable[..., object] | None = None

    def tell(self, event: str, **fields: object) -> None:
        """Send one line to the examiner. If it has hung up, `obey` is about to end this process."""
        with contextlib.suppress(OSError):
            self._wire.sendall(json.dumps({"event": event, **fields}).encode() + b"\n")

    def run(self, path: str, name: str) -> None:
        """Load the program, call its `serve` on the examiner's order, and report what happens."""
        threading.Thread(target=self.obey, daemon=True).start()
        try:
            serve = load(path, name)
        except BaseException as error:  # SystemExit too: a program that exits on import can't serve
            self.tell("unusable", why=f"it can't be loaded: {describe(error)}")
            return
        if not callable(serve):
            self.tell("unusable", why="it has no function `serve`")
            return
        listener, datagrams = open_sockets()
        with listener, datagrams:
            wants, most = count_arguments(serve), max(self._most, count_required(serve))
            handler = dialogue if self._most == MOST_ARGUMENTS else echo
            arguments: list[Any] = [listener, datagrams, self.idle_s, self.ready, handler]
            self.tell("ready", tcp=listener.getsockname(), udp=datagrams.getsockname(), wants=wants)
            self._go.wait()
            listener.sent = self._sent
            try:
                serve(*arguments[: min(wants, most)])
            except BaseException as error:
                self.tell("ended", why=f"`serve` raised {describe(error)}")
            else:
                self.tell("ended", why="`serve` returned")

    def ready(self, call_soon_threadsafe: Callable[..., object]) -> None:
        """Keep the function that queues calls. `serve` gets this method as `ready`."""
        self._call_soon = call_soon_threadsafe

    def obey(self) -> None:
        """Follow the examiner's orders, in a thread of our own, until it hangs up."""
        orders: dict[str, Callable[[], None]] = {
            "go": self._go.set,
            "observe": self.observe,
            "sent": self.report_sent,
            "usage": self.report_usage,
            "children": lambda: self.tell("children", count=children()),
            "call": self.queue_call,
            "raise": self.queue_trouble,
            "starve": self.starve,
        }
        with contextlib.suppress(OSError), self._wire.makefile() as lines:
            for line in lines:
                orders[json.loads(line)["do"]]()
        os._exit(0)

    def observe(self) -> None:
        """Record from now on to which port the server sends."""
        self._sent = []

    def report_sent(self) -> None:
        """Report how much was sent to which port, in order."""
        self.tell("sent", sends=list(self._sent or ()))

    def report_usage(self) -> None:
        """Report processor time and the number of other threads; with a /proc also memory and naps."""
        usage = {"processor_s": time.process_time(), "threads": threading.active_count() - 1}
        self.tell("usage", **usage, memory_bytes=resident_bytes(), naps=naps())

    def queue_call(self) -> None:
        """Queue a call from this thread. When it runs, report whether that is in the program's thread."""
        here = threading.get_ident()
        if self._call_soon is None:
            self.tell("called", how=NOT_READY)
        else:
            self._call_soon(lambda: self.tell("called", how="here" if threading.get_ident() == here else "there"))

    def queue_trouble(self) -> None:
        """Queue a call that raises."""
        if self._call_soon is None:
            self.tell("queued", how=NOT_READY)
        else:
            self._call_soon(trouble)
            self.tell("queued", how="there")

    def starve(self) -> None:
        """Lower the limit, so that the process can open only a few more descriptors."""
        import resource  # not on every system: the examiner has checked

        lowest_free = os.dup(0)
        os.close(lowest_free)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + SPARE_DESCRIPTORS, hard))
        self.tell("starved")


def load(path: str, name: str) -> Any:
    """Run the file as a module and return its `serve`, or None. Raise what it raises."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))  # as if the program were run
    sys.path.append(HOUSE)  # where `reactor` is, if it isn't installed
    sys.argv = [path]
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__ = path
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec")
    exec(code, module.__dict__)  # noqa: S102  (that is our task)
    return getattr(module, "serve", None)


def count_arguments(serve: Callable[..., object]) -> int:
    """Return how many positional arguments `serve` takes: MOST_ARGUMENTS if any number, 1 if it isn't Python code."""
    code = getattr(serve, "__code__", None)
    if code is None:
        return 1
    bound = isinstance(serve, types.MethodType)  # `self` is given already
    return MOST_ARGUMENTS if code.co_flags & CO_VARARGS else int(code.co_argcount) - bound


def count_required(serve: Callable[..., object]) -> int:
    """Return how many positional arguments `serve` requires."""
    if not hasattr(serve, "__code__"):
        return 1
    bound = isinstance(serve, types.MethodType)
    return int(serve.__code__.co_argcount) - bound - len(getattr(serve, "__defaults__", None) or ())


def open_sockets() -> tuple[Observed, socket.socket]:
    """Return a listening TCP socket and a UDP one, on loopback, any port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        listener.setsockopt(socket.SOL_SOCKET, option, KERNEL_BUFFER_BYTES)  # accepted sockets inherit it
    datagrams = socket.socket(type=socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    observed = Observed(listener.family, listener.type, listener.proto, fileno=listener.detach())
    return observed, datagrams


def resident_bytes() -> int | None:
    """Return the resident memory of the process, None where the system doesn't report it."""
    try:
        with open("/proc/self/statm") as numbers:
            return int(numbers.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def naps() -> int | None:
    """Return how often the serving thread has gone to sleep (proc(5): status), None where the system doesn't say.

    Without events, this is how often it woke up to look for some.
    """
    try:
        with open(f"/proc/self/task/{threading.main_thread().native_id}/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    except (OSError, StopIteration):
        return None


def children() -> int:
    """Return the number of child processes, unreaped ones too (proc(5): stat); 0 without a /proc."""
    count = 0
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as stat:  # it may have ended
            count += stat.read().rpartition(b")")[2].split()[1] == b"%d" % os.getpid()
    return count


def set_bounds() -> None:
    """Bound the process's memory and processor time, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_S, PROCESSOR_S))


def trouble() -> None:
    """Raise. This call is queued to see whether the loop survives it."""
    raise RuntimeError("this call raises, on purpose")


async def dialogue(stream: Any) -> None:
    """Ask twice, with a pause, and greet: three steps with a memory, written from top to bottom."""
    await stream.write(b"name? ")
    name = await stream.read()
    await stream.sleep(0.01)
    await stream.write(b"town? ")
    town = await stream.read()
    await stream.write(b"hello " + name + b" of " + town)


async def echo(stream: Any) -> None:
    """Echo: the handler for a `serve` that requires one, when no dialogue is checked."""
    while data := await stream.read():
        await stream.write(data)


def describe(error: BaseException) -> str:
    """Return an exception in one line, with the program's line number if it comes from there."""
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        return f"{what.partition(' (')[0]} (line {error.lineno})"
    here, line, frame = __file__, 0, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename != here:
            line = line or frame.tb_lineno
        frame = frame.tb_next
    return " ".join(what.split()) + (f" (line {line})" if line else "")


def main() -> None:
    """Run as a process. Arguments: the examiner's PORT, FILE, module NAME, idle seconds, most arguments for `serve`."""
    port, path, name, idle_s, most = sys.argv[1:]
    set_bounds()
    with socket.create_connection(("127.0.0.1", int(port))) as wire:
        Host(wire, float(idle_s), int(most)).run(path, name)
