"""A few pages over HTTP/1.1 (with h11), for programs that fetch one page at a time.

    data ─► h11 ─► a request? ─► its page, or 400, 404, 405, 431 ─► close

Law: a client costs the service almost nothing. A connection carries one request and one answer; further bytes are
dropped. A connection lives at most LIFE_S, a request has at most REQUEST_BYTES. Above the number of places, the oldest
connection of the host with the most is reset. But each connection is read from before that, so a client that sends its
request at once gets its page, however many others come. A page that is costly to make is kept for FRESH_S.
"""

from __future__ import annotations

import collections
import contextlib
import http
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import h11

from reactor.connection import Connection, StreamProtocol
from reactor.limits import Limits
from reactor.loop import Reactor
from reactor.timers import Timer

LIFE_S = 10.0
REQUEST_BYTES = 8192
FRESH_S = 0.1
LIMITS = Limits(receive_bytes=4096, linger_timeout_s=1.0)
METHODS = (b"GET", b"HEAD", b"OPTIONS")
PLAIN = "text/plain; charset=utf-8"


class Page(NamedTuple):
    """An answer."""

    body: bytes
    status: int = 200
    content_type: str = PLAIN


def kept(now: Callable[[], float], maker: Callable[[], Page]) -> Callable[[], Page]:
    """Return a maker of the same page that calls `maker` at most once per FRESH_S."""
    made_s, page = -math.inf, Page(b"")

    def fresh() -> Page:
        nonlocal made_s, page
        if now() - made_s >= FRESH_S:
            made_s, page = now(), maker()
        return page

    return fresh


class Pages:
    """The makers of the pages by path, and the connections that fetch them."""

    def __init__(self, reactor: Reactor, makers: Mapping[str, Callable[[], Page]], places: int) -> None:
        self.reactor, self.makers, self._places = reactor, makers, places
        self._connections: dict[Connection, str] = {}  # oldest first, with their hosts

    def room(self) -> int:
        """Return how many connections a listener accepts in a turn: so few that each is read from before a reset."""
        return max(1, self._places // 4)

    def enter(self, connection: Connection) -> None:
        """Add a connection; if there are too many, reset the oldest one of the host with the most."""
        self._connections[connection] = _host_of(connection)
        if len(self._connections) > self._places:
            [(busiest, _)] = collections.Counter(self._connections.values()).most_common(1)
            oldest = next(each for each, host in self._connections.items() if host == busiest)
            self.leave(oldest)
            oldest.abort()

    def leave(self, connection: Connection) -> None:
        """Remove a connection. Does nothing the second time."""
        self._connections.pop(connection, None)


def _host_of(connection: Connection) -> str:
    with contextlib.suppress(OSError):  # ENOTCONN: the client has gone
        return str(connection.socket.getpeername()[0])
    return ""


class PageProtocol(StreamProtocol):
    """One connection, from request to answer."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES)
        self._deadline: Timer  # set by `connection_made`

    def connection_made(self, connection: Connection) -> None:
        """Start the deadline."""
        self._deadline = self._pages.reactor.call_later(LIFE_S, connection.abort)
        self._pages.enter(connection)

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Answer as soon as the request's head is complete."""
        self._http.receive_data(data)
        try:
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            self._send(connection, b"", Page(b"not an HTTP/1.1 request\n", error.error_status_hint))
            return
        if isinstance(event, h11.Request):
            self._answer(connection, event)

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """Cancel the deadline."""
        self._pages.leave(connection)
        self._deadline.cancel()

    def _answer(self, connection: Connection, request: h11.Request) -> None:
        path = path_of(request.target)
        maker = self._pages.makers.get(path or "")
        if request.method not in METHODS:
            page = Page(b"only GET, HEAD and OPTIONS\n", 405)
        elif request.method == b"OPTIONS" and (path or request.target == b"*"):
            page = Page(b"")
        elif path is None:
            page = Page(b"not a path or a URL\n", 400)
        else:
            page = maker() if maker else Page(b"no such page\n", 404)
        self._send(connection, request.method, page)

    def _send(self, connection: Connection, method: bytes, page: Page) -> None:
        headers = [
            ("content-type", page.content_type),
            ("content-length", str(len(page.body))),
            ("cache-control", "no-store"),
            ("connection", "close"),
        ]
        if page.status == http.HTTPStatus.METHOD_NOT_ALLOWED or (method, page.status) == (b"OPTIONS", 200):
            headers.append(("allow", b", ".join(METHODS).decode()))
        reason = http.HTTPStatus(page.status).phrase
        response = h11.Response(status_code=page.status, headers=headers, reason=reason.encode())
        events = [response, h11.Data(data=page.body), h11.EndOfMessage()]
        if method == b"HEAD":
            del events[1]
        connection.write(b"".join(self._http.send(event) or b"" for event in events))
        connection.close()


def path_of(target: bytes) -> str | None:
    """Return the path of a request's target, or None if it has none.

    Clients send `/metrics`; through a proxy they send a whole URL, which a server must accept (RFC 9112 §3.2).
    """
    if not target.startswith(b"/"):
        scheme, separator, rest = target.partition(b"://")
        authority, _, path = rest.partition(b"?")[0].partition(b"/")
        if not (separator and authority and scheme.lower() in (b"http", b"https")):
            return None
        target = b"/" + path
    return target.partition(b"?")[0].decode("ascii", "replace")
