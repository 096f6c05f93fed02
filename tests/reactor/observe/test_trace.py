"""A trace reports every event in order, with its line, and changes nothing."""

from __future__ import annotations

import collections
import functools
import linecache
import logging
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from reactor import (
    READ,
    WRITE,
    Connection,
    Datagram,
    DatagramProtocol,
    Limits,
    Reactor,
    StreamProtocol,
    connect_tcp,
    listen_tcp,
    open_udp,
)
from reactor.doors import Observer
from reactor.fastpath.batch import DatagramBatch
from reactor.fastpath.busypoll import BusyPollSelector
from reactor.observe.trace import FILES, REMEMBERED_TURNS, Event, Trace, words
from reactor.observe.watch import Watch
from reactor.sockets.addresses import Address
from reactor.testing import SimulatedNetwork, simulate
from reactor.testing.simulate import run_once
from reactor.timers import Timer
from tests.simulation.world import swarm_scenario
from tests.support.basics import PROJECT
from tests.support.clients import tcp_pair
from tests.support.loops import SELECTORS, Recorder, server_side, turn_idle, turn_until, wait_readable

SERVER = ("10.0.0.1", 7)
MASKS = {"": 0, "R": READ, "W": WRITE, "RW": READ | WRITE}
SEEDS = [pytest.param(range(8), id="few"), pytest.param(range(8, 40), id="many", marks=pytest.mark.long)]


class Echo(StreamProtocol):
    def data_received(self, connection: Connection, data: bytes) -> None:
        connection.write(data)


class Stage:
    """A simulated network with a traced echo server, and the events."""

    def __init__(self, protocol: Callable[[], StreamProtocol] = Echo, limits: Limits | None = None) -> None:
        self.network = SimulatedNetwork(1)
        self.events: list[Event] = []
        self.loop = self.network.reactor(observer=self.events.append)
        self.listener = listen_tcp(self.loop, SERVER, protocol, limits=limits or Limits())
        self.peer = self.network.peer(SERVER)

    def run(self) -> list[Event]:
        """Run until nothing happens. Return the events."""
        before = len(self.events)
        self.network.run(self.loop)
        return self.events[before:]

    def said(self, who: str, *kinds: str) -> list[dict[str, Any]]:
        return [event.fields for event in self.events if event.who == who and event.kind in kinds]


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


# ---------------------------------------------------------------- what is told


def test_trace_of_a_turn_has_five_steps() -> None:
    """Contract: sleep, select, dispatch, timers, calls."""
    stage = Stage()
    stage.run()
    stage.loop.call_later(0.0, stage.loop.call_soon, print)
    stage.peer.send(b"hello")
    events = stage.run()
    turn = [event for event in events if event.turn == events[0].turn]
    assert kinds(turn) == ["turn", "select", "dispatch", "received", "sent", "timer_fired", "call"]
    assert [event.who for event in turn] == ["", "", "connection-1", "connection-1", "connection-1", "timer-1", ""]
    assert turn[0].fields == {"sleep_s": 0.0, "calls": 0, "timers": 1}
    assert turn[1].fields == {"ready": [["connection-1", "R"]], "slept_s": 0.0}
    assert turn[6].fields == {"callback": "builtins.print", "owner": "", "error": None}
    assert [event.number for event in stage.events] == list(range(len(stage.events)))


def test_trace_of_a_partial_write_has_pending_bytes_and_interest() -> None:
    """Issue: "bytes received/sent with partial writes, interest changed, buffer grew/shrank"."""
    stage = Stage()
    stage.run()
    stage.network.plan("send", "short", 3)
    stage.peer.send(b"hello world")
    stage.run()
    assert stage.said("connection-1", "received", "sent", "buffer", "interest")[1:] == [
        {"bytes": 11, "asked": 65_536},
        {"bytes": 3, "offered": 11},
        {"before": 0, "after": 8},
        {"before": "R", "after": "RW", "resting": False},
        {"bytes": 8, "offered": 8},
        {"before": 8, "after": 0},
        {"before": "RW", "after": "R", "resting": False},
    ]
    assert [event.fields for event in stage.events if event.kind == "fault"] == [{"fault": "send#1=short:3"}]


