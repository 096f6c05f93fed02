"""The scenarios of the gallery: each is a small world in which one thing happens.

Law: only the world is made up: which clients come, what the network does, and when. The loop is the real one. The world
is simulated (see `reactor.testing`), so a scenario always gives the same trace. `remake` writes the traces.

The player shows a scenario's docstring and its lesson.
"""

from __future__ import annotations

import functools
import inspect
import io
from collections.abc import Callable
from typing import NamedTuple

from reactor.connection import Connection, StreamProtocol
from reactor.limits import Limits
from reactor.loop import Reactor
from reactor.observe.sinks import JsonLines
from reactor.testing.network import SimulatedNetwork
from reactor.verbs import connect_tcp, listen_tcp

HERE, ELSEWHERE = ("10.0.0.1", 7), ("192.0.2.99", 7)
LATENCY_S, WORK_S = 0.001, 0.0005
REFUSAL = b"That is too long. This service reads no more than the first sixty-four bytes of one message. Goodbye!\n"


class Scenario(NamedTuple):
    """One trace of the gallery."""

    title: str
    lesson: int  # of `reactor.lessons`: the lesson on this subject
    play: Callable[[SimulatedNetwork, Reactor], None]

    @property
    def about(self) -> str:
        """What the trace shows, in a few sentences, and its lesson."""
        seen = " ".join(str(inspect.getdoc(self.play)).split())
        return f"{seen} It belongs to lesson {self.lesson}: python3 -m reactor.lessons {self.lesson}"


class Echo(StreamProtocol):
    """Sends back what it receives (RFC 862)."""

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Send it back."""
        connection.write(data)


class SlowEcho(Echo):
    """An echo that takes time. Between two system calls, a simulated clock stands still otherwise."""

    def __init__(self, network: SimulatedNetwork) -> None:
        self.network = network

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Work for a while, then send it back."""
        self.network.clock.advance(WORK_S)
        super().data_received(connection, data)


class Refusal(StreamProtocol):
    """Refuses every message as too long, and closes while more of it is still coming."""

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Refuse it, and close."""
        connection.write(REFUSAL)
        connection.close()


class OnlyOne(StreamProtocol):
    """Keeps the connection that sends first, aborts all others, and connects to another host."""

    def __init__(self, loop: Reactor) -> None:
        self.loop = loop
        self.connections: list[Connection] = []

    def connection_made(self, connection: Connection) -> None:
        """Remember the connection."""
        self.connections.append(connection)

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Abort all other connections, and connect elsewhere."""
        for other in self.connections:
            if other is not connection:
                other.abort()
        connect_tcp(self.loop, ELSEWHERE, StreamProtocol(), failed=print, timeout_s=5)


def calm_echo(network: SimulatedNetwork, loop: Reactor) -> None:
    """One client sends hello, receives it, and leaves.

    Follow the five bytes: select reports the connection readable, the loop calls it, recv gives the bytes, the protocol
    writes them, and send takes them. All of this happens in one turn.
    """
    listen_tcp(loop, HERE, Echo)
    peer = network.peer(HERE)
    network.call_later(0.005, lambda: peer.send(b"hello"))
    network.call_later(0.010, peer.finish)
    network.run(loop)


def partial_write(network: SimulatedNetwork, loop: Reactor) -> None:
    """Of ten bytes, send takes three.

    The other seven wait in the send buffer, and the connection asks for WRITE: select will report when the kernel has
    room again. No byte leaves the buffer before the kernel has taken it.
    """
    listen_tcp(loop, HERE, Echo)
    network.plan("send", "short", 3)
    network.plan("send", "EAGAIN", after=1)
    network.plan("send", "short", 2, after=2)
    peer = network.peer(HERE)
    peer.send(b"0123456789")
    network.call_later(0.010, peer.finish)
    network.run(loop)


def backpressure(network: SimulatedNetwork, loop: Reactor) -> None:
    """A client sends 4,096 bytes, and reads none of the echo for a quarter of a second.

    Above the high-water mark of 1,024 bytes, its connection stops reading: the kernel's buffers fill, TCP stops the
    client, and our memory stays bounded.
    """
    network.send_buffer_bytes = network.receive_buffer_bytes = 512
    listen_tcp(loop, HERE, Echo, limits=Limits(high_water_bytes=1024, receive_bytes=512))
    peer = network.peer(HERE)
    peer.write_bytes = peer.read_bytes = 512
    peer.pause()
    peer.send(bytes(4096))
    network.call_later(0.250, peer.resume)
    network.call_later(0.300, peer.finish)
    network.run(loop)


def half_close(network: SimulatedNetwork, loop: Reactor) -> None:
    """A FIN says that its sender writes no more. It may still read.

    The client sends its FIN early and reads late. The connection first delivers what waits (DRAINING), then sends its
    own FIN.
    """
    network.send_buffer_bytes = network.receive_buffer_bytes = 64
    listen_tcp(loop, HERE, Echo)
    slow = network.peer(HERE)
    slow.pause()
    slow.send(bytes(160))
    slow.finish()
    network.call_later(0.050, slow.resume)
    network.run(loop)


