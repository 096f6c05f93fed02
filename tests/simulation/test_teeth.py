"""The simulation has teeth: each bug that echo servers are known for is planted here, and found.

The same seeds pass without it (`test_swarm.py`). `SEEDS` is the stated number: no bug may hide from so many worlds.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import types
from collections.abc import Callable
from typing import Any

import pytest

import reactor.fastpath.batch
import reactor.sockets
from echo7.policy.echo import StreamEcho
from echo7.policy.guard import Guard
from echo7.server import EchoServer
from reactor import READ, WRITE, Connection, Datagram, Listener, Reactor
from reactor.buffer import SendBuffer
from reactor.connection import LINGERING, NOTHING, OPEN
from reactor.fastpath.batch import DatagramBatch
from reactor.fastpath.mmsg import ZEROS, Slots
from reactor.fastpath.splice import Splice, Splicer
from reactor.signals import Waker
from reactor.sockets.errors import OUT_OF_MEMORY, WOULD_BLOCK, errno_name
from reactor.testing import SimulationFailed, simulate
from reactor.timers import Timers
from tests.simulation.world import swarm_scenario

SEEDS = 200
Plant = Callable[[pytest.MonkeyPatch], None]
BUGS: dict[str, Plant] = {}


def bug(plant: Plant) -> Plant:
    """List a bug under its function's name."""
    BUGS[plant.__name__] = plant
    return plant


def wrong(owner: Any, name: str) -> Callable[[Any], Plant]:
    """Make a bug of a function that takes the place of `owner.name`."""

    def plant(replacement: Any) -> Plant:
        replaced = staticmethod(replacement) if owner is StreamEcho else replacement
        BUGS[replacement.__name__] = lambda patch: patch.setattr(owner, name, replaced)
        return BUGS[replacement.__name__]

    return plant


# ---------------------------------------------------------------- bytes


@wrong(Connection, "_flush")
def bytes_popped_before_send_has_taken_them(self: Any) -> None:
    data = bytes(self._pending.peek())
    self._pending.consume(len(data))
    with contextlib.suppress(OSError):
        self.bytes_sent += self._send(data)
    self._advance()


@wrong(StreamEcho, "data_received")
def a_short_write_ignored(self: Any, data: bytes) -> None:
    if self.state is OPEN:
        with contextlib.suppress(OSError):
            self._send(data)


@wrong(StreamEcho, "data_received")
def a_write_that_overtakes_what_waits(self: Any, data: bytes) -> None:
    if self.state is not OPEN:
        return
    sent = 0
    with contextlib.suppress(OSError):
        sent = self._send(data)
        self.bytes_sent += sent
    if self._pending is NOTHING:
        self._pending = SendBuffer()
    self._pending.append(data[sent:])
    self._update_interest()


@bug
def an_urgent_byte_left_out_of_the_stream(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reactor.sockets, "set_stream_options", lambda sock: None)


@bug
def a_greeting_that_nobody_asked_for(patch: pytest.MonkeyPatch) -> None:
    original = Connection.open

    def greet(self: Connection) -> None:
        original(self)
        self.write(b"220 ready\r\n")

    patch.setattr(Connection, "open", greet)


@bug
def a_byte_changed_in_a_great_while(patch: pytest.MonkeyPatch) -> None:
    original = Connection.write

    def write(self: Connection, data: bytes) -> None:
        original(self, data.replace(b"\r\n", b"\n"))

    patch.setattr(StreamEcho, "data_received", staticmethod(write))


# ---------------------------------------------------------------- readiness and interest


@wrong(Connection, "_wanted")
def no_backpressure(self: Any) -> int:
    return READ | (WRITE if self._pending else 0)


@bug
def interest_toggled_by_hand(patch: pytest.MonkeyPatch) -> None:
    """WRITE is asked for when bytes must wait, and nobody takes it back."""

    def update(self: Any) -> None:
        wanted = self._wanted() | (self.interest & WRITE if self.state is OPEN else 0)
        if wanted != self.interest:
            self._reactor.set_interest(self, wanted)

    patch.setattr(Connection, "_update_interest", update)


