"""Cases, findings, the report on a server, and its score. Pure data; imports nothing of ours.

Law: a verdict says no more than was seen, and a failure says what was seen. A case that this machine can't try is
"can't tell", which never counts against the server.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Coroutine
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

    text: str  # ×1, ×2, ×4, ×8 or ω
    factor: int | None  # None for ω: worthless
    reasons: tuple[str, ...]


class Report(NamedTuple):
    """All findings about one server."""

    host: str
    port: int
    findings: tuple[Finding, ...]
    whole: bool  # every case was tried, over both transports

    @property
    def answered(self) -> bool:
        """Whether anything answered."""
        return not all(finding.fault in ABSENT for finding in self.findings)

    @property
    def status(self) -> int:
        """The exit status: 0 all required cases pass, 1 some fail, 3 nothing answered."""
        if not self.answered:
            return 3
        return int(any(finding.counts_against for finding in self.findings))

    @property
    def score(self) -> Score | None:
        """The score; None if nothing answered or only some cases were tried."""
        return score(self.port, self.findings) if self.whole and self.answered else None


def score(port: int, findings: tuple[Finding, ...]) -> Score:
    """Score a server by the findings at all its addresses. Cases that aren't required change nothing."""
    faults = {finding.fault for finding in findings if finding.case.required}
    works = [
        transport
        for transport in TRANSPORTS
        if any(f.case.transport == transport and f.case.is_first and f.fault not in NO_ECHO for f in findings)
    ]
    if Fault.EXCESS in faults:
        return Score("ω", None, ("it sends more than it received",))
    if not works:
        return Score("ω", None, ("it doesn't echo",))
    factor, reasons = 1, []
    if len(works) == 1:
        factor *= 2
        reasons.append(f"only {works[0].upper()} works")
    if port != ECHO_PORT:
        reasons.append(f"the port is {port}, not {ECHO_PORT}")
    if Fault.LOSSY in faults:
        reasons.append("bytes are dropped or changed")
    if port != ECHO_PORT or Fault.LOSSY in faults:
        factor *= 4
    return Score(f"×{factor}", factor, tuple(reasons))
