"""Child processes and signals: what a parent knows of a child, and how a child that serves comes to its end.

Law: a child ends by os._exit, so that nothing of it runs in its copy of the parent's frames. README.md has the table of
which signal moves what; Windows has only TERM and INT.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

from echo7.server import EchoServer
from reactor.loop import Reactor


def _existing(*names: str) -> list[signal.Signals]:
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


END_SIGNALS = _existing("SIGTERM", "SIGINT")
COUNTERS_SIGNALS = _existing("SIGUSR1")
RESTART_SIGNALS = _existing("SIGHUP")
CHILD_SIGNALS = _existing("SIGCHLD")
ABORT_SIGNALS = _existing("SIGQUIT")
KILL_SIGNALS = _existing("SIGKILL")

logger = logging.getLogger("echo7")


@contextlib.contextmanager
def signals_held() -> Iterator[set[int]]:
    """Have the kernel hold back every signal inside the block. Yield the mask from before, set again at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield set(before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore(signums: Iterable[int]) -> None:
    """Make the process ignore these signals."""
    for signum in signums:
        signal.signal(signum, signal.SIG_IGN)


class Child:
    """A child process, as its parent knows it. Calls `ended(exit_code)` once, when it is over.

    With a stream from it, it is over when it has been reaped and the stream has been read to its end, in either order:
    SIGCHLD may come before its last words have been read.
    """

    __slots__ = ("_ended", "exit_code", "pid", "stream_open")

    def __init__(self, pid: int, ended: Callable[[int], object], *, stream: bool) -> None:
        self.pid, self.stream_open, self._ended = pid, stream, ended
        # once it has been reaped; -n: by signal n
        self.exit_code: int | None = None

    def reap(self) -> None:
        """Look whether the process has ended (waitpid(2))."""
        if self.exit_code is None:
            try:
                pid, wait_status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                pid, wait_status = self.pid, 0
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(wait_status)
                self._check_over()

    def stream_ended(self) -> None:
        """Note that all it has said has been read."""
        self.stream_open = False
        self._check_over()

    def send(self, *signums: int) -> None:
        """Send it signals, unless it has been reaped: its number may be another process's by now."""
        for signum in signums if self.exit_code is None else ():
            os.kill(self.pid, signum)

    def _check_over(self) -> None:
        if self.exit_code is not None and not self.stream_open:
            self._ended(self.exit_code)


def how_it_ended(exit_code: int) -> str:
    """Put an exit code into words: `with status 3`, `by SIGKILL`."""
    # real-time signals have no names
    names = {int(each): each.name for each in signal.Signals}
    return f"with status {exit_code}" if exit_code >= 0 else f"by {names.get(-exit_code, f'signal {-exit_code}')}"


def run_child(name: str, main: Callable[[], int]) -> NoReturn:
    """Be a child of fork(2) to its end: call `main`, exit with the status that it returns."""
    status = 1
    try:
        status = main()
    except BaseException as error:
        logger.critical("%s failed: %r", name, error, exc_info=error, extra={"event": "failed"})
    finally:
        for handler in logger.handlers:
            handler.flush()
        os._exit(status)


class Drain:
    """How a process that serves but isn't in charge comes to its end: a worker, or a previous generation.

    TERM drains it, once; QUIT aborts it. A second TERM changes nothing, as a whole process group may get one and the
    process in charge passes its own on. ^C and HUP are meant for the process in charge alone.
    """

    __slots__ = ("_begun", "_done", "_reactor", "_server", "_terminated")

    def __init__(
        self, reactor: Reactor, server: EchoServer, done: Callable[[], object], terminated: Callable[[], object] = int
    ) -> None:
        """`done` is called when everything is delivered, `terminated` at the TERM that begins the drain."""
        self._reactor, self._server, self._done, self._terminated = reactor, server, done, terminated
        self._begun = False
        reactor.add_signal_handler(signal.SIGTERM, self.terminate)
        for signum in ABORT_SIGNALS:
            reactor.add_signal_handler(signum, self.abort)

    def run(self, mask: set[int]) -> None:
        """Serve to the end. Called with signals held; `mask` is what stays blocked from now on."""
        ignore([signal.SIGINT, *RESTART_SIGNALS])
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._reactor.run()
        # the exit status is decided: a late signal must not change it
        ignore([signal.SIGTERM])

    def retire(self) -> None:
        """Stop accepting, and serve open connections until their clients close them."""
        self._server.retire(self._done)

    def stop(self) -> None:
        """Stop accepting and reading, and deliver within the drain timeout."""
        if not self._begun:
            self._begun = True
            self._server.stop(self._done)

    def abort(self) -> None:
        """End at once."""
        self.stop()
        self._server.abort()

    def terminate(self) -> None:
        """Drain on TERM."""
        if not self._begun:
            self._terminated()
        self.stop()