def test_trace_shows_a_full_kernel_and_a_full_buffer() -> None:
    stage = Stage(limits=Limits(high_water_bytes=100))
    stage.network.plan("send", "EAGAIN", 2)
    stage.peer.send(bytes(1000))
    stage.run()
    assert {"call": "send", "offered": 1000} in stage.said("connection-1", "blocked")
    assert {"before": "R", "after": "W", "resting": False} in stage.said("connection-1", "interest"), "held back"


def test_trace_of_a_closed_connection_has_its_reason() -> None:
    stage = Stage()
    stage.run()
    stage.peer.finish()
    assert [event.kind for event in stage.run() if event.who == "connection-1"][1:] == [
        "eof", "state", "state", "interest", "closed",
    ]  # fmt: skip
    assert stage.said("connection-1", "closed") == [{"error": None, "state": "DRAINING"}]
    assert stage.said("connection-1", "state")[0] == {"before": "OPEN", "after": "DRAINING"}
    other = stage.network.peer(SERVER)
    stage.run()
    other.reset()
    stage.run()
    assert stage.said("connection-2", "error") == [
        {"call": "recv", "errno": "ECONNRESET", "text": "Connection reset by peer"}
    ]
    [closed] = stage.said("connection-2", "closed")
    assert "Connection reset by peer" in closed["error"]
    assert closed["state"] == "OPEN"
    [lost] = [event.fields for event in stage.events if event.kind == "call" and event.fields["error"]]
    assert lost["owner"] == "connection-2"
    assert lost["callback"].endswith("Echo.connection_lost")


def test_trace_of_a_lost_connection_empties_its_buffer() -> None:
    stage = Stage()
    stage.network.plan("send", "short", 1)
    stage.network.plan("send", "ECONNRESET", after=1)
    stage.peer.send(b"abc")
    stage.run()
    assert stage.said("connection-1", "buffer") == [{"before": 0, "after": 2}, {"before": 2, "after": 0}]


def test_trace_shows_a_half_close() -> None:
    stage = Stage()
    stage.run()
    [connection] = [handler for handler in stage.loop.handlers if isinstance(handler, Connection)]
    connection.half_close()
    assert stage.said("connection-1", "state") == [{"before": "OPEN", "after": "HALF_CLOSED"}]


def test_trace_of_emfile_shows_the_error_and_the_suspended_listener() -> None:
    stage = Stage()
    stage.network.plan("accept", "EMFILE", 1)
    stage.run()
    assert stage.said("listener-1", "error") == [{"call": "accept", "errno": "EMFILE", "text": "Too many open files"}]
    assert {"before": "R", "after": "", "resting": True} in stage.said("listener-1", "interest")
    assert [fields["peer"] for fields in stage.said("listener-1", "accepted")] == ["192.0.2.1:32768"], "a moment later"
    assert stage.said("connection-1", "adopted") == [
        {
            "what": "Connection", "fd": 6, "protocol": "Echo", "where": "192.0.2.1:32768", "high_water_bytes": 65_536,
        }
    ]  # fmt: skip


def test_trace_shows_a_stale_event() -> None:
    """Hazard: a stale event."""

    class CloseOthers(StreamProtocol):
        def data_received(self, connection: Connection, data: bytes) -> None:
            for handler in tuple(stage.loop.handlers):
                if isinstance(handler, Connection) and handler is not connection:
                    handler.abort()

    stage = Stage(CloseOthers)
    other = stage.network.peer(SERVER)
    stage.run()
    stage.peer.send(b"x")
    other.send(b"y")
    stage.network.settle()
    events = stage.run()
    assert [(event.who, event.fields) for event in events if event.kind == "stale"] == [("connection-2", {"mask": "R"})]


