"""From hosts and a port to bound sockets, or one line that says what is wrong and what to do.

Law: all or nothing. Either every socket is bound (and every TCP socket listens), or no socket is left. The exception is
a machine without IPv6: an IPv6 address that comes along with an IPv4 one (`*`, the default, a name with both) is left
out, and the log says so.

Names are looked up here, before any loop runs, because a look-up blocks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from echo7.policy.guard import refused_source
from echo7.policy.rate import is_loopback, plain_host
from reactor.limits import BACKLOG
from reactor.sockets.addresses import WILDCARDS, Address, family_of, format_address, pack_host, unmapped
from reactor.sockets.factory import SocketFactory
from reactor.sockets.opening import Socket, bind_tcp, bind_udp, set_buffers

# RFC 862
ECHO_PORT = 7
EVERY_ADDRESS = "*"
NUMERIC = frozenset("0123456789abcdefABCDEF.:")
# to find one port number that is free for TCP and UDP on every address
PORT_TRIES = 64
NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})


class BindError(Exception):
    """One line: which address, why not, and what to do."""


class Bound:
    """Sockets that are ready to be served."""

    def __init__(self, *, tcp: Iterable[Socket] = (), udp: Iterable[Socket] = (), is_prepared: bool = False) -> None:
        self.tcp, self.udp = list(tcp), list(udp)
        # made or checked here, so that EchoServer needn't look at them
        self.is_prepared = is_prepared
        # addresses that this machine has no IPv6 for
        self.left_out: list[str] = []

    @property
    def sockets(self) -> list[Socket]:
        """All of them, TCP first."""
        return self.tcp + self.udp

    def configure(self, backlog: int, buffer_bytes: int | None) -> None:
        """Apply options to sockets that another process has bound."""
        for sock in self.tcp:
            if buffer_bytes is not None:
                set_buffers(sock, buffer_bytes)
            sock.listen(backlog)

    def close(self) -> None:
        """Unbind everything."""
        for sock in self.sockets:
            sock.close()


class Target(NamedTuple):
    """An address to bind to. An optional one is left out when the machine has no IPv6."""

    address: Address
    optional: bool


def bind_all(
    sockets: SocketFactory,
    hosts: Sequence[str],
    port: int,
    *,
    tcp: bool = True,
    udp: bool = True,
    backlog: int = BACKLOG,
    buffer_bytes: int | None = None,
) -> Bound:
    """Bind every host for the wanted transports; no host means loopback on both families.

    Port 0 means one free port, the same for all. Raise BindError; then nothing is left bound.
    """
    targets = find_targets(hosts, port)
    for tries_left in reversed(range(PORT_TRIES if port == 0 else 1)):
        bound = Bound(is_prepared=True)
        with contextlib.ExitStack() as failed:
            failed.callback(bound.close)
            try:
                _bind_targets(bound, sockets, targets, tcp, udp, buffer_bytes)
                for sock in bound.udp:
                    _refuse_what_reaches_many(sockets, sock.getsockname())
                _listen(bound.tcp, backlog)
            except _Taken as taken:
                if tries_left:
                    continue
                raise BindError(str(taken)) from None
            failed.pop_all()
            return bound
    raise AssertionError("unreachable: the last try returns or raises")


def on_loopback(sock: Socket) -> bool:
    """Tell whether only this machine can reach a socket."""
    return is_loopback(plain_host(pack_host(sock.getsockname()[0])))


def reaches_many(sockets: SocketFactory, address: Address) -> bool:
    """Tell whether an address is multicast or broadcast."""
    if refused_source(address[0]) in ("source_multicast", "source_broadcast"):
        return True
    # only the kernel knows the broadcast address of a subnet
    if family_of(address) == socket.AF_INET:
        try:
            with sockets.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                # sends nothing; without SO_BROADCAST, the error is EACCES (connect(2))
                probe.connect((address[0], ECHO_PORT))
        except OSError as error:
            return error.errno == errno.EACCES
    return False


def find_targets(hosts: Sequence[str], port: int) -> list[Target]:
    """Expand hosts to numeric addresses, each once; no host means loopback. Raise BindError for an unknown name."""
    if not hosts:
        return [Target(("127.0.0.1", port), False), Target(("::1", port, 0, 0), True)]
    found: dict[Address, Target] = {}
    for host in hosts:
        for target in _expand(host, port):
            before = found.get(target.address, target)
            found[target.address] = Target(target.address, before.optional and target.optional)
    # beside a wildcard address, any other of its family would be EADDRINUSE
    covered = {family_of(address) for address in found if address[0] in WILDCARDS}
    return [t for t in found.values() if t.address[0] in WILDCARDS or family_of(t.address) not in covered]


class _Taken(Exception):
    """EADDRINUSE: with port 0, worth another try."""


def _expand(host: str, port: int) -> Iterable[Target]:
    if host == EVERY_ADDRESS:
        return [Target(("0.0.0.0", port), False), Target(("::", port, 0, 0), True)]  # noqa: S104 - what * means
    literal = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        # bytes, because for text a codec would be imported
        name = literal.encode() if literal and NUMERIC.issuperset(literal) else literal
        answers = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise BindError(
            f"cannot serve on {host!r}: {reason}; give a name that resolves, an address of this machine, or '*'"
        ) from None
    internet = (socket.AF_INET, socket.AF_INET6)
    addresses = [unmapped(address) for family, _, _, _, address in answers if family in internet]
    both = len({family_of(address) for address in addresses}) == 2
    return [Target(address, both and family_of(address) == socket.AF_INET6) for address in addresses]


def _refuse_what_reaches_many(sockets: SocketFactory, address: Address) -> None:
    """Raise BindError for a multicast or broadcast address: UDP can be bound to it."""
    if reaches_many(sockets, address):
        raise BindError(
            f"cannot serve on {address[0]}: it is a multicast or broadcast address, and a request to many hosts gets "
            "no answer; give an address of this machine, or '*'"
        )


def _bind_targets(
    bound: Bound, sockets: SocketFactory, targets: Sequence[Target], tcp: bool, udp: bool, buffer_bytes: int | None
) -> None:
    chosen_port = 0
    for target in targets:
        address = target.address
        # All clients share the buffer of a UDP socket, so it isn't capped: a burst would be lost.
        capped = partial(bind_tcp, buffer_bytes=buffer_bytes)
        for wanted, transport, bind, bucket in ((tcp, "tcp", capped, bound.tcp), (udp, "udp", bind_udp, bound.udp)):
            if not wanted:
                continue
            if chosen_port:
                address = (address[0], chosen_port, *address[2:])
            try:
                sock = bind(sockets, address)
            except OSError as error:
                if not (target.optional and error.errno in NO_IPV6 and _lacks_ipv6(sockets, address[0])):
                    raise _explained(error, transport, address) from None
                bound.left_out.append(address[0])
                break
            bucket.append(sock)
            chosen_port = sock.getsockname()[1]


def _lacks_ipv6(sockets: SocketFactory, host: str) -> bool:
    """Tell whether `host` can't be bound because the machine has no IPv6 at all, not just not this address."""
    if host in (*WILDCARDS, "::1"):
        return True
    try:
        bind_udp(sockets, ("::1", 0, 0, 0)).close()
    except OSError as error:
        return error.errno in NO_IPV6
    return False


