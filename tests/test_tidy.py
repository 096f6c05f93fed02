"""The project's rules that a program can check: imports, private names, sizes, words. Tables first, then tests."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import pytest

from echo7.cli import COMMANDS
from reactor.lessons.staircase import LESSONS
from tests.support.basics import PROJECT

PACKAGES = ("reactor", "echo7")
OURS = (*PACKAGES, "tests", "benchmarks")

# What each room may import beside itself. A name stands for a folder or for one module. A module or inner folder with a
# row of its own follows that row, else the row of its room. What no row allows is forbidden: reactor imports nothing
# from echo7, and neither imports `tests` or `benchmarks`.
CORE = {"reactor", "reactor.sockets"}
SEEN_BY_ECHO7 = CORE | {"reactor.__init__", "reactor.fastpath", "reactor.observe", "reactor.console"}
MAY_IMPORT: Mapping[str, set[str]] = {
    "reactor.__init__": CORE,  # everything that a user imports from `reactor`
    "reactor": {"reactor.sockets"},
    "reactor.sockets": {"reactor.handler", "reactor.limits", "reactor.timers"},
    "reactor.console": set(),
    "reactor.fastpath": CORE,
    "reactor.observe": CORE,
    "reactor.testing": {*CORE, "reactor.fastpath", "reactor.observe"},
    "reactor.player": {*CORE, "reactor.console", "reactor.observe", "reactor.testing"},
    "reactor.lessons": {*CORE, "reactor.__init__", "reactor.console", "reactor.observe"},
    "echo7": {
        *SEEN_BY_ECHO7, "echo7.policy", "echo7.sockets", "echo7.process", "echo7.logs", "echo7.metrics",
        "echo7.probe", "echo7.checker",
    },
    "echo7.policy": {*CORE, "reactor.fastpath"},
    "echo7.sockets": {*CORE, "echo7.policy"},
    "echo7.logs": {*CORE, "reactor.observe", "echo7.policy", "echo7.server"},
    "echo7.metrics": {
        *SEEN_BY_ECHO7, "echo7.__init__", "echo7.server", "echo7.logs", "echo7.probe", "echo7.sockets"
    },
    "echo7.process": {
        *SEEN_BY_ECHO7, "echo7.settings", "echo7.assembly", "echo7.server", "echo7.tracing",
        "echo7.policy", "echo7.sockets", "echo7.logs", "echo7.metrics",
    },
    "echo7.checker": {*SEEN_BY_ECHO7, "echo7.__init__", "echo7.arguments", "echo7.sockets"},
    "echo7.probe": {
        *SEEN_BY_ECHO7, "echo7.__init__", "echo7.arguments", "echo7.logs", "echo7.metrics", "echo7.process.limits",
        "echo7.sockets",
    },
}  # fmt: skip

# Files (pathlib's patterns) that only decide and compute.
PURE = (
    "reactor/timers.py",
    "reactor/buffer.py",
    "reactor/limits.py",
    "reactor/player/tracefile.py",
    "echo7/logs/quiet.py",
    "echo7/policy/*.py",
    *(
        f"echo7/probe/**/{name}.py"
        for name in "words payload histogram tally ledger plan roles paths text document nagios".split()
    ),
)
OPERATING_SYSTEM = {"socket", "selectors", "select", "os", "signal", "threading", "time"}

# Folder or module → what it may import beside the standard library. Serving imports none of these (test_cold_start).
EXTRAS = {
    "reactor.testing": {"hypothesis"},
    "echo7.metrics": {"h11", "prometheus_client"},
    "echo7.probe.report.prometheus": {"prometheus_client"},
}

CHAPTERS = "loop timers buffer connection listener connector datagram signals".split()
SIMPLE_PATH = ["handler", *CHAPTERS, "limits"]
SIMPLE_PATH_LINES = 1100
LONGEST_FUNCTION_LINES = 60
USUAL_FUNCTION_LINES = 25
MOST_MODULES_IN_A_FOLDER = 15
LARGEST_IMPORT_RING = 3
MOST_PRIVATE_ACCESSES = {"reactor": 0, "echo7": 0, "tests": 20}
# Words that make a reader stop: people's words for programs, and archaic ones.
ODD_WORDS = re.compile(
    r"\b(?:who(?:ever|m)?|whose|nobody|somebody|shall|he|his|him|elders?|newcomers?|leash(?:ed)?"
    r"|to have (?:it|them)|is told of|for want of)\b",
    re.IGNORECASE,
)
# Their right uses, which aren't counted.
RIGHT_USES = re.compile(
    r"(?:person|people|operator|user|reader|student|teacher|learner|contributor|maintainer|attacker)s? who(?:se)?\b"
    r"|(?<=[\"'`.])who\b|\bwho(?=[=:,)\"'`])"  # the trace's field `who`, and Event.who
    r"|(?:user |[\"'`=:,(])nobody\b|\bnobody[\"'`:@]",  # the user of that name
    re.IGNORECASE,
)
MOST_ODD_WORDS_IN_10_000 = 8
# Names of the standard library that are documented in spite of their underscore, or without an alternative.
PUBLIC_IN_SPITE = {"_asdict", "_replace", "_fields", "_make", "_exit", "_getframe", "_value_", "_actions"}


def files(*roots: str) -> list[pathlib.Path]:
    return [path for root in roots for path in sorted((PROJECT / root).rglob("*.py"))]


def dotted(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts)


@functools.cache
def tree_of(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text())


TREES = {dotted(path): tree_of(path) for path in files(*PACKAGES)}
FOLDERS = {name.rpartition(".")[0] for name in TREES}


def imported(tree: ast.AST) -> set[str]:
    """Return the modules that a tree imports. `from x import y` counts as x.y if that is a module, else as x."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inside & TREES.keys()) | ({node.module} if inside - TREES.keys() else set())
    return {f"{name}.__init__" if name in FOLDERS else name for name in names}


