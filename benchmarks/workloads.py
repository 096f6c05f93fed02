"""The table of workloads. A new workload is a new entry, if the load has its mode.

A Figure names one number that `measure` returns, and how to show it. Charts draw the first figure of a workload. A
ratio is echo7's number divided by the peer's: where less is better, echo7 is better if the ratio is below 1.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024


@dataclass(frozen=True, slots=True)
class Figure:
    """One column of a table."""

    key: str
    title: str
    digits: int
    less_is_better: bool = True
    ratio: bool = False  # whether echo7's ratio to each peer is shown


PER_SECOND = Figure("per_second", "messages/s", 0, less_is_better=False, ratio=True)
CYCLES = Figure("per_second", "connections/s", 0, less_is_better=False, ratio=True)
SPEED = Figure("mb_per_s", "MB/s", 0, less_is_better=False, ratio=True)
CPU_US = Figure("cpu_us", "CPU µs/message", 2, ratio=True)
CPU_PER_CALLER = Figure("cpu_us", "CPU µs/connection", 1, ratio=True)
CPU_PER_GB = Figure("cpu_s_per_gb", "CPU s/GB", 3, ratio=True)
CORE = Figure("core_percent", "core %", 0)
LOST = Figure("lost", "lost", 0)
ROUND_TRIP = Figure("p50_us", "round trip µs", 1, ratio=True)
ROUND_TRIP_P99 = Figure("p99_us", "p99 µs", 1)
MEMORY = Figure("bytes_per_connection", "bytes/connection", 0, ratio=True)
PING_P50 = Figure("p50_ms", "p50 ms", 2)
PING_P99 = Figure("p99_ms", "ping p99 ms", 2, ratio=True)
PING_MOST = Figure("max_ms", "max ms", 2)
TIMER = Figure("us_per_timer", "CPU µs/timer", 3, ratio=True)
START = Figure("start_ms", "start ms", 1, ratio=True)

MESSAGES = (PER_SECOND, CPU_US, CORE)
DATAGRAMS = (PER_SECOND, CPU_US, CORE, LOST)
ROUND_TRIPS = (ROUND_TRIP, ROUND_TRIP_P99, CPU_US, CORE)
STREAMS = (SPEED, CPU_PER_GB, CORE)


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of load, and the figures to show."""

    name: str
    title: str
    kinds: tuple[str, ...]  # a server must offer one of them
    mode: str  # of the load; or timers-cancel, timers-fire, cold-start
    count: int  # connections, sockets or timers
    size_bytes: int
    figures: tuple[Figure, ...]

    @property
    def group(self) -> str:
        """The part of the name before the number: `shape` of `shape-100`."""
        return self.name.partition("-")[0]

    def is_named(self, name: str) -> bool:
        """Tell whether `name` is this workload's name, or its first parts: `bulk-8` of `bulk-8-64k`."""
        return self.name == name or self.name.startswith(f"{name}-")


def _tcp(name: str, title: str, mode: str, count: int, size_bytes: int, figures: tuple[Figure, ...]) -> Workload:
    return Workload(name, title, ("tcp",), mode, count, size_bytes, figures)


def _udp(name: str, title: str, count: int, size_bytes: int) -> Workload:
    return Workload(name, title, ("udp",), "udp", count, size_bytes, DATAGRAMS)


SHAPE_COUNTS = (1, 10, 100, 1_000, 10_000)
BULK_COUNTS, WRITE_SIZES_KIB = (1, 8, 50), (16, 64, 1024)

WORKLOADS: tuple[Workload, ...] = (
    _tcp("pingpong-1k", "TCP ping-pong, 50 connections × 1 KiB", "pingpong", 50, KIB, MESSAGES),
    _tcp("pingpong-128", "TCP ping-pong, 1,000 connections × 128 B", "pingpong", 1_000, 128, MESSAGES),
    _tcp("rtt", "TCP round trip, 1 connection × 64 B", "pingpong", 1, 64, ROUND_TRIPS),
    _tcp("rtt-polling", "The same with a polling client", "polling", 1, 64, ROUND_TRIPS),
    *(
        _tcp(f"bulk-{n}-{size}k", f"Bulk TCP, {n} connection{'s' * (n > 1)}, writes of {size:,} KiB", "bulk", n,
             size * KIB, STREAMS)
        for n in BULK_COUNTS for size in WRITE_SIZES_KIB
    ),
    _tcp("churn", "Short TCP connections, 50 at once × 64 B", "churn", 50, 64, (CYCLES, CPU_PER_CALLER, CORE)),
    _tcp("idle-10k", "Memory of 10,000 idle connections", "idle", 10_000, 64, (MEMORY,)),
    _tcp("idle-19k", "Memory of 19,000 idle connections", "idle", 19_000, 64, (MEMORY,)),
    _udp("udp-512", "UDP ping-pong, 50 sockets × 512 B", 50, 512),
    _udp("udp-64", "UDP ping-pong, 300 sockets × 64 B", 300, 64),
    _udp("udp-60k", "UDP ping-pong, 8 sockets × 60,000 B", 8, 60_000),
    _tcp(
        "fairness",
        "A ping beside 8 bulk connections",
        "fair",
        8,
        256 * KIB,
        (PING_P99, PING_P50, PING_MOST, SPEED, CPU_PER_GB),
    ),
    Workload("timers-cancel", "1,000,000 timers set and cancelled", ("timers",), "timers-cancel", 10**6, 0, (TIMER,)),
    Workload("timers-fire", "200,000 timers set and fired", ("timers",), "timers-fire", 200_000, 0, (TIMER,)),
    Workload("cold-start", "From spawn to the first TCP echo", ("tcp", "spawn"), "cold-start", 1, 64, (START,)),
    *(
        _tcp(f"shape-{n}", f"TCP ping-pong, {n:,} connection{'s' * (n > 1)} × 128 B", "pingpong", n, 128,
             (CPU_US, PER_SECOND, CORE))
        for n in SHAPE_COUNTS
    ),
)  # fmt: skip


def chosen(names: list[str]) -> list[Workload]:
    """Return the workloads that these names select. Raise KeyError for a name that selects none."""
    if not names:
        return list(WORKLOADS)
    for name in names:
        if not any(workload.is_named(name) for workload in WORKLOADS):
            raise KeyError(name)
    return [workload for workload in WORKLOADS if any(map(workload.is_named, names))]
