"""A few pages over HTTP/1.1 (h11 knows the protocol), for programs that fetch one and go.

    data ─► h11 ─► a request? ─► its page, or 400, 404, 405, 431 ─► close

Law: whoever comes here costs the service next to nothing. One request, one answer, one connection: what else comes is
thrown away. A connection lives LIFE_S at the most, a request has at most REQUEST_BYTES, and when MOST_CALLERS are there
already, the oldest makes room: one that means it is done in a moment. What is costly to make is Kept for FRESH_S.
"""

from __future__ import annotations

import http
from collections.abc import Callable, Mapping
from typing import NamedTuple

import h11

from reactor.connection import Connection, StreamProtocol
from reactor.limits import Limits
from reactor.loop import Reactor
from reactor.timers import Timer

MOST_CALLERS = 8  # within the descriptors that are kept back for such things
LIFE_S = 10.0
REQUEST_BYTES = 8192
FRESH_S = 0.1
LIMITS = Limits(receive_bytes=4096, linger_timeout_s=1.0)
PLAIN = "text/plain; charset=utf-8"


class Page(NamedTuple):
    """What is answered."""

    body: bytes
    status: int = 200
    content_type: str = PLAIN


class Kept:
    """A page that isn't made anew for each who asks. Pure: the time comes in."""

    __slots__ = ("_made", "_maker", "_now")

    def __init__(self, now: Callable[[], float], maker: Callable[[], Page]) -> None:
        self._now, self._maker = now, maker
        self._made: tuple[float, Page] | None = None  # when, and what

    def __call__(self) -> Page:
        """Return it, not older than FRESH_S."""
        now_s = self._now()
        if self._made is None or now_s - self._made[0] >= FRESH_S:
            self._made = now_s, self._maker()
        return self._made[1]


class Pages:
    """The pages by path, and who is fetching them."""

    __slots__ = ("_callers", "_makers", "reactor")

    def __init__(self, reactor: Reactor, makers: Mapping[str, Callable[[], Page]]) -> None:
        self.reactor = reactor
        self._makers = makers
        self._callers: dict[Connection, None] = {}  # oldest first

    def new_protocol(self) -> StreamProtocol:
        """Return what serves one connection."""
        return Caller(self)

    def find(self, path: str) -> Page | None:
        """Return a page; None if there is none of this name."""
        maker = self._makers.get(path)
        return None if maker is None else maker()

    def enter(self, connection: Connection) -> None:
        """Take one in; if there are too many, the oldest goes."""
        self._callers[connection] = None
        if len(self._callers) > MOST_CALLERS:
            oldest = next(iter(self._callers))
            self.leave(oldest)
            oldest.abort()

    def leave(self, connection: Connection) -> None:
        """Forget one. Harmless twice."""
        self._callers.pop(connection, None)


class Caller(StreamProtocol):
    """One connection, from request to answer."""

    __slots__ = ("_deadline", "_http", "_pages")

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES)
        self._deadline: Timer  # from `connection_made` on

    def connection_made(self, connection: Connection) -> None:
        """Give it some time, and no more."""
        self._deadline = self._pages.reactor.call_later(LIFE_S, connection.abort)
        self._pages.enter(connection)

    def data_received(self, connection: Connection, data: bytes) -> None:
        """Answer as soon as the request's head is there."""
        self._http.receive_data(data)
        try:
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            self._say(connection, b"", Page(b"this is no request\n", error.error_status_hint))
            return
        if isinstance(event, h11.Request):
            self._answer(connection, event)

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        """It is over."""
        self._pages.leave(connection)
        self._deadline.cancel()

    def _answer(self, connection: Connection, request: h11.Request) -> None:
        if request.method not in (b"GET", b"HEAD"):
            self._say(connection, b"", Page(b"only GET and HEAD\n", 405))
            return
        path = request.target.partition(b"?")[0].decode("ascii", "replace")
        self._say(connection, request.method, self._pages.find(path) or Page(b"no such page\n", 404))

    def _say(self, connection: Connection, method: bytes, page: Page) -> None:
        headers = [
            ("content-type", page.content_type),
            ("content-length", str(len(page.body))),
            ("cache-control", "no-store"),
            ("connection", "close"),
        ]
        if page.status == http.HTTPStatus.METHOD_NOT_ALLOWED:
            headers.append(("allow", "GET, HEAD"))
        reason = http.HTTPStatus(page.status).phrase
        response = h11.Response(status_code=page.status, headers=headers, reason=reason.encode())
        events = [response, h11.Data(data=page.body), h11.EndOfMessage()]
        if method == b"HEAD":
            del events[1]
        connection.write(b"".join(self._http.send(event) or b"" for event in events))
        connection.close()
