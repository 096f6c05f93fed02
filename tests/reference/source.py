"""The code as text: every module's tree, and small questions about it. Nothing is imported."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator, Sequence

from tests.support.basics import PROJECT

Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Return each module of both packages by its dotted name; a package is called by its own name."""
    found: dict[str, ast.Module] = {}
    for root in ("reactor", "echo7"):
        for path in sorted((PROJECT / root).rglob("*.py")):
            name = ".".join(path.relative_to(PROJECT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


def is_package(module: str) -> bool:
    """Tell whether a dotted name is a package's."""
    return (PROJECT / module.replace(".", "/") / "__init__.py").exists()


def file_of(module: str) -> str:
    """Return the path of a module."""
    return module.replace(".", "/") + ("/__init__.py" if is_package(module) else ".py")


def lines_of(module: str) -> list[str]:
    """Return the lines of a module."""
    return (PROJECT / file_of(module)).read_text().splitlines()


def public_names(module: str) -> list[str]:
    """Return the names in `__all__` of a module; none if it has no `__all__`."""
    for node in trees()[module].body:
        if isinstance(node, ast.Assign) and target_names(node) == ["__all__"]:
            return list(ast.literal_eval(node.value))
    return []


def target_names(node: ast.Assign | ast.AnnAssign) -> list[str]:
    """Return the names that an assignment sets, those of a tuple too."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    flat = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [part.id for part in flat if isinstance(part, ast.Name)]


def definition(module: str, name: str) -> tuple[str, ast.stmt]:
    """Return where a public name is defined, and how. Raise LookupError if nothing defines it."""
    for node in trees()[module].body:
        if isinstance(node, ast.ClassDef | Function) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign | ast.AnnAssign) and name in target_names(node):
            return module, node
    for imported in ast.walk(trees()[module]):
        if isinstance(imported, ast.ImportFrom) and name in [alias.name for alias in imported.names]:
            return definition(imported.module or "", name)
    raise LookupError(f"nothing in {module} defines {name}")


def first_line(node: ast.ClassDef | Function) -> str:
    """Return the first paragraph of a docstring, on one line; empty without one."""
    return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())


def functions(nodes: Iterable[ast.AST]) -> Iterator[Function]:
    """Yield every function among nodes and inside of them."""
    for node in nodes:
        yield from (inner for inner in ast.walk(node) if isinstance(inner, Function))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def made_from(what: str) -> str:
    """Return the sentence that every page has."""
    return f"This page is made from {what}.\n`python3 -m tests.reference` writes it anew, and a test compares.\n"
