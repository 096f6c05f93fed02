"""EchoServer as a library: its addresses, its counters, its limit, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import os
import random
import socket
import sys
import threading
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7 import BindError, EchoServer
from echo7.logs import report
from echo7.policy.echo import DatagramEcho
from echo7.policy.rate import Rate
from echo7.policy.sources import BY_BIND, SourceLimits
from echo7.server import HELD_RETRY_S, HELD_TRIES
from echo7.sockets.binding import bind_all
from reactor import READ, WRITE, Reactor, State, format_address
from reactor.sockets.errors import os_error
from tests.echo7.policy.carriers import deciding, one_by_one
from tests.support.basics import PATIENCE_S, has_ipv6
from tests.support.clients import drain, echo_and_close, fill, receive_exactly, receive_to_end
from tests.support.echo import EchoByHand, EchoThread
from tests.support.faults import EAGAIN, FlakySockets
from tests.support.loops import ManualClock, is_endpoint, kernel_socket, turn_idle, turn_until

IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
BOTH = ("127.0.0.1", "::1") if has_ipv6() else ("127.0.0.1", "127.0.0.2")
DRAIN_S = 5.0


class Calls:
    """Counts how often it was called."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def at_hand(hosts: Sequence[str] = ("127.0.0.1",), clock: ManualClock | None = None, **options: Any) -> EchoByHand:
    """Return a server on a loop that the test turns, with a clock that the test moves."""
    return EchoByHand(hosts, {"clock": clock or ManualClock()}, drain_timeout_s=DRAIN_S, **options)


# ---------------------------------------------------------------- as a library


def test_example_of_the_package_serves() -> None:
    """`echo7/__init__.py`: make a server, start it, read its addresses, run the reactor, stop it."""
    with Reactor() as loop:
        server = EchoServer(hosts=["127.0.0.1"], port=0)
        server.start(loop)
        _, host, port, _ = server.addresses[0]
        answers: list[bytes] = []

        def call() -> None:
            answers.append(echo_and_close(socket.create_connection((host, port), PATIENCE_S), b"library"))
            loop.call_soon_threadsafe(server.stop, loop.stop)

        thread = threading.Thread(target=call)
        thread.start()
        loop.run()
        thread.join(PATIENCE_S)
    assert answers == [b"library"]


def test_server_without_a_transport_is_refused() -> None:
    """Neither TCP nor UDP: the mistake shows at once, not at the first client."""
    with pytest.raises(ValueError, match="neither TCP nor UDP"):
        EchoServer(tcp=False, udp=False)


@pytest.mark.parametrize(
    ("options", "kinds"), [({}, ["tcp", "udp"]), ({"udp": False}, ["tcp"]), ({"tcp": False}, ["udp"])]
)
def test_addresses_are_the_bound_ones_tcp_first(options: dict[str, Any], kinds: list[str]) -> None:
    """Issue: "ask it for its bound addresses"; `text` is as people write it: 127.0.0.1:7, [::1]:7."""
    with at_hand(BOTH, **options) as echo:
        found = echo.server.addresses
        assert [(a.transport, a.host) for a in found] == [(kind, host) for kind in kinds for host in BOTH]
        assert {a.port for a in found} == {echo.port}
        assert [a.text for a in found] == [format_address((a.host, a.port)) for a in found]


def test_failed_bind_leaves_the_reactor_unchanged() -> None:
    """`start` raises BindError: "one line, nothing left bound", and nothing watched either."""
    with EchoByHand() as first, Reactor() as reactor:
        before = list(reactor.handlers)
        with pytest.raises(BindError, match=f"127.0.0.1:{first.port}"):
            EchoServer(["127.0.0.1"], first.port).start(reactor)
        assert list(reactor.handlers) == before


def test_given_sockets_are_served_in_place_of_hosts_and_port() -> None:
    """`start(bound=…)`: "sockets that are already there, such as inherited ones"."""
    bound = bind_all(socket, ["127.0.0.2"], 0)
    with EchoByHand(bound=bound) as echo:
        assert {a.host for a in echo.server.addresses} == {"127.0.0.2"}
        client = echo.connect("127.0.0.2")
        client.send(b"inherited")
        assert echo.receive(client, 9) == b"inherited"
        client.close()


# ---------------------------------------------------------------- counters


def test_new_server_has_counters_at_zero() -> None:
    """The counters begin at zero, the drops empty."""
    with at_hand() as echo:
        counters = echo.server.counters
        assert counters.drops == {}
        numbers = [getattr(counters, name) for name in counters._fields if name != "drops"]
        assert numbers == [0] * 9


