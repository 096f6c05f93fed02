"""Files of the player: it reads traces and writes pages.

Law: only a page of the player is overwritten, unless the user says `--force`: the first lines of a page say what made
it. A page replaces an old one only when it is complete, so a full disk leaves the old one.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile

from reactor.player.page import MADE_BY_US
from reactor.player.tracefile import NotATrace, Trace, read

STDIO = "-"
STDIN, STDOUT = 0, 1  # descriptors: if one is closed, Python has no file object for it
HEAD_BYTES = 200  # of a page: the generator's name is in them
USUAL_MODE = 0o666


class Failure(Exception):
    """An error that ends the command. The text says why, in one line."""


def load(name: str) -> Trace:
    """Read the trace in a file, or from the standard input. Raise Failure."""
    try:
        if name == STDIO:
            with open(STDIN, "rb", closefd=False) as stdin:
                return read(stdin, "standard input")
        with open(name, "rb") as file:
            return read(file, pathlib.PurePath(name).stem)
    except NotATrace as error:
        raise Failure(f"{name}: can't be played: {error}") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise Failure(f"{name}: can't be read: {_reason(error)}") from None


def write(content: str, name: str, *, force: bool) -> pathlib.Path | None:
    """Write a page; return where it is, or None for the standard output. Raise Failure, BrokenPipeError."""
    data, path = content.encode(), pathlib.Path(name)
    try:
        if name == STDIO:
            with open(STDOUT, "wb", closefd=False) as stdout:
                stdout.write(data)
            return None
        if path.is_file() and not force and not _is_ours(path):
            raise Failure(f"{name}: it exists, and isn't a page of the player: use --force, or another name with -o")
        if path.is_file() or not path.exists():
            _put_in_place(data, path.resolve())
        else:  # a device; a folder raises the right error
            path.write_bytes(data)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        raise Failure(f"{name}: can't be written: {_reason(error)}; name another file with -o") from None
    return path


def _is_ours(path: pathlib.Path) -> bool:
    with path.open("rb") as file:
        return MADE_BY_US.encode() in file.read(HEAD_BYTES)


def _put_in_place(data: bytes, path: pathlib.Path) -> None:
    descriptor, beside = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            # by descriptor: another user of the folder could put a link in place of the name
            if hasattr(os, "fchmod"):  # pragma: no branch - Windows has none
                os.fchmod(descriptor, USUAL_MODE & ~_umask())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)
