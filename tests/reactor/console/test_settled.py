"""What a command's exit status says when its output can't be written."""

from __future__ import annotations

import errno
import sys

import pytest

from reactor.console import commandline
from reactor.lessons import __main__ as lessons
from reactor.sockets.errors import os_error


class FullDisk:
    """A stream whose bytes can't be written out."""

    def fileno(self) -> int:
        return 1

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        raise os_error(errno.ENOSPC)


def test_result_that_is_lost_changes_the_status_and_a_lost_message_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    given_up: list[int] = []
    monkeypatch.setattr(commandline, "give_up", given_up.append)
    monkeypatch.setattr(sys, "stderr", FullDisk())
    assert commandline.settled(0) == 0
    monkeypatch.setattr(sys, "stdout", FullDisk())
    assert commandline.settled(0) != 0


def test_lesson_without_the_files_that_it_needs_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(options: object) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/dev/null")

    monkeypatch.setattr(lessons, "run", run)
    assert lessons.main(["5"]) == 1
    assert "can't run it here: No such file or directory: /dev/null" in capsys.readouterr().err
