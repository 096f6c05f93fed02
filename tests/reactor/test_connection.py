"""Connection: the table of states row by row, half-close, backpressure, errors, and the order of callbacks."""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reactor import READ, WRITE, Connection, Limits, Reactor, State
from reactor.buffer import SendBuffer
from reactor.limits import SEND_RETRY_S
from reactor.sockets.errors import os_error
from tests.support.basics import open_descriptors
from tests.support.clients import drain, fill, receive_exactly, receive_to_end, reset, tcp_pair
from tests.support.faults import EAGAIN, EINTR
from tests.support.loops import SELECTORS, Recorder, Stage, turn_idle, wait_readable

SelectorClass = type[selectors.BaseSelector]
OUT_OF_MEMORY = [errno.ENOBUFS, errno.ENOMEM]
SMALL = Limits(high_water_bytes=1000, receive_bytes=500)

on_every_selector = pytest.mark.parametrize("selector_class", SELECTORS)


def stuck(stage: Stage, data: bytes = b"pending") -> None:
    """Write, while the kernel takes nothing."""
    stage.faults.always["send"] = EAGAIN
    stage.connection.write(data)
    assert stage.connection.pending_bytes == len(data)


def unstick(stage: Stage) -> None:
    """The kernel takes everything again."""
    stage.faults.always.clear()


def state_of(stage: Stage) -> State:
    """Read the attribute again: mypy assumes that it is unchanged."""
    return stage.connection.state


def watched(stage: Stage) -> int:
    """Return what the selector watches, without the waker."""
    keys = [key for key in stage.selector.get_map().values() if key.data is stage.connection]
    return keys[0].events if keys else 0


# ---------------------------------------------------------------- the table of states


@on_every_selector
def test_close_with_nothing_pending_sends_fin_and_lingers(selector_class: SelectorClass) -> None:
    """OPEN → DRAINING → LINGERING "after the last byte and our FIN"."""
    with Stage(selector_class=selector_class) as stage:
        assert state_of(stage) is State.OPEN
        stage.connection.write(b"bye")
        stage.connection.close()
        assert state_of(stage) is State.LINGERING
        assert receive_to_end(stage.peer) == b"bye"
        assert stage.protocol.kinds() == ["made"]


@on_every_selector
def test_close_with_bytes_pending_drains_first_and_stops_reading(selector_class: SelectorClass) -> None:
    """OPEN → DRAINING: "not reading; sending what is pending"; then FIN."""
    with Stage(selector_class=selector_class) as stage:
        stuck(stage)
        stage.connection.close()
        stage.peer.send(b"not for us any more")
        stage.idle()
        assert state_of(stage) is State.DRAINING
        assert watched(stage) == WRITE
        unstick(stage)
        stage.until(lambda: state_of(stage) is State.LINGERING)
        assert receive_to_end(stage.peer) == b"pending"
        assert stage.protocol.received == b""
        assert stage.protocol.kinds() == ["made"]  # no `drained`: nothing more can be written


@on_every_selector
def test_the_peers_fin_drains_and_then_closes_without_lingering(selector_class: SelectorClass) -> None:
    """OPEN → DRAINING "after the peer's FIN"; DRAINING → CLOSED "if the peer's FIN was read before"."""
    with Stage(selector_class=selector_class) as stage:
        stuck(stage)
        stage.peer.shutdown(socket.SHUT_WR)
        stage.until(lambda: state_of(stage) is State.DRAINING)
        stage.idle()
        assert stage.protocol.kinds() == ["made", "eof"]
        unstick(stage)
        stage.until(lambda: state_of(stage) is State.CLOSED)
        assert receive_to_end(stage.peer) == b"pending"
        assert stage.protocol.events[-1] == ("lost", None)


@on_every_selector
def test_lingering_discards_data_until_the_peers_fin(selector_class: SelectorClass) -> None:
    """LINGERING → CLOSED "at the peer's FIN". No input is left unread, so the kernel sends no RST."""
    with Stage(selector_class=selector_class) as stage:
        stage.connection.write(b"the answer")
        stage.connection.close()
        stage.peer.sendall(bytes(200_000))
        stage.idle()
        assert state_of(stage) is State.LINGERING
        stage.peer.shutdown(socket.SHUT_WR)
        stage.until(lambda: stage.connection.closed)
        assert receive_to_end(stage.peer) == b"the answer"
        assert stage.protocol.received == b""
        stage.clock.advance(2 * stage.connection.limits.linger_timeout_s)
        stage.idle()
        assert stage.protocol.events[1:] == [("lost", None)]  # the deadline was cancelled


def test_lingering_ends_at_its_timeout_and_not_before() -> None:
    """LINGERING → CLOSED "after `linger_timeout_s`"."""
    with Stage(limits=Limits(linger_timeout_s=3.0)) as stage:
        stage.connection.close()
        stage.clock.advance(2.9)
        stage.idle()
        assert state_of(stage) is State.LINGERING
        stage.clock.advance(0.2)
        stage.idle()
        assert state_of(stage) is State.CLOSED
        assert stage.protocol.events[-1] == ("lost", None)
        assert receive_to_end(stage.peer) == b""


def test_draining_has_no_deadline() -> None:
    """A slow reader isn't a dead one."""
    with Stage() as stage:
        stuck(stage)
        stage.connection.close()
        stage.clock.advance(86_400.0)
        stage.idle()
        assert state_of(stage) is State.DRAINING
        unstick(stage)
        stage.until(lambda: state_of(stage) is State.LINGERING)
        assert receive_to_end(stage.peer) == b"pending"