IMPORTS = {name: imported(tree) for name, tree in TREES.items()}


def room_of(name: str) -> str:
    """Return the row of MAY_IMPORT that a module follows: its own, or that of the nearest folder above."""
    while name not in MAY_IMPORT:
        name = name.rpartition(".")[0]
    return name


@pytest.mark.parametrize("row", MAY_IMPORT)
def test_folder_imports_only_what_its_row_allows(row: str) -> None:
    inside = [name for name in TREES if room_of(name) == row]
    assert inside, "no module follows this row"
    allowed = MAY_IMPORT[row] | {row.removesuffix(".__init__")}
    found = [(name, other) for name in inside for other in sorted(IMPORTS[name]) if other.split(".")[0] in OURS]
    assert not [(name, other) for name, other in found if other not in TREES or not {other, room_of(other)} & allowed]


def test_every_room_has_a_row() -> None:
    assert {".".join(name.split(".")[:2]) for name in TREES if name.count(".") > 1} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("pattern", PURE)
def test_pure_modules_import_nothing_that_touches_the_operating_system(pattern: str) -> None:
    found = [dotted(path) for path in PROJECT.glob(pattern)]
    assert found, "no file matches this pattern"
    assert not [name for name in found if IMPORTS[name] & OPERATING_SYSTEM]


def test_serving_needs_only_the_standard_library() -> None:
    for name, modules in IMPORTS.items():
        extras = {extra for place, found in EXTRAS.items() if name.startswith(place) for extra in found}
        roots = {module.split(".")[0] for module in modules}
        assert not roots - sys.stdlib_module_names - {*PACKAGES} - extras, name


def test_no_module_is_dead() -> None:
    """Every module is reached by imports from the packages, or from a command."""
    reached: set[str] = set()
    waiting = ["reactor", "reactor.testing", "echo7", "echo7.__main__"] + [module for module, _ in COMMANDS.values()]
    waiting += ["reactor.player.__main__", "reactor.player.remake"]
    waiting += ["reactor.lessons.__main__"] + [lesson.program.name for lesson in LESSONS]
    while waiting:
        name = waiting.pop()
        name = f"{name}.__init__" if name in FOLDERS else name
        if name in TREES and name not in reached:
            reached.add(name)
            waiting += [*IMPORTS[name], name.rpartition(".")[0]]  # importing a module imports its package
    assert TREES.keys() == reached


def test_import_rings_are_small() -> None:
    """In a ring of files, each imports every other one, directly or not. Imports for types count too."""
    graph = {name: IMPORTS[name] & TREES.keys() for name in TREES if not name.endswith(".__init__")}
    reach = {name: reachable(graph, name) for name in graph}
    rings = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph if name in reach[name]}
    assert not [sorted(ring) for ring in rings if len(ring) > LARGEST_IMPORT_RING]


def test_modules_can_be_read_bottom_up() -> None:
    """Imports at the top of modules form no ring, so each module uses only what a reader has seen."""
    graph = {}
    for name, tree in TREES.items():
        at_the_top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        graph[name] = imported(ast.Module(list(at_the_top), [])) & TREES.keys()
    assert not [name for name in graph if name in reachable(graph, name)]


def reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        name = waiting.pop()
        if name in graph and name not in found:
            found.add(name)
            waiting += graph[name]
    return found


@pytest.mark.parametrize("root", ["reactor", "echo7", pytest.param("tests", marks=pytest.mark.long)])
def test_private_names_stay_in_their_modules(root: str) -> None:
    found = [f"{path.relative_to(PROJECT)}:{line} {code}" for path in files(root) for line, code in private(path)]
    assert len(found) <= MOST_PRIVATE_ACCESSES[root], "\n".join(found)


def private(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Yield line and code where a file uses a private name that isn't its own, or swaps a class."""
    nodes = list(ast.walk(tree_of(path)))
    own = set(own_names(nodes)) | PUBLIC_IN_SPITE
    for node in nodes:
        line: int = getattr(node, "lineno", 0)
        names: list[str] = []
        if isinstance(node, ast.Attribute) and not is_self(node.value):
            names = [node.attr]
            if node.attr == "__class__" and isinstance(node.ctx, ast.Store):
                yield line, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            function = getattr(node.func, "id", getattr(node.func, "attr", ""))
            by_name = function in {"getattr", "setattr", "delattr", "hasattr"}
            names = [str(node.args[1].value)] if by_name else []
        for name in names:
            if name.startswith("_") and not name.startswith("__") and name not in own:
                yield line, ast.unparse(node)


def own_names(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the names that a file defines: functions, classes, what is assigned to, and attributes of `self`."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and is_self(node.value):
            yield node.attr


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}


def test_one_function_forks() -> None:
    """`forked` alone makes sure that a child never gets into its parent's frames.

    Programs that tests and benchmarks only run may fork: attacks, servers to check, golf entries. So may the test of
    callbacks that fork.
    """
    calls = [
        (path.relative_to(PROJECT).as_posix(), node.lineno)
        for root in ("echo7", "reactor", "tests", "benchmarks")
        for path in (PROJECT / root).rglob("*.py")
        if path.name not in ("attacks.py", "test_forked_child.py") and path.parent.name not in ("honest", "entries")
        if "os.fork" in path.read_text()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in {"fork", "forkpty"}
        and ast.unparse(node.value) == "os"
        and isinstance(node.ctx, ast.Load)
    ]
    assert [path for path, _ in calls] == ["echo7/process/child.py"], calls


def test_words_are_plain() -> None:
    """Odd words are rare in code, tests, benchmarks and documentation; a failure names the files with the most."""
    found: Counter[str] = Counter()
    words = 0
    for path in written():
        text = path.read_text(encoding="utf-8")
        words += len(text.split())
        if ODD_WORDS.search(text):
            found[str(path.relative_to(PROJECT))] = len(ODD_WORDS.findall(RIGHT_USES.sub("", text)))
    worst = ", ".join(f"{name} {count}" for name, count in found.most_common(10) if count)
    per_10_000 = 10_000 * found.total() / words
    assert per_10_000 <= MOST_ODD_WORDS_IN_10_000, f"{found.total()} odd words, {per_10_000:.1f} in 10,000: {worst}"


def written() -> Iterator[pathlib.Path]:
    """Yield the files that are read as English, but neither this list of words nor the golf entries."""
    yield from PROJECT.glob("*.md")
    for folder in OURS:
        for path in sorted((PROJECT / folder).rglob("*")):
            is_text = path.suffix in {".py", ".md"}
            if is_text and path != pathlib.Path(__file__).resolve() and "golf/entries" not in path.as_posix():
                yield path


def test_folders_hold_few_modules() -> None:
    counts = Counter(path.parent for path in files(*PACKAGES) if not re.match(r"step\d", path.name))
    assert not {str(folder): count for folder, count in counts.items() if count > MOST_MODULES_IN_A_FOLDER}


def test_no_function_is_longer_than_the_limit() -> None:
    assert not [(name, lines) for name, lines in functions() if lines > LONGEST_FUNCTION_LINES]


def test_most_functions_are_short() -> None:
    lengths = [lines for _, lines in functions()]
    assert sum(lines <= USUAL_FUNCTION_LINES for lines in lengths) >= 0.9 * len(lengths)


def functions() -> Iterator[tuple[str, int]]:
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield f"{module}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def test_the_simple_path_can_be_read_in_an_evening() -> None:
    lines = sum(len((PROJECT / "reactor" / f"{name}.py").read_text().splitlines()) for name in SIMPLE_PATH)
    assert lines <= SIMPLE_PATH_LINES