@given(st.lists(st.tuples(st.integers(1, 3000), st.booleans()), min_size=1, max_size=5))
def test_counters_add_up_closed_and_open_connections(calls: list[tuple[int, bool]]) -> None:
    """`counters`: "what has ended and what is under way, added up", in any order of the clients' ends."""
    with at_hand() as echo:
        clients = [echo.connect() for _ in calls]
        for client, (size, leaves) in zip(clients, calls, strict=True):
            client.sendall(bytes(size))
            assert len(echo.receive(client, size)) == size
            if leaves:
                client.close()
        staying = sum(not leaves for _, leaves in calls)
        turn_until(echo.reactor, lambda: echo.server.counters.connections_open == staying)
        counters, total = echo.server.counters, sum(size for size, _ in calls)
        assert (counters.connections, counters.tcp_bytes_received, counters.tcp_bytes_sent) == (
            len(calls),
            total,
            total,
        )
        for client in clients:
            client.close()


def test_datagrams_and_their_bytes_are_counted() -> None:
    """A datagram with an answer, an empty one, and one without an answer: each has its counter."""
    with at_hand(BOTH) as echo:
        for host in BOTH:
            client = echo.udp(host)
            for data in (b"", b"abc"):
                client.send(data)
                turn_until(echo.reactor, functools.partial(_arrived, client, data))
            client.close()
        counters = echo.server.counters
        assert (counters.datagrams_received, counters.datagrams_sent) == (4, 4)
        assert (counters.udp_bytes_received, counters.udp_bytes_sent) == (6, 6)
        assert counters.drops == {}


def _arrived(client: socket.socket, data: bytes) -> bool:
    try:
        return client.recv(100) == data
    except BlockingIOError:
        return False


@pytest.mark.parametrize(("plain", "call"), [(False, "sendmmsg"), (True, "sendto")])
def test_drops_are_counted_by_reason_over_all_sockets(plain: bool, call: str) -> None:
    """Issue: "drops by reason": refused datagrams, failing sends, and errors of accept(2)."""
    sockets = FlakySockets()
    with EchoByHand(BOTH, {"sockets": sockets}, plain=plain) as echo:
        sockets.faults.add("accept", os_error(errno.ECONNABORTED))
        sockets.faults.add(call, os_error(errno.EPERM), os_error(errno.EPERM), os_error(errno.ENOBUFS))
        clients = [echo.udp(host) for host in BOTH for _ in range(2)]
        for client in clients:
            client.send(b"x")
        echo.connect().close()
        turn_until(echo.reactor, lambda: echo.server.counters.datagrams_received == 4)
        counters = echo.server.counters
        assert counters.drops == {"accept_ECONNABORTED": 1, "send_ENOBUFS": 1, "send_EPERM": 2}
        assert counters.datagrams_sent == 1
        for client in clients:
            client.close()


def test_snapshot_of_counters_never_changes() -> None:
    """`counters` is "a snapshot": it can be compared with a later one."""
    with at_hand() as echo:
        before = echo.server.counters
        client = echo.connect()
        assert (before.connections, before.connections_open) == (0, 0)
        client.close()


def test_counters_never_decrease() -> None:
    """Story: between a connection's teardown and its `connection_lost`, its bytes were in neither sum."""
    with at_hand() as echo:
        client = echo.connect()
        client.send(b"x" * 1000)
        echo.receive(client, 1000)
        echo.server.abort()
        assert echo.server.counters.tcp_bytes_received == 1000
        turn_idle(echo.reactor)
        assert echo.server.counters.tcp_bytes_received == 1000
        client.close()


# ---------------------------------------------------------------- the limit of connections


@pytest.mark.parametrize("full_by", BOTH)
def test_clients_beyond_the_connection_limit_wait_on_every_listener_and_are_served_later(full_by: str) -> None:
    """`max_connections`: "at that many, clients wait in the kernel's queue", on all listeners, and lose nothing."""
    with at_hand(BOTH, max_connections=2) as echo:
        inside = [echo.connect(full_by) for _ in range(2)]
        waiting = [socket.create_connection((host, echo.port), PATIENCE_S) for host in BOTH]
        for client in waiting:
            client.sendall(b"patience")
        turn_idle(echo.reactor)
        assert echo.server.counters.connections == 2
        assert not any(drain(client) for client in waiting)
        for leaving in inside:
            leaving.close()
        for client in waiting:
            assert echo.receive(client, 8) == b"patience"
        assert echo.server.counters.connections_open == 2
        for client in waiting:
            client.close()


def test_connection_limit_holds_within_one_batch_of_clients() -> None:
    """A listener accepts many clients in one turn: the pause must work in the middle of that."""
    with at_hand(BOTH, max_connections=3) as echo:
        clients = [socket.create_connection((host, echo.port), PATIENCE_S) for host in BOTH for _ in range(5)]
        most = 0
        for left in range(len(clients), 0, -1):
            turn_idle(echo.reactor)
            most = max(most, echo.server.counters.connections_open)
            assert echo.server.counters.connections_open == min(3, left)
            served = {connection.socket.getpeername()[:2] for connection in echo.connections}
            leaving = next(client for client in clients if client.getsockname()[:2] in served)
            clients.remove(leaving)
            leaving.close()
        assert most == 3


