"""From hosts and a port to bound sockets: either all, or no socket and one clear line."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7.sockets import binding
from echo7.sockets.binding import PORT_TRIES, BindError, Bound, bind_all, find_targets
from reactor.sockets.addresses import format_address
from reactor.sockets.errors import os_error
from reactor.sockets.opening import Socket, bind_tcp, bind_udp
from tests.support.basics import has_ipv6, open_descriptors, quiet_port
from tests.support.faults import FlakySockets

IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
HERE_V4 = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
HERE_V6 = ["::1", "[::1]", "0:0:0:0:0:0:0:1"] if has_ipv6() else []
WILD = ["0.0.0.0", *(["::", "[::]", "*"] if has_ipv6() else [])]
NOT_OURS_V4, NOT_OURS_V6 = "192.0.2.1", "2001:db8::1"  # for documentation only (RFC 5737, RFC 3849)

Names = Callable[[dict[str, list[str]]], None]


class Remembering(FlakySockets):
    """Remembers every socket that it has made, so that a test can ask which are still open."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Socket] = []

    def socket(self, family: int, type: int) -> socket.socket:
        sock = super().socket(family, type)
        self.made.append(sock)
        return sock

    @property
    def still_open(self) -> list[Socket]:
        return [sock for sock in self.made if sock.fileno() != -1]


@pytest.fixture
def sockets() -> Iterator[Remembering]:
    factory = Remembering()
    yield factory
    for sock in factory.made:
        sock.close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Make names resolve to given addresses, without asking any network."""
    real = socket.getaddrinfo

    def setup(book: dict[str, list[str]]) -> None:
        def look_up(host: str, *args: Any, **options: Any) -> list[Any]:
            if host not in book:
                return real(host, *args, **options)
            return [answer for address in book[host] for answer in real(address, *args, **options)]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)

    return setup


def hosts_of(bound: list[Socket]) -> list[str]:
    return [sock.getsockname()[0] for sock in bound]


def ports_of(bound: Bound) -> set[int]:
    return {sock.getsockname()[1] for sock in bound.tcp + bound.udp}


def targets_of(*hosts: str, port: int = 7) -> list[str]:
    return [format_address(target.address) for target in find_targets(hosts, port)]


def one_line(error: pytest.ExceptionInfo[BindError]) -> str:
    """The message, which is one line of printable text."""
    message = str(error.value)
    assert message.isprintable()
    return message


# ---------------------------------------------------------------- which addresses


def test_default_is_loopback_on_both_families() -> None:
    """Issue: "The default is loopback on both families"."""
    assert targets_of() == ["127.0.0.1:7", "[::1]:7"]


def test_star_means_every_address_on_both_families() -> None:
    """Issue: "`*` for every address on both families"."""
    assert targets_of("*") == ["0.0.0.0:7", "[::]:7"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.5", "127.0.0.5:7"),
        ("::1", "[::1]:7"),
        ("[::1]", "[::1]:7"),
        ("0:0:0:0:0:0:0:1", "[::1]:7"),
        ("0.0.0.0", "0.0.0.0:7"),
        ("::", "[::]:7"),
        ("fe80::1%lo", "[fe80::1%lo]:7"),
        ("[fe80::1%lo]", "[fe80::1%lo]:7"),
    ],
)
def test_numeric_host_is_accepted_in_every_notation(host: str, expected: str) -> None:
    """Issue: "`--host` … takes names, IPv4, IPv6 (with scope)"; brackets are how people write IPv6 beside a port."""
    if "%lo" in host and "lo" not in (name for _, name in socket.if_nameindex()):
        pytest.skip("no interface called lo")
    assert targets_of(host) == [expected]


def test_name_gives_all_its_addresses(names: Names) -> None:
    """Issue: "`--host` may repeat and takes names"."""
    names({"both.test": ["127.0.0.1", "::1"]})
    assert targets_of("both.test") == ["127.0.0.1:7", "[::1]:7"]


def test_repeated_address_is_served_once(names: Names) -> None:
    """Otherwise the second bind would fail because of the first (EADDRINUSE)."""
    names({"both.test": ["127.0.0.1", "::1"], "again.test": ["::1"]})
    hosts = ["::1", "both.test", "127.0.0.1", "[::1]", "again.test", "127.0.0.1"]
    assert sorted(targets_of(*hosts)) == ["127.0.0.1:7", "[::1]:7"]


def test_wildcard_covers_the_addresses_of_its_family() -> None:
    """127.0.0.1 beside 0.0.0.0 can't be bound (EADDRINUSE), and the wildcard includes it."""
    assert targets_of("127.0.0.1", "::1", "0.0.0.0") == ["[::1]:7", "0.0.0.0:7"]
    assert targets_of("*", "127.0.0.1", "::1", "0.0.0.0", "::") == ["0.0.0.0:7", "[::]:7"]


