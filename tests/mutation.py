"""`python3 -m tests.mutation [MODULE…]`: do the tests of a module notice when its code is changed?

Needs the extras `test` and `mutation`, and POSIX. It takes minutes and is run by hand; EVIDENCE.md has the results.
Each MODULE is a name such as `buffer`; without one, all are tried. Cosmic Ray's operators and the two of this file
change one place at a time in a copy of the project. With the change, the tests of that module must fail or hang. The
exit status is 1 when more than one change in twenty survives.

Changes that don't alter behaviour aren't made: of annotations, names of types, `__slots__` and texts, and of `is` into
`==` and the like, because only None and enum members are compared with `is`.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any

PROJECT = pathlib.Path(__file__).resolve().parent.parent
TESTS = {  # module → its tests, quickest first
    "echo7/policy/guard.py": "tests/echo7/policy/test_guard.py",
    "reactor/listener.py": "tests/reactor/test_listener.py",
    "reactor/datagram.py": "tests/reactor/test_datagram.py",
    "reactor/buffer.py": "tests/reactor/test_buffer.py",
    "reactor/timers.py": "tests/reactor/test_timers.py",
    "reactor/connection.py": "tests/reactor/test_connection.py",
}
LEAST_KILLED = 0.95
USELESS = ("VariableReplacer", "VariableInserter")  # these need the names of variables
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")

Span = tuple[tuple[int, int], tuple[int, int]]  # from (line, column) to (line, column)


@dataclasses.dataclass
class Mutant:
    """One change of one module."""

    line: int
    code: str
    diff: list[str]


@dataclasses.dataclass
class Result:
    """How many mutants of a module were killed, and which survived."""

    module: str
    count: int = 0
    survivors: list[Mutant] = dataclasses.field(default_factory=list)

    @property
    def killed(self) -> int:
        return self.count - len(self.survivors)

    @property
    def share(self) -> float:
        return self.killed / self.count if self.count else 1.0


class RemoveStatement:
    """Leaves out a statement of a function. Cosmic Ray has no operator for that."""

    KINDS = ("expr_stmt", "atom_expr", "del_stmt", "raise_stmt", "return_stmt", "keyword")

    def mutation_positions(self, node: Any) -> Iterator[Span]:
        if node.type == "simple_stmt" and node.search_ancestor("funcdef") is not None:
            statement = node.children[0]
            if statement.type in self.KINDS and statement.get_code(include_prefix=False) != "pass":
                yield statement.start_pos, statement.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        statement = node.children[0]
        tree = import_module("parso.python.tree")
        node.children[0] = tree.Keyword("pass", statement.start_pos, statement.get_first_leaf().prefix)
        return node


class NegateCondition:
    """Negates a condition beside `and`, `or` and `not`, which Cosmic Ray's AddNot leaves out."""

    def mutation_positions(self, node: Any) -> Iterator[Span]:
        parent = node.parent
        if parent is not None and (
            (parent.type in ("and_test", "or_test") and node.type not in ("keyword", "not_test", "operator"))
            or (parent.type == "not_test" and node is parent.children[1])
        ):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        first = node.get_first_leaf()
        first.prefix, prefix = "", first.prefix
        code = f"{prefix}(not {node.get_code()})"
        tree = import_module("parso.python.tree")
        return tree.Name(code, node.start_pos)


