"""From SIGHUP to the moment when this process may become the new program: a child checks the configuration.

README.md has the next steps, in "A restart". Law: until exec(2) has succeeded, nothing has changed. The sockets stay
bound, so addresses, workers and user can't change.

A service imports this module at its start: later, the files may be those of another version.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from echo7.logs import log
from echo7.process.child import Children, Stream, how_it_ended
from echo7.process.handover import command
from reactor.loop import Reactor
from reactor.sockets.opening import closed_on_error

if TYPE_CHECKING:
    from echo7.process.notify import Notifier

# tells the check child the settings that can't change
CHECK = "ECHO7_CHECK"
CHECK_PATIENCE_S = 30.0
OUTPUT_KEPT_BYTES = 64 * 1024

logger = logging.getLogger("echo7")


def described(fixed: Mapping[str, str]) -> str:
    """Return the settings that can't change, as the check child gets them."""
    return "\n".join(f"{option}={value}" for option, value in fixed.items())


def changed(before: str, fixed: Mapping[str, str]) -> str | None:
    """Return in words which setting has changed that can't change, or None."""
    for line in before.split("\n"):
        option, _, value = line.partition("=")
        now = fixed.get(option, value)
        if now != value:
            words = f"{value or 'the default'} and is now {now or 'the default'}"
            return f"{option} was {words}: that needs a restart, SIGHUP can't change it"
    return None


class NoNotifier:
    """In place of a Notifier when systemd hasn't set NOTIFY_SOCKET."""

    variables: Mapping[str, str] = MappingProxyType({})

    def _say_nothing(self) -> None:
        pass

    ready = reloading = stopping = watch = close = _say_nothing


class Check:
    """A child that reads the new configuration. Calls `over(why_not)` once, with None if the configuration is good."""

    def __init__(
        self,
        reactor: Reactor,
        children: Children,
        words: list[str],
        fixed: Mapping[str, str],
        over: Callable[[str | None], object],
    ) -> None:
        """Start it. Raise OSError."""
        self._over, self._output = over, b""
        ours, theirs = reactor.sockets.socketpair()
        with theirs, closed_on_error(ours):
            files = (
                # the child opens /dev/null there, if there is one
                (os.POSIX_SPAWN_CLOSE, 0),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 2),
            )
            pid = os.posix_spawn(words[0], words, {**os.environ, CHECK: described(fixed)}, file_actions=files)
        self._child = children.add(pid, self._ended, stream=True)
        self._timer = reactor.call_later(CHECK_PATIENCE_S, self.kill)
        self._output_end = Stream(reactor, ours, self._child.stream_ended, self._received).connection

    @property
    def running(self) -> bool:
        """Whether the child hasn't been reaped."""
        return self._child.exit_code is None

    def kill(self) -> None:
        """Kill the child: it takes too long, or the service stops."""
        self._child.send(signal.SIGKILL)
        # a descendant may hold the other end for ever
        self._output_end.abort()

    def _received(self, data: bytes) -> None:
        self._output = (self._output + data)[-OUTPUT_KEPT_BYTES:]

    def _ended(self, exit_code: int) -> None:
        self._timer.cancel()
        last_line = self._output.decode(errors="replace").strip().splitlines()[-1:]
        why_not = last_line[0] if last_line else f"the check of the configuration ended {how_it_ended(exit_code)}"
        self._over(why_not if exit_code else None)


class Restart:
    """A restart, from the request until it is `due`, or refused.

    A request during a check starts another check after it: the first may have read half of a change.
    """

    def __init__(
        self, reactor: Reactor, children: Children, fixed: Mapping[str, str], notifier: Notifier | NoNotifier
    ) -> None:
        self._reactor, self._children, self._fixed, self._notifier = reactor, children, fixed, notifier
        self._check: Check | None = None
        self._asked_again = self._cancelled = False
        self.due = False

    def ask(self) -> None:
        """Begin, on SIGHUP. A restart that is due will read the configuration anyway."""
        if self._cancelled or self.due:
            return
        if self._check is not None:
            self._asked_again = True
            return
        log.event(logger, logging.INFO, "restarting", "restart requested (SIGHUP): checking configuration")
        self._notifier.reloading()
        self._begin_check()

    def cancel(self) -> None:
        """Forget the restart: the service stops."""
        self._cancelled, self.due = True, False
        if self._check is not None:
            self._check.kill()

    def refuse(self, why: str) -> None:
        """Log why this generation keeps serving."""
        self.due = False
        log.event(logger, logging.ERROR, "restart_refused", f"restart refused, still serving: {why}")
        self._notifier.ready()

    def _begin_check(self) -> None:
        try:
            self._check = Check(self._reactor, self._children, command(), self._fixed, self._checked)
        except OSError as error:
            self.refuse(f"cannot run a check of the configuration: {error.strerror}")

    def _checked(self, why_not: str | None) -> None:
        self._check = None
        if self._cancelled:
            return
        if self._asked_again:
            self._asked_again = False
            self._begin_check()
        elif why_not is not None:
            self.refuse(why_not)
        else:
            self.due = True
            self._reactor.stop()