# ---------------------------------------------------------------- half-close, ours


@on_every_selector
def test_half_close_sends_fin_and_reads_until_the_peers_fin(selector_class: SelectorClass) -> None:
    """OPEN → HALF_CLOSED: a client has sent everything, and still gets every answer."""
    with Stage(selector_class=selector_class) as stage:
        stage.connection.write(b"the question")
        stage.connection.half_close()
        assert state_of(stage) is State.HALF_CLOSED
        assert receive_to_end(stage.peer) == b"the question"
        stage.peer.sendall(b"the answer")
        stage.peer.shutdown(socket.SHUT_WR)
        stage.until(lambda: state_of(stage) is State.CLOSED)
        stage.idle()
        assert stage.protocol.received == b"the answer"
        assert stage.protocol.kinds() == ["made", "data", "eof", "lost"]
        assert stage.protocol.events[-1] == ("lost", None)


@on_every_selector
def test_half_close_sends_pending_bytes_before_fin_and_keeps_reading(selector_class: SelectorClass) -> None:
    with Stage(selector_class=selector_class) as stage:
        stuck(stage)
        stage.connection.half_close()
        stage.peer.sendall(b"early answer")
        stage.until(lambda: stage.protocol.received == b"early answer")
        assert watched(stage) == READ | WRITE
        unstick(stage)
        assert stage.connection.pending_bytes
        stage.until(lambda: not stage.connection.pending_bytes)
        assert receive_to_end(stage.peer) == b"pending"
        assert state_of(stage) is State.HALF_CLOSED
        assert watched(stage) == READ
        assert "drained" not in stage.protocol.kinds(), "nothing more can be written"


def test_after_half_close_writes_and_a_second_half_close_do_nothing() -> None:
    with Stage() as stage:
        stage.connection.half_close()
        stage.connection.half_close()
        stage.connection.write(b"too late")
        assert receive_to_end(stage.peer) == b""
        assert stage.connection.pending_bytes == 0


def test_close_after_half_close_lingers_without_a_second_fin() -> None:
    """FIN was sent before, so the connection only waits for the peer's FIN and discards data."""
    with Stage(limits=Limits(linger_timeout_s=3.0)) as stage:
        stage.connection.half_close()
        stage.faults.always["shutdown"] = os_error(errno.ENOTCONN)
        stage.connection.close()
        assert state_of(stage) is State.LINGERING
        stage.peer.sendall(b"into the void")
        stage.idle()
        assert stage.protocol.received == b""
        stage.clock.advance(3.1)
        stage.idle()
        assert stage.protocol.events[-1] == ("lost", None)


def test_close_after_half_close_with_bytes_pending_drains_first() -> None:
    with Stage() as stage:
        stuck(stage)
        stage.connection.half_close()
        stage.connection.close()
        assert state_of(stage) is State.DRAINING
        unstick(stage)
        stage.until(lambda: state_of(stage) is State.LINGERING)
        assert receive_to_end(stage.peer) == b"pending"


def test_half_close_after_the_peers_fin_closes() -> None:
    """Both directions are closed then."""
    with Stage(Recorder(keep_open_on_eof=True)) as stage:
        stage.peer.shutdown(socket.SHUT_WR)
        stage.until(lambda: "eof" in stage.protocol.kinds())
        stage.connection.write(b"last words")
        stage.connection.half_close()
        stage.idle()
        assert receive_to_end(stage.peer) == b"last words"
        assert stage.protocol.events[-1] == ("lost", None)


def test_half_close_after_a_reset_reports_the_reset() -> None:
    with Stage() as stage:
        reset(stage.peer)
        stage.connection.half_close()
        stage.idle()
        assert state_of(stage) is State.CLOSED
        assert isinstance(stage.protocol.events[-1][1], OSError)


def test_a_half_closed_connection_can_be_paused_and_aborted() -> None:
    with Stage() as stage:
        stage.connection.half_close()
        stage.connection.pause_reading()
        assert watched(stage) == 0
        stage.connection.abort()
        stage.idle()
        assert state_of(stage) is State.CLOSED


def test_close_inside_drained_is_done_once() -> None:
    """A protocol closes or half-closes inside `drained`: one FIN, one `connection_lost`."""
    for end in (Connection.half_close, Connection.close, Connection.abort):

        class Ends(Recorder):
            def drained(self, connection: Connection, end: Callable[[Connection], None] = end) -> None:
                end(connection)

        with Stage(Ends()) as stage:
            stuck(stage)
            unstick(stage)
            stage.idle()
            assert state_of(stage) is not State.OPEN
            stage.peer.close()
            stage.until(lambda: state_of(stage) is State.CLOSED)
            stage.idle()
            assert stage.protocol.kinds()[-1] == "lost"


def close_while_stuck(stage: Stage) -> None:
    """Bring the connection to DRAINING and keep it there."""
    stuck(stage)
    stage.connection.close()


REACH: dict[State, Callable[[Stage], object]] = {
    State.OPEN: lambda stage: None,
    State.DRAINING: close_while_stuck,
    State.LINGERING: lambda stage: stage.connection.close(),
    State.CLOSED: lambda stage: stage.connection.abort(),
}
BEFORE_CLOSED = [State.OPEN, State.DRAINING, State.LINGERING]