def lingering(network: SimulatedNetwork, loop: Reactor) -> None:
    """We close while the client still sends: it has a long text, and we refuse its first piece.

    If a socket is closed with unread bytes, or more bytes arrive for it, the kernel sends RST, and the RST destroys the
    part of our answer that is still on its way. So after our FIN we read on until the client's FIN, and throw away what
    comes (LINGERING). The client reads late, and gets the whole answer.
    """
    network.send_buffer_bytes = network.receive_buffer_bytes = 64
    listen_tcp(loop, HERE, Refusal)
    talker = network.peer(HERE)
    talker.pause()
    talker.send(bytes(256))
    network.call_later(0.020, functools.partial(talker.send, bytes(32)))
    network.call_later(0.040, talker.resume)
    network.call_later(0.060, talker.finish)
    network.run(loop)


def emfile(network: SimulatedNetwork, loop: Reactor) -> None:
    """The process has no descriptor left, and accept fails with EMFILE.

    The listener rests for a moment, instead of spinning on a socket that stays ready. New clients wait in the kernel's
    queue, and connected clients are served as before.
    """
    listen_tcp(loop, HERE, Echo)
    early = network.peer(HERE)
    early.send(b"first")

    def run_out() -> None:
        network.plan("accept", "EMFILE", 400)
        for text in (b"second", b"third"):
            late = network.peer(HERE)
            late.send(text)
            network.call_later(0.700, late.finish)

    network.call_later(0.050, run_out)
    network.call_later(0.100, lambda: early.send(b"still here"))
    network.call_later(0.600, early.finish)
    network.run(loop)


def hog_and_ping(network: SimulatedNetwork, loop: Reactor) -> None:
    """One client sends as fast as it can, another sends a few bytes.

    The loop receives once per readiness: the hog waits its turn however much it has sent, and each ping is answered in
    the turn in which it arrives.
    """
    network.send_buffer_bytes = network.receive_buffer_bytes = 8192
    listen_tcp(loop, HERE, lambda: SlowEcho(network), limits=Limits(receive_bytes=1024))
    hog, ping = network.peer(HERE), network.peer(HERE)
    hog.send(bytes(12 * 1024))
    network.call_later(0.002, lambda: ping.send(b"ping 1"))
    network.call_later(0.004, lambda: ping.send(b"ping 2"))
    network.call_later(0.020, hog.finish)
    network.call_later(0.020, ping.finish)
    network.run(loop)


def stale_event(network: SimulatedNetwork, loop: Reactor) -> None:
    """Three connections are ready in one batch, and the first one's callback closes the other two.

    It also opens a new connection, which gets the descriptor number of a closed one. What select reported for that
    number was about the closed connection: it is stale. The loop looks at the handler, not at the number, and skips it.
    """
    only_one = OnlyOne(loop)
    elsewhere = network.peer_server(ELSEWHERE)
    listen_tcp(loop, HERE, lambda: only_one)
    peers = [network.peer(HERE) for _ in range(3)]
    for peer in peers:
        network.call_later(0.010, functools.partial(peer.send, b"it's me"))
    network.call_later(0.030, peers[0].finish)
    network.call_later(0.030, lambda: elsewhere.clients[0].finish())  # noqa: PLW0108 - there is no client yet
    network.run(loop)


def timers_and_io(network: SimulatedNetwork, loop: Reactor) -> None:
    """A timer sets the next one, with no delay, again and again.

    All due timers leave the heap before any is called, so the next one belongs to the next turn: between two of them,
    select finds a client, and it is served. Another timer is cancelled: it is only marked, and leaves the heap later.
    """
    listen_tcp(loop, HERE, Echo)
    peer = network.peer(HERE)
    left = iter(range(5))

    def again() -> None:
        network.clock.advance(0.001)  # the time that its work takes
        if next(left, None) is not None:
            loop.call_later(0, again)

    deadline = loop.call_later(0.050, peer.reset)
    loop.call_later(0.010, again)
    loop.call_later(0.011, deadline.cancel)
    network.call_later(0.012, lambda: peer.send(b"and what about me?"))
    network.call_later(0.060, peer.finish)
    network.run(loop)


SCENARIOS = {  # in the best order to look at them
    "calm-echo": Scenario("A calm echo", 4, calm_echo),
    "partial-write": Scenario("A partial write", 5, partial_write),
    "backpressure": Scenario("Backpressure", 6, backpressure),
    "half-close": Scenario("Half-close", 7, half_close),
    "lingering": Scenario("Lingering", 12, lingering),
    "emfile": Scenario("No descriptor left", 12, emfile),
    "hog-and-ping": Scenario("A hog and a ping", 10, hog_and_ping),
    "stale-event": Scenario("A stale event avoided", 12, stale_event),
    "timers-and-io": Scenario("Timers against I/O", 9, timers_and_io),
}


def record(scenario: Scenario) -> bytes:
    """Play a scenario; return its trace as JSON Lines."""
    network = SimulatedNetwork(0, script="", latency_s=LATENCY_S)
    memory = io.BytesIO()
    sink = JsonLines(memory, title=scenario.title, about=scenario.about, clock="simulated")
    with network.reactor(observer=sink) as loop:
        scenario.play(network, loop)
        sink.flush()
        return memory.getvalue()
