"""The server's own steps are timed, each row, for this version and another."""

from __future__ import annotations

import sys

import pytest

from benchmarks import steps
from tests.support.basics import PROJECT

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the lean selector needs epoll(7)")


@pytest.mark.long
@pytest.mark.parametrize("name", steps.ROWS)
def test_every_row_is_timed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "MEASURED_S", 0.1)
    monkeypatch.setattr(steps, "WARM_UP_REPETITIONS", 0)
    assert all(0 < time_us < 1e6 for time_us in steps.times_us(name))


@pytest.mark.long
def test_two_versions_are_compared_row_by_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["steps", "datagrams-8", "--rounds", "1", "--before", str(PROJECT)])
    assert steps.main() == 0
    out, _ = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["row", "datagrams-8"]
    assert "ratio" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [(["calls", "tea"], "no such row: tea; choose from calls-1"), (["--before", "/dev"], "--before /dev: no version")],
)
def test_bad_arguments_are_one_line(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["steps", *words])
    with pytest.raises(SystemExit) as ended:
        steps.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
