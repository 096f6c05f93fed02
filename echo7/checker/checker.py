"""Checker: runs every case at each of the server's addresses, again and again, and makes the report.

Law: one case runs at a time, so that cases don't affect each other; only idle clients wait beside them. In the first
round the cases run in the order of the list, in later rounds in random order from the seed, each after every other.
If a transport doesn't answer at all, or stops, its other cases are skipped. At the end the checker waits for late
answers, and the server must still work. The run takes a bounded time with any server.
"""

from __future__ import annotations

import difflib
import functools
import random
from collections.abc import Callable, Collection, Sequence

from echo7.checker.effort import NORMAL, Effort, left_out
from echo7.checker.session import Run, Session
from echo7.checker.tcp_cases import CASES as TCP_CASES
from echo7.checker.udp_cases import CASES as UDP_CASES
from echo7.checker.udp_client import UdpClient
from echo7.checker.verdict import NO_ECHO, TRANSPORTS, Case, Fault, Finding, Report, Verdict
from reactor import Address, DatagramProtocol, Reactor, open_udp

CASES: tuple[Case, ...] = (*TCP_CASES, *UDP_CASES)
# Addresses for documentation (RFC 5737, RFC 3849), which no machine has. A machine that can bind them can bind any.
NOBODY = {False: "192.0.2.1", True: "2001:db8::1"}
NO_TIME = "not tried: the time for this address is used up"

Key = tuple[str, str]  # an address, and the name of a case or transport
Progress = Callable[[Case, str, Finding | None], object]


def chosen(transports: Collection[str], only: Collection[str] = ()) -> tuple[Case, ...]:
    """Return the cases of some transports; with `only`, the named cases, and the first and last of their transports.

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
    return tuple(
        case for case in cases if case.name in only or (case.transport in needed and (case.is_first or case.is_last))
    )


def is_here(reactor: Reactor, address: Address) -> bool:
    """Whether an address is this machine's own, so that no network is between us and the server."""

    def may_bind(host: str) -> bool:
        try:
            open_udp(reactor, (host, 0, *address[2:]), DatagramProtocol()).close()
        except OSError:
            return False
        return True

    host = str(address[0])
    return may_bind(host) and not may_bind(NOBODY[":" in host])


class Place:
    """What is known about the server at one address."""

    __slots__ = ("deadline_s", "host", "run", "stopped", "works")

    def __init__(self, run: Run) -> None:
        self.run, self.host = run, str(run.target[0])
        self.works: list[str] = []  # transports that answered correctly
        self.stopped: dict[str, str] = {}  # transports that no longer answer, and why
        self.deadline_s = run.reactor.now() + run.timeout_s * run.effort.patience