def main(arguments: Sequence[str]) -> int:
    """Return 0 if enough mutants of each module are killed, 1 if not, 2 if the tool or a module is missing."""
    modules = {pathlib.PurePath(module).stem: module for module in TESTS}
    unknown = [name for name in arguments if name not in modules]
    if unknown:
        return _complain(f"no module is called {unknown[0]!r}; choose from {', '.join(modules)}")
    missing = [name for name in ("cosmic_ray", "pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        return _complain(f"{missing[0]} is missing: pip install -e '.[test,mutation]'")
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "copy"
        shutil.copytree(PROJECT, copy, ignore=NOT_COPIED)
        results = [try_module(copy, modules[name]) for name in arguments or modules]
    report(results)
    return 0 if all(result.share >= LEAST_KILLED for result in results) else 1


def try_module(copy: pathlib.Path, module: str) -> Result:
    """Run the module's tests once per mutant."""
    path, tests = copy / module, TESTS[module]
    original = path.read_text()
    passes(copy, tests, 600.0)  # compiles the bytecode, so that the measured run is quick
    started_s = time.monotonic()
    if not passes(copy, tests, 600.0):
        raise SystemExit(f"mutation: {tests} fails without a change; mend it first")
    timeout_s = 4 * (time.monotonic() - started_s) + 3
    result = Result(module)
    found = list(mutants(original))
    sys.dont_write_bytecode = True  # bytecode of another mutant with the same size and time could be used instead
    try:
        for mutant in found:
            path.write_text(mutant.code)
            pathlib.Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
            result.count += 1
            if passes(copy, tests, timeout_s):
                result.survivors.append(mutant)
                print(f"{module}:{mutant.line} survived", file=sys.stderr, flush=True)
            if result.count % 20 == 0 or result.count == len(found):
                print(f"{module}: {result.count} of {len(found)} tried", file=sys.stderr, flush=True)
    finally:
        path.write_text(original)
        sys.dont_write_bytecode = False
    return result


def passes(copy: pathlib.Path, tests: str, timeout_s: float) -> bool:
    """Tell whether the tests pass in time, in a forked process that has pytest and Hypothesis in memory."""
    for name in ("pytest", "hypothesis.stateful", "_hypothesis_pytestplugin"):
        import_module(name)
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=(copy, tests))
    process.start()
    assert process.ident is not None
    process.join(timeout_s)
    if process.exitcode is None:
        os.killpg(process.ident, signal.SIGKILL)  # and every process that the tests started
        process.join()
    return process.exitcode == 0


def run_tests(copy: pathlib.Path, tests: str) -> None:
    """Run the tests in this process, and exit."""
    os.setsid()
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    os.chdir(copy)
    sys.path[0] = str(copy)
    sys.modules.pop("tests")  # the project's own; the copy's is wanted
    os.environ["HYPOTHESIS_PROFILE"] = "mutation"
    quiet = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    os._exit(import_module("pytest").main(["-x", *quiet, tests]))


def mutants(source: str) -> Iterator[Mutant]:
    """Yield every change that alters the syntax tree, once."""
    nodes = list(import_module("cosmic_ray.ast").ast_nodes(import_module("cosmic_ray.ast").get_ast(source)))
    mutate_code = import_module("cosmic_ray.mutating").mutate_code
    left_out = list(meaningless(source))
    seen = {ast.dump(ast.parse(source))}
    for operator in operators():
        spans: list[Span] = [span for node in nodes for span in operator.mutation_positions(node)]
        for occurrence, span in enumerate(spans):
            if any(first <= span[0] and span[1] <= last for first, last in left_out):
                continue
            code = mutate_code(source, operator, occurrence)
            try:
                meaning = ast.dump(ast.parse(code))
            except SyntaxError:
                continue
            if meaning not in seen:
                seen.add(meaning)
                yield Mutant(span[0][0], code, difference(source, code))


def operators() -> Iterator[Any]:
    """Yield Cosmic Ray's operators, and the two of this file."""
    plugins = import_module("cosmic_ray.plugins")
    for name in plugins.operator_names():
        if is_useful(name.removeprefix("core/")):
            yield plugins.get_operator(name)()
    yield RemoveStatement()
    yield NegateCondition()


def is_useful(name: str) -> bool:
    """Tell whether an operator is used. `is` becomes only `is not`, and no other comparison becomes these."""
    kind, _, change = name.partition("_")
    before, _, after = change.partition("_")
    if kind == "ReplaceComparisonOperator":
        return before.startswith("Is") == after.startswith("Is")
    return kind not in USELESS


def meaningless(source: str) -> Iterator[Span]:
    """Yield the spans where a change doesn't alter behaviour."""
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.expr | None] = []
        if isinstance(node, ast.FunctionDef):
            parts = [node.returns, *(argument.annotation for argument in all_arguments(node))]
        elif isinstance(node, ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, ast.Assign) and (is_slots(node) or is_name_of_a_type(node)):
            parts = [node.value]
        for part in parts:
            if part is not None:
                assert part.end_lineno is not None
                assert part.end_col_offset is not None
                yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def is_slots(node: ast.Assign) -> bool:
    return "__slots__" in [getattr(target, "id", "") for target in node.targets]


def is_name_of_a_type(node: ast.Assign) -> bool:
    """Tell whether this names a type, such as `Bytes = bytes | bytearray`, `Callback = Callable[..., object]`."""
    return node.col_offset == 0 and isinstance(node.value, ast.BinOp | ast.Subscript)


def all_arguments(function: ast.FunctionDef) -> Iterable[ast.arg]:
    given = function.args
    extra = [argument for argument in (given.vararg, given.kwarg) if argument is not None]
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *extra]


def difference(before: str, after: str) -> list[str]:
    """Return only the changed lines."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


def report(results: Sequence[Result]) -> None:
    print(f"{'module':24}{'mutants':>8}{'killed':>8}{'survived':>10}{'per cent':>10}")
    for result in results:
        survived = len(result.survivors)
        print(f"{result.module:24}{result.count:8}{result.killed:8}{survived:10}{100 * result.share:10.1f}")
    for result in results:
        for mutant in result.survivors:
            print(f"\n{result.module}:{mutant.line}", *mutant.diff, sep="\n")


def _complain(message: str) -> int:
    print(f"mutation: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
