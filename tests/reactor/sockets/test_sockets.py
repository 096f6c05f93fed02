"""Making sockets: addresses, options, errors."""

import errno
import ipaddress
import pathlib
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactor.limits import UDP_BUFFER_BYTES
from reactor.sockets.addresses import Address, family_of, format_address, pack_host
from reactor.sockets.errors import BROKEN_SOCKET, ONE_PEER, OUT_OF_MEMORY, errno_name, os_error
from reactor.sockets.opening import Socket, bind_tcp, bind_udp, connect_result, new_client
from tests.support.basics import PATIENCE_S, has_ipv6, open_descriptors
from tests.support.faults import FlakySockets

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the options' names are Linux's")
LOOPBACKS = ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)]
MAKERS: list[Callable[..., Socket]] = [bind_tcp, bind_udp, new_client]
BINDERS: list[Callable[..., Socket]] = [bind_tcp, bind_udp]


# ---------------------------------------------------------------- addresses


@given(st.ip_addresses())
def test_the_family_of_a_numeric_address_is_known(address: Any) -> None:
    """Draw a numeric IPv4 or IPv6 address in its usual form."""
    expected = socket.AF_INET if address.version == 4 else socket.AF_INET6
    assert family_of((str(address), 7)) is expected


@given(st.ip_addresses())
def test_a_numeric_address_has_four_or_sixteen_bytes(address: Any) -> None:
    assert pack_host(str(address)) == address.packed


def test_packed_address_has_no_scope() -> None:
    assert pack_host("fe80::1%eth0") == ipaddress.ip_address("fe80::1").packed
    with pytest.raises(OSError, match="illegal"):
        pack_host("localhost")


def test_a_scope_belongs_to_an_ipv6_address() -> None:
    """RFC 4007 §11; an IPv4 address has no scope."""
    assert family_of(("fe80::1%eth0", 7)) is socket.AF_INET6
    with pytest.raises(ValueError, match="numeric"):
        family_of(("127.0.0.1%eth0", 7))


@pytest.mark.parametrize("name", ["localhost", "", "example.org", "127.1", "1", "<broadcast>", "[::1]", "::1 ", "*"])
def test_host_name_is_refused(name: str) -> None:
    """Promise 22. Short forms such as 127.1 are names to the resolver, too."""
    with pytest.raises(ValueError, match="not a numeric"):
        family_of((name, 7))


@given(st.text("0123456789abcdefx.:%[]/ λ１\0\ud800", max_size=20))
def test_any_text_is_a_numeric_address_or_a_value_error(text: str) -> None:
    """No other exception is raised: no OSError, no UnicodeError that isn't a ValueError."""
    try:
        family = family_of((text, 7))
    except ValueError:
        return
    ipaddress.ip_address(text.partition("%")[0])
    assert family in (socket.AF_INET, socket.AF_INET6)


@pytest.mark.parametrize("maker", MAKERS)
def test_no_socket_is_made_for_a_name(maker: Callable[..., Socket]) -> None:
    """The name is refused first."""
    sockets = FlakySockets()
    with pytest.raises(ValueError, match="localhost"):
        maker(sockets, ("localhost", 7))
    assert sockets.faults.calls == {}


@given(st.ip_addresses(), st.integers(0, 65535))
def test_address_is_written_in_its_usual_form(address: Any, port: int) -> None:
    """127.0.0.1:7 and [::1]:7 (RFC 3986 §3.2.2)."""
    text = format_address((str(address), port) if address.version == 4 else (str(address), port, 0, 0))
    assert text == (f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}")


@pytest.mark.skipif(not hasattr(socket, "if_nameindex"), reason="interfaces have no names here")
def test_a_scope_is_written_by_its_name_once() -> None:
    """fe80::1%lo, with the scope as a number or in the host."""
    index, name = socket.if_nameindex()[0]
    assert format_address(("fe80::1", 7, 0, index)) == f"[fe80::1%{name}]:7"
    assert format_address((f"fe80::1%{name}", 7, 0, index)) == f"[fe80::1%{name}]:7"
    assert format_address(("fe80::1", 7)) == "[fe80::1]:7"


def test_a_scope_without_an_interface_is_written_by_its_number() -> None:
    """An interface may have been removed."""
    assert format_address(("fe80::1", 7, 0, 2_000_000_000)) == "[fe80::1%2000000000]:7"


# ---------------------------------------------------------------- errors