class Checker:
    """One run on a loop. Calls `done(report)` once, at the end, and `progress` before and after each run of a case.

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
        progress: Progress = lambda case, address, finding: None,
        effort: Effort = NORMAL,
        seed: int = 0,
    ) -> None:
        self._reactor, self._host, self._addresses = reactor, host, tuple(addresses)
        self._cases, self._timeout_s, self._effort, self._seed = tuple(cases), timeout_s, effort, seed
        self._done, self._progress = done, progress
        self._findings: dict[Key, Finding] = {}
        self._queue: list[tuple[int, Place, Case]] = []
        self._places: list[Place] = []
        self._idle: list[Session] = []
        self._listening: list[tuple[Case, str, UdpClient]] = []  # to late answers
        self._is_ending = False

    def start(self) -> None:
        """Run the cases, starting in the next turn."""
        for address in self._addresses:
            here = is_here(self._reactor, address)
            run = Run(self._reactor, address, here, self._timeout_s, self._effort, self._seed)
            self._places.append(Place(run))
        order = random.Random(self._seed)  # noqa: S311 - named in the report
        usual = [case for case in self._cases if not (case.is_last or case.is_idle)]
        self._queue = [(1, place, case) for place in self._places for case in usual]
        for number in range(2, self._effort.rounds + 1):
            again = [(number, place, case) for place in self._places for case in usual if case.required]
            order.shuffle(again)
            self._queue += again
        self._reactor.call_soon(self._next)

    def _next(self) -> None:
        while self._queue:
            number, place, case = self._queue.pop(0)
            if number == 2 and not self._idle:
                self._start_idle()
            if not self._is_wanted(number, place, case):
                continue
            self._progress(case, place.host, None)
            if self._reactor.now() >= place.deadline_s:
                self._found(Finding(case, place.host, Verdict.UNKNOWN, NO_TIME))
                continue
            Session(place.run, case, number, functools.partial(self._over, place)).start()
            return
        self._end()

    def _is_wanted(self, number: int, place: Place, case: Case) -> bool:
        if number > 1 and case.transport not in place.works:
            return False
        if place.stopped.get(case.transport):
            if (place.host, case.name) not in self._findings:
                text = f"not tried: the server stopped working {place.stopped[case.transport]}"
                self._found(Finding(case, place.host, Verdict.UNKNOWN, text))
            return False
        if number == 1 and not case.is_first:
            first = self._findings.get((place.host, f"{case.transport}-answers"))
            return first is None or not _is_absent(first)
        earlier = self._findings.get((place.host, case.name))
        return earlier is None or earlier.verdict is Verdict.PASS

    def _over(self, place: Place, finding: Finding, clients: list[UdpClient]) -> None:
        self._listening += [(finding.case, place.host, client) for client in clients]
        self._found(finding)
        case = finding.case
        if case.is_first and finding.verdict is Verdict.PASS and case.transport not in place.works:
            place.works.append(case.transport)
        if finding.verdict is Verdict.PASS or _is_absent(finding):
            self._reactor.call_soon(self._next)
        else:
            self._ask_alive(place, [*place.works], f"since {case.name}", self._next)

    def _found(self, finding: Finding) -> None:
        key = finding.address, finding.case.name
        if key not in self._findings or self._findings[key].verdict is Verdict.PASS:
            self._findings[key] = finding
        self._progress(finding.case, finding.address, finding)

    # ------------------------------------------------------------ is it alive?

    def _ask_alive(self, place: Place, transports: list[str], since: str, then: Callable[[], object]) -> None:
        """Ask whether transports that worked still do, and go on with `then`."""
        transports = [transport for transport in transports if transport not in place.stopped]
        if not transports:
            self._reactor.call_soon(then)
            return
        transport, *others = transports
        (case,) = (case for case in CASES if case.is_last and case.transport == transport)

        def over(finding: Finding, clients: list[UdpClient]) -> None:
            self._listening += [(case, place.host, client) for client in clients]
            if finding.verdict is not Verdict.PASS:
                self._stopped(place, finding, since)
            elif self._is_ending:
                self._found(finding)
            self._ask_alive(place, others, since, then)

        if self._is_ending:
            self._progress(case, place.host, None)
        Session(place.run, case, self._effort.rounds + 1, over).start()

    def _stopped(self, place: Place, finding: Finding, since: str) -> None:
        """Record that a transport which worked no longer answers, or answers wrongly."""
        if finding.verdict is Verdict.FAIL:
            place.stopped[finding.case.transport] = since
            finding = finding._replace(seen=f"{since}: {finding.seen}", fault=Fault.STOPPED)
        self._found(finding)

    # ------------------------------------------------------------ idle clients, and the end

    def _start_idle(self) -> None:
        """Connect the clients that say nothing until the end, if nothing is wrong with TCP so far."""
        for place in self._places:
            findings = [
                f for (host, _), f in self._findings.items() if host == place.host and f.case.transport == "tcp"
            ]
            if "tcp" in place.works and not any(f.counts_against for f in findings):
                for case in self._cases:
                    if case.is_idle:
                        session = Session(place.run, case, 1, self._idle_over)
                        self._idle.append(session)
                        session.start()

    def _idle_over(self, finding: Finding, clients: list[UdpClient]) -> None:
        self._found(finding)

    def _end(self) -> None:
        """Wait for late answers."""
        self._reactor.call_later(self._effort.late_s, self._late)

    def _late(self) -> None:
        for session in self._idle:
            session.end()
        self._idle = [session for session in self._idle if session.is_running]
        if self._idle:
            self._reactor.call_later(0.0, self._late)
            return
        self._is_ending = True
        self._ask_all(self._places)

    def _ask_all(self, places: Sequence[Place]) -> None:
        if not places:
            self._report()
            return
        place, *others = places
        wanted = [case.transport for case in self._cases if case.is_last and case.transport in place.works]
        self._ask_alive(place, wanted, "at the end", lambda: self._ask_all(others))

    def _report(self) -> None:
        for case, host, client in self._listening:
            if client.failure is not None:
                self._found(Finding(case, host, Verdict.FAIL, f"later: {client.failure}", client.failure.fault))
            client.close()
        order = {case.name: number for number, case in enumerate(CASES)}
        hosts = [place.host for place in self._places]
        findings = sorted(self._findings.values(), key=lambda f: (hosts.index(f.address), order[f.case.name]))
        whole = self._cases == CASES and not left_out(self._effort)
        left = left_out(self._effort)
        port = int(self._addresses[0][1])
        self._done(Report(self._host, port, tuple(findings), whole, self._seed, left))


def _is_absent(finding: Finding) -> bool:
    return finding.case.is_first and finding.fault in NO_ECHO