def test_trace_follows_timers_to_their_end() -> None:
    """Issue: "timer fired/scheduled/cancelled, … lag"."""
    stage = Stage()
    stage.run()
    one = stage.loop.call_later(1.0, int)
    two = stage.loop.call_later(2.0, stage.listener.resume)
    late = stage.loop.call_later(2.0, int)
    stage.loop.call_later(1.5, late.cancel)
    stage.network.call_later(2.5, lambda: stage.peer.send(b"x"))
    one.cancel()
    one.cancel()
    stage.run()
    told = [(event.kind, event.who, event.fields) for event in stage.events if event.kind.startswith("timer")]
    cancel, resume = "reactor.timers.Timer.cancel", "reactor.listener.Listener.resume"
    assert told[:5] == [
        ("timer_set", "timer-1", {"delay_s": 1.0, "due_t": 1001.0, "callback": "builtins.int", "owner": ""}),
        ("timer_set", "timer-2", {"delay_s": 2.0, "due_t": 1002.0, "callback": resume, "owner": "listener-1"}),
        ("timer_set", "timer-3", {"delay_s": 2.0, "due_t": 1002.0, "callback": "builtins.int", "owner": ""}),
        ("timer_set", "timer-4", {"delay_s": 1.5, "due_t": 1001.5, "callback": cancel, "owner": "timer-3"}),
        ("timer_cancelled", "timer-1", {"callback": "builtins.int", "owner": ""}),
    ]  # fmt: skip
    assert [(kind, who) for kind, who, _ in told[5:]] == [
        ("timer_fired", "timer-4"), ("timer_cancelled", "timer-3"), ("timer_fired", "timer-2"),
    ]  # fmt: skip
    assert two.callback is None


def test_timer_cancelled_in_the_same_turn_is_not_traced_as_fired() -> None:
    stage = Stage()
    stage.run()
    timers: list[Any] = []
    stage.loop.call_at(1001.0, lambda: timers[0].cancel())
    timers.append(stage.loop.call_at(1001.0, int))
    stage.run()
    told = [(event.who, event.kind) for event in stage.events if event.who.startswith("timer")][2:]
    assert told == [("timer-1", "timer_fired"), ("timer-2", "timer_cancelled")]


def test_trace_of_a_late_timer_has_its_lag() -> None:
    stage = Stage()
    stage.run()
    stage.loop.call_later(1.0, int)
    stage.network.clock.advance(1.5)
    stage.run()
    assert [event.fields["lag_s"] for event in stage.events if event.kind == "timer_fired"] == [0.5]


def test_pausing_and_resuming_are_traced_once() -> None:
    stage = Stage()
    stage.run()
    [connection] = [handler for handler in stage.loop.handlers if isinstance(handler, Connection)]
    for method in (connection.pause_reading, connection.pause_reading, connection.resume_reading):
        method()
    assert kinds(stage.events[-4:]) == ["paused", "interest", "resumed", "interest"]


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("error", "said"), [(ValueError("x"), "ValueError('x')"), (OSError(), "OSError()"), (OSError("why"), "why")]
)
def test_trace_of_a_callback_that_raises_has_its_closed_connection(error: Exception, said: str) -> None:
    class Raise(StreamProtocol):
        def data_received(self, connection: Connection, data: bytes) -> None:
            raise error

    stage = Stage(Raise)
    stage.peer.send(b"x")
    stage.run()
    [raised] = [event for event in stage.events if event.kind == "raised"]
    assert raised.fields == {"error": said, "owner": "connection-1"}
    assert stage.said("connection-1", "closed") == [{"error": said, "state": "OPEN"}]
    stage.events.clear()
    stage.loop.call_later(0, functools.partial(cast(Any, divmod), 1, 0))
    stage.run()
    [raised] = [event for event in stage.events if event.kind == "raised"]
    assert raised.fields["owner"] == ""