@pytest.mark.parametrize("state", BEFORE_CLOSED)
@on_every_selector
def test_a_reset_by_the_peer_closes_from_any_state(selector_class: SelectorClass, state: State) -> None:
    """CLOSED: "every state gets here on an error"; `connection_lost` gets the error."""
    with Stage(selector_class=selector_class) as stage:
        REACH[state](stage)
        assert state_of(stage) is state
        unstick(stage)
        reset(stage.peer)
        stage.until(lambda: stage.protocol.kinds()[-1] == "lost")
        assert state_of(stage) is State.CLOSED
        assert isinstance(stage.protocol.events[-1][1], ConnectionError)


@pytest.mark.parametrize("state", BEFORE_CLOSED)
@on_every_selector
def test_abort_closes_from_any_state_and_reports_its_reason(selector_class: SelectorClass, state: State) -> None:
    """CLOSED: "every state gets here on … abort()". A second call does nothing."""
    reason = RuntimeError("enough")
    with Stage(selector_class=selector_class) as stage:
        REACH[state](stage)
        stage.connection.abort(reason)
        stage.connection.abort()
        assert state_of(stage) is State.CLOSED
        assert stage.connection.pending_bytes == 0
        stage.idle()
        assert stage.protocol.events[1:] == [("lost", reason)]
        assert stage.connection not in stage.reactor.handlers


@pytest.mark.parametrize("state", [State.OPEN, State.DRAINING])
def test_abort_sends_rst(state: State) -> None:
    """The peer knows then that the stream is incomplete."""
    with Stage() as stage:
        stage.connection.write(b"half")
        REACH[state](stage)
        stage.connection.abort()
        with pytest.raises(ConnectionResetError):
            receive_to_end(stage.peer)


def test_abort_in_lingering_sends_no_rst() -> None:
    """All bytes and a FIN were sent; an RST would destroy what the peer hasn't read."""
    with Stage() as stage:
        stage.connection.write(b"everything")
        stage.connection.close()
        stage.connection.abort()
        stage.peer.shutdown(socket.SHUT_WR)
        assert receive_to_end(stage.peer) == b"everything"


def test_connection_whose_fin_cannot_be_sent_closes() -> None:
    """shutdown(2), ENOTCONN: the peer's RST came first."""
    with Stage() as stage:
        stage.faults.add("shutdown", os_error(errno.ENOTCONN))
        stage.connection.close()
        assert state_of(stage) is State.CLOSED
        stage.idle()
        assert stage.protocol.events[-1][1].errno == errno.ENOTCONN


def test_second_close_does_nothing() -> None:
    """In every state but OPEN, close() does nothing."""
    with Stage() as stage:
        for _ in range(3):
            stage.connection.close()
        assert stage.faults.calls["shutdown"] == 1
        stage.peer.shutdown(socket.SHUT_WR)
        stage.until(lambda: stage.connection.closed)
        stage.connection.close()
        stage.idle()
        assert stage.protocol.kinds() == ["made", "lost"]


# ---------------------------------------------------------------- half-close


@on_every_selector
def test_half_closing_peer_gets_every_byte_and_then_our_fin(selector_class: SelectorClass) -> None:
    """Promise 4: "all the data, then FIN. No RST destroys data in flight"."""
    with Stage(Recorder(echo=True), selector_class) as stage:
        sent = fill(stage.peer, 3_000_000)
        stage.idle()
        stage.peer.shutdown(socket.SHUT_WR)
        received = bytearray()
        while not stage.connection.closed:
            turn_idle(stage.reactor, 1)
            received += drain(stage.peer)
        stage.peer.setblocking(True)
        received += receive_to_end(stage.peer)
        assert received == sent
        assert stage.protocol.events[-1] == ("lost", None)


@on_every_selector
def test_connection_kept_open_after_eof_writes_until_close(selector_class: SelectorClass) -> None:
    """`eof_received`: "Return True to keep the connection open for writing until `close()`"."""
    with Stage(Recorder(keep_open_on_eof=True), selector_class) as stage:
        stage.peer.shutdown(socket.SHUT_WR)
        stage.until(lambda: ("eof",) in stage.protocol.events)
        stage.idle()
        assert state_of(stage) is State.OPEN
        assert watched(stage) == 0
        stage.connection.write(b"later")
        stuck(stage, b", and later still")
        unstick(stage)
        stage.until(lambda: not stage.connection.pending_bytes)
        stage.connection.close()
        assert receive_to_end(stage.peer) == b"later, and later still"
        assert state_of(stage) is State.CLOSED
        assert stage.protocol.events.count(("eof",)) == 1


@on_every_selector
def test_reset_of_a_connection_kept_open_does_not_spin_the_loop(selector_class: SelectorClass) -> None:
    """Promise 9. The kernel would report HUP and ERR again and again; the next write gets the error."""
    with Stage(Recorder(keep_open_on_eof=True), selector_class) as stage:
        stage.peer.shutdown(socket.SHUT_WR)
        stage.until(lambda: ("eof",) in stage.protocol.events)
        reset(stage.peer)
        stage.selector.batches.clear()
        stage.idle()
        assert not any(stage.selector.batches)
        stage.connection.write(b"anybody there?")
        assert stage.connection.closed


# ---------------------------------------------------------------- writing


