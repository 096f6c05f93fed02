"""Guard: which datagrams must not be answered. Pure policy: a batch comes in, reasons go out.

Law: no answer may start a loop or reach more than one host. UDP sources are easily forged. One datagram that claims
to come from another responder (echo, chargen, DNS, …) would bounce between the two for ever: CVE-1999-0103,
CVE-2024-2169. An answer to a multicast or broadcast address, or from one, would be multiplied (RFC 1122 §4.1.3.6 and
§3.2.1.3; RFC 862 mentions neither). So the guard refuses

- source port 0, which can't be answered, the ports of responders and our own ports (`ports.py`: an option);
- a source or a destination that isn't a single host.

Two echo servers on different unprivileged ports look like a client and a server. `loops.py` ends what goes round there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from echo7.policy.ports import DEFAULT_PORTS, SourcePorts
from echo7.policy.reasons import Reason
from reactor.fastpath.datagrams import Batch, Screen
from reactor.sockets.pktinfo import IPV4_INFO_BYTES, is_unicast

# Services that answer any datagram, or any that seems valid, by the port they answer from.
RESPONDER_PORTS = {
    7: "echo", 11: "systat", 13: "daytime", 17: "qotd", 19: "chargen", 37: "time", 53: "domain", 69: "tftp",
    111: "sunrpc", 123: "ntp", 137: "netbios-ns", 138: "netbios-dgm", 161: "snmp", 177: "xdmcp", 389: "ldap",
    427: "svrloc", 520: "rip", 623: "ipmi", 1434: "ms-sql-m", 1900: "ssdp", 3283: "net-assistant", 3702: "ws-discovery",
    5353: "mdns", 11211: "memcached", 27960: "quake3",
}  # fmt: skip

# The first two characters of every address that may not be a single host's. Others need no further check.
SUSPICIOUS_STARTS = frozenset({"0.", "22", "23", "25", "::", "ff"})
# The same by the bytes of an address: 0/8, 224/4 and 255.255.255.255; ff00::/8, ::ffff:0:0/96 and ::.
SUSPICIOUS_IPV4 = {0: {0, *range(224, 240), 255}}
SUSPICIOUS_IPV6 = {0: {0xFF}, 10: {0xFF}, 15: {0}}


class Guard:
    """Decides which datagrams one server answers. `own_ports` are the server's."""

    def __init__(self, own_ports: Iterable[int] = (), ports: SourcePorts = DEFAULT_PORTS) -> None:
        self._refused_ports = dict.fromkeys(ports.listed, Reason.SOURCE_PORT_LISTED)
        if ports.responders:
            self._refused_ports |= dict.fromkeys(RESPONDER_PORTS, Reason.SOURCE_PORT_RESPONDER)
        if ports.own:
            self._refused_ports |= dict.fromkeys(own_ports, Reason.SOURCE_PORT_OWN)
        self._refused_ports[0] = Reason.SOURCE_PORT_ZERO
        self._screen = Screen({port >> 8 for port in self._refused_ports}, SUSPICIOUS_IPV4, SUSPICIOUS_IPV6)

    def refusals(self, batch: Batch, count: int) -> Mapping[int, Reason]:
        """Return which datagrams of a batch get no answer, and why."""
        refused: dict[int, Reason] = {}
        for index, source, path in batch.suspects(count, self._screen):
            reason = self._refused_ports.get(source[1])
            if reason is None and source[0][:2] in SUSPICIOUS_STARTS:
                reason = refused_source(source[0])
            if reason is None and path and not is_unicast(path):
                reason = refused_destination(path)
            if reason is not None:
                refused[index] = reason
        return refused


def refused_source(host: str) -> Reason | None:
    """Return why a numeric source address gets no answer, or None.

    The broadcast address of a subnet looks like any other here; the kernel refuses to send to it (EACCES).
    """
    # IPv4 on an IPv6 socket (RFC 4291 §2.5.5.2).
    if host.startswith("::ffff:") and "." in host:
        host = host[len("::ffff:") :]
    if ":" in host:
        first_group = host.partition(":")[0]
        if len(first_group) == 4 and first_group.startswith("ff"):
            return Reason.SOURCE_MULTICAST
        return Reason.SOURCE_UNSPECIFIED if host == "::" else None
    first = int(host.partition(".")[0])
    if first == 0:
        return Reason.SOURCE_UNSPECIFIED
    if 224 <= first <= 239:
        return Reason.SOURCE_MULTICAST
    return Reason.SOURCE_BROADCAST if host == "255.255.255.255" else None


def refused_destination(path: bytes) -> Reason:
    """Name the kind of a destination that isn't unicast."""
    if len(path) == IPV4_INFO_BYTES and not 224 <= path[8] <= 239:
        return Reason.DESTINATION_BROADCAST
    return Reason.DESTINATION_MULTICAST
