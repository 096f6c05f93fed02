"use strict";

/* The player: the position in the trace, and what moves it.
 *
 * Law: every move ends in `goTo`, and only `goTo` draws the figure. So a key, a button, the scrubber, the address and
 * playing all give the same picture. */

const HASH_QUIET_MS = 200; // browsers refuse an address that changes too often

class Player {
  constructor(page) {
    this.traces = page.traces;
    this.sources = new Sources(page.sources);
    this.tapes = new Map(); // each trace is indexed once, when it is first shown
    this.chosen = -1;
    this.n = 0;
    this.timer = 0;
    this.hashTimer = 0;
  }

  get tape() {
    return this.tapes.get(this.chosen);
  }

  get lastN() {
    return this.tape.events.length - 1;
  }

  get isPlaying() {
    return this.timer !== 0;
  }

  choose(index, n = 0) {
    if (index < 0 || index >= this.traces.length) return;
    this.pause();
    this.chosen = index;
    const trace = this.traces[index];
    if (!this.tapes.has(index)) this.tapes.set(index, new Tape(trace));
    byId("lanes").replaceChildren();
    lanes.clear();
    showTrace(trace, this.tape, index);
    showMarks(this.tape);
    this.goTo(n);
  }

  /* Show the state after event n, or after the nearest event. */
  goTo(n) {
    if (this.lastN < 0) return;
    this.n = Math.max(0, Math.min(this.lastN, Math.trunc(n) || 0));
    const state = this.tape.at(this.n), event = this.tape.events[this.n];
    showState(state, event, this.tape, this.sources);
    this.showControls(event);
    clearTimeout(this.hashTimer);
    this.hashTimer = setTimeout(() => this.keepHash(), HASH_QUIET_MS);
  }

  step(by) {
    this.pause();
    this.goTo(this.n + by);
  }

  stepTurn(by) {
    this.pause();
    this.goTo(by > 0 ? this.tape.turnAfter(this.n) : this.tape.turnBefore(this.n));
  }

  jump(kind, by) {
    const target = this.jumpTarget(kind, by);
    if (target === undefined) return;
    this.pause();
    this.goTo(target);
  }

  jumpTarget(kind, by) {
    const numbers = this.tape.jumps[kind];
    return by > 0 ? numbers.find((n) => n > this.n) : numbers.findLast((n) => n < this.n);
  }

  // ------------------------------------------------ playing

  play() {
    if (this.lastN < 0) return;
    if (this.n >= this.lastN) this.goTo(0);
    const began = performance.now(), from = this.n, perSecond = Number(byId("speed").value);
    byId("sentence").setAttribute("aria-live", "off"); // too fast for a screen reader
    document.body.classList.toggle("busy", perSecond > 5);
    const tick = () => {
      const target = from + Math.floor(((performance.now() - began) / 1000) * perSecond);
      if (target > this.n) this.goTo(target);
      if (this.n >= this.lastN) this.pause();
    };
    this.timer = setInterval(tick, Math.max(16, 1000 / perSecond / 4));
    showPlaying(true);
  }

  pause() {
    if (!this.isPlaying) return;
    clearInterval(this.timer);
    this.timer = 0;
    byId("sentence").setAttribute("aria-live", "polite");
    document.body.classList.remove("busy");
    showPlaying(false);
  }

  toggle() {
    if (this.isPlaying) this.pause();
    else this.play();
  }

  changeSpeed(by) {
    const select = byId("speed");
    select.selectedIndex = Math.max(0, Math.min(select.options.length - 1, select.selectedIndex + by));
    this.speedChanged();
  }

  speedChanged() {
    if (!this.isPlaying) return;
    this.pause();
    this.play();
  }

  // ------------------------------------------------ what the controls say, and the address

  showControls(event) {
    const scrubber = byId("scrubber"), atFirst = this.n === 0, atLast = this.n === this.lastN;
    scrubber.value = this.n;
    scrubber.setAttribute("aria-valuetext", `event ${this.n} of ${this.lastN}, turn ${event.turn}: ${event.kind}`);
    for (const id of ["first", "back", "turn-back"]) disable(byId(id), atFirst);
    for (const id of ["last", "forward", "turn-forward"]) disable(byId(id), atLast);
    for (const group of document.querySelectorAll(".jump")) {
      disable(group.querySelector(".previous"), this.jumpTarget(group.dataset.jump, -1) === undefined);
      disable(group.querySelector(".next"), this.jumpTarget(group.dataset.jump, 1) === undefined);
    }
  }

  keepHash() {
    try {
      history.replaceState(null, "", this.hash());
    } catch {
      // some browsers refuse this for a file or in a frame: the address then stays as it is
    }
  }

  hash() {
    const trace = this.traces.length > 1 ? { trace: this.traces[this.chosen].name } : {};
    return `#${new URLSearchParams({ ...trace, n: this.n })}`;
  }

  /* Go where the address says; what it doesn't say stays as it is. */
  followHash() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const named = this.traces.findIndex((trace) => trace.name === wanted.get("trace"));
    const index = named >= 0 ? named : Math.max(0, this.chosen), n = Number(wanted.get("n") ?? 0);
    if (index !== this.chosen) this.choose(index, n);
    else if (Math.trunc(n) !== this.n) this.step(n - this.n);
  }
}

/* A button without effect says so, but keeps the focus: otherwise a keyboard user would lose it at the end. */
function disable(button, isDisabled) {
  button.setAttribute("aria-disabled", String(isDisabled));
}

function showPlaying(isPlaying) {
  say(byId("play"), isPlaying ? "Pause" : "Play");
}

