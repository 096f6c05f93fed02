"""A child lets go of its parent's loop, and the parent notices nothing of it."""

from __future__ import annotations

import errno
import os
import selectors
import signal
import socket
import threading
import traceback
import warnings
from collections.abc import Callable

import pytest

from reactor import READ, Connection, Reactor, listen_tcp, open_udp
from reactor.sockets.errors import os_error
from tests.support.basics import PATIENCE_S
from tests.support.clients import tcp_pair
from tests.support.loops import SELECTORS, DatagramRecorder, Recorder, turn_idle, turn_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork(2)")


def in_a_child(body: Callable[[], None]) -> None:
    """Run `body` in a child process to its end; fail with what it has raised."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests' threads, of which the child uses nothing
        pid = os.fork()
    if pid == 0:
        try:
            body()
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as file:
        complaint = file.read()
    os.waitpid(pid, 0)
    assert not complaint, complaint


@pytest.mark.parametrize("selector_class", SELECTORS)
def test_after_the_child_has_gone_the_parents_loop_still_reports_every_socket(
    selector_class: type[selectors.BaseSelector],
) -> None:
    """Story: the child's epoll descriptor is the parent's epoll. A child that "cleaned up" took the sockets away."""
    tcp, udp = Recorder(echo=True), DatagramRecorder(echo=True)
    with Reactor(selector=selector_class()) as reactor:
        address = listen_tcp(reactor, ("127.0.0.1", 0), lambda: tcp).address
        endpoint = open_udp(reactor, ("127.0.0.1", 0), udp)
        with socket.create_connection(address, PATIENCE_S) as client:
            turn_until(reactor, lambda: tcp.connections)
            in_a_child(lambda: disown(reactor))
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


def test_the_child_can_have_a_loop_of_its_own_and_holds_nothing_of_its_parents() -> None:
    """The peer of a socket sees its end when the parent closes it: no copy is left in the child."""
    protocol = Recorder()
    with Reactor() as reactor:
        address = listen_tcp(reactor, ("127.0.0.1", 0), lambda: protocol).address
        reactor.add_signal_handler(signal.SIGTERM, reactor.stop)
        with socket.create_connection(address, PATIENCE_S):
            turn_until(reactor, lambda: protocol.connections)

            def child() -> None:
                before = [handler for handler in reactor.handlers if handler is not reactor._waker]
                with signals_held():
                    disown(reactor)
                assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
                assert signal.set_wakeup_fd(-1) == -1
                devices = {os.stat(handler.fileno()).st_rdev for handler in before}
                assert devices == {os.stat(os.devnull).st_rdev}
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


def test_signals_are_held_back_and_come_in_afterwards() -> None:
    """Else one might find the child with its parent's handlers, or none."""
    came: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda signum, frame: came.append(signum))
    try:
        with signals_held() as mask:
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # another test's thread might take it else
            assert came == []
            assert signal.SIGUSR1 not in mask
        assert came == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_mask_comes_back_as_it_was() -> None:
    """A service may have been started with signals blocked, and means it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        with signals_held() as mask:
            assert mask == {*before, signal.SIGUSR2}
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---------------------------------------------------------------- taking over


@pytest.mark.parametrize("selector_class", SELECTORS)
def test_whoever_takes_over_watches_all_that_was_watched(selector_class: type[selectors.BaseSelector]) -> None:
    """Without a fork: the parent's selector is another one, and is asked nothing any more."""
    with Reactor() as reactor:
        protocol = Recorder(echo=True)
        ours, peer = tcp_pair()
        with peer:
            connection = Connection(reactor, ours, protocol)
            connection.open()
            idle, other = tcp_pair()
            with other:
                resting = Connection(reactor, idle, protocol)
                resting.open()
                reactor.suspend(resting, 0.0)
                before = reactor._selector
                take_over(reactor, selector_class(), busy_poll_s=0.0001)
                assert not before.get_map(), "closed"
                for client in (peer, other):
                    client.sendall(b"hello")
                    client.settimeout(PATIENCE_S)
                turn_until(reactor, lambda: protocol.received == b"hellohello")
                assert [client.recv(10) for client in (peer, other)] == [b"hello"] * 2
                connection.abort()
                resting.abort()


def test_a_selector_that_was_not_inherited_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kqueue isn't, and its number may be another's by now."""

    class Gone(selectors.DefaultSelector):
        def close(self) -> None:
            super().close()
            raise os_error(errno.EBADF)

    with Reactor(selector=Gone()) as reactor:
        take_over(reactor, selectors.DefaultSelector())
        turn_idle(reactor)


def test_a_signal_that_nobody_has_looked_at_waits() -> None:
    with Reactor() as reactor:
        reactor.add_signal_handler(signal.SIGUSR1, int)
        with signals_held():
            assert not signals_waiting(reactor)
        signal.raise_signal(signal.SIGUSR1)
        with signals_held():
            assert signals_waiting(reactor)
        turn_idle(reactor)
        with signals_held():
            assert not signals_waiting(reactor)