def test_loop_sleeps_at_the_connection_limit() -> None:
    """Promise 9, "No idle CPU": a waiting client keeps the listening socket readable, but it isn't watched."""
    with at_hand(max_connections=1) as echo:
        inside = echo.connect()
        outside = socket.create_connection(("127.0.0.1", echo.port), PATIENCE_S)
        listeners = [handler for handler in echo.reactor.handlers if handler not in echo.connections]
        assert sum(bool(handler.interest) for handler in listeners) == 2, "the waker and UDP, but not the listener"
        inside.close()
        outside.close()


def test_udp_is_served_at_the_connection_limit() -> None:
    """The limit is for connections, not for datagrams."""
    with at_hand(max_connections=1) as echo:
        inside, client = echo.connect(), echo.udp()
        client.send(b"datagram")
        turn_until(echo.reactor, lambda: _arrived(client, b"datagram"))
        inside.close()
        client.close()


# ---------------------------------------------------------------- the end


def test_server_without_clients_stops_at_once() -> None:
    """There is nothing to deliver and no client to wait for."""
    stopped = Calls()
    with at_hand(BOTH) as echo:
        echo.server.stop(stopped)
        turn_idle(echo.reactor)
        assert stopped.count == 1
        assert echo.server.addresses == []


def test_stopped_is_called_from_the_loop_not_from_stop() -> None:
    """No callback runs inside the call that asked for it: `stop` has not returned yet."""
    stopped = Calls()
    with at_hand() as echo:
        echo.server.stop(stopped)
        assert stopped.count == 0


def test_stopping_server_takes_no_new_clients_and_no_datagrams() -> None:
    """Issue: "SIGTERM/SIGINT: stop accepting, stop reading"."""
    with at_hand() as echo:
        staying, udp = echo.connect(), echo.udp()
        echo.server.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", echo.port), PATIENCE_S)
        udp.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            turn_until(echo.reactor, lambda: _arrived(udp, b"x"))
        staying.close()
        udp.close()


def test_stopping_server_delivers_every_byte_that_it_has_read_then_fin() -> None:
    """Issue: "deliver every byte that the process has read (what is still unread in the kernel is discarded
    while lingering), FIN, linger to EOF". A reset would raise here, and destroy what is under way.
    """
    stopped = Calls()
    with at_hand() as echo:
        client = echo.connect(buffer_bytes=8192)
        sent = stuff(echo, client)
        echo.server.stop(stopped)
        read = echo.server.counters.tcp_bytes_received
        assert echo.connections[0].pending_bytes > 0
        received = echo.receive_to_end(client)
        assert received == sent[:read]
        assert len(sent) > read, "the unread rest must not turn our FIN into a reset"
        turn_idle(echo.reactor)
        assert stopped.count == 0, "our FIN is sent, but the client's has not come"
        client.close()
        turn_until(echo.reactor, lambda: stopped.count)
        assert echo.server.counters.tcp_bytes_sent == read


def stuff(echo: EchoByHand, client: socket.socket) -> bytes:
    """Send without reading until the server's end is paused at its bound and the kernel takes no more."""
    sent = bytearray()
    (connection,) = echo.connections

    def paused() -> bool:
        sent.extend(fill(client))
        return not connection.interest & READ

    turn_until(echo.reactor, paused)
    while piece := fill(client):
        sent.extend(piece)
    return bytes(sent)


def test_stopping_server_sends_fin_and_waits_for_an_idle_client_to_close() -> None:
    """Law: "Then it sends FIN, and lingers until the client's FIN"."""
    stopped = Calls()
    with at_hand() as echo:
        client = echo.connect()
        echo.server.stop(stopped)
        assert echo.receive_to_end(client) == b""
        assert echo.connections[0].state is State.LINGERING
        assert stopped.count == 0
        client.send(b"too late: discarded")
        client.shutdown(socket.SHUT_WR)
        turn_until(echo.reactor, lambda: stopped.count)
        assert client.recv(1) == b"", "and no reset either"
        client.close()


def test_client_that_never_reads_is_aborted_at_the_drain_timeout_and_not_before() -> None:
    """Law: "Only what is left at the drain timeout is aborted"."""
    stopped, clock = Calls(), ManualClock()
    with at_hand(clock=clock) as echo:
        client = echo.connect(buffer_bytes=8192)
        stuff(echo, client)
        echo.server.stop(stopped)
        clock.advance(DRAIN_S - 0.001)
        turn_idle(echo.reactor)
        assert (stopped.count, len(echo.connections)) == (0, 1)
        clock.advance(0.001)
        turn_until(echo.reactor, lambda: stopped.count)
        assert echo.connections == []
        client.setblocking(True)
        with pytest.raises(ConnectionResetError):
            receive_to_end(client)
        client.close()


