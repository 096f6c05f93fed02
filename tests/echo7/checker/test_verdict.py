"""Verdict: from findings to a score and an exit status, without a server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7.checker import CASES, Case, Fault, Finding, Report, Verdict, table
from echo7.checker.verdict import ABSENT, score

BY_NAME = {case.name: case for case in CASES}
FINDINGS = st.builds(
    Finding,
    st.sampled_from(CASES),
    st.sampled_from(["192.0.2.1", "2001:db8::1"]),
    st.sampled_from(Verdict),
    st.just("seen"),
    st.none() | st.sampled_from(Fault),
)


def finding(name: str, verdict: Verdict = Verdict.PASS, fault: Fault | None = None) -> Finding:
    return Finding(BY_NAME[name], "192.0.2.1", verdict, "seen", fault)


def elsewhere(name: str, verdict: Verdict = Verdict.PASS, fault: Fault | None = None) -> Finding:
    return finding(name, verdict, fault)._replace(address="2001:db8::1")


BOTH = (finding("tcp-answers"), finding("udp-answers"))


@pytest.mark.parametrize(
    ("port", "findings", "text", "factor"),
    [
        (7, BOTH, "×1", 1),
        (7, BOTH[:1], "×2", 2),
        (7, BOTH[1:], "×2", 2),
        (8, BOTH, "×4", 4),
        (7, (*BOTH, finding("tcp-64k", Verdict.FAIL, Fault.LOSSY)), "×4", 4),
        (8, (*BOTH, finding("tcp-64k", Verdict.FAIL, Fault.LOSSY)), "×4", 4),
        (8, BOTH[:1], "×8", 8),
        (7, (BOTH[0], finding("tcp-64k", Verdict.FAIL, Fault.LOSSY)), "×8", 8),
        (7, (*BOTH, finding("tcp-many", Verdict.FAIL, Fault.CONDUCT)), "×4", 4),
        (7, (*BOTH, finding("tcp-many", Verdict.UNKNOWN)), "?", None),
        (7, (*BOTH, finding("tcp-alive", Verdict.FAIL, Fault.STOPPED)), "ω", None),
        (7, (*BOTH, elsewhere("tcp-answers", Verdict.UNSUPPORTED, Fault.REFUSED), elsewhere("udp-answers")), "×2", 2),
        (7, (*BOTH, elsewhere("tcp-answers", Verdict.UNKNOWN, Fault.UNREACHABLE)), "×1", 1),
        (7, (*BOTH, finding("udp-one-answer", Verdict.FAIL, Fault.EXCESS)), "ω", None),
        (7, (finding("tcp-answers", Verdict.FAIL, Fault.MUTE),), "ω", None),
        (7, (*BOTH, finding("tcp-urgent", Verdict.FAIL, Fault.LOSSY)), "×1", 1),
        (7, (*BOTH, finding("udp-loop-guard", Verdict.FAIL, Fault.CONDUCT)), "×1", 1),
    ],
)
def test_score_follows_the_rules_of_the_challenge(
    port: int, findings: tuple[Finding, ...], text: str, factor: int | None
) -> None:
    """ "×1, doubled if only TCP or only UDP works, quadrupled if the port isn't 7 or bytes are dropped or transformed
    (these stack: ×8), ω if invalid"; cases beyond what is required "don't change the multiplier"."""
    assert score(port, findings)[:2] == (text, factor)


@given(st.lists(FINDINGS, min_size=1).map(tuple), st.sampled_from([7, 8]))
def test_status_and_score_agree_with_the_findings(findings: tuple[Finding, ...], port: int) -> None:
    report = Report("host", port, findings, True)
    assert report.status in (0, 1, 3, 4)
    assert (report.status == 3) == all(f.fault in ABSENT for f in findings)
    if report.score is not None:
        assert report.score.factor in (1, 2, 4, 8, None)
        assert (report.score.factor == 1) == (report.score.reasons == ())
    assert Report("host", port, findings, False).score is None


def test_undecided_required_case_neither_passes_nor_fails_and_an_optional_one_is_ignored() -> None:
    report = Report(
        "host", 7, (*BOTH, finding("tcp-16m", Verdict.UNKNOWN), finding("tcp-urgent", Verdict.FAIL, Fault.LOSSY)), True
    )
    assert report.status == 4
    assert report.score is not None
    assert report.score.factor is None
    assert Report("host", 7, (*BOTH, finding("tcp-urgent", Verdict.FAIL, Fault.LOSSY)), True).status == 0


def test_every_case_has_a_promise_and_a_rule() -> None:
    assert len(BY_NAME) == len(CASES)
    for case in CASES:
        assert case.promise
        assert "RFC" in case.clause
        assert case.transport in ("tcp", "udp")
    assert {case.name for case in CASES if not case.required} == {"tcp-urgent", "udp-reply-address", "udp-loop-guard"}
    assert isinstance(CASES[0], Case)


def test_summary_names_a_failed_optional_case_once_for_all_addresses() -> None:
    loses = finding("tcp-urgent", Verdict.FAIL, Fault.LOSSY)
    lines = table.summary(Report("host", 7, (*BOTH, loses, loses._replace(address="2001:db8::1")), True))
    assert lines == [
        "4 cases: 2 pass, 2 fail, 0 not supported, 0 can't tell; all required cases pass",
        "failed, but not required: tcp-urgent",
        "payloads and order are from seed 0 (--seed 0 repeats them)",
        "score of the smallest-server challenge: bytes of source ×1",
    ]