@wrong(Connection, "_flush")
def reading_never_begun_again(self: Any) -> None:
    """Backpressure stops reading, and the flush doesn't look again."""
    try:
        sent = self._send(self._pending.peek())
    except WOULD_BLOCK:
        return
    except OSError as error:
        self._is_fatal(error)
        return
    self._pending.consume(sent)
    self.bytes_sent += sent
    if self.state is not OPEN:
        self._advance()


def eager(patient: tuple[type[OSError], ...]) -> Callable[[Any, int], None]:
    """An on_event that trusts what it is told, and takes all but `patient` for the end."""

    def on_event(self: Any, mask: int) -> None:
        try:
            data = self._recv(self.limits.receive_bytes) if mask & READ else None
        except patient:
            return
        except OSError as error:
            self._is_fatal(error)
            return
        if data and self.state is OPEN:
            self.bytes_received += len(data)
            self._data_received(self, data)
        elif data == b"":
            self._end_of_stream()
        if mask & WRITE and not self.closed:
            self._flush()

    return on_event


@bug
def handlers_looked_up_by_descriptor_number(patch: pytest.MonkeyPatch) -> None:
    """A table by number, in which a new owner doesn't take the old one's place."""
    table: dict[tuple[Reactor, int], Any] = {}
    original = Reactor.set_interest

    def set_interest(self: Reactor, handler: Any, interest: int) -> None:
        original(self, handler, interest)
        table.setdefault((self, handler.fileno()), handler)

    def turn(self: Any) -> None:
        sleep_s = 0.0 if self._calls or self._stopping else self._timers.sleep_s(self.now())
        for key, mask in self._select(sleep_s):
            table[self, key.fd].on_event(mask)
        for timer in self._timers.pop_due(self.now()):
            self.guard(timer.fire)
        self._run_calls()

    patch.setattr(Reactor, "set_interest", set_interest)
    patch.setattr(Reactor, "turn", turn)


BUGS["events_trusted_though_readiness_may_be_spurious"] = lambda patch: patch.setattr(Connection, "on_event", eager(()))


@bug
def nothing_to_do_and_still_registered(patch: pytest.MonkeyPatch) -> None:
    """A half-closed, drained connection that is watched for HUP turns the loop for nothing."""

    def end_of_stream(self: Any) -> None:
        if self.state is LINGERING:
            self._tear_down()
            return
        if not self._pending:
            self.close()

    patch.setattr(Connection, "_end_of_stream", end_of_stream)


@bug
def events_of_the_batch_delivered_to_the_dead(patch: pytest.MonkeyPatch) -> None:
    """The loop doesn't ask whether a handler is still open."""

    def turn(self: Any) -> None:
        sleep_s = 0.0 if self._calls or self._stopping else self._timers.sleep_s(self.now())
        for key, mask in self._select(sleep_s):
            key.data.on_event(mask)
        for timer in self._timers.pop_due(self.now()):
            self.guard(timer.fire)
        self._run_calls()

    def close_the_others(self: Any, connection: Connection) -> None:
        others = [handler for handler in connection._reactor.handlers if isinstance(handler, Connection)]
        self._made(connection)
        if len(others) > 2:
            others[0].abort()

    patch.setattr(Reactor, "turn", turn)
    patch.setattr(StreamEcho, "connection_made", close_the_others)


# ---------------------------------------------------------------- the end


@wrong(Connection, "_advance")
def closed_without_lingering(self: Any) -> None:
    if self.state is not OPEN and not self._pending:
        self._tear_down()
    else:
        self._update_interest()


@wrong(Connection, "_end_of_stream")
def half_close_taken_for_the_end(self: Any) -> None:
    self._tear_down()


@wrong(Connection, "_tear_down")
def closed_before_it_is_unregistered(self: Any, error: Exception | None = None) -> None:
    self.state, self.closed = LINGERING, True
    number = self._socket.fileno()
    self._socket.close()
    with contextlib.suppress(KeyError, ValueError):
        self._reactor._selector.unregister(number)
    self.interest = 0
    self._reactor.release(self)
    self._reactor.call_soon(self.protocol.connection_lost, self, error)


@bug
def a_descriptor_leaked(patch: pytest.MonkeyPatch) -> None:
    original = Connection._tear_down

    def tear_down(self: Any, error: Exception | None = None) -> None:
        if error is not None:  # unregistered and forgotten, but not closed
            self._socket = types.SimpleNamespace(close=int, fileno=self._socket.fileno)
        original(self, error)

    patch.setattr(Connection, "_tear_down", tear_down)


