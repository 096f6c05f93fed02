"""Between hosts: a router, a link with a smaller MTU, and missing neighbours.

Three network namespaces: ours, a router's, and the server's, with a link of 1,500 bytes to the router and one of 1,400
behind it. Nothing leaves them.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.rfc862.test_namespaces import Namespace
from tests.support.commands import run_echo7
from tests.support.echo import EchoThread
from tests.support.root import in_network_namespace, new_network_namespace, run_ip, wait_for_network

NEAR_MTU, FAR_MTU = 1500, 1400
OURS = [
    "addr add 10.7.1.2/24 dev near", "-6 addr add fd07:1::2/64 dev near nodad", "-6 addr add fe80::2/64 dev near nodad"
]  # fmt: skip
ROUTERS = [
    "addr add 10.7.1.1/24 dev near", "-6 addr add fd07:1::1/64 dev near nodad", "-6 addr add fe80::1/64 dev near nodad",
    "addr add 10.7.2.1/24 dev far", "-6 addr add fd07:2::1/64 dev far nodad", "-6 addr add fe80::1/64 dev far nodad",
]  # fmt: skip
SERVERS = [
    "addr add 10.7.2.2/24 dev far", "-6 addr add fd07:2::2/64 dev far nodad", "-6 addr add fe80::3/64 dev far nodad"
]  # fmt: skip
WAY_OUT = ["route add default via {}", "-6 route add default via {}"]


class ThreeHosts:
    """This process is in the first one; `at` enters another for a while."""

    def __init__(self) -> None:
        self.ours = Namespace()
        new_network_namespace()
        self.router = Namespace()
        new_network_namespace()
        self.server = Namespace()
        with self.at(self.router):
            for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
                setting(name, "1")
            for name in ("ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"):
                setting(name, "0")
            run_ip([
                f"link add near mtu {NEAR_MTU} type veth peer name near mtu {NEAR_MTU} netns {self.ours.path}",
                f"link add far mtu {FAR_MTU} type veth peer name far mtu {FAR_MTU} netns {self.server.path}",
            ])  # fmt: skip
        for host, link, commands, gateways in (
            (self.ours, "near", OURS, ("10.7.1.1", "fd07:1::1")),
            (self.router, "far", ["link set near addrgenmode none", "link set near up", *ROUTERS], ()),
            (self.server, "far", SERVERS, ("10.7.2.1", "fd07:2::1")),
        ):
            with self.at(host):
                run_ip([f"link set {link} addrgenmode none", f"link set {link} up", *commands])
                run_ip([way.format(gateway) for way, gateway in zip(WAY_OUT, gateways, strict=False)])
        for host in (self.router, self.server, self.ours):
            host.enter()
            wait_for_network()

    @contextlib.contextmanager
    def at(self, host: Namespace) -> Iterator[None]:
        host.enter()
        try:
            yield
        finally:
            self.ours.enter()

    def close(self) -> None:
        self.ours.enter()
        for host in (self.ours, self.router, self.server):
            host.close()


def setting(name: str, value: str) -> None:
    try:
        (pathlib.Path("/proc/sys/net") / name).write_text(value)
    except OSError as error:
        pytest.skip(f"{name} can't be set: {error.strerror}")


def on_three_hosts(body: Callable[[ThreeHosts], object]) -> None:
    def run() -> None:
        hosts = ThreeHosts()
        try:
            body(hosts)
        finally:
            hosts.close()

    in_network_namespace([], run)


def ping(host: str, port: int, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = run_echo7("ping", host, "--port", str(port), "--json", *arguments)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize(("host", "headers_bytes"), [("10.7.2.2", 28), ("fd07:2::2", 48)], ids=["IPv4", "IPv6"])
def test_path_mtu_is_found_behind_a_router(host: str, headers_bytes: int) -> None:
    """Issue: "`-s MIN:MAX:STEP --df` finds the path MTU" (RFC 1191, RFC 8201): a router reports it by ICMP."""
    most = FAR_MTU - headers_bytes

    def body(hosts: ThreeHosts) -> None:
        with hosts.at(hosts.server):
            server = EchoThread([host])
        with server:
            sizes = f"{most - 8}:{most + 8}:4"
            status, found = ping(host, server.port, "--df", "-s", sizes, "-i", "0.05", "-W", "3")
        assert status == 0
        assert found["path_mtu"] == {
            "kernel_bytes": FAR_MTU,
            "largest_answered_bytes": most,
            "smallest_too_big_bytes": most + 4,
        }
        assert (found["counts"]["replies"], found["counts"]["too_big"], found["counts"]["lost"]) == (3, 2, 0)

    on_three_hosts(body)


def test_datagram_larger_than_our_own_link_is_not_sent() -> None:
    def body(hosts: ThreeHosts) -> None:
        status, found = ping("10.7.1.1", 7, "--df", "-s", "1473", "-c", "2", "-i", "0.01")
        assert (status, found["verdict"], found["counts"]["too_big"]) == (4, "too big", 2)
        assert found["path_mtu"]["kernel_bytes"] == NEAR_MTU

    on_three_hosts(body)


@pytest.mark.parametrize("host", ["10.7.3.9", "fd07:3::9"], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("transport", ["--udp", pytest.param("--tcp", marks=pytest.mark.long)])
def test_router_without_a_route_is_unreachable(host: str, transport: str) -> None:
    """RFC 792, RFC 4443: "destination unreachable" comes back as an error of the socket."""

    def body(hosts: ThreeHosts) -> None:
        status, found = ping(host, 7, transport, "-c", "2", "-i", "0.2", "-W", "2")
        assert (status, found["verdict"]) == (4, "unreachable")
        assert found["counts"]["unreachable"] == 2
        router = "fd07:1::1" if ":" in host else "10.7.1.1"
        if transport == "--udp":
            assert f"says {router}" in run_echo7("ping", host, "-c", "1", "-W", "2").stdout

    on_three_hosts(body)


def test_missing_neighbour_is_unreachable() -> None:
    """The kernel gives up after three requests; meanwhile two probes are outstanding, and one gets the error."""

    def body(hosts: ThreeHosts) -> None:
        setting("ipv4/neigh/near/retrans_time_ms", "50")
        status, found = ping("10.7.1.99", 7, "-c", "2", "-i", "0.01", "-W", "1")
        assert (status, found["verdict"]) == (4, "unreachable")
        assert found["counts"]["unreachable"] >= 1

    on_three_hosts(body)


def test_link_local_address_with_its_interface() -> None:
    """RFC 4007: `fe80::…%near` is on that link and no other."""

    def body(hosts: ThreeHosts) -> None:
        with hosts.at(hosts.router):
            run_ip(["-6 addr add fe80::7/64 dev near nodad"])
            wait_for_network()
            server = EchoThread(["fe80::7%near"])
        with server:
            for transport in ("--udp", "--tcp"):
                status, found = ping("fe80::7%near", server.port, transport, "-c", "2", "-i", "0.01")
                assert (status, found["counts"]["replies"]) == (0, 2)

    on_three_hosts(body)