class DatagramEcho(DatagramProtocol):
    def datagram_received(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        if data == b"drop":
            endpoint.drop("unwanted", source)
        else:
            endpoint.send(data, source, path)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1"])
def test_traced_datagrams_have_their_peers(host: str) -> None:
    network, events = SimulatedNetwork(1), list[Event]()
    loop = network.reactor(observer=events.append)
    open_udp(loop, (host, 7), DatagramEcho())
    peer = network.udp_peer(port=5000)
    peer.send(b"abc", SERVER)
    peer.send(b"drop", SERVER)
    network.run(loop)
    network.plan("sendmsg", "EAGAIN")
    peer.send(b"hold", SERVER)
    network.run(loop)
    network.plan("sendmsg", "EAGAIN")
    peer.send(b"", SERVER)  # is held as well, but has no bytes
    network.run(loop)
    told = [(event.kind, event.fields) for event in events if event.who == "datagram-1"]
    assert [kind for kind, _ in told].count("buffer") == 2
    source = "192.0.2.1:5000"
    assert ("received", {"bytes": 3, "asked": 65_536, "peer": source}) in told
    assert ("sent", {"bytes": 3, "offered": 3, "peer": source}) in told
    assert ("dropped", {"reason": "unwanted", "count": 1, "peer": source}) in told
    assert ("blocked", {"call": "send", "offered": 4}) in told
    assert ("buffer", {"before": 0, "after": 4}) in told, "one that is held"
    assert ("buffer", {"before": 4, "after": 0}) in told
    assert ("sent", {"bytes": 4, "offered": 4, "peer": source}) in told


def test_traced_datagram_to_a_connected_peer_has_no_address() -> None:
    events: list[Event] = []
    with Reactor(observer=Trace(events.append)) as loop, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(peer.getsockname())
        sock.setblocking(False)
        Datagram(loop, sock, DatagramProtocol()).send(b"x")
        assert peer.recv(10) == b"x"
    assert [event.fields for event in events if event.kind == "sent"] == [{"bytes": 1, "offered": 1, "peer": ""}]


def test_trace_follows_a_connector_until_it_is_a_connection() -> None:
    network, events = SimulatedNetwork(1), list[Event]()
    loop, failed = network.reactor(observer=events.append), list[OSError]()
    network.peer_server(("192.0.2.80", 80))
    connect_tcp(loop, ("192.0.2.80", 80), Recorder(), failed.append)
    connect_tcp(loop, ("192.0.2.81", 80), Recorder(), failed.append)
    network.run(loop)
    connect_tcp(loop, ("192.0.2.80", 80), Recorder(), failed.append).abort()
    network.plan("connect", "ECONNREFUSED")
    refused = connect_tcp(loop, ("192.0.2.80", 80), Recorder(), failed.append)
    network.run(loop)
    refused.abort()
    errors = [event.fields["error"] for event in events if event.kind == "closed" and event.who > "connector-2"]
    assert errors == [None, "[Errno 111] Connection refused"]
    told = {(event.who, event.kind) for event in events}
    assert {("connector-1", "adopted"), ("connector-1", "closed"), ("connection-1", "adopted")} <= told
    calls = [str(event.fields["error"]) for event in events if event.kind == "call" and event.fields["error"]]
    assert len(calls) == len(failed) == 2
    assert "timed out" in calls[0]


# ---------------------------------------------------------------- the lines

LINES = {
    "turn": r"self\._select\(",
    "select": r"self\._select\(",
    "dispatch": r"handler\.on_event\(mask\)",
    "stale": r"if not handler\.closed",
    "accepted": r"\.accept\(\)",
    "received": r"\b_?rec(v|eive)\(",
    "eof": r"_recv\(",
    "sent": r"\b_?send(to|msg)?\(",
    "blocked": r"accept\(|rec(v|eive)\(|send(to|msg)?\(",
    "error": r"accept\(|rec(v|eive)\(|send(to|msg)?\(",
    "fault": r"accept\(|rec(v|eive)\(|send(to|msg)?\(|(drain|fill)\(",
    "interest": r"_selector\.(un)?(register|modify)",
    "buffer": r"_pending\.(append|clear|consume)\(|_send\(|_recv\(|tell\(.buffer.",
    "timer_set": r"_timers\.add\(",
    "timer_cancelled": r"cancel\(|callback\(\*args\)",
    "timer_fired": r"timer_fired|timer\.fire",
    **{kind: rf"tell\(.{kind}." for kind in ("adopted", "call", "closed", "dropped", "raised", "state")},
}
RARE = {"stale", "raised"}  # these have their own tests


@pytest.mark.parametrize("seeds", SEEDS)
def test_each_event_has_the_line_that_caused_it(seeds: range) -> None:
    """Issue: "the line of `reactor` source that each event comes from"; in faulty simulations."""
    seen = collections.Counter[str]()

    def look(event: Event) -> None:
        for line in (event.line, *event.via):
            assert re.fullmatch(r"|[a-z/]+\.py:\d+", line)
        if event.kind in LINES and event.line:
            source = {name: path for path, name in FILES.items()}[event.line.partition(":")[0]]
            text = linecache.getline(source, int(event.line.partition(":")[2]))
            assert re.search(LINES[event.kind], text), (event, text)
            seen[event.kind] += 1

    for seed in seeds:
        network = Observed(seed, faults={"send.short": 0.2, "send.EAGAIN": 0.1, "recv.ECONNRESET": 0.02})
        network.observer = look
        assert run_once(swarm_scenario, network) is None
    assert seen.keys() >= LINES.keys() - RARE


def test_via_has_the_calling_lines_up_to_the_turn() -> None:
    """Done when: "how does readiness reach my callback?" can be answered in the player."""
    stage = Stage()
    stage.peer.send(b"x")
    stage.run()
    [sent] = [event for event in stage.events if event.kind == "sent"]
    files = [line.partition(":")[0] for line in (sent.line, *sent.via)]
    assert files == ["connection.py", "connection.py", "loop.py"], "write, in on_event, in turn"


# ---------------------------------------------------------------- it is true, and changes nothing


def trace_of(loop: Reactor) -> Trace:
    assert isinstance(loop.observer, Trace)
    return loop.observer


class Observed(SimulatedNetwork):
    """A network with traced reactors."""

    observer: Callable[[Event], object]

    def reactor(self, **options: Any) -> Reactor:
        return super().reactor(observer=self.observer, **options)


class Follower:
    """Rebuilds the loop's state from its events, and compares it with the loop before every sleep."""

    def __init__(self, network: SimulatedNetwork) -> None:
        self.network = network
        self.picture: dict[str, dict[str, Any]] = {}
        self.timers: set[str] = set()
        self.compared = 0

    def __call__(self, event: Event) -> None:
        told = self.picture.get(event.who, {})
        fields = event.fields
        if event.kind == "adopted":
            self.picture[event.who] = {"received": 0, "sent": 0, "buffer": 0, "state": "OPEN", "interest": ""}
        elif event.kind == "closed":
            del self.picture[event.who]
        elif event.kind == "received":
            told["received"] += fields["bytes"] if told["state"] in ("OPEN", "HALF_CLOSED") else 0
        elif event.kind == "sent":
            told["sent"] += fields["bytes"]
        elif event.kind in ("buffer", "state", "interest"):
            assert fields["before"] == told[event.kind]
            told[event.kind] = fields["after"]
        elif event.kind == "timer_set":
            self.timers.add(event.who)
        elif event.kind in ("timer_fired", "timer_cancelled"):
            self.timers.discard(event.who)
        elif event.kind == "turn":
            self.compare()

    def compare(self) -> None:
        [loop] = self.network.reactors
        trace = trace_of(loop)
        handlers, suspended, timers, *_ = loop.snapshot()
        assert {trace.label(handler) for handler in handlers} == set(self.picture)
        assert {trace.label(timer) for timer in timers} == self.timers
        for handler in handlers:
            told: dict[str, Any] = self.picture[trace.label(handler)]
            assert MASKS[told["interest"]] == (0 if handler in suspended else handler.interest)
            if isinstance(handler, Connection | Datagram | DatagramBatch):
                assert (told["received"], told["sent"]) == (handler.bytes_received, handler.bytes_sent)
            if isinstance(handler, Connection):
                assert (told["state"], told["buffer"]) == (handler.state.name, handler.pending_bytes)
            self.compared += 1


@pytest.mark.parametrize("seeds", SEEDS)
def test_state_rebuilt_from_events_equals_the_loops_state(seeds: range) -> None:
    """In faulty simulations with splices and batches, before every sleep."""
    compared = 0
    failures: list[AssertionError] = []
    for seed in seeds:
        network = Observed(
            seed, faults={"send.short": 0.2, "recv.short": 0.1, "accept.EMFILE": 0.1, "send.ENOBUFS": 0.02}
        )
        follower = Follower(network)

        def keep(event: Event, follower: Follower = follower) -> None:
            try:
                follower(event)
            except AssertionError as error:
                failures.append(error)
                raise

        network.observer = keep
        cause = run_once(swarm_scenario, network)
        assert not failures, failures[0]
        assert cause is None
        compared += follower.compared
    assert compared > 250 * len(seeds)


@pytest.mark.parametrize("seeds", SEEDS)
def test_traced_simulation_makes_the_same_system_calls(seeds: range) -> None:
    """Law: the same seed, the same system calls, the same faults."""
    told = 0
    for seed in seeds:
        journals: list[list[str]] = []
        for kind in (SimulatedNetwork, Observed):
            network = kind(
                seed, faults={"send.short": 0.2, "select.shuffle": 0.2, "step.reset": 0.01, "recv.EAGAIN": 0.1}
            )
            network.journal = []
            events: list[Event] = []
            if isinstance(network, Observed):
                network.observer = events.append
            assert run_once(swarm_scenario, network) is None
            journals.append(network.journal)
            told += len(events)
        assert journals[0] == journals[1]
    assert told > 250 * len(seeds)


@pytest.mark.parametrize("kind", SELECTORS)
@pytest.mark.parametrize("busy_poll", [False, True])
@pytest.mark.parametrize("watched", [False, True])
def test_loop_with_any_selector_can_be_traced_and_watched(
    kind: type[selectors.BaseSelector], busy_poll: bool, watched: bool
) -> None:
    events: list[Event] = []
    trace = Trace(events.append)
    selector = BusyPollSelector(kind(), time.monotonic, 1e-4) if busy_poll else kind()
    with Reactor(selector=selector, observer=Watch(0.1, trace) if watched else trace) as loop:
        listener = listen_tcp(loop, ("127.0.0.1", 0), Echo)
        with socket.create_connection(listener.address[:2]) as client:
            connection = server_side(loop, client)
            client.sendall(bytes(100_000))
            turn_until(loop, lambda: connection.bytes_received == 100_000)
            turn_idle(loop)
            connection.close()
    received = sum(event.fields["bytes"] for event in events if event.kind == "received")
    assert received == 100_000
    assert {"dispatch", "accepted", "sent", "closed"} <= set(kinds(events))


def test_a_trace_whose_callback_raises_is_logged_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Event] = []

    def raise_at_five(event: Event) -> None:
        told.append(event)
        if event.number == 5:
            raise ValueError("enough")

    with Reactor(observer=Trace(raise_at_five)) as loop:
        loop.call_soon(loop.stop)
        loop.run()
    assert len(told) == 6
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "observer raised ValueError('enough'); the trace ends" in record.getMessage()
    with pytest.raises(AssertionError, match="observer raised"):
        simulate(lambda network: network.reactor(observer=lambda event: divmod(1, 0)), seeds=1, shrinking_s=0)