@wrong(Connection, "_is_fatal")
def enobufs_taken_for_the_end(self: Any, error: OSError) -> bool:
    self.abort(error)
    return True


@bug
def eagain_taken_for_the_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("reactor.connection.WOULD_BLOCK", ())


@bug
def eintr_taken_for_the_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("reactor.connection.WOULD_BLOCK", (BlockingIOError,))


@bug
def timers_that_fire_early(patch: pytest.MonkeyPatch) -> None:
    original = Timers.pop_due
    patch.setattr(Timers, "pop_due", lambda self, now_s: original(self, now_s + 1.0))


@wrong(Connection, "abort")
def aborted_without_a_reset(self: Any, error: Exception | None = None) -> None:
    """The peer takes half a stream for a whole one."""
    if not self.closed:
        self._tear_down(error)


@wrong(Connection, "_wanted")
def reading_goes_on_while_draining(self: Any) -> int:
    reading = not self._eof and len(self._pending) <= self.limits.high_water_bytes
    return (READ if reading else 0) | (WRITE if self._pending else 0)


@wrong(Connection, "_is_fatal")
def no_rest_when_memory_runs_out(self: Any, error: OSError) -> bool:
    if error.errno in OUT_OF_MEMORY:
        return False
    self._tear_down(error)
    return True


@wrong(Reactor, "rest")
def a_rest_of_no_time(self: Any, handler: Any, pause_s: float = 0.0) -> None:
    if handler.interest and handler not in self._resting:
        self._selector.unregister(handler.fileno())
        self._resting[handler] = self.call_later(0.0, self._watch_again, handler)


@wrong(Reactor, "rest")
def a_rest_without_an_end(self: Any, handler: Any, pause_s: float = 0.0) -> None:
    if handler.interest and handler not in self._resting:
        self._selector.unregister(handler.fileno())
        self._resting[handler] = self.call_later(pause_s, int)


