"""`--config FILE`: the options in TOML, under their names on the command line.

    host = ["192.0.2.1", "2001:db8::1"]
    port = 7007
    no-udp = true

Law: a file can say no more than the command line. The same converters read both, so both mean the same and get the same
errors.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Collection
from typing import Any

from echo7.arguments import Option
from echo7.settings import OPTIONS

# of a value in a message
SHOWN_CHARACTERS = 60
BY_HAND = "; write it as TOML, such as port = 7007"


class FileError(Exception):
    """One line: what is wrong in the file, and what to do. `log_format` is what the file says about the log."""

    log_format: object = None


def read(path: str) -> dict[str, Any]:
    """Return the values in a file, by field of `Settings`. Raise FileError."""
    known = {option.key: (field, option) for field, option in OPTIONS.items()}
    found: dict[str, Any] = {}
    document = _document(path)
    try:
        for key, value in document.items():
            if key not in known:
                raise FileError(_unknown(key, value, known))
            field, option = known[key]
            found[field] = _converted(option, value)
    except FileError as error:
        error.log_format = document.get(OPTIONS["log_format"].key)
        raise
    return found


def _document(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror}; check the path and its permissions") from None
    except UnicodeDecodeError as error:
        raise FileError(f"is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except RecursionError:
        raise FileError("is nested too deeply" + BY_HAND) from None
    # from tomllib, which names the line; also for a path with a NUL, and for a number with too many digits
    except ValueError as error:
        raise FileError(f"{error}{BY_HAND}") from None


def _converted(option: Option, value: object) -> Any:
    if option.parse is None:
        if isinstance(value, bool):
            return value is option.sets
        raise FileError(f"{option.key} is {_shown(value)}, not true or false")
    values = value if option.repeat and isinstance(value, list) else [value]
    if not values:
        raise FileError(
            f"{option.key} is an empty list, which has no clear meaning; name at least one, or leave it out"
        )
    for each in values:
        if isinstance(each, bool) or not isinstance(each, str | int | float):
            lists = " or a list of them" if option.repeat else ""
            raise FileError(f"{option.key} is {_shown(value)}, not a number or a text{lists}")
    try:
        converted = [option.convert(str(each)) for each in values]
    except argparse.ArgumentTypeError as error:
        raise FileError(f"argument {option.flag}: {error}") from None
    return tuple(converted) if option.repeat else converted[0]


def _shown(value: object) -> str:
    return repr(value) if len(repr(value)) <= SHOWN_CHARACTERS else f"a {type(value).__name__}"


def _unknown(key: str, value: object, known: Collection[str]) -> str:
    # imported only for a mistake
    import difflib

    if isinstance(value, dict):
        return f"has a table [{key}]; tables have no meaning here: write every option at the top, without [{key}]"
    near = difflib.get_close_matches(key.lower().replace("_", "-"), known, n=1)
    meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
    return f"there is no option {key[:SHOWN_CHARACTERS]!r}; {meant}"