@on_every_selector
@pytest.mark.parametrize("refusal", [EAGAIN, EINTR])
def test_bytes_refused_by_the_kernel_are_sent_later_in_order(selector_class: SelectorClass, refusal: OSError) -> None:
    """EAGAIN, EINTR and short sends are normal; no byte overtakes pending ones."""
    with Stage(selector_class=selector_class) as stage:
        stage.faults.add("send", 2, refusal, 1, refusal, 3)
        for piece in (b"abcd", bytearray(b"efgh"), memoryview(b"ijkl")):
            stage.connection.write(piece)
        stage.until(lambda: not stage.connection.pending_bytes)
        assert receive_exactly(stage.peer, 12) == b"abcdefghijkl"
        assert stage.connection.bytes_sent == 12
        assert stage.protocol.kinds() == ["made", "drained"]


def test_pending_bytes_are_not_offered_again_before_the_socket_is_writable() -> None:
    """A readable socket may still be full, so a send for each receive would be a wasted call."""
    with Stage(Recorder(echo=True)) as stage:
        stage.faults.add("send", EAGAIN)
        stage.peer.send(b"abc")
        wait_readable(stage.connection)
        turn_idle(stage.reactor, 1)
        assert stage.faults.calls == {"recv": 1, "send": 1}
        assert stage.connection.pending_bytes == 3
        stage.idle()
        assert receive_exactly(stage.peer, 3) == b"abc"


def test_eagain_and_eintr_on_receiving_are_not_errors() -> None:
    """Spurious readiness happens (select(2), BUGS)."""
    with Stage() as stage:
        stage.faults.add("recv", EAGAIN, EINTR, 1, EAGAIN)
        stage.peer.send(b"abc")
        stage.until(lambda: stage.protocol.received == b"abc")
        assert state_of(stage) is State.OPEN


@pytest.mark.parametrize("state", [State.DRAINING, State.LINGERING, State.CLOSED])
def test_a_write_after_close_does_nothing(state: State) -> None:
    """After `close` or an error, nothing is sent."""
    with Stage() as stage:
        REACH[state](stage)
        pending = stage.connection.pending_bytes
        unstick(stage)
        stage.connection.write(b"too late")
        assert stage.connection.pending_bytes == pending
        stage.idle()
        assert stage.connection.bytes_sent == pending


def test_empty_write_does_nothing() -> None:
    """Neither with an empty buffer nor with pending bytes."""
    with Stage() as stage:
        stage.connection.write(b"")
        stuck(stage)
        stage.connection.write(b"")
        unstick(stage)
        stage.until(lambda: not stage.connection.pending_bytes)
        stage.connection.write(b"")
        assert receive_exactly(stage.peer, 7) == b"pending"
        assert state_of(stage) is State.OPEN


def test_write_to_a_lost_peer_closes_and_raises_nothing() -> None:
    """`write` never raises OSError; `connection_lost` gets the error later."""
    with Stage() as stage:
        stage.faults.add("send", os_error(errno.EPIPE))
        stage.connection.write(b"?")
        assert stage.connection.closed
        assert stage.connection.pending_bytes == 0
        assert stage.protocol.kinds() == ["made"]
        stage.idle()
        assert isinstance(stage.protocol.events[-1][1], BrokenPipeError)


def write_unwatched(stage: Stage, data: bytes) -> None:
    """Write on a connection without interest, with a selector that refuses to register it."""
    stage.connection.pause_reading()
    stage.selector.failures.append(os_error(errno.ENOSPC))
    stage.faults.add("send", 2)
    stage.connection.write(data)


def test_a_write_raises_no_oserror_when_the_selector_refuses() -> None:
    """epoll_ctl(2) may fail with ENOMEM or ENOSPC; `write` never raises OSError."""
    with Stage() as stage:
        write_unwatched(stage, b"abcd")


def test_write_after_a_selector_refusal_does_not_overtake_pending_bytes() -> None:
    """Promise 1, "in order". Bytes are pending though nothing is watched; the next write must not overtake them."""
    with Stage() as stage:
        with contextlib.suppress(OSError):
            write_unwatched(stage, b"abcd")
        stage.connection.write(b"efgh")
        stage.idle()
        with contextlib.suppress(ConnectionResetError):  # closing the connection also keeps the order
            assert b"abcdefgh".startswith(drain(stage.peer))


def test_pending_bytes_leave_the_buffer_only_after_the_kernel_took_them() -> None:
    """Law 5: "No byte leaves a buffer before the kernel has taken it"."""
    with Stage() as stage:
        stuck(stage, b"0123456789")
        unstick(stage)
        stage.faults.add("send", *[3] * 4)
        for left in (7, 4, 1, 0):
            stage.idle() if not left else turn_idle(stage.reactor, 1)
            assert stage.connection.pending_bytes == left
            assert stage.connection.bytes_sent == 10 - left


# ---------------------------------------------------------------- backpressure


@on_every_selector
def test_a_peer_that_never_reads_is_paused_at_the_bound(selector_class: SelectorClass) -> None:
    """Promise 5: "holds at most the documented bound, … its reading is paused"; once it reads, everything is there."""
    sent, held = bytearray(), [0]

    def is_paused() -> bool:
        piece = fill(stage.peer)
        sent.extend(piece)
        held.append(stage.connection.pending_bytes)
        return not piece and watched(stage) == WRITE

    with Stage(Recorder(echo=True), selector_class) as stage:
        stage.until(is_paused)
        limits = stage.connection.limits
        assert limits.high_water_bytes < max(held) <= limits.bound_bytes == 128 * 1024
        received = bytearray()
        while len(received) < len(sent):
            received += drain(stage.peer)
            turn_idle(stage.reactor, 1)
        turn_idle(stage.reactor)
        assert received == sent
        assert watched(stage) == READ


