"""What a change must pass: `nox` runs lint, types, tests and docs; `nox -s long coverage surroundings build` the rest.

Each session has a virtual environment of its own. What it installs is listed in pyproject.toml. Arguments after `--` go
to the session's program: `nox -s tests -- -k half_close`.
"""

import re

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests", "docs"]

EXTRAS: dict[str, list[str]] = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]
ON_EVERY_CORE = ("-n", "auto", "--maxprocesses", "8", "--dist", "worksteal")  # as `python3 -m tests` does

# What a test may not depend on: how to change it for `sh`, and pytest's options for that run.
SURROUNDINGS = (
    ("trap '' INT HUP; exec nohup \"$@\" <&-", ("-n", "2", "-p", "no:randomly")),  # as a background job has it
    ('umask 077; exec "$@"', ("-n", "2", "-p", "no:randomly")),
    ('LC_ALL=C exec "$@"', ("-n", "2", "-p", "no:randomly")),
    ('exec "$@"', ("-n", "4")),  # pytest-randomly is installed: any order, beside any neighbours
)


def only(name: str) -> str:
    """Return the requirement of one package, as pyproject.toml states it."""
    [found] = [line for lines in EXTRAS.values() for line in lines if re.match(rf"{name}\b", line)]
    return found


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install(only("ruff"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of packages, tests and benchmarks."""
    session.install("-e", ".[test,dev]")
    session.run("mypy", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the default tests on every core."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *ON_EVERY_CORE, *session.posargs)


@nox.session
def long(session: nox.Session) -> None:
    """Run the tests that take seconds each, one after the other, and then a short swarm."""
    session.install("-e", ".[test,dev]")
    session.run("python", "-m", "pytest", "-m", "long", *session.posargs)
    session.run("python", "-m", "tests.swarm", "--seeds", "3000")


@nox.session
def surroundings(session: nox.Session) -> None:
    """Run the default tests with ignored signals, a strict umask, the C locale, and in random order."""
    session.install("-e", ".[test,order]")
    for script, options in SURROUNDINGS:
        pytest = ("python", "-m", "pytest", "-q", *options, *session.posargs)
        session.run("sh", "-c", script, "sh", *pytest, external=True)


@nox.session
def coverage(session: nox.Session) -> None:
    """Check that the tests run every line and branch of both packages."""
    session.install("-e", ".[test,dev]")
    # Without the simulation, the benchmarks' own tests, the restarts in a row, the checks of whole servers and the
    # restricted services: they reach no new line, and take minutes while lines are counted. Of the long tests, those of
    # the two packages count. Coverage's own files take the place of closed descriptors (signals-check, …).
    slow = "hundred_restarts or bulk_through or at_any_moment_of_a_restart or each_time or and_without_restrictions"
    rows = ["-k", f"not ({slow} or signals-check or signals-lessons)"]
    measured = ["coverage", "run", "-m", "pytest", "-q", *rows, *session.posargs]
    quick = {"HYPOTHESIS_PROFILE": "dev"}
    session.run("coverage", "erase")
    session.run(*measured, "--ignore=tests/simulation", "--ignore=tests/benchmarks", env=quick)
    hazards = [f"tests/hazards/test_{name}.py" for name in ("lost_descriptors", "forked_child", "poor_environment")]
    session.run(*measured, "-m", "long", "tests/reactor", "tests/echo7", "tests/test_docs.py", *hazards, env=quick)
    session.run("coverage", "combine", "-q")
    session.run("coverage", "report")


@nox.session
def docs(session: nox.Session) -> None:
    """Run the tests of the documentation: examples, links, and pages made from the code."""
    session.install("-e", ".[test,dev]")
    about_pages = ["tests/test_readme.py", "tests/test_docs.py", "tests/test_evidence.py", "tests/test_tidy.py"]
    about_pages += ["tests/reactor/test_guide.py", "tests/echo7/test_settings.py", "tests/echo7/deploy"]
    session.run("python", "-m", "pytest", "-q", "-m", "long or not long", *about_pages, *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the source archive and the wheel, and check what a package index would refuse."""
    session.install(only("build"), only("twine"))
    folder = session.create_tmp()
    session.run("python", "-m", "build", "--outdir", folder)
    session.run("twine", "check", "--strict", f"{folder}/*")
