"""The error that stays.

A security module, a filter or a full table makes a system call fail, and goes on doing so. The socket is still ready,
so the loop calls again at once. That takes a whole processor, with a million failing calls a second, until an operator
notices.

What prevents it: an errno that isn't known to pass at once suspends its socket, and so do a few failures in a row,
whatever the errno. The socket is tried again four times a second, and serves as soon as the error has gone.
"""

from __future__ import annotations

import errno
import socket
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactor import Connection, Datagram, Listener, Reactor
from reactor.fastpath.batch import BatchProtocol, batch_on
from reactor.limits import FAILURES_IN_A_ROW, SHORTAGE_RETRY_S
from reactor.sockets.errors import BROKEN_SOCKET, os_error
from reactor.sockets.opening import bind_tcp, bind_udp
from tests.support.basics import PATIENCE_S
from tests.support.clients import receive_exactly, tcp_pair
from tests.support.faults import FlakySockets, adopt_socket
from tests.support.loops import DatagramRecorder, ManualClock, Recorder, turn_idle, turn_until

LOCAL = ("127.0.0.1", 0)
# not errors, but "not ready": what Python raises as BlockingIOError or InterruptedError
TRY_AGAIN = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.EALREADY, errno.EINPROGRESS}
ERRNOS = st.sampled_from(sorted(errno.errorcode.keys() - TRY_AGAIN))
SECONDS = 10
MOST_CALLS_A_SECOND = FAILURES_IN_A_ROW / SHORTAGE_RETRY_S


class Flaky:
    """A loop with a manual clock, and calls that fail."""

    def __init__(self) -> None:
        self.clock, self.sockets = ManualClock(), FlakySockets()
        self.reactor = Reactor(clock=self.clock, sockets=self.sockets)

    def calls_in_ten_seconds(self, call: str, code: int) -> int:
        """Fail each call for ten seconds of the loop's clock, with many turns in each moment."""
        self.sockets.faults.always[call] = os_error(code)
        before = self.sockets.faults.calls.get(call, 0)
        for _ in range(int(SECONDS / SHORTAGE_RETRY_S)):
            turn_idle(self.reactor, 100)
            self.clock.advance(SHORTAGE_RETRY_S)
        del self.sockets.faults.always[call]
        return self.sockets.faults.calls.get(call, 0) - before


@given(code=ERRNOS)
def test_accept_that_fails_for_ever_is_tried_a_bounded_number_of_times(code: int) -> None:
    flaky = Flaky()
    with flaky.reactor as loop:
        sock = bind_tcp(flaky.sockets, LOCAL)
        sock.listen()
        recorder, lost = Recorder(echo=True), []
        listener = Listener(loop, sock, lambda: recorder, lost=lambda _, error: lost.append(error))
        with socket.create_connection(listener.address, PATIENCE_S) as client:
            assert flaky.calls_in_ten_seconds("accept", code) <= SECONDS * MOST_CALLS_A_SECOND
            if code in BROKEN_SOCKET:
                assert [error.errno for error in lost] == [code]
                return
            assert not listener.closed
            client.sendall(b"and now?")
            flaky.clock.advance(SHORTAGE_RETRY_S)
            turn_until(loop, lambda: recorder.received == b"and now?")
            assert receive_exactly(client, 8) == b"and now?"


class Echo(BatchProtocol):
    """Refuses nothing."""


@pytest.mark.skipif(sys.platform != "linux", reason="DatagramBatch needs Linux")
@given(code=ERRNOS, in_batches=st.booleans())
def test_receive_that_fails_for_ever_is_tried_a_bounded_number_of_times(code: int, in_batches: bool) -> None:
    flaky = Flaky()
    with flaky.reactor as loop, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        sock = adopt_socket(bind_udp(socket, LOCAL), flaky.sockets.faults)
        endpoint: Any = (
            batch_on(loop, sock, Echo()) if in_batches else Datagram(loop, sock, DatagramRecorder(echo=True))
        )
        client.settimeout(PATIENCE_S)
        client.sendto(b"asked", endpoint.address)
        calls = flaky.calls_in_ten_seconds("recvmmsg" if in_batches else "recvmsg", code)
        assert calls <= SECONDS * MOST_CALLS_A_SECOND
        assert sum(endpoint.drops.values()) == calls
        assert endpoint.closed == (code in BROKEN_SOCKET)
        if not endpoint.closed:
            flaky.clock.advance(SHORTAGE_RETRY_S)
            turn_until(loop, lambda: endpoint.datagrams_sent)
            assert client.recv(100) == b"asked"


@given(code=ERRNOS, call=st.sampled_from(["recv", "send"]))
def test_stream_with_an_error_ends_or_rests_and_goes_on(code: int, call: str) -> None:
    """Only a shortage of memory passes. After any other errno it is unknown which bytes were lost."""
    flaky = Flaky()
    with flaky.reactor as loop:
        near, far = tcp_pair()
        recorder = Recorder(echo=True)
        connection = Connection(loop, adopt_socket(near, flaky.sockets.faults), recorder)
        connection.open()
        far.settimeout(PATIENCE_S)
        far.sendall(b"hello")
        assert flaky.calls_in_ten_seconds(call, code) <= SECONDS * MOST_CALLS_A_SECOND
        turn_idle(loop)
        if connection.closed:
            assert [getattr(event[1], "errno", None) for event in recorder.events if event[0] == "lost"] == [code]
        else:
            assert code in (errno.ENOBUFS, errno.ENOMEM)
            flaky.clock.advance(SHORTAGE_RETRY_S)
            turn_until(loop, lambda: connection.bytes_sent == 5)
            assert receive_exactly(far, 5) == b"hello"
        far.close()
