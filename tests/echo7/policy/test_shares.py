"""One sender's share while too many datagrams come: others get their answers, and a burst alone loses nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from echo7.policy.shares import MOST_WAIT_S, OTHERS_S, SHARE, Shares
from reactor.fastpath.datagrams import Single
from tests.echo7.policy.carriers import LINUX, slots_holding
from tests.support.echo import EchoByHand
from tests.support.loops import ManualClock, turn_idle, turn_until

Source = tuple[Any, ...]
HOG, OTHER, THIRD = (("127.0.0.1", port) for port in (40_001, 40_002, 40_003))
FULL = 64
FLOOD = [*[HOG] * 30, OTHER, *[HOG] * 30, OTHER, THIRD, HOG]

pytestmark = LINUX


class Queue:
    """Shares of one socket, and the batches that it gives, a millisecond apart."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.shares = Shares(self.clock)

    def answers(self, *sources: Source) -> Counter[Source]:
        """Return how many datagrams of each source are answered."""
        self.clock.advance(0.001)
        refused = self.shares.refusals(slots_holding([(source, b"") for source in sources]), len(sources), {})
        assert set(refused.values()) <= {"rate_share"}
        return Counter(source for place, source in enumerate(sources) if place not in refused)

    def overload(self, *sources: Source) -> None:
        """Receive full batches until they have been full for too long."""
        for _ in range(2):
            assert self.answers(*sources).total() == FULL
            self.clock.advance(MOST_WAIT_S - 0.0015)


def test_flood_beside_others_gets_its_share_and_the_others_all() -> None:
    """Issue: "One UDP flood beside others on loopback […]. Bound one source's share of a batch"."""
    queue = Queue()
    queue.overload(*FLOOD)
    for _ in range(3):
        assert queue.answers(*FLOOD) == {HOG: SHARE, OTHER: 2, THIRD: 1}
    assert queue.answers(*[HOG] * FULL) == {HOG: SHARE}, "the others come now and then"
    queue.clock.advance(OTHERS_S)
    assert queue.answers(*[HOG] * FULL) == {HOG: FULL}, "the others have stopped"


def test_flood_or_burst_alone_gets_every_answer() -> None:
    queue = Queue()
    for _ in range(100):
        assert queue.answers(*[HOG] * FULL) == {HOG: FULL}


def test_burst_beside_others_gets_every_answer_while_it_is_short() -> None:
    queue = Queue()
    for _ in range(15):
        assert queue.answers(*FLOOD).total() == FULL


def test_batch_that_is_not_full_ends_the_state() -> None:
    queue = Queue()
    queue.overload(*FLOOD)
    assert queue.answers(*FLOOD[1:]).total() == FULL - 1
    queue.overload(*FLOOD)
    assert queue.answers(*FLOOD).total() == SHARE + 3


@pytest.mark.parametrize("senders", [8, 16, 57, 64])
def test_senders_within_their_shares_get_every_answer(senders: int) -> None:
    """The senders of a benchmark are such."""
    queue = Queue()
    sources = [("127.0.0.1", 40_000 + number % senders) for number in range(FULL)]
    queue.overload(*sources)
    assert queue.answers(*sources).total() == FULL


def test_sender_just_over_its_share_loses_one_answer() -> None:
    queue = Queue()
    sources = [*[HOG] * (SHARE + 1), *(("127.0.0.1", 50_000 + number) for number in range(FULL - SHARE - 1))]
    queue.overload(*sources)
    assert queue.answers(*sources)[HOG] == SHARE


def test_ipv6_senders_are_told_apart() -> None:
    queue = Queue()
    hog, neighbour, other_port = (("2001:db8::1", 7007, 0, 0), ("2001:db8::2", 7007, 0, 0), ("2001:db8::1", 7008, 0, 0))
    batch = [*[hog] * 62, neighbour, other_port]
    queue.overload(*batch)
    assert queue.answers(*batch) == {hog: SHARE, neighbour: 1, other_port: 1}


def test_datagram_that_the_guard_refuses_keeps_its_reason() -> None:
    queue = Queue()
    queue.overload(*FLOOD)
    slots = slots_holding([(source, b"") for source in FLOOD])
    queue.clock.advance(0.001)
    found = queue.shares.refusals(slots, FULL, {0: "guard", FULL - 1: "guard"})
    assert (found[0], found[FULL - 1], found[FULL - 5]) == ("guard", "guard", "rate_share")


def test_datagrams_one_by_one_have_no_shares() -> None:
    shares, clock = Shares(ManualClock()), ManualClock()
    for _ in range(3 * FULL):
        clock.advance(0.001)
        assert shares.refusals(Single((b"", HOG, b"")), 1, {}) == {}
    assert list(Single((b"", HOG, b"")).senders(1)) == [HOG]


def test_server_answers_others_in_a_flood() -> None:
    clock = ManualClock()
    with EchoByHand(reactor_options={"clock": clock}, tcp=False) as echo, echo.udp() as hog, echo.udp() as other:
        asked = 0
        for turn in range(100):
            while echo.server.counters.datagrams_received > asked * (FULL - 1) - 3 * FULL:
                for _ in range(FULL - 1):
                    hog.send(b"flood")
                other.send(b"%d" % turn)
                asked += 1
            clock.advance(MOST_WAIT_S / 4)
            turn_idle(echo.reactor, 1)
        clock.advance(OTHERS_S)
        turn_until(echo.reactor, lambda: echo.server.counters.datagrams_received == asked * FULL)
        assert echo.server.counters.drops["rate_share"] > 10 * FULL
        received = [other.recv(100) for _ in range(asked)]
        assert len(received) == asked
