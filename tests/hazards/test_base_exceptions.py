"""The exception that isn't an error.

KeyboardInterrupt, SystemExit and GeneratorExit don't belong to one handler: they must leave `run`. A program may catch
one and call `run` again, at a prompt, in a notebook or in a debugger. A naive loop has collected the due timers, ready
handlers and the held datagrams in local variables by then, and forgets them all.

What prevents it: everything that waits stays in the loop's own tables until it is called, and the steps after a
callback are taken whatever it raises.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from reactor import (
    READ,
    Connection,
    Datagram,
    DatagramProtocol,
    Limits,
    Listener,
    Reactor,
    StreamProtocol,
    connect_tcp,
    listen_tcp,
    open_udp,
)
from reactor.fastpath.batch import BatchProtocol, DatagramBatch, batch_on
from reactor.sockets.errors import os_error
from reactor.sockets.opening import bind_tcp, bind_udp
from tests.support.basics import PATIENCE_S, open_descriptors
from tests.support.clients import receive_exactly
from tests.support.faults import EAGAIN, FlakySockets, adopt_socket

EXCEPTIONS = [KeyboardInterrupt, SystemExit, GeneratorExit]
LOCAL = ("127.0.0.1", 0)
SMALL = Limits(high_water_bytes=64, receive_bytes=1024, linger_timeout_s=PATIENCE_S)
BLOB = bytes(range(256)) * 400


class Trap:
    """Raises once, in the callback of this name."""

    def __init__(self, where: str, exception: type[BaseException]) -> None:
        self.where, self.exception = where, exception
        self.calls: list[str] = []
        self.armed = False
        self.act: Callable[[str], object] = id  # what each callback does besides

    def __call__(self, name: str) -> None:
        self.calls.append(name)
        self.act(name)
        if self.armed and name == self.where and self.calls.count(name) == 1:
            raise self.exception(name)


class Stream(StreamProtocol):
    """Echoes, and calls the trap at the end of each callback."""

    def __init__(self, trap: Callable[[str], object] = id) -> None:
        self.trap = trap
        self.connections: list[Connection] = []
        self.lost = 0

    def connection_made(self, connection: Connection) -> None:
        self.connections.append(connection)
        self.trap("connection_made")

    def data_received(self, connection: Connection, data: bytes) -> None:
        connection.write(data)
        self.trap("data_received")

    def saturated(self, connection: Connection) -> None:
        self.trap("saturated")

    def drained(self, connection: Connection) -> None:
        self.trap("drained")

    def eof_received(self, connection: Connection) -> None:
        self.trap("eof_received")

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        self.lost += 1
        self.trap("connection_lost")


class Packets(DatagramProtocol):
    """The same for a Datagram. It refuses "no"."""

    def __init__(self, trap: Callable[[str], object] = id) -> None:
        self.trap = trap

    def datagram_received(self, endpoint: Datagram, data: bytes, source: Any, path: bytes) -> None:
        if data == b"no":
            endpoint.drop("refused", source)
        else:
            endpoint.send(data, source, path)
        self.trap("datagram_received")

    def error_received(self, endpoint: Datagram, error: OSError) -> None:
        self.trap("error_received")

    def dropped(self, endpoint: Datagram, reason: str, peer: Any) -> None:
        self.trap("dropped")

    def endpoint_lost(self, endpoint: Datagram, error: Exception | None) -> None:
        self.trap("endpoint_lost")


class Batches(BatchProtocol):
    """The same for a DatagramBatch."""

    def __init__(self, trap: Callable[[str], object] = id) -> None:
        self.trap = trap

    def batch_received(self, endpoint: Any, batch: Any, count: int) -> dict[int, str]:
        self.trap("batch_received")
        return {index: "refused" for index in range(count) if batch.payload(index) == b"no"}

    def dropped(self, endpoint: Any, reason: str, peer: Any, count: int = 1) -> None:
        self.trap("batch_dropped")

    def endpoint_lost(self, endpoint: Any, error: Exception | None) -> None:
        self.trap("batch_lost")


class Own:
    """A handler without a class of the library."""

    def __init__(self, reactor: Reactor, trap: Trap) -> None:
        self.interest, self.closed = 0, False
        self.reactor, self.trap = reactor, trap
        self.near, self.far = socket.socketpair()
        self.fileno, self.detach = self.near.fileno, self.near.detach
        reactor.register(self)
        reactor.set_interest(self, READ)

    def on_event(self, mask: int) -> None:
        self.near.recv(100)
        self.trap("on_event")

    def abort(self, error: Exception | None = None) -> None:
        self.closed = True
        self.reactor.unregister(self, error)
        self.near.close()
        self.far.close()


class Rig:
    """A loop with one handler of each kind under test, and a neighbour of each kind that must not notice."""

    def __init__(self, where: str, exception: type[BaseException]) -> None:
        self.trap = Trap(where, exception)
        self.sockets = FlakySockets()
        self.reactor = loop = Reactor(sockets=self.sockets)
        self.waker = next(iter(loop.handlers))
        self.stream = Stream(self.trap)
        self.listener = Listener(loop, listening(self.sockets), self.factory, SMALL, lambda *_: self.trap("lost"))
        self.datagram = open_udp(loop, LOCAL, Packets(self.trap))
        self.batch = self.batch_of(Batches(self.trap))
        self.own = Own(loop, self.trap)
        self.neighbour = listen_tcp(Reactor_without_faults(loop), LOCAL, Stream)
        self.stack = contextlib.ExitStack()
        self.client = self.connected(self.listener.address)
        self.other = self.connected(self.neighbour.address)
        self.udp = self.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.udp.settimeout(PATIENCE_S)
        self.fired: list[int] = []

    def batch_of(self, protocol: BatchProtocol) -> DatagramBatch:
        plain = bind_udp(socket, LOCAL)
        made = batch_on(self.reactor, adopt_socket(plain, self.sockets.faults), protocol)
        assert made is not None
        return made

    def factory(self) -> Stream:
        self.trap("factory")
        return self.stream

    def connected(self, address: Any) -> socket.socket:
        return self.stack.enter_context(socket.create_connection(address, PATIENCE_S))

    def run_until(self, condition: Callable[[], object]) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end_s, f"still false: {condition}"
            pause = self.reactor.call_later(0.002, self.reactor.stop)
            try:
                self.reactor.run()
            finally:
                pause.cancel()

    def ask(self, endpoint: Datagram | DatagramBatch, *payloads: bytes) -> list[bytes]:
        """Send datagrams in one turn; return an answer for each that isn't "no"."""
        before = endpoint.datagrams_sent + sum(endpoint.drops.values())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.settimeout(PATIENCE_S)
            for payload in payloads:
                udp.sendto(payload, endpoint.address)
            self.run_until(lambda: endpoint.datagrams_sent + sum(endpoint.drops.values()) >= before + len(payloads))
            return [udp.recv(100) for payload in payloads if payload != b"no"]

    def assert_nothing_else_was_lost(self) -> None:
        """Check each neighbour, to the last byte, and everything that the raising callback's own handler still owes."""
        self.run_until(lambda: len(self.fired) == 6)
        assert sorted(self.fired) == list(range(6))
        self.assert_neighbours_go_on()
        for endpoint in (self.datagram, self.batch):
            self.assert_answers(endpoint)
        for handler in self.reactor.handlers:
            assert handler.interest & READ, f"{handler} is deaf"

    def assert_neighbours_go_on(self) -> None:
        """Check another connection to its last byte, and another listener."""
        self.other.setblocking(False)
        sent, received = 0, bytearray()

        def pump() -> bool:
            nonlocal sent
            with contextlib.suppress(BlockingIOError):
                sent += self.other.send(BLOB[sent:])
            with contextlib.suppress(BlockingIOError):
                received.extend(self.other.recv(1 << 16))
            return len(received) == len(BLOB)

        self.run_until(pump)
        assert received == BLOB
        newcomer = self.connected(self.neighbour.address)
        newcomer.sendall(b"and me?")
        connections = [h for h in self.reactor.handlers if isinstance(h, Connection)]
        self.run_until(lambda: len([h for h in self.reactor.handlers if isinstance(h, Connection)]) > len(connections))
        self.run_until(lambda: any(h.bytes_sent == 7 for h in self.reactor.handlers if isinstance(h, Connection)))
        assert receive_exactly(newcomer, 7) == b"and me?"

    def assert_answers(self, endpoint: Datagram | DatagramBatch) -> None:
        if not endpoint.closed:
            assert self.ask(endpoint, b"one", b"no", b"two") == [b"one", b"two"]
        answered_too = endpoint.drops.get("callback", 0) if endpoint is self.datagram else 0
        counted = endpoint.datagrams_sent + sum(endpoint.drops.values())
        assert endpoint.datagrams_received == counted - answered_too

    def close(self) -> None:
        self.reactor.close()
        self.stack.close()


