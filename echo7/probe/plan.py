"""Plan: the parameters of a run, and the check that they make sense. Pure.

Law: a plan that makes no sense is refused before a socket is made, in one line that says what is wrong and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from echo7.probe.measure.payload import MOST_BYTES

NS_PER_S = 1_000_000_000
DEFAULT_SIZE_BYTES = 56  # ping's
MOST_DATAGRAM_BYTES = {4: 65_507, 6: 65_527}  # of payload, by version of IP
MOST_FLOWS, MOST_SIZES, LAST_PORT = 1024, 4096, 65_535
LEAST_INTERVAL_NS = 10_000  # faster: the window of -i 0
LONGEST_NS = 86_400 * NS_PER_S


class Plan(NamedTuple):
    """The parameters of one run. `checked` refuses those that make no sense."""

    tcp: bool = False
    probes: int | None = None  # None: no end
    interval_ns: int = NS_PER_S  # 0: as fast as answers come
    sizes: Sequence[int] = (DEFAULT_SIZE_BYTES,)  # bytes of payload, in turn
    timeout_ns: int = 2 * NS_PER_S
    flows: int = 1  # source ports
    source_port: int = 0  # of the first flow; the others follow. 0: any free ports
    df: bool = False  # don't fragment

    @property
    def transport(self) -> str:
        """`tcp` or `udp`."""
        return "tcp" if self.tcp else "udp"


def checked(plan: Plan) -> Plan:
    """Return the plan unchanged. Raise ValueError, with one line, if it makes no sense."""
    least, most = (1, MOST_BYTES) if plan.tcp else (0, MOST_DATAGRAM_BYTES[6])
    _refuse(not plan.sizes or len(plan.sizes) > MOST_SIZES, f"{len(plan.sizes)} sizes; take from 1 to {MOST_SIZES}")
    for size_bytes in plan.sizes:
        _refuse(not least <= size_bytes <= most, f"a size of {size_bytes}; {plan.transport} takes {least} to {most}")
    _refuse(not 1 <= plan.flows <= MOST_FLOWS, f"{plan.flows} flows; take from 1 to {MOST_FLOWS}")
    last = plan.source_port + plan.flows - 1
    _refuse(plan.source_port < 0, f"a source port of {plan.source_port}; take from 0 to {LAST_PORT}")
    _refuse(plan.source_port > 0 and last > LAST_PORT, f"the last source port would be {last}; take a lower first one")
    count = plan.probes
    _refuse(count is not None and count < 1, f"a count of {count}; take 1 or more, or leave it out for no end")
    slow = 0 < plan.interval_ns < LEAST_INTERVAL_NS or not 0 <= plan.interval_ns <= LONGEST_NS
    _refuse(slow, f"an interval of {plan.interval_ns} ns; take 0, or from 10 µs to a day")
    _refuse(not 0 < plan.timeout_ns <= LONGEST_NS, f"a time-out of {plan.timeout_ns} ns; take up to a day, and not 0")
    _refuse(plan.df and plan.tcp, "'don't fragment' is for UDP: TCP cuts its stream to fit; leave one of them out")
    return plan


def plan_in_seconds(interval_s: float, timeout_s: float, **others: Any) -> Plan:
    """Return a checked plan; `others` are further fields. Raise ValueError as `checked` does."""
    return checked(Plan(interval_ns=round(interval_s * NS_PER_S), timeout_ns=round(timeout_s * NS_PER_S), **others))


def misfit(plan: Plan, host: str) -> str:
    """Return why a size doesn't fit into a datagram to this numeric address; empty if all sizes do."""
    version = 6 if ":" in host else 4
    most = MOST_DATAGRAM_BYTES[version]
    if plan.tcp or max(plan.sizes) <= most:
        return ""
    return f"a size of {max(plan.sizes)}; over IPv{version} a datagram carries at most {most} bytes"


def _refuse(is_so: bool, message: str) -> None:
    if is_so:
        raise ValueError(message)
