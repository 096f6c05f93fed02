"""A child abandons or reopens its parent's loop without any effect on the parent."""

from __future__ import annotations

import errno
import os
import selectors
import signal
import socket
import stat
import traceback
import warnings
from collections.abc import Callable

import pytest

from echo7.process.child import forked
from reactor import READ, Connection, Reactor, listen_tcp, open_udp
from reactor.doors import Observer
from reactor.observe.trace import Event, Trace
from reactor.observe.watch import Watch
from reactor.signals import Waker
from reactor.sockets.errors import os_error
from tests.support.basics import PATIENCE_S
from tests.support.clients import tcp_pair
from tests.support.loops import SELECTORS, DatagramRecorder, Recorder, RecordingSelector, turn_idle, turn_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork(2)")


def in_a_child(body: Callable[[], None]) -> None:
    """Run `body` in a child process. Fail if it raises."""
    reading, writing = os.pipe()

    def main() -> int:
        try:
            body()
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        return 0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests' threads, which the child doesn't use
        pid = forked("the child", main)
    os.close(writing)
    with open(reading) as file:
        complaint = file.read()
    os.waitpid(pid, 0)
    assert not complaint, complaint


@pytest.mark.parametrize("selector_class", SELECTORS)
def test_parents_loop_reports_every_socket_after_the_child_exited(selector_class: type[selectors.BaseSelector]) -> None:
    """Story: the child's epoll descriptor is the parent's. A child's clean-up unregistered the parent's sockets."""
    tcp, udp = Recorder(echo=True), DatagramRecorder(echo=True)
    with Reactor(selector=selector_class()) as reactor:
        address = listen_tcp(reactor, ("127.0.0.1", 0), lambda: tcp).address
        endpoint = open_udp(reactor, ("127.0.0.1", 0), udp)
        with socket.create_connection(address, PATIENCE_S) as client:
            turn_until(reactor, lambda: tcp.connections)
            in_a_child(reactor.close)
            client.sendall(b"before")
            turn_until(reactor, lambda: tcp.received == b"before")
            assert client.recv(10) == b"before", "neither was it reset"
            with socket.create_connection(address, PATIENCE_S):
                turn_until(reactor, lambda: len(tcp.connections) == 2)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE_S)
            client.sendto(b"asked", endpoint.address)
            turn_until(reactor, lambda: udp.received)
            assert client.recv(10) == b"asked"
        called: list[int] = []
        reactor.call_soon_threadsafe(called.append, 1)
        reactor.turn()
        assert called == [1]


def test_child_that_closes_the_loop_can_have_its_own_and_holds_nothing() -> None:
    """A peer sees FIN when the parent closes its socket: no copy is left in the child."""
    protocol = Recorder()
    with Reactor() as reactor:
        address = listen_tcp(reactor, ("127.0.0.1", 0), lambda: protocol).address
        reactor.add_signal_handler(signal.SIGTERM, reactor.stop)
        with socket.create_connection(address, PATIENCE_S):
            turn_until(reactor, lambda: protocol.connections)

            def child() -> None:
                before = [handler for handler in reactor.handlers if not isinstance(handler, Waker)]
                reactor.close()
                assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
                assert signal.set_wakeup_fd(-1) == -1
                assert all(stat.S_ISFIFO(os.fstat(handler.fileno()).st_mode) for handler in before)
                heard = Recorder()
                with Reactor() as own:
                    other = listen_tcp(own, ("127.0.0.1", 0), lambda: heard)
                    own.add_signal_handler(signal.SIGTERM, own.stop)
                    os.kill(os.getpid(), signal.SIGTERM)
                    own.run()
                    with socket.create_connection(other.address, PATIENCE_S):
                        turn_until(own, lambda: heard.connections)

            in_a_child(child)
            assert all(handler.interest == READ for handler in reactor.handlers)


# ---------------------------------------------------------------- the child goes on with the loop


@pytest.mark.parametrize("selector_class", SELECTORS)
@pytest.mark.parametrize(
    "observer", [Observer, lambda: Trace(id), lambda: Watch(0.0, Trace(id))], ids=["plain", "traced", "watched"]
)
def test_reopened_loop_watches_every_handler(
    selector_class: type[selectors.BaseSelector], observer: Callable[[], Observer]
) -> None:
    """Without a fork: the inherited selector is closed and not used again. A loop can be reopened twice."""
    inherited, protocol = RecordingSelector(), Recorder(echo=True)
    pairs = [tcp_pair() for _ in range(2)]
    with Reactor(selector=inherited, observer=observer()) as reactor:
        connections = [Connection(reactor, ours, protocol) for ours, _ in pairs]
        for connection in connections:
            connection.open()
        reactor.suspend(connections[1], 0.0)
        for number in (1, 2):
            reactor.reopen_after_fork(selector_class())
            assert not inherited.get_map(), "closed"
            for _, client in pairs:
                client.sendall(b"hello")
                client.settimeout(PATIENCE_S)
            turn_until(reactor, lambda: len(protocol.received) >= 10 * number)  # noqa: B023 - called at once
            assert [client.recv(10) for _, client in pairs] == [b"hello"] * 2
        for connection in connections:
            connection.abort()
    for _, client in pairs:
        client.close()


def test_selector_that_was_not_inherited_is_not_closed_twice() -> None:
    """A kqueue isn't inherited, and its number may have been used again."""

    class Gone(selectors.DefaultSelector):
        def close(self) -> None:
            super().close()
            raise os_error(errno.EBADF)

    with Reactor(selector=Gone()) as reactor:
        reactor.reopen_after_fork(selectors.DefaultSelector())
        turn_idle(reactor)


# ---------------------------------------------------------------- observers and signals


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("part", [Reactor.close, lambda loop: loop.reopen_after_fork(selectors.DefaultSelector())])
def test_after_a_fork_only_the_parent_is_observed(part: Callable[[Reactor], object], watched: bool) -> None:
    """Both processes have the trace's file."""
    events: list[Event] = []
    trace = Trace(events.append)
    with Reactor(observer=Watch(inner=trace) if watched else trace) as loop:
        loop.call_later(60, int)

        def child() -> None:
            part(loop)
            before = len(events)
            if not loop.closed:
                loop.call_later(0, int)
                loop.call_soon(int)
                loop.turn()
            assert len(events) == before

        in_a_child(child)
        before = len(events)
        turn_idle(loop, 1)
        assert len(events) > before


def test_signal_is_pending_until_the_loop_handles_it() -> None:
    """exec(2) would lose it."""
    with Reactor() as reactor:
        reactor.add_signal_handler(signal.SIGUSR1, int)
        assert not reactor.snapshot().signals_pending
        signal.raise_signal(signal.SIGUSR1)
        assert reactor.snapshot().signals_pending
        turn_idle(reactor)
        assert not reactor.snapshot().signals_pending