def test_client_that_never_closes_is_aborted_at_the_drain_timeout() -> None:
    """A client that has everything, and our FIN, but doesn't close delays the end no longer than that."""
    stopped, clock = Calls(), ManualClock()
    with at_hand(clock=clock) as echo:
        client = echo.connect()
        echo.server.stop(stopped)
        assert echo.receive_to_end(client) == b""
        clock.advance(DRAIN_S)
        turn_until(echo.reactor, lambda: stopped.count)
        client.close()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_stopped_is_called_once_however_clients_end(count: int) -> None:
    """`stop`: "then call `stopped`": once, also when the last client has gone before the deadline."""
    stopped, clock = Calls(), ManualClock()
    with at_hand(clock=clock) as echo:
        clients = [echo.connect() for _ in range(count)]
        echo.server.stop(stopped)
        for client in clients:
            client.close()
        turn_until(echo.reactor, lambda: stopped.count)
        clock.advance(10 * DRAIN_S)
        turn_idle(echo.reactor)
    assert stopped.count == 1


def test_second_stop_changes_nothing_and_both_are_called_back() -> None:
    """`stop`: "A second call only adds another `stopped`", during the drain and after it."""
    first, second, third = Calls(), Calls(), Calls()
    with at_hand() as echo:
        client = echo.connect()
        echo.server.stop(first)
        echo.server.stop()
        echo.server.stop(second)
        turn_idle(echo.reactor)
        assert (first.count, second.count) == (0, 0)
        client.close()
        turn_until(echo.reactor, lambda: first.count and second.count)
        echo.server.stop(third)
        turn_until(echo.reactor, lambda: third.count)
    assert (first.count, second.count, third.count) == (1, 1, 1)


def test_call_in_the_wrong_state_is_refused() -> None:
    """A server that has not started can't stop, and a running one can't start again."""
    with pytest.raises(RuntimeError, match="hasn't been started"):
        EchoServer().stop()
    with pytest.raises(ValueError, match="max_connections"):
        EchoServer(max_connections=0)
    with at_hand() as echo, pytest.raises(RuntimeError, match="has been started"):
        echo.server.start(echo.reactor)


def test_drain_timeout_logs_how_many_clients_lose_data_and_how_many_do_not(caplog: pytest.LogCaptureFixture) -> None:
    """Some clients lose data then, others had everything: an operator needs to know."""
    clock = ManualClock()
    with at_hand(clock=clock) as echo:
        reader = echo.connect(buffer_bytes=8192)
        stuff(echo, reader)
        idle = [echo.connect() for _ in range(2)]
        echo.server.stop()
        turn_idle(echo.reactor)
        clock.advance(DRAIN_S)
        turn_until(echo.reactor, lambda: not echo.connections)
        for client in [reader, *idle]:
            client.close()
    (message,) = [record.getMessage() for record in caplog.records if vars(record).get("event") == "drain_timeout"]
    assert message == "drain timeout: 1 clients cut off with bytes pending, 2 that had everything but hadn't closed"


def test_abort_ends_a_drain_at_once() -> None:
    """`abort`: "Reset the connections that `stop` still waits for"."""
    stopped = Calls()
    with at_hand() as echo:
        client = echo.connect()
        echo.server.stop(stopped)
        echo.server.abort()
        turn_until(echo.reactor, lambda: stopped.count)
        assert echo.server.counters.connections_open == 0
        client.close()


def test_stopped_server_releases_its_port() -> None:
    """Another server can be started on the same reactor and port, without waiting for TIME_WAIT."""
    with at_hand() as echo:
        client = echo.connect()
        echo.server.stop()
        assert echo.receive_to_end(client) == b""
        client.close()
        turn_until(echo.reactor, lambda: not echo.connections)
        successor = EchoServer(["127.0.0.1"], echo.port)
        successor.start(echo.reactor)
        assert [a.port for a in successor.addresses] == [echo.port] * 2


def test_stopping_one_server_leaves_another_on_the_same_reactor_running() -> None:
    """Two servers on one loop: each ends only its own connections."""
    with at_hand() as echo:
        other = EchoServer(["127.0.0.1"], 0)
        other.start(echo.reactor)
        client = echo.connect()
        other.stop()
        client.send(b"still here")
        assert echo.receive(client, 10) == b"still here"
        client.close()


# ---------------------------------------------------------------- failed


