"""LeanEpollSelector does what the standard library's selector does."""

from __future__ import annotations

import os
import select
import selectors
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactor import READ, WRITE
from reactor.fastpath.epoll import EVENTS_PER_BATCH, LeanEpollSelector

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="no epoll(7) here")

PAIRS = 3
step = st.one_of(
    st.tuples(st.sampled_from(["register", "modify"]), st.integers(0, PAIRS - 1), st.sampled_from([0, 1, 2, 3, 3, 4])),
    st.tuples(
        st.sampled_from(["unregister", "key", "send", "read", "hang up", "close", "select", "select"]),
        st.integers(0, PAIRS - 1),
        st.just(0),
    ),
)


class Twin:
    """A selector and its own socket pairs."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.selector = selector
        self.pairs = [socket.socketpair() for _ in range(PAIRS)]
        for pair in self.pairs:
            for sock in pair:
                sock.setblocking(False)

    def do(self, name: str, index: int, events: int) -> Any:
        """Return the result of one step, or the kind of its exception."""
        ours, peer = self.pairs[index]
        selector = self.selector
        actions: dict[str, Callable[[], Any]] = {
            "register": lambda: selector.register(ours, events, index).events,
            "modify": lambda: selector.modify(ours, events, index).events,
            "unregister": lambda: selector.unregister(ours).data,
            "key": lambda: selector.get_key(ours).events,
            "send": lambda: peer.send(b"x"),
            "read": lambda: ours.recv(1),
            "hang up": peer.close,
            "close": ours.close,
            "select": lambda: sorted((key.data, mask) for key, mask in selector.select(0)),
        }
        try:
            return actions[name]()
        except (KeyError, ValueError, OSError) as error:
            return type(error)

    def end(self) -> None:
        self.selector.close()
        for pair in self.pairs:
            for sock in pair:
                sock.close()


@given(st.lists(step, max_size=30))
def test_any_order_of_calls_gives_the_answers_of_the_standard_selector(steps: list[tuple[str, int, int]]) -> None:
    twins = [Twin(selectors.EpollSelector()), Twin(LeanEpollSelector())]
    told = [[twin.do(*each) for each in [*steps, ("select", 0, 0)]] for twin in twins]
    for twin in twins:
        twin.end()
    assert told[0] == told[1]


def test_closed_descriptor_with_an_open_copy_is_not_reported() -> None:
    """epoll(7), question 6: epoll watches the open file, not the number."""
    ours, peer = socket.socketpair()
    selector = LeanEpollSelector()
    selector.register(ours, READ, "it")
    copy = os.dup(ours.fileno())
    peer.send(b"x")
    ours.close()
    assert selector.unregister(ours).data == "it"
    assert selector.select(0) == []
    os.close(copy)
    peer.close()
    selector.close()


def test_batch_is_bounded_and_every_descriptor_gets_its_turn() -> None:
    selector, pairs = LeanEpollSelector(), [socket.socketpair() for _ in range(EVENTS_PER_BATCH // 4)]
    owners = [os.dup(ours.fileno()) for ours, _ in pairs for _ in range(5)]
    for number in owners:
        selector.register(number, WRITE, number)
    seen: set[object] = set()
    for _ in range(3):
        ready = selector.select(0)
        assert len(ready) <= EVENTS_PER_BATCH
        seen |= {key.data for key, _ in ready}
    assert seen == set(owners)
    selector.close()
    for number in owners:
        os.close(number)
    for pair in pairs:
        for sock in pair:
            sock.close()


def test_interrupted_select_returns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    selector = LeanEpollSelector()

    def interrupted(*args: object) -> list[tuple[int, int]]:
        raise InterruptedError

    monkeypatch.setattr(selector, "_poll", interrupted)
    assert selector.select(1.0) == []
    selector.close()


def test_it_has_a_descriptor_and_can_be_closed_twice() -> None:
    with LeanEpollSelector() as selector:
        assert os.readlink(f"/proc/self/fd/{selector.fileno()}") == "anon_inode:[eventpoll]"
        selector.close()
    with pytest.raises(ValueError, match="closed"):
        selector.select(0)


def test_refused_modify_leaves_the_descriptor_unwatched() -> None:
    """As `selectors` does: the kernel's state is unknown then."""
    for selector in (selectors.EpollSelector(), LeanEpollSelector()):
        ours, peer = socket.socketpair()
        number = ours.fileno()
        selector.register(number, READ, None)
        ours.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            selector.modify(number, WRITE, None)
        assert number not in selector.get_map()
        selector.close()
        peer.close()


def test_modify_can_change_only_the_data_and_a_closed_file_can_be_unregistered() -> None:
    (one, other), (third, fourth) = socket.socketpair(), socket.socketpair()
    with LeanEpollSelector() as selector:
        for number, sock in enumerate((one, other, third)):
            selector.register(sock, READ, number)
        selector.modify(other, READ, "other data")
        assert selector.get_key(other).data == "other data"
        third.close()
        assert selector.unregister(third).data == 2
        with pytest.raises(ValueError, match="invalid file descriptor"):
            selector.unregister(third)
    for sock in (one, other, fourth):
        sock.close()
