"""The checker: tests from outside whether any server echoes as RFC 862 says.

    from echo7 import check

    report = check("192.0.2.1")
    print(report.status, report.score, [finding for finding in report.findings if finding.counts_against])

Start with `verdict` (the verdicts and the score), `effort` (how much is tried), `tcp_cases` and `tcp_load`. Then read
`tcp_client` and `udp_client` (compare received bytes with sent ones), `session` (runs one case on the loop), `checker`
(runs all cases), `table` (prints a report) and `command`. Imports `reactor`, `echo7.sockets.resolve` and
`echo7.arguments`, and nothing of the server.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Collection

from echo7.checker.checker import CASES, Checker, chosen
from echo7.checker.effort import NORMAL, QUICK, THOROUGH, Effort
from echo7.checker.verdict import ECHO_PORT, TRANSPORTS, Case, Fault, Finding, Report, Score, Verdict
from echo7.sockets.resolve import resolve
from reactor import Address, Reactor

__all__ = [
    "CASES", "NORMAL", "QUICK", "THOROUGH", "Case", "Checker", "Fault", "Finding", "Report", "Score", "Verdict",
    "check", "one_of_each_family",
]  # fmt: skip

TIMEOUT_S = 3.0
SEEDS = 1_000_000


def check(
    host: str,
    port: int = ECHO_PORT,
    *,
    transports: Collection[str] = TRANSPORTS,
    only: Collection[str] = (),
    family: int = socket.AF_UNSPEC,
    timeout_s: float = TIMEOUT_S,
    effort: Effort = NORMAL,
    seed: int | None = None,
    progress: Callable[[Case, str, Finding | None], object] = lambda case, address, finding: None,
) -> Report:
    """Check the echo server at a name or address, over IPv4 and IPv6 if it has both. Takes some seconds.

    A case gives up when nothing happens for `timeout_s`. `effort` is QUICK, NORMAL or THOROUGH. A `seed` repeats the
    payloads and the order of an earlier run; the report has it. `progress(case, address, finding)` is called before
    each run of a case (finding None) and after it. Raise UnresolvedName for a name that can't be resolved, ValueError
    for unknown cases and for a time-out of 0 or less.
    """
    cases = chosen(transports, only)
    if not timeout_s > 0:
        raise ValueError(f"timeout_s must be above 0, not {timeout_s}: no server answers in no time")
    addresses = one_of_each_family(resolve(host, port, family))
    reports: list[Report] = []
    with Reactor() as reactor:

        def done(report: Report) -> None:
            reports.append(report)
            reactor.stop()

        Checker(
            reactor, host, addresses, cases,
            timeout_s=timeout_s, done=done, progress=progress, effort=effort,
            seed=random.randrange(SEEDS) if seed is None else seed,  # noqa: S311 - named in the report
        ).start()  # fmt: skip
        reactor.run()
    return reports[0]


def one_of_each_family(addresses: Collection[Address]) -> list[Address]:
    """Return the first IPv4 address and the first IPv6 address of a list, in its order."""
    firsts: dict[bool, Address] = {}
    for address in addresses:
        firsts.setdefault(":" in str(address[0]), address)
    return list(firsts.values())