def test_an_errno_has_one_meaning_only() -> None:
    """The sets for one peer, shortages and broken sockets are disjoint."""
    assert not ONE_PEER & BROKEN_SOCKET
    assert not ONE_PEER & OUT_OF_MEMORY
    assert not BROKEN_SOCKET & OUT_OF_MEMORY
    assert not (ONE_PEER | BROKEN_SOCKET) & {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EINTR}


def test_an_errno_without_a_name_is_written_as_a_number() -> None:
    """Counters use the name."""
    assert errno_name(os_error(errno.ECONNRESET)) == "ECONNRESET"
    assert errno_name(OSError(4321, "?")) == "4321"
    assert errno_name(OSError("no number at all")) == "0"


@pytest.mark.parametrize("binder", BINDERS)
@pytest.mark.parametrize("host", LOOPBACKS)
def test_a_port_in_use_is_refused_and_no_descriptor_is_left(binder: Callable[..., Socket], host: str) -> None:
    """The socket is closed. For UDP: never SO_REUSEADDR."""
    with binder(socket, (host, 0)) as first:
        if binder is bind_tcp:
            first.listen()
        before = open_descriptors()
        with pytest.raises(OSError, match="in use") as caught:
            binder(socket, first.getsockname())
        assert caught.value.errno == errno.EADDRINUSE
        assert open_descriptors() == before


@pytest.mark.parametrize("binder", BINDERS)
def test_a_bind_that_fails_closes_its_socket(binder: Callable[..., Socket]) -> None:
    """The same for any other errno of bind(2)."""
    sockets = FlakySockets()
    sockets.faults.add("bind", os_error(errno.EACCES))
    before = open_descriptors()
    with pytest.raises(PermissionError):
        binder(sockets, ("127.0.0.1", 0))
    assert open_descriptors() == before


@pytest.mark.parametrize("binder", BINDERS)
def test_a_port_that_is_no_port_leaves_no_descriptor(binder: Callable[..., Socket]) -> None:
    """Not every error is an OSError."""
    before = open_descriptors()
    with pytest.raises(OverflowError):
        binder(socket, ("127.0.0.1", 70_000))
    assert open_descriptors() == before


class Optionless(socket.socket):
    """A socket on a system without these options."""

    def setsockopt(self, *args: Any) -> None:
        raise os_error(errno.ENOPROTOOPT)


class OptionlessSockets:
    """A factory of such sockets."""

    def socket(self, family: int, type: int) -> Socket:
        return Optionless(family, type)

    def socketpair(self) -> tuple[Socket, Socket]:
        return socket.socketpair()


@pytest.mark.parametrize("maker", MAKERS)
def test_an_option_that_fails_closes_the_socket(maker: Callable[..., Socket]) -> None:
    """Even the first steps after socket(2) can fail."""
    before = open_descriptors()
    with pytest.raises(OSError, match="available"):
        maker(OptionlessSockets(), ("0.0.0.0", 0))
    assert open_descriptors() == before


# ---------------------------------------------------------------- options


def assert_stream_options(sock: Socket) -> None:
    """Urgent bytes stay in place, no Nagle delay, dead peers found in five minutes."""
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 180
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 30
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 4
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0  # promise 10: it isn't used


@linux_only
@pytest.mark.parametrize("host", LOOPBACKS)
def test_accepted_sockets_inherit_the_stream_options(host: str) -> None:
    """SO_OOBINLINE must be set on the *listener* (promises 3 and 10)."""
    with bind_tcp(socket, (host, 0)) as listener:
        listener.listen()
        assert_stream_options(listener)
        with socket.create_connection(listener.getsockname()[:2], PATIENCE_S):
            listener.settimeout(PATIENCE_S)
            accepted, _ = listener.accept()
            with accepted:
                assert_stream_options(accepted)


@linux_only
def test_client_socket_has_the_stream_options() -> None:
    """The same for outgoing connections."""
    with new_client(socket, ("127.0.0.1", 7)) as sock:
        assert_stream_options(sock)
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)


