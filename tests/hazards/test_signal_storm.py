"""The storm of signals.

A naive loop gets its signals as bytes through a pipe: the C handler writes one byte for each, the loop reads them back.
The pipe is finite. A hundred thousand SIGUSR1 (from a broken monitoring script) fill it, and the one SIGTERM among them
is lost, so the service can't be stopped. Or the write blocks in the signal handler for ever.

What prevents it: signals are remembered in memory, each once, and the byte says only "look" (see `reactor.signals`). A
full wake-up socket is a readable one: the loop wakes and finds everything.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from reactor import Reactor
from tests.support.basics import PATIENCE_S
from tests.support.daemon import EchoProcess
from tests.support.loops import turn_idle, turn_until

if not hasattr(signal, "SIGUSR1"):
    pytest.skip("POSIX signals", allow_module_level=True)

STORM = 100_000
SMALL_STORM = 40_000
SENDER = """
import os, signal, sys
pid, count, last = map(int, sys.argv[1:])
for number in range(count):
    os.kill(pid, signal.SIGUSR1)
    os.kill(pid, signal.SIGWINCH)
    if number == count // 8:
        os.kill(pid, signal.SIGTERM)
os.kill(pid, last)
"""


@contextlib.contextmanager
def storm(pid: int, count: int, last: int = 0) -> Iterator[None]:
    """Run a process that sends `pid` twice `count` signals, a SIGTERM among them, and `last` at the end.

    The block ends when that process has ended. Wait for `pid` only after the block, so that its number isn't reused.
    """
    with subprocess.Popen([sys.executable, "-c", SENDER, str(pid), str(count), str(int(last))]) as sender:
        try:
            yield
            assert sender.wait(PATIENCE_S) == 0
        finally:
            sender.kill()


class Signals:
    """Counts the signals that the loop delivers, by number."""

    def __init__(self, reactor: Reactor, *signums: int) -> None:
        self.counts = dict.fromkeys(signums, 0)
        for signum in signums:
            reactor.add_signal_handler(signum, lambda signum=signum: self.count(signum))  # type: ignore[misc]

    def count(self, signum: int) -> None:
        self.counts[signum] += 1


@pytest.mark.long
def test_signal_is_not_lost_in_a_storm_of_others() -> None:
    """'Signals are not lost under a storm of 10^5 other signals' (promise 19): SIGTERM comes once."""
    with Reactor() as reactor:
        signals = Signals(reactor, signal.SIGUSR1, signal.SIGWINCH, signal.SIGTERM, signal.SIGUSR2)
        with storm(os.getpid(), STORM, signal.SIGUSR2):
            turn_until(reactor, lambda: signals.counts[signal.SIGUSR2], turns=sys.maxsize)
        turn_idle(reactor)
        assert signals.counts[signal.SIGTERM] == 1
        assert signals.counts[signal.SIGUSR2] == 1
        assert 1 <= signals.counts[signal.SIGUSR1] <= STORM
        assert 1 <= signals.counts[signal.SIGWINCH] <= STORM


def test_full_wake_up_socket_loses_no_signal(capfd: pytest.CaptureFixture[str]) -> None:
    """'The wake-up socket overflowing is harmless' (promise 19): later signals are delivered too."""
    with Reactor() as reactor:
        signals = Signals(reactor, signal.SIGUSR1, signal.SIGWINCH, signal.SIGTERM)
        for _ in range(10_000):  # the loop doesn't turn meanwhile; a socket pair holds a few hundred bytes
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGWINCH)
        turn_idle(reactor, 3)
        assert signals.counts == {signal.SIGUSR1: 1, signal.SIGWINCH: 1, signal.SIGTERM: 1}
        turn_idle(reactor, 300)
        assert sum(signals.counts.values()) == 3, "each was delivered once"
        signal.raise_signal(signal.SIGTERM)
        turn_idle(reactor, 3)
        assert signals.counts[signal.SIGTERM] == 2
    assert capfd.readouterr().err == ""


def test_full_wake_up_socket_loses_no_call_from_a_thread() -> None:
    """Calls handed in from other threads all run, in the order of each thread, however many wake-ups are lost."""
    called: list[tuple[int, int]] = []
    threads, calls = 4, 5_000
    with Reactor() as reactor:

        def hand_in(thread: int) -> None:
            for number in range(calls):
                reactor.call_soon_threadsafe(called.append, (thread, number))

        workers = [threading.Thread(target=hand_in, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(PATIENCE_S)
        turn_until(reactor, lambda: len(called) == threads * calls, turns=100)
        for thread in range(threads):
            assert [number for caller, number in called if caller == thread] == list(range(calls))
        reactor.call_soon_threadsafe(called.append, (0, -1))
        turn_until(reactor, lambda: called[-1] == (0, -1), turns=100)


def echo_until_the_end(client: socket.socket) -> int:
    """Ping until the server closes the connection; return the number of answers."""
    echoed = 0
    with contextlib.suppress(OSError):  # once SIGTERM has come, it reads no more
        while True:
            client.sendall(b"%08d" % echoed)
            answer = client.recv(8)
            if not answer:
                break
            assert answer == b"%08d" % echoed
            echoed += 1
    return echoed


def test_daemon_echoes_through_a_signal_storm_and_stops() -> None:
    """End to end: SIGUSR1 logs the counters, SIGWINCH is ignored, and SIGTERM among them stops the daemon.

    The storm goes on until the process has ended, and the exit status is 0.
    """
    with EchoProcess("--host", "127.0.0.1") as daemon:
        assert daemon.process.stderr is not None
        reader = threading.Thread(target=daemon.process.stderr.read)  # its log must not fill the pipe
        reader.start()
        client = daemon.connect()
        with storm(daemon.process.pid, SMALL_STORM):
            with client:
                assert echo_until_the_end(client) > 0, "nothing was echoed in the storm"
            reader.join(PATIENCE_S)
        assert daemon.process.wait(PATIENCE_S) == 0