# ---------------------------------------------------------------- a loop without a trace pays nothing

PROGRAM = """
import sys
from reactor import Connection, Reactor, listen_tcp
loop = Reactor()
loop.call_soon(loop.stop)
loop.run()
print([name for name in sys.modules if name.startswith("reactor.observe.")], type(loop.handlers).__name__)
"""


def test_without_an_observer_no_module_of_it_is_imported() -> None:
    """Issue: "Nothing is paid when there is none". `python3 -m benchmarks` measures the cost."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "[] dict\n"


def test_without_an_observer_a_message_costs_no_call_for_one() -> None:
    """No method of an observer is called for a message."""
    called: list[str] = []

    def note(frame: Any, event: str, arg: object) -> None:
        if event == "call" and (frame.f_code.co_name == "tell" or "doors.py" in frame.f_code.co_filename):
            called.append(frame.f_code.co_qualname)

    with Reactor() as loop:
        ours, peer = tcp_pair()
        ours.setblocking(False)
        connection = Connection(loop, ours, Echo())
        connection.open()
        peer.send(b"hello")
        wait_readable(connection)
        sys.setprofile(note)
        try:
            loop.turn()
        finally:
            sys.setprofile(None)
        assert peer.recv(10) == b"hello"
        peer.close()
    assert called == []


# ---------------------------------------------------------------- small things


def test_an_event_can_be_printed_and_written_as_json() -> None:
    event = Event(
        3, 2, 1000.5, "sent", "connection-1", "connection.py:93", ("loop.py:94",), {"bytes": 3, "offered": 11}
    )
    assert str(event) == "   2 1000.500000 connection.py:93   connection-1   sent       bytes=3 offered=11"
    assert event.document() == {
        "n": 3, "turn": 2, "t": 1000.5, "kind": "sent", "who": "connection-1", "at": "connection.py:93",
        "via": ["loop.py:94"], "bytes": 3, "offered": 11,
    }  # fmt: skip


def test_error_that_cannot_be_printed_is_traced_by_its_class() -> None:
    assert words(Unprintable()) == "Unprintable"


def test_a_traced_selector_still_knows_its_handlers() -> None:
    """The stand-in for a handler has the handler's attributes."""
    selector, events = selectors.DefaultSelector(), list[Event]()
    with Reactor(selector=selector, observer=Trace(events.append)) as loop:
        listener = listen_tcp(loop, ("127.0.0.1", 0), Echo)
        data = selector.get_map()[listener.fileno()].data
        assert (data.fileno(), data.interest, data.closed, data.address) == (
            listener.fileno(), READ, False, listener.address,
        )  # fmt: skip
        data.abort()
        assert listener.closed
        loop.unregister(listener)
    assert [event.who for event in events if event.kind == "closed"] == ["listener-1", "waker-1"], "each once"


