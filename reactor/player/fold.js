"use strict";

/* What the loop has after each event: a fold of the trace.
 *
 *     state at n  =  events 0 … n, applied one after the other to an empty state
 *
 * Law: `apply` uses the state and the event alone. It replaces a handler's entry and never changes one, so a copy of
 * the three containers keeps a state. There is a snapshot every SNAPSHOT_EVENTS: a step back starts from the snapshot
 * before and applies at most that many events again, however long the trace is. */

const SNAPSHOT_EVENTS = 500;
const PHASES = ["sleep", "select", "dispatch", "timers", "calls"];
const PHASE_THAT_BEGINS = new Map([
  ["turn", "sleep"], ["select", "select"], ["dispatch", "dispatch"], ["stale", "dispatch"],
  ["timer_fired", "timers"], ["call", "calls"],
]);

function emptyState(startS) {
  return {
    n: -1, turn: 0, t: startS, phase: "",
    sleepS: null, calls: 0, heap: 0, // at the turn's beginning: how long it may sleep, calls queued, timers in the heap
    ready: [],                       // what select has returned: {who, mask, progress}
    firing: "", calling: "",         // the timer and the call of this event
    handlers: new Map(),             // label → entry, in the order of registration
    timers: new Map(),               // label → {due_t, delay_s, callback, owner}, of pending timers
  };
}

function newHandler(who) {
  return {
    who, what: "", fd: null, protocol: "", where: "", highWater: null,
    state: "", interest: "", resting: false, paused: false,
    buffer: 0, bytesIn: 0, bytesOut: 0, closed: false, last: -1,
  };
}

function copyOf(state) {
  return { ...state, ready: state.ready.slice(), handlers: new Map(state.handlers), timers: new Map(state.timers) };
}

function change(state, who, changes) {
  state.handlers.set(who, { ...(state.handlers.get(who) ?? newHandler(who)), ...changes });
}

const bytesOf = (state, who, key) => state.handlers.get(who)?.[key] ?? 0;

const EFFECTS = new Map(Object.entries({
  turn(state, event) {
    state.turn = event.turn;
    state.sleepS = event.sleep_s;
    state.calls = event.calls;
    state.heap = event.timers;
    state.ready = [];
  },
  select(state, event) {
    state.ready = event.ready.map(([who, mask]) => ({ who, mask, progress: "to come" }));
  },
  dispatch: (state, event) => reach(state, event.who, "now"),
  stale: (state, event) => reach(state, event.who, "stale"),
  adopted(state, event) {
    const isConnection = event.high_water_bytes !== null;
    change(state, event.who, {
      what: event.what, fd: event.fd, protocol: event.protocol, where: event.where,
      highWater: event.high_water_bytes, state: isConnection ? "OPEN" : "", closed: false,
    });
  },
  received: (state, event) =>
    change(state, event.who, { bytesIn: bytesOf(state, event.who, "bytesIn") + event.bytes }),
  sent: (state, event) =>
    change(state, event.who, { bytesOut: bytesOf(state, event.who, "bytesOut") + event.bytes }),
  interest: (state, event) => change(state, event.who, { interest: event.after, resting: event.resting }),
  buffer: (state, event) => change(state, event.who, { buffer: event.after }),
  state: (state, event) => change(state, event.who, { state: event.after }),
  paused: (state, event) => change(state, event.who, { paused: true }),
  resumed: (state, event) => change(state, event.who, { paused: false }),
  closed(state, event) {
    const wasConnection = Boolean(state.handlers.get(event.who)?.state);
    change(state, event.who, {
      closed: true, interest: "", resting: false, buffer: 0, state: wasConnection ? "CLOSED" : "",
    });
  },
  timer_set: (state, event) => state.timers.set(event.who, event),
  timer_fired(state, event) {
    state.timers.delete(event.who);
    state.firing = event.who;
  },
  timer_cancelled: (state, event) => state.timers.delete(event.who),
  call(state, event) {
    state.calling = event.callback;
  },
}));