def listening(sockets: FlakySockets) -> socket.socket:
    sock = bind_tcp(sockets, LOCAL)
    sock.listen()
    return sock


def Reactor_without_faults(reactor: Reactor) -> Any:
    """Return the same loop, whose new sockets are plain ones."""

    class Same:
        sockets = socket

        def __getattr__(self, name: str) -> Any:
            return getattr(reactor, name)

    return Same()


def send(rig: Rig, data: bytes = b"hello") -> None:
    rig.client.sendall(data)


def fill_the_send_buffer(rig: Rig) -> None:
    rig.sockets.faults.add("send", EAGAIN)
    rig.client.sendall(b"later")


def finish(rig: Rig) -> None:
    send(rig)
    rig.client.shutdown(socket.SHUT_WR)


def one(endpoint: str, *payloads: bytes) -> Callable[[Rig], None]:
    def ask(rig: Rig) -> None:
        for payload in payloads:
            rig.udp.sendto(payload, getattr(rig, endpoint).address)

    return ask


def refuse_to_send(rig: Rig) -> None:
    rig.sockets.faults.add("sendto", os_error(errno.EPERM))
    one("datagram", b"x")(rig)


def refuse_a_run(rig: Rig) -> None:
    rig.sockets.faults.add("sendmmsg", os_error(errno.EPERM))
    one("batch", *(b"%d" % number for number in range(9)))(rig)