@pytest.mark.parametrize(("waiting_bytes", "reads"), [(1000, True), (1001, False)])
def test_reading_stops_above_the_high_water_mark(waiting_bytes: int, reads: bool) -> None:
    """`high_water_bytes`: "with more pending bytes, stop reading"."""
    with Stage(limits=SMALL) as stage:
        stuck(stage, bytes(waiting_bytes))
        assert watched(stage) == (READ | WRITE if reads else WRITE)
        unstick(stage)
        stage.until(lambda: not stage.connection.pending_bytes)
        assert watched(stage) == READ


def test_one_receive_per_readiness_of_at_most_receive_bytes() -> None:
    """Law 11: one receive per readiness, so a busy connection can't hold up others."""
    with Stage(limits=SMALL) as stage:
        stage.peer.send(bytes(1200))
        stage.until(lambda: stage.protocol.received)
        assert stage.faults.calls["recv"] == 1
        stage.until(lambda: len(stage.protocol.received) == 1200)
        assert [len(event[1]) for event in stage.protocol.events[1:]] == [500, 500, 200]
        assert stage.connection.bytes_received == 1200


@on_every_selector
def test_pause_reading_and_resume_reading(selector_class: SelectorClass) -> None:
    """A paused connection without pending bytes isn't registered at all."""
    with Stage(selector_class=selector_class) as stage:
        stage.connection.pause_reading()
        stage.connection.pause_reading()
        stage.peer.send(b"waits")
        stage.idle()
        assert stage.protocol.received == b""
        assert watched(stage) == 0
        stage.connection.resume_reading()
        stage.until(lambda: stage.protocol.received == b"waits")


def test_reset_of_a_paused_connection_is_noticed_on_resume() -> None:
    """Until then the loop doesn't spin."""
    with Stage() as stage:
        stage.connection.pause_reading()
        reset(stage.peer)
        stage.selector.batches.clear()
        stage.idle()
        assert not any(stage.selector.batches)
        stage.connection.resume_reading()
        stage.until(lambda: stage.protocol.kinds() == ["made", "lost"])


@on_every_selector
def test_connection_paused_in_the_same_batch_is_not_read(selector_class: SelectorClass) -> None:
    """The first connection of the batch pauses the second."""

    class PausesTheOther(Recorder):
        def data_received(self, connection: Connection, data: bytes) -> None:
            super().data_received(connection, data)
            for other in self.connections:
                if other is not connection:
                    other.pause_reading()

    protocol = PausesTheOther()
    with Stage(protocol, selector_class) as stage:
        ours, peer = tcp_pair()
        Connection(stage.reactor, ours, protocol).open()
        stage.peer.send(b"x")
        peer.send(b"x")
        stage.idle()
        peer.close()
        assert protocol.received == b"x"


def test_paused_connection_still_sends_and_closes() -> None:
    """A pause stops only reading; lingering reads even then."""
    with Stage() as stage:
        stage.connection.pause_reading()
        stuck(stage)
        unstick(stage)
        stage.connection.close()
        stage.peer.send(b"unread")
        stage.peer.shutdown(socket.SHUT_WR)
        stage.until(lambda: stage.connection.closed)
        assert receive_to_end(stage.peer) == b"pending"


def test_pause_and_resume_after_close_do_nothing() -> None:
    """A protocol may keep a reference to a closed connection."""
    with Stage() as stage:
        stage.connection.abort()
        stage.connection.pause_reading()
        stage.connection.resume_reading()
        stage.connection.close()
        assert stage.connection.interest == 0
        with pytest.raises(OSError, match="descriptor"):
            _ = stage.connection.socket.getsockname()


def test_drained_is_called_only_after_bytes_were_pending() -> None:
    """`drained`: "Called when the kernel has taken all pending bytes"."""
    with Stage() as stage:
        stage.connection.write(b"at once")
        stage.idle()
        assert stage.protocol.kinds() == ["made"]
        stage.faults.add("send", 1, EAGAIN, 1)
        stage.connection.write(b"abc")
        stage.idle()
        assert stage.protocol.kinds() == ["made", "drained"]


SLOWLY: list[int | OSError | None] = [EAGAIN, 2, EAGAIN] * 20


def test_drained_can_write_more_than_the_kernel_takes_at_once() -> None:
    """A producer writes the next part in each `drained`."""

    class Producer(Recorder):
        def drained(self, connection: Connection) -> None:
            super().drained(connection)
            if len(self.events) < 12:
                connection.write(b"abc")

    with Stage(Producer()) as stage:
        stage.faults.add("send", *SLOWLY)
        stage.connection.write(b"abc")
        stage.until(lambda: len(stage.protocol.events) == 12)
        stage.connection.close()
        stage.until(lambda: state_of(stage) is State.LINGERING)
        assert receive_to_end(stage.peer) == b"abc" * 11


# ---------------------------------------------------------------- a kernel out of memory


