"""The promises of EVIDENCE.md and the tests that name them by number agree."""

from __future__ import annotations

import re

import pytest

from tests.support.basics import PROJECT

ROW = re.compile(r"^\| [\w ]*\| (\d+) \| (.+) \|$", re.MULTILINE)
PROMISES = {int(number): text for number, text in ROW.findall((PROJECT / "tests" / "EVIDENCE.md").read_text("utf-8"))}
NAMED = re.compile(r"\bpromises? (\d+)(?:, (\d+))*(?: and (\d+))?", re.IGNORECASE)
# `Promise 5: "words of the promise"`, and `'Words of the promise' (promise 5)`.
QUOTED_AFTER = re.compile(r"Promise (\d+)(?:: | \()\"([^\"]+)\"")
QUOTED_BEFORE = re.compile(r"'([A-Z][^']+(?:'[a-z][^']*)*)' \(promise (\d+)\)")


@pytest.fixture(scope="module")
def docstrings() -> list[tuple[str, str]]:
    """Return the file and the text of every string in triple quotes that names a promise."""
    found = []
    for path in sorted((PROJECT / "tests").rglob("*.py")):
        for text in re.findall(r'"""(.+?)"""', path.read_text("utf-8"), re.DOTALL):
            if "romise" in text:
                found.append((path.name, " ".join(text.split())))
    return found


@pytest.mark.parametrize("number", PROMISES)
def test_promise_is_named_by_a_test(number: int, docstrings: list[tuple[str, str]]) -> None:
    named = {
        int(found) for _, text in docstrings for match in NAMED.finditer(text) for found in match.groups() if found
    }
    assert number in named


def test_named_promises_exist(docstrings: list[tuple[str, str]]) -> None:
    named = {(name, int(n)) for name, text in docstrings for match in NAMED.finditer(text) for n in match.groups() if n}
    assert not [(name, number) for name, number in sorted(named) if number not in PROMISES]


def test_quotations_of_promises_are_exact(docstrings: list[tuple[str, str]]) -> None:
    """A quotation may leave words out with […], and may end in an ellipsis."""
    quotations = [
        (name, int(number), quotation)
        for name, text in docstrings
        for number, quotation in [
            *QUOTED_AFTER.findall(text),
            *((number, quotation) for quotation, number in QUOTED_BEFORE.findall(text)),
        ]
    ]
    assert quotations
    wrong = [
        (name, number, part)
        for name, number, quotation in quotations
        for part in re.split(r"\[?…\]?", quotation)
        if part.strip(" .,").casefold() not in PROMISES[number].casefold()
    ]
    assert not wrong, "\n".join(map(str, wrong))
