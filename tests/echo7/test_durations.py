"""Times that no clock has: every option and every key of the file that takes a duration refuses them in one line."""

from __future__ import annotations

import contextlib
import io
import pathlib
import re

import pytest

from echo7 import cli

NEVER = ["inf", "-inf", "nan", "-1", "1e300", "1e999", "9" * 400, "", "soon"]
PLACES = {"serve": ["--check-config"], "check": ["127.0.0.1"], "ping": ["127.0.0.1"]}


def outcome(*words: str) -> tuple[int, str, str]:
    """Run the command in this process. Return its exit status, its output and its errors."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            status = cli.main(words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
    return status, out.getvalue(), errors.getvalue()


def durations(command: str) -> list[str]:
    """Return the options of a command whose help gives a unit of time."""
    _, page, _ = outcome(command, "--help")
    return sorted(set(re.findall(r"(--[a-z-]+) (?:SEC(?:ONDS)?|MILLISECONDS|MICROSECONDS)\b", page)))


OPTIONS = [(command, flag) for command in PLACES for flag in durations(command)]
KEYS = [flag[2:] for command, flag in OPTIONS if command == "serve"]


def test_the_options_are_found() -> None:
    assert {"--idle-timeout", "--drain-timeout", "--busy-poll", "--slow-callback"} <= {flag for _, flag in OPTIONS}
    assert {("check", "--timeout"), ("ping", "--timeout"), ("ping", "--interval")} <= set(OPTIONS)


@pytest.mark.parametrize("text", NEVER, ids=lambda text: text[:5] or "empty")
@pytest.mark.parametrize(("command", "flag"), OPTIONS)
def test_time_that_never_comes_is_refused_in_one_line(command: str, flag: str, text: str) -> None:
    status, out, errors = outcome(command, *PLACES[command], f"{flag}={text}")
    assert (status, out) == (2, "")
    [line] = errors.splitlines()
    assert flag in line


@pytest.mark.parametrize("text", ["1e-10", "1e-320", "0.0", "-0.0"])
@pytest.mark.parametrize("flag", [f"--{key}" for key in KEYS])
def test_shortest_time_is_served_or_refused_in_one_line(flag: str, text: str) -> None:
    status, _, errors = outcome("serve", "--check-config", "--port", "0", "--host", "127.0.0.1", f"{flag}={text}")
    assert status in (0, 2)
    assert status == 0 or flag in errors
    assert len(errors.splitlines()) == (1 if status else 0)


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "-1", "1e300", "9" * 400, "-0.5", '"soon"', "[]", "true"])
@pytest.mark.parametrize("key", KEYS)
def test_time_that_never_comes_is_refused_in_the_file(key: str, text: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "echo7.toml"
    path.write_text(f"{key} = {text}\n")
    status, out, errors = outcome("serve", "--check-config", "--config", str(path))
    assert (status, out) == (2, "")
    [line] = errors.splitlines()
    assert key in line
    assert "unknown" not in line


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "1e300", "1e999"])
@pytest.mark.parametrize("limit", ["rtt", "p99", "jitter"])
def test_limit_that_no_clock_has_is_refused(limit: str, text: str) -> None:
    status, out, errors = outcome("ping", "127.0.0.1", "-c", "1", "--warn", f"{limit}={text}ms")
    assert (status, out) == (2, "")
    assert limit in errors
