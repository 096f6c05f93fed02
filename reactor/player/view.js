"use strict";

/* The figure: a state, drawn.
 *
 * Law: what is shown is a function of the state, the event and the tape; this file keeps only elements, to use them
 * again. Everything from the trace becomes text, never markup. Of long lists (handlers, timers, the ready list), the
 * relevant part is shown and the rest is counted. */

const MOST_LANES = 24;
const FEW_LANES = 3;           // this many always fit
const MANY_LANES = 5;          // with more, each lane is smaller
const MOST_ROWS = 12;          // of the ready list and of the timers
const MOST_CLOSED = 100;
const WINDOW_EVENTS = 300;     // shown in a lane's history
const HISTORY = { width: 600, height: 46, strips: 10 };
const SOURCE_LINES = 11;       // shown above and below the event's line
const SVG = "http://www.w3.org/2000/svg";

const PHASE_WORDS = { // as in the docstring of loop.py
  "": "Before the first turn: handlers are being set up.",
  sleep: "How long may select block? Not at all if calls wait, else until the next timer.",
  select: "Ask the kernel which descriptors are ready.",
  dispatch: "Give each ready handler its mask: handler.on_event(mask).",
  timers: "Take out every timer that is due, then call them.",
  calls: "Run what call_soon had queued when this step began, and no more.",
};

const byId = (id) => document.getElementById(id);

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

function draw(parent, tag, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  parent.append(element);
  return element;
}

