"""The common promises of `Datagram` and `DatagramBatch`, with one protocol for both."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactor.fastpath.batch import BatchProtocol
from reactor.limits import DATAGRAMS_PER_TURN, SHORTAGE_RETRY_S
from reactor.sockets.errors import os_error
from tests.reactor.fastpath.post import Post
from tests.support.basics import has_ipv6
from tests.support.faults import EAGAIN, EINTR
from tests.support.loops import turn_until

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has batches")
BATCHED = [pytest.param(True, id="batch", marks=LINUX), pytest.param(False, id="plain")]
ONE_DATAGRAM = [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EPERM, errno.EMSGSIZE]
SHORTAGE = [errno.ENOBUFS, errno.ENOMEM, errno.EIO, 4321]
BROKEN = [errno.EBADF, errno.EINVAL, errno.ENOTSOCK]


@pytest.fixture(params=BATCHED)
def batched(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"])
def post(request: pytest.FixtureRequest, batched: bool) -> Iterator[Post]:
    with Post(batched, request.param) as made:
        yield made


def test_datagrams_that_are_not_refused_are_sent_back_and_all_are_counted(post: Post) -> None:
    post.send(b"no 1", b"yes", b"", b"no 2", b"no 3", b"more")
    post.turn()
    assert post.receive() == [b"yes", b"", b"more"]
    endpoint = post.endpoint
    assert (endpoint.datagrams_received, endpoint.bytes_received) == (6, 19)
    assert (endpoint.datagrams_sent, endpoint.bytes_sent) == (3, 7)
    assert endpoint.drops == {"refused": 3}


def test_a_protocol_that_refuses_nothing_echoes(batched: bool) -> None:
    """The default."""
    with Post(batched, protocol=BatchProtocol()) as post:
        post.send(b"no", b"matter")
        post.turn()
        assert post.receive() == [b"no", b"matter"]
        post.endpoint.close()
        post.turn()


@given(sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=20), data=st.data())
def test_any_mix_is_sent_back_in_order(batched: bool, sizes: list[int], data: st.DataObject) -> None:
    refused = {i for i in range(len(sizes)) if data.draw(st.booleans())}
    sent = [(b"no" if i in refused else b"ok") + bytes([i]) * size for i, size in enumerate(sizes)]
    with Post(batched) as post:
        for _ in range(2):
            post.send(*sent)
            post.turn()
            assert post.receive() == [one for i, one in enumerate(sent) if i not in refused]
        counted = post.endpoint.drops.get("refused", 0)
        assert counted == 2 * len(refused)
        assert post.endpoint.datagrams_received == 2 * len(sizes) == post.endpoint.datagrams_sent + counted
        assert post.endpoint.bytes_sent == 2 * sum(len(one) for i, one in enumerate(sent) if i not in refused)


def test_a_turn_takes_a_bounded_number_of_datagrams(post: Post) -> None:
    """Promise 7: a flood (of empty ones, even) starves no other handler."""
    post.send(*[b""] * (DATAGRAMS_PER_TURN + 5))
    post.turn(1)
    assert post.endpoint.datagrams_received == DATAGRAMS_PER_TURN
    post.turn(1)
    assert post.endpoint.datagrams_received == DATAGRAMS_PER_TURN + 5


@pytest.mark.parametrize(
    ("host", "most"),
    [
        ("127.0.0.1", 65_507),
        ("0.0.0.0", 65_507),
        pytest.param("::", 65_527, marks=pytest.mark.skipif(not has_ipv6(), reason="needs IPv6 on loopback")),
    ],
)
def test_datagrams_of_every_size_are_sent_back(batched: bool, host: str, most: int) -> None:
    """At most 65,507 bytes over IPv4, 65,527 over IPv6."""
    with Post(batched, host) as post:
        for size in (0, 1, most, 1472, most):
            data = (bytes(range(251)) * 262)[:size]
            post.send(data)
            turn_until(post.reactor, lambda: not post.selector.inner.select(0))
            assert post.receive() == [data]


def test_truncated_datagrams_are_counted_and_not_answered(batched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only MSG_TRUNC shows it. A datagram that is also refused counts once."""
    for module in ("reactor.fastpath.mmsg", "reactor.datagram") if batched else ("reactor.datagram",):
        monkeypatch.setattr(f"{module}.DATAGRAM_BYTES", 20)
    with Post(batched) as post:
        post.send(b"whole", bytes(21), b"no", b"no" + bytes(30), b"end", bytes(20))
        post.turn()
        assert post.receive() == [b"whole", b"end", bytes(20)]
        assert post.endpoint.drops == {"refused": 1, "truncated": 2}


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("code", ONE_DATAGRAM + SHORTAGE + BROKEN)
def test_error_of_sending_one_is_counted_and_the_others_are_sent(post: Post, code: int) -> None:
    """Promise 14: "counted, dropped, service goes on". EINVAL is what a source port of 0 gives."""
    post.faults.add(post.send_call, 1, os_error(code), None)
    post.send(b"1", b"lost", b"2", b"3")
    post.turn()
    assert post.receive() == [b"1", b"2", b"3"]
    assert post.endpoint.drops == {"send_" + errno.errorcode.get(code, str(code)): 1}
    assert (post.endpoint.datagrams_sent, post.endpoint.bytes_sent) == (3, 3)
    post.assert_serves()


@pytest.mark.parametrize("code", ONE_DATAGRAM)
def test_an_error_of_an_earlier_datagram_is_counted_and_receiving_goes_on(post: Post, code: int) -> None:
    """udp(7): an ICMP error is returned by the next call. No time passes here, so the endpoint doesn't pause."""
    post.faults.add(post.receive_call, os_error(code), os_error(code))
    post.send(b"abc")
    post.turn()
    assert post.receive() == [b"abc"]
    assert post.endpoint.drops == {"receive_" + errno.errorcode[code]: 2}
    post.assert_serves()


@pytest.mark.parametrize("error", [EAGAIN, EINTR])
def test_spurious_readiness_is_no_error(post: Post, error: OSError) -> None:
    """A datagram with a wrong checksum makes the socket readable, and then isn't there (select(2), BUGS)."""
    post.faults.add(post.receive_call, error)
    post.assert_serves()
    assert post.endpoint.drops == {}


@pytest.mark.parametrize("code", SHORTAGE)
def test_shortage_of_receiving_suspends_the_endpoint_until_it_recovers(post: Post, code: int) -> None:
    """The loop doesn't spin: it asks the readable socket at most 20 times a second. An unknown errno is a shortage."""
    post.faults.always[post.receive_call] = os_error(code)
    post.send(b"waits")
    for _ in range(1000):
        post.clock.advance(0.001)
        post.turn(1)
    assert 1 <= post.faults.calls[post.receive_call] < 20
    post.faults.always.clear()
    post.clock.advance(SHORTAGE_RETRY_S)
    post.turn()
    assert post.receive() == [b"waits"]
    post.assert_serves()


@pytest.mark.parametrize("code", BROKEN)
def test_broken_socket_closes_the_endpoint_and_reports_the_error(post: Post, code: int) -> None:
    post.faults.always[post.receive_call] = os_error(code)
    post.send(b"abc")
    post.turn(5)
    assert post.endpoint.closed
    assert [getattr(error, "errno", None) for error in post.refuser.lost] == [code]
    assert post.endpoint not in post.reactor.handlers
    assert post.faults.calls[post.receive_call] == 1
