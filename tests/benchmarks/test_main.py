"""The command: its output and files, skipped servers, and bad arguments."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import build, page, servers
from benchmarks.measure import measure
from benchmarks.process import FailedError
from benchmarks.servers import BY_NAME, Server
from benchmarks.workloads import WORKLOADS, chosen

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the benchmarks need Linux"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="the load needs a C compiler as 'cc'"),
]
TINY = ["--rounds", "1", "--seconds", "0.1"]
LIAR = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=512)
for _ in range(2):  # the probe is told the truth
    client = listener.accept()[0]
    while data := client.recv(65536):
        client.sendall(data if data == b"are you there?" else data[::-1])
"""


@pytest.fixture
def add_server(monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], None]:
    def add(server: Server) -> None:
        monkeypatch.setattr("benchmarks.__main__.SERVERS", (*servers.SERVERS, server))
        monkeypatch.setitem(BY_NAME, server.name, server)

    return add


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the one line that refuses these arguments."""
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    return str(line)


@pytest.mark.long
def test_short_run_prints_and_writes_every_figure(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.measure.FAIR_S", 0.2)
    names = ["pingpong-1k", "bulk-1-64k", "udp-512", "fairness", "cold-start"]
    path, results = tmp_path / "found.json", tmp_path / "RESULTS.md"
    results.write_text(f"before\n{page.BEGIN}\n{page.END}\nafter\n")
    words = [*names, *TINY, "--peers", "c-epoll", "--json", str(path), "--page", str(results)]
    assert command.main(words) == 0
    out, err = capsys.readouterr()
    found = json.loads(path.read_text())
    assert "failed" not in out
    for name in names:
        assert f"\n{name}: " in out
        assert f"{name}: round 1/1: c-epoll" in err
        check_record(found["workloads"][name])
    assert found["machine"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(found["versions"]) == {"echo7", "c-epoll"}
    assert found["settings"] == {"rounds": 1, "seconds": 0.1}
    assert found["skipped"] == []
    written = results.read_text()
    assert f"    python3 -m benchmarks {' '.join(words)}\n" in written
    assert all(f"| {record['title']} | " in written for record in found["workloads"].values())


def check_record(found: dict[str, Any]) -> None:
    assert set(found["rounds"]) == {"echo7", "c-epoll"}
    key = next(iter(found["figures"]))
    for name, rounds in found["rounds"].items():
        [figures] = rounds
        assert figures[key] >= 0
        assert found["summary"][name][key]["median"] == figures[key]
    assert set(found["ratios"]) == {"c-epoll"}
    assert found["failed"] == {}


@pytest.mark.long
def test_memory_and_timers_are_measured() -> None:
    [idle] = [replace(workload, count=300) for workload in chosen(["idle-10k"])]
    assert "bytes_per_connection" in measure(BY_NAME["echo7"], idle, 0.1)
    for workload in chosen(["timers"]):
        small = replace(workload, count=2_000)
        assert measure(BY_NAME["echo7"], small, 0.1)["us_per_timer"] > 0
        assert measure(BY_NAME["asyncio"], small, 0.1)["us_per_timer"] > 0


def test_process_that_does_nothing_is_the_baseline_of_cold_starts() -> None:
    [cold] = chosen(["cold-start"])
    assert measure(BY_NAME["python-pass"], cold, 0.1)["start_ms"] > 0


def test_server_that_changes_bytes_is_named_and_others_are_measured(
    add_server: Callable[[Server], None], capsys: pytest.CaptureFixture[str]
) -> None:
    add_server(Server("liar", "a liar", {"tcp": ("{python}", "-c", LIAR, "{port}")}))
    assert command.main(["pingpong-1k", *TINY, "--peers", "liar,c-epoll"]) == 0
    out, _ = capsys.readouterr()
    assert "liar failed: load: a byte was changed" in out
    assert [line.split()[0] for line in out.splitlines() if "c-epoll" in line] == ["c-epoll"]


def test_server_that_exits_at_once_is_reported_with_its_last_line() -> None:
    mute = Server("mute", "mute", {"tcp": ("{python}", "-c", "raise SystemExit('no luck today')")})
    with pytest.raises(FailedError, match="didn't answer: no luck today"):
        measure(mute, WORKLOADS[0], 0.1)


def test_failure_of_echo7_is_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> Any:
        raise FailedError("load: a byte was changed")

    monkeypatch.setattr(command, "measure", fail)
    assert command.main(["rtt", *TINY, "--peers", ""]) == 1
    assert "echo7 failed: load: a byte was changed" in capsys.readouterr().out


def test_missing_peers_are_skipped_with_one_line_each(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for tool in ("cc", "as", "ld"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command.main(["rtt", *TINY, "--peers", "go,go-copy,node,racket,socat,xinetd,trio"]) == 0
    out, err = capsys.readouterr()
    skipped = [line for line in err.splitlines() if line.startswith("skipped ")]
    named = [line.split()[1].rstrip(":") for line in skipped]
    assert named == ["go", "go-copy", "node", "trio", "racket", "socat", "xinetd"]
    assert "skipped node: needs 'node', which isn't on the PATH" in skipped
    assert "skipped trio: the package 'trio' isn't installed; pip install 'echo7[bench]'" in skipped
    assert "node" not in out


def test_server_is_skipped_when_it_cannot_hold_the_connections(capsys: pytest.CaptureFixture[str]) -> None:
    reason = command.why_left_out(BY_NAME["threads"], chosen(["idle-19k"])[0], 1_000_000)
    assert reason == "19,000 connections are too many: a thread for each connection"
    assert command.why_left_out(BY_NAME["echo7"], chosen(["idle-19k"])[0], 1_000_000) is None
    assert "raise 'ulimit -Hn'" in str(command.why_left_out(BY_NAME["echo7"], chosen(["idle-19k"])[0], 1024))
    assert command.why_left_out(BY_NAME["threads"], chosen(["timers-cancel"])[0], 1024) is None
    assert command.why_left_out(BY_NAME["threads"], chosen(["udp-64"])[0], 1024) is None


def test_program_that_does_not_compile_costs_one_line(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong.c").write_text("this is no C\n")
    monkeypatch.setattr(build, "HERE", tmp_path)
    with pytest.raises(build.BuildError, match=r"^cc .* failed: [^\n]+$"):
        build.Build("wrong.c", ("cc", "-o", "wrong", "wrong.c"), "wrong").make()


def test_cache_that_other_users_can_write_to_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    build.cache_folder().chmod(0o777)
    with pytest.raises(build.BuildError, match="other users can write to"):
        build.cache_folder()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["sing"], "there is no workload 'sing'; --list names them all"),
        (["--peers", "nobody"], "argument --peers: there is no server 'nobody'; --list names them all"),
        (["--rounds", "0"], "argument --rounds: '0' is not a whole number of at least 1"),
        (["--rounds", "many"], "'many' is not a whole number"),
        (["--seconds", "nan"], "'nan' is not a number of seconds"),
        (["--seconds", "-1"], "'-1' is not a number of seconds"),
        (["--json", "/nowhere/a.json"], "cannot write /nowhere/a.json: No such file or directory; choose another path"),
        (["--loud"], "unrecognized arguments: --loud"),
    ],
)
def test_bad_arguments_cost_one_line(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, *words)
    assert line.startswith("python3 -m benchmarks: ")
    assert reason in line


def test_missing_compiler_costs_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    assert "install gcc or clang as 'cc'" in refused(capsys, "rtt")


def test_plot_without_matplotlib_costs_one_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = refused(capsys, "rtt", "--plot", str(tmp_path))
    assert "--plot needs matplotlib, which isn't installed; pip install 'echo7[bench]'" in line


def test_list_names_every_workload_and_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    out = capsys.readouterr().out
    names = [workload.name for workload in WORKLOADS] + [server.name for server in servers.SERVERS]
    assert all(f"  {name} " in out for name in names)


@pytest.mark.long
def test_charts_of_measured_workloads_are_drawn(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib", reason="charts need matplotlib")
    from benchmarks.plot import draw_all
    from benchmarks.results import Results

    results = Results(["echo7", "go", "node"])
    for number in (1.0, 2.0, 3.0):
        results.add("echo7", {"cpu_us": number, "per_second": number})
        results.add("go", {"cpu_us": 2 * number, "per_second": 1000 * number})
    results.fail("node", "didn't answer")
    shown = chosen(["pingpong-1k", "shape"])
    draw_all(tmp_path, shown, {workload.name: results for workload in shown})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "pingpong-1k.png", "pingpong-1k.svg", "shape.png", "shape.svg"
    ]  # fmt: skip
