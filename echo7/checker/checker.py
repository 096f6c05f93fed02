"""Checker: runs one case after another at each of the server's addresses.

Law: one case runs at a time, so that cases don't affect each other. If a transport doesn't answer at all, its other
cases are skipped. The run takes a bounded time with any server.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence

from echo7.checker.session import Session
from echo7.checker.tcp_cases import CASES as TCP_CASES
from echo7.checker.udp_cases import CASES as UDP_CASES
from echo7.checker.verdict import NO_ECHO, TRANSPORTS, Case, Finding, Report, Verdict
from reactor import Address, Reactor

CASES: tuple[Case, ...] = (*TCP_CASES, *UDP_CASES)
PATIENCES_IN_ALL = 100  # time-outs for one address


def chosen(transports: Collection[str], only: Collection[str] = ()) -> tuple[Case, ...]:
    """Return the cases of some transports; with `only`, the named cases and the first case that they depend on.

    Raise ValueError for an unknown name and for no transport.
    """
    cases = [case for case in CASES if case.transport in transports]
    names = [case.name for case in cases]
    for name in only:
        if name not in names:
            meant = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {meant[0]}?" if meant else "'echo7 check --list' lists them all"
            raise ValueError(f"there is no case {name!r} here; {hint}")
    if not cases:
        raise ValueError(f"no transport to check; give {' or '.join(TRANSPORTS)}")
    if not only:
        return tuple(cases)
    needed = {case.transport for case in cases if case.name in only}
    return tuple(case for case in cases if case.name in only or (case.is_first and case.transport in needed))


class Checker:
    """One run on a loop. Calls `done(report)` once, at the end, and `progress` before and after each case.

    `addresses` are numeric, with the port. Every case runs at each of them.
    """

    def __init__(
        self,
        reactor: Reactor,
        host: str,
        addresses: Sequence[Address],
        cases: Sequence[Case] = CASES,
        *,
        timeout_s: float,
        done: Callable[[Report], object],
        progress: Callable[[Case, str, Finding | None], object] = lambda case, address, finding: None,
    ) -> None:
        self._reactor, self._host, self._addresses = reactor, host, tuple(addresses)
        self._cases = tuple(cases)
        self._timeout_s = timeout_s
        self._done, self._progress = done, progress
        self._findings: list[Finding] = []
        self._queue = [(address, case) for address in self._addresses for case in self._cases]
        self._skipped: set[tuple[str, str]] = set()  # (address, transport) without an echo
        self._deadline_s = 0.0

    def start(self) -> None:
        """Run the cases, starting in the next turn."""
        self._deadline_s = self._reactor.now() + self._timeout_s * PATIENCES_IN_ALL * len(self._addresses)
        self._reactor.call_soon(self._next)

    def _next(self) -> None:
        while self._queue:
            address, case = self._queue.pop(0)
            host = str(address[0])
            if (host, case.transport) in self._skipped:
                continue
            self._progress(case, host, None)
            if self._reactor.now() >= self._deadline_s:
                self._found(Finding(case, host, Verdict.UNKNOWN, "not tried: the time for this address is used up"))
                continue
            Session(self._reactor, address, case, self._timeout_s, self._over).run()
            return
        whole = self._cases == CASES
        self._done(Report(self._host, int(self._addresses[0][1]), tuple(self._findings), whole))

    def _over(self, finding: Finding) -> None:
        self._found(finding)
        self._reactor.call_soon(self._next)

    def _found(self, finding: Finding) -> None:
        if finding.case.is_first and finding.fault in NO_ECHO:
            self._skipped.add((finding.address, finding.case.transport))
        self._findings.append(finding)
        self._progress(finding.case, finding.address, finding)