@pytest.mark.parametrize("last", ["tcp", "udp"])
@pytest.mark.parametrize(("plain", "call"), [(False, "recvmmsg"), (True, "recvmsg")])
def test_failed_is_called_when_the_last_socket_breaks_and_not_before(last: str, plain: bool, call: str) -> None:
    """Promise 16: EBADF and its like close the socket; "exit 1 if it was the last"."""
    failed, sockets = Calls(), FlakySockets()
    with EchoByHand(reactor_options={"sockets": sockets}, failed=failed, plain=plain) as echo:
        calls = {"tcp": "accept", "udp": call}
        first = "udp" if last == "tcp" else "tcp"
        sockets.faults.add(calls[first], os_error(errno.EBADF))
        _poke(echo, first)
        turn_until(echo.reactor, lambda: [a.transport for a in echo.server.addresses] == [last])
        turn_idle(echo.reactor)
        assert failed.count == 0
        sockets.faults.add(calls[last], os_error(errno.EBADF))
        _poke(echo, last)
        turn_until(echo.reactor, lambda: failed.count)
        turn_idle(echo.reactor)
    assert failed.count == 1


def _poke(echo: EchoByHand, transport: str) -> None:
    """Make a serving socket readable."""
    kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as client:
        client.connect(("127.0.0.1", echo.port))
        client.send(b"x")


def test_failed_is_called_once_when_all_sockets_break_in_the_same_turn() -> None:
    """`failed`: "called when the last serving socket is broken": only one socket is the last."""
    failed, sockets = Calls(), FlakySockets()
    with EchoByHand(BOTH, {"sockets": sockets}, failed=failed, udp=False) as echo:
        sockets.faults.always["accept"] = os_error(errno.EBADF)
        clients = [socket.create_connection((host, echo.port), PATIENCE_S) for host in BOTH]
        turn_until(echo.reactor, lambda: failed.count)
        turn_idle(echo.reactor)
        for client in clients:
            client.close()
    assert failed.count == 1


def test_open_connections_are_served_when_the_last_listening_socket_breaks() -> None:
    """A broken listener ends no connection: the owner decides in `failed`."""
    failed, sockets = Calls(), FlakySockets()
    with EchoByHand(reactor_options={"sockets": sockets}, failed=failed, udp=False) as echo:
        inside = echo.connect()
        sockets.faults.add("accept", os_error(errno.EINVAL))
        _poke(echo, "tcp")
        turn_until(echo.reactor, lambda: failed.count)
        inside.send(b"inside")
        assert echo.receive(inside, 6) == b"inside"
        inside.close()


@pytest.mark.parametrize("options", [{}, {"tcp": False}, {"udp": False}])
def test_orderly_end_does_not_call_failed(options: dict[str, Any]) -> None:
    """`failed` is for broken sockets: neither `stop` nor the reactor's end breaks one."""
    failed = Calls()
    with at_hand(failed=failed, **options) as echo:
        echo.server.stop()
        turn_idle(echo.reactor)
    with at_hand(failed=failed, **options):
        pass
    assert failed.count == 0


# ---------------------------------------------------------------- kernel buffers


def test_cap_on_kernel_buffers_reaches_every_socket_for_connections() -> None:
    """Promise 5: "`--socket-buffer BYTES` caps it"; Linux doubles what is asked for (socket(7))."""
    with EchoThread(BOTH, socket_buffer_bytes=16_384) as echo, echo.connect() as client:
        client.sendall(b"x")
        receive_exactly(client, 1)
        handlers = [handler for handler in list(echo.reactor.handlers)[1:] if not is_endpoint(handler)]
        sizes = echo.call(lambda: [_buffer_sizes(handler) for handler in handlers])
    assert len(sizes) == 3
    assert all(16_384 <= size <= 32_768 for pair in sizes for size in pair)


def _buffer_sizes(handler: Any) -> list[int]:
    with kernel_socket(handler) as sock:
        return [sock.getsockopt(socket.SOL_SOCKET, option) for option in (socket.SO_RCVBUF, socket.SO_SNDBUF)]


# ---------------------------------------------------------------- start and stop once


def test_server_starts_once() -> None:
    """A second start would bind sockets that no call could close."""
    with at_hand() as echo, pytest.raises(RuntimeError, match="has been started"):
        echo.server.start(echo.reactor)


def test_server_that_has_not_started_cannot_stop() -> None:
    with pytest.raises(RuntimeError, match="hasn't been started"):
        EchoServer().stop()


def test_stop_of_a_stopped_server_calls_back_too() -> None:
    """Also when the server has stopped already."""
    first, second, third = Calls(), Calls(), Calls()
    with at_hand() as echo:
        client = echo.connect()
        echo.server.stop(first)
        echo.server.stop(second)
        client.close()
        turn_until(echo.reactor, lambda: first.count and second.count)
        echo.server.stop(third)
        turn_idle(echo.reactor)
    assert (first.count, second.count, third.count) == (1, 1, 1)


@pytest.mark.parametrize("most", [0, -1])
def test_connection_limit_below_one_is_refused(most: int) -> None:
    with pytest.raises(ValueError, match="max_connections"):
        EchoServer(max_connections=most)


