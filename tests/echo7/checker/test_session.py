"""Session: a story waits for an event or for time to pass, and always ends."""

from __future__ import annotations

import pytest

from echo7.checker import NORMAL, Case, Finding, Verdict
from echo7.checker.session import Run, Session
from echo7.checker.verdict import Story
from reactor import Reactor
from tests.support.loops import ManualClock, turn_idle

TARGET = ("127.0.0.1", 7)
TIMEOUT_S = 3.0


class Play:
    """One story in a session, with a clock moved by hand."""

    def __init__(self, reactor: Reactor, clock: ManualClock, story: Story) -> None:
        self.findings: list[Finding] = []
        self.reactor, self.clock = reactor, clock
        case = Case("tcp-story", "a test's", "RFC 862", story)
        run = Run(reactor, TARGET, True, TIMEOUT_S, NORMAL, 862)
        self.session = Session(run, case, 1, lambda finding, clients: self.findings.append(finding))
        self.session.start()

    def advance(self, delay_s: float) -> None:
        self.clock.advance(delay_s)
        turn_idle(self.reactor)


def test_news_steps_the_story_once_per_turn() -> None:
    looked: list[int] = []

    async def story(session: Session) -> str:
        assert await session.until(lambda: looked.append(0) or len(looked) == 3)  # type: ignore[func-returns-value]
        return "seen"

    clock = ManualClock()
    with Reactor(clock=clock) as reactor:
        play = Play(reactor, clock, story)
        turn_idle(reactor)
        assert len(looked) == 1
        play.session.news()
        play.session.news()
        turn_idle(reactor)
        assert len(looked) == 2
        play.session.news()
        turn_idle(reactor)
        assert [finding.seen for finding in play.findings] == ["seen"]


def test_wait_ends_when_nothing_moves_for_a_timeout() -> None:
    moved = [0]

    async def story(session: Session) -> str:
        assert not await session.until(bool, moving=lambda: moved[0])
        return f"gave up at {session.reactor.now():.0f}"

    clock = ManualClock()
    with Reactor(clock=clock) as reactor:
        start_s = clock()
        play = Play(reactor, clock, story)
        play.advance(0.9 * TIMEOUT_S)
        moved[0] += 1
        play.session.news()
        play.advance(0.9 * TIMEOUT_S)
        assert play.findings == []
        play.advance(TIMEOUT_S)
        assert [finding.seen for finding in play.findings] == [f"gave up at {start_s + 2.8 * TIMEOUT_S:.0f}"]


def test_case_ends_though_things_still_move() -> None:
    """Law: "every wait has a deadline", also with a server that sends a byte now and then."""
    moved = [0]

    async def story(session: Session) -> str:
        await session.until(bool, moving=lambda: moved[0])
        return "never"

    clock = ManualClock()
    with Reactor(clock=clock) as reactor:
        play = Play(reactor, clock, story)
        for _ in range(2 * NORMAL.case_patience):
            moved[0] += 1
            play.session.news()
            play.advance(0.6 * TIMEOUT_S)
        assert [finding.verdict for finding in play.findings] == [Verdict.UNKNOWN]
        assert play.findings[0].seen == "not done in 30 s, but still in progress"


def test_news_at_the_deadline_finds_the_story_over() -> None:
    """Both are queued for one turn: the timer ends the story, and the step after it does nothing."""

    async def story(session: Session) -> str:
        await session.pause(1.0)
        return "over"

    clock = ManualClock()
    with Reactor(clock=clock) as reactor:
        play = Play(reactor, clock, story)
        play.session.news()
        play.advance(1.0)
        play.session.news()
        turn_idle(reactor)
        assert [finding.seen for finding in play.findings] == ["over"]


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (OSError(24, "Too many open files"), "this machine cannot try: Too many open files"),
        (ZeroDivisionError(), "bug in the checker: ZeroDivisionError()"),
    ],
)
def test_error_on_this_machine_or_in_a_case_is_unknown(error: Exception, seen: str) -> None:
    async def story(session: Session) -> str:
        raise error

    clock = ManualClock()
    with Reactor(clock=clock) as reactor:
        (finding,) = Play(reactor, clock, story).findings
    assert (finding.verdict, finding.seen) == (Verdict.UNKNOWN, seen)