/* Set a text only where it differs: a screen reader reads out every change. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// ---------------------------------------------------------------- the ring

const RING = { outer: 104, inner: 66, label: 116 };

function point(radius, turn) { // turn: 0 is at the top, 1 is one full turn
  const angle = (turn - 0.25) * 2 * Math.PI;
  return [radius * Math.cos(angle), radius * Math.sin(angle)].map((value) => value.toFixed(2));
}

function drawRing(svg) {
  PHASES.forEach((phase, index) => {
    const begin = (index - 0.5) / PHASES.length, end = (index + 0.5) / PHASES.length, middle = index / PHASES.length;
    const group = draw(svg, "g", { class: "phase", "data-phase": phase });
    draw(group, "path", { d: sector(begin, end) });
    const [x, y] = point((RING.outer + RING.inner) / 2, middle);
    draw(group, "text", { class: "number", x, y: Number(y) + 6 }, String(index + 1));
    const [labelX, labelY] = point(RING.label, middle);
    const anchor = index === 0 ? "middle" : index <= 2 ? "start" : "end";
    const below = index === 2 || index === 3 ? 12 : 0;
    draw(group, "text", { class: "name", x: labelX, y: Number(labelY) + below, "text-anchor": anchor }, phase);
  });
  const [x1, y1] = point(RING.inner - 9, 0.02), [x2, y2] = point(RING.inner - 9, 0.16);
  draw(svg, "path", { class: "arrow", d: `M${x1} ${y1} A${RING.inner - 9} ${RING.inner - 9} 0 0 1 ${x2} ${y2}` });
  const [x3, y3] = point(RING.inner - 15, 0.135), [x4, y4] = point(RING.inner - 3, 0.135);
  draw(svg, "path", { class: "arrow", d: `M${x3} ${y3} L${x2} ${y2} L${x4} ${y4}` });
  draw(svg, "text", { class: "turn-word", y: -14 }, "turn");
  draw(svg, "text", { class: "turn-number", y: 20 });
}

function sector(begin, end) {
  const { outer, inner } = RING;
  const [ax, ay] = point(outer, begin), [bx, by] = point(outer, end);
  const [cx, cy] = point(inner, end), [dx, dy] = point(inner, begin);
  return `M${ax} ${ay} A${outer} ${outer} 0 0 1 ${bx} ${by} L${cx} ${cy} A${inner} ${inner} 0 0 0 ${dx} ${dy} Z`;
}

function showRing(state) {
  const svg = byId("ring");
  for (const group of svg.querySelectorAll(".phase")) {
    group.classList.toggle("now", group.dataset.phase === state.phase);
  }
  const number = svg.querySelector(".turn-number");
  say(number, whole(state.turn));
  number.style.fontSize = state.turn > 99999 ? "22px" : "";
  const step = PHASES.indexOf(state.phase) + 1;
  const where = step ? `step ${step} of 5, ${state.phase}` : "before the first turn";
  say(byId("ring-title"), `Turn ${whole(state.turn)}: ${where}`);
  say(byId("phase-words"), step ? `${step}. ${PHASE_WORDS[state.phase]}` : PHASE_WORDS[""]);
}

// ---------------------------------------------------------------- ready list, timers

function showReady(state) {
  const now = Math.max(0, state.ready.findLastIndex((each) => each.progress !== "to come"));
  const from = Math.max(0, Math.min(now - MOST_ROWS / 2, state.ready.length - MOST_ROWS));
  const shown = state.ready.slice(from, from + MOST_ROWS);
  const rows = shown.map(({ who, mask, progress }) => {
    const row = make("li");
    row.dataset.progress = progress;
    row.append(make("span", "who", who), make("span", "mask-word", mask), make("span", "progress", progress));
    return row;
  });
  if (!rows.length) rows.push(make("li", "none", state.phase === "sleep" ? "not asked yet" : "nothing is ready"));
  const left = state.ready.length - shown.length;
  if (left > 0) rows.push(make("li", "none", `${whole(left)} more, ${whole(state.ready.length)} in all`));
  byId("ready").replaceChildren(...rows);
}

function showTimers(state) {
  const live = [...state.timers.values()].sort((a, b) => a.due_t - b.due_t || a.n - b.n);
  const rows = live.slice(0, MOST_ROWS).map((timer) => {
    const row = make("li"), what = make("span", "what", timer.who);
    what.append(make("span", "owner", ` ${shortName(timer.callback)}${ownedBy(timer)}`));
    const leftS = timer.due_t - state.t;
    row.append(what, make("span", "due", leftS > 0 ? `in ${duration(leftS)}` : "due"));
    return row;
  });
  if (state.firing) {
    const row = make("li", "now");
    row.append(make("span", "what", state.firing), make("span", "due", "fires"));
    rows.unshift(row);
  }
  if (live.length > MOST_ROWS) rows.push(make("li", "none", `${whole(live.length - MOST_ROWS)} more`));
  if (!rows.length) rows.push(make("li", "none", "none is set"));
  byId("timers").replaceChildren(...rows);
}

// ---------------------------------------------------------------- lanes

const lanes = new Map(); // label → the elements of its lane

function showLanes(state, event, tape) {
  const open = [...state.handlers.values()].filter((each) => !each.closed || each.who === event.who);
  const shown = open.length > MOST_LANES ? mattering(open, state, event) : open;
  const wanted = new Set(shown.map((each) => each.who));
  for (const [who, lane] of lanes) {
    if (!wanted.has(who)) {
      lane.item.remove();
      lanes.delete(who);
    }
  }
  const parent = byId("lanes");
  shown.forEach((handler, index) => {
    const lane = lanes.get(handler.who) ?? newLane(handler);
    lanes.set(handler.who, lane);
    if (parent.children[index] !== lane.item) parent.insertBefore(lane.item, parent.children[index] ?? null);
    showLane(lane, handler, event, tape);
  });
  parent.classList.toggle("many", shown.length > MANY_LANES);
  scrollTo(parent, lanes.get(event.who)?.item);
  const left = open.length - shown.length;
  byId("lanes-left").hidden = left === 0;
  const all = `${whole(open.length)} in all`;
  say(byId("lanes-left"), left ? `${whole(left)} more, ${all}: the relevant ones are shown.` : "");
  showClosed(state, event);
}

/* Scroll one lane into sight, where the lanes have their own scroll bar. The page doesn't move. */
function scrollTo(parent, item) {
  if (!item || parent.children.length <= FEW_LANES || parent.scrollHeight <= parent.clientHeight) return;
  const [outer, inner] = [parent.getBoundingClientRect(), item.getBoundingClientRect()];
  if (inner.top < outer.top) parent.scrollTop += inner.top - outer.top;
  else if (inner.bottom > outer.bottom) parent.scrollTop += inner.bottom - outer.bottom;
}

