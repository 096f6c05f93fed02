"""Sockets that another process or program has made: each is served correctly, or refused in one line that names it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator

import pytest

from echo7.server import EchoServer
from echo7.sockets.adoption import MPTCP, HandedIn, adopted
from echo7.sockets.binding import BindError, Bound
from reactor import Reactor
from tests.support.basics import PATIENCE_S, has_ipv6
from tests.support.echo import EchoByHand

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="options and protocols are Linux's")

Option = tuple[int, int, int | bytes]
IPV4 = ("127.0.0.1", socket.AF_INET)
IPV6 = pytest.param("::1", socket.AF_INET6, marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6"))
RESETS_AT_CLOSE = struct.pack("ii", 1, 0)
STREAM_PRESETS: dict[str, tuple[Option, ...]] = {
    "nothing": (),
    "SO_LINGER": ((socket.SOL_SOCKET, socket.SO_LINGER, RESETS_AT_CLOSE),),
    "SO_RCVLOWAT": ((socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000),),
    "SO_OOBINLINE": ((socket.SOL_SOCKET, socket.SO_OOBINLINE, 0),),
    "SO_PEEK_OFF": ((socket.SOL_SOCKET, 42, 3),),
    "SO_TIMESTAMP": ((socket.SOL_SOCKET, 29, 1),),
    "TCP_CORK, TCP_INQ": ((socket.IPPROTO_TCP, 3, 1), (socket.IPPROTO_TCP, 36, 1)),
}
DATAGRAM_PRESETS: dict[str, tuple[Option, ...]] = {
    "nothing": (),
    "SO_TIMESTAMP": ((socket.SOL_SOCKET, 29, 1), (socket.SOL_SOCKET, 64, 1)),
    "SO_TIMESTAMPING": ((socket.SOL_SOCKET, 37, 0x7FF),),
    "SO_RXQ_OVFL": ((socket.SOL_SOCKET, 40, 1),),
    "SO_PEEK_OFF": ((socket.SOL_SOCKET, 42, 3),),
    "SO_RCVLOWAT": ((socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000),),
    "SO_DONTROUTE": ((socket.SOL_SOCKET, socket.SO_DONTROUTE, 1),),
    "UDP_CORK": ((socket.IPPROTO_UDP, 1, 1),),
    "UDP_SEGMENT": ((socket.IPPROTO_UDP, 103, 100),),
    "UDP_GRO": ((socket.IPPROTO_UDP, 104, 1),),
    "UDP_NO_CHECK6_TX": ((socket.IPPROTO_UDP, 101, 1),),
    "IP_RECVERR": ((socket.IPPROTO_IP, 11, 1), (socket.IPPROTO_IPV6, 25, 1)),
    "IP_RECVTTL and others": tuple((socket.IPPROTO_IP, number, 1) for number in (6, 7, 12, 13, 18, 20, 23, 25)),
    "IPV6_RECVHOPLIMIT and others": tuple((socket.IPPROTO_IPV6, number, 1) for number in (11, 33, 51, 56, 60, 66)),
}
DATAGRAMS = [b"", b"x", b"y" * 3000, b"z" * 60_000]


def preset(sock: socket.socket, options: tuple[Option, ...]) -> None:
    for level, name, value in options:
        with contextlib.suppress(OSError):  # this family or kernel lacks it
            sock.setsockopt(level, name, value)


def take(sock: socket.socket) -> socket.socket:
    """Adopt another descriptor of a socket, as from systemd."""
    return adopted(HandedIn, os.dup(sock.fileno()), "(name) from systemd")


@contextlib.contextmanager
def listening(host: str, family: int, options: tuple[Option, ...] = (), protocol: int = 0) -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_STREAM, protocol) as sock:
        sock.bind((host, 0))
        preset(sock, options)
        sock.listen(8)
        yield sock


def ask(echo: EchoByHand, client: socket.socket, data: bytes) -> bytes:
    received = echo.send(client, data)
    return received + echo.receive(client, len(data) - len(received))


def assert_echoes_streams(listener: socket.socket) -> None:
    """Assert that a client from before the start and one from after get back every byte, and FIN."""
    with socket.create_connection(listener.getsockname()[:2]) as early:
        early.setblocking(False)
        with EchoByHand(bound=Bound(tcp=[take(listener)], is_prepared=True)) as echo:
            for client in (early, echo.connect(str(listener.getsockname()[0]))):
                with client:
                    assert ask(echo, client, b"1") == b"1"
                    client.send(b"abc")
                    client.send(b"X", socket.MSG_OOB)
                    client.send(b"def")
                    assert echo.receive(client, 7) == b"abcXdef"
                    data = os.urandom(200_000)
                    received = echo.send(client, data)
                    client.shutdown(socket.SHUT_WR)
                    assert received + echo.receive_to_end(client) == data


@pytest.mark.parametrize(("host", "family"), [IPV4, IPV6])
@pytest.mark.parametrize("options", STREAM_PRESETS.values(), ids=STREAM_PRESETS)
def test_adopted_listener_serves_like_our_own(host: str, family: int, options: tuple[Option, ...]) -> None:
    with listening(host, family, options) as listener:
        assert_echoes_streams(listener)


def test_adopted_mptcp_listener_serves_clients_of_tcp_and_mptcp() -> None:
    """Story: SO_OOBINLINE, which MPTCP doesn't know, ended the start with a traceback."""
    try:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP)
    except OSError as error:
        pytest.skip(f"no MPTCP here: {error.strerror}")
    with listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        assert_echoes_streams(listener)
        with (
            EchoByHand(bound=Bound(tcp=[take(listener)], is_prepared=True)) as echo,
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP) as client,
        ):
            client.connect(listener.getsockname())
            client.setblocking(False)
            data = os.urandom(200_000)
            received = echo.send(client, data)
            client.shutdown(socket.SHUT_WR)
            assert received + echo.receive_to_end(client) == data


