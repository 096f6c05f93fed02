"""The laws of the house that a program can check."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

import pytest

from echo7.cli import COMMANDS
from reactor.lessons.staircase import LESSONS
from tests.support.basics import PROJECT

PACKAGES = ("reactor", "echo7")
CHAPTERS = "loop timers buffer connection listener connector datagram signals".split()
SIMPLE_PATH = ["doors", *CHAPTERS, "limits"]
SIMPLE_PATH_LINES = 1100
LONGEST_FUNCTION_LINES = 60
USUAL_FUNCTION_LINES = 25
PURE = (
    "reactor/timers.py",
    "reactor/buffer.py",
    "reactor/protocol.py",
    "reactor/limits.py",
    "reactor/player/tracefile.py",
    "echo7/guard.py",
    "echo7/echo.py",
    "echo7/batch.py",
    "echo7/access.py",
    "echo7/ports.py",
    "echo7/quiet.py",
    "echo7/rate.py",
    "echo7/sources.py",
    "echo7/idle.py",
    "echo7/probe/measure/words.py",
    "echo7/probe/measure/payload.py",
    "echo7/probe/measure/histogram.py",
    "echo7/probe/measure/tally.py",
    "echo7/probe/measure/ledger.py",
    "echo7/probe/plan.py",
    "echo7/probe/roles.py",
    "echo7/probe/measure/paths.py",
    "echo7/probe/report/text.py",
    "echo7/probe/report/document.py",
    "echo7/probe/report/nagios.py",
)
OPERATING_SYSTEM = {"socket", "selectors", "select", "os", "signal", "threading", "time"}


def modules() -> list[pathlib.Path]:
    return [path for package in PACKAGES for path in sorted((PROJECT / package).rglob("*.py"))]


def parse(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(path: pathlib.Path) -> set[str]:
    """The modules that a file imports, as dotted names; `from x import y` counts as x and as x.y."""
    names: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def functions() -> Iterator[tuple[str, int]]:
    for path in modules():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield f"{path.relative_to(PROJECT)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def dotted(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", [p for p in modules() if p.parts[-2] == "reactor"], ids=lambda p: p.name)
def test_reactor_never_imports_echo7(path: pathlib.Path) -> None:
    assert not {name for name in imported(path) if name.split(".")[0] == "echo7"}


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_import_nothing_that_touches_the_operating_system(name: str) -> None:
    assert not imported(PROJECT / name) & OPERATING_SYSTEM


@pytest.mark.parametrize("path", modules(), ids=lambda p: f"{p.parts[-2]}-{p.name}")
def test_serving_needs_the_standard_library_alone(path: pathlib.Path) -> None:
    import sys

    roots = {name.split(".")[0] for name in imported(path)} - {*PACKAGES, "__future__"}
    if path.parent.name == "testing":  # serving doesn't need it; who hands in hypothesis's data has hypothesis
        roots -= {"hypothesis"}
    # an extra, imported only when it is asked for (see test_cold_start)
    if path.parent.name == "metrics" or path.name == "prometheus.py":
        roots -= {"h11", "prometheus_client"}
    assert roots <= sys.stdlib_module_names


def test_no_function_is_longer_than_the_limit() -> None:
    assert not [(name, lines) for name, lines in functions() if lines > LONGEST_FUNCTION_LINES]


def test_most_functions_fit_into_the_head() -> None:
    lengths = [lines for _, lines in functions()]
    assert sum(lines <= USUAL_FUNCTION_LINES for lines in lengths) >= 0.9 * len(lengths)


def test_the_simple_path_can_be_read_in_an_evening() -> None:
    lines = sum(len((PROJECT / "reactor" / f"{name}.py").read_text().splitlines()) for name in CHAPTERS)
    assert lines <= SIMPLE_PATH_LINES


def test_no_module_is_dead() -> None:
    """Every module is reached by imports from the packages' front doors, or is that of a command."""
    by_name = {dotted(path): path for path in modules()}
    reached: set[str] = set()
    waiting = ["reactor", "reactor.testing", "echo7", "echo7.__main__"] + [module for module, _ in COMMANDS.values()]
    waiting += ["reactor.player.__main__", "reactor.player.remake"]
    waiting += ["reactor.lessons.__main__"] + [lesson.program.name for lesson in LESSONS]
    while waiting:
        name = waiting.pop()
        if name in by_name and name not in reached:
            reached.add(name)
            waiting += [*imported(by_name[name]), name.rpartition(".")[0]]  # a module brings its package
    assert set(by_name) == reached


def test_imports_go_round_in_no_circle() -> None:
    """Read bottom up, every module uses only what the reader has already seen (types apart)."""
    graph = {dotted(path): _runtime_imports(path) for path in modules()}
    done: set[str] = set()
    while ready := [name for name in graph if name not in done and graph[name] & graph.keys() <= done | {name}]:
        done |= set(ready)
    assert not graph.keys() - done


def _runtime_imports(path: pathlib.Path) -> set[str]:
    names: set[str] = set()
    for node in parse(path).body:  # what stands under `if TYPE_CHECKING` isn't in the body itself
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names