/* The event's handler, then those that are ready, hold bytes, or were active lately; in their usual order. */
function mattering(open, state, event) {
  const isReady = new Set(state.ready.map((each) => each.who));
  const weight = (each) =>
    (each.who === event.who || each.who === event.owner ? 8 : 0) +
    (isReady.has(each.who) ? 4 : 0) + (each.buffer ? 2 : 0) + each.last / (event.n + 1);
  const first = [...open].sort((a, b) => weight(b) - weight(a)).slice(0, MOST_LANES);
  const kept = new Set(first);
  return open.filter((each) => kept.has(each));
}

function newLane({ who, highWater }) {
  const isSmall = highWater === null;
  const item = make("div", isSmall ? "lane small" : "lane");
  const head = make("div", "lane-head"), flow = make("div", "flow");
  const lane = {
    item, who: make("span", "who", who), detail: make("span", "detail"), state: make("span", "state"),
    mask: make("span", "mask"), read: make("b", "R", "R"), write: make("b", "W", "W"),
    flow, in: make("span", "in"), out: make("span", "out"), meter: make("div", "meter"), fill: make("div", "fill"),
    mark: make("div", "mark"), amount: make("div", "amount"), amountText: make("span"),
    history: document.createElementNS(SVG, "svg"), last: make("p", "lane-last"),
  };
  item.dataset.who = who;
  item.setAttribute("role", "group");
  lane.mask.setAttribute("role", "img");
  lane.mask.append(lane.read, lane.write);
  lane.amount.append(lane.amountText);
  lane.meter.append(lane.fill, lane.mark, lane.amount);
  lane.meter.setAttribute("role", "meter");
  lane.meter.setAttribute("aria-label", `Send buffer of ${who}`);
  lane.history.setAttribute("class", "history");
  lane.history.setAttribute("aria-hidden", "true"); // its values are in the lane as text
  lane.history.setAttribute("preserveAspectRatio", "none");
  head.append(lane.who, lane.detail, ...(isSmall ? [lane.last] : []), lane.state, lane.mask);
  flow.append(lane.in, lane.meter, lane.out);
  item.append(head, flow, lane.history, ...(isSmall ? [] : [lane.last]));
  return lane;
}

function showLane(lane, handler, event, tape) {
  const { interest, buffer, highWater } = handler;
  const detail = [handler.protocol || handler.what, handler.where, handler.fd === null ? "" : `fd ${handler.fd}`];
  lane.item.classList.toggle("now", handler.who === event.who || handler.who === event.owner);
  lane.item.classList.toggle("closed", handler.closed);
  say(lane.detail, detail.filter(Boolean).join(" · "));
  const state = handler.closed ? "CLOSED" : handler.resting ? "RESTING" : handler.state;
  say(lane.state, handler.paused && !handler.closed ? `${state} · paused` : state);
  lane.read.classList.toggle("on", interest.includes("R"));
  lane.write.classList.toggle("on", interest.includes("W"));
  lane.mask.classList.toggle("resting", handler.resting);
  lane.mask.dataset.mask = interest;
  lane.mask.setAttribute("aria-label", `watched for ${MASK_WORDS[interest]}`);
  const moves = highWater !== null || handler.bytesIn > 0 || handler.bytesOut > 0 || buffer > 0;
  lane.flow.hidden = !moves;
  lane.meter.style.visibility = highWater === null && !tape.peaks.get(handler.who) ? "hidden" : "";
  showCount(lane.in, "in ", handler.bytesIn, handler.who === event.who && event.kind === "received");
  showCount(lane.out, "out ", handler.bytesOut, handler.who === event.who && event.kind === "sent" && event.bytes > 0);
  showMeter(lane, handler, tape);
  showHistory(lane.history, handler, event.n, tape);
  const last = tape.events[handler.last];
  say(lane.last, last ? `${highWater === null ? "" : `event ${whole(last.n)}: `}${briefly(last)}` : "");
  const waits = highWater === null ? "" : `, ${bytes(buffer)} waiting`;
  const name = [handler.who, lane.state.textContent].filter(Boolean).join(", ");
  lane.item.setAttribute("aria-label", `${name}, watched for ${MASK_WORDS[interest]}${waits}`);
}