function showTrace(trace, tape, index) {
  const { header } = trace;
  say(byId("title"), header.title || trace.name);
  document.title = `${header.title || trace.name} – one turn at a time`;
  say(byId("about"), header.about);
  byId("about").hidden = !header.about;
  say(byId("event-count"), whole(Math.max(0, tape.events.length - 1)));
  say(byId("clock-kind"), header.clock === "simulated" ? "since the start, on a simulated clock" : "since the start");
  byId("scrubber").max = Math.max(0, tape.events.length - 1);
  const warnings = warningsOf(trace);
  say(byId("warning"), warnings.join(" "));
  byId("warning").hidden = !warnings.length;
  for (const button of document.querySelectorAll("#gallery button")) {
    if (Number(button.dataset.index) === index) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  for (const group of document.querySelectorAll(".jump")) {
    const count = tape.jumps[group.dataset.jump].length, name = JUMPS[group.dataset.jump];
    group.querySelector(".next").title = `Next ${name}; there ${count === 1 ? "is 1" : `are ${whole(count)}`} in all`;
    group.querySelector(".next").setAttribute("aria-label", `Next ${name}`);
    group.querySelector(".previous").title = `Previous ${name}`;
    group.querySelector(".previous").setAttribute("aria-label", `Previous ${name}`);
  }
}

const JUMPS = { partial: "partial write", pause: "read pause", error: "error" };

function warningsOf(trace) {
  const warnings = [];
  if (!trace.events.length) warnings.push("There is no event in this trace.");
  if (trace.cut_short) {
    warnings.push("Its last line is broken off: the process was ended while it wrote. All complete lines are here.");
  }
  if (trace.left_out) {
    const shown = `the player shows the first ${whole(trace.events.length)}`;
    warnings.push(`${some(trace.left_out, "further event")} left out: ${shown}.`);
  }
  if (trace.changed.length) {
    warnings.push(`The trace was made with another version of ${list(trace.changed)}: the lines shown may be off.`);
  }
  return warnings;
}

// ---------------------------------------------------------------- what moves the position

const KEYS = {
  ArrowRight: (player) => player.step(1),
  ArrowLeft: (player) => player.step(-1),
  "Shift+ArrowRight": (player) => player.stepTurn(1),
  "Shift+ArrowLeft": (player) => player.stepTurn(-1),
  Home: (player) => player.step(-Infinity),
  End: (player) => player.step(Infinity),
};
const LETTERS = {
  " ": (player) => player.toggle(),
  "+": (player) => player.changeSpeed(1),
  "-": (player) => player.changeSpeed(-1),
  p: (player, by) => player.jump("partial", by),
  w: (player, by) => player.jump("pause", by),
  e: (player, by) => player.jump("error", by),
  "[": (player) => player.choose(player.chosen - 1),
  "]": (player) => player.choose(player.chosen + 1),
  t: () => changeTheme(),
  "?": () => byId("help").showModal(),
};

function onKey(player, event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const inSelect = event.target instanceof HTMLSelectElement;
  const onButton = event.target instanceof HTMLElement && event.target.closest("button, summary");
  if (inSelect || (onButton && event.key === " ")) return; // the element handles this key itself
  const isArrow = event.key.startsWith("Arrow"), letter = event.key.toLowerCase(); // Caps Lock isn't Shift
  const action = KEYS[isArrow && event.shiftKey ? `Shift+${event.key}` : event.key]
    ?? (byId("letters").checked ? LETTERS[letter] : undefined);
  if (action === undefined) return;
  event.preventDefault();
  action(player, event.shiftKey ? -1 : 1);
}

const THEMES = ["auto", "light", "dark"];
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
let theme = "auto";

function changeTheme() {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  showTheme();
}

function showTheme() {
  document.documentElement.dataset.theme = theme === "auto" ? (prefersDark.matches ? "dark" : "light") : theme;
  say(byId("theme"), `Theme: ${theme}`);
}

function onClick(id, action) {
  byId(id).addEventListener("click", action);
}

function connectControls(player) {
  onClick("first", () => player.step(-Infinity));
  onClick("turn-back", () => player.stepTurn(-1));
  onClick("back", () => player.step(-1));
  onClick("play", () => player.toggle());
  onClick("forward", () => player.step(1));
  onClick("turn-forward", () => player.stepTurn(1));
  onClick("last", () => player.step(Infinity));
  onClick("theme", changeTheme);
  onClick("help-open", () => byId("help").showModal());
  byId("speed").addEventListener("change", () => player.speedChanged());
  byId("scrubber").addEventListener("input", (event) => player.step(Number(event.target.value) - player.n));
  for (const group of document.querySelectorAll(".jump")) {
    group.querySelector(".previous").addEventListener("click", () => player.jump(group.dataset.jump, -1));
    group.querySelector(".next").addEventListener("click", () => player.jump(group.dataset.jump, 1));
  }
  byId("lanes").addEventListener("click", (event) => {
    const svg = event.target.closest(".history");
    if (!svg) return;
    const box = svg.getBoundingClientRect(), { first, end } = windowAround(player.n, player.tape);
    player.step(first + Math.floor(((event.clientX - box.left) / box.width) * (end - first)) - player.n);
  });
  document.addEventListener("keydown", (event) => onKey(player, event));
  window.addEventListener("hashchange", () => player.followHash());
  prefersDark.addEventListener("change", showTheme);
}

function listTraces(player) {
  byId("gallery").hidden = player.traces.length < 2;
  player.traces.forEach((trace, index) => {
    const item = make("li"), button = make("button", "", trace.header.title || trace.name);
    button.type = "button";
    button.dataset.index = index;
    button.addEventListener("click", () => player.choose(index));
    item.append(button);
    byId("gallery").querySelector("ol").append(item);
  });
}

const player = new Player(JSON.parse(byId("data").textContent));
showTheme();
drawRing(byId("ring"));
listTraces(player);
connectControls(player);
player.followHash();
