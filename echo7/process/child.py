"""Child processes and signals: what a parent knows of a child, and how a child that serves ends.

Law: a child ends by os._exit, so that nothing runs in its copy of the parent's frames. README.md has a table of the
signals; Windows has only TERM and INT.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

from echo7.process import StartError
from echo7.server import EchoServer
from reactor.connection import Connection, StreamProtocol
from reactor.loop import Reactor
from reactor.sockets.opening import Socket


def _existing(*names: str) -> list[signal.Signals]:
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


END_SIGNALS = _existing("SIGTERM", "SIGINT")
COUNTERS_SIGNALS = _existing("SIGUSR1")
RESTART_SIGNALS = _existing("SIGHUP")
CHILD_SIGNALS = _existing("SIGCHLD")
ABORT_SIGNALS = _existing("SIGQUIT")
KILL_SIGNALS = _existing("SIGKILL")
# in a container, the service is often process 1 of its pid namespace (pid_namespaces(7))
INIT = 1
# the exit status of a child that raised
CHILD_FAILED = 1

logger = logging.getLogger("echo7")


@contextlib.contextmanager
def signals_held() -> Iterator[set[int]]:
    """Make the kernel hold back every signal inside the block. Yield the mask from before, which the end restores."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield set(before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore(signums: Iterable[int]) -> None:
    """Make the process ignore these signals.

    They are held meanwhile: Python raises OSError for one that arrives while its handler is being replaced.
    """
    with signals_held() if hasattr(signal, "pthread_sigmask") else contextlib.nullcontext():
        for signum in signums:
            signal.signal(signum, signal.SIG_IGN)


class Stream(StreamProtocol):
    """One end of a socket pair between two processes, on a loop. Calls `received(data)`, and `ended()` once, last."""

    def __init__(
        self, reactor: Reactor, sock: Socket, ended: Callable[[], object], received: Callable[[bytes], object] = len
    ) -> None:
        self._ended, self._received = ended, received
        sock.setblocking(False)
        self.connection = Connection(reactor, sock, self)
        self.connection.open()

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Pass data to the owner."""
        self._received(data)

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Tell the owner; the error makes no difference."""
        self._ended()


class Child:
    """A child process, as its parent knows it. Calls `ended(exit_code)` once.

    A child with a stream to its parent has ended when it has been reaped and the stream has been read to its end, in
    either order: SIGCHLD may come before its last words have been read.
    """

    def __init__(self, pid: int, ended: Callable[[int], object], *, stream: bool) -> None:
        self.pid, self.stream_open, self._ended = pid, stream, ended
        # None: not reaped yet; -n: ended by signal n
        self.exit_code: int | None = None

    def reap(self) -> None:
        """Reap the process if it has ended (waitpid(2)). Not called again after that."""
        try:
            pid, wait_status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pid, wait_status = self.pid, 0
        if pid:
            self.exit_code = os.waitstatus_to_exitcode(wait_status)
            self._check_ended()

    def stream_ended(self) -> None:
        """Note that everything from it has been read."""
        self.stream_open = False
        self._check_ended()

    def send(self, *signums: int) -> None:
        """Send signals, unless it has been reaped: its pid may belong to another process by now."""
        for signum in signums if self.exit_code is None else ():
            os.kill(self.pid, signum)

    def _check_ended(self) -> None:
        if self.exit_code is not None and not self.stream_open:
            self._ended(self.exit_code)


class Children:
    """All children of the process in charge. As process 1 it reaps orphans of others too: no other process would."""

    def __init__(self) -> None:
        # those that haven't been reaped
        self._live: list[Child] = []

    def add(self, pid: int, ended: Callable[[int], object], *, stream: bool) -> Child:
        """Return a new child, to be reaped."""
        self._live.append(Child(pid, ended, stream=stream))
        return self._live[-1]

    def reap(self) -> None:
        """Reap those that have ended."""
        for child in list(self._live):
            child.reap()
        self._live = [child for child in self._live if child.exit_code is None]
        if os.getpid() == INIT:
            self._reap_orphans({child.pid for child in self._live})

    def _reap_orphans(self, known: set[int]) -> None:
        look = os.WEXITED | os.WNOHANG | os.WNOWAIT
        with contextlib.suppress(ChildProcessError):
            # a known one has just ended: its SIGCHLD brings us back
            while (found := os.waitid(os.P_ALL, 0, look)) is not None and found.si_pid not in known:
                os.waitpid(found.si_pid, 0)


def how_it_ended(exit_code: int) -> str:
    """Put an exit code into words: `with status 3`, `by SIGKILL`."""
    # real-time signals have no names
    names = {int(each): each.name for each in signal.Signals}
    return f"with status {exit_code}" if exit_code >= 0 else f"by {names.get(-exit_code, f'signal {-exit_code}')}"


def forked(name: str, main: Callable[[], int]) -> int:
    """Fork, and return the child's pid, in the parent only. The child exits with the status that `main` returns.

    Whatever `main`, the log or a signal handler raises, nothing of the parent's frames runs in the child. No other
    code calls fork(2). Raise OSError if there is no child.
    """
    pid = os.fork()
    if pid == 0:  # pragma: no cover - in a child the measuring begins with the next call
        try:
            _run_child(name, main)
        finally:
            os._exit(CHILD_FAILED)
    return pid


def _run_child(name: str, main: Callable[[], int]) -> NoReturn:
    status = CHILD_FAILED
    try:
        status = main()
    except StartError as error:
        logger.error("%s", error, extra={"event": "start_failed"})
    except BaseException as error:
        logger.critical("%s failed: %r", name, error, exc_info=error, extra={"event": "failed"})
    finally:
        try:
            for handler in logger.handlers:
                handler.flush()
        finally:
            os._exit(status)


class Drain:
    """How a process that serves but isn't in charge ends: a worker, or a previous generation.

    TERM drains it, once; QUIT aborts it. A second TERM changes nothing: a whole process group may get one, and the
    process in charge passes its own on. ^C and HUP are for the process in charge only. `done` is called when everything
    is delivered, `terminated` at the TERM that begins the drain.
    """

    def __init__(
        self, reactor: Reactor, server: EchoServer, done: Callable[[], object], terminated: Callable[[], object] = int
    ) -> None:
        self._reactor, self._server, self._done, self._terminated = reactor, server, done, terminated
        reactor.add_signal_handler(signal.SIGTERM, self.terminate)
        for signum in ABORT_SIGNALS:
            reactor.add_signal_handler(signum, self.abort)

    def run(self, mask: set[int], begin: Callable[[], object]) -> None:
        """Serve to the end. Called with signals held; `mask` is the signal mask from now on.

        `begin`, which may restrict this process, is called before anything is served.
        """
        ignore([signal.SIGINT, *RESTART_SIGNALS])
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # not called here: the loop first looks at its waker's descriptor (fstat(2)), which restrictions refuse
        self._reactor.run(begin)
        # the exit status is decided: a late signal must not change it
        ignore([signal.SIGTERM])

    def retire(self) -> None:
        """Stop accepting, and serve open connections until their clients close them."""
        self._server.retire(self._done)

    def stop(self) -> None:
        """Stop accepting and reading, and deliver within the drain timeout."""
        if not self._server.stopping:
            self._server.stop(self._done)

    def abort(self) -> None:
        """End at once."""
        self.stop()
        self._server.abort()

    def terminate(self) -> None:
        """Drain on TERM."""
        if not self._server.stopping:
            self._terminated()
        self.stop()
