"""Well-known bugs of echo servers, each as an edit of our own source.

    "name": edit("module:Class.function", "the right code", "the bug")

Law: an edit applies to exactly one place. When that line of the product changes, `plant` fails, and the edit must
follow: a bug that isn't planted proves nothing.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import textwrap
from typing import NamedTuple

import pytest

from echo7.policy.echo import StreamEcho
from reactor import Connection


class Edit(NamedTuple):
    """One change to one function."""

    where: str  # module:function or module:Class.method
    right: str
    wrong: str


Bug = tuple[Edit, ...]


def edit(where: str, right: str, wrong: str) -> Bug:
    """Return a bug of one edit; add them for a bug of several."""
    return (Edit(where, right, wrong),)


def plant(patch: pytest.MonkeyPatch, bug: Bug) -> None:
    """Replace the right functions by the edited ones."""
    for where in dict.fromkeys(edit.where for edit in bug):
        module, _, path = where.partition(":")
        *outer, name = path.split(".")
        owner = functools.reduce(getattr, outer, importlib.import_module(module))
        function = getattr(owner, name)
        source = textwrap.dedent(inspect.getsource(function))
        for _, right, wrong in (edit for edit in bug if edit.where == where):
            assert source.count(right) == 1, f"{where} has {source.count(right)} times what this bug changes:\n{right}"
            source = source.replace(right, wrong)
        made: dict[str, object] = {}
        exec("from __future__ import annotations\n" + source, function.__globals__, made)
        if function is Connection.write:  # StreamEcho has bound it at its definition
            patch.setattr(StreamEcho, "data_received", staticmethod(made[name]))  # type: ignore[arg-type]
        patch.setattr(owner, name, made[name])


CONNECTION, REACTOR = "reactor.connection:Connection.", "reactor.loop:Reactor."
LISTENER, SERVER = "reactor.listener:Listener.", "echo7.server:EchoServer."
DATAGRAM, BATCH = "reactor.datagram:Datagram.", "reactor.fastpath.batch:DatagramBatch."
SLOTS, SPLICE = "reactor.fastpath.mmsg:Slots.", "reactor.fastpath.splice:Splice."
STREAM_OPTIONS = "reactor.sockets.opening:set_stream_options"
WATCHLIST = "reactor.sockets.watchlist:Watchlist."

BYTES = {
    "short_send_taken_for_a_whole_one": edit(
        CONNECTION + "_flush", "self._pending.consume(sent)", "self._pending.consume(len(self._pending))"
    ),
    "bytes_dropped_when_the_send_buffer_is_full": edit(
        CONNECTION + "_flush",
        "except WOULD_BLOCK:\n        return",
        "except WOULD_BLOCK:\n        sent = len(self._pending)",
    ),
    "short_write_ignored": edit(CONNECTION + "write", "if sent == len(data):", "if True:"),
    "write_overtakes_pending_bytes": edit(CONNECTION + "write", "if not self.interest & WRITE:", "if True:"),
    "urgent_byte_left_out_of_the_stream": edit(
        STREAM_OPTIONS, "(*option)", "(*option[:2], option[2] * (option[1] != socket.SO_OOBINLINE))"
    ),
    "unasked_greeting": edit(
        CONNECTION + "open", "    self._update_interest()", "    self.write(b'220 ready')\n    self._update_interest()"
    ),
    "line_ends_converted": edit(
        CONNECTION + "write",
        "    sent = 0\n",
        "    data = data.replace(b'\\r\\n', b'\\n') if isinstance(data, bytes) else data\n    sent = 0\n",
    ),
}

READINESS = {
    "no_backpressure": edit(CONNECTION + "_wanted", " and waiting_bytes <= self.limits.high_water_bytes", ""),
    "interest_in_writing_never_taken_back": edit(
        CONNECTION + "_update_interest",
        "self._wanted()",
        "self._wanted() | (self.interest & WRITE if self.state is OPEN else 0)",
    ),
    "reading_never_resumed": edit(CONNECTION + "_flush", "self._update_interest()", "pass"),
    "handlers_looked_up_by_descriptor_number": edit(
        REACTOR + "_turn",
        "= key.data\n",
        "= vars(self.turn.__func__).setdefault(self, {}).setdefault(key.fd, key.data)\n",
    ),
    "spurious_readiness_taken_for_an_error": edit(
        CONNECTION + "on_event", "except WOULD_BLOCK:\n            pass", "except ():\n            pass"
    ),
    "finished_connection_still_registered": edit(
        CONNECTION + "_end_of_stream", "self._eof, keep_open = True", "self._eof, keep_open = False"
    )
    + edit(CONNECTION + "_end_of_stream", "self.protocol.eof_received(self)", "self._pending"),
    "closed_handler_called_in_the_same_batch": edit(
        REACTOR + "_turn", "if not handler.closed and PROCESS.id == here:", "if True:"
    )
    + edit(
        "echo7.policy.echo:StreamEcho.connection_made",
        "    self._made(connection)",
        "    others = [h for h in connection._reactor.handlers if isinstance(h, Connection)]\n"
        "    self._made(connection)\n"
        "    len(others) > 2 and others[0].abort()",
    ),
}

ENDS = {
    "closed_without_lingering": edit(
        CONNECTION + "_advance", "self.socket.shutdown(socket.SHUT_WR)", "return self._tear_down()"
    ),
    "half_close_taken_for_the_end": edit(
        CONNECTION + "_end_of_stream", "self._eof, keep_open = True, None", "return self._tear_down()"
    ),
    "closed_before_it_is_unregistered": edit(
        CONNECTION + "_tear_down",
        "    self._reactor.unregister(self, error)\n    close_socket(self.socket)",
        "    close_socket(self.socket)\n    self._reactor.unregister(self, error)",
    ),
    "descriptor_leaked_after_an_error": edit(
        CONNECTION + "_tear_down", "close_socket(self.socket)", "error or close_socket(self.socket)"
    ),
    "enobufs_taken_for_the_end": edit(CONNECTION + "_is_fatal", "if error.errno in OUT_OF_MEMORY:", "if False:"),
    "eagain_taken_for_the_end": edit(
        CONNECTION + "_flush", "except WOULD_BLOCK:\n        return", "except ():\n        return"
    ),
    "eintr_taken_for_the_end": edit(
        CONNECTION + "on_event", "except WOULD_BLOCK:\n            pass", "except BlockingIOError:\n            pass"
    ),
    "timers_fire_early": edit("reactor.timers:Timers.pop_due", "[0][0] > now_s", "[0][0] > now_s + 1.0"),
    "aborted_without_a_reset": edit(CONNECTION + "abort", "reset_on_close(self.socket)", "pass"),
    "reading_goes_on_while_draining": edit(
        CONNECTION + "_wanted",
        "(self.state is OPEN or self.state is HALF_CLOSED) and not (self._eof or self._paused)",
        "not self._eof",
    ),
    "no_pause_when_memory_runs_out": edit(
        CONNECTION + "_is_fatal", "self._reactor.suspend(self, SEND_RETRY_S)", "pass"
    ),
    "suspended_for_no_time": edit(WATCHLIST + "suspend", "call_later(pause_s,", "call_later(0.0,"),
    "suspended_for_ever": edit(WATCHLIST + "suspend", "pause_s, self._watch_again, handler", "pause_s, int"),
    "dead_peers_never_found": edit(
        STREAM_OPTIONS, "(*option)", "(*option[:2], option[2] * (option[1] != socket.SO_KEEPALIVE))"
    ),
}

INTEREST = {
    "failed_modify_forgotten": edit(
        WATCHLIST + "_refused",
        "if error.errno in NO_ROOM_TO_WATCH:",
        "if error.errno in NO_ROOM_TO_WATCH and expected:\n        return\n    if error.errno in NO_ROOM_TO_WATCH:",
    ),
    "failed_modify_ends_the_connection": edit(
        WATCHLIST + "_refused", "if error.errno in NO_ROOM_TO_WATCH:", "if False:"
    ),
    "failed_modify_taken_for_success": edit(
        WATCHLIST + "_refused",
        "    was_watched =",
        "    if expected:\n        self._selector.register(number, 1, handler)\n        return\n    was_watched =",
    ),
    "persistent_refusal_makes_the_loop_spin": edit(
        WATCHLIST + "goes_on_after", "failures >= FAILURES_IN_A_ROW:", "False:"
    ),
}

INTERRUPTS = {
    "other_due_timers_lost_at_a_base_exception": edit(
        REACTOR + "_turn", "in self._timers.pop_due(self.now()):", "in tuple(self._timers.pop_due(self.now())):"
    ),
    "other_queued_calls_lost_at_a_base_exception": edit(
        REACTOR + "_run_calls",
        "for _ in range(len(self.calls)):  # what these calls queue runs in the next turn\n"
        "        callback, args = self.calls.popleft()\n",
        "for callback, args in [self.calls.popleft() for _ in tuple(self.calls)]:\n",
    ),
    "base_exception_taken_for_a_callback_s_bug": edit(
        REACTOR + "_guard", "except Exception as", "except BaseException as"
    )
    + edit(REACTOR + "callback_failed", "        raise error\n", "        return\n"),
    "connection_deaf_after_a_base_exception": edit(
        CONNECTION + "open", "    finally:\n", "    except ():\n        pass\n    else:\n"
    ),
    "held_batch_forgotten_at_a_base_exception": edit(
        BATCH + "on_event", "    finally:\n", "    except ():\n        pass\n    else:\n"
    ),
}

CLOSES = {
    "closed_listener_still_accepts": edit(
        LISTENER + "on_event", "if not self.interest:", "if not self.interest and not self.closed:"
    ),
    "closed_endpoint_still_receives": edit(
        DATAGRAM + "on_event", "if not self.interest & READ:", "if not (self.interest & READ or self.closed):"
    ),
    "endpoint_never_told": edit(
        DATAGRAM + "abort", "self._reactor.call_soon(self.protocol.endpoint_lost, self, error)", "pass"
    )
    + edit(BATCH + "abort", "self._reactor.call_soon(self.protocol.endpoint_lost, self, error)", "pass"),
    "closed_endpoint_still_sends": edit(DATAGRAM + "send", "is not None or self.closed:", "is not None:"),
}

LOST = {
    "lost_descriptor_closed_with_its_new_owner": edit(WATCHLIST + "_release", "handler.detach()", "pass"),
    "lost_descriptor_s_number_has_two_owners": edit(WATCHLIST + "add", "if number in self._owners:", "if False:"),
    "lost_descriptor_told_twice": edit(
        WATCHLIST + "_release", "for handler in lost:", "for handler in [*lost, *lost]:"
    ),
}

SIGNALS = {
    "signal_looked_for_before_its_byte_is_taken": edit(
        "reactor.signals:Waker.on_event", "    try:\n", "    noted = tuple(self.signals.pending)\n    try:\n"
    )
    + edit("reactor.signals:Waker.on_event", "in tuple(pending)", "in noted")
}

SERVICE = {
    "pending_bytes_lost_at_the_end": edit(SERVER + "stop", "connection.close()", "connection.abort()"),
    "stop_takes_a_minute": edit(SERVER + "stop", "call_later(self._drain_timeout_s,", "call_later(60.0,"),
    "stop_never_ends": edit(SERVER + "_check_stopped", "if self._leaving and", "if False and"),
    "max_connections_ignored": edit(LISTENER + "pause", "set_interest(self, 0)", "set_interest(self, READ)"),
    "counters_forget_bytes": edit(
        SERVER + "_connection_lost", "_bytes_sent += connection.bytes_sent", "_bytes_sent += 0"
    ),
    "no_pause_when_descriptors_run_out": edit(WATCHLIST + "goes_on_after", "self.suspend(handler)", "pass"),
    "one_client_s_error_ends_the_listener": edit(WATCHLIST + "goes_on_after", "in BROKEN_SOCKET:", "in ONE_PEER:"),
    "accepting_never_resumed": edit(LISTENER + "resume", "set_interest(self, READ)", "set_interest(self, 0)"),
}

DATAGRAMS = {
    "empty_datagrams_dropped": edit(
        DATAGRAM + "_deliver", "    self.datagrams_received += 1", "    self.datagrams_received += 1 if data else 0"
    )
    + edit(DATAGRAM + "_deliver", "if flags & MSG_TRUNC:", "if not data:\n        return\n    if flags & MSG_TRUNC:"),
    "answer_from_another_address": edit(DATAGRAM + "send", "if path:", "if False:"),
    "interface_named_in_the_answer": edit(
        "reactor.datagram:reply_control",
        "(socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + asked + asked)",
        "(socket.IPPROTO_IP, IP_PKTINFO, path)",
    )
    + edit("reactor.datagram:reply_control", "path[:16] + bytes(4)", "path"),
    "held_answer_sent_twice": edit(
        DATAGRAM + "on_event", "self.send(*held)\n", "self.send(*held)\n        self._held or self.send(*held)\n"
    ),
    "held_answer_dropped_and_counted": edit(DATAGRAM + "on_event", "self.send(*held)", "self.datagrams_sent += 1"),
    "endpoint_deaf_after_a_shortage": edit(
        WATCHLIST + "goes_on_after", "self.suspend(handler)", "self.set_interest(handler, 0)"
    ),
    "datagram_cut_to_512_bytes": edit(DATAGRAM + "send", "sendmsg((data,)", "sendmsg((data[:512],)"),
    "no_guard": edit("echo7.policy.guard:Guard.refusals", "refused[index] = reason", "pass"),
    "one_send_error_ends_the_endpoint": edit(
        DATAGRAM + "send", "destination, error)", "destination, error)\n        self.abort()"
    ),
}

BATCHES = {
    "refused_answered_with_the_others": edit(
        BATCH + "_send_back", "runs_between(sorted(refused), count) if refused else [(0, count)]", "[(0, count)]"
    ),
    "runs_end_one_too_late": edit(
        "reactor.fastpath.batch:runs_between", "[(start, end) for", "[(start, min(end + 1, count)) for"
    ),
    "runs_begin_one_too_late": edit("reactor.fastpath.batch:runs_between", "slot + 1 for", "slot + 2 for"),
    "slots_stay_as_short_as_their_last_datagram": edit(
        SLOTS + "make_room", "self._rooms[:count] = self._full[:count]", "pass"
    ),
    "answers_as_long_as_their_slots": edit(SLOTS + "turn_round", "self._rooms[:count] = self.lengths[:count]", "pass"),
    "interface_left_in_the_slots": edit(SLOTS + "turn_round", "self._interfaces[:count] = ZEROS[:count]", "pass"),
    "short_batch_sent_again_from_its_start": edit(
        BATCH + "_send_run", "runs.append((first + sent, end))", "runs.append((first, end))"
    ),
    "held_batch_forgotten": edit(
        BATCH + "_send_run", "runs.append((first, end))\n            return False", "return False"
    ),
    "one_send_error_ends_the_batch": edit(
        BATCH + "_send_run", "errno_name(error), 1, first)", "errno_name(error), 1, first)\n        self.abort()"
    ),
}

PIPES = {
    "bytes_in_the_pipe_forgotten": edit(
        SPLICE + "give_back", "bytearray()\n", "bytearray()\n    self._in_pipe_bytes = 0\n"
    ),
    "empty_splice_taken_for_the_end": edit(
        SPLICE + "recv",
        "    if not count:\n",
        "    pipe = self._socket.incoming\n"
        "    if connection.state is OPEN and not count and pipe.mark is not None and pipe.mark == pipe.received:\n"
        "        return b''\n"
        "    if not count:\n",
    ),
    "pipe_filled_while_lingering": edit(
        SPLICE + "recv", "if connection.state is OPEN and self._small_moves < SMALL_MOVES:", "if True:"
    ),
    "pipe_given_while_bytes_are_pending": edit(
        "reactor.fastpath.splice:Splicer.consider", "if connection.pending_bytes or", "if"
    ),
    "pipe_left_open": edit("reactor.fastpath.splice:Splicer.forget", "splice.close()", "pass"),
    "short_splice_taken_for_a_whole_one": edit(
        SPLICE + "send", "self._in_pipe_bytes -= count\n", "count, self._in_pipe_bytes = self._in_pipe_bytes, 0\n"
    ),
}

LIMITS = {
    "cap_lets_one_more_in": edit("echo7.policy.sources:ConnectionGate.refusal", ">= most", "> most"),
    "door_forgets_departures": edit(
        "echo7.policy.sources:ConnectionGate.leave", "    left =", "    return\n    left ="
    ),
    "bucket_without_a_bottom": edit("echo7.policy.rate:SourceBuckets.take", "return granted", "return count"),
    "rate_counts_batches_in_place_of_datagrams": edit(
        "echo7.policy.sources:DatagramGate._refusals_of_one",
        "range(by_source, count)",
        "range(by_source, by_source + 1)",
    ),
    "idle_timeout_too_early": edit("echo7.policy.idle:IdleWatch.__init__", "timeout_s * (1 - ROUNDING)", "25.0"),
}

CONTRACT = {
    "lingering_never_ends": edit(
        CONNECTION + "_linger",
        "self._deadline = self._reactor.call_later(self.limits.linger_timeout_s, self._tear_down)",
        "pass",
    ),
    "linger_timer_not_cancelled": edit(CONNECTION + "_tear_down", "self._deadline.cancel()", "pass"),
}

HALF_CLOSE = {
    "fin_before_pending_bytes": edit(
        CONNECTION + "half_close",
        "self._advance()",
        "self.socket.shutdown(socket.SHUT_WR)\n        self._update_interest()",
    ),
    "deaf_after_half_close": edit(
        CONNECTION + "_wanted", "(self.state is OPEN or self.state is HALF_CLOSED)", "self.state is OPEN"
    ),
    "half_close_without_fin": edit(
        CONNECTION + "_advance",
        "    try:\n",
        "    if self.state is HALF_CLOSED:\n        return self._update_interest()\n    try:\n",
    ),
}