function showCount(element, word, value, moved) {
  const number = make("b", "", whole(value));
  number.dataset.value = value;
  if (element.lastElementChild?.dataset.value !== String(value)) element.replaceChildren(word, number, " B");
  element.classList.toggle("moved", moved);
}

/* The scale ends a little above the high-water mark; if the buffer stayed far below it, a little above its peak. */
function scaleOf(handler, tape) {
  const peak = tape.peaks.get(handler.who) ?? 0, high = handler.highWater ?? 0;
  return peak * 4 < high ? Math.max(peak * 1.25, 1) : Math.max(peak, high * 1.15, 1);
}

function showMeter(lane, handler, tape) {
  const scale = scaleOf(handler, tape), { buffer, highWater } = handler;
  const isHigh = highWater !== null && buffer > highWater;
  lane.fill.style.width = `${Math.min(100, (100 * buffer) / scale)}%`;
  lane.mark.hidden = highWater === null || highWater > scale;
  if (!lane.mark.hidden) lane.mark.style.left = `${(100 * highWater) / scale}%`;
  lane.meter.classList.toggle("high", isHigh);
  lane.meter.setAttribute("aria-valuemin", "0");
  lane.meter.setAttribute("aria-valuemax", String(Math.round(Math.max(scale, buffer))));
  lane.meter.setAttribute("aria-valuenow", String(buffer));
  const limit = highWater === null ? "" : `, high-water mark ${bytes(highWater)}`;
  lane.meter.setAttribute("aria-valuetext", `${bytes(buffer)} waiting${limit}`);
  lane.amountText.hidden = buffer === 0;
  say(lane.amountText, buffer ? `${whole(buffer)} B wait` : "");
  lane.meter.title = `Send buffer: ${bytes(buffer)} waiting${limit}`;
}

/* Which events a lane's history shows: all of a short trace, else those around the current event. */
function windowAround(n, tape) {
  const length = Math.min(tape.events.length, WINDOW_EVENTS);
  const first = Math.max(0, Math.min(n - Math.floor(length / 2), tape.events.length - length));
  return { first, end: first + length };
}

/* A lane through time: what waited, as an area; below it what was watched, READ above WRITE; and the cursor. */
function showHistory(svg, handler, n, tape) {
  const { first, end } = windowAround(n, tape), { width, height, strips } = HISTORY;
  const changes = changesBetween(tape.histories.get(handler.who) ?? [], first, end);
  const scale = scaleOf(handler, tape), ground = height - strips - 2;
  const x = (at) => ((Math.max(at, first) - first) / (end - first)) * width;
  const y = (value) => ground - (value / scale) * (ground - 2);
  const hasBuffer = (tape.peaks.get(handler.who) ?? 0) > 0; // otherwise only the watched masks are drawn
  svg.classList.toggle("flat", !hasBuffer);
  const key = `${first} ${end} ${hasBuffer}`;
  if (svg.dataset.key !== key) { // all but the cursor is drawn once for each window
    svg.dataset.key = key;
    svg.replaceChildren();
    svg.setAttribute("viewBox", hasBuffer ? `0 0 ${width} ${height}` : `0 ${height - strips} ${width} ${strips}`);
    if (hasBuffer) {
      drawArea(svg, changes, x, y, end, ground);
      if (handler.highWater !== null && handler.highWater <= scale) {
        draw(svg, "line", { class: "limit", x1: 0, x2: width, y1: y(handler.highWater), y2: y(handler.highWater) });
      }
      draw(svg, "line", { class: "ground", x1: 0, x2: width, y1: ground, y2: ground });
    }
    drawStrips(svg, changes, x, end);
    draw(svg, "line", { class: "cursor", y1: 0, y2: height });
  }
  const cursor = svg.lastElementChild, at = ((n + 0.5 - first) / (end - first)) * width;
  cursor.setAttribute("x1", at);
  cursor.setAttribute("x2", at);
}

