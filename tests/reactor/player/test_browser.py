"""The page in a real browser: it shows what the trace says, goes where the user says, and is accessible.

The expected content is computed here in Python, from the trace alone, and compared at every event.
"""

from __future__ import annotations

import io
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from reactor.observe import narrate
from reactor.player.gallery import NAMES, bundled
from reactor.player.page import page as page_of
from reactor.player.tracefile import MOST_EVENTS, Event, Trace, read
from tests.support.basics import PROJECT
from tests.support.browser import chromium
from tests.support.traces import trace_file

pytestmark = pytest.mark.long  # starting Chromium alone takes seconds

TURN: tuple[str, str, dict[str, Any]] = ("turn", "", {"sleep_s": None, "calls": 0, "timers": 0})
EVIL = "</script><img src=x onerror=\"document.title='taken'\"><b>bold</b>&amp;\u2028\ud800"
PATIENCE_MS = 10_000
SIZE = {"width": 1280, "height": 900}
GALLERY = {trace.name: trace for trace in bundled()}

# The visible content at one event: read from the page, not from the player's memory.
SHOWN = """() => {
  const text = (id) => document.getElementById(id).textContent;
  const lanes = [...document.querySelectorAll("#lanes > .lane")].map((lane) => [lane.dataset.who, {
    state: lane.querySelector(".state").textContent,
    mask: [...lane.querySelectorAll(".mask .on")].map((bit) => bit.textContent).join(""),
    in: lane.querySelector(".in b").textContent.replaceAll(",", ""),
    out: lane.querySelector(".out b").textContent.replaceAll(",", ""),
    buffer: lane.querySelector(".meter").getAttribute("aria-valuenow"),
  }]);
  return {
    n: text("event-number").replaceAll(",", ""), turn: text("turn").replaceAll(",", ""),
    lanes: Object.fromEntries(lanes),
    phase: document.querySelector("#ring .now")?.dataset.phase ?? "",
    ready: [...document.querySelectorAll("#ready li[data-progress]")].map(
      (row) => [row.querySelector(".who").textContent, row.dataset.progress]),
    timers: [...document.querySelectorAll("#timers li:not(.now) .what")].map((what) => what.firstChild.textContent),
    place: document.querySelector("#source-place .place")?.textContent ?? "", kind: text("kind"),
    line: document.querySelector("#source-lines .now")?.textContent ?? "", sentence: text("sentence"),
  };
}"""
SHOWN_AT_EACH = f"""(name) => {{
  const shown = {SHOWN};
  player.choose(player.traces.findIndex((trace) => trace.name === name));
  return player.traces[player.chosen].events.map((event) => {{ player.goTo(event.n); return shown(); }});
}}"""

Shown = dict[str, Any]
Move = tuple[str, str, dict[str, Any]]
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


class Tab:
    """One tab: its page, its errors, and its requests."""

    def __init__(self, browser: Any) -> None:
        self.page = browser.new_page(viewport=SIZE)
        self.page.set_default_timeout(PATIENCE_MS)
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))


@pytest.fixture(scope="module")
def tab(browser: Any) -> Tab:
    """One tab for all pages: a new tab for each would take most of the time."""
    return Tab(browser)


@pytest.fixture
def open_page(tab: Tab, tmp_path: pathlib.Path) -> Iterator[Open]:
    """Open a page with these traces. At the end, check for no error and no request but the page itself."""
    path = tmp_path / "page.html"

    def opened(traces: list[Trace], place: str = "", scheme: str = "light") -> Any:
        path.write_text(page_of(traces), encoding="utf-8")
        tab.page.set_viewport_size(SIZE)
        tab.page.emulate_media(color_scheme=scheme, reduced_motion="no-preference")
        tab.page.goto(path.as_uri() + place)
        return tab.page

    tab.wrong.clear()
    tab.asked.clear()
    yield opened
    assert not tab.wrong
    assert {address.partition("#")[0] for address in tab.asked} == {path.as_uri()}


