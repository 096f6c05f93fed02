"""SIGHUP: a fresh start without an outage. The program, its options and its file are read anew; the process stays.

    1  check    a child reads the new configuration with the new program; a mistake ends the matter here
    2  leave    to the elder, a child that has everything we have: from here on it serves our callers, and new ones too.
                With workers no child is needed for that: the workers are the elders
    3  exec     this process, whose number systemd or a shell knows, becomes the new image; the sockets stay open
    4  serve    the new image serves on the same sockets, and lets go of the leash on which the elders wait
    5  retire   they take no one new, and each ends with its last caller, however long that takes

Law: until exec(2) has succeeded, nothing has changed; after it, nothing was lost. There is no moment in which nobody
serves. What was bound stays bound, so addresses, workers and user can't change here.

All of this is imported at the start: when it is needed, the files may be those of another version.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from echo7.logs import log
from echo7.process.handover import VARIABLE, Handover
from reactor.connection import Connection, StreamProtocol
from reactor.loop import Reactor
from reactor.sockets.opening import Socket, closed_on_error

CHECK = "ECHO7_CHECK"  # what can't change, for the child that checks
CHECK_PATIENCE_S = 30.0
MOST_SAID_BYTES = 64 * 1024  # by that child
PREPARATION_PATIENCE_S = 10.0  # the loop stands still meanwhile; a thousand connections take milliseconds
PREPARED, STAY = b"+", b"-"

logger = logging.getLogger("echo7")


class RestartError(Exception):
    """One line: why the old image goes on."""


def command() -> list[str]:
    """Return how this process was started."""
    return [sys.executable, *sys.orig_argv[1:]]


def described(fixed: Mapping[str, str]) -> str:
    """Return what can't change in the form in which a child is told."""
    return "\n".join(f"{option}={value}" for option, value in fixed.items())


def changed(before: str, fixed: Mapping[str, str]) -> str | None:
    """Return what has changed though it can't, in words, or None."""
    for line in before.split("\n"):
        option, _, value = line.partition("=")
        now = fixed.get(option, value)
        if now != value:
            words = f"{value or 'the default'} and is now {now or 'the default'}"
            return f"{option} was {words}: that needs a restart, SIGHUP can't change it"
    return None


class Check(StreamProtocol):
    """A child that reads the new configuration; `over(why_not)` is called once, with None if all makes sense."""

    __slots__ = ("_child", "_over", "_said", "_timer", "_told_all")

    def __init__(self, reactor: Reactor, fixed: Mapping[str, str], over: Callable[[str | None], None]) -> None:
        """Start it. Raise OSError."""
        self._over, self._said, self._told_all = over, b"", False
        ours, theirs = reactor.sockets.socketpair()
        with theirs, closed_on_error(ours):
            ours.setblocking(False)
            words, environment = command(), {**os.environ, CHECK: described(fixed)}
            files = (
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 2),
            )
            self._child: int | None = os.posix_spawn(words[0], words, environment, file_actions=files)
        self._timer = reactor.call_later(CHECK_PATIENCE_S, self.kill)
        Connection(reactor, ours, self).open()

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Keep the end of what it says."""
        self._said = (self._said + data)[-MOST_SAID_BYTES:]

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """It has said all."""
        self._told_all = True
        self.reap()

    def reap(self) -> None:
        """Look whether it has ended. Called once it may have."""
        if not self._told_all or self._child is None:
            return
        pid, wait_status = os.waitpid(self._child, os.WNOHANG)
        if pid:
            self._child = None
            self._timer.cancel()
            self._over(self._verdict(os.waitstatus_to_exitcode(wait_status)))

    def kill(self) -> None:
        """It takes too long, or isn't needed any more."""
        if self._child is not None:
            os.kill(self._child, signal.SIGKILL)

    def _verdict(self, code: int) -> str | None:
        if code == 0:
            return None
        last_words = self._said.decode(errors="replace").strip().splitlines()[-1:]
        how = f"by signal {-code}" if code < 0 else f"with status {code}"
        return last_words[0] if last_words else f"the check of the configuration ended {how}"


class Elders:
    """Children that serve what an earlier image had accepted. Some were forked by that, and are ours all the same."""

    def __init__(self, pids: Sequence[int] = (), leashes: Sequence[int] = ()) -> None:
        self.pids, self.leashes = list(pids), list(leashes)
        for descriptor in leashes:
            os.set_inheritable(descriptor, False)

    def release(self) -> None:
        """Have them take no one new."""
        while self.leashes:
            os.close(self.leashes.pop())

    def reap(self) -> None:
        """Forget those that have ended."""
        for pid in tuple(self.pids):
            try:
                ended, wait_status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                ended, wait_status = pid, 0
            if ended:
                self.pids.remove(pid)
                self._tell(pid, os.waitstatus_to_exitcode(wait_status))

    def signal(self, signum: int) -> None:
        """Send a signal to each."""
        for pid in self.pids:
            os.kill(pid, signum)

    def _tell(self, pid: int, code: int) -> None:
        if code:
            text = f"elder {pid} ended with {code}: the callers that it had are lost"
            log.event(logger, logging.WARNING, "elder_ended", text, pid=pid, exit_code=code)


class Elder:
    """The child that goes on with all that its parent has, as the parent knows it."""

    def __init__(self, reactor: Reactor, live: Callable[[Socket, Socket], NoReturn]) -> None:
        """Fork it, and wait until it is prepared. Raise OSError, RestartError; then there is none.

        Called with signals held. In the child, `live(start, leash)` is called.
        """
        with contextlib.ExitStack() as mine, contextlib.ExitStack() as others:
            self._start, start = reactor.sockets.socketpair()
            mine.enter_context(self._start), others.enter_context(start)
            self.leash, leash = reactor.sockets.socketpair()
            mine.enter_context(self.leash), others.enter_context(leash)
            self.pid = os.fork()
            if self.pid == 0:  # pragma: no cover - in a child the measuring begins with the next call
                self._start.close()
                self.leash.close()
                live(start, leash)
            others.close()
            self._start.settimeout(PREPARATION_PATIENCE_S)
            answer = self._answer()
            if answer != PREPARED:
                os.waitpid(self.pid, 0)
                why = answer.decode(errors="replace") or "it has ended"
                raise RestartError(f"the process that shall go on with the callers can't: {why}")
            mine.pop_all()

    def _answer(self) -> bytes:
        try:
            return self._start.recv(MOST_SAID_BYTES)
        except OSError:
            os.kill(self.pid, signal.SIGKILL)
            return b"it doesn't answer"

    def dismiss(self) -> None:
        """It isn't needed: it ends, and has touched nothing."""
        with self._start, self.leash:
            with contextlib.suppress(OSError):  # EPIPE: it has died of something else
                self._start.send(STAY)
            os.waitpid(self.pid, 0)


def become(handover: Handover, variables: Mapping[str, str]) -> NoReturn:
    """Be the new image. Raise OSError; then nothing has changed."""
    descriptors = [descriptor for descriptor, _ in handover.sockets] + list(handover.leashes)
    words = command()
    try:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        os.execve(words[0], words, {**os.environ, **variables, VARIABLE: str(handover)})  # noqa: S606 - what we are ourselves
    finally:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