function changesBetween(history, first, end) {
  const before = history.findLastIndex((each) => each.n <= first);
  return history.slice(Math.max(0, before)).filter((each) => each.n < end);
}

function drawArea(svg, changes, x, y, end, ground) {
  if (!changes.length) return;
  const steps = changes.map((each, index) => `H${x(each.n)} V${y(each.buffer)} H${x(changes[index + 1]?.n ?? end)}`);
  draw(svg, "path", { class: "area", d: `M${x(changes[0].n)} ${ground} ${steps.join(" ")} V${ground} Z` });
}

function drawStrips(svg, changes, x, end) {
  changes.forEach((each, index) => {
    const from = x(each.n), to = x(changes[index + 1]?.n ?? end);
    ["R", "W"].filter((bit) => each.interest.includes(bit)).forEach((bit) => {
      const top = HISTORY.height - HISTORY.strips + (bit === "R" ? 1 : 6);
      draw(svg, "rect", { class: bit, x: from, width: Math.max(0, to - from), y: top, height: 3.5 });
    });
  });
}

function showClosed(state, event) {
  const closed = [...state.handlers.values()].filter((each) => each.closed && each.who !== event.who);
  const details = byId("closed");
  details.hidden = !closed.length;
  say(details.querySelector("summary"), `${whole(closed.length)} closed`);
  const rows = closed.slice(-MOST_CLOSED).reverse().map((each) => {
    const moved = `${whole(each.bytesIn)} B in, ${whole(each.bytesOut)} B out`;
    const parts = [each.protocol || each.what, each.where, moved].filter(Boolean);
    return make("li", "", `${each.who}: ${parts.join(" · ")}`);
  });
  details.querySelector("ul").replaceChildren(...rows);
}

// ---------------------------------------------------------------- the source

const STRING = /"""[\s\S]*?"""|f?"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'/.source;
const COMMENT = /#[^\n]*/.source;
const WORDS = (
  "False None True and as assert break class continue def del elif else except finally for from if import in is " +
  "lambda not or pass raise return try while with yield"
).replaceAll(" ", "|");
const TOKEN = new RegExp(`(${STRING})|(${COMMENT})|\\b(${WORDS})\\b`, "g");
const TOKEN_CLASSES = ["token-string", "token-comment", "token-word"];

/* A file's lines, each a list of [class, text]. */
function coloured(source) {
  const lines = [[]];
  const add = (className, text) => {
    text.split("\n").forEach((part, index) => {
      if (index) lines.push([]);
      if (part) lines.at(-1).push([className, part]);
    });
  };
  let end = 0;
  for (const match of source.matchAll(TOKEN)) {
    add("", source.slice(end, match.index));
    add(TOKEN_CLASSES[match.slice(1).findIndex((group) => group !== undefined)], match[0]);
    end = match.index + match[0].length;
  }
  add("", source.slice(end));
  return lines;
}

/* The class and function around a line: the lines above that are indented less and begin one. */
function functionAround(lines, lineno) {
  const names = [];
  let indent = Infinity;
  for (let index = lineno - 1; index >= 0; index--) {
    const line = lines[index];
    const depth = line.search(/\S/);
    if (depth < 0 || depth >= indent) continue;
    indent = depth;
    const begins = line.match(/^\s*(?:class|def|async def) (\w+)/);
    if (begins) names.unshift(begins[1]);
  }
  return names.join(".");
}

