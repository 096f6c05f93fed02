"""Cases, findings, the report on a server, and its score. Pure data; imports nothing of ours.

Law: a verdict says no more than was seen, and a failure says what was seen. What this machine can't try, or a time-out
cut short, is "can't tell": it doesn't count against the server, nor for it. Only a server that passed every required
case scores ×1.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

ECHO_PORT = 7
TRANSPORTS = ("tcp", "udp")


class Verdict(enum.Enum):
    """The outcome of one case at one address."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    UNSUPPORTED = "not supported"
    UNKNOWN = "can't tell"


class Fault(enum.Enum):
    """A kind of wrong behaviour. The score depends on it."""

    EXCESS = "sends more than it received"
    LOSSY = "drops or changes bytes"
    CONDUCT = "returns every byte, but not as promised"
    MUTE = "takes bytes and echoes none"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed out"
    STOPPED = "stopped working"


ABSENT = (Fault.REFUSED, Fault.UNREACHABLE, Fault.TIMED_OUT)
NO_ECHO = (*ABSENT, Fault.MUTE)  # nothing to check


class Failure(Exception):
    """A case has failed. `fault` is the kind; the text says what was seen."""

    def __init__(self, fault: Fault, seen: str) -> None:
        super().__init__(seen)
        self.fault = fault


class Undecided(Exception):
    """A case can't be decided from here. The text says why."""


# given a session.Session, which imports this module
Story = Callable[[Any], Coroutine[Any, Any, str]]


class Case(NamedTuple):
    """One question to a server. `story` asks it and returns what was seen, or raises Failure or Undecided."""

    name: str  # begins with the transport
    promise: str
    clause: str  # the rule behind it
    story: Story
    required: bool = True  # False: "beyond"; only reported

    @property
    def transport(self) -> str:
        """Return `tcp` or `udp`."""
        return self.name.partition("-")[0]

    @property
    def is_first(self) -> bool:
        """Whether the case asks if there is a server. The other cases of its transport depend on it."""
        return self.name.endswith("-answers")

    @property
    def is_last(self) -> bool:
        """Whether the case asks, at the end, if the server still works."""
        return self.name.endswith("-alive")

    @property
    def is_idle(self) -> bool:
        """Whether the case waits beside others until the end."""
        return self.name.endswith("-idle")


class Finding(NamedTuple):
    """The result of one case at one address."""

    case: Case
    address: str  # numeric
    verdict: Verdict
    seen: str
    fault: Fault | None = None

    @property
    def counts_against(self) -> bool:
        """Whether a required case was decided and not passed."""
        return self.case.required and self.verdict in (Verdict.FAIL, Verdict.UNSUPPORTED)


class Score(NamedTuple):
    """The multiplier of the smallest-server challenge: bytes of source × multiplier."""

    text: str  # ×1, ×2, ×4, ×8, ω, or ? if a required case couldn't be decided
    factor: int | None  # None for ω (worthless) and for ?
    reasons: tuple[str, ...]


class Report(NamedTuple):
    """All findings about one server."""

    host: str
    port: int
    findings: tuple[Finding, ...]
    whole: bool  # every case was tried with at least the normal effort, over both transports
    seed: int = 0  # of the payloads and of the order
    left_out: str = ""  # what a smaller effort left out

    @property
    def answered(self) -> bool:
        """Whether anything answered."""
        return not all(finding.fault in ABSENT for finding in self.findings)

    @property
    def status(self) -> int:
        """The exit status: 0 all required cases pass, 1 some fail, 3 nothing answered, 4 some can't be decided."""
        if not self.answered:
            return 3
        if any(finding.counts_against for finding in self.findings):
            return 1
        return 4 if undecided(self.findings) else 0

    @property
    def score(self) -> Score | None:
        """The score; None if nothing answered or only some cases were tried."""
        return score(self.port, self.findings) if self.whole and self.answered else None


def undecided(findings: tuple[Finding, ...]) -> tuple[str, ...]:
    """Return the names of required cases that couldn't be decided. An address out of this machine's reach has none."""
    reached = {finding.address for finding in findings if finding.fault is not Fault.UNREACHABLE}
    names = [f.case.name for f in findings if f.case.required and f.verdict is Verdict.UNKNOWN and f.address in reached]
    return tuple(dict.fromkeys(names))


def score(port: int, findings: tuple[Finding, ...]) -> Score:
    """Score a server by the findings at all its addresses. Cases that aren't required change nothing."""
    required = [finding for finding in findings if finding.case.required]
    works = working(required)
    if any(finding.fault is Fault.EXCESS for finding in required):
        return Score("ω", None, ("it sends more than it received",))
    if stopped := next((f.seen for f in required if f.fault is Fault.STOPPED), ""):
        return Score("ω", None, (f"it stopped working: {stopped}",))
    if not works:
        return Score("ω", None, ("it doesn't echo",))
    if unknown := undecided(findings):
        return Score("?", None, (f"not decided: {', '.join(unknown)}",))
    factor, reasons = 1, []
    if missing := [where for where in _asked(required) if where not in works]:
        factor *= 2
        alone = {transport for _, transport in works}
        some = f"no answer over {', '.join(f'{transport.upper()} at {host}' for host, transport in missing)}"
        reasons.append(f"only {works[0][1].upper()} works" if len(alone) == 1 else some)
    if port != ECHO_PORT:
        reasons.append(f"the port is {port}, not {ECHO_PORT}")
    wrong = _wrong(required)
    if wrong:
        reasons.append(wrong)
    if port != ECHO_PORT or wrong:
        factor *= 4
    return Score(f"×{factor}", factor, tuple(reasons))


def working(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    """Return the (address, transport) pairs that echo."""
    return [
        (f.address, f.case.transport)
        for f in findings
        if f.case.is_first and f.fault not in NO_ECHO and f.verdict is not Verdict.UNSUPPORTED
    ]


def _asked(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    # an address that this machine can't reach at all says nothing about the server
    reached = dict.fromkeys(f.address for f in findings if f.fault is not Fault.UNREACHABLE)
    return [(host, transport) for host in reached for transport in TRANSPORTS]


def _wrong(findings: Sequence[Finding]) -> str:
    failures = [f for f in findings if f.verdict is Verdict.FAIL and not (f.case.is_first and f.fault in NO_ECHO)]
    if any(finding.fault is Fault.LOSSY for finding in failures):
        return "bytes are dropped or changed"
    return f"it fails {', '.join(dict.fromkeys(f.case.name for f in failures))}" if failures else ""
