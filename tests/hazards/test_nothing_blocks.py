"""The call that blocks.

One blocking call on the loop holds up every client: a name lookup in `connect` while the DNS server is slow (30
seconds), or a blocking accepted socket, on which `send` waits for one client that doesn't read.

What prevents it: verbs take numeric addresses only, names are looked up before the loop runs, and every socket on the
loop is non-blocking (promise 22).
"""

import functools
import os
import pathlib
import socket
from collections.abc import Callable

import pytest

from echo7.server import EchoServer
from reactor import Connection, Reactor, StreamProtocol, connect_tcp, listen_tcp, open_udp
from reactor.datagram import DatagramProtocol
from tests.support.basics import PATIENCE_S, has_ipv6
from tests.support.clients import receive_exactly
from tests.support.daemon import LOOKED_INTO, EchoProcess
from tests.support.loops import ManualClock, Recorder, server_side, turn_idle, turn_until

NAMES = ["localhost", "example.com", "", "*", "127.1", "0x7f.1", "localhost.", "127.0.0.1 ", "[::1]", "a" * 300]
O_NONBLOCK = 0o4000  # on Linux, the only system with /proc/PID/fdinfo
LOOK_UPS = ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo", "getfqdn")


def connect(reactor: Reactor, host: str) -> object:
    return connect_tcp(reactor, (host, 7), StreamProtocol(), lambda error: None)


def listen(reactor: Reactor, host: str) -> object:
    return listen_tcp(reactor, (host, 0), StreamProtocol)


def open_endpoint(reactor: Reactor, host: str) -> object:
    return open_udp(reactor, (host, 0), DatagramProtocol())


@pytest.fixture
def no_look_ups(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that makes every later name lookup fail the test."""

    def forbidden(*args: object, **options: object) -> None:
        pytest.fail(f"a name was looked up while the loop ran: {args}")

    def forbid() -> None:
        for name in LOOK_UPS:
            monkeypatch.setattr(socket, name, forbidden)

    return forbid


@pytest.mark.parametrize("verb", [connect, listen, open_endpoint], ids=lambda verb: verb.__name__)
@pytest.mark.parametrize("host", NAMES, ids=lambda host: repr(host[:20]))
def test_names_are_refused_without_being_looked_up(
    host: str, verb: Callable[[Reactor, str], object], no_look_ups: Callable[[], None]
) -> None:
    """'`connect_tcp` takes numeric addresses' (promise 22). So do the other verbs. 127.1 counts as a name."""
    no_look_ups()
    with Reactor() as reactor:
        handlers_before = list(reactor.handlers)
        with pytest.raises(ValueError, match="numeric"):
            verb(reactor, host)
        assert list(reactor.handlers) == handlers_before


@pytest.mark.parametrize("address", [("fe80::1%nosuch0", 7), ("::1%", 7), ("127.0.0.1", 70_000)], ids=str)
def test_address_refused_by_the_socket_call_leaves_nothing_open(
    address: tuple[str, int], no_look_ups: Callable[[], None]
) -> None:
    """An unknown scope, an impossible port: the error is raised or passed to `failed`, never both."""
    no_look_ups()
    clock = ManualClock()
    with Reactor(clock=clock) as reactor:
        handlers_before = list(reactor.handlers)
        told: list[object] = []
        try:
            connect_tcp(reactor, address, StreamProtocol(), told.append)
        except (OSError, ValueError, OverflowError) as error:
            told.append(error)
        turn_idle(reactor)
        clock.advance(3600.0)
        turn_idle(reactor)
        assert len(told) == 1
        assert list(reactor.handlers) == handlers_before


def test_names_are_looked_up_only_before_the_loop_runs(no_look_ups: Callable[[], None]) -> None:
    """'Names are resolved before the loop runs' (promise 22): a server on a name makes no lookup while it serves."""
    with Reactor() as reactor:
        server = EchoServer(("localhost",), 0)
        server.start(reactor)
        address = next(a for a in server.addresses if a.transport == "tcp" and a.host == "127.0.0.1")[1:3]
        outgoing = Recorder()
        with socket.socket() as client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            no_look_ups()
            client.connect(address)
            client.sendall(b"ping")
            datagrams.bind(("127.0.0.1", 0))
            datagrams.sendto(b"ping", address)
            connect_tcp(reactor, address, outgoing, lambda error: outgoing.events.append(("failed", error)))
            turn_until(reactor, lambda: server.counters.tcp_bytes_sent + server.counters.udp_bytes_sent == 8)
            turn_until(reactor, lambda: outgoing.connections)
            assert receive_exactly(client, 4) == b"ping"
            assert str(outgoing.connections[0].socket.getpeername())
        finished: list[str] = []
        outgoing.connections[0].close()
        server.stop(lambda: finished.append("stopped"))
        turn_until(reactor, lambda: finished)


@pytest.fixture
def hosts() -> tuple[str, ...]:
    return ("127.0.0.1", "::1") if has_ipv6() else ("127.0.0.1",)


def test_every_socket_on_the_loop_is_non_blocking(hosts: tuple[str, ...]) -> None:
    """Listeners, endpoints, accepted connections, connections under way and made, and the wake-up socket."""
    with Reactor() as reactor:
        server = EchoServer(hosts, 0)
        server.start(reactor)
        port = server.addresses[0].port
        for host in hosts:
            with socket.create_connection((host, port), PATIENCE_S) as client:
                assert os.get_blocking(server_side(reactor, client).fileno()) is False
                made, failures = Recorder(), list[OSError]()
                connector = connect_tcp(reactor, (host, port), made, failures.append)
                assert os.get_blocking(connector.fileno()) is False
                turn_until(reactor, functools.partial(getattr, made, "connections"))
                assert {os.get_blocking(handler.fileno()) for handler in reactor.handlers} == {False}
        kinds = {type(handler).__name__ for handler in reactor.handlers}
        assert {"Waker", "Listener", Connection.__name__} < kinds
        assert kinds & {"Datagram", "DatagramBatch"}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fdinfo"), reason="reads /proc/PID/fdinfo")
def test_daemon_has_no_blocking_socket() -> None:
    """The same from outside, for every socket of the real process."""
    with EchoProcess(*LOOKED_INTO) as daemon, daemon.connect() as one, daemon.connect() as other:
        for client in (one, other):
            client.sendall(b"ping")
            assert receive_exactly(client, 4) == b"ping"
        process = pathlib.Path("/proc", str(daemon.process.pid))
        flags: dict[str, int] = {}
        for descriptor in (process / "fd").iterdir():
            if os.readlink(descriptor).startswith("socket:"):
                info = (process / "fdinfo" / descriptor.name).read_text()
                flags[descriptor.name] = int(info.partition("flags:")[2].split()[0], 8)
        assert len(flags) >= 6, "two ends of the wake-up pair, a listener, an endpoint, two clients"
        assert [name for name, value in flags.items() if not value & O_NONBLOCK] == []
