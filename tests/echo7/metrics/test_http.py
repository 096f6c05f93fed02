"""Pages over HTTP: a good request gets its page, and any other client costs almost nothing."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

h11 = pytest.importorskip("h11", reason="the extra `metrics` isn't installed")

from echo7.metrics.http import FRESH_S, LIFE_S, REQUEST_BYTES, Page, PageProtocol, Pages, kept
from reactor import Listener, Reactor, StreamProtocol
from reactor.observe.snapshot import dump
from reactor.sockets.opening import bind_tcp
from tests.support.basics import PATIENCE_S
from tests.support.clients import reset
from tests.support.loops import ManualClock, connections_of, turn_idle, turn_until

MOST_CLIENTS = 8
GET = b"GET /page HTTP/1.1\r\nHost: here\r\n\r\n"


class Site:
    """One page, `/page`, that counts how often it was made, on a loop turned by hand."""

    def __init__(self) -> None:
        self.clock, self.made, self.accepted = ManualClock(), 0, 0
        self.loop = Reactor(clock=self.clock)
        self.pages = Pages(self.loop, {"/page": kept(self.clock, self._make)}, MOST_CLIENTS)
        sock = bind_tcp(socket, ("127.0.0.1", 0))
        sock.listen(64)
        self.listener = Listener(self.loop, sock, self._new_protocol, room=self.pages.room)

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *exception: object) -> None:
        self.loop.close()

    def _new_protocol(self) -> StreamProtocol:
        self.accepted += 1
        return PageProtocol(self.pages)

    def _make(self) -> Page:
        self.made += 1
        return Page(b"page %d\n" % self.made)

    @contextlib.contextmanager
    def client(self, host: str = "") -> Iterator[socket.socket]:
        before = self.accepted
        with socket.create_connection(self.listener.address[:2], PATIENCE_S, (host, 0)) as client:
            client.setblocking(False)
            turn_until(self.loop, lambda: self.accepted > before)
            yield client

    def end_of(self, client: socket.socket) -> bytes:
        """Return the bytes before the server's FIN. A reset raises."""
        received = bytearray()

        def ended() -> bool:
            with contextlib.suppress(BlockingIOError):
                while piece := client.recv(65_536):
                    received.extend(piece)
                return True
            return False

        turn_until(self.loop, ended)
        return bytes(received)

    def fetch(self, *pieces: bytes) -> bytes:
        with self.client() as client:
            for piece in pieces:
                client.send(piece)
                turn_idle(self.loop)
            return self.end_of(client)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_get_returns_the_whole_page_and_closes() -> None:
    with Site() as site:
        head, _, body = site.fetch(GET).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 7\r\n")
        assert b"connection: close" in head.lower()
        assert body == b"page 1\n"
        turn_idle(site.loop)
        assert not connections_of(site.loop)


@pytest.mark.parametrize("pieces", [[GET[:9], GET[9:]], [bytes([byte]) for byte in GET], [GET + GET + b"garbage" * 9]])
def test_request_in_pieces_or_with_trailing_data_gets_one_answer(pieces: list[bytes]) -> None:
    """Trailing data is dropped, and no reset destroys the answer."""
    with Site() as site:
        answer = site.fetch(*pieces)
        assert status(answer) == 200
        assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"GET /page?name=value HTTP/1.1\r\nHost: h\r\n\r\n", 200),
        (b"GET /page HTTP/1.0\r\n\r\n", 200),
        (b"GET http://h:9/page HTTP/1.1\r\nHost: h\r\n\r\n", 200),
        (b"GET HTTPS://h/page?name=value HTTP/1.1\r\nHost: h\r\n\r\n", 200),
        (b"GET http://h/pages HTTP/1.1\r\nHost: h\r\n\r\n", 404),
        (b"GET http://h HTTP/1.1\r\nHost: h\r\n\r\n", 404),
        (b"GET http://h?/page HTTP/1.1\r\nHost: h\r\n\r\n", 404),
        (b"GET http:///page HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET ftp://h/page HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET h:9 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET page HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"CONNECT h:9 HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        (b"OPTIONS h:9 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", 404),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"POST /page HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"GET /page HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and so on\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nX: " + b"x" * REQUEST_BYTES, 431),
    ],
)
def test_status_says_what_is_wrong(request_: bytes, expected: int) -> None:
    """Specified: "GET/HEAD only, 404, 405, 400"; a request has a size."""
    with Site() as site:
        answer = site.fetch(request_)
        assert status(answer) == expected
        assert (b"allow: GET, HEAD" in answer) == (expected == 405)
        assert site.made == (expected == 200)


