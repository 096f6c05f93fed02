"""Golf and the table of known servers: each program is checked alone before it gets a score or a row."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest

from benchmarks import alone, judged
from benchmarks.golf import __main__ as golf


def may_be_alone() -> bool:
    try:
        return alone.namespace() != ()
    except alone.AloneError:
        return False


NAMESPACE = pytest.mark.skipif(not may_be_alone(), reason="cannot make a network namespace")


@pytest.mark.long
@NAMESPACE
@pytest.mark.parametrize(("entry", "most_bytes"), [("ours.py", 173), ("both.py", 176), ("node.js", 147)])
def test_our_golf_entry_is_short_and_scores_times_1(entry: str, most_bytes: int) -> None:
    """Issue: "a Python entry of 173 bytes … and one of 176 for both families", TCP and UDP, every byte kept."""
    if entry.endswith(".js") and shutil.which("node") is None:
        pytest.skip("node isn't installed")
    card = golf.card(alone.namespace(), golf.ENTRIES / entry)
    assert card.multiplier == "×1", card.remarks
    assert card.size_bytes <= most_bytes
    assert card.total == card.size_bytes


@pytest.mark.long
@NAMESPACE
def test_entry_for_both_families_serves_both() -> None:
    """In a namespace of its own, because the port is 7."""
    code = """if True:
        import sys
        from benchmarks.alone import set_up_loopback, started
        from echo7.checker import QUICK, check
        set_up_loopback()
        with started("10.7.7.2", [sys.executable, sys.argv[1]]):
            print([check(host, 7, effort=QUICK).status for host in ("127.0.0.1", "::1")])
    """
    command = [*alone.namespace(), sys.executable, "-c", code, str(golf.ENTRIES / "both.py")]
    done = subprocess.run(command, cwd=alone.PROJECT, capture_output=True, text=True, check=False)
    assert done.stdout == "[0, 0]\n", done.stderr


@NAMESPACE
def test_program_that_serves_nothing_is_not_scored(tmp_path: pathlib.Path) -> None:
    program = tmp_path / "broken.py"
    program.write_text("raise SystemExit('a bug of mine')")
    card = golf.card(alone.namespace(), program)
    assert (card.multiplier, card.total) == ("", None)
    assert card.remarks == "not checked: it doesn't answer: a bug of mine"


@pytest.mark.long
@NAMESPACE
def test_udp_only_program_scores_double(tmp_path: pathlib.Path) -> None:
    program = tmp_path / "udp.py"
    program.write_text("from socket import*\nu=socket(2,2)\nu.bind(('',7))\nwhile 1:u.sendto(*u.recvfrom(9**6))")
    card = golf.card(alone.namespace(), program)
    assert card.multiplier == "×2"
    assert card.total == 2 * card.size_bytes
    assert "only UDP works; " in card.remarks
    assert "not supported: tcp-answers" in card.remarks


def test_table_is_sorted_from_best_to_omega() -> None:
    cards = [
        golf.Card("undecided.py", 20, "?", None, "not decided: tcp-many"),
        golf.Card("omega.py", 10, "ω", None, "it doesn't echo"),
        golf.Card("long.py", 300, "×1", 300, ""),
        golf.Card("short.py", 100, "×2", 200, "only TCP works"),
        golf.Card("unchecked.rkt", 5, "", None, "not checked: needs 'racket', which isn't on the PATH"),
    ]
    lines = golf.markdown(cards).splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == [
        "short.py", "long.py", "unchecked.rkt", "omega.py", "undecided.py",
    ]  # fmt: skip
    assert lines[2].startswith("| `unchecked.rkt` | 5 | ? | ? |")
    assert lines[3].startswith("| `omega.py` | 10 | ω | ω |")
    assert lines[4].startswith("| `undecided.py` | 20 | ? | ? |")


@pytest.mark.parametrize(("file", "said"), [("nothing.py", "no such file"), ("README.md", "must end with .py")])
def test_file_that_cannot_be_run_costs_one_line(file: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        golf.main([file])
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_without_namespace_and_root_one_line_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(alone, "NAMESPACES", (("false",), ("no-such-program",)))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert golf.main([]) == 1
    assert judged.main([]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("cannot make a network namespace" in line for line in lines)


def test_root_without_namespaces_uses_its_own_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "NAMESPACES", ())
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert alone.namespace() == ()


@pytest.mark.parametrize(
    ("arguments", "said"), [(["nobody"], "there is no server 'nobody'"), (["--program", "xinetd"], "has no '='")]
)
def test_unknown_server_costs_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        judged.main(arguments)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.long
@NAMESPACE
def test_echo7_passes_every_case_in_the_table_of_servers(capsys: pytest.CaptureFixture[str]) -> None:
    """On a wildcard, checked at the second address: the only row of the table in RESULTS.md without a "no"."""
    assert judged.main(["echo7"]) == 0
    row = capsys.readouterr().out.splitlines()[2]
    assert row == "| echo7 | ×1 | 29/29 | 13/13 | yes | yes | yes |  |"


def test_server_that_is_not_installed_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def missing(subject: judged.Subject) -> str:
        with pytest.raises(alone.AloneError) as reason:
            judged.find(subject, {})
        return str(reason.value)

    assert "no-such-inetd" in missing(judged.Subject("x", "", "no-such-inetd"))
    assert "no_such_package" in missing(judged.Subject("x", "", package="no_such_package"))
    assert judged.find(judged.Subject("x", "", "no-such-inetd"), {"x": "/bin/true"}) == "/bin/true"
    assert judged.find(judged.Subject("x", ""), {}) == ""
    assert list(judged.judge_all((), [], {})) == []


def test_row_counts_passes_and_names_failures() -> None:
    def finding(case: str, verdict: str, required: bool = True) -> dict[str, Any]:
        return {"case": case, "verdict": verdict, "required": required, "transport": case[:3]}

    document = {
        "score": {"text": "×4"},
        "findings": [
            finding("tcp-1", "pass"), finding("tcp-64k", "fail"), finding("udp-1", "can't tell"),
            finding("tcp-urgent", "fail", False), finding("udp-reply-address", "can't tell", False),
        ],
    }  # fmt: skip
    row = judged.markdown(iter([(judged.Subject("x", ""), document)])).splitlines()[2]
    assert row == "| x | ×4 | 1/2 | 0/1 | no | ? | - | tcp-64k, udp-1 |"