def _listen(listening: Sequence[Socket], backlog: int) -> None:
    # only now, when all are bound: a later failure would reset connections that clients have got
    for sock in listening:
        try:
            sock.listen(backlog)
        except OSError as error:
            raise _explained(error, "tcp", sock.getsockname()) from None


def _explained(error: OSError, transport: str, address: Address) -> Exception:
    remedy = {
        errno.EADDRINUSE: "find its owner with 'ss -lntup', or choose another --port",
        errno.EACCES: (
            f"port {address[1]} needs privilege: use sudo, the ambient capability CAP_NET_BIND_SERVICE, "
            "a systemd socket, or an unprivileged port such as --port 7007"
        ),
        errno.EADDRNOTAVAIL: "no interface of this machine has it ('ip address' lists them); choose another --host",
        errno.EAFNOSUPPORT: "this machine has no such address family; choose another --host",
        errno.EINVAL: ("a link-local address needs its interface, as in fe80::1%eth0; else choose another --host"),
        errno.EMFILE: "the limit of open descriptors is too low; raise it ('ulimit -n')",
    }.get(error.errno or 0, "choose another --host or --port")
    reason = os.strerror(error.errno) if error.errno else str(error)
    message = f"cannot bind {transport} {format_address(address)}: {reason}; {remedy}"
    return _Taken(message) if error.errno == errno.EADDRINUSE else BindError(message)