@pytest.mark.parametrize("code", OUT_OF_MEMORY)
def test_send_without_memory_is_retried_by_timer_without_loss_or_spin(code: int) -> None:
    """ENOBUFS and ENOMEM aren't the peer's fault. The socket stays writable meanwhile."""
    with Stage() as stage:
        stage.faults.always["send"] = os_error(code)
        stage.connection.write(b"abc")
        stage.connection.write(b"def")
        stage.idle()
        assert stage.faults.calls["send"] == 1
        for tries in (2, 3, 4):
            stage.clock.advance(SEND_RETRY_S)
            stage.idle()
            assert stage.faults.calls["send"] == tries
        unstick(stage)
        stage.clock.advance(SEND_RETRY_S)
        stage.idle()
        assert receive_exactly(stage.peer, 6) == b"abcdef"
        assert stage.protocol.kinds() == ["made", "drained"]


@pytest.mark.parametrize("code", OUT_OF_MEMORY)
def test_receive_without_memory_is_retried_by_timer_without_loss_or_spin(code: int) -> None:
    """The same for receiving."""
    with Stage(Recorder(echo=True)) as stage:
        stage.faults.always["recv"] = os_error(code)
        stage.peer.send(b"abc")
        stage.idle()
        assert stage.faults.calls["recv"] == 1
        stage.clock.advance(SEND_RETRY_S)
        stage.idle()
        assert stage.faults.calls["recv"] == 2
        unstick(stage)
        stage.clock.advance(SEND_RETRY_S)
        stage.idle()
        assert receive_exactly(stage.peer, 3) == b"abc"


@pytest.mark.parametrize("code", OUT_OF_MEMORY)
def test_close_without_kernel_memory_still_sends_pending_bytes(code: int) -> None:
    """DRAINING waits for memory."""
    with Stage() as stage:
        stage.faults.add("send", os_error(code), os_error(code))
        stage.connection.write(b"abc")
        stage.connection.close()
        for _ in range(3):
            stage.clock.advance(SEND_RETRY_S)
            stage.idle()
        assert state_of(stage) is State.LINGERING
        assert receive_to_end(stage.peer) == b"abc"


def test_abort_without_kernel_memory_leaves_no_timer() -> None:
    """A later retry would use a closed socket."""
    with Stage() as stage:
        stage.faults.add("send", os_error(errno.ENOBUFS))
        stage.connection.write(b"abc")
        stage.connection.abort()
        stage.selector.timeouts.clear()
        stage.clock.advance(1.0)
        stage.idle()
        assert stage.protocol.kinds() == ["made", "lost"]


@pytest.mark.parametrize("call", ["recv", "send"])
@pytest.mark.parametrize("code", [errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EIO])
def test_other_errors_close_the_connection_and_are_reported(call: str, code: int) -> None:
    """CLOSED: "every state gets here on an error"."""
    with Stage(Recorder(echo=True)) as stage:
        stage.faults.add(call, os_error(code))
        stage.peer.send(b"abc")
        stage.until(lambda: stage.protocol.kinds()[-1] == "lost")
        assert stage.protocol.events[-1][1].errno == code


def test_retry_survives_a_selector_without_memory() -> None:
    """epoll_ctl(2) may fail with ENOMEM, too; in the end the bytes are sent or the connection is closed."""
    with Stage() as stage:
        stage.faults.add("send", os_error(errno.ENOMEM))
        stage.connection.write(b"abc")
        stage.selector.failures.append(os_error(errno.ENOMEM))
        for _ in range(10):
            stage.clock.advance(1.0)
            stage.idle()
        assert stage.connection.closed or drain(stage.peer) == b"abc"


# ---------------------------------------------------------------- callbacks


class Watch(Recorder):
    """Records how deep a connection's callbacks are nested, and acts in one of them."""

    def __init__(self, where: str, action: Callable[[Connection], object]) -> None:
        super().__init__(echo=True)
        self.where, self.action = where, action
        self.depth = self.deepest = 0

    def _run(self, name: str, callback: Callable[..., Any], *args: Any) -> Any:
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)
        try:
            result = callback(*args)
            if name == self.where:
                self.action(args[0])
            return result
        finally:
            self.depth -= 1

    def connection_made(self, connection: Connection) -> None:
        self._run("made", super().connection_made, connection)

    def data_received(self, connection: Connection, data: bytes) -> None:
        self._run("data", super().data_received, connection, data)

    def drained(self, connection: Connection) -> None:
        self._run("drained", super().drained, connection)

    def eof_received(self, connection: Connection) -> bool:
        return bool(self._run("eof", super().eof_received, connection))

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        self._run("lost", super().connection_lost, connection, error)


def fail_to_write(connection: Connection) -> None:
    """Write to a lost peer."""
    connection.socket.faults.always["send"] = os_error(errno.EPIPE)  # type: ignore[attr-defined]
    connection.socket.faults.always["shutdown"] = os_error(errno.ENOTCONN)  # type: ignore[attr-defined]
    connection.write(b"more")


def write_and_close(connection: Connection) -> None:
    """Write and close."""
    connection.write(b"more")
    connection.close()


def raise_zero_division(connection: Connection) -> None:
    """Raise an exception, as a wrong protocol does."""
    _ = 1 // 0


