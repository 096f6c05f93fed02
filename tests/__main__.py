"""`python3 -m tests [arguments for pytest]`: make a virtual environment, install what the tests need, run them.

Needs only Python 3.11 or later and a package index. The environment stays in `.venv-tests-3.x`, and is made anew when
the extra `test` in pyproject.toml has changed.

The tests run on every core. `-n 0` runs them one after the other.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import venv

PROJECT = pathlib.Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
# One process for each core. `worksteal` keeps neighbouring tests, which share fixtures, in one process.
ON_EVERY_CORE = ("-n", "auto", "--maxprocesses", "8", "--dist", "worksteal")


def main(arguments: list[str]) -> int:
    """Return pytest's exit status, or 2 after one line on stderr when the environment can't be made."""
    if sys.version_info < OLDEST:
        return _complain(f"this is Python {sys.version.split()[0]}; run it with {'.'.join(map(str, OLDEST))} or later")
    folder = PROJECT / f".venv-tests-{sys.version_info[0]}.{sys.version_info[1]}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = "\n".join(requirements())
    stamp = folder / "requirements.txt"
    if not (stamp.exists() and stamp.read_text() == wanted and python.exists()):
        try:
            venv.create(folder, clear=True, with_pip=True)
        except (subprocess.CalledProcessError, OSError) as error:
            return _complain(
                f"can't make a virtual environment in {folder.name}: {error}; on Debian: apt install python3-venv"
            )
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements()]
        if subprocess.run(command).returncode:
            return _complain("pip can't install what the tests need; see its message above")
        stamp.write_text(wanted)
    # The tests start the daemon hundreds of times, so compiled bytecode must be kept.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [str(python), "-m", "pytest", *ON_EVERY_CORE, *arguments]
    return subprocess.run(command, cwd=PROJECT, env=environment).returncode


def requirements() -> list[str]:
    """Return what pyproject.toml's extra `test` asks for."""
    import tomllib  # imported after the check of the version, because 3.10 doesn't have it

    document = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    found: list[str] = document["project"]["optional-dependencies"]["test"]
    return found


def _complain(message: str) -> int:
    print(f"tests: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
