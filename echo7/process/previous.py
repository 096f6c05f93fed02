"""The process that goes on with the callers when the service has started afresh (see `restart`).

Law: nobody notices. It has all that the old image had, on a loop of its own, and serves on: newcomers until the new
image serves them, callers until they end. There is no deadline: who is echoed now may be for days. TERM makes it end in
order within the drain timeout, as it would have then; QUIT at once. The new image passes both on when it ends itself.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from echo7 import assembly
from echo7.logs import log, report
from echo7.process.restart import PREPARED
from echo7.server import EchoServer
from reactor.connection import Connection, StreamProtocol
from reactor.loop import Reactor
from reactor.sockets.opening import Socket

if TYPE_CHECKING:
    from echo7.settings import Settings

logger = logging.getLogger("echo7")


def prepare(reactor: Reactor, config: Settings, start: Socket, let_go: Callable[[], object]) -> bool:
    """Get ready and say so, changing nothing that is shared. Return whether the old image has gone, and all is ours.

    `let_go` closes this process's copies of what the new image binds anew.
    """
    try:
        reactor.reopen_after_fork(assembly.new_selector(config))
    except OSError as error:
        start.send((error.strerror or str(error)).encode())
        return False
    let_go()
    start.send(PREPARED)
    with start:
        return not start.recv(1)  # exec(2) has closed the other end


class Elder(StreamProtocol):
    """One run of such a process."""

    def __init__(self, reactor: Reactor, server: EchoServer, handler: log.StderrHandler) -> None:
        self._reactor, self._server, self._handler = reactor, server, handler
        self._ending = False

    def start(self, leash: Socket) -> None:
        """Take the signals over, and wait for the new image."""
        for signum in (signal.SIGINT, signal.SIGHUP):  # they are meant for the new image, ^C too
            signal.signal(signum, signal.SIG_IGN)
        self._reactor.add_signal_handler(signal.SIGTERM, self._end)
        self._reactor.add_signal_handler(signal.SIGQUIT, self._abort)
        self._reactor.add_signal_handler(signal.SIGUSR1, lambda: self.log_counters("counters"))
        leash.setblocking(False)
        Connection(self._reactor, leash, self).open()

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """The new image serves. (Or it has failed, and will be started by whoever looks after it.)"""
        self._server.retire(self._reactor.stop)

    def log_counters(self, name: str) -> None:
        """Log what the old image has done, this process included."""
        report.log_counters(name, self._server.counters, self._handler.dropped)

    def _end(self) -> None:
        if not self._ending:  # the second one is the same, as it came to all and was passed on
            self._ending = True
            self._server.stop(self._reactor.stop)

    def _abort(self) -> None:
        self._server.abort()
        self._reactor.stop()


def run(reactor: Reactor, server: EchoServer, config: Settings, leash: Socket) -> int:
    """Serve to the end; return the exit status. Called with signals held."""
    handler = log.set_up(config.log_level, config.log_format, elder=True)
    elder = Elder(reactor, server, handler)
    elder.start(leash)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    reactor.run()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elder.log_counters("drained")
    return os.EX_OK