@pytest.fixture(scope="module")
def shared(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The gallery, for tests that change nothing."""
    path = tmp_path_factory.mktemp("player") / "gallery.html"
    path.write_text(page_of(bundled()), encoding="utf-8")
    tab = Tab(browser)
    tab.page.goto(path.as_uri())
    yield tab.page
    assert not tab.wrong
    assert tab.asked == [path.as_uri()]


@pytest.fixture
def partial_write(shared: Any) -> Any:
    """The trace of the partial write, at its beginning, with the keyboard focus on the page."""
    shared.evaluate("name => player.choose(player.traces.findIndex((trace) => trace.name === name))", "partial-write")
    shared.evaluate("document.activeElement.blur()")
    return shared


def events_of(name: str) -> list[Event]:
    return GALLERY[name].events


def numbers(events: list[Event], wanted: Callable[[Event], object]) -> list[int]:
    return [event["n"] for event in events if wanted(event)]


def is_partial(event: Event) -> bool:
    return bool(event["kind"] == "sent" and event["bytes"] < event["offered"])


def is_error(event: Event) -> bool:
    return event["kind"] in ("error", "raised", "fault") or bool(event["kind"] == "closed" and event["error"])


# ---------------------------------------------------------------- the same fold, made independently


class Fold:
    """The state of the loop after each event of a trace."""

    def __init__(self) -> None:
        self.handlers: dict[str, dict[str, Any]] = {}
        self.timers: dict[str, float] = {}
        self.ready: list[list[str]] = []
        self.phase = ""

    def lane(self, who: str) -> dict[str, Any]:
        return self.handlers[who]

    def add(self, event: Event) -> None:
        kind, who = event["kind"], event["who"]
        begins = {"turn": "sleep", "select": "select", "dispatch": "dispatch", "stale": "dispatch",
                  "timer_fired": "timers", "call": "calls"}  # fmt: skip
        if kind in begins:
            self.phase = begins[kind]
            self.ready = [[name, "done" if progress == "now" else progress] for name, progress in self.ready]
        if kind == "turn":
            self.ready = []
        elif kind == "select":
            self.ready = [[name, "to come"] for name, _ in event["ready"]]
        elif kind in ("dispatch", "stale"):
            entry = next(entry for entry in self.ready if entry == [who, "to come"])
            entry[1] = "now" if kind == "dispatch" else "stale"
        elif kind == "timer_set":
            self.timers[who] = event["due_t"]
        elif kind in ("timer_fired", "timer_cancelled"):
            del self.timers[who]
        else:
            self.add_to_handler(kind, who, event)

    def add_to_handler(self, kind: str, who: str, event: Event) -> None:
        if kind == "adopted":
            state = "OPEN" if event["high_water_bytes"] is not None else ""
            self.handlers[who] = {"state": state, "mask": "", "in": 0, "out": 0, "buffer": 0}
            self.handlers[who] |= {"resting": False, "closed": False}
        elif kind in ("received", "sent"):
            self.lane(who)["in" if kind == "received" else "out"] += event["bytes"]
        elif kind == "interest":
            self.lane(who).update(mask=event["after"], resting=event["resting"])
        elif kind in ("state", "buffer"):
            self.lane(who)[kind] = event["after"]
        elif kind == "closed":
            self.lane(who).update(mask="", buffer=0, resting=False, closed=True)

    def shown(self, event: Event) -> Shown:
        lanes = {
            who: {
                "state": "CLOSED" if lane["closed"] else "RESTING" if lane["resting"] else lane["state"],
                **{name: str(lane[name]) for name in ("mask", "in", "out", "buffer")},
            }
            for who, lane in self.handlers.items()
            if not lane["closed"] or who == event["who"]
        }
        return {
            "n": str(event["n"]), "turn": str(event["turn"]), "lanes": lanes, "phase": self.phase,
            "ready": [entry[:] for entry in self.ready], "place": event["at"],
            "timers": sorted(self.timers, key=lambda who: (self.timers[who], int(who.rpartition("-")[2]))),
            "kind": event["kind"].replace("_", " "),
        }  # fmt: skip


def folded(events: list[Event]) -> list[Shown]:
    fold = Fold()
    moments = []
    for event in events:
        fold.add(event)
        moments.append(fold.shown(event))
    return moments


def shown_at_each(shared: Any, name: str) -> list[Shown]:
    """Return the visible content at each event of a trace."""
    return cast(list[Shown], shared.evaluate(SHOWN_AT_EACH, name))


@pytest.mark.parametrize("name", NAMES)
def test_page_shows_at_every_event_what_the_trace_says_its_sentence_and_its_line(shared: Any, name: str) -> None:
    seen_at_each = shown_at_each(shared, name)
    for seen, said in zip(seen_at_each, folded(events_of(name)), strict=True):
        assert {key: seen[key] for key in said} == said
    for seen, event in zip(seen_at_each, events_of(name), strict=True):
        file, _, number = event["at"].rpartition(":")
        assert seen["line"] == number + (PROJECT / "reactor" / file).read_text().splitlines()[int(number) - 1]
        assert seen["sentence"].endswith(".")
        for wrong in ("undefined", "null", "NaN", "[object", "Infinity"):
            assert wrong not in seen["sentence"]


def test_every_kind_of_event_has_words(shared: Any) -> None:
    assert set(shared.evaluate("[...SENTENCES.keys()]")) == {*narrate.SENTENCES, "ended"}


def test_partial_write_is_explained_in_three_sentences(partial_write: Any) -> None:
    partial_write.keyboard.press("p")
    said = [partial_write.text_content("#sentence")]
    for _ in range(2):
        partial_write.keyboard.press("ArrowRight")
        said.append(partial_write.text_content("#sentence"))
    assert said == [
        "The kernel takes 3 of 10 bytes from connection-1: a partial write. The other 7 must wait.",
        "7 bytes wait in connection-1's send buffer, until the kernel has room.",
        "7 bytes wait, so connection-1 asks for WRITE. Watched now: READ and WRITE.",
    ]


# ---------------------------------------------------------------- moving


def here(page: Any) -> int:
    return int(page.text_content("#event-number").replace(",", ""))


def until(page: Any, condition: str) -> None:
    """Return when the condition is true. Playwright's own wait uses eval, which the page's policy forbids."""
    ends_s = time.monotonic() + PATIENCE_MS / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < ends_s, condition
        page.evaluate("new Promise(requestAnimationFrame)")


def presses(page: Any, key: str, times: int = 1) -> list[int]:
    places = []
    for _ in range(times):
        page.keyboard.press(key)
        places.append(here(page))
    return places


def test_arrows_go_event_by_event_and_stop_at_the_ends(partial_write: Any) -> None:
    assert presses(partial_write, "ArrowLeft") == [0]
    assert presses(partial_write, "ArrowRight", 3) == [1, 2, 3]
    assert presses(partial_write, "ArrowLeft", 2) == [2, 1]
    last = len(events_of("partial-write")) - 1
    assert presses(partial_write, "End") == [last]
    assert presses(partial_write, "ArrowRight") == [last]
    assert presses(partial_write, "Home") == [0]


def test_shift_and_arrows_go_turn_by_turn(partial_write: Any) -> None:
    events = events_of("partial-write")
    turns = numbers(events, lambda event: event["kind"] == "turn")
    assert presses(partial_write, "Shift+ArrowRight", len(turns)) == turns
    assert presses(partial_write, "Shift+ArrowRight") == [len(events) - 1]
    assert presses(partial_write, "ArrowLeft") == [len(events) - 2]
    assert presses(partial_write, "Shift+ArrowLeft", len(turns)) == [*turns[:-1][::-1], 0]


@pytest.mark.parametrize(("key", "name", "wanted"), [
    ("p", "partial-write", is_partial), ("p", "backpressure", is_partial),
    ("e", "partial-write", is_error), ("e", "emfile", is_error),
    ("w", "emfile", lambda event: event["kind"] == "interest" and event["resting"]),
    ("w", "backpressure", lambda event: (event.get("before"), event.get("after")) == ("RW", "W")),
    ("w", "calm-echo", lambda event: False), ("w", "half-close", lambda event: False),
])  # fmt: skip
def test_letters_jump_forward_and_back(shared: Any, key: str, name: str, wanted: Callable[[Event], bool]) -> None:
    shared.evaluate("name => player.choose(player.traces.findIndex((trace) => trace.name === name))", name)
    there = numbers(events_of(name), wanted)
    assert presses(shared, key, len(there)) == there
    assert presses(shared, key) == [there[-1] if there else 0]
    assert presses(shared, "End") == [len(events_of(name)) - 1]
    assert presses(shared, f"Shift+{key}", len(there)) == there[::-1]


def test_buttons_do_what_the_keys_do(partial_write: Any) -> None:
    def click(name: str) -> int:
        partial_write.get_by_role("button", name=name, exact=True).click()
        return here(partial_write)

    events = events_of("partial-write")
    turns = numbers(events, lambda event: event["kind"] == "turn")
    partials, errors = numbers(events, is_partial), numbers(events, is_error)
    assert [click("Event forward"), click("Event forward"), click("Event back")] == [1, 2, 1]
    assert [click("Turn forward"), click("Turn forward"), click("Turn back")] == [turns[0], turns[1], turns[0]]
    assert [click("Next partial write"), click("Next partial write")] == partials
    assert click("Previous partial write") == partials[0]
    assert click("Next error") == next(n for n in errors if n > partials[0])
    assert [click("Last event"), click("First event")] == [len(events) - 1, 0]
    none = partial_write.get_by_role("button", name="Next read pause")  # no read pause: it says so, and keeps the focus
    none.click(force=True)
    assert (here(partial_write), none.get_attribute("aria-disabled")) == (0, "true")
    assert none.evaluate("button => button === document.activeElement")


def test_steps_back_over_snapshots_show_the_same_as_steps_forward(open_page: Open) -> None:
    moves: list[Move] = [
        TURN,
        ("adopted", "connection-1",
         {"what": "Connection", "fd": 7, "protocol": "Echo", "where": "", "high_water_bytes": 100}),
    ]  # fmt: skip
    for size in range(1, 200):
        moves += [
            ("received", "connection-1", {"bytes": size, "asked": 1000}),
            ("buffer", "connection-1", {"before": size - 1, "after": size}),
            ("timer_set", f"timer-{size}", {"delay_s": 1, "due_t": 9 - size / 99, "callback": "a.b", "owner": ""}),
        ]
    page = open_page([parsed(trace_file(*moves))])
    count = len(moves)
    assert count > 500 + 50  # there is a snapshot after 500
    walk = f"(steps) => {{ const shown = {SHOWN}; return steps.map((n) => {{ player.goTo(n); return shown(); }}); }}"
    near = [*range(460, 540), count - 1]
    forward = page.evaluate(walk, near)
    said = folded(parsed(trace_file(*moves)).events)
    for n, seen in zip(near, forward, strict=True):
        shown = said[n] | {"timers": said[n]["timers"][:12]}  # no more rows than that
        assert {key: seen[key] for key in shown} == shown
    assert page.evaluate(walk, near[::-1]) == forward[::-1]
    jumps = [(n * 37) % len(near) for n in range(len(near))]
    assert page.evaluate(walk, [near[n] for n in jumps]) == [forward[n] for n in jumps]


def test_scrubber_moves_to_its_event(partial_write: Any) -> None:
    scrubber = partial_write.get_by_role("slider", name="Event")
    last = len(events_of("partial-write")) - 1
    assert scrubber.get_attribute("max") == str(last)
    scrubber.fill("17")
    assert here(partial_write) == 17
    assert scrubber.get_attribute("aria-valuetext") == f"event 17 of {last}, turn 2: buffer"
    assert presses(partial_write, "ArrowRight") == [18]  # the scrubber has the focus, and doesn't step twice


def test_click_into_a_lane_moves_to_that_event(partial_write: Any) -> None:
    partial_write.evaluate("player.goTo(10)")
    history = partial_write.locator(".lane[data-who=listener-1] .history")
    box = history.bounding_box()
    history.click(position={"x": box["width"] * 0.51, "y": 3})
    assert here(partial_write) == len(events_of("partial-write")) // 2


def test_playing_ends_at_the_last_event_and_then_starts_over(partial_write: Any) -> None:
    last = len(events_of("partial-write")) - 1
    partial_write.get_by_label("Speed").select_option("500")
    partial_write.evaluate("document.activeElement.blur()")
    for _ in range(2):
        partial_write.keyboard.press("Space")
        until(partial_write, f"player.n === {last} && !player.isPlaying")
        assert partial_write.text_content("#play") == "Play"
    partial_write.get_by_label("Speed").select_option("2")


def test_space_and_any_step_pause(partial_write: Any) -> None:
    partial_write.get_by_label("Speed").select_option("1")
    partial_write.evaluate("document.activeElement.blur()")
    for stop in ("Space", "ArrowRight", "Home", "p"):
        partial_write.keyboard.press("Space")
        assert partial_write.text_content("#play") == "Pause"
        assert partial_write.locator("#sentence").get_attribute("aria-live") == "off"
        partial_write.keyboard.press(stop)
        assert partial_write.text_content("#play") == "Play"
        assert partial_write.locator("#sentence").get_attribute("aria-live") == "polite"


def test_plus_and_minus_change_the_speed(partial_write: Any) -> None:
    speed = partial_write.get_by_label("Speed")
    speed.select_option("2")
    partial_write.evaluate("document.activeElement.blur()")
    partial_write.keyboard.press("+")
    assert speed.input_value() == "5"
    for _ in range(9):
        partial_write.keyboard.press("-")
    assert speed.input_value() == "1"


def test_address_keeps_the_position_and_leads_there(open_page: Open) -> None:
    page = open_page(bundled(), "#trace=backpressure&n=38")
    assert (page.text_content("#title"), here(page)) == ("Backpressure", 38)
    page.keyboard.press("ArrowRight")
    until(page, "location.hash === '#trace=backpressure&n=39'")
    page.evaluate("location.hash = '#trace=emfile&n=20'")
    until(page, "player.n === 20")
    assert page.text_content("#title") == "No descriptor left"


def test_invalid_address_leads_to_the_nearest_event(open_page: Open) -> None:
    last = len(events_of("calm-echo")) - 1
    page = open_page([GALLERY["calm-echo"]], "#n=99999")
    assert here(page) == last
    for place, n in (("#n=-3", 0), ("#n=1e999", last), ("#n=x", 0), ("#n=2.7", 2), ("#trace=nowhere", 0), ("#%", 0)):
        page.evaluate("place => { location.hash = place; player.followHash(); }", place)
        assert here(page) == n, place


def test_brackets_go_through_the_gallery(shared: Any) -> None:
    shared.evaluate("player.choose(0)")
    titles = [trace.header["title"] for trace in bundled()]
    for title in titles[1:]:
        shared.keyboard.press("]")
        assert shared.text_content("#title") == title
        assert shared.title() == f"{title} – one turn at a time"
        assert shared.locator("#gallery [aria-current=true]").text_content() == title
    shared.keyboard.press("]")
    shared.keyboard.press("[")
    assert shared.text_content("#title") == titles[-2]
    shared.get_by_role("button", name=titles[0]).click()
    assert shared.text_content("#title") == titles[0]


def test_calling_lines_can_be_shown(partial_write: Any) -> None:
    partial_write.keyboard.press("p")
    event = events_of("partial-write")[here(partial_write)]
    chain = partial_write.locator("#via button")
    assert chain.all_text_contents() == [event["at"], *event["via"]]
    chain.last.click()
    assert partial_write.text_content("#source-place .place") == event["via"][-1]
    assert "on_event" in partial_write.text_content("#source-lines .now")


# ---------------------------------------------------------------- accessibility


def test_question_mark_shows_the_keys_and_escape_hides_them(partial_write: Any) -> None:
    partial_write.keyboard.press("?")
    dialog = partial_write.get_by_role("dialog")
    assert dialog.is_visible()
    assert "next partial write" in dialog.text_content()
    assert presses(partial_write, "ArrowRight") == [0]  # a dialog has the keys
    partial_write.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_letters_can_be_switched_off(partial_write: Any) -> None:
    partial_write.keyboard.press("?")
    box = partial_write.get_by_role("checkbox")
    box.uncheck()
    partial_write.keyboard.press("Escape")
    assert presses(partial_write, "p") == [0]
    assert presses(partial_write, "ArrowRight") == [1]
    partial_write.evaluate("document.getElementById('letters').checked = true")


def test_every_control_has_a_name_and_every_meter_a_value(shared: Any) -> None:
    shared.evaluate("player.choose(2, 38)")
    tree = shared.locator("body").aria_snapshot()
    for nameless in ("- button\n", "- slider\n", "- combobox\n", "- checkbox\n", "- meter\n", "- img\n"):
        assert nameless not in tree
    assert 'meter "Send buffer of connection-1"' in tree
    assert 'img "watched for WRITE"' in tree
    assert 'img "Turn 6: step 3 of 5, dispatch"' in tree
    assert "connection-1, OPEN, watched for WRITE, 1,536 bytes waiting" in tree
    unnamed = """() => [...document.querySelectorAll("button, input, select, [role=meter]")].filter(
        (each) => !(each.textContent.trim() || each.getAttribute("aria-label") || each.labels?.length)).length"""
    assert shared.evaluate(unnamed) == 0


CONTRAST = """() => {
  const channel = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const colour = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const found = colour(getComputedStyle(element).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found;
    }
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *:not(svg *):not(script):not(style):not(noscript)")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest("dialog, [aria-disabled=true]")) continue;
    const [a, b] = [light(colour(getComputedStyle(element).color)), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${element.className || element.id || element.tagName}: ${ratio.toFixed(2)}`);
  }
  return [...new Set(poor)];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_theme_follows_the_system_with_enough_contrast(open_page: Open, scheme: str) -> None:
    page = open_page(bundled(), "#trace=stale-event&n=30", scheme=scheme)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    for place in ("player.choose(7, 31)", "player.choose(2, 38)", "player.choose(5, 22)", "player.choose(8, 20)"):
        page.evaluate(place)
        page.evaluate("Promise.all(document.getAnimations().map((each) => each.finished))")
        assert page.evaluate(CONTRAST) == []


def test_theme_can_be_chosen(open_page: Open) -> None:
    page = open_page([GALLERY["calm-echo"]], scheme="dark")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    dark = page.evaluate(ground)
    page.keyboard.press("t")
    assert page.evaluate(ground) != dark
    assert page.text_content("#theme") == "Theme: light"
    page.get_by_role("button", name="Theme: light").click()
    assert page.evaluate(ground) == dark
    page.keyboard.press("t")
    page.emulate_media(color_scheme="light")
    until(page, "document.documentElement.dataset.theme === 'light'")


def test_reduced_motion_is_respected(open_page: Open) -> None:
    moving = "[...document.querySelectorAll('*')].filter((e) => getComputedStyle(e).transitionDuration !== '0s').length"
    page = open_page([GALLERY["backpressure"]])
    assert page.evaluate(moving) > 0
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(moving) == 0
    page.keyboard.press("w")
    assert page.evaluate("document.getAnimations().length") == 0


def test_page_fits_narrow_screens(open_page: Open) -> None:
    page = open_page(bundled())
    for width in (320, 360, 720, 1024, 1920):
        page.set_viewport_size({"width": width, "height": 740})
        for index in range(len(NAMES)):
            page.evaluate("index => player.choose(index, 30)", index)
            assert page.evaluate("document.documentElement.scrollWidth") <= width


FOCUS_IS_SEEN = """document.activeElement === document.body
    || getComputedStyle(document.activeElement).outlineStyle !== 'none'"""


def test_keyboard_reaches_all_controls_with_visible_focus(partial_write: Any) -> None:
    seen = []
    for _ in range(60):
        partial_write.keyboard.press("Tab")
        seen.append(partial_write.evaluate("document.activeElement.id || document.activeElement.className"))
        assert partial_write.evaluate(FOCUS_IS_SEEN)
    assert {"theme", "help-open", "scrubber", "play", "forward", "turn-back", "speed", "next", "previous"} <= set(seen)


# ---------------------------------------------------------------- any trace


def parsed(content: bytes) -> Trace:
    return read(io.BytesIO(content), EVIL)


def test_no_text_of_a_trace_becomes_markup_in_the_page(open_page: Open) -> None:
    evil: list[Move] = [
        ("adopted", EVIL, {"what": EVIL, "fd": 3, "protocol": EVIL, "where": EVIL, "high_water_bytes": 5, "at": EVIL}),
        ("turn", EVIL, {"sleep_s": 1e9, "calls": 2**53, "timers": 0}),
        ("select", "", {"ready": [[EVIL, "RW"], ["constructor", ""], ["__proto__", "R"]], "slept_s": -1.5}),
        ("dispatch", EVIL, {"mask": "R"}), ("stale", "__proto__", {"mask": ""}),
        ("timer_set", EVIL, {"delay_s": 1, "due_t": -9, "callback": EVIL, "owner": EVIL}),
        ("error", EVIL, {"call": EVIL, "errno": EVIL, "text": EVIL}),
        ("state", EVIL, {"before": EVIL, "after": EVIL}), ("blocked", EVIL, {"call": EVIL, "offered": None}),
        ("raised", "", {"error": EVIL, "owner": EVIL}), ("fault", "", {"fault": EVIL}),
        ("closed", EVIL, {"error": EVIL, "state": EVIL}), ("accepted", EVIL, {"peer": EVIL}),
        ("dropped", "datagram-1", {"reason": EVIL, "peer": EVIL}), ("ended", "", {"reason": EVIL}),
        ("buffer", "constructor", {"before": 0, "after": 7}),
        ("interest", "x", {"before": "", "after": "W", "resting": False}),
        ("toString", "hasOwnProperty", {}), (EVIL, EVIL, {"at": "loop.py:999999", "via": ["loop.py:-1", EVIL]}),
    ]  # fmt: skip
    page = open_page([parsed(trace_file(*evil, title=EVIL, about=EVIL)), GALLERY["calm-echo"]])
    for n in range(len(evil)):
        page.evaluate("n => player.goTo(n)", n)
        assert page.locator("img, b:has-text('bold')").count() == 0
    for button in page.locator("#via button").all():
        button.click()
    page.keyboard.press("End")
    until(page, f"location.hash.endsWith('&n={len(evil) - 1}')")
    page.reload()
    assert page.evaluate("player.n") == len(evil) - 1
    assert page.title().startswith(EVIL[:40])  # as it is, and not what its script would make of it


def test_page_of_an_empty_trace_says_so(open_page: Open) -> None:
    page = open_page([parsed(trace_file(title="Nothing"))._replace(left_out=3, cut_short=True)])
    for key in ("ArrowRight", "Space", "p", "End", "Shift+ArrowLeft"):
        page.keyboard.press(key)
    assert page.text_content("#warning").startswith("There is no event in this trace. Its last line is broken off")
    assert page.text_content("#warning").endswith("3 further events left out: the player shows the first 0.")


def test_pause_by_a_protocol_is_shown_and_found(open_page: Open) -> None:
    fields = {"what": "Connection", "fd": 7, "protocol": "", "where": "", "high_water_bytes": 9}
    moves: list[Move] = [TURN, ("adopted", "connection-1", fields), ("paused", "connection-1", {})]
    page = open_page([parsed(trace_file(*moves, ("resumed", "connection-1", {})))])
    assert presses(page, "w") == [2]
    assert page.text_content(".lane .state") == "OPEN · paused"
    assert presses(page, "ArrowRight") == [3]
    assert page.text_content(".lane .state") == "OPEN"


def test_sentence_on_datagrams_has_their_number_and_peer(open_page: Open) -> None:
    batch = {"bytes": 10, "asked": None, "datagrams": 5}
    single = {"bytes": 1, "offered": 1, "peer": "10.0.0.9:7"}
    page = open_page([parsed(trace_file(("received", "datagrambatch-1", batch), ("sent", "datagram-1", single)))])
    assert page.text_content("#sentence") == "recv(2) gives datagrambatch-1 10 bytes in 5 datagrams."
    page.keyboard.press("ArrowRight")
    assert page.text_content("#sentence") == "The kernel takes 1 byte from datagram-1 for 10.0.0.9:7."


def sentences(page: Any, name: str, kind: str) -> list[str]:
    """The player's sentences at the events of this kind."""
    page.evaluate("name => player.choose(player.traces.findIndex((trace) => trace.name === name))", name)
    said = []
    for n in numbers(events_of(name), lambda event: event["kind"] == kind):
        page.evaluate("n => player.goTo(n)", n)
        said.append(page.text_content("#sentence"))
    return said


def test_sentence_on_bytes_received_in_lingering_says_why_they_are_thrown_away(shared: Any) -> None:
    first, *others = sentences(shared, "lingering", "received")
    assert "thrown away" not in first
    assert others
    assert all("to be thrown away" in said and "RST" in said for said in others)


def test_sentence_on_a_stale_event_names_the_new_owner_of_the_descriptor(shared: Any) -> None:
    said = sentences(shared, "stale-event", "stale")
    assert said[0].endswith("and the loop skips it. Its descriptor 7 belongs to connector-1 now.")
    assert said[1].endswith("and the loop skips it.")  # that number is still free


def test_trace_of_another_version_has_a_warning(shared: Any, open_page: Open) -> None:
    trace = GALLERY["calm-echo"]
    assert not shared.is_visible("#warning")
    other = trace._replace(header=trace.header | {"sources": trace.header["sources"] | {"loop.py": "0" * 12}})
    page = open_page([other])
    assert page.text_content("#warning") == (
        "The trace was made with another version of loop.py: the lines shown may be off."
    )


def test_with_a_thousand_handlers_the_busy_ones_are_shown(open_page: Open) -> None:
    moves: list[Move] = [TURN]
    for number in range(1000):
        fields = {"what": "Connection", "fd": number, "protocol": "", "where": "", "high_water_bytes": 9}
        moves.append(("adopted", f"connection-{number}", fields))
    moves.append(("buffer", "connection-17", {"before": 0, "after": 5}))
    moves += [
        ("interest", f"connection-{number}", {"before": "", "after": "R", "resting": False}) for number in range(99)
    ]
    moves += [("select", "", {"ready": [[f"connection-{n}", "R"] for n in range(500, 505)], "slept_s": 0})]
    moves += [("dispatch", "connection-500", {"mask": "R"})]
    moves += [("closed", f"connection-{number}", {"error": None, "state": "OPEN"}) for number in range(300, 500)]
    page = open_page([parsed(trace_file(*moves))], "#n=1102")
    lanes = page.evaluate("[...document.querySelectorAll('.lane')].map((lane) => lane.dataset.who)")
    assert len(lanes) == 24
    assert {"connection-17", *(f"connection-{number}" for number in range(500, 505))} <= set(lanes)
    assert page.text_content("#lanes-left") == "976 more, 1,000 in all: the relevant ones are shown."
    page.keyboard.press("End")
    assert page.text_content("#closed summary") == "199 closed"
    assert page.locator("#closed li").count() == 100


def test_lane_of_the_event_is_in_sight_and_the_page_does_not_move(open_page: Open) -> None:
    moves: list[Move] = []
    for number in range(20):
        fields = {"what": "Connection", "fd": number, "protocol": "", "where": "", "high_water_bytes": 9}
        moves.append(("adopted", f"connection-{number}", fields))
    moves += [("dispatch", f"connection-{number}", {"mask": "R"}) for number in (19, 0, 10)]
    page = open_page([parsed(trace_file(*moves))], "#n=19")
    for n, number in ((20, 19), (21, 0), (22, 10)):
        page.evaluate("n => player.goTo(n)", n)
        lane = page.locator(f"[data-who=connection-{number}]").bounding_box()
        lanes = page.locator("#lanes").bounding_box()
        assert lanes["y"] - 1 <= lane["y"] <= lane["y"] + lane["height"] <= lanes["y"] + lanes["height"] + 1
        assert page.evaluate("scrollY") == 0


def test_trace_of_a_hundred_thousand_events_can_be_stepped_through(open_page: Open) -> None:
    moves: list[Move] = []
    for number in range(MOST_EVENTS // 5):
        who = f"connection-{number % 50}"
        moves += [
            ("turn", "", {"sleep_s": None, "calls": 0, "timers": 0}),
            ("select", "", {"ready": [[who, "R"]], "slept_s": 0}),
            ("dispatch", who, {"mask": "R"}),
            ("received", who, {"bytes": 1, "asked": 9}),
            ("sent", who, {"bytes": 1, "offered": 1}),
        ]
    events = [
        {"n": n, "turn": n // 5 + 1, "t": n / 1e6, "kind": kind, "who": who, "at": "loop.py:98", "via": []} | fields
        for n, (kind, who, fields) in enumerate(moves)
    ]
    page = open_page([GALLERY["calm-echo"]._replace(events=events)], f"#n={MOST_EVENTS}")
    for n in (99_999, 50_003, 50_002, 3, 0):
        page.evaluate("n => player.goTo(n)", n)
        assert (here(page), page.text_content("#turn")) == (n, f"{n // 5 + 1:,}")
    assert page.locator("#marks .turn").count() <= 400