@pytest.mark.parametrize("pipes", [0, 1])
def test_bulk_comes_back_with_pipes_and_without(pipes: int) -> None:
    """`pipes`: "how many bulk connections at once may use splice(2)"; with 0, all are copied."""
    data = random.Random(862).randbytes(1 << 20)
    with EchoByHand(pipes=pipes) as echo, contextlib.closing(echo.connect()) as client:
        received = echo.send(client, data)
        assert received + echo.receive(client, len(data) - len(received)) == data


@pytest.mark.long
def test_idle_connection_takes_no_more_than_700_bytes_of_python_memory() -> None:
    """Issue: "Idle connection <= 700 bytes of Python memory", once it has echoed; the client's end isn't counted."""
    count = 400
    with EchoByHand(udp=False) as echo:
        clients = [echo.connect() for _ in range(50)]  # shared objects exist by then
        gc.collect()
        tracemalloc.start()
        for _ in range(count):
            clients.append(echo.connect())
            clients[-1].send(b"x")
            assert echo.receive(clients[-1], 1) == b"x"
        gc.collect()
        grown_bytes = tracemalloc.get_traced_memory()[0] - sys.getsizeof(clients)
        tracemalloc.stop()
        each_bytes = grown_bytes / count - sys.getsizeof(clients[0])
        for client in clients:
            client.close()
    assert each_bytes <= 700


# ---------------------------------------------------------------- limits for each source


def call_from(echo: EchoByHand, source: str, host: str = "127.0.0.1") -> socket.socket:
    """Return a TCP client that is bound to a source address."""
    client = socket.create_connection((host, echo.port), PATIENCE_S, (source, 0))
    client.setblocking(False)
    return client


def ends(echo: EchoByHand, client: socket.socket) -> bool:
    """Tell whether the server has ended a connection, in order or with a reset."""
    turn_idle(echo.reactor, 10)
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False


def test_denied_source_is_closed_at_accept_and_no_other() -> None:
    """Issue: "`--allow CIDR…` / `--deny CIDR…` (TCP: closed at accept …)"."""
    with at_hand(sources=SourceLimits(deny=("127.0.0.66/32",))) as echo:
        denied, other = call_from(echo, "127.0.0.66"), call_from(echo, "127.0.0.67")
        assert ends(echo, denied)
        assert not ends(echo, other)
        counters = echo.server.counters
        assert (counters.connections, counters.connections_open) == (1, 1)
        assert counters.drops == {"refused_denied": 1}
        assert len(echo.connections) == 1
        denied.close()
        other.close()


def test_with_allowed_networks_other_sources_are_refused() -> None:
    with at_hand(sources=SourceLimits(allow=("127.0.0.66",))) as echo:
        allowed, other = call_from(echo, "127.0.0.66"), call_from(echo, "127.0.0.67")
        assert not ends(echo, allowed)
        assert ends(echo, other)
        allowed.close()
        other.close()


def test_connection_cap_counts_each_source_by_itself() -> None:
    """Issue: "per-source caps: `--max-connections-per-source N`"."""
    with at_hand(sources=SourceLimits(connections=2)) as echo:
        mine = [call_from(echo, "127.0.0.66") for _ in range(3)]
        other = call_from(echo, "127.0.0.67")
        assert [ends(echo, client) for client in mine] == [False, False, True]
        assert not ends(echo, other)
        mine[0].close()
        turn_until(echo.reactor, lambda: echo.server.counters.connections_open == 2)
        again = call_from(echo, "127.0.0.66")
        assert not ends(echo, again)
        assert echo.server.counters.drops == {"refused_source_cap": 1}
        for client in [*mine, other, again]:
            client.close()


def test_by_default_a_source_has_a_quarter_of_the_connections_but_not_where_only_loopback_is_served() -> None:
    """Issue: "(default on non-loopback binds: a quarter of `--max-connections`)"."""
    for host, cap in {"0.0.0.0": 2, "127.0.0.1": 8}.items():
        with at_hand([host], max_connections=8, sources=SourceLimits(connections=BY_BIND)) as echo:
            clients = [call_from(echo, "127.0.0.66") for _ in range(8)]
            turn_until(echo.reactor, lambda cap=cap, echo=echo: echo.server.counters.connections_open == cap)  # type: ignore[misc]
            turn_idle(echo.reactor)
            assert sum(echo.server.counters.drops.values()) == 8 - cap
            for client in clients:
                client.close()


def test_client_that_has_gone_before_accept_is_refused() -> None:
    """getpeername(2) fails with ENOTCONN: the source is unknown, and there is no client to serve."""
    with at_hand(sources=SourceLimits(connections=1)) as echo:
        for _ in range(3):
            client = call_from(echo, "127.0.0.66")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            client.close()
        turn_until(echo.reactor, lambda: echo.server.counters.drops == {"refused_gone": 3})
        assert not echo.connections
        assert echo.server.counters.connections_open == 0
        client = call_from(echo, "127.0.0.66")
        assert not ends(echo, client)
        client.close()


