"""Compiled programs: built on first use and cached in a folder named by a hash of source, command and compiler path.

Law: any change gives another folder, so a stale program never runs. A folder gets its name when it is complete, so two
runs at once never see each other's unfinished files.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass

HERE = pathlib.Path(__file__).resolve().parent


class BuildError(Exception):
    """A program can't be built. The text is one line."""


@dataclass(frozen=True, slots=True)
class Build:
    """How to build a program: a command that runs in a folder with a copy of the source."""

    source: str  # beside this file
    command: tuple[str, ...]
    program: str  # the result

    def make(self) -> pathlib.Path:
        """Return the program's path. Raise BuildError."""
        compiler = shutil.which(self.command[0])
        if compiler is None:
            raise BuildError(f"needs {self.command[0]!r}, which isn't on the PATH")
        source = HERE / self.source
        recipe = repr((compiler, self.command)).encode() + source.read_bytes()
        place = cache_folder() / hashlib.sha256(recipe).hexdigest()[:16]
        if not (place / self.program).exists():
            self._make_in(place, source)
        return place / self.program

    def _make_in(self, place: pathlib.Path, source: pathlib.Path) -> None:
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            workshop = pathlib.Path(folder) / "made"
            workshop.mkdir()
            shutil.copy(source, workshop)
            own = {"GO111MODULE": "off", "GOCACHE": str(place.parent / "go"), "GOFLAGS": ""}
            done = subprocess.run(
                self.command, cwd=workshop, env={**os.environ, **own}, capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise BuildError(f"{' '.join(self.command)} failed: {(last_line(done.stderr) or 'no message')}")
            shutil.rmtree(place, ignore_errors=True)
            os.rename(workshop, place)


LOAD = Build("load.c", ("cc", "-O2", "-o", "load", "load.c"), "load")


def cache_folder() -> pathlib.Path:
    """Return the folder of built programs. No other user may write there, because they are run."""
    folder = pathlib.Path(tempfile.gettempdir()) / f"echo7-benchmarks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022 or folder.is_symlink():
        raise BuildError(f"other users can write to {folder}; remove it or set TMPDIR")
    return folder


def last_line(text: str) -> str:
    """Return the last line that isn't blank, or an empty string."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
