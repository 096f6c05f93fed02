"""`--config FILE`: the options in TOML, under the names that they have on the command line.

    host = ["192.0.2.1", "2001:db8::1"]
    port = 7007
    no-udp = true

Law: a file says nothing that the command line couldn't, and is read by the same converters, so that both mean the same
and are refused in the same words. What the command line says wins; of an option that may repeat, it replaces all.
"""

from __future__ import annotations

import argparse
import tomllib
from typing import Any

from echo7.arguments import refuse_dashes
from reactor.console.commandline import OneLineParser

NOT_IN_A_FILE = {"help", "config", "check-config"}  # what is to be done, not how
SHOWN_CHARACTERS = 60  # of a value in a message
BY_HAND = "; write it as TOML, such as port = 7007"


def set_defaults(options: argparse.Namespace) -> None:
    """Make what the file says the defaults of the command's parser. `options` are those of the command line alone.

    Raise SystemExit(2) after one line on stderr.
    """
    parser: OneLineParser = options.parser
    parser.where = f"{options.config}: "
    actions = {name[2:]: action for action in parser._actions for name in action.option_strings if name[:2] == "--"}
    for name in NOT_IN_A_FILE:
        actions.pop(name, None)
    document = _read(parser, options.config)
    arguments = [argument for key, value in document.items() for argument in _arguments(parser, actions, key, value)]
    said = parser.parse_args(arguments)
    refuse_dashes(parser, said)
    names = {actions[key].dest for key in document}
    replaced = {name for name in names if isinstance(getattr(said, name), list) and getattr(options, name)}
    parser.set_defaults(**{name: getattr(said, name) for name in names - replaced})
    parser.where = ""


def _read(parser: OneLineParser, path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        parser.error(f"cannot be read: {error.strerror}; check the path and who may read it")
    except UnicodeDecodeError as error:
        parser.error(f"is not UTF-8 at byte {error.start}; save it as UTF-8")
    except RecursionError:
        parser.error("is nested too deeply" + BY_HAND)
    except ValueError as error:  # tomllib's own, which names the line; also a path with a NUL, an endless number
        parser.error(f"{error}{BY_HAND}")


def _arguments(parser: OneLineParser, actions: dict[str, argparse.Action], key: str, value: object) -> list[str]:
    """Return what would be said on the command line instead."""
    action = actions.get(key)
    if action is None:
        parser.error(_unknown(key, value, actions))
    shown = repr(value) if len(repr(value)) <= SHOWN_CHARACTERS else f"a {type(value).__name__}"
    if action.nargs == 0:
        if not isinstance(value, bool):
            parser.error(f"{key} is {shown}, not true or false")
        return [f"--{key}"] if value else []
    repeats = isinstance(action.default, list)
    values = value if repeats and isinstance(value, list) else [value]
    for each in values:
        if isinstance(each, bool) or not isinstance(each, str | int | float):
            parser.error(f"{key} is {shown}, not a number or a text{' or a list of them' if repeats else ''}")
    return [f"--{key}={each}" for each in values]


def _unknown(key: str, value: object, actions: dict[str, argparse.Action]) -> str:
    import difflib  # whoever makes no mistake doesn't wait for it

    if isinstance(value, dict):
        return f"has a table [{key}]; there are none: write every option at the top, without [{key}]"
    near = difflib.get_close_matches(key.lower().replace("_", "-"), actions, n=1)
    meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(actions))}"
    return f"there is no option {key[:SHOWN_CHARACTERS]!r}; {meant}"