@pytest.mark.parametrize("hosts", [["both.test", "::1"], ["::1", "both.test"], ["*", "::"], ["::", "*"]])
def test_address_given_by_itself_is_not_optional(names: Names, hosts: list[str]) -> None:
    """IPv6 may be left out only when it "comes along with an IPv4 one": `--host ::1` comes alone."""
    names({"both.test": ["127.0.0.1", "::1"]})
    assert [target.optional for target in find_targets(hosts, 7) if ":" in target.address[0]] == [False]


# ---------------------------------------------------------------- names that can't be looked up


@pytest.mark.parametrize(
    "host",
    [
        "name.test",
        "fe80::1%no-such-interface",
        "two..dots",
        "a" * 64 + ".test",
        "nul\0in-it",
        "lone-surrogate-\udcff",
        "line\nbreak",
        "",
        "[]",
    ],
)
def test_host_that_does_not_resolve_gives_one_line(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """Issue: "one clear line that names the address, the reason and the remedy"."""
    real = socket.getaddrinfo

    def no_network(name: str, *args: Any, **options: Any) -> Any:
        if ".test" in name.partition("a" * 64)[0] or "\n" in name:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(name, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(BindError) as error:
        find_targets([host], 7)
    message = one_line(error)
    assert message.startswith(f"cannot serve on {host!r}: ")
    assert "give a name that resolves, an address of this machine, or '*'" in message


def test_one_bad_host_among_good_ones_binds_nothing(sockets: Remembering) -> None:
    """All or nothing: names are looked up before anything is bound."""
    with pytest.raises(BindError):
        bind_all(sockets, ["127.0.0.1", "two..dots"], 0)
    assert not sockets.made


# ---------------------------------------------------------------- binding


@given(st.lists(st.sampled_from(HERE_V4 + HERE_V6 + WILD), max_size=6), st.sampled_from([(1, 1), (1, 0), (0, 1)]))
def test_any_mixture_of_hosts_is_bound_once_each_on_one_port_number(
    hosts: list[str], transports: tuple[bool, bool]
) -> None:
    """Issue: "`--port 0` takes one free port number, the same for TCP and UDP and every address"."""
    tcp, udp = map(bool, transports)
    bound = bind_all(socket, hosts, 0, tcp=tcp, udp=udp)
    try:
        expected = [target.address[0] for target in find_targets(hosts, 0) if target.address[0] not in bound.left_out]
        assert hosts_of(bound.tcp) == (expected if tcp else [])
        assert hosts_of(bound.udp) == (expected if udp else [])
        assert len(ports_of(bound)) == 1
        assert 0 not in ports_of(bound)
    finally:
        bound.close()


def test_bound_sockets_are_ready_to_serve() -> None:
    """TCP sockets listen, none of them blocks, and all IPv6 ones carry IPv6 only (promise 20)."""
    bound = bind_all(socket, [], 0)
    try:
        for sock in bound.tcp + bound.udp:
            assert not sock.getblocking()
            if sock.family == socket.AF_INET6:
                assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        for sock in bound.tcp:
            socket.create_connection(sock.getsockname()[:2], 5).close()
    finally:
        bound.close()


@IPV6
@pytest.mark.parametrize("taken_at", [2, 3, 4])
def test_port_zero_tries_another_number_when_the_first_is_taken_elsewhere(sockets: Remembering, taken_at: int) -> None:
    """A number that is free for TCP on 127.0.0.1 may be in use for UDP, or on ::1: then all move to another."""
    sockets.faults.add("bind", *[None] * (taken_at - 1), os_error(errno.EADDRINUSE))
    bound = bind_all(sockets, [], 0)
    assert hosts_of(bound.tcp) == hosts_of(bound.udp) == ["127.0.0.1", "::1"]
    assert len(ports_of(bound)) == 1
    assert sockets.faults.calls["bind"] == taken_at + 4
    assert set(sockets.still_open) == {*bound.tcp, *bound.udp}, "the sockets of the first try are closed"


def test_port_zero_moves_on_when_listen_finds_the_port_taken(sockets: Remembering) -> None:
    """With SO_REUSEADDR two TCP sockets may bind the same port; only listen(2) tells the second one."""
    sockets.faults.add("listen", os_error(errno.EADDRINUSE))
    bound = bind_all(sockets, ["127.0.0.1"], 0)
    assert len(bound.tcp) == len(bound.udp) == len(ports_of(bound)) == 1
    assert len(sockets.still_open) == 2


def test_port_zero_finds_a_kernel_port_that_is_free_for_both() -> None:
    """The same with the kernel itself: UDP has taken the number that TCP is given first."""
    holders: list[socket.socket] = []

    class Meddling(Remembering):
        def socket(self, family: int, type: int) -> socket.socket:
            if type == socket.SOCK_DGRAM and not holders:  # between the TCP bind and the UDP bind
                holders.append(socket.socket(family, type))
                holders[0].bind(self.made[0].getsockname())
            return super().socket(family, type)

    sockets = Meddling()
    bound = bind_all(sockets, ["127.0.0.1"], 0)
    assert holders[0].getsockname()[1] not in ports_of(bound)
    assert sockets.still_open == bound.tcp + bound.udp
    assert len(ports_of(bound)) == 1
    bound.close()
    holders[0].close()


def test_port_zero_gives_up_after_a_bounded_number_of_tries(sockets: Remembering) -> None:
    """Law: "Every step is bounded": a machine without a free port gets a line, not an endless loop."""
    sockets.faults.always["bind"] = os_error(errno.EADDRINUSE)
    with pytest.raises(BindError) as error:
        bind_all(sockets, ["127.0.0.1"], 0)
    assert "Address already in use" in one_line(error)
    assert sockets.faults.calls["bind"] == PORT_TRIES
    assert not sockets.still_open


def test_port_given_by_number_is_tried_once(sockets: Remembering) -> None:
    """No client would find another port."""
    sockets.faults.add("bind", os_error(errno.EADDRINUSE))
    with pytest.raises(BindError):
        bind_all(sockets, ["127.0.0.1"], 7007)
    assert sockets.faults.calls["bind"] == 1


# ---------------------------------------------------------------- all or nothing


@IPV6
@pytest.mark.parametrize("call", ["socket", "bind"])
@pytest.mark.parametrize("failing", [1, 2, 3, 4])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EMFILE, errno.EINVAL], ids=errno.errorcode.get)
def test_after_a_failure_nothing_is_left_bound(sockets: Remembering, call: str, failing: int, code: int) -> None:
    """Law: "Either every socket is bound … or no socket is left", for any failing step."""
    sockets.faults.add(call, *[None] * (failing - 1), os_error(code))
    with pytest.raises(BindError) as error:
        bind_all(sockets, ["127.0.0.1", "::1"], 0)
    transport, host = [("tcp", "127.0.0.1"), ("udp", "127.0.0.1"), ("tcp", "[::1]"), ("udp", "[::1]")][failing - 1]
    assert one_line(error).startswith(f"cannot bind {transport} {host}:")
    assert os.strerror(code) in one_line(error)
    assert not sockets.still_open