def test_labels_of_closed_handlers_are_forgotten() -> None:
    """Every table is bounded. A forgotten handler gets a new label."""
    stage, gone = Stage(), list[object]()
    stage.run()
    for _ in range(5):
        peer = stage.network.peer(SERVER)
        peer.send(b"x")
        gone.append(stage.loop.call_later(60, int))
        stage.loop.call_later(60, int).cancel()
        stage.run()
        gone.append(next(reversed(stage.loop.handlers)))
        peer.reset()
        stage.run()
    stage.loop.call_later(0, int)
    stage.run()
    trace = trace_of(stage.loop)
    assert [trace.label(each) for each in stage.loop.handlers] == ["waker-1", "listener-1", "connection-1"]
    labels = {trace.label(each) for each in gone}
    assert labels == {f"connection-{number}" for number in range(7, 12)} | {f"timer-{n}" for n in range(12, 17)}
    lost = [event.fields["owner"] for event in stage.events if event.kind == "call" and event.fields["error"]]
    assert lost == [f"connection-{number}" for number in range(2, 7)], "each had its name for its last callback"


def test_busy_loop_forgets_labels_too() -> None:
    trace = Trace(lambda event: None)
    with Reactor(observer=trace) as loop:
        timers: list[Timer] = []
        for _ in range(50):
            loop.call_soon(int)
            timers.append(loop.call_later(60, int))
            timers[-1].cancel()
            loop.turn()
        assert [trace.label(timer) for timer in timers[:-REMEMBERED_TURNS]] == [f"timer-{n}" for n in range(51, 99)]