@pytest.mark.parametrize("target", ["*", "/page", "/pages", "http://here/page"])
def test_options_says_which_methods_there_are(target: str) -> None:
    """RFC 9110 §9.3.7: `*` asks about the whole server."""
    with Site() as site:
        answer = site.fetch(f"OPTIONS {target} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
        assert status(answer) == 200
        assert b"allow: GET, HEAD, OPTIONS\r\n" in answer
        assert answer.endswith(b"\r\n\r\n"), "without a body"
        assert site.made == 0


def test_head_returns_the_head_without_a_body() -> None:
    with Site() as site:
        head, _, body = site.fetch(GET.replace(b"GET", b"HEAD")).partition(b"\r\n\r\n")
        assert b"content-length: 7" in head
        assert body == b""


def test_slow_client_is_reset_at_its_deadline() -> None:
    with Site() as site, site.client() as client:
        client.send(GET[:10])
        turn_idle(site.loop)
        site.clock.advance(LIFE_S - 0.001)
        turn_idle(site.loop)
        assert connections_of(site.loop)
        site.clock.advance(0.001)
        turn_idle(site.loop)
        assert not connections_of(site.loop)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_many_idle_clients_are_bounded_and_block_no_other() -> None:
    with Site() as site, contextlib.ExitStack() as stack:
        for _ in range(3 * MOST_CLIENTS):
            stack.enter_context(site.client())
            turn_idle(site.loop)
            assert len(connections_of(site.loop)) <= MOST_CLIENTS
        assert status(site.fetch(GET)) == 200


def test_client_that_sends_its_request_at_once_gets_its_page_however_many_others_come() -> None:
    """Issue: "1,000 new connections a second […] and 0 of 158 scrapes succeed". All are from one host here."""
    with Site() as site, contextlib.ExitStack() as stack:
        answers = []
        for _ in range(5):
            crowd = [stack.enter_context(socket.create_connection(site.listener.address[:2])) for _ in range(20)]
            for other in crowd[::2]:
                other.send(b"G")
            scraper = stack.enter_context(socket.create_connection(site.listener.address[:2]))
            scraper.send(GET)
            scraper.setblocking(False)
            for _ in range(20):
                stack.enter_context(socket.create_connection(site.listener.address[:2])).send(b"G")
            answers.append(status(site.end_of(scraper)))
        assert answers == [200] * 5


def test_host_with_the_most_connections_loses_its_oldest_one() -> None:
    with Site() as site, contextlib.ExitStack() as stack:
        first = stack.enter_context(site.client())
        many = [stack.enter_context(site.client("127.0.0.2")) for _ in range(MOST_CLIENTS)]
        first.send(GET)
        assert status(site.end_of(first)) == 200
        with pytest.raises(ConnectionResetError):
            many[0].recv(1)
        with pytest.raises(BlockingIOError):
            many[1].recv(1)


def test_client_that_has_gone_before_its_host_is_asked_leaves_nothing() -> None:
    """getpeername(2) fails with ENOTCONN."""
    with Site() as site:
        for _ in range(3):
            with socket.create_connection(site.listener.address[:2]) as client:
                reset(client)
        turn_until(site.loop, lambda: site.accepted == 3)
        turn_until(site.loop, lambda: not connections_of(site.loop))
        assert status(site.fetch(GET)) == 200


def test_page_is_made_once_for_requests_close_together() -> None:
    """Making a page takes the loop's time, so that is bounded too."""
    with Site() as site:
        assert [site.fetch(GET)[-7:] for _ in range(3)] == [b"page 1\n"] * 3
        site.clock.advance(FRESH_S)
        assert site.fetch(GET)[-7:] == b"page 2\n"


def test_client_that_resets_leaves_no_connection_and_no_timer() -> None:
    with Site() as site:
        with site.client() as client:
            client.send(GET[:5])
            turn_idle(site.loop)
            reset(client)
        turn_until(site.loop, lambda: not connections_of(site.loop))
        assert " 0 timers" in dump(site.loop)
