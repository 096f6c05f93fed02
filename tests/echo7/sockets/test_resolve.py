"""From a host to numeric addresses, or one line: for any text, and any answer of the system."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from echo7.sockets.resolve import UnresolvedName, resolve
from reactor.sockets.addresses import family_of
from tests.support.basics import has_ipv6

IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
LOOK_UP = socket.getaddrinfo


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every name unknown: no test asks a name server."""

    def look_up(host: str, port: int, family: int, kind: int) -> list[Any]:
        return list(LOOK_UP(host, port, family, kind, flags=socket.AI_NUMERICHOST))

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def answering(monkeypatch: pytest.MonkeyPatch, answer: list[Any] | Exception) -> None:
    """Make the system's resolver answer this to every question."""

    def look_up(*_: Any) -> list[Any]:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def entry(address: tuple[Any, ...], family: int = socket.AF_INET) -> tuple[Any, ...]:
    return family, socket.SOCK_STREAM, 6, "", address


def refusal(host: str, family: int = socket.AF_UNSPEC) -> str:
    with pytest.raises(UnresolvedName) as refused:
        resolve(host, 7, family)
    text = str(refused.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("host", ["127.0.0.1", "[127.0.0.1]"])
def test_numeric_address_is_itself(host: str) -> None:
    assert resolve(host, 7) == [("127.0.0.1", 7)]
    assert resolve(host, 7, socket.AF_INET) == [("127.0.0.1", 7)]


@IPV6
@pytest.mark.parametrize("host", ["::1", "[::1]", "0:0:0:0:0:0:0:1"])
def test_numeric_ipv6_address_is_itself_with_or_without_brackets(host: str) -> None:
    assert resolve(host, 7) == [("::1", 7, 0, 0)]


def test_every_address_is_given_once_in_the_order_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: "The order is that of the system"; other families than IPv4 and IPv6 are ignored."""
    one, other = entry(("192.0.2.2", 7)), entry(("2001:db8::1", 7, 0, 0), socket.AF_INET6)
    answering(monkeypatch, [other, one, entry(("odd",), 99), one, other])
    assert resolve("example", 7) == [("2001:db8::1", 7, 0, 0), ("192.0.2.2", 7)]


@pytest.mark.parametrize("answer", [[], [entry(("odd",), 99)]])
def test_name_without_any_address_is_refused(monkeypatch: pytest.MonkeyPatch, answer: list[Any]) -> None:
    answering(monkeypatch, answer)
    assert "'example' has no address of IPv4 or IPv6" in refusal("example")


@pytest.mark.parametrize("host", ["", " ", "[]", "\t"])
def test_empty_host_is_refused(host: str) -> None:
    """Otherwise the system would take it for this machine."""
    assert refusal(host) == "an empty host names nothing; give a name or an address"


@pytest.mark.parametrize("host", ["a" * 64, "a..b", ".", "\udcff", "nul\0", "ä" * 70, "x" * 100_000])
def test_impossible_host_name_is_refused_in_one_short_line(host: str) -> None:
    text = refusal(host)
    assert "cannot resolve" in text
    assert len(text) < 600


@pytest.mark.parametrize("error", [UnicodeError("label too long"), ValueError("embedded null"), OverflowError("port")])
def test_any_error_of_python_means_not_a_host_name(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    answering(monkeypatch, error)
    assert "not a host name" in refusal("example")


@pytest.mark.parametrize(
    ("error", "family", "words"),
    [
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), socket.AF_UNSPEC, "Temporary failure; try again"),
        (socket.gaierror(socket.EAI_NONAME, "Not known"), socket.AF_UNSPEC, "Not known; check the spelling, or"),
        (socket.gaierror(socket.EAI_NONAME, "Not known"), socket.AF_INET6, "and that it has an IPv6 address"),
        (socket.gaierror("host not found"), socket.AF_UNSPEC, "the system doesn't say why"),
        (OSError(errno.EMFILE, "Too many open files"), socket.AF_UNSPEC, "Too many open files"),
    ],
)
def test_error_of_the_resolver_is_shown_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, error: Exception, family: int, words: str
) -> None:
    answering(monkeypatch, error)
    text = refusal("example", family)
    assert text.startswith("cannot resolve 'example': ")
    assert words in text


def test_address_of_the_other_family_is_named_as_such() -> None:
    assert "it is not an IPv6 address; leave out the -4 or -6" in refusal("127.0.0.1", socket.AF_INET6)
    assert "it is not an IPv4 address" in refusal("::1", socket.AF_INET)


def test_link_local_address_needs_an_existing_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 4007 §11: without its zone such an address could be on any link."""
    assert "must be an interface of this machine" in refusal("fe80::1%nowhere")
    assert "must be an interface" not in refusal("no such name%lo")
    answering(monkeypatch, [entry(("fe80::1", 7, 0, 0), socket.AF_INET6)])
    assert refusal("fe80::1") == "the link-local address fe80::1 needs its interface, as in fe80::1%eth0"
    answering(monkeypatch, [entry(("fe80::1%eth0", 7, 0, 2), socket.AF_INET6)])
    assert resolve("fe80::1%eth0", 7) == [("fe80::1%eth0", 7, 0, 2)]


@given(st.ip_addresses().map(str) | st.text("0123456789abcdef.:%[]", max_size=20).filter(lambda text: "%" in text))
@example("1:%")
@example("%lo")
def test_any_text_gives_numeric_addresses_or_one_line(host: str) -> None:
    """Law: "a list with at least one address, or an UnresolvedName". No text here is a name to look up."""
    try:
        found = resolve(host, 7)
    except UnresolvedName as refused:
        lines, found = str(refused).splitlines(), [("::1",)]
    else:
        lines = ["none"]
    assert len(lines) == len(found[:1]) == 1
    for address in found:
        family_of(address)


@pytest.mark.parametrize("host", ["::ffff:127.0.0.1", "[::ffff:7f00:1]", "::FFFF:127.0.0.1"])
def test_ipv4_mapped_address_is_the_ipv4_address(host: str) -> None:
    """Story: our IPv6 sockets carry IPv6 only, so the kernel refused to connect."""
    assert resolve(host, 7) == [("127.0.0.1", 7)]
    with pytest.raises(UnresolvedName, match="leave out the -6"):
        resolve(host, 7, socket.AF_INET6)
