"""The child that doesn't leave.

A callback forks, to run a program or to save a snapshot, and the child is expected to end at once. It doesn't: it
raises, calls sys.exit, returns to the loop, or closes what it has inherited. The parent's epoll instance, sockets and
wake-up pair are the child's too. A naive loop in the child unregisters the parent's sockets, reads its clients' bytes,
sends its pending bytes a second time, or ends its connections, and the parent is deaf.

What prevents it: a forked child changes nothing in the selector, its loop takes no further step, and closing a
connection there closes only the copy.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import warnings
from collections.abc import Callable

import pytest

from reactor import Connection, Limits, Reactor, listen_tcp, open_udp
from reactor.fastpath.splice import MOVES_IN_A_ROW
from reactor.sockets.errors import os_error
from tests.reactor.fastpath.test_splice import LIMITS as SMALL
from tests.reactor.fastpath.test_splice import Rig, moved_in_one_turn
from tests.support.basics import PATIENCE_S
from tests.support.clients import receive_exactly
from tests.support.echo import CAN_SPLICE
from tests.support.faults import EAGAIN, FlakySockets
from tests.support.loops import SELECTORS, DatagramRecorder, Recorder, server_side, turn_idle, turn_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork(2)")
LOCAL = ("127.0.0.1", 0)
LIMITS = Limits(linger_timeout_s=PATIENCE_S)


def abort_handlers(loop: Reactor) -> None:
    for handler in tuple(loop.handlers):
        handler.abort()


def close_handlers(loop: Reactor) -> None:
    for handler in tuple(loop.handlers):
        if isinstance(handler, Connection):
            handler.write(b"")
            handler.close()
        else:
            handler.abort(os_error(5))


def close_twice(loop: Reactor) -> None:
    loop.close()
    loop.close()


def pause(loop: Reactor) -> None:
    """Change the interest of every handler."""
    for handler in tuple(loop.handlers):
        loop.suspend(handler)
        loop.set_interest(handler, 0)
        loop.unregister(handler)


def raise_an_error(loop: Reactor) -> None:
    raise ValueError("in the child")


def run_again(loop: Reactor) -> None:
    with contextlib.suppress(RuntimeError):
        loop.run()


WAYS: dict[str, Callable[[Reactor], object]] = {
    "return": lambda loop: None,
    "sys.exit": lambda loop: sys.exit(0),
    "os._exit": lambda loop: os._exit(0),
    "exception": raise_an_error,
    "abort handlers": abort_handlers,
    "close handlers": close_handlers,
    "close the loop": Reactor.close,
    "close it twice": close_twice,
    "change interests": pause,
    "stop": Reactor.stop,
    "run": run_again,
    "signal": lambda loop: os.kill(os.getpid(), signal.SIGUSR1),
}


def run_and_leave(loop: Reactor) -> None:
    """Run the loop. A child comes back as `way` says, closes the loop as a `with` block does, and exits."""
    parent = os.getpid()
    try:
        loop.run()
    except BaseException:
        if os.getpid() == parent:
            raise
    finally:
        if os.getpid() != parent:
            with contextlib.suppress(BaseException):
                loop.close()
            os._exit(0)


class Forks(Recorder):
    """Echoes, forks in `data_received`, and waits there until the child is gone: then the parent goes on."""

    def __init__(self, loop: Reactor, way: Callable[[Reactor], object]) -> None:
        super().__init__(echo=True)
        self.loop, self.way, self.forked = loop, way, False

    def data_received(self, connection: Connection, data: bytes) -> None:
        super().data_received(connection, data)
        if self.forked:
            return
        self.forked = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other tests' threads, which the child doesn't use
            child = os.fork()
        if child == 0:
            self.way(self.loop)
        else:
            os.waitpid(child, 0)
            self.loop.stop()


@pytest.mark.long
@pytest.mark.parametrize("selector_class", SELECTORS)
@pytest.mark.parametrize("way", WAYS)
def test_parent_serves_all_clients_whatever_its_child_does(
    way: str, selector_class: type[selectors.BaseSelector]
) -> None:
    """The other clients' bytes wait in the same batch, a third client's answer is pending, a fourth one connects."""
    loop = Reactor(selector=selector_class(), sockets=(sockets := FlakySockets()))
    with loop, contextlib.ExitStack() as stack:
        forking = Forks(loop, WAYS[way])
        echo = Recorder(echo=True)
        packets = DatagramRecorder(echo=True)
        heard: list[int] = []
        loop.add_signal_handler(signal.SIGUSR1, lambda: heard.append(1))
        first = stack.enter_context(
            socket.create_connection(listen_tcp(loop, LOCAL, lambda: forking, limits=LIMITS).address, PATIENCE_S)
        )
        server_side(loop, first)
        listener = listen_tcp(loop, LOCAL, lambda: echo, limits=LIMITS)
        endpoint = open_udp(loop, LOCAL, packets)
        second, third = (stack.enter_context(socket.create_connection(listener.address, PATIENCE_S)) for _ in range(2))
        mine, pending = server_side(loop, second), server_side(loop, third)
        sockets.faults.add("send", EAGAIN)
        pending.write(b"pending")
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.settimeout(PATIENCE_S)
        udp.sendto(b"asked", endpoint.address)
        second.sendall(b"to the parent")
        fourth = stack.enter_context(socket.create_connection(listener.address, PATIENCE_S))
        first.sendall(b"fork")
        run_and_leave(loop)

        assert receive_exactly(first, 4) == b"fork"
        turn_until(loop, lambda: mine.bytes_sent == 13 and pending.bytes_sent == 7 and packets.received)
        assert mine.bytes_received == 13
        assert receive_exactly(second, 13) == b"to the parent"
        assert udp.recv(100) == b"asked"
        served = server_side(loop, fourth)
        for client, connection in ((first, None), (second, mine), (third, pending), (fourth, served)):
            client.sendall(b"again")
            if connection is not None:
                turn_until(loop, lambda: connection.bytes_received % 13 == 5)  # noqa: B023 - called at once
            else:
                turn_until(loop, lambda: forking.received == b"forkagain")
        assert receive_exactly(third, 12) == b"pendingagain", "once"
        assert [receive_exactly(client, 5) for client in (first, second, fourth)] == [b"again"] * 3
        signal.raise_signal(signal.SIGUSR1)
        turn_until(loop, lambda: heard)
        for client in (first, second, third, fourth):
            client.shutdown(socket.SHUT_WR)
        turn_until(loop, lambda: echo.kinds().count("lost") == 3 and "lost" in forking.kinds())
        assert [client.recv(1) for client in (first, second, third, fourth)] == [b""] * 4, "FIN, not a reset"


@pytest.mark.parametrize("selector_class", SELECTORS)
def test_child_that_returns_to_the_loop_gets_a_clear_error(selector_class: type[selectors.BaseSelector]) -> None:
    """A timer forks. The child's `run` raises, and its `turn` too; after `close` it only returns."""
    with Reactor(selector=selector_class()) as loop:
        results: list[str] = []
        reading, writing = os.pipe()

        def fork() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                if os.fork() == 0:
                    loop.call_soon(results.append, "child")
                else:
                    loop.stop()

        loop.call_later(0.0, fork)
        parent = os.getpid()
        try:
            loop.run()
        except RuntimeError as error:
            results.append(str(error))
        if os.getpid() != parent:
            try:
                loop.turn()
            except RuntimeError as error:
                results.append(str(error))
            os.write(writing, "|".join(results).encode())
            os._exit(0)
        os.wait()
        told = os.read(reading, 1000).decode()
        os.close(reading)
        os.close(writing)
        assert told.count("a forked child can't run its parent's loop: call close() or reopen_after_fork() first") == 2
        turn_idle(loop)


@pytest.mark.skipif(not CAN_SPLICE, reason="no splice(2) here")
def test_child_that_is_forked_within_a_run_moves_nothing_of_its_parents_client() -> None:
    rig = Rig()
    connection, client = rig.spliced()
    parent = os.getpid()
    reading, writing = os.pipe()

    def fork(which: Connection) -> None:
        rig.protocol.after = bool
        child = os.fork()
        if child:
            os.waitpid(child, 0)
        else:
            rig.protocol.after = lambda which: os.write(writing, b"stolen")

    rig.protocol.after = fork
    try:
        moved = moved_in_one_turn(rig, connection, client)
    finally:
        if os.getpid() != parent:
            os._exit(0)
    os.close(writing)
    assert os.read(reading, 100) == b""
    os.close(reading)
    rig.close()
    assert moved == MOVES_IN_A_ROW * SMALL.bound_bytes