@IPV6
@pytest.mark.parametrize("failing", [1, 2])
def test_after_a_failing_listen_nothing_is_left_bound(sockets: Remembering, failing: int) -> None:
    """Law: "(and every TCP socket listens)": listen(2) is the last step that can fail."""
    sockets.faults.add("listen", *[None] * (failing - 1), os_error(errno.EINVAL))
    with pytest.raises(BindError) as error:
        bind_all(sockets, ["127.0.0.1", "::1"], 0)
    assert one_line(error).startswith("cannot bind tcp " + ["127.0.0.1:", "[::1]:"][failing - 1])
    assert not sockets.still_open


def test_listen_comes_after_every_bind(sockets: Remembering) -> None:
    """Law, all or nothing: a later failure would reset connections that clients have got."""
    sockets.faults.add("bind", None, None, None, os_error(errno.EACCES))
    with pytest.raises(BindError):
        bind_all(sockets, ["127.0.0.1", "127.0.0.2"], 0)
    assert "listen" not in sockets.faults.calls


def test_interruption_leaves_nothing_bound(sockets: Remembering) -> None:
    """^C at start-up is not an OSError, and must not leave a socket behind either."""

    def interrupted(family: int, type: int) -> socket.socket:
        if sockets.made:
            raise KeyboardInterrupt
        return Remembering.socket(sockets, family, type)

    sockets.socket = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        bind_all(sockets, ["127.0.0.1"], 0)
    assert len(sockets.made) == 1
    assert not sockets.still_open


