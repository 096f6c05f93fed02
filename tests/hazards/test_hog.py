"""The hog.

A naive server reads a ready socket until it is empty. A client that sends faster than the server reads keeps it full,
and all other clients wait for ever. The same happens with a flooded datagram socket (empty datagrams are the cheapest:
they cost the sender nothing and look like "no data" to the reader), and with a listener that accepts until its queue is
empty.

What prevents it: one receive per readiness (or a bounded run of moves through a pipe), and a bounded number of
datagrams and of accepts per turn. The tests need no clock: a ping that has arrived is answered within two turns,
whatever the hogs do.
"""

import contextlib
import selectors
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7.server import EchoServer
from reactor import Connection, Reactor
from reactor.fastpath.splice import MOVES_IN_A_ROW, ROUND_BYTES
from reactor.limits import ACCEPTS_PER_TURN, DATAGRAMS_PER_TURN, DEFAULT_LIMITS
from tests.support.basics import PATIENCE_S
from tests.support.clients import drain
from tests.support.loops import SELECTORS, server_side, turn_idle, turn_until, wait_readable

PING_TURNS = 2
BLOB = bytes(range(256)) * 512  # two receives' worth
PIECES = 4


class Hog:
    """A client that always has more to send, and takes what comes back."""

    def __init__(self, reactor: Reactor, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self.connection = server_side(reactor, self.sock)

    def shove(self) -> None:
        """Make sure that more than one receive's worth waits at the server."""
        drain(self.sock)
        with contextlib.suppress(BlockingIOError):
            for _ in range(PIECES):
                self.sock.send(BLOB)


@contextlib.contextmanager
def serving(
    selector_class: type[selectors.BaseSelector], *hosts: str, plain: bool = False
) -> Iterator[tuple[Reactor, EchoServer, int]]:
    with Reactor(selector=selector_class()) as reactor:
        server = EchoServer(hosts or ("127.0.0.1",), 0, plain=plain)
        server.start(reactor)
        yield reactor, server, server.addresses[0].port


def turn_with_hogs(reactor: Reactor, hogs: list[Hog], plain: bool = False) -> None:
    """Turn once while every hog has data waiting, and check that each hog gets at most its share.

    A share is one receive on the plain path. Elsewhere it may be a few moves through a pipe, and all share a round.
    """
    for hog in hogs:
        hog.shove()
        wait_readable(hog.connection)
    before = [hog.connection.bytes_received for hog in hogs]
    turn_idle(reactor, 1)
    moved = [hog.connection.bytes_received - received for hog, received in zip(hogs, before, strict=True)]
    most_bytes = DEFAULT_LIMITS.receive_bytes if plain else MOVES_IN_A_ROW * DEFAULT_LIMITS.pipe_bytes
    assert all(count <= most_bytes for count in moved)
    assert plain or sum(moved) <= max(ROUND_BYTES, len(hogs) * DEFAULT_LIMITS.bound_bytes)


def assert_ping_is_answered(
    reactor: Reactor, connection: Connection, client: socket.socket, hogs: list[Hog], plain: bool = False
) -> None:
    """Send a ping, wait until it has arrived, and check that it is answered within PING_TURNS turns."""
    sent_before = connection.bytes_sent
    client.sendall(b"ping")
    wait_readable(connection)
    for _ in range(PING_TURNS):
        turn_with_hogs(reactor, hogs, plain)
    assert connection.bytes_sent == sent_before + 4, f"not answered within {PING_TURNS} turns"
    assert client.recv(5) == b"ping"


@given(hogs_before=st.integers(0, 6), hogs_after=st.integers(1, 6), turns_between=st.integers(0, 3))
def test_endless_senders_do_not_delay_a_ping(hogs_before: int, hogs_after: int, turns_between: int) -> None:
    """'A hog […] starves nobody: a ping beside it is answered within two turns of its arrival' (promise 7)."""
    with serving(selectors.DefaultSelector) as (reactor, _, port):
        hogs = [Hog(reactor, port) for _ in range(hogs_before)]
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client:
            connection = server_side(reactor, client)
            hogs += [Hog(reactor, port) for _ in range(hogs_after)]
            for _ in range(turns_between):
                turn_with_hogs(reactor, hogs)
            assert_ping_is_answered(reactor, connection, client, hogs)
            assert_ping_is_answered(reactor, connection, client, hogs)
        for hog in hogs:
            hog.sock.close()


@pytest.mark.parametrize("plain", [False, True], ids=["fast", "plain"])
@pytest.mark.parametrize("selector_class", SELECTORS)
def test_sixty_endless_senders_do_not_delay_a_ping(selector_class: type[selectors.BaseSelector], plain: bool) -> None:
    """The batch holds every ready handler, so it includes the ping, however many hogs there are."""
    with serving(selector_class, plain=plain) as (reactor, _, port):
        hogs = [Hog(reactor, port) for _ in range(60)]
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client:
            assert_ping_is_answered(reactor, server_side(reactor, client), client, hogs, plain)
        for hog in hogs:
            hog.sock.close()


def flood(sock: socket.socket, data: bytes) -> None:
    """Send more datagrams than one turn takes. Those that don't fit into the kernel's buffer may be lost."""
    for _ in range(DATAGRAMS_PER_TURN * 3):
        with contextlib.suppress(BlockingIOError):
            sock.send(data)


@pytest.mark.parametrize("data", [b"", b"x", bytes(1400)], ids=["empty", "one byte", "full"])
def test_datagram_flood_delays_neither_stream_nor_datagram(data: bytes) -> None:
    """A zero-length datagram counts against the turn's share like any other (promise 7)."""
    with serving(selectors.DefaultSelector, "127.0.0.1", "127.0.0.2") as (reactor, server, port):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flooder,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as neighbour,
            socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client,
        ):
            flooder.connect(("127.0.0.1", port))
            neighbour.connect(("127.0.0.2", port))
            neighbour.settimeout(PATIENCE_S)
            connection = server_side(reactor, client)
            for number in range(5):
                client.sendall(b"ping")
                neighbour.send(b"pong")
                wait_readable(connection)
                for _ in range(PING_TURNS):
                    flood(flooder, data)
                    before = server.counters.datagrams_received
                    turn_idle(reactor, 1)
                    taken = server.counters.datagrams_received - before
                    assert 0 < taken <= DATAGRAMS_PER_TURN + 1  # one from the neighbour's socket
                assert connection.bytes_sent == 4 * (number + 1)
                assert client.recv(5) == b"ping"
                assert neighbour.recv(5) == b"pong"


def test_rush_of_new_clients_does_not_delay_a_ping() -> None:
    """A listener accepts a bounded number of clients in a turn, and open connections are served meanwhile."""
    with serving(selectors.DefaultSelector) as (reactor, server, port):
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client, contextlib.ExitStack() as rush:
            connection = server_side(reactor, client)
            for _ in range(ACCEPTS_PER_TURN * 4):
                rush.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE_S))
            client.sendall(b"ping")
            wait_readable(connection)
            for _ in range(PING_TURNS):
                before = server.counters.connections
                turn_idle(reactor, 1)
                assert server.counters.connections - before <= ACCEPTS_PER_TURN
            assert connection.bytes_sent == 4
            turn_until(reactor, lambda: server.counters.connections == 1 + ACCEPTS_PER_TURN * 4)