class Sources {
  constructor(files) {
    this.files = new Map(Object.entries(files));
    this.plain = new Map();
    this.coloured = new Map();
  }

  lines(file) {
    if (!this.plain.has(file)) {
      this.plain.set(file, this.files.get(file).split("\n"));
      this.coloured.set(file, coloured(this.files.get(file)));
    }
    return this.plain.get(file);
  }

  show(at) {
    const [file, number] = [at.slice(0, at.lastIndexOf(":")), Number(at.slice(at.lastIndexOf(":") + 1))];
    const place = byId("source-place"), excerpt = byId("source-lines");
    if (!this.files.has(file) || this.lines(file)[number - 1] === undefined) {
      const why = at ? `${at}: its source isn't here` : "No line of the loop made this event.";
      place.replaceChildren(make("span", "none", why));
      excerpt.hidden = true;
      return;
    }
    const lines = this.lines(file), inside = functionAround(lines, number);
    place.replaceChildren(make("span", "place", `${file}:${number}`));
    if (inside) place.append(make("span", "function", `  ${inside}`));
    excerpt.hidden = false;
    const first = Math.max(1, number - SOURCE_LINES), end = Math.min(lines.length, number + SOURCE_LINES);
    excerpt.replaceChildren();
    for (let lineno = first; lineno <= end; lineno++) excerpt.append(this.row(file, lineno, lineno === number));
    excerpt.scrollLeft = 0;
  }

  row(file, lineno, isNow) {
    const row = make("span", isNow ? "source-line now" : "source-line");
    if (isNow) row.setAttribute("aria-current", "true");
    row.append(make("span", "lineno", String(lineno)));
    for (const [className, text] of this.coloured.get(file)[lineno - 1] ?? []) {
      row.append(className ? make("span", className, text) : text);
    }
    return row;
  }
}

/* The lines that called this one; a click shows each. */
function showVia(event, sources) {
  const chain = [event.at, ...(event.via ?? [])].filter(Boolean);
  const parent = byId("via");
  parent.hidden = chain.length < 2;
  const buttons = chain.map((at, index) => {
    const item = make("li"), button = make("button", "", at);
    button.type = "button";
    if (index === 0) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => {
      sources.show(at);
      for (const other of parent.querySelectorAll("button")) other.removeAttribute("aria-current");
      button.setAttribute("aria-current", "true");
    });
    if (index) item.append("← ");
    item.append(button);
    return item;
  });
  parent.replaceChildren(...buttons);
}

// ---------------------------------------------------------------- all of it

/* Marks under the scrubber: at most one of each kind at each of its 400 places. */
function showMarks(tape) {
  const svg = byId("marks"), width = 400, count = Math.max(1, tape.events.length - 1);
  svg.setAttribute("viewBox", `0 0 ${width} 12`);
  svg.replaceChildren();
  for (const [name, numbers] of [["turn", tape.turns], ...Object.entries(tape.jumps)]) {
    const [height, thickness] = name === "turn" ? [5, 1] : [12, 2];
    const places = new Set(numbers.map((n) => Math.round((n / count) * width)));
    if (name === "turn" && places.size > width / 2) continue; // too many to tell apart
    for (const x of places) {
      draw(svg, "rect", { class: name, x: x - thickness / 2, y: 0, width: thickness, height });
    }
  }
}

function showState(state, event, tape, sources) {
  say(byId("event-number"), whole(event.n));
  say(byId("turn"), whole(state.turn));
  say(byId("clock"), duration(state.t - tape.startS));
  const kind = byId("kind");
  say(kind, event.kind.replace("_", " "));
  kind.dataset.jump = jumpKind(event, state.handlers.get(event.who) ?? newHandler(event.who));
  say(byId("sentence"), sentenceOf(event, state));
  showRing(state);
  showReady(state);
  showTimers(state);
  showLanes(state, event, tape);
  sources.show(event.at);
  showVia(event, sources);
}