def refuse_to_connect(rig: Rig) -> None:
    with socket.socket() as unused:
        unused.bind(LOCAL)
        connect_tcp(rig.reactor, unused.getsockname(), StreamProtocol(), lambda error: rig.trap("failed"))


def connect(rig: Rig) -> None:
    connect_tcp(Reactor_without_faults(rig.reactor), rig.neighbour.address, Stream(rig.trap), print)


def break_the_listener(rig: Rig) -> None:
    rig.sockets.faults.add("accept", os_error(errno.EBADF))
    rig.connected(rig.listener.address)


def raise_a_signal(rig: Rig) -> None:
    rig.reactor.add_signal_handler(signal.SIGUSR1, lambda: rig.trap("signal"))
    signal.raise_signal(signal.SIGUSR1)


# callback → what makes the loop call it
CALLBACKS: dict[str, Callable[[Rig], object]] = {
    "connection_made": lambda rig: None,
    "connection_made ": connect,  # of an outgoing connection
    "factory": lambda rig: None,
    "data_received": send,
    "saturated": lambda rig: send(rig, bytes(1024)),
    "drained": fill_the_send_buffer,
    "eof_received": finish,
    "connection_lost": finish,
    "lost": break_the_listener,
    "failed": refuse_to_connect,
    "datagram_received": one("datagram", b"a", b"b", b"c"),
    "error_received": refuse_to_send,
    "dropped": one("datagram", b"no", b"no", b"b"),
    "dropped ": refuse_to_send,
    "endpoint_lost": lambda rig: rig.datagram.close(),
    "batch_received": one("batch", b"a", b"b", b"c"),
    "batch_dropped": one("batch", b"a", b"no", b"b", b"no", b"c"),
    "batch_dropped ": refuse_a_run,
    "batch_lost": lambda rig: rig.batch.close(),
    "timer": lambda rig: rig.reactor.call_later(0.0, rig.trap, "timer"),
    "call": lambda rig: rig.reactor.call_soon(rig.trap, "call"),
    "thread": lambda rig: rig.reactor.call_soon_threadsafe(rig.trap, "thread"),
    "signal": raise_a_signal,
    "on_event": lambda rig: rig.own.far.send(b"x"),
}


@pytest.fixture
def made() -> Iterator[list[Rig]]:
    before = open_descriptors()
    rigs: list[Rig] = []
    yield rigs
    for rig in rigs:
        rig.close()
    assert open_descriptors() == before


@pytest.mark.skipif(sys.platform != "linux", reason="DatagramBatch needs Linux")
@pytest.mark.parametrize("exception", EXCEPTIONS)
@pytest.mark.parametrize("callback", CALLBACKS)
def test_base_exception_leaves_run_and_nothing_else_is_lost(
    callback: str, exception: type[BaseException], made: list[Rig], caplog: pytest.LogCaptureFixture
) -> None:
    """Three due timers and three queued calls, half of them after the one that raises, and every neighbour go on."""
    rig = Rig(callback.strip(), exception)
    made.append(rig)
    if callback not in ("connection_made", "factory"):
        rig.run_until(lambda: rig.stream.connections)
    rig.trap.calls.clear()
    rig.trap.armed = True
    for number in range(3):
        rig.reactor.call_later(0.0, rig.fired.append, number)
    CALLBACKS[callback](rig)
    for number in range(3, 6):
        rig.reactor.call_later(0.0, rig.fired.append, number)
    rig.reactor.suspend(rig.waker, 0.01)
    with pytest.raises(exception):
        rig.run_until(lambda: False)
    rig.assert_nothing_else_was_lost()
    if callback in (
        "connection_made",
        "eof_received",
        "connection_lost",
        "lost",
        "failed",
        "endpoint_lost",
        "batch_lost",
    ):
        assert rig.trap.calls.count(callback) == 1
    assert not [record for record in caplog.records if record.exc_info], "it isn't an error of a callback"


