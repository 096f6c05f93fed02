"""The manual page is made from the options; a changed option needs a new page."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess

import pytest

from echo7 import cli, serve
from tests import manpage
from tests.echo7.deploy.units import DEPLOY

TEXT = manpage.PAGE.read_text()


def test_manual_page_is_up_to_date() -> None:
    """Issue: "made from the argument parser …, committed and checked for drift by a test"."""
    pytest.importorskip("argparse_manpage", reason="argparse-manpage isn't installed: pip install -e '.[dev]'")
    assert manpage.page() == TEXT, "run python3 -m tests.manpage"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_of_every_command_is_in_the_manual_page(command: str) -> None:
    """A coarser check, without argparse-manpage."""
    part = TEXT.partition(f".SS \\fBecho7 {command}\\fR")[2].partition(".SS")[0]
    _, commands = cli.new_parser([command])
    written = re.findall(r"^  (-.+?)(?:  .*)?$", commands[command].format_help(), re.MULTILINE)
    options = {word for line in written for word in re.findall(r"(?<!\S)--?\w[\w-]*", line)} - {"-h", "--help"}
    assert len(options) >= 9
    assert not {option for option in options if f"\\fB{option}\\fR".replace("-", "\\-") not in part}


def test_every_example_is_accepted() -> None:
    """The page has examples for every command, and each can be copied and run."""
    section = TEXT.partition("\n.SH EXAMPLES\n")[2].partition("\n.SH ")[0].replace("\\-", "-").replace("\\(aq", "'")
    found = re.findall(r"^(?:sudo )?echo7 (.+?)(?:  .*| 2?>.*)?$", section, re.MULTILINE)
    assert len(found) >= 12
    extra = all(importlib.util.find_spec(name) for name in ("h11", "prometheus_client"))
    for example in [example for example in found if extra or "--metrics" not in example]:
        words = [str(DEPLOY / "echo7.toml") if word == "/etc/echo7.toml" else word for word in shlex.split(example)]
        options = cli.parse(words)
        assert options.parser.prog == f"echo7 {words[0]}"
        if words[0] == "serve":
            serve.configure(options)


def test_manual_page_names_no_time_and_no_machine() -> None:
    """It is the same when written elsewhere."""
    assert re.match(r'\.TH ECHO7 "1" "" "echo7 [\d.]+" "User Commands"\n', TEXT)
    assert "/root" not in TEXT
    assert "/tmp" not in TEXT


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff here")
def test_manual_page_has_no_groff_warnings() -> None:
    command = ["groff", "-man", "-Tutf8", "-ww", "-z", str(manpage.PAGE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
