"""Log events: every call that logs, with the event's name, level, fields and text, found in the source.

Names, texts and fields may come from a local variable, a parameter or a property: what they can be is looked up,
through the callers of a function where necessary. What can't be found raises, so no event is missing from the page.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.reference.source import Function, file_of, functions, made_from, table, target_names, trees

LEVELS = ("debug", "info", "warning", "error", "critical")
EVENT_CALLS = {"event", "log_event"}
# Marks a value that stands in the text with spaces for underscores.
SPACED = " in words"
INTRODUCTION = """\
# Log events

With `--log-format json` each line is an object with `time`, `level`, `event`, `message` and the fields below. Lines of
a worker also have `worker` and `pid`, those of a previous generation `previous_generation` and `pid`; lines that stand
for others have `held_back`, their number. Lines without an event of their own have `"event": "log"`.

In the text, `{…}` stands for a value. Texts may change between versions; events and fields are only added.

"""


class Logged(NamedTuple):
    """One way in which an event is logged."""

    name: str
    level: str
    text: str
    fields: tuple[str, ...]
    file: str


class Place(NamedTuple):
    """Where an expression stands: what its names mean depends on it."""

    module: str
    function: Function | None


Meaning = tuple[ast.expr, Place]


def page() -> str:
    """Return the page."""
    files: dict[Logged, set[str]] = {}
    for event in logged():
        files.setdefault(event._replace(file=""), set()).add(f"`{event.file}`")
    named = [
        (f"`{e.name}`", e.level, e.text, ", ".join(f"`{field}`" for field in e.fields), ", ".join(sorted(files[e])))
        for e in sorted(files)
    ]
    return INTRODUCTION + made_from("the calls that log") + "\n" + table(
        ("event", "level", "text", "fields", "logged by"), named
    )  # fmt: skip


def logged() -> Iterator[Logged]:
    """Yield every event that the source can log."""
    for place, call in _calls():
        called = _name(call.func)
        if called in EVENT_CALLS and len(call.args) == 4:
            _, level, name, text = call.args
            fields = {field for keyword in call.keywords for field in _fields(keyword, place)}
        elif called in LEVELS and _name(getattr(call.func, "value", call)) == "logger":
            level, text = call.func, call.args[0]
            extra = [keyword.value for keyword in call.keywords if keyword.arg == "extra"]
            keys = _keys(extra[0], place) if extra else {}
            name = keys.get("event", ast.Constant("log"))
            fields = set(_keys(keys["fields"], place)) if "fields" in keys else set()
        else:
            continue
        file = file_of(place.module)
        values = [] if called in EVENT_CALLS else call.args[1:]
        if isinstance(text, ast.Constant) and text.value == "%s":
            [text], values = values, []
        [(level, _)] = _meanings(level, place)
        for word in _words(name, place):
            for said in _texts(text, place, [_called(value) for value in values]):
                if isinstance(name, ast.Name):
                    said = said.replace(f"{{{name.id}}}", word).replace(
                        f"{{{name.id}{SPACED}}}", word.replace("_", " ")
                    )
                yield Logged(word, (_name(level) or "").lower(), said, tuple(sorted(fields)), file)


@functools.cache
def _calls() -> list[tuple[Place, ast.Call]]:
    """Return every call with its place, but for those of the function that all events go through."""
    found = []
    for module, tree in trees().items():
        inside = {id(node): function for function in functions([tree]) for node in ast.walk(function)}
        for node in ast.walk(tree):
            function = inside.get(id(node))
            if isinstance(node, ast.Call) and not (
                module == "echo7.logs.log" and function and function.name == "event"
            ):
                found.append((Place(module, function), node))
    return found


# ---- what an expression can be


def _meanings(node: ast.expr, place: Place, seen: frozenset[int] = frozenset()) -> list[Meaning]:
    """Return what an expression can be, without variables where these can be followed. Those in `seen` were."""
    if id(node) in seen:
        return []
    seen |= {id(node)}
    if isinstance(node, ast.IfExp):
        return _meanings(node.body, place, seen) + _meanings(node.orelse, place, seen)
    if isinstance(node, ast.Name):
        found = _assigned_before(node, place) or _passed(node.id, place) or _assigned(node.id, place)
        return [end for meaning in found for end in _meanings(*meaning, seen)] if found else [(node, place)]
    return [(node, place)]


def _assigned_before(node: ast.Name, place: Place) -> list[Meaning]:
    """Return the last assignment to a variable in the blocks around it, innermost first; nothing if there is none."""
    inside = ast.walk(place.function) if place.function else iter(())
    around = [each for each in inside if _is_around(each, node)]
    blocks = [block for each in around for block in (getattr(each, "body", []), getattr(each, "orelse", []))]
    for block in reversed([block for block in blocks if isinstance(block, list)]):
        before = [each for each in block if each.lineno < node.lineno]
        if before and block[-1].end_lineno >= node.lineno:
            for each in reversed(before):
                if isinstance(each, ast.Assign) and node.id in target_names(each):
                    return [(_assigned_to(node.id, each), place)]
    return []


def _is_around(outer: ast.AST, node: ast.Name) -> bool:
    return isinstance(outer, ast.stmt | ast.ExceptHandler) and outer.lineno <= node.lineno <= (outer.end_lineno or 0)


def _assigned(name: str, place: Place) -> list[Meaning]:
    """Return all that a function assigns to a variable, or its module."""
    inside = ast.walk(place.function) if place.function else iter(())
    found = [node for node in inside if isinstance(node, ast.Assign) and name in target_names(node)]
    if not found:
        whole = trees()[place.module].body
        found = [node for node in whole if isinstance(node, ast.Assign) and target_names(node) == [name]]
    return [(_assigned_to(name, node), place) for node in found]


def _assigned_to(name: str, node: ast.Assign) -> ast.expr:
    values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
    return dict(zip(target_names(node), values, strict=False))[name]


def _passed(name: str, place: Place) -> list[Meaning]:
    """Return what callers pass for a parameter, and its default."""
    function = place.function
    if function is None:
        return []
    names = [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]
    if name not in names:
        return []
    positions = [each for each in names if each != "self"]
    defaults = dict(zip(reversed(names), reversed(function.args.defaults), strict=False))
    found: list[Meaning] = [(defaults[name], place)] if name in defaults else []
    for caller, call in _calls():
        arguments = call.args
        if _name(call.func) == "partial" and arguments and _name(arguments[0]) == function.name:
            arguments = arguments[1:]
        elif _name(call.func) != function.name:
            continue
        given = dict(zip(positions, arguments, strict=False)) | {each.arg: each.value for each in call.keywords}
        if name in given:
            found.append((given[name], caller))
    return found


def _words(node: ast.expr, place: Place) -> set[str]:
    """Return the constants that a name can be. Raise LookupError if something else can come."""
    found = [meaning for meaning, _ in _meanings(node, place)]
    strange = [ast.unparse(each) for each in found if not isinstance(each, ast.Constant)]
    if strange or not found:
        raise LookupError(f"{file_of(place.module)}:{node.lineno}: what can this event's name be? {strange}")
    return {str(each.value) for each in found if isinstance(each, ast.Constant)}


def _texts(node: ast.expr, place: Place, values: list[str]) -> list[str]:
    """Return what a line can say; `values` take the places of %s and its like."""
    found: list[str] = []
    for meaning, where in _meanings(node, place):
        if isinstance(meaning, ast.BinOp):
            left, right = _texts(meaning.left, where, []), _texts(meaning.right, where, [])
            found += [before + after for before in left for after in right]
        elif isinstance(meaning, ast.JoinedStr):
            found.append("".join(_part(part) for part in meaning.values))
        elif isinstance(meaning, ast.Constant):
            found.append(str(meaning.value))
        else:
            found.append(f"{{{_called(meaning)}}}")
    for value in values:
        found = [re.sub(r"%[srd]", f"{{{value}}}", text, count=1) for text in found]
    return [text.replace("\n", " ") for text in found]


def _part(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.FormattedValue)
    return f"{{{_called(node.value)}}}"


def _called(node: ast.expr) -> str:
    """Return a word for a value: what its expression is about."""
    if isinstance(node, ast.Call) and _name(node.func) == "replace" and isinstance(node.func, ast.Attribute):
        return _called(node.func.value) + SPACED
    if isinstance(node, ast.Call) and _name(node.func) == "len":
        return f"number of {_called(node.args[0])}"
    if isinstance(node, ast.Call):
        about = node.args[-1:] if _name(node.func) in ("str", "join", "map", "sum") else []
        if not about and isinstance(node.func, ast.Attribute) and not isinstance(node.func.value, ast.Call):
            about = [node.func.value]
        return _called(about[0]) if about else _name(node.func) or "…"
    return (_name(node) or "…").lstrip("_")


def _name(node: ast.AST) -> str | None:
    """Return the last name of `a`, `a.b` or `a.b.c`."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