def test_after_an_error_no_descriptor_is_open_and_the_port_is_free() -> None:
    """The same with the kernel: the first address is given back when the second can't be had."""
    port = quiet_port()
    before = open_descriptors()
    with pytest.raises(BindError):
        bind_all(socket, ["127.0.0.1", NOT_OURS_V4], port)
    assert open_descriptors() == before
    bind_all(socket, ["127.0.0.1"], port).close()


# ---------------------------------------------------------------- error lines


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=IPV6)])
def test_port_in_use_is_named_with_its_reason_and_remedy(transport: str, host: str) -> None:
    """Promise 13: "Binding a second daemon to a UDP port in use is refused"; and TCP likewise."""
    first = bind_all(socket, [host], 0)
    (port,) = ports_of(first)
    try:
        with pytest.raises(BindError) as error:
            bind_all(socket, [host], port, tcp=transport == "tcp", udp=transport == "udp")
    finally:
        first.close()
    address = format_address((host, port))
    assert one_line(error) == (
        f"cannot bind {transport} {address}: Address already in use; "
        "find its owner with 'ss -lntup', or choose another --port"
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_second_server_on_a_udp_port_is_refused_by_wildcard_too(host: str) -> None:
    """Promise 13: "never SO_REUSEADDR on UDP": it would let a second daemon steal every datagram in silence."""
    first = bind_all(socket, [host], 0, tcp=False)
    (port,) = ports_of(first)
    try:
        for again in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(BindError):
                bind_all(socket, [again], port, tcp=False)
    finally:
        first.close()


def test_privileged_port_is_named_with_the_four_remedies(sockets: Remembering) -> None:
    """Issue: "port 7 without privilege: sudo, an ambient capability, a systemd socket, or `--port`"."""
    sockets.faults.add("bind", os_error(errno.EACCES))
    with pytest.raises(BindError) as error:
        bind_all(sockets, ["127.0.0.1"], 7)
    message = one_line(error)
    assert message.startswith("cannot bind tcp 127.0.0.1:7: Permission denied; port 7 needs privilege: ")
    for remedy in ("sudo", "ambient capability CAP_NET_BIND_SERVICE", "systemd socket", "--port"):
        assert remedy in message


@pytest.mark.parametrize("host", [NOT_OURS_V4, NOT_OURS_V6])
def test_address_of_another_machine_is_named_with_its_remedy(host: str) -> None:
    """Issue: "one clear line that names the address, the reason and the remedy"."""
    with pytest.raises(BindError) as error:
        bind_all(socket, [host], 0)
    message = one_line(error)
    assert message.startswith(f"cannot bind tcp {format_address((host, 0))}: ")
    assert "--host" in message


@pytest.mark.parametrize("tcp", [True, False])
@pytest.mark.parametrize("host", ["224.0.0.1", "255.255.255.255", "127.255.255.255", "ff02::1"])
def test_multicast_or_broadcast_address_is_refused(host: str, tcp: bool) -> None:
    """Promise 13: "No answer to: … broadcast or multicast … destinations": UDP could be bound to one."""
    with pytest.raises(BindError) as error:
        bind_all(socket, [host], 0, tcp=tcp).close()
    assert host in one_line(error)


def test_missing_address_family_is_named_with_its_remedy(sockets: Remembering) -> None:
    """`--host ::1` alone asks for IPv6, so its absence is an error."""
    sockets.refused_families[socket.AF_INET6] = os_error(errno.EAFNOSUPPORT)
    with pytest.raises(BindError) as error:
        bind_all(sockets, ["::1"], 7007)
    assert one_line(error).startswith("cannot bind tcp [::1]:7007: Address family not supported by protocol; ")
    assert "choose another --host" in one_line(error)


def test_any_other_error_is_one_line_too(sockets: Remembering) -> None:
    """For any error of bind(2), the line has an address, a reason and a remedy."""
    for code in errno.errorcode:
        sockets.faults.add("bind", os_error(code))
        with pytest.raises(BindError) as error:
            bind_all(sockets, ["127.0.0.1"], 7007)
        assert one_line(error).startswith(f"cannot bind tcp 127.0.0.1:7007: {os.strerror(code)}; ")
        assert not one_line(error).endswith("; ")


# ---------------------------------------------------------------- a machine without IPv6


@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT])
@pytest.mark.parametrize(("hosts", "left_out"), [([], "::1"), (["*"], "::"), (["both.test"], "::1")])
def test_without_ipv6_ipv4_is_served_and_the_rest_is_named(
    sockets: Remembering, names: Names, hosts: list[str], left_out: str, code: int
) -> None:
    """Promise 20: "a machine without IPv6 still serves IPv4"."""
    names({"both.test": ["::1", "127.0.0.1"]})
    sockets.refused_families[socket.AF_INET6] = os_error(code)
    bound = bind_all(sockets, hosts, 0)
    assert bound.left_out == [left_out]
    assert hosts_of(bound.tcp) == hosts_of(bound.udp) == ["0.0.0.0" if hosts == ["*"] else "127.0.0.1"]
    assert len(sockets.still_open) == 2