def test_a_handler_registered_again_keeps_its_name() -> None:
    """Law: a program may do with an observer whatever it may do without one."""

    class Own:
        interest, closed, address = 0, False, (7,)

        def fileno(self) -> int:
            return 1_000_000

        def detach(self) -> None:
            """There is none."""

        def on_event(self, mask: int) -> None:
            """Never called."""

        def abort(self, error: Exception | None = None) -> None:
            """Nothing is open."""

    events: list[Event] = []
    own = Own()
    with Reactor(observer=Trace(events.append)) as loop:
        loop.register(own)
        loop.unregister(own)
        loop.register(own)
        turn_idle(loop, 4)
        loop.unregister(own)
    told = [(event.kind, event.who, event.fields.get("fd"), event.fields.get("where")) for event in events]
    assert [event for event in told if event[1] == "own-1"] == [
        ("adopted", "own-1", 1_000_000, ""), ("closed", "own-1", None, None),
    ] * 2  # fmt: skip


@pytest.mark.parametrize("argument", [memoryview(bytearray(b"x")), (1, [2]), {}])
def test_unhashable_argument_can_be_traced(argument: object) -> None:
    with Reactor(observer=Trace(lambda event: None)) as loop:
        got: list[object] = []
        loop.call_soon(got.append, argument)
        loop.call_later(0, got.append, argument)
        turn_until(loop, lambda: len(got) == 2)


class Proxy:
    def __getattr__(self, name: str) -> object:
        raise RuntimeError("nothing is known of me")

    def __call__(self) -> None:
        """Be called."""


def test_callback_without_a_name_is_traced_by_its_class() -> None:
    events: list[Event] = []
    with Reactor(observer=Trace(events.append)) as loop:
        loop.call_soon(Proxy())
        turn_idle(loop, 1)
    assert "Proxy" in [event.fields["callback"] for event in events if event.kind == "call"]


def test_subclass_is_traced_like_its_base() -> None:
    class Mine(Connection):
        __slots__ = ()

    events: list[Event] = []
    with Reactor(observer=Trace(events.append)) as loop:
        ours, theirs = tcp_pair()
        ours.setblocking(False)
        mine = Mine(loop, ours, Echo())
        mine.open()
        mine.abort()
        theirs.close()
    assert [event.kind for event in events if event.who == "mine-1"] == [
        "adopted",
        "interest",
        "state",
        "interest",
        "closed",
    ]