ACTIONS: list[Callable[[Connection], object]] = [
    Connection.close,
    Connection.abort,
    write_and_close,
    fail_to_write,
    raise_zero_division,
]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: str(action.__name__))
@pytest.mark.parametrize("where", ["made", "data", "drained", "eof", "lost"])
def test_close_inside_any_callback_calls_connection_lost_once_last_and_alone(
    where: str, action: Callable[[Connection], object], caplog: pytest.LogCaptureFixture
) -> None:
    """Law 6: a close may happen inside any callback. No callback of a connection runs inside another."""
    watch = Watch(where, action)
    with Stage(watch) as stage:
        stage.faults.add("send", EAGAIN)
        with contextlib.suppress(ConnectionError):  # it may be closed already
            stage.peer.send(b"abc")
        stage.idle()
        ends_at_once = action in (Connection.abort, fail_to_write, raise_zero_division)
        assert stage.connection.closed is (ends_at_once and where in ("made", "data", "drained"))
        if not stage.connection.closed:
            stage.peer.shutdown(socket.SHUT_WR)
        stage.until(lambda: "lost" in watch.kinds())
        stage.idle()
        assert (watch.kinds().count("made"), watch.kinds().count("lost")) == (1, 1)
        assert watch.kinds()[0] == "made"
        assert watch.kinds()[-1] == "lost"
        assert watch.deepest == 1
        assert stage.connection.closed
        assert stage.connection not in stage.reactor.handlers
    raised = action is raise_zero_division
    assert [bool(record.exc_info) for record in caplog.records] == [True] * raised


def test_callbacks_come_in_the_order_of_the_protocol() -> None:
    """made, data …, drained, eof, lost."""
    with Stage(Recorder(echo=True)) as stage:
        stage.faults.add("send", EAGAIN)
        stage.peer.send(b"abc")
        stage.until(lambda: ("drained",) in stage.protocol.events)
        stage.peer.shutdown(socket.SHUT_WR)
        stage.until(lambda: stage.connection.closed)
        stage.idle()
        assert stage.protocol.kinds() == ["made", "data", "drained", "eof", "lost"]


def test_data_and_fin_that_arrive_together_give_two_callbacks() -> None:
    """The FIN after the data must not hide it."""
    with Stage(Recorder(echo=True)) as stage:
        stage.peer.send(b"abc")
        stage.peer.shutdown(socket.SHUT_WR)
        stage.until(lambda: stage.connection.closed)
        stage.idle()
        assert stage.protocol.kinds() == ["made", "data", "eof", "lost"]
        assert receive_to_end(stage.peer) == b"abc"


def test_connection_knows_both_addresses_until_it_is_closed() -> None:
    """The socket's addresses are public; a closed socket raises OSError."""
    with Stage() as stage:
        assert stage.connection.socket.getpeername() == stage.peer.getsockname()
        assert stage.connection.socket.getsockname() == stage.peer.getpeername()
        reset(stage.peer)
        wait_readable(stage.connection)
        with pytest.raises(OSError, match=r"not connected|Invalid"):
            _ = stage.connection.socket.getpeername()
        stage.connection.abort()
        with pytest.raises(OSError, match="descriptor"):
            _ = stage.connection.socket.getpeername()
        with pytest.raises(OSError, match="descriptor"):
            _ = stage.connection.socket.getsockname()


def test_many_connections_leave_no_descriptor() -> None:
    """Half of them close in order, half abort."""
    before = open_descriptors()
    with Reactor() as reactor:
        for number in range(20):
            ours, peer = tcp_pair()
            connection = Connection(reactor, ours, Recorder())
            connection.open()
            peer.close()
            if number % 2:
                connection.abort()
            turn_idle(reactor)
            assert connection.closed
    assert open_descriptors() == before


# ---------------------------------------------------------------- anything, in any order

PIECES = st.binary(min_size=1, max_size=400)
MISHAPS = st.sampled_from([EAGAIN, EINTR, os_error(errno.ENOBUFS), os_error(errno.ENOMEM), 1, 7])


class Carrier(SendBuffer):
    """The smallest transport: the connection's socket and a buffer of its own."""

    __slots__ = ("recv", "send")

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.recv, self.send = sock.recv, sock.send


@given(
    steps=st.lists(st.sampled_from([b"ab", b"some more", "transport", "socket", "turn"]), min_size=8, max_size=40),
    sends=st.lists(st.sampled_from([EAGAIN, 1, 7]), min_size=8, max_size=40),
)
@example(steps=["transport", b"abc", "socket", b"d"], sends=[1])
def test_bytes_stay_in_order_whenever_the_transport_changes(
    steps: list[bytes | str], sends: list[OSError | int]
) -> None:
    """`use_transport` and `use_socket`: everything written is sent in order, as on a plain connection."""
    with Stage(limits=SMALL) as stage:
        stage.faults.add("send", *sends)
        connection, carrier, written = stage.connection, None, bytearray()
        for step in steps:
            if isinstance(step, bytes):
                written += step
                connection.write(step)
            elif step == "turn":
                turn_idle(stage.reactor, 1)
            elif step == "transport" and not connection.pending_bytes:
                carrier = Carrier(connection.socket)
                connection.use_transport(carrier)
            elif step == "socket" and carrier is not None:
                connection.use_socket(bytes(carrier.peek()))
                carrier = None
            assert connection.bytes_sent + connection.pending_bytes == len(written)
        turn_idle(stage.reactor, len(sends) + 2)
        assert drain(stage.peer) == written