@pytest.mark.parametrize("plain", [False, True], ids=["batches", "plain"])
@pytest.mark.parametrize("wildcard", [False, True], ids=["address", "wildcard"])
@pytest.mark.parametrize(("host", "family"), [IPV4, IPV6])
@pytest.mark.parametrize("options", DATAGRAM_PRESETS.values(), ids=DATAGRAM_PRESETS)
def test_adopted_udp_socket_answers_every_datagram_and_then_rests(
    host: str, family: int, options: tuple[Option, ...], wildcard: bool, plain: bool
) -> None:
    """Story: with IP_RECVERR, one ICMP error kept the socket ready for ever; UDP_SEGMENT cut the answers up."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(({"127.0.0.1": "0.0.0.0", "::1": "::"}[host] if wildcard else host, 0))
        preset(sock, options)
        with socket.socket(family, socket.SOCK_DGRAM) as gone:
            gone.sendto(b"an answer would be refused", (host, sock.getsockname()[1]))
        bound = Bound(udp=[take(sock)], is_prepared=True)
        with EchoByHand(bound=bound, plain=plain) as echo, echo.udp(host) as client:
            client.setsockopt(socket.IPPROTO_UDP, 103, 50)  # UDP_SEGMENT: two datagrams in one call
            client.send(b"a" * 50 + b"b" * 50)
            client.setsockopt(socket.IPPROTO_UDP, 103, 0)
            for data in DATAGRAMS:
                client.send(data)
            assert [echo.answer(client) for _ in range(6)] == [b"a" * 50, b"b" * 50, *DATAGRAMS]
            assert_rests(echo)
            with pytest.raises(BlockingIOError):
                client.recv(1)


def assert_rests(echo: EchoByHand) -> None:
    """Assert that the loop has nothing to do."""
    ready: list[object] = []
    for _ in range(5):
        waker = echo.reactor.call_later(0, int)
        echo.reactor.turn()
        waker.cancel()
    (endpoint,) = echo.server.handlers[1]
    before, handled = endpoint.on_event, ready.append
    echo.reactor.call_later(0, int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(endpoint), "on_event", lambda self, mask: handled(before(mask)))
        echo.reactor.turn()
    assert ready == []


def unix() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def not_listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def connected() -> socket.socket:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        client = socket.create_connection(listener.getsockname())
        listener.accept()[0].close()
        return client


def datagrams(protocol: int = 0, host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, protocol)
    sock.bind((host, 0))
    return sock


def connected_datagrams() -> socket.socket:
    sock = datagrams()
    sock.connect(("127.0.0.1", 9))
    return sock


def shut_down() -> socket.socket:
    sock = datagrams()
    with contextlib.suppress(OSError):  # ENOTCONN, and it is shut down all the same
        sock.shutdown(socket.SHUT_RD)
    return sock


REFUSED: dict[str, tuple[Callable[[], socket.socket], str]] = {
    "unix": (unix, "its address family is AF_UNIX"),
    "vsock": (lambda: socket.socket(40, socket.SOCK_STREAM), "its address family is AF_VSOCK"),
    "packet": (lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM), "its address family is AF_PACKET"),
    "raw": (lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 17), "SOCK_RAW, IP protocol 17"),
    "sctp": (lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132), "SOCK_STREAM, IP protocol 132"),
    "sctp one to many": (lambda: socket.socket(socket.AF_INET, socket.SOCK_SEQPACKET, 132), "SOCK_SEQPACKET"),
    "udp-lite": (lambda: datagrams(136), "SOCK_DGRAM, IP protocol 136"),
    "icmp": (lambda: datagrams(1), "SOCK_DGRAM, IP protocol 1"),
    "not listening": (not_listening, "it doesn't listen"),
    "connected": (connected, "it is connected to 127.0.0.1"),
    "unbound udp": (lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), "it isn't bound to a port"),
    "connected udp": (connected_datagrams, "it is connected to 127.0.0.1:9"),
    "shut down udp": (shut_down, "it has been shut down"),
    "multicast": (lambda: datagrams(host="224.0.0.251"), "multicast or broadcast"),
    "broadcast": (lambda: datagrams(host="127.255.255.255"), "multicast or broadcast"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_socket_that_cannot_be_served_is_refused_by_name(kind: str) -> None:
    make, why = REFUSED[kind]
    try:
        sock = make()
    except OSError as error:
        pytest.skip(f"not available here: {error.strerror}")
    with sock, pytest.raises(BindError, match=rf"^descriptor \d+ \(name\) from systemd can't be served.*{why}") as told:
        take(sock)
    assert "\n" not in str(told.value)


def test_blocking_inheritable_socket_with_signals_is_made_quiet() -> None:
    """Story: a datagram at a socket with O_ASYNC sends SIGIO, which ends a process without a handler."""
    told: list[int] = []
    previous = signal.signal(signal.SIGIO, lambda signum, frame: told.append(signum))
    try:
        with datagrams() as sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            fcntl.fcntl(sock, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(sock, fcntl.F_SETFL, fcntl.fcntl(sock, fcntl.F_GETFL) | fcntl.FASYNC)
            with take(sock) as ours:
                assert (ours.getblocking(), ours.get_inheritable()) == (False, False)
                client.sendto(b"hello", sock.getsockname())
                assert select.select([ours], [], [], PATIENCE_S)[0]
                assert ours.recv(5) == b"hello"
                assert told == []
    finally:
        signal.signal(signal.SIGIO, previous)


# ---------------------------------------------------------------- sockets from a caller of the library


def test_sockets_of_a_caller_are_prepared_too() -> None:
    with listening(*IPV4, STREAM_PRESETS["SO_RCVLOWAT"]) as listener:
        tcp, udp = listener.dup(), datagrams()
        preset(udp, DATAGRAM_PRESETS["UDP_SEGMENT"])
        with EchoByHand(bound=Bound(tcp=[tcp], udp=[udp])) as echo, echo.connect() as client:
            assert ask(echo, client, b"1") == b"1"
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
                asker.setblocking(False)
                asker.connect(udp.getsockname())
                asker.send(b"2" * 1000)
                assert echo.answer(asker) == b"2" * 1000


def closed() -> socket.socket:
    sock = not_listening()
    sock.listen()
    sock.close()
    return sock


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (closed, "the tcp socket with descriptor -1 can't be used: Bad file descriptor"),
        (not_listening, "it doesn't listen; give a listening socket"),
        (unix, "AF_UNIX"),
        (datagrams, "is of type SOCK_DGRAM; give it under its own transport"),
    ],
    ids=["closed", "not listening", "unix", "udp"],
)
def test_wrong_socket_of_a_caller_is_refused_and_stays_the_callers(make: Callable[[], socket.socket], why: str) -> None:
    with make() as sock, Reactor() as reactor:
        before = sock.fileno()
        with pytest.raises(BindError, match=why):
            EchoServer().start(reactor, Bound(tcp=[sock]))
        assert sock.fileno() == before
        assert [type(handler).__name__ for handler in reactor.snapshot().handlers] == ["Waker"]


def test_socket_that_a_caller_gives_twice_is_refused() -> None:
    with datagrams() as sock, Reactor() as reactor, pytest.raises(BindError, match="given twice"):
        EchoServer().start(reactor, Bound(udp=[sock, sock]))