@linux_only
def test_missing_keepalive_option_leaves_the_others_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names differ by platform; a client can connect without them."""
    monkeypatch.delattr(socket, "TCP_KEEPINTVL")
    with new_client(socket, ("127.0.0.1", 7)) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 180
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 4


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("host", LOOPBACKS)
def test_every_socket_is_non_blocking_and_not_inherited_by_children(maker: Callable[..., Socket], host: str) -> None:
    """No call blocks the loop, and no child process keeps a port."""
    with maker(socket, (host, 0)) as sock:
        assert sock.gettimeout() == 0.0
        assert not sock.get_inheritable()


@needs_ipv6
@pytest.mark.parametrize("maker", MAKERS)
def test_an_ipv6_socket_is_v6only(maker: Callable[..., Socket]) -> None:
    """Promise 20: "IPv6 sockets are V6ONLY"."""
    with maker(socket, ("::", 0)) as sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


@needs_ipv6
@pytest.mark.parametrize("binder", BINDERS)
def test_both_wildcards_share_a_port(binder: Callable[..., Socket]) -> None:
    """V6ONLY allows it."""
    with binder(socket, ("0.0.0.0", 0)) as one, binder(socket, ("::", one.getsockname()[1])) as other:
        assert one.getsockname()[1] == other.getsockname()[1]


@pytest.mark.parametrize("address", [("127.0.0.1", 0), ("0.0.0.0", 0)])
def test_udp_port_is_never_shared(address: Address) -> None:
    """Promise 13: "never SO_REUSEADDR on UDP": a second process could take every datagram unnoticed."""
    with bind_udp(socket, address) as sock:
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert not sock.getsockopt(socket.SOL_SOCKET, getattr(socket, "SO_REUSEPORT", socket.SO_REUSEADDR))


@pytest.mark.skipif(sys.platform == "win32", reason="SO_EXCLUSIVEADDRUSE there")
def test_tcp_server_can_bind_again_at_once() -> None:
    """Old connections in TIME_WAIT don't keep the port (socket(7), SO_REUSEADDR)."""
    with bind_tcp(socket, ("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        listener.listen()
        client = socket.create_connection(address, PATIENCE_S)
        listener.settimeout(PATIENCE_S)
        accepted, _ = listener.accept()
        accepted.close()  # first, so that the TIME_WAIT is on our side
        assert client.recv(1) == b""
        client.close()
    bind_tcp(socket, address).close()


@linux_only
@pytest.mark.parametrize("binder", BINDERS)
def test_the_kernels_buffers_are_capped_when_asked_to(binder: Callable[..., Socket]) -> None:
    """`--socket-buffer` (promise 5). Linux doubles the number for its own bookkeeping (socket(7))."""
    with binder(socket, ("127.0.0.1", 0), buffer_bytes=16_384) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 32_768
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 32_768


@linux_only
def test_udp_gets_the_largest_receive_buffer_allowed() -> None:
    """A burst waits in the kernel: at most net.core.rmem_max, doubled (socket(7))."""
    most_bytes = int(pathlib.Path("/proc/sys/net/core/rmem_max").read_text())
    with bind_udp(socket, ("127.0.0.1", 0)) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * min(UDP_BUFFER_BYTES, most_bytes)


@linux_only
def test_accepted_sockets_inherit_the_cap() -> None:
    """Connections have the listener's buffer sizes."""
    with bind_tcp(socket, ("127.0.0.1", 0), buffer_bytes=16_384) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname(), PATIENCE_S):
            listener.settimeout(PATIENCE_S)
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 32_768


# ---------------------------------------------------------------- how a connect has ended


def test_self_connect_counts_as_refused() -> None:
    """RFC 9293 §3.5: a socket that is its own peer would echo everything."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(sock.getsockname())
        assert connect_result(sock) == errno.ECONNREFUSED


def test_a_socket_that_is_not_connected_has_not_succeeded() -> None:
    """Connected and reset since: SO_ERROR is 0, but there is no peer."""
    with socket.socket() as sock:
        assert connect_result(sock) == errno.ENOTCONN


def test_successful_connect_is_zero() -> None:
    """The usual case."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        assert connect_result(sock) == 0


def test_bound_socket_can_be_duplicated_and_accepts_like_any_other() -> None:
    with bind_tcp(socket, ("127.0.0.1", 0)) as listener, listener.dup() as twin:
        assert (twin.family, twin.type) == (listener.family, listener.type) == (socket.AF_INET, socket.SOCK_STREAM)
        listener.listen()
        with socket.create_connection(listener.getsockname()) as client:
            ours, peer = twin.accept()
            with ours:
                assert peer == client.getsockname()
                assert type(ours) is socket.socket
                assert ours.family is socket.AF_INET
