"""What the README and the pages promise about their programs is so. `test_docs.py` runs every page."""

from __future__ import annotations

import pathlib
import re
import socket
import threading
from typing import Any

import pytest

import reactor
from echo7.probe import Harm, Word
from reactor import Reactor
from tests.support.basics import PATIENCE_S, PROJECT
from tests.support.clients import echo_and_close
from tests.support.echo import EchoThread

README = PROJECT / "README.md"
FIRST_PING = PROJECT / "echo7" / "docs" / "tutorials" / "first-ping.md"


def python_block(path: pathlib.Path, marker: str) -> str:
    """The one ```python block that contains `marker`."""
    blocks = [block for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.S) if marker in block]
    assert len(blocks) == 1
    return str(blocks[0])


def run_in_thread(code: str, names: dict[str, Any]) -> threading.Thread:
    thread = threading.Thread(target=exec, args=(compile(code, "README.md", "exec"), names), daemon=True)
    thread.start()
    return thread


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Catches the Reactor that README code makes, at the moment when it begins to run."""
    box: list[Reactor] = []
    running = threading.Event()
    run = Reactor.run

    def noticed_run(self: Reactor) -> None:
        box.append(self)
        running.set()
        run(self)

    monkeypatch.setattr(Reactor, "run", noticed_run)

    def wait() -> Reactor:
        assert running.wait(PATIENCE_S)
        return box[0]

    return wait


def test_the_teachers_echo_server_on_reactor_alone_echoes(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    listeners: list[reactor.Listener] = []
    listen = reactor.listen_tcp
    monkeypatch.setattr(reactor, "listen_tcp", lambda *args: listeners.append(listen(*args)))
    code = python_block(README, "listen_tcp(loop").replace("7007", "0")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    thread = run_in_thread(code, {"__name__": "readme"})
    loop = started()
    data = bytes(range(256)) * 8192
    assert echo_and_close(socket.create_connection(listeners[0].address, PATIENCE_S), data) == data
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def simulated(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    return names


GUIDE = PROJECT / "reactor" / "testing" / "README.md"


def test_a_students_protocol_is_tested_in_fifteen_lines(capsys: pytest.CaptureFixture[str]) -> None:
    code = python_block(GUIDE, "def scenario")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    simulated(code)
    assert "runs=200" in capsys.readouterr().out


def test_the_bug_in_the_guide_is_found_with_the_words_that_it_shows() -> None:
    """Running the guide's example prints the seed, the script and the calls that the guide shows."""
    bug = python_block(GUIDE, "splitlines")
    code = python_block(GUIDE, "def scenario")
    right = code[code.index("class Shout") : code.index("def scenario")]
    with pytest.raises(AssertionError) as found:
        simulated(code.replace(right, bug))
    [shown] = re.findall(r"```text\n(.*?)```", GUIDE.read_text(), re.S)
    begin, end = shown.rstrip().split("    …\n")
    assert str(found.value).startswith(begin)
    assert end in str(found.value)


def test_ping_as_a_library_runs_as_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with EchoThread() as server:
        code = python_block(FIRST_PING, "from echo7 import ping").replace("7007", str(server.port))
        exec(compile(code, "first-ping.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.startswith("replies 0.0 Rtt(min_ns=")


def test_how_to_measure_a_path_explains_every_word_of_the_report() -> None:
    text = (PROJECT / "echo7/docs/howto/measure-a-path.md").read_text()
    for word in [*Word, *Harm]:
        assert word.value.replace("_", " ") in text