@IPV6
def test_foreign_ipv6_address_is_an_error_when_ipv6_works(names: Names) -> None:
    """Law: "The exception is a machine without IPv6": a stale AAAA record isn't that."""
    names({"stale.test": ["127.0.0.1", NOT_OURS_V6]})
    with pytest.raises(BindError) as error:
        bind_all(socket, ["stale.test"], 0).close()
    assert NOT_OURS_V6 in one_line(error)


def test_bindable_ipv6_loopback_means_that_the_machine_has_ipv6(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on any machine: `::1` can be bound, so the other address belongs to another machine."""

    def bind_tcp_here(sockets: Any, address: Any, **options: Any) -> Socket:
        if address[0] == NOT_OURS_V6:
            raise os_error(errno.EADDRNOTAVAIL)
        return bind_tcp(sockets, address, **options)

    def bind_udp_here(sockets: Any, address: Any, **options: Any) -> Socket:
        asked.append(address[0])
        return bind_udp(sockets, ("127.0.0.1", 0), **options)

    asked: list[str] = []
    names({"stale.test": ["127.0.0.1", NOT_OURS_V6]})
    monkeypatch.setattr(binding, "bind_tcp", bind_tcp_here)
    monkeypatch.setattr(binding, "bind_udp", bind_udp_here)
    with pytest.raises(BindError) as error:
        bind_all(socket, ["stale.test"], 0)
    assert NOT_OURS_V6 in one_line(error)
    assert asked == ["127.0.0.1", "::1"]


def test_without_ipv6_any_address_of_a_name_with_both_is_left_out(sockets: Remembering, names: Names) -> None:
    """Law: "an IPv6 address that comes along with an IPv4 one (`*`, the default, a name with both) is left out"."""
    names({"both.test": ["127.0.0.1", NOT_OURS_V6]})
    sockets.refused_families[socket.AF_INET6] = os_error(errno.EAFNOSUPPORT)
    bound = bind_all(sockets, ["both.test"], 0)
    assert bound.left_out == [NOT_OURS_V6]
    assert hosts_of(bound.tcp) == hosts_of(bound.udp) == ["127.0.0.1"]
    assert sockets.still_open == bound.tcp + bound.udp


def test_shortage_of_descriptors_does_not_mean_that_ipv6_is_missing(sockets: Remembering, names: Names) -> None:
    """EADDRNOTAVAIL for an address, then no descriptor left to find out why: IPv6 may well be there."""
    names({"both.test": ["127.0.0.1", NOT_OURS_V6]})
    sockets.faults.add("socket", None, None, os_error(errno.EADDRNOTAVAIL), os_error(errno.EMFILE))
    with pytest.raises(BindError) as error:
        bind_all(sockets, ["both.test"], 0)
    assert NOT_OURS_V6 in one_line(error)
    assert sockets.faults.calls["socket"] == 4
    assert not sockets.still_open


def test_other_ipv6_error_does_not_mean_that_ipv6_is_missing(sockets: Remembering) -> None:
    """A port in use on ::1 alone is an error, also where ::1 may be left out."""
    sockets.faults.add("bind", None, None, os_error(errno.EADDRINUSE))
    with pytest.raises(BindError) as error:
        bind_all(sockets, [], quiet_port(()))
    assert "cannot bind tcp [::1]:" in one_line(error)
    assert not sockets.still_open


def test_ipv4_mapped_address_is_served_as_ipv4() -> None:
    bound = bind_all(socket, ["::ffff:127.0.0.1", "127.0.0.1"], 0)
    assert [(sock.family, sock.getsockname()[0]) for sock in bound.sockets] == [(socket.AF_INET, "127.0.0.1")] * 2
    bound.close()
