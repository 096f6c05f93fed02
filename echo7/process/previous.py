"""The previous generation: the process that keeps serving open connections after a restart.

A single process forks it from itself just before exec(2). (With workers, the old workers are the previous generation.)
It has everything that its parent had, on a loop of its own. It accepts until the new generation serves and closes its
end of the parent watch, a socket pair. The previous generation has no deadline, because a client may stay for days.
TERM and QUIT end it (see `child.Drain`); a service that stops passes both on.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from echo7 import assembly
from echo7.logs import log, report
from echo7.process import child
from echo7.process.sandbox import Sandbox
from echo7.server import EchoServer
from reactor.loop import Reactor
from reactor.sockets.factory import SocketFactory
from reactor.sockets.opening import Socket

if TYPE_CHECKING:
    from echo7.settings import Settings

# the parent's loop stands still meanwhile; a thousand connections take milliseconds
PREPARATION_PATIENCE_S = 10.0
ANSWER_BYTES = 64 * 1024
PREPARED, CANCEL = b"+", b"-"

logger = logging.getLogger("echo7")


class RestartError(Exception):
    """One line: why the old generation serves on."""


class PreviousGenerations:
    """The children that serve connections of earlier generations, and our ends of their parent watches."""

    def __init__(self, children: child.Children) -> None:
        self._every, self._children = children, dict[int, child.Child]()
        self.watches: list[int] = []

    @property
    def pids(self) -> list[int]:
        """The processes that haven't ended."""
        return list(self._children)

    def take_over(self, pids: Sequence[int], watches: Sequence[int]) -> None:
        """Look after these, on behalf of the generation that forked them."""
        for pid in pids:
            self._children[pid] = self._every.add(pid, functools.partial(self._ended, pid), stream=False)
        for descriptor in watches:
            os.set_inheritable(descriptor, False)
            self.watches.append(descriptor)

    def release(self) -> None:
        """End their parent watches: they stop accepting."""
        while self.watches:
            os.close(self.watches.pop())

    def send(self, *signums: int) -> None:
        """Send signals to each."""
        for each in self._children.values():
            each.send(*signums)

    def _ended(self, pid: int, exit_code: int) -> None:
        del self._children[pid]
        if exit_code:
            text = f"previous generation {pid} ended {child.how_it_ended(exit_code)}: its connections are lost"
            log.event(logger, logging.WARNING, "previous_ended", text, pid=pid, exit_code=exit_code)


# ---- the parent forks it


@contextlib.contextmanager
def forked(sockets: SocketFactory, main: Callable[[Socket, Socket], int]) -> Iterator[tuple[list[int], list[int]]]:
    """Fork the previous generation; inside the block it is prepared and waits for our exec(2). Signals must be held.

    Yield its pid and our end of its parent watch. In the child, `main(start, watch)` is called. If the block raises,
    the child ends, and has changed nothing. Raise OSError, RestartError.
    """
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        start, its_start = map(contextlib.ExitStack.enter_context, (ours, theirs), sockets.socketpair())
        watch, its_watch = map(contextlib.ExitStack.enter_context, (ours, theirs), sockets.socketpair())

        def serve() -> int:
            ours.close()
            return main(its_start, its_watch)

        pid = child.forked("the previous generation", serve)
        theirs.close()
        try:
            _expect_prepared(pid, start)
            yield [pid], [watch.fileno()]
        except BaseException:
            # EPIPE: it has ended already
            with contextlib.suppress(OSError):
                start.send(CANCEL)
            os.waitpid(pid, 0)
            raise


def _expect_prepared(pid: int, start: Socket) -> None:
    start.settimeout(PREPARATION_PATIENCE_S)
    try:
        answer = start.recv(ANSWER_BYTES)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        answer = b"it doesn't answer"
    if answer != PREPARED:
        why = answer.decode(errors="replace") or "it has ended"
        raise RestartError(f"the process for the open connections cannot serve on: {why}")


# ---- the child serves on


def serve_on(
    reactor: Reactor, server: EchoServer, settings: Settings, let_go: Callable[[], object], start: Socket, watch: Socket
) -> int:
    """Run the previous generation to its end; return the exit status. Called with signals held.

    `let_go` closes this process's copies of what the new generation will open again.
    """
    try:
        reactor.reopen_after_fork(assembly.new_selector(settings))
    except OSError as error:
        start.send((error.strerror or str(error)).encode())
        return 1
    let_go()
    start.send(PREPARED)
    with start:
        # exec(2) closes the other end; until then, no shared state may change
        if start.recv(1):
            return 1
    handler = log.set_up(settings.log_level, settings.log_format, previous=True)
    log_counters = report.counters_logger(server, handler)
    for signum in [signal.SIGINT, *child.RESTART_SIGNALS, *child.CHILD_SIGNALS]:
        reactor.remove_signal_handler(signum)
    for signum in child.COUNTERS_SIGNALS:
        reactor.add_signal_handler(signum, functools.partial(log_counters, "counters"))
    drain = child.Drain(reactor, server, reactor.stop)
    child.Stream(reactor, watch, drain.retire)
    drain.run(set(), Sandbox(settings.sandbox).restrict_serving)
    log_counters("drained")
    return os.EX_OK