def test_infinite_high_water_mark_is_written_as_a_number() -> None:
    stage = Stage(limits=Limits(high_water_bytes=float("inf")))  # type: ignore[arg-type]
    stage.run()
    assert stage.said("connection-1", "adopted")[0]["high_water_bytes"] == 2**53


def test_closed_listener_and_endpoint_are_traced_with_the_reason() -> None:
    events: list[Event] = []
    with Reactor(observer=Trace(events.append)) as loop:
        for handler in (
            listen_tcp(loop, ("127.0.0.1", 0), Echo), open_udp(loop, ("127.0.0.1", 0), DatagramProtocol()),
        ):  # fmt: skip
            handler.abort(OSError(9, "it broke"))
            handler.abort(OSError(9, "it broke again"))
    closed = [event.fields["error"] for event in events if event.kind == "closed"]
    assert closed == ["[Errno 9] it broke"] * 2 + [None]


def test_refusal_by_the_selector_is_traced() -> None:
    stage = Stage()
    stage.network.plan("register", "ENOSPC", 1)
    stage.run()
    assert {"call": "register", "errno": "ENOSPC", "text": "No space left on device"} in stage.said(
        "connection-1", "error"
    )


def test_a_watch_counts_no_more_slow_callbacks_around_a_trace() -> None:
    def slow_callbacks(inner: Observer) -> int:
        network, watch = SimulatedNetwork(1), Watch(0.0, inner)
        loop = Reactor(
            selector=network.selector(), clock=network.clock, sockets=network, signals=network.signals, observer=watch
        )
        network.reactors.append(loop)
        listen_tcp(loop, SERVER, Echo)
        network.peer(SERVER).send(b"hello")
        network.run(loop)
        return watch.slow_callbacks

    assert slow_callbacks(Trace(lambda event: None)) == slow_callbacks(Observer()) > 0


def test_loop_goes_on_after_its_trace_ended() -> None:
    def give_up(event: Event) -> None:
        raise ValueError

    with Reactor(observer=Trace(give_up)) as loop:
        done: list[int] = []
        loop.call_soon(done.append, 1)
        loop.call_later(0, done.append, 2).cancel()
        loop.call_later(0, done.append, 3)
        turn_until(loop, lambda: set(done) == {1, 3})


def test_address_of_another_family_is_traced_as_empty() -> None:
    events: list[Event] = []
    with Reactor(observer=Trace(events.append)) as loop:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        with theirs:
            Datagram(loop, ours, DatagramProtocol()).send(b"x")
            theirs.send(b"y")
            turn_until(loop, lambda: any(event.kind == "received" for event in events))
    assert [event.fields["peer"] for event in events if event.kind in ("sent", "received")] == ["", ""]


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def method(self) -> None:
        """Be called."""


def test_a_callback_of_an_unknown_object_has_no_owner() -> None:
    events: list[Event] = []
    with Reactor(observer=Trace(events.append)) as loop:
        listener = listen_tcp(loop, ("127.0.0.1", 0), Echo)
        loop.call_soon(Unhashable().method)
        loop.call_soon(functools.partial(functools.partial(print, end=""), end=""))
        loop.call_soon(functools.partial(listener.resume))
        loop.call_soon(str, listener)
        turn_idle(loop, 1)
    assert [event.fields["owner"] for event in events if event.kind == "call"][:4] == [
        "",
        "",
        "listener-1",
        "listener-1",
    ]


@pytest.mark.parametrize("make", [lambda: Trace(print), Watch, lambda: Watch(inner=Trace(print))])
def test_an_observer_of_one_loop_is_refused_by_another(make: Callable[[], Observer]) -> None:
    """Both loops would have one heap of timers: a timer of the first would fire in the second."""
    observer = make()
    with Reactor(observer=observer) as loop:
        loop.call_later(0, pytest.fail, "this loop has never turned")
        with pytest.raises(RuntimeError, match="belongs to another loop"):
            Reactor(observer=observer)
    with pytest.raises(RuntimeError, match="belongs to another loop"):
        Reactor(observer=observer)
