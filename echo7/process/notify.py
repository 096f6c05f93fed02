"""Tell systemd that the service is ready, reloads, stops, and is alive (sd_notify(3)).

Law: the loop sends messages and never waits. A timer sends "alive", so a stuck loop sends nothing. A message that finds
no room waits for a moment. When messages can't be sent, one line says so, and the service goes on.

The variables are for one process, so they are removed; `variables` keeps them for the next generation.
"""

from __future__ import annotations

import collections
import logging
import os
import socket
import time
from collections.abc import MutableMapping

from echo7.logs import log
from reactor.loop import Reactor
from reactor.sockets.errors import WOULD_BLOCK
from reactor.sockets.opening import Socket
from reactor.timers import Timer

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
RETRY_S = 0.05
# messages; systemd reads at once, or not at all
MOST_WAITING = 8
LONGEST_USEC = 2**63

logger = logging.getLogger("echo7")


class Notifier:
    """A datagram socket to the service manager that started this process."""

    def __init__(self, reactor: Reactor, environment: MutableMapping[str, str] = os.environ) -> None:
        self.variables = {name: environment.pop(name) for name in VARIABLES if name in environment}
        self._reactor = reactor
        self._address = self.variables["NOTIFY_SOCKET"]
        self._waiting: collections.deque[str] = collections.deque(maxlen=MOST_WAITING)
        self._timers: dict[str, Timer] = {}
        self._complained = False
        self._watchdog_s = self._find_watchdog_s()
        self._socket: Socket | None = None
        if not self._address.startswith(("/", "@")):
            self._complain("it is neither a path nor '@' and a name")
            return
        try:
            self._socket = reactor.sockets.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        except OSError as error:
            self._complain(error.strerror)
        else:
            self._socket.setblocking(False)

    def ready(self) -> None:
        """Tell systemd that the service is ready (again)."""
        self._tell("READY=1")
        self.watch()

    def watch(self) -> None:
        """From now on, tell systemd that the loop is alive, if it has set a watchdog."""
        if self._watchdog_s and "alive" not in self._timers:
            self._alive()

    def reloading(self) -> None:
        """Tell systemd that a restart begins. `ready` must come next."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Tell systemd that the service stops."""
        self._tell("STOPPING=1")

    def close(self) -> None:
        """Send no more: another process notifies systemd now."""
        for timer in self._timers.values():
            timer.cancel()
        self._waiting.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _find_watchdog_s(self) -> float:
        """Return the interval of "alive" messages in seconds: half of the watchdog's time, or 0 for never."""
        usec, pid = self.variables.get("WATCHDOG_USEC"), self.variables.get("WATCHDOG_PID")
        if usec is None or pid not in (None, str(os.getpid())):
            return 0.0
        if usec.isascii() and usec.isdigit() and len(usec) < 20 and 0 < int(usec) < LONGEST_USEC:
            return int(usec) / 2e6
        text = f"WATCHDOG_USEC is {usec!r}, not a number of microseconds: let systemd set it, or unset it"
        log.event(logger, logging.WARNING, "notify_failed", f"{text}; serving without a watchdog")
        return 0.0

    def _alive(self) -> None:
        self._timers["alive"] = self._reactor.call_later(self._watchdog_s, self._alive)
        if not self._waiting:
            self._tell("WATCHDOG=1")

    def _tell(self, message: str) -> None:
        self._waiting.append(message)
        # otherwise a retry is due, which keeps the order
        if len(self._waiting) == 1:
            self._flush()

    def _flush(self) -> None:
        if self._socket is None:
            return
        address = self._address
        target: str | bytes = b"\0" + os.fsencode(address[1:]) if address.startswith("@") else address
        while self._waiting:
            try:
                self._socket.sendto(self._waiting[0].encode(), target)
            except WOULD_BLOCK:
                self._timers["retry"] = self._reactor.call_later(RETRY_S, self._flush)
                return
            # ValueError: a NUL in the path
            except (OSError, ValueError) as error:
                self._complain(getattr(error, "strerror", None) or str(error))
            self._waiting.popleft()

    def _complain(self, why: str | None) -> None:
        if not self._complained:
            self._complained = True
            text = f"cannot notify {self._address!r} (NOTIFY_SOCKET): {why}; serving without it"
            log.event(logger, logging.WARNING, "notify_failed", f"{text}. Let systemd set it, or unset it")