@bug
def dead_peers_never_found(patch: pytest.MonkeyPatch) -> None:
    """No keepalive."""
    inline = (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    patch.setattr(reactor.sockets, "set_stream_options", lambda sock: sock.setsockopt(*inline))


# ---------------------------------------------------------------- the service


@bug
def pending_bytes_lost_at_the_end(patch: pytest.MonkeyPatch) -> None:
    original = EchoServer.stop

    def stop(self: EchoServer, stopped: Callable[[], object] | None = None) -> None:
        original(self, stopped)
        self.abort()

    patch.setattr(EchoServer, "stop", stop)


@bug
def an_end_that_takes_a_minute(patch: pytest.MonkeyPatch) -> None:
    original = EchoServer.stop

    def stop(self: Any, stopped: Callable[[], object] | None = None) -> None:
        self._drain_timeout_s = 60.0
        original(self, stopped)

    patch.setattr(EchoServer, "stop", stop)


@wrong(EchoServer, "_check_stopped")
def an_end_that_never_comes(self: Any) -> None:
    """Nobody is told."""


@wrong(Listener, "pause")
def max_connections_ignored(self: Any) -> None:
    """Callers go on coming."""


@bug
def bytes_forgotten_by_the_counters(patch: pytest.MonkeyPatch) -> None:
    original = EchoServer._connection_lost

    def lost(self: Any, connection: Any, error: Exception | None) -> None:
        connection.bytes_sent = 0
        original(self, connection, error)

    patch.setattr(EchoServer, "_connection_lost", lost)


# ---------------------------------------------------------------- callers


@wrong(Listener, "_wait")
def no_rest_when_descriptors_run_out(self: Any, error: OSError) -> None:
    """Spin on a listener that stays ready."""


@bug
def one_caller_s_error_ends_the_listener(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("reactor.listener.ONE_PEER", frozenset())
    patch.setattr("reactor.listener.BROKEN_SOCKET", frozenset({errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN}))


@bug
def a_full_house_that_never_opens_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Listener, "resume", lambda self: None)


# ---------------------------------------------------------------- datagrams


@bug
def empty_datagrams_dropped(patch: pytest.MonkeyPatch) -> None:
    original = Datagram._deliver

    def deliver(self: Any, data: bytes, control: Any, flags: int, source: Any) -> None:
        if data:
            original(self, data, control, flags, source)

    patch.setattr(Datagram, "_deliver", deliver)


@bug
def an_answer_from_another_address_than_was_asked(patch: pytest.MonkeyPatch) -> None:
    original = Datagram.send
    patch.setattr(Datagram, "send", lambda self, data, to, path=b"": original(self, data, to))


@bug
def the_interface_named_in_the_answer(patch: pytest.MonkeyPatch) -> None:
    """What came with the request is sent back as it is: routing is bypassed, and the answer lost on a host with two."""
    kind = (socket.IPPROTO_IP, 8), (socket.IPPROTO_IPV6, getattr(socket, "IPV6_PKTINFO", 50))
    patch.setattr("reactor.datagram.reply_control", lambda path: [(*kind[len(path) == 20], path)])


@bug
def answered_twice_when_the_buffer_was_full(patch: pytest.MonkeyPatch) -> None:
    original = Datagram.on_event

    def on_event(self: Any, mask: int) -> None:
        held = self._held
        original(self, mask)
        if held is not None and self._held is None:
            self.send(*held)

    patch.setattr(Datagram, "on_event", on_event)


@bug
def a_held_answer_dropped_and_counted_as_sent(patch: pytest.MonkeyPatch) -> None:
    original = Datagram.on_event

    def on_event(self: Any, mask: int) -> None:
        if self._held is not None:
            self._held = None
            self.datagrams_sent += 1
            self._update_interest()
        original(self, mask)

    patch.setattr(Datagram, "on_event", on_event)


@bug
def an_endpoint_deaf_after_a_shortage(patch: pytest.MonkeyPatch) -> None:
    original = Datagram._goes_on_after

    def goes_on_after(self: Any, error: OSError) -> bool:
        goes_on = original(self, error)
        if not (goes_on or self.closed):
            self._reactor.set_interest(self, 0)
        return goes_on

    patch.setattr(Datagram, "_goes_on_after", goes_on_after)


@bug
def a_datagram_cut_to_512_bytes(patch: pytest.MonkeyPatch) -> None:
    original = Datagram.send
    patch.setattr(Datagram, "send", lambda self, data, to, path=b"": original(self, data[:512], to, path))


@bug
def no_guard(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Guard, "refusals", lambda self, batch, count: {})


@bug
def one_send_error_ends_the_endpoint(patch: pytest.MonkeyPatch) -> None:
    original = Datagram.drop

    def drop(self: Any, reason: str) -> None:
        original(self, reason)
        if reason.startswith("send_"):
            self.abort()

    patch.setattr(Datagram, "drop", drop)


# ---------------------------------------------------------------- datagrams in batches


@bug
def the_refused_answered_with_the_others(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("reactor.fastpath.batch.runs_between", lambda refused, count: [(0, count)])


@bug
def runs_that_end_one_too_late(patch: pytest.MonkeyPatch) -> None:
    def runs_between(refused: list[int], count: int) -> list[tuple[int, int]]:
        return [(start, min(end + 1, count)) for start, end in original(refused, count)]

    original = reactor.fastpath.batch.runs_between
    patch.setattr("reactor.fastpath.batch.runs_between", runs_between)


@bug
def runs_that_begin_one_too_late(patch: pytest.MonkeyPatch) -> None:
    def runs_between(refused: list[int], count: int) -> list[tuple[int, int]]:
        return [(start + 1 if start else 0, end) for start, end in original(refused, count) if start + 1 < end]

    original = reactor.fastpath.batch.runs_between
    patch.setattr("reactor.fastpath.batch.runs_between", runs_between)


@wrong(Slots, "make_room")
def slots_that_stay_as_short_as_their_last_datagram(self: Any, count: int) -> None:
    """The next one is cut."""


@wrong(Slots, "turn_round")
def answers_as_long_as_their_slots(self: Any, count: int) -> None:
    """What lay there before goes out with them."""
    self._interfaces[:count] = ZEROS[:count]


@wrong(Slots, "turn_round")
def the_interface_left_in_the_slots(self: Any, count: int) -> None:
    self._rooms[:count] = self.lengths[:count]


@bug
def a_short_batch_begun_again(patch: pytest.MonkeyPatch) -> None:
    """It amplifies: what has gone goes again."""
    original = DatagramBatch.__init__

    def begin(self: Any, reactor: Any, sock: Any, protocol: Any, slots: Any, calls: Any) -> None:
        def send(first: int, count: int) -> int:
            sent = calls[1](first, count)
            return count if sent == count else 0

        original(self, reactor, sock, protocol, slots, (calls[0], send))

    patch.setattr(DatagramBatch, "__init__", begin)


@bug
def a_held_batch_forgotten(patch: pytest.MonkeyPatch) -> None:
    original = DatagramBatch._answer

    def answer(self: Any) -> None:
        original(self)
        self._runs.clear()

    patch.setattr(DatagramBatch, "_answer", answer)


@bug
def a_batch_that_fails_as_one(patch: pytest.MonkeyPatch) -> None:
    """One datagram's error costs all that are left."""
    original = DatagramBatch.drop

    def drop(self: Any, reason: str, count: int = 1) -> None:
        original(self, reason, count)
        if reason.startswith("send_"):
            self.abort()

    patch.setattr(DatagramBatch, "drop", drop)


@wrong(DatagramBatch, "_after")
def no_rest_for_a_batch_when_memory_runs_out(self: Any, error: OSError) -> None:
    self.drop("receive_" + errno_name(error))


# ---------------------------------------------------------------- pipes


@bug
def what_is_in_the_pipe_forgotten_when_it_is_given_back(patch: pytest.MonkeyPatch) -> None:
    original = Splice.give_back

    def give_back(self: Any) -> None:
        self._in_pipe_bytes = 0
        original(self)

    patch.setattr(Splice, "give_back", give_back)


@bug
def what_splice_calls_nothing_taken_for_the_end(patch: pytest.MonkeyPatch) -> None:
    original = Splice.receive

    def receive(self: Any, size_bytes: int) -> Any:
        filled = self._pipe.fill
        if self._connection.state is OPEN and not self._in_pipe_bytes:
            mark = self._socket.incoming.mark
            if mark is not None and mark == self._socket.incoming.received:
                return b""
        assert filled
        return original(self, size_bytes)

    patch.setattr(Splice, "receive", receive)


@bug
def a_pipe_filled_while_lingering(patch: pytest.MonkeyPatch) -> None:
    def receive(self: Any, size_bytes: int) -> Any:
        count = self._pipe.fill(self._socket, self._connection.limits.bound_bytes - self._in_pipe_bytes)
        if not count:
            self.give_back()
            return self._connection._recv(size_bytes)
        self._in_pipe_bytes += count
        self._moved.count = count
        return self._moved

    patch.setattr(Splice, "receive", receive)


@bug
def a_pipe_given_to_a_connection_with_bytes_pending(patch: pytest.MonkeyPatch) -> None:
    def consider(self: Any, connection: Connection) -> None:
        if connection not in self._splices and connection.state is OPEN:
            with contextlib.suppress(OSError):
                self._splices[connection] = Splice(connection, self._new_pipe())

    patch.setattr(Splicer, "consider", consider)


@bug
def a_pipe_left_open_behind_its_connection(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Splicer, "forget", lambda self, connection: self._splices.pop(connection, None))


@bug
def a_short_splice_taken_for_a_whole_one(patch: pytest.MonkeyPatch) -> None:
    original = Splice.send

    def send(self: Any, data: Any) -> int:
        whole: int = self._in_pipe_bytes
        original(self, data)
        self._in_pipe_bytes = 0
        return whole

    patch.setattr(Splice, "send", send)


# ---------------------------------------------------------------- signals


@wrong(Waker, "on_event")
def a_signal_looked_for_before_the_byte_is_taken(self: Any, mask: int) -> None:
    pending = tuple(self._pending)
    with contextlib.suppress(*WOULD_BLOCK):
        self._reader.recv(4096)
    for signum in pending:
        del self._pending[signum]
        self._call_soon(self._callbacks[signum])


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within SEEDS worlds, and repeated by the seed and script that the failure names."""
    BUGS[name](monkeypatch)
    with pytest.raises(SimulationFailed) as found:
        simulate(swarm_scenario, seeds=SEEDS, shrinking_s=0.2)
    again = found.value
    with pytest.raises(SimulationFailed):
        simulate(swarm_scenario, seeds=[again.seed], script=again.script, shrinking_s=0.0)