/* The loop goes through the ready list in order, so the handler called before is done. */
function reach(state, who, progress) {
  settle(state);
  const entry = state.ready.findIndex((each) => each.who === who && each.progress === "to come");
  if (entry >= 0) state.ready[entry] = { ...state.ready[entry], progress };
}

function settle(state) {
  state.ready = state.ready.map((each) => (each.progress === "now" ? { ...each, progress: "done" } : each));
}

/* Apply one event to a state, and return the state. */
function apply(state, event) {
  state.n = event.n;
  state.t = event.t;
  const phase = PHASE_THAT_BEGINS.get(event.kind);
  if (phase !== undefined) {
    state.phase = phase;
    state.firing = state.calling = "";
    if (phase !== "dispatch") settle(state);
  }
  EFFECTS.get(event.kind)?.(state, event);
  const handler = state.handlers.get(event.who);
  if (handler !== undefined) state.handlers.set(event.who, { ...handler, last: event.n });
  return state;
}

/* The kind of jump that stops at an event. `after` is the handler's entry after it. */
function jumpKind(event, after) {
  if (event.kind === "sent" && event.bytes < event.offered) return "partial";
  if (event.kind === "paused" || stopsReading(event, after)) return "pause";
  if (["error", "raised", "fault"].includes(event.kind)) return "error";
  if (event.kind === "closed" && event.error !== null) return "error";
  return "";
}

/* Whether backpressure or a rest stops reading. Above the mark no FIN is read, so a FIN can't be the reason. */
function stopsReading(event, after) {
  if (event.kind !== "interest" || !event.before.includes("R") || event.after.includes("R")) return false;
  return event.resting || (after.highWater !== null && after.buffer > after.highWater);
}

/* A trace, indexed in one pass: snapshots, where turns begin, where to jump, each handler's history. */
class Tape {
  constructor(trace) {
    this.trace = trace;
    this.events = trace.events;
    this.startS = this.events.length ? this.events[0].t : 0;
    this.turns = [];                                // numbers of the events that begin turns
    this.jumps = { partial: [], pause: [], error: [] };
    this.histories = new Map();                     // label → [{n, buffer, interest, state}], one for each change
    this.peaks = new Map();                         // label → the most bytes that ever waited
    this.snapshots = [];                            // the state before event k × SNAPSHOT_EVENTS
    const state = emptyState(this.startS);
    for (const event of this.events) {
      if (event.n % SNAPSHOT_EVENTS === 0) this.snapshots.push(copyOf(state));
      apply(state, event);
      this.note(event, state.handlers.get(event.who));
    }
    this.here = state; // the current state: a step forward applies one event to it
  }

  note(event, handler) {
    if (event.kind === "turn") this.turns.push(event.n);
    const jump = jumpKind(event, handler);
    if (jump) this.jumps[jump].push(event.n);
    if (handler === undefined) return;
    const history = this.histories.get(event.who) ?? [];
    const last = history.at(-1);
    const { buffer, interest, state, closed } = handler;
    const same = last && last.buffer === buffer && last.interest === interest && last.state === state;
    if (!same || last.closed !== closed) history.push({ n: event.n, buffer, interest, state, closed });
    this.histories.set(event.who, history);
    this.peaks.set(event.who, Math.max(buffer, this.peaks.get(event.who) ?? 0));
  }

  /* The state after event n. It belongs to the tape: read it, and don't keep it. */
  at(n) {
    if (n < this.here.n || n - this.here.n > SNAPSHOT_EVENTS) {
      this.here = copyOf(this.snapshots[Math.floor(n / SNAPSHOT_EVENTS)]);
    }
    while (this.here.n < n) apply(this.here, this.events[this.here.n + 1]);
    return this.here;
  }

  /* Where a step back by a turn leads: to this turn's beginning, or from there to the previous turn. */
  turnBefore(n) {
    return this.turns.findLast((start) => start < n) ?? 0;
  }

  turnAfter(n) {
    return this.turns.find((start) => start > n) ?? this.events.length - 1;
  }
}
