"""Every page can be followed: its commands and programs run as shown, its links lead somewhere, it isn't too long."""

from __future__ import annotations

import pathlib

import pytest

from tests.support import pages
from tests.support.basics import PROJECT

LONGEST_PAGE_LINES = 250
LONGEST_README_LINES, LONGEST_README_CHARACTERS = 150, 12_000
README = PROJECT / "README.md"
DOCS = sorted([*PROJECT.glob("reactor/docs/**/*.md"), *PROJECT.glob("echo7/docs/**/*.md")])
TAKE_LONG = {  # they run lessons, or commands that send for seconds
    PROJECT / page
    for page in (
        "reactor/docs/tutorials/class-of-90-minutes.md",
        "reactor/docs/explanation/partial-writes.md",
        "echo7/docs/tutorials/first-ping.md",
        "echo7/docs/tutorials/first-responder.md",
        "echo7/docs/explanation/proof.md",
        "reactor/docs/tutorials/first-protocol.md",
    )
}
SHORTEST_FACT = 30  # characters of a row; shorter ones are headings
PAGES = [README, *DOCS]
EVERY_PAGE = sorted(
    path for pattern in ("*.md", "*/*.md", "reactor/**/*.md", "echo7/**/*.md") for path in PROJECT.glob(pattern)
    if not path.relative_to(PROJECT).parts[0].startswith(".")
)  # fmt: skip


def name(path: pathlib.Path) -> str:
    return str(path.relative_to(PROJECT))


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=[pytest.mark.long] * (path in TAKE_LONG)) for path in PAGES], ids=name
)
def test_every_block_of_the_page_runs_as_shown(path: pathlib.Path) -> None:
    with pages.reader() as reader:
        for block in pages.blocks(path):
            if block.runs:
                reader.try_block(block)


@pytest.mark.parametrize("path", sorted({*EVERY_PAGE}), ids=name)
def test_every_link_of_the_page_leads_somewhere(path: pathlib.Path) -> None:
    assert not pages.dead_links(path)


@pytest.mark.parametrize("path", DOCS, ids=name)
def test_page_isnt_too_long(path: pathlib.Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_PAGE_LINES


def test_readme_isnt_too_long() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= LONGEST_README_LINES
    assert len(text) <= LONGEST_README_CHARACTERS


def test_readme_links_every_page() -> None:
    linked = {(PROJECT / link.partition("#")[0]).resolve() for link in pages.LINK.findall(README.read_text())}
    assert not [name(path) for path in DOCS if path not in linked]


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("time=0.215 ms", "time=1.3 ms", True),
        ("a  b", "a b", True),
        ("listening on …", "listening on tcp 127.0.0.1:7", True),
        ("…counters: 3", "12:00 info counters: 44", True),
        ("4 replies", "4 lost", False),
        ("listening", "listening on tcp", False),
    ],
)
def test_printed_line_is_compared_but_for_its_numbers(shown: str, printed: str, same: bool) -> None:
    assert pages.matches(shown, printed) is same


def test_missing_line_is_found() -> None:
    assert pages.missing(["a", "…", "c"], ["a", "b", "c"]) is None
    assert pages.missing(["c", "a"], ["a", "b", "c"]) == "a"


def test_command_that_fails_is_noticed() -> None:
    with pages.reader() as reader, pytest.raises(AssertionError, match="exit status 3"):
        reader.try_block(pages.Block("console", "", "$ exit 3\n"))


def test_dead_link_and_dead_heading_are_found(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading, `here`\n[1](#a-heading-here) [2](#gone) [3](page.md) [4](other.md) [5](https://x.y)\n"
    )
    assert pages.dead_links(page) == ["#gone", "other.md"]


def test_no_row_of_a_table_is_on_two_pages() -> None:
    """Pages that repeat a fact drift apart, so one has it, and others link to it. Code writes the reference."""
    pages_with: dict[str, set[str]] = {}
    for path in [page for page in PAGES if page.parent.name != "reference"]:
        for line in path.read_text().splitlines():
            if line.startswith("|") and len(line) >= SHORTEST_FACT and not set(line) <= set("|-: "):
                pages_with.setdefault(line, set()).add(name(path))
    assert {line: pages for line, pages in pages_with.items() if len(pages) > 1} == {}
