"""Forged sources on our own link: answers to them wait for ARP, and no host answers it.

The kernel keeps each such answer for about three seconds, and counts it against the send buffer of the socket. When
that is full, a server that waits for room answers no client for seconds, and 100 KB/s of forged datagrams keep it full.

What prevents it: the buffer is large. A datagram for which there is no room waits only for a moment. If the buffer is
still full then, datagrams without room are dropped and counted (`busy`) for a second, and all others are answered.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest

from reactor.limits import CONGESTED_S, SEND_HOLD_S
from tests.reactor.fastpath.post import Post
from tests.support.echo import EchoByHand
from tests.support.faults import EAGAIN
from tests.support.loops import turn_until
from tests.support.root import in_network_namespace, udp_over_ipv4

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has batches")
BATCHED = [pytest.param(True, id="batch", marks=LINUX), pytest.param(False, id="plain")]
LINK = ["link add one type veth peer name two", "addr add 10.1.0.1/16 dev one", "link set one up", "link set two up"]
FORGED, FORGED_BYTES, SOURCES = 1500, 400, 200


@pytest.fixture(params=BATCHED)
def post(request: pytest.FixtureRequest) -> Iterator[Post]:
    with Post(request.param) as made:
        yield made


@pytest.mark.long
@pytest.mark.parametrize("batched", BATCHED)
def test_answers_that_wait_for_arp_hold_up_no_other(batched: bool) -> None:
    """Issue: "at 100 KB/s an honest client got 19 of 300 answers within 2 s"."""

    def body() -> None:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with raw, EchoByHand(("0.0.0.0",), tcp=False, plain=not batched) as echo, echo.udp() as client:
            for number in range(FORGED):
                source = f"10.1.7.{number % SOURCES + 1}", 40_000
                raw.sendto(udp_over_ipv4(source, ("10.1.0.1", echo.port), bytes(FORGED_BYTES)), ("10.1.0.1", 0))
            for number in range(10):
                client.send(b"%d" % number)
                assert echo.answer(client) == b"%d" % number

    try:
        in_network_namespace(LINK, body)
    except PermissionError:
        pytest.skip("raw sockets need CAP_NET_RAW")


def test_datagrams_without_room_are_dropped_and_the_others_are_answered(post: Post) -> None:
    post.faults.always[post.send_call] = EAGAIN
    post.send(b"waits", b"waits too")
    post.turn()
    assert post.endpoint.pending_bytes >= 5
    post.clock.advance(SEND_HOLD_S)
    post.turn()
    assert post.endpoint.pending_bytes == 0
    assert post.endpoint.drops == {"busy": 2}
    post.send(b"has none")
    post.turn()
    assert post.endpoint.drops == {"busy": 3}
    post.faults.always.clear()
    post.faults.add(post.send_call, EAGAIN)
    post.send(b"has none either", b"room")
    post.turn()
    assert post.receive() == [b"room"]
    assert post.endpoint.drops == {"busy": 4}


def test_wait_begins_anew_when_the_congestion_is_over(post: Post) -> None:
    post.faults.always[post.send_call] = EAGAIN
    post.send(b"dropped")
    post.turn()
    post.clock.advance(SEND_HOLD_S)
    post.turn()
    post.clock.advance(CONGESTED_S)
    post.send(b"waits")
    post.turn()
    post.faults.always.clear()
    turn_until(post.reactor, lambda: post.endpoint.datagrams_sent == 1)
    assert post.receive() == [b"waits"]
    assert post.endpoint.drops == {"busy": 1}
    post.clock.advance(2 * SEND_HOLD_S)
    post.assert_serves()


def test_wait_that_ends_in_time_drops_nothing(post: Post) -> None:
    for _ in range(3):
        post.faults.add(post.send_call, EAGAIN, EAGAIN)
        post.send(b"1", b"2", b"3")
        post.turn(5)
        assert post.receive() == [b"1", b"2", b"3"]
        post.clock.advance(2 * SEND_HOLD_S)
        post.turn()
    assert post.endpoint.drops == {}


def test_endpoint_closed_while_it_waits_leaves_no_timer(post: Post) -> None:
    post.faults.always[post.send_call] = EAGAIN
    post.send(b"waits")
    post.turn()
    post.endpoint.close()
    assert not post.reactor.snapshot().timers
    post.turn()
    assert post.endpoint.drops == {"busy": 1}