# ---- fields


def _fields(keyword: ast.keyword, place: Place) -> set[str]:
    return {keyword.arg} if keyword.arg is not None else set(_keys(keyword.value, place))


def _keys(node: ast.expr, place: Place) -> dict[str, ast.expr]:
    """Return the keys of a mapping, with their values where these are known. Raise LookupError if it is unknown."""
    found: dict[str, ast.expr] = {}
    for meaning, where in _meanings(node, place):
        if isinstance(meaning, ast.Dict):
            for key, value in zip(meaning.keys, meaning.values, strict=True):
                found |= {str(ast.literal_eval(key)): value} if key is not None else _keys(value, where)
        elif isinstance(meaning, ast.BinOp):
            found |= _keys(meaning.left, where) | _keys(meaning.right, where)
        elif isinstance(meaning, ast.Call) and _name(meaning.func) == "_asdict":
            assert isinstance(meaning.func, ast.Attribute)
            found |= dict.fromkeys(_fields_of_class(meaning.func.value, where), meaning)
        elif isinstance(meaning, ast.Attribute):
            found |= _keys_of_property(meaning, where)
        else:
            raise LookupError(f"{file_of(where.module)}:{meaning.lineno}: which fields has {ast.unparse(meaning)}?")
    return found


def _fields_of_class(node: ast.expr, place: Place) -> list[str]:
    """Return the fields of the NamedTuple that a parameter is annotated with."""
    assert isinstance(node, ast.Name)
    assert place.function is not None
    [annotation] = [each.annotation for each in place.function.args.args if each.arg == node.id]
    [found] = [
        each for tree in trees().values() for each in ast.walk(tree)
        if isinstance(each, ast.ClassDef) and annotation is not None and each.name == _name(annotation)
    ]  # fmt: skip
    return [name for each in found.body if isinstance(each, ast.AnnAssign) for name in target_names(each)]


def _keys_of_property(node: ast.Attribute, place: Place) -> dict[str, ast.expr]:
    """Return the keys of the mapping that a property returns: one of this module, or of a module that it imports."""
    imported = [each.module for each in ast.walk(trees()[place.module]) if isinstance(each, ast.ImportFrom)]
    for module in (place.module, *imported):
        found: dict[str, ast.expr] = {}
        for function in functions([trees()[module]]) if module in trees() else ():
            if function.name == node.attr:
                for each in ast.walk(function):
                    if isinstance(each, ast.Return) and each.value is not None:
                        found |= _keys(each.value, Place(str(module), function))
        if found:
            return found
    raise LookupError(f"{file_of(place.module)}:{node.lineno}: can't find the fields of {ast.unparse(node)}")