def test_refused_clients_take_no_place_of_others() -> None:
    """At the connection limit, open connections stay, and the next place goes to a client that may have it."""
    with at_hand(max_connections=2, sources=SourceLimits(connections=1)) as echo:
        crowd = [call_from(echo, "127.0.0.66") for _ in range(20)]
        other = call_from(echo, "127.0.0.67")
        turn_until(echo.reactor, lambda: echo.server.counters.connections_open == 2)
        other.send(b"here")
        assert echo.receive(other, 4) == b"here"
        for client in [*crowd, other]:
            client.close()


def ask_from(echo: EchoByHand, source: str, count: int) -> int:
    """Send datagrams from a source address; return how many are answered."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((source, 0))
        client.connect(("127.0.0.1", echo.port))
        client.setblocking(False)
        before = echo.server.counters.datagrams_received
        for number in range(count):
            client.send(b"%d" % number)
        turn_until(echo.reactor, lambda: echo.server.counters.datagrams_received == before + count)
        turn_idle(echo.reactor, 3)
        answered = 0
        with contextlib.suppress(BlockingIOError):
            while client.recv(100):
                answered += 1
        return answered


BOTH_PATHS = pytest.mark.parametrize("plain", [False, True], ids=["fast", "plain"])


@BOTH_PATHS
def test_udp_from_a_denied_source_gets_no_answer(plain: bool) -> None:
    """Issue: "(… UDP: silent)"."""
    with at_hand(plain=plain, sources=SourceLimits(deny=("127.0.0.66",))) as echo:
        assert ask_from(echo, "127.0.0.66", 3) == 0
        assert ask_from(echo, "127.0.0.67", 3) == 3
        assert echo.server.counters.drops == {"source_denied": 3}


@BOTH_PATHS
def test_source_over_its_rate_gets_the_burst_and_then_what_the_rate_allows(plain: bool) -> None:
    """Issue: "UDP token bucket per source prefix … `--udp-rate PER_SECOND[:BURST]`"; neighbours are unaffected."""
    clock = ManualClock()
    with at_hand(clock=clock, plain=plain, sources=SourceLimits(udp_rate=Rate(10, 5))) as echo:
        assert ask_from(echo, "127.0.0.66", 9) == 5
        assert ask_from(echo, "127.0.0.67", 4) == 4
        clock.advance(0.2)
        assert ask_from(echo, "127.0.0.66", 9) == 2
        assert echo.server.counters.drops == {"rate_source": 4 + 7}


@BOTH_PATHS
def test_total_rate_bounds_all_sources_together(plain: bool) -> None:
    """Issue: "a global bucket (off by default)"."""
    with at_hand(plain=plain, sources=SourceLimits(udp_rate_total=Rate(10, 5))) as echo:
        assert ask_from(echo, "127.0.0.66", 3) + ask_from(echo, "127.0.0.67", 3) == 5
        assert echo.server.counters.drops == {"rate_total": 1}


@BOTH_PATHS
def test_source_has_one_bucket_on_all_sockets(plain: bool) -> None:
    options: dict[str, Any] = {"plain": plain, "sources": SourceLimits(udp_rate=Rate(10, 5))}
    with at_hand(["127.0.0.1", "127.0.0.2"], **options) as echo:
        assert ask_from(echo, "127.0.0.66", 5) == 5
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind(("127.0.0.66", 0))
            client.sendto(b"more", ("127.0.0.2", echo.port))
            turn_until(echo.reactor, lambda: echo.server.counters.drops)
        assert echo.server.counters.drops == {"rate_source": 1}


@BOTH_PATHS
def test_rates_that_are_only_logged_drop_nothing(plain: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Issue: "`--rate-log-only`"."""
    caplog.set_level("INFO", "echo7")
    limits = SourceLimits(udp_rate=Rate(10, 5), log_only=True)
    with at_hand(plain=plain, sources=limits) as echo:
        assert ask_from(echo, "127.0.0.66", 9) == 9
        counters = echo.server.counters
        assert (counters.drops, counters.datagrams_over_rate) == ({}, 4)
        assert "9 answered (4 of them over the rate) over udp" in report.describe(counters)
    assert any(text.startswith("over rate: rate_source of 127.0.0.66") for text in caplog.messages)


