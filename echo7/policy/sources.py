"""What one source may have: whether it is served at all, how many connections, how many answers. Pure policy.

    SourceLimits   what the operator has said
    Door           TCP: a caller comes in or not; asked once for each, at accept
    Admission      UDP: a datagram is answered or not; asked for one, or for a whole batch

Law: one source can't use up what is there for all. Memory is bounded: the door knows only those who are inside, the
buckets only so many (see `rate.py`). A batch gets the very decisions that its datagrams would get one by one, but what
is looked up is looked up once for each source in it, and nothing in Python is done for each datagram while all of
them are answered.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from echo7.policy.ports import DEFAULT_PORTS, SourcePorts
from echo7.policy.rate import DEFAULT_UDP_RATE, Bucket, Rate, SourceBuckets, is_loopback, plain_host, source_of

if TYPE_CHECKING:  # only who has --allow or --deny waits for it
    from echo7.policy.access import Access

SHARE_OF_CONNECTIONS = 4  # one source may have a quarter of them

EXEMPT, DENIED = b"", b"denied"  # in place of a source: no prefix is so short, or six bytes long
DENIED_REASON, RATE_REASON, RATE_TOTAL_REASON = "source_denied", "rate_source", "rate_total"
NOTHING_REFUSED: Mapping[int, str] = {}
IPV4_BYTES = 4
Told = Callable[[str, bytes, int], object]  # reason, source (or EXEMPT: nobody in particular), how many


class ByBind(enum.Enum):
    """A limit that nobody has set: none on a socket bound to loopback, elsewhere what `SourceLimits.…_on` say."""

    BY_BIND = enum.auto()


BY_BIND = ByBind.BY_BIND


class SourceLimits(NamedTuple):
    """Who is served, and how much one source may have. By default everybody, without limits.

    `allow`, `deny`: networks such as 192.0.2.0/24; the smallest that a source is in decides, of equal ones the denied;
    if any is allowed, all others are denied. `connections`: at once, for an IPv4 address or an IPv6 /64; more are
    closed at accept. `udp_rate`: answers to one of the same, `udp_rate_total`: to all together. `log_only`: count and
    log who is over a rate, and answer all the same. `ports`: the source ports that get no answer (see `ports.py`).
    BY_BIND: see there; sources on loopback then have no `udp_rate`.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    connections: int | ByBind | None = None
    udp_rate: Rate | ByBind | None = None
    udp_rate_total: Rate | None = None
    log_only: bool = False
    ports: SourcePorts = DEFAULT_PORTS

    def access(self) -> Access | None:
        """Return who may use the service, None for everybody. Raise ValueError for what is no network."""
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
        """Return what one of several processes takes, of what is meant for all of them together.

        A source's rate isn't divided: the kernel sends one flow always to the same process, which must bound it alone.
        """
        if processes == 1:
            return self
        whole, rate = self.connections, self.udp_rate_total
        return self._replace(
            connections=-(-whole // processes) if isinstance(whole, int) else whole,
            udp_rate_total=rate and Rate(rate.per_second / processes, -(-rate.burst // processes)),
        )


EVERYBODY = SourceLimits()


class Door:
    """Which callers come in. It counts those inside by source."""

    __slots__ = ("_access", "_inside")

    def __init__(self, access: Access | None = None) -> None:
        self._access = access
        self._inside: dict[bytes, int] = {}

    def refusal(self, host: bytes, most: int | None) -> str | None:
        """Return why a caller may not come in, or None; `most` is how many of one source may be inside."""
        host = plain_host(host)
        if self._access is not None and not self._access.allows(host):
            return "refused_denied"
        if most is not None and self._inside.get(source_of(host), 0) >= most:
            return "refused_source_cap"
        return None

    def enter(self, host: bytes) -> bytes:
        """Count a caller in. Return what is to be handed to `leave`."""
        source = source_of(plain_host(host))
        self._inside[source] = self._inside.get(source, 0) + 1
        return source

    def leave(self, source: bytes) -> None:
        """Count a caller out. The last one takes the entry with him."""
        left = self._inside[source] - 1
        if left:
            self._inside[source] = left
        else:
            del self._inside[source]


class Admission:
    """Which datagrams are answered now, as far as their source decides. Buckets may be shared with others.

    `told(reason, source, count)` is called for those that are over a rate but answered, with `log_only`; `over_rate`
    counts them.
    """

    __slots__ = ("_access", "_buckets", "_log_only", "_now", "_spares_loopback", "_told", "_total", "over_rate")

    def __init__(
        self,
        now: Callable[[], float],
        *,
        access: Access | None = None,
        buckets: SourceBuckets | None = None,
        total: Bucket | None = None,
        spares_loopback: bool = False,
        log_only: bool = False,
        told: Told | None = None,
    ) -> None:
        self._now = now  # monotonic seconds
        self._access, self._buckets, self._total = access, buckets, total
        self._spares_loopback, self._log_only = spares_loopback, log_only
        self._told = told
        self.over_rate = 0

    def refusal(self, host: bytes) -> str | None:
        """Return why one datagram from a packed address gets no answer, or None."""
        return self._refusals_of_one(host, 1).get(0)

    def refusals(self, hosts: Sequence[Hashable], packed: Callable[[Hashable], bytes]) -> Mapping[int, str]:
        """The same for a batch. `hosts` are where its datagrams came from, in order; `packed` makes addresses of them.

        Return the reasons, by place in the batch.
        """
        if not hosts:
            return NOTHING_REFUSED
        if hosts.count(hosts[0]) == len(hosts):  # the usual case, for a third of the price
            return self._refusals_of_one(packed(hosts[0]), len(hosts))
        now_s = self._now()
        keys: dict[Hashable, bytes] = {}
        asked: dict[bytes, int] = {}  # who comes last in the batch is last here, as if they had come one by one
        for host, count in reversed(Counter(reversed(hosts)).items()):
            key = keys[host] = self._key(packed(host))
            asked[key] = asked.pop(key, 0) + count
        left = {key: granted for key, count in asked.items() if (granted := self._granted(key, count, now_s)) < count}
        refused = _latecomers(hosts, keys, left) if left else {}
        passing = len(hosts) - len(refused)
        granted = self._granted_in_total(passing, now_s)
        if granted < passing:
            places = [place for place in range(len(hosts)) if place not in refused]
            refused |= dict.fromkeys(places[granted:], RATE_TOTAL_REASON)
        return refused

    def _refusals_of_one(self, host: bytes, count: int) -> Mapping[int, str]:
        now_s, key = self._now(), self._key(host)
        by_source = self._granted(key, count, now_s)
        granted = self._granted_in_total(by_source, now_s)
        if granted == count:
            return NOTHING_REFUSED
        in_total = dict.fromkeys(range(granted, by_source), RATE_TOTAL_REASON)
        return in_total | dict.fromkeys(range(by_source, count), _reason(key))

    def _key(self, host: bytes) -> bytes:
        """Return the source whose bucket counts, DENIED or EXEMPT."""
        if len(host) != IPV4_BYTES:
            host = plain_host(host)
        if self._access is not None and not self._access.allows(host):
            return DENIED
        if self._buckets is None or (self._spares_loopback and is_loopback(host)):
            return EXEMPT
        return source_of(host)

    def _granted(self, key: bytes, count: int, now_s: float) -> int:
        if key == DENIED:
            return 0
        if key == EXEMPT or self._buckets is None:
            return count
        granted = self._buckets.take(key, count, now_s)
        return granted if granted == count else self._enforced(RATE_REASON, key, count, granted)

    def _granted_in_total(self, count: int, now_s: float) -> int:
        if self._total is None:
            return count
        granted = self._total.take(count, now_s)
        return granted if granted == count else self._enforced(RATE_TOTAL_REASON, EXEMPT, count, granted)

    def _enforced(self, reason: str, source: bytes, count: int, granted: int) -> int:
        """Return how many of `count` are answered where the rate grants fewer."""
        if not self._log_only:
            return granted
        self.over_rate += count - granted
        if self._told is not None:
            self._told(reason, source, count - granted)
        return count


def _latecomers(hosts: Sequence[Hashable], keys: Mapping[Hashable, bytes], left: dict[bytes, int]) -> dict[int, str]:
    """Return who gets no answer where of some sources only the first ones do: `left` says how many."""
    refused: dict[int, str] = {}
    for place, host in enumerate(hosts):
        key = keys[host]
        if key not in left:
            continue
        if left[key]:
            left[key] -= 1
        else:
            refused[place] = _reason(key)
    return refused


def _reason(key: bytes) -> str:
    return DENIED_REASON if key == DENIED else RATE_REASON
