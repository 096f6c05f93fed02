"""The settings of a systemd unit, and the system calls that its filter allows."""

from __future__ import annotations

import functools
import pathlib
import shutil
import subprocess
from collections.abc import Sequence

import pytest

from tests.support.basics import PROJECT

DEPLOY = PROJECT / "echo7" / "deploy"
SERVICE, SOCKET, OWN_SOCKETS = DEPLOY / "echo7.service", DEPLOY / "echo7.socket", DEPLOY / "own-sockets.conf"
OLDEST_SYSTEMD = 252  # knows every setting of ours

Settings = dict[str, list[str]]  # by name, every valid value; "" removes earlier values


def settings(*paths: pathlib.Path) -> Settings:
    """Return the settings of a unit with its drop-ins, without sections: no name is in two of them."""
    found: Settings = {}
    for path in paths:
        for line in path.read_text().splitlines():
            name, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                found[name] = [*found.get(name, []), value] if value else []
    return found


def words(unit: Settings, name: str) -> list[str]:
    """Return all words of a setting that is a list."""
    return [word for value in unit.get(name, []) for word in value.split()]


def last(unit: Settings, name: str) -> str:
    """Return the last value of a setting, which is the valid one."""
    return unit[name][-1]


def analyze(*arguments: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze, which needs no running systemd. Skip the test if it is missing or too old."""
    need_systemd()
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False)


@functools.cache
def need_systemd() -> None:
    """Skip the test without a systemd-analyze that knows the settings of our units."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    told = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True).stdout
    if int("".join(c for c in told.split()[1] if c.isdigit() or c == ".").split(".")[0]) < OLDEST_SYSTEMD:
        pytest.skip(f"systemd {told.split()[1]} lacks settings of the units")


def allowed_calls(unit: Settings) -> set[str]:
    """Return the system calls that SystemCallFilter= allows. Its first line makes it a list of allowed calls."""
    allowed = set(expand(["@default"]))  # systemd.exec(5): always
    lines = unit["SystemCallFilter"]
    assert not lines[0].startswith("~")
    for line in lines:
        if line.startswith("~"):
            allowed -= expand(line[1:].split())
        else:
            allowed |= expand(line.split())
    return allowed


def expand(names: Sequence[str]) -> set[str]:
    """Replace each @group by its system calls."""
    found: set[str] = set()
    for name in names:
        found |= expand(group(name)) if name.startswith("@") else {name}
    return found


@functools.cache
def group(name: str) -> tuple[str, ...]:
    """Return the members of one of systemd's groups, which may be groups."""
    done = analyze("syscall-filter", name)
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()[1:]]
    return tuple(line for line in lines if line and not line.startswith("#"))
