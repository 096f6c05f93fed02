"""The pages can be fetched when every descriptor is taken."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

pytest.importorskip("h11", reason="the extra `metrics` isn't installed")
pytest.importorskip("prometheus_client", reason="the extra `metrics` isn't installed")
resource = pytest.importorskip("resource")

from echo7 import assembly
from echo7.metrics.reserve import Reserve, ReservedListening
from echo7.process import limits
from echo7.sockets.binding import Bound
from reactor.sockets.opening import bind_tcp
from tests.echo7.metrics.test_service import fetch, samples
from tests.hazards.test_descriptors_run_out import limit_descriptors
from tests.support.basics import PATIENCE_S, open_descriptors, until
from tests.support.daemon import EchoProcess, serve_config

LIMIT = 128
HERE = ("--host", "127.0.0.1", "--metrics", "127.0.0.1:0", "--drain-timeout", "0")


@pytest.fixture
def listening() -> Iterator[tuple[Reserve, ReservedListening]]:
    plain = bind_tcp(socket, ("127.0.0.1", 0))
    plain.listen(16)
    reserve = Reserve(socket, 2)
    with ReservedListening(reserve, plain) as sock:
        yield reserve, sock
        reserve.close()


@contextlib.contextmanager
def every_descriptor_taken() -> Iterator[list[int]]:
    """Yield the descriptors that take every place; the test may close some, and take them off the list."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() + 20, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield taken
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_connection_takes_the_place_of_a_spare_and_gives_it_back(listening: tuple[Reserve, ReservedListening]) -> None:
    _, sock = listening
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(sock.getsockname())) for _ in range(5)]
        before = open_descriptors()
        with every_descriptor_taken():
            for client in clients[:3]:
                accepted, peer = sock.accept()
                assert peer == client.getsockname()
                accepted.close()
                accepted.close()
            one, other = sock.accept()[0], sock.accept()[0]
            with pytest.raises(OSError, match="Too many open files"):
                os.dup(0)
            one.close()
            other.close()
        assert open_descriptors() == before


def test_failed_accept_costs_no_spare(listening: tuple[Reserve, ReservedListening]) -> None:
    _, sock = listening
    before = open_descriptors()
    for _ in range(5):
        with pytest.raises(BlockingIOError):
            sock.accept()
    assert open_descriptors() == before


def test_closed_reserve_takes_no_spare_for_a_connection_that_is_closed_later(
    listening: tuple[Reserve, ReservedListening],
) -> None:
    reserve, sock = listening
    with socket.create_connection(sock.getsockname()):
        accepted, _ = sock.accept()
        reserve.close()
        before = open_descriptors()
        accepted.close()
        assert open_descriptors() == before - 1


@pytest.mark.parametrize(("descriptors", "expected"), [(24, 4), (1024, 16), (1 << 20, 256)])
def test_pages_have_fewer_places_where_descriptors_are_scarce(descriptors: int, expected: int) -> None:
    """Their descriptors come out of those for connections."""
    assert limits.page_places(descriptors) == expected
    assert assembly.connections_possible(serve_config("--metrics", "[::1]:9"), descriptors, Bound()) == (
        assembly.connections_possible(serve_config(), descriptors - expected - 2, Bound())
    )


@pytest.mark.long
@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_scrape_succeeds_while_descriptors_are_short(workers: str) -> None:
    """Issue: "EMFILE, and 0 of 158 scrapes succeed". Twice as many clients as descriptors."""
    options = (*HERE, "--max-connections", "1000", "--workers", workers)
    with EchoProcess(*options, preexec_fn=limit_descriptors(LIMIT, LIMIT)) as echo, contextlib.ExitStack() as stack:
        for _ in range(2 * LIMIT * int(workers)):
            stack.enter_context(echo.connect())
        until(lambda: samples(echo).get(("echo7_connections_refused_total", "accept_EMFILE"), 0) > 0)
        for _ in range(20):
            assert fetch(echo, "/metrics")[0] == 200
            assert fetch(echo, "/healthz") == (200, "ok\n")
        assert samples(echo)["echo7_connections_limit",] == 1000
        assert samples(echo)["echo7_connections_limit_effective",] < int(workers) * LIMIT
        stack.close()
        assert echo.finish() == 0


def test_client_that_is_slow_gets_its_page_while_many_connect_and_send_nothing() -> None:
    """Issue: "1,000 new connections a second […] and 0 of 158 scrapes succeed". A hundred, and a round trip."""
    with EchoProcess(*HERE) as echo, contextlib.ExitStack() as stack:
        line = next(line for line in echo.lines if line["event"] == "metrics")
        where = (line["address"], line["port"])
        scraper = stack.enter_context(socket.create_connection(where, PATIENCE_S))
        for _ in range(100):
            stack.enter_context(socket.create_connection(where, PATIENCE_S))
        assert fetch(echo, "/metrics")[0] == 200, "all have been accepted"
        scraper.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
        assert scraper.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
        assert echo.finish() == 0


def test_reserve_made_when_descriptors_are_short_is_filled_later() -> None:
    plain = bind_tcp(socket, ("127.0.0.1", 0))
    plain.listen(16)
    with (
        socket.create_connection(plain.getsockname()),
        socket.create_connection(plain.getsockname()),
        every_descriptor_taken() as taken,
    ):
        os.close(taken.pop())
        os.close(taken.pop())
        reserve = Reserve(socket, 3)
        with ReservedListening(reserve, plain) as sock:
            accepted, _ = sock.accept()
            with pytest.raises(OSError, match="Too many open files"):
                sock.accept()
            os.close(taken.pop())
            os.close(taken.pop())
            accepted.close()
            with pytest.raises(OSError, match="Too many open files"):
                os.dup(0)
            sock.accept()[0].close()
            reserve.close()
