"""What one source may have: whether it is served, how many connections, how many answers. Pure policy.

    SourceLimits     what the operator has configured
    ConnectionGate   TCP: decides at accept whether a connection stays
    DatagramGate     UDP: decides which datagrams of a batch are answered

Law: one source can't use up what all sources share. Memory is bounded: the connection gate knows only open connections,
the buckets hold a fixed number of sources (see `rate.py`). A batch gets the same decisions as its datagrams would one
by one, but each source is looked up once. While all are answered, no Python code runs for each datagram.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from echo7.policy.ports import DEFAULT_PORTS, SourcePorts
from echo7.policy.rate import (
    DEFAULT_PREFIX,
    DEFAULT_UDP_RATE,
    Rate,
    SourceBuckets,
    SourcePrefix,
    is_loopback,
    plain_host,
)  # fmt: skip
from echo7.policy.reasons import Reason
from reactor.fastpath.datagrams import NOTHING_REFUSED

# Imported only when --allow or --deny is set.
if TYPE_CHECKING:
    from echo7.policy.access import Access

# One source may have a quarter of all connections.
SHARE_OF_CONNECTIONS = 4
# These two keys can't be mistaken for sources, which have 4 or 16 bytes.
EXEMPT, DENIED = b"", b"denied"
# Reason, source (EXEMPT: all sources together), count.
OverRate = Callable[[Reason, bytes, int], object]


class ByBind(enum.Enum):
    """A limit that isn't configured: no limit on a socket bound to loopback, elsewhere that of `SourceLimits.…_on`."""

    BY_BIND = enum.auto()


BY_BIND = ByBind.BY_BIND


class SourceLimits(NamedTuple):
    """Which sources are served, and how much one may have. By default all, without limits.

    `allow`, `deny`: networks such as 192.0.2.0/24. The smallest one that a source is in decides; of equal ones, the
    denied one. If any is allowed, all others are denied. `prefix`: which addresses count as one source. `connections`:
    open at once; more are closed at accept. `udp_rate`: answers to one source; `udp_rate_total`: to all together.
    `log_only`: count and log what is over a rate, but answer it. `ports`: the source ports that get no answer (see
    `ports.py`). `answer_loops`: answer suspected loops, too (see `loops.py`). `keep_silent`: a full server
    closes no silent connection to make room (see `crowd.py`). BY_BIND: see there; sources on loopback then have no
    `udp_rate`.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    connections: int | ByBind | None = None
    udp_rate: Rate | ByBind | None = None
    udp_rate_total: Rate | None = None
    log_only: bool = False
    ports: SourcePorts = DEFAULT_PORTS
    answer_loops: bool = False
    prefix: SourcePrefix = DEFAULT_PREFIX
    keep_silent: bool = True

    def access(self) -> Access | None:
        """Return which sources may use the service, None for all. Raise ValueError for an invalid network."""
        if not (self.allow or self.deny):
            return None
        from echo7.policy.access import Access

        return Access(self.allow, self.deny)

    def connections_on(self, on_loopback: bool, max_connections: int | None) -> int | None:
        """Return how many connections one source may have on a listener."""
        if self.connections is not BY_BIND:
            return self.connections
        if on_loopback or max_connections is None:
            return None
        return max(1, max_connections // SHARE_OF_CONNECTIONS)

    def udp_rate_on(self, on_loopback: bool) -> Rate | None:
        """Return the rate of one source on an endpoint."""
        if self.udp_rate is not BY_BIND:
            return self.udp_rate
        return None if on_loopback else DEFAULT_UDP_RATE

    def share(self, processes: int) -> SourceLimits:
        """Return one process's share of the limits that several processes have together.

        A source's rate isn't divided: the kernel sends a flow always to the same process, which must bound it alone.
        """
        if processes == 1:
            return self
        whole, rate = self.connections, self.udp_rate_total
        return self._replace(
            connections=-(-whole // processes) if isinstance(whole, int) else whole,
            udp_rate_total=rate and Rate(rate.per_second / processes, -(-rate.burst // processes)),
        )


NO_LIMITS = SourceLimits()


class ConnectionGate:
    """Decides which connections stay. It counts the open ones by source."""

    __slots__ = ("_access", "_open", "_source_of")

    def __init__(self, access: Access | None = None, prefix: SourcePrefix = DEFAULT_PREFIX) -> None:
        self._access, self._source_of = access, prefix.source_of
        self._open: dict[bytes, int] = {}

    def __len__(self) -> int:
        """How many sources have open connections."""
        return len(self._open)

    def refusal(self, host: bytes, most: int | None) -> Reason | None:
        """Return why a connection is refused, or None. `most` is how many one source may have open."""
        host = plain_host(host)
        if self._access is not None and not self._access.allows(host):
            return Reason.REFUSED_DENIED
        if most is not None and self._open.get(self._source_of(host), 0) >= most:
            return Reason.REFUSED_SOURCE_CAP
        return None

    def enter(self, host: bytes) -> bytes:
        """Count an open connection. Return its source, for `leave`."""
        source = self._source_of(plain_host(host))
        self._open[source] = self._open.get(source, 0) + 1
        return source

    def leave(self, source: bytes) -> None:
        """Count a connection that has closed. A source's last one removes its entry."""
        left = self._open[source] - 1
        if left:
            self._open[source] = left
        else:
            del self._open[source]


