"""The public API: the names in `__all__`, with their signatures and the first paragraphs of their docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.reference.source import (
    Function,
    definition,
    first_line,
    lines_of,
    made_from,
    public_names,
    table,
    target_names,
    trees,
)

LONGEST_VALUE = 70
# Modules of `reactor.observe` that no program uses directly. All others have `__all__`.
INTERNAL = {"reactor.observe.describe", "reactor.observe.instrumented"}


def reactor() -> str:
    """Return the page about `reactor`."""
    return _page("The API of `reactor`", ["reactor"])


def observe() -> str:
    """Return the page about what observes a reactor. Raise LookupError for a module that declares no public names."""
    modules = [name for name in trees() if name.startswith("reactor.observe.") and name not in INTERNAL]
    without = [name for name in modules if not public_names(name)]
    if without:
        raise LookupError(f"{', '.join(without)}: no __all__; declare which names are public")
    return _page("The API of `reactor.observe`", modules)


def testing() -> str:
    """Return the page about `reactor.testing`."""
    return _page("The API of `reactor.testing`", ["reactor.testing"])


def echo7() -> str:
    """Return the page about `echo7`."""
    return _page("The API of `echo7`", ["echo7"])


def tools() -> str:
    """Return the page about what `echo7 ping` and `echo7 check` are made of."""
    return _page("The API of `echo7.probe` and `echo7.checker`", ["echo7.probe", "echo7.checker"])


def _page(title: str, modules: list[str]) -> str:
    parts = [f"# {title}\n\n{made_from('`__all__` and the docstrings')}"]
    for module in modules:
        found = [(name, *definition(module, name)) for name in sorted(public_names(module), key=str.lower)]
        rows = [_row(*entry) for entry in found if not isinstance(entry[2], ast.ClassDef)]
        parts.append(f"\n## `from {module} import …`\n")
        parts += ["\n" + table(("name", "what it is"), rows)] if rows else []
        parts += [f"\n{_class(node, where)}" for _, where, node in found if isinstance(node, ast.ClassDef)]
    return "".join(parts)


def _row(name: str, module: str, node: ast.stmt) -> tuple[str, str]:
    if isinstance(node, Function):
        return f"`{_signature(node)}`", first_line(node)
    assert isinstance(node, ast.Assign | ast.AnnAssign)
    return f"`{_value(name, node)}`", _comment(module, node)


def _class(node: ast.ClassDef, module: str) -> str:
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    makers = [each for each in node.body if isinstance(each, Function) and each.name == "__init__"]
    text = f"### `{node.name}`{f' ({bases})' if bases else ''}\n\n{first_line(node)}\n"
    if makers:
        text += f"\n`{node.name}{_signature(makers[0]).removeprefix('__init__').removesuffix(' -> None')}`\n"
    rows = [*_members(node, module)]
    return text + ("\n" + table(("member", "what it is"), rows) if rows else "")


def _members(node: ast.ClassDef, module: str) -> Iterator[tuple[str, str]]:
    """Yield the public fields, properties and methods, in the order of the source."""
    for each in node.body:
        if isinstance(each, ast.Assign | ast.AnnAssign):
            for name in target_names(each):
                if not name.startswith("_"):
                    yield f"`{_value(name, each)}`", _comment(module, each)
        elif isinstance(each, Function) and (not each.name.startswith("_") or each.name == "__call__"):
            decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in each.decorator_list}
            if "setter" not in decorators:
                yield f"`{each.name if 'property' in decorators else _signature(each)}`", first_line(each)


def _signature(node: Function) -> str:
    """Return `name(arguments) -> result`, without `self`."""
    arguments = ast.unparse(node.args)
    first, _, rest = arguments.partition(", ")
    arguments = rest if first in ("self", "cls", "_cls") else arguments
    result = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    return f"{node.name}({arguments}){result}"


def _value(name: str, node: ast.Assign | ast.AnnAssign) -> str:
    kind = f": {ast.unparse(node.annotation)}" if isinstance(node, ast.AnnAssign) else ""
    value = ast.unparse(node.value) if node.value is not None else ""
    if isinstance(node.value, ast.Tuple) and len(target_names(node)) > 1:
        value = ast.unparse(node.value.elts[target_names(node).index(name)])
    short = value if len(value) <= LONGEST_VALUE else "…"
    return f"{name}{kind}" + (f" = {short}" if value else "")


def _comment(module: str, node: ast.stmt) -> str:
    """Return the comment above a statement or behind it."""
    lines, words = lines_of(module), list[str]()
    number = node.lineno - 2
    while number >= 0 and lines[number].strip().startswith("#"):
        words.insert(0, lines[number].strip(" #"))
        number -= 1
    behind = lines[node.lineno - 1].partition("  # ")[2]
    return " ".join(words) or ("" if behind.startswith("noqa") else behind.partition("  # ")[0])