@pytest.mark.parametrize("exception", EXCEPTIONS)
def test_connection_goes_on_after_a_base_exception_in_any_of_its_callbacks(
    exception: type[BaseException], made: list[Rig]
) -> None:
    """Every callback of one connection raises once. All bytes come back, then FIN."""
    rig = Rig("", exception)
    made.append(rig)
    names = ["connection_made", "data_received", "saturated", "drained", "eof_received", "connection_lost"]
    stumbled: list[str] = []

    def trap(name: str) -> None:
        if name not in stumbled:
            stumbled.append(name)
            raise exception(name)

    rig.stream.trap = trap
    rig.sockets.faults.add("send", EAGAIN)
    rig.client.sendall(bytes(2048))
    rig.client.shutdown(socket.SHUT_WR)
    for _ in range(len(names) - 1):
        with pytest.raises(exception):
            rig.run_until(lambda: False)
    assert receive_exactly(rig.client, 2048) == bytes(2048)
    assert rig.client.recv(1) == b"", "FIN"
    with pytest.raises(exception):
        rig.run_until(lambda: False)
    assert sorted(stumbled) == sorted(names)
    assert rig.stream.lost == 1
    assert rig.stream.connections[0].closed


@pytest.mark.skipif(sys.platform != "linux", reason="DatagramBatch needs Linux")
@pytest.mark.parametrize("exception", EXCEPTIONS)
def test_rest_of_a_batch_is_sent_although_dropped_raises(exception: type[BaseException], made: list[Rig]) -> None:
    """Each refused datagram raises, in the report of what was refused and in the middle of sending."""
    rig = Rig("batch_dropped", exception)
    made.append(rig)
    rig.trap.armed = True
    rig.sockets.faults.add("sendmmsg", None, os_error(errno.EPERM), None, EAGAIN)
    payloads = [b"no" if number in (0, 7, 8, 30) else b"%d" % number for number in range(40)]
    one("batch", *payloads)(rig)
    with pytest.raises(exception):
        rig.run_until(lambda: False)
    rig.run_until(lambda: rig.batch.datagrams_sent == 35)
    answers = {rig.udp.recv(100) for _ in range(35)}
    assert answers < set(payloads)
    assert rig.batch.drops == {"refused": 4, "send_EPERM": 1}
    assert rig.batch.pending_bytes == 0
    assert rig.ask(rig.batch, bytes(90)) == [bytes(90)], "the slots are as long as before"


@pytest.mark.parametrize("exception", EXCEPTIONS)
def test_close_that_was_cut_short_goes_on_at_the_second_call(
    exception: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """Every handler is released and every protocol gets its last callback, although each callback raises once."""
    before = open_descriptors()
    reactor = Reactor(sockets=(sockets := FlakySockets()))
    traps = [Trap("connection_lost", exception), Trap("endpoint_lost", exception), Trap("dropped", exception)]
    with contextlib.ExitStack() as stack:
        stream = Stream(traps[0])
        address = listen_tcp(reactor, LOCAL, lambda: stream).address
        for _ in range(2):
            stack.enter_context(socket.create_connection(address, PATIENCE_S))
        endpoint = open_udp(reactor, LOCAL, Packets(traps[1]))
        holding = open_udp(reactor, LOCAL, Packets(traps[2]))
        sockets.faults.always["sendto"] = EAGAIN
        holding.send(b"held", address)
        reactor.call_later(5.0, reactor.stop)
        while len(stream.connections) < 2:
            reactor.turn()
        reactor.add_signal_handler(signal.SIGUSR1, int)
        for trap in traps:
            trap.armed = True
        raised = 0
        for _ in range(10):
            try:
                reactor.close()
                break
            except exception:
                raised += 1
        assert raised == 3
        assert stream.lost == 2
        assert traps[1].calls == ["endpoint_lost"]
        assert traps[2].calls == ["dropped", "endpoint_lost"]
        assert not reactor.handlers
        assert endpoint.closed
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert open_descriptors() == before
    assert caplog.records == []
