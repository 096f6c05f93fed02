"""The peer that resets.

A client can reset at any point: before it is accepted, with data half read, while output is pending, after its own FIN,
while the server lingers. Each shows in another way: an error from accept, recv, send or shutdown, ENOTCONN from
getpeername, a hang-up without an error. A naive server catches the one that its author has met. The next one stops it,
leaves a descriptor open for ever, or calls the protocol twice.

What prevents it: an error of one peer never stops the service, and every connection ends in the same order: unregister,
close, notify, once.
"""

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7.server import EchoServer
from reactor import Connection, Limits, Reactor, listen_tcp
from tests.support.basics import PATIENCE_S, open_descriptors
from tests.support.clients import drain, receive_exactly, reset
from tests.support.loops import Recorder, server_side, turn_idle, turn_until

LIMITS = Limits(linger_timeout_s=3600.0)  # so that no deadline ends a connection here
BLOB = bytes(range(256)) * 256
needs_list_of_descriptors = pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="lists /dev/fd")


class Peer:
    """A client, and the steps that it can take."""

    def __init__(self, address: Any) -> None:
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(address)
        self.sock.setblocking(False)
        self.may_send = True

    def say(self) -> None:
        """Send a few bytes."""
        self._send(b"hello")

    def stuff(self) -> None:
        """Send until the kernel takes no more, and read nothing."""
        for _ in range(8):
            self._send(BLOB)

    def read(self) -> None:
        """Read what has arrived."""
        with contextlib.suppress(OSError):
            drain(self.sock)

    def finish(self) -> None:
        """Send FIN."""
        self.may_send = False
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def _send(self, data: bytes) -> None:
        if self.may_send:
            with contextlib.suppress(OSError):
                self.sock.send(data)


STEPS = ["say", "stuff", "read", "finish", "turn", "turn twice", "we close", "we close and turn"]


def play(step: str, peer: Peer, reactor: Reactor, close: Callable[[], None]) -> None:
    """Take one step of a client's life."""
    if step.startswith("we close"):
        close()
    if step.endswith("turn"):
        turn_idle(reactor, 1)
    elif step.endswith("twice"):
        turn_idle(reactor, 2)
    elif not step.startswith("we"):
        {"say": peer.say, "stuff": peer.stuff, "read": peer.read, "finish": peer.finish}[step]()


@needs_list_of_descriptors
@given(lives=st.lists(st.lists(st.sampled_from(STEPS), max_size=8), min_size=1, max_size=4), keep_open=st.booleans())
def test_reset_at_any_moment_ends_only_that_connection(lives: list[list[str]], keep_open: bool) -> None:
    """After any steps: `connection_lost` is called once, no descriptor is left, and the next client is served."""
    descriptors_before = open_descriptors()
    with Reactor() as reactor:
        protocols: list[Recorder] = []

        def factory() -> Recorder:
            protocols.append(Recorder(echo=True, keep_open_on_eof=keep_open))
            return protocols[-1]

        def close_all() -> None:
            for protocol in protocols:
                for connection in protocol.connections:
                    connection.close()

        address = listen_tcp(reactor, ("127.0.0.1", 0), factory, limits=LIMITS).address
        quiet = open_descriptors()
        for life in lives:
            peer = Peer(address)
            for step in life:
                play(step, peer, reactor, close_all)
            reset(peer.sock)
            turn_idle(reactor, 2)
        if keep_open:  # a half-closed connection without interest isn't registered: its protocol closes it
            close_all()
        turn_until(reactor, lambda: not any(isinstance(handler, Connection) for handler in reactor.handlers))
        turn_idle(reactor)
        for protocol in protocols:
            assert protocol.kinds().count("lost") == len(protocol.connections) == 1
            assert protocol.kinds()[0] == "made"
            assert protocol.kinds()[-1] == "lost"
        assert open_descriptors() == quiet
        with socket.create_connection(address, PATIENCE_S) as client:
            client.sendall(b"next!")
            turn_until(reactor, lambda: protocols and protocols[-1].received == b"next!")
            assert receive_exactly(client, 5) == b"next!"
    assert open_descriptors() == descriptors_before


@needs_list_of_descriptors
@given(lives=st.lists(st.lists(st.sampled_from(STEPS[:6]), max_size=6), min_size=1, max_size=4))
def test_echo_server_forgets_clients_that_reset(lives: list[list[str]]) -> None:
    """End to end through EchoServer, with several clients at once: each is counted once, and the server ends empty."""
    with Reactor() as reactor:
        server = EchoServer(("127.0.0.1",), 0, drain_timeout_s=3600.0)
        server.start(reactor)
        quiet = open_descriptors()
        peers = [Peer(server.addresses[0][1:3]) for _ in lives]
        for moment in range(max(map(len, lives))):
            for life, peer in zip(lives, peers, strict=True):
                if moment < len(life):
                    play(life[moment], peer, reactor, lambda: None)
        for peer in peers:
            reset(peer.sock)
        turn_until(reactor, lambda: not server.counters.connections_open)
        turn_idle(reactor)
        assert server.counters.connections_open == 0
        assert server.counters.connections <= len(lives)
        assert open_descriptors() == quiet
        finished: list[str] = []
        server.stop(lambda: finished.append("stopped"))
        turn_until(reactor, lambda: finished)


def before_it_is_accepted(reactor: Reactor, peer: Peer) -> None:
    """While it waits in the kernel's queue."""
    peer.say()


def in_the_middle_of_data(reactor: Reactor, peer: Peer) -> None:
    """With more data waiting than one receive takes."""
    server_side(reactor, peer.sock)
    peer.stuff()
    turn_idle(reactor, 1)


def while_our_output_is_pending(reactor: Reactor, peer: Peer) -> None:
    """With the kernel's send buffer full, and output pending in the connection."""
    connection = server_side(reactor, peer.sock)

    def stuffed() -> int:
        peer.stuff()
        return connection.pending_bytes

    turn_until(reactor, stuffed)


def after_its_own_fin(reactor: Reactor, peer: Peer) -> None:
    """With the client's FIN read and output pending."""
    while_our_output_is_pending(reactor, peer)
    peer.finish()
    turn_idle(reactor, 3)


def while_we_linger(reactor: Reactor, peer: Peer) -> None:
    """With the server's FIN sent, and the client's not yet received."""
    connection = server_side(reactor, peer.sock)
    connection.close()
    peer.say()
    turn_idle(reactor, 2)
    assert not connection.closed


MOMENTS = [
    before_it_is_accepted,
    in_the_middle_of_data,
    while_our_output_is_pending,
    after_its_own_fin,
    while_we_linger,
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_reset_at_named_moments_ends_only_that_connection(moment: Callable[[Reactor, Peer], None]) -> None:
    """The five moments by name, each beside a neighbour that must be served on."""
    with Reactor() as reactor:
        server = EchoServer(("127.0.0.1",), 0, drain_timeout_s=3600.0)
        server.start(reactor)
        address = server.addresses[0][1:3]
        with socket.create_connection(address, PATIENCE_S) as neighbour:
            connection = server_side(reactor, neighbour)
            peer = Peer(address)
            moment(reactor, peer)
            reset(peer.sock)
            turn_idle(reactor, 3)
            turn_until(reactor, lambda: server.counters.connections_open == 1)
            neighbour.sendall(b"still there?")
            turn_until(reactor, lambda: connection.bytes_sent == 12)
            assert receive_exactly(neighbour, 12) == b"still there?"