def test_transport_is_refused_while_bytes_are_pending() -> None:
    with Stage() as stage:
        stage.faults.add("send", BlockingIOError())
        connection, carrier = stage.connection, Carrier(stage.connection.socket)
        connection.write(b"waiting")
        with pytest.raises(RuntimeError, match="bytes are pending"):
            connection.use_transport(carrier)
        turn_idle(stage.reactor, 2)
        carrier.append(b"of another connection")
        with pytest.raises(RuntimeError, match="bytes are pending"):
            connection.use_transport(carrier)
        assert drain(stage.peer) == b"waiting"


class ConnectionMachine(RuleBasedStateMachine):
    """No byte is lost, changed, reordered or invented, whatever happens on either side."""

    @initialize(selector_class=st.sampled_from(SELECTORS), keep_open=st.booleans())
    def begin(self, selector_class: SelectorClass, keep_open: bool) -> None:
        self.stage = Stage(Recorder(keep_open_on_eof=keep_open), selector_class, SMALL).__enter__()
        self.connection = self.stage.connection
        self.written, self.seen, self.sent = bytearray(), bytearray(), bytearray()
        self.peer_has_shut = self.aborted = self.paused = False
        self.carrier: Carrier | None = None

    @rule(data=PIECES)
    def write(self, data: bytes) -> None:
        if self.connection.state is State.OPEN:
            self.written += data
        self.connection.write(data)

    @precondition(lambda self: not self.peer_has_shut and not self.connection.closed)
    @rule(data=PIECES)
    def peer_sends(self, data: bytes) -> None:
        self.sent += data
        self.stage.peer.send(data)

    @precondition(lambda self: not self.peer_has_shut and not self.connection.closed)
    @rule()
    def peer_half_closes(self) -> None:
        self.peer_has_shut = True
        self.stage.peer.shutdown(socket.SHUT_WR)

    @rule()
    def pause(self) -> None:
        self.paused = True
        self.connection.pause_reading()

    @rule()
    def resume(self) -> None:
        self.paused = False
        self.connection.resume_reading()

    @precondition(lambda self: not (self.connection.closed or self.connection.pending_bytes))
    @rule()
    def go_over_to_a_transport(self) -> None:
        self.carrier = Carrier(self.connection.socket)
        self.connection.use_transport(self.carrier)

    @precondition(lambda self: self.carrier and not self.connection.closed)
    @rule()
    def go_back_to_the_socket(self) -> None:
        assert self.carrier is not None
        self.connection.use_socket(bytes(self.carrier.peek()))
        self.carrier = None

    @rule()
    def close(self) -> None:
        self.connection.close()

    @rule(rare=st.integers(0, 9))
    def abort(self, rare: int) -> None:
        if not rare:
            self.aborted = True
            self.connection.abort()

    @rule(call=st.sampled_from(["send", "recv"]), mishaps=st.lists(MISHAPS, max_size=4))
    def the_kernel_is_difficult(self, call: str, mishaps: list[OSError | int]) -> None:
        if self.connection.state is not State.LINGERING:
            self.stage.faults.add(call, *mishaps)

    @rule(seconds=st.sampled_from([0.01, SEND_RETRY_S, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.stage.clock.advance(seconds)

    @rule(turns=st.integers(1, 4))
    def turn(self, turns: int) -> None:
        turn_idle(self.stage.reactor, turns)
        self.look()

    def look(self) -> None:
        if not self.aborted:
            self.seen += drain(self.stage.peer)
        assert self.written.startswith(self.seen)
        assert self.sent.startswith(self.stage.protocol.received)

    @invariant()
    def interest_is_what_the_state_wants_and_what_the_selector_watches(self) -> None:
        connection, state, waiting = self.connection, self.connection.state, self.connection.pending_bytes
        held_back = self.paused or "eof" in self.stage.protocol.kinds() or waiting > SMALL.high_water_bytes
        reads = state is State.LINGERING or (state in (State.OPEN, State.HALF_CLOSED) and not held_back)
        assert connection.interest == (READ if reads else 0) | (WRITE if waiting else 0)
        suspended = connection in self.stage.reactor.snapshot().suspended
        assert watched(self.stage) == (0 if suspended else connection.interest)

    @invariant()
    def no_byte_leaves_before_the_kernel_has_taken_it(self) -> None:
        if not self.connection.closed:
            assert self.connection.bytes_sent + self.connection.pending_bytes == len(self.written)
        assert self.connection.bytes_received == len(self.stage.protocol.received)

    @invariant()
    def callbacks_come_in_order(self) -> None:
        kinds = self.stage.protocol.kinds()
        assert kinds[0] == "made"
        assert kinds.count("made") == 1
        assert kinds.count("eof") <= 1
        assert "data" not in kinds[kinds.index("eof") :] if "eof" in kinds else True
        assert "lost" not in kinds[:-1]

    def teardown(self) -> None:
        try:
            if not self.connection.closed:
                self.finish()
        finally:
            self.stage.__exit__()

    def finish(self) -> None:
        """The kernel recovers: everything written must arrive, and the connection close in order."""
        self.stage.faults.script.clear()
        self.connection.close()
        self.stage.clock.advance(SEND_RETRY_S)
        turn_idle(self.stage.reactor)
        self.look()
        if not (self.peer_has_shut or self.connection.closed):
            self.stage.peer.shutdown(socket.SHUT_WR)
        turn_idle(self.stage.reactor)
        self.look()
        assert self.seen == self.written
        assert self.stage.protocol.events[-1] == ("lost", None)


TestAConnectionUnderAnything = ConnectionMachine.TestCase