class DatagramGate:
    """Decides which datagrams are answered, by their sources. Several gates may share buckets.

    With `log_only`, datagrams over a rate are answered, and `over_rate(reason, source, count)` is called.
    """

    __slots__ = ("_access", "_buckets", "_log_only", "_now", "_over_rate", "_source_of", "_spares_loopback", "_total")

    def __init__(
        self,
        now: Callable[[], float],
        *,
        access: Access | None = None,
        prefix: SourcePrefix = DEFAULT_PREFIX,
        buckets: SourceBuckets | None = None,
        total: SourceBuckets | None = None,
        spares_loopback: bool = False,
        log_only: bool = False,
        over_rate: OverRate | None = None,
    ) -> None:
        # Monotonic seconds.
        self._now = now
        self._access, self._buckets, self._total = access, buckets, total
        self._source_of = prefix.source_of
        self._spares_loopback, self._log_only = spares_loopback, log_only
        self._over_rate = over_rate

    def refusals(self, hosts: Sequence[Hashable], packed: Callable[[Hashable], bytes]) -> Mapping[int, str]:
        """Return which datagrams get no answer, and why, by their place in `hosts`.

        `hosts` are their sources' hosts in the order of arrival; `packed` returns a host's 4 or 16 bytes.
        """
        total = len(hosts)
        if not total:
            return NOTHING_REFUSED
        # One source only is the usual case, at a third of the cost.
        if hosts.count(hosts[0]) == total:
            return self._refusals_of_one(packed(hosts[0]), total)
        now_s = self._now()
        keys: dict[Hashable, bytes] = {}
        # The source that is last in the batch is last here too, as if the datagrams had come one by one.
        asked: dict[bytes, int] = {}
        for host, count in reversed(Counter(reversed(hosts)).items()):
            key = keys[host] = self._key(packed(host))
            asked[key] = asked.pop(key, 0) + count
        left = {key: granted for key, count in asked.items() if (granted := self._granted(key, count, now_s)) < count}
        # those beyond the first ones of their sources
        refused: dict[int, str] = {}
        for place, key in enumerate(map(keys.__getitem__, hosts) if left else ()):
            if key in left:
                left[key] -= 1
                if left[key] < 0:
                    refused[place] = _reason(key)
        passing = total - len(refused)
        granted = self._granted_in_total(passing, now_s)
        if granted < passing:
            places = [place for place in range(total) if place not in refused]
            refused |= dict.fromkeys(places[granted:], Reason.RATE_TOTAL)
        return refused

    def _refusals_of_one(self, host: bytes, count: int) -> Mapping[int, str]:
        now_s, key = self._now(), self._key(host)
        by_source = self._granted(key, count, now_s)
        granted = by_source if self._total is None else self._granted_in_total(by_source, now_s)
        if granted == count:
            return NOTHING_REFUSED
        in_total = dict.fromkeys(range(granted, by_source), Reason.RATE_TOTAL)
        return in_total | dict.fromkeys(range(by_source, count), _reason(key))

    def _key(self, host: bytes) -> bytes:
        """Return the source with its own bucket, or DENIED or EXEMPT."""
        host = plain_host(host)
        if self._access is not None and not self._access.allows(host):
            return DENIED
        if self._buckets is None or (self._spares_loopback and is_loopback(host)):
            return EXEMPT
        return self._source_of(host)

    def _granted(self, key: bytes, count: int, now_s: float) -> int:
        if key == DENIED:
            return 0
        if key == EXEMPT or self._buckets is None:
            return count
        granted = self._buckets.take(key, count, now_s)
        return granted if granted == count else self._enforced(Reason.RATE_SOURCE, key, count, granted)

    def _granted_in_total(self, count: int, now_s: float) -> int:
        if self._total is None:
            return count
        granted = self._total.take(EXEMPT, count, now_s)
        return granted if granted == count else self._enforced(Reason.RATE_TOTAL, EXEMPT, count, granted)

    def _enforced(self, reason: Reason, source: bytes, count: int, granted: int) -> int:
        """Return how many of `count` are answered where the rate grants only `granted`."""
        if not self._log_only:
            return granted
        if self._over_rate is not None:
            self._over_rate(reason, source, count - granted)
        return count


def _reason(key: bytes) -> Reason:
    return Reason.SOURCE_DENIED if key == DENIED else Reason.RATE_SOURCE
