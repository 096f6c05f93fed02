"""A supervisor among workers that do anything, in any order: hang, crash, send garbage, fall silent, come back."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7.logs import log
from echo7.metrics.snapshot import Snapshot
from echo7.process.service import Service
from echo7.process.slot import LOOK_INTERVAL_S
from echo7.process.supervisor import Supervisor
from echo7.server import Counters
from echo7.sockets import reuseport
from reactor import Reactor
from reactor.sockets.opening import Socket
from tests.echo7.process.test_supervisor import CONFIG, FIRST_PID, HOSTILE
from tests.support.loops import ManualClock, turn_idle

pytestmark = pytest.mark.skipif(not reuseport.AVAILABLE, reason="Linux alone balances")
TURNS_TO_RECOVER = 40  # with a look each; the longest back-off is 10 s
REPORT = {"say": "counters", "round": 0, "leaving": 0, "snapshot": Snapshot(Counters(connections=1)).as_message()}
LINES = [b'{"say": "ready"}\n', json.dumps(REPORT).encode() + b"\n"]


class Errors(logging.Handler):
    """Keeps the events of level error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.events: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.events.append(f"{getattr(record, 'event', '')}: {record.getMessage()}")


class World:
    """A supervisor on a clock turned by hand. Its workers are pids with a socket; nothing is forked or killed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.clock, self.socket = ManualClock(), socket.socket
        # pid → the worker's end of its channel; pid → its wait status, until it is reaped
        self.alive: dict[int, Socket] = {}
        self.ended: dict[int, int] = {}
        self._next, self._theirs = FIRST_PID, socket.socket()
        patch.setattr(os, "fork", self.fork)
        patch.setattr(os, "waitpid", lambda pid, options: (pid, self.ended.pop(pid)) if pid in self.ended else (0, 0))
        patch.setattr(os, "kill", self.kill)
        self.reactor = Reactor(clock=self.clock, sockets=self)
        self.service = Service(self.reactor, CONFIG, log.StderrHandler(), 1024)
        self.service.start()
        assert isinstance(self.service.work, Supervisor)
        self.supervisor = self.service.work
        self.turn()

    def socketpair(self) -> tuple[Socket, Socket]:
        ours, theirs = socket.socketpair()
        self._theirs.close()
        self._theirs = theirs.dup()
        return ours, theirs

    def fork(self) -> int:
        self._next += 1
        self.alive[self._next], self._theirs = self._theirs, socket.socket()
        self.alive[self._next].setblocking(False)
        return self._next

    def kill(self, pid: int, signum: int) -> None:
        assert pid in self.alive or pid in self.ended, "a pid that was reaped may belong to another process"
        if pid in self.alive:
            self.alive.pop(pid).close()
            self.ended[pid] = signum

    def say(self, which: int, data: bytes) -> None:
        if self.alive:
            sock = self.alive[sorted(self.alive)[which % len(self.alive)]]
            with contextlib.suppress(BlockingIOError, ConnectionError):
                sock.send(data)

    def crash(self, which: int) -> None:
        if self.alive:
            self.kill(sorted(self.alive)[which % len(self.alive)], signal.SIGSEGV)

    def pass_time(self, seconds: float = LOOK_INTERVAL_S) -> None:
        self.clock.advance(seconds)
        self.turn()

    def turn(self) -> None:
        turn_idle(self.reactor)
        self.service.children.reap()
        self.supervisor.fork_due()
        turn_idle(self.reactor)

    def recover(self) -> None:
        """Let all workers of now hang for ever, and every new one serve as it should."""
        hanging, begun = set(self.alive), set(self.alive)
        for _ in range(TURNS_TO_RECOVER):
            for pid in sorted(self.alive.keys() - hanging):
                with contextlib.suppress(ConnectionError):
                    self.alive[pid].send(LINES[1] if pid in begun else LINES[0])
            begun.update(self.alive)
            self.pass_time()

    def close(self) -> None:
        self.reactor.close()
        self.supervisor.stop(int)
        for sock in [*self.alive.values(), self._theirs]:
            sock.close()


@contextlib.contextmanager
def world() -> Iterator[tuple[World, Errors]]:
    errors = Errors()
    with pytest.MonkeyPatch.context() as patch:
        loggers = [logging.getLogger(name) for name in ("echo7", "reactor")]
        for logger in loggers:
            patch.setattr(logger, "handlers", [errors])
            patch.setattr(logger, "propagate", False)
        made = World(patch)
        with contextlib.closing(made):
            yield made, errors


which = st.integers(0, 1)
steps = st.one_of(
    st.tuples(st.just("say"), which, st.sampled_from([*LINES, *(data[:4096] for data in HOSTILE.values())])),
    st.tuples(st.just("say"), which, st.binary(max_size=50)),
    st.tuples(st.just("crash"), which),
    st.tuples(st.just("pass_time"), st.sampled_from([0.05, 1.0, 3600.0])),
    st.tuples(st.just("ask")),
)


@pytest.mark.long
@given(st.lists(steps, max_size=40))
def test_no_sequence_of_worker_faults_raises_and_all_serve_in_the_end(taken: list[tuple[str, ...]]) -> None:
    with world() as (it, errors):
        for name, *arguments in taken:
            if name == "ask":
                it.supervisor.ask_for_counters()
            else:
                getattr(it, name)(*arguments)
            it.turn()
            assert len(it.alive) <= 2
        hanging = set(it.alive)
        it.recover()
        assert not hanging & set(it.alive)
        gave_up = [event for event in errors.events if event.startswith("failed: every worker has ended")]
        assert errors.events == gave_up
        assert it.supervisor.problem == ("stopping" if gave_up else "")