@pytest.mark.parametrize(("host", "most"), [("0.0.0.0", 20_000), ("127.0.0.1", None)])
def test_by_default_only_other_machines_have_a_rate(
    host: str, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue: "sources 127/8 and ::1 exempt unless asked for", and no limit on loopback binds."""
    made: list[DatagramEcho] = []

    class Kept(DatagramEcho):
        def __init__(self, *parts: Any) -> None:
            super().__init__(*parts)
            made.append(self)

    monkeypatch.setattr("echo7.server.DatagramEcho", Kept)
    with at_hand([host], sources=SourceLimits(udp_rate=BY_BIND, answer_loops=True)):
        decide = deciding(made[0])
        assert one_by_one(decide, [(("127.0.0.1", 40_000), b"")] * 25_000) == {}
        refused = one_by_one(decide, [(("10.0.0.1", 40_000), b"")] * 25_000)
        assert refused == ({} if most is None else dict.fromkeys(range(most, 25_000), "rate_source"))


@BOTH_PATHS
def test_each_drop_is_logged_with_its_source(plain: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Issue: "every drop has one counter and a rate-limited log line with the source"; also for drops by the kernel."""
    caplog.set_level("INFO", "echo7")
    sockets, call = FlakySockets(), "sendto" if plain else "sendmmsg"
    options: dict[str, Any] = {"plain": plain, "sources": SourceLimits(deny=("127.0.0.66",))}
    with EchoByHand(["127.0.0.1"], {"sockets": sockets}, **options) as echo:
        ask_from(echo, "127.0.0.66", 1)
        sockets.faults.add(call, os_error(errno.EPERM))
        ask_from(echo, "127.0.0.67", 1)
        denied = call_from(echo, "127.0.0.66")
        assert ends(echo, denied)
        denied.close()
        drops = echo.server.counters.drops
    assert drops == {"source_denied": 1, "send_EPERM": 1, "refused_denied": 1}
    told = [vars(record)["fields"] for record in caplog.records if vars(record)["event"] == "dropped"]
    assert [(line["reason"], line["source"].partition(":")[0]) for line in told] == [
        ("source_denied", "127.0.0.66"),
        ("send_EPERM", "127.0.0.67"),
        ("refused_denied", "127.0.0.66"),
    ]


def test_invalid_network_is_refused_before_anything_is_bound() -> None:
    with pytest.raises(ValueError, match="is not a network"):
        EchoServer(sources=SourceLimits(allow=("nonsense",)))


# ---------------------------------------------------------------- another process replaces it


def test_retired_server_serves_open_connections_and_no_new_ones() -> None:
    """Another process has the same sockets: closing them here closes nothing there."""
    told: list[str] = []
    with at_hand() as echo, contextlib.ExitStack() as stack:
        first, second = echo.connect(), echo.connect()
        others = [stack.enter_context(socket.socket(fileno=os.dup(h.fileno()))) for h in echo.server.handlers[0]]
        echo.server.retire(lambda: told.append("retired"))
        echo.server.retire()
        assert echo.server.addresses == []
        for client in (first, second, first):
            client.send(b"still here")
            assert echo.receive(client, 10) == b"still here"
        with socket.create_connection(("127.0.0.1", echo.port), PATIENCE_S):
            others[0].accept()[0].close()  # a client of the other process
        first.close()
        turn_idle(echo.reactor)
        assert told == []
        second.shutdown(socket.SHUT_WR)
        assert echo.receive_to_end(second) == b""
        second.close()
        turn_until(echo.reactor, lambda: told == ["retired"])
        assert echo.server.counters.connections == 2


def test_retired_server_can_be_stopped() -> None:
    told: list[str] = []
    with at_hand() as echo:
        client = echo.connect()
        echo.server.retire(lambda: told.append("retired"))
        echo.server.stop(lambda: told.append("stopped"))
        assert echo.receive_to_end(client) == b""
        client.close()
        turn_until(echo.reactor, lambda: len(told) == 2)


@pytest.mark.parametrize("room", [True, False])
def test_retiring_server_answers_held_datagrams_first(plain: bool, room: bool) -> None:
    """No other process has them. If the kernel never has room, the server gives up after `HELD_TRIES`."""
    sockets, told, now_s = FlakySockets(), list[str](), [0.0]
    options = {"sockets": sockets, "clock": lambda: now_s[0]}
    with EchoByHand(reactor_options=options) as echo, echo.udp() as client:
        call = "sendto" if plain else "sendmmsg"
        sockets.faults.always[call] = EAGAIN
        client.send(b"held")
        turn_until(echo.reactor, lambda: any(endpoint.interest & WRITE for endpoint in echo.server.handlers[1]))
        echo.server.retire(lambda: told.append("retired"))
        turn_idle(echo.reactor)
        assert told == []
        if room:
            del sockets.faults.always[call]
            assert echo.answer(client) == b"held"
        for _ in range(HELD_TRIES):
            now_s[0] += HELD_RETRY_S
            turn_idle(echo.reactor, 2)
        assert told == ["retired"]
        assert echo.server.counters.drops == ({} if room else {"busy": 1})
