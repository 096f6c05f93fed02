"""Channel: whatever the other process sends, this end neither raises nor grows."""

from __future__ import annotations

import errno
import json
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7.metrics.snapshot import Snapshot
from echo7.policy.reasons import ACCEPT, Reason
from echo7.process.channel import LINE_BYTES, ORDERS, REPORTS, WITH_ERRNO, Channel, Message, conforms, understood
from echo7.server import Counters
from reactor import Reactor
from reactor.sockets.errors import DROP_REASONS
from tests.support.loops import turn_idle

SNAPSHOT = Snapshot(Counters(connections=7, drops={"busy": 1, "accept_EMFILE": 2}))
GOOD: list[Message] = [
    {"say": "ready"},
    {"say": "counters", "round": 3, "leaving": 1, "snapshot": json.loads(json.dumps(SNAPSHOT.as_message()))},
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


class End:
    """A channel on a loop; the test writes to `other`."""

    def __init__(self, reactor: Reactor) -> None:
        self.heard: list[Message] = []
        self.lost: list[str] = []
        ours, self.other = socket.socketpair()
        self.channel = Channel(reactor, ours, REPORTS, self.heard.append, self.lost.append)


@given(st.data())
def test_messages_cut_anywhere_are_heard_whole(data: st.DataObject) -> None:
    messages = data.draw(st.lists(st.sampled_from(GOOD), max_size=4))
    text = b"".join(json.dumps(message).encode() + b"\n" for message in messages) + b'{"say": "rea'
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    with Reactor() as reactor:
        end = End(reactor)
        with end.other:
            for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
                end.other.sendall(text[start:stop])
                turn_idle(reactor)
        turn_idle(reactor)
        assert (end.heard, end.lost) == (messages, [""]), "an unfinished line is dropped"


@given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()))
def test_bad_line_ends_the_stream_after_the_good_ones(line: bytes) -> None:
    if any(understood(part, REPORTS) for part in line.split(b"\n")):
        return
    with Reactor() as reactor:
        end = End(reactor)
        with end.other:
            end.other.sendall(
                json.dumps(GOOD[0]).encode() + b"\n" + line + b"\n" + json.dumps(GOOD[1]).encode() + b"\n"
            )
            turn_idle(reactor)
        assert end.heard == GOOD[:1]
        assert end.lost == ["it has sent an invalid message"]


@pytest.mark.parametrize("message", GOOD, ids=["ready", "counters"])
@given(data=st.data())
def test_message_with_one_value_of_another_kind_is_not_understood(message: Message, data: st.DataObject) -> None:
    """At any depth."""
    broken: Any = json.loads(json.dumps(message))
    where, inside = [], broken
    while isinstance(inside, dict | list) and inside:
        key = data.draw(st.sampled_from(sorted(inside) if isinstance(inside, dict) else range(len(inside))))
        where.append((inside, key))
        inside = inside[key]
    parent, key = where[-1]
    parent[key] = data.draw(st.none() | st.booleans() | st.just("") | st.just(-1) | st.just([1]) | st.just({"a": 1}))
    if parent[key] != inside and not (key == "drops" and parent[key] == {"a": 1}):
        assert understood(json.dumps(broken).encode(), REPORTS) is None


def test_line_without_an_end_takes_bounded_memory() -> None:
    with Reactor() as reactor:
        end = End(reactor)
        with end.other:
            end.other.setblocking(False)
            sent = 0
            while not end.lost:
                try:
                    sent += end.other.send(b"x" * 4096)
                except BlockingIOError:
                    reactor.turn()
                except ConnectionError:
                    turn_idle(reactor)
        assert end.lost == ["it has sent a line that is too long"]
        assert end.channel.received_bytes <= 2 * LINE_BYTES


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_conforms_to_its_form(order: str) -> None:
    assert understood(json.dumps({"say": order} | ORDERS[order]).encode(), ORDERS) is not None


@pytest.mark.parametrize("reason", [*Reason, *DROP_REASONS, *(f"{ACCEPT}{name}" for name in errno.errorcode.values())])
def test_every_drop_reason_may_be_reported(reason: str) -> None:
    reason += "EPERM" if reason in WITH_ERRNO else ""
    assert conforms({reason: 1}, {})
    assert not conforms({reason: "1"}, {})


@pytest.mark.parametrize("name", ["", "drops", "accept_", "accept_12345", "send_EPERM_", "xsend_EPERM", 'busy"} 1\n'])
def test_invented_drop_reason_is_refused(name: str) -> None:
    """Otherwise a hostile worker could fill the supervisor with names, one life after another."""
    assert not conforms({name: 1}, {})
    assert conforms({"accept_524": 1}, {}), "an errno of a newer kernel"
