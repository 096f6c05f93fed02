"use strict";

/* An event in plain sentences.
 *
 * Law: a sentence says what has happened, in the words of the system call if there is one, and what follows from it.
 * It may use the state after the event for what the event alone can't say: how much waits, and what for. */

const MASK_WORDS = { "": "nothing", R: "READ", W: "WRITE", RW: "READ and WRITE" };

const whole = (value) => value.toLocaleString("en");
const bytes = (value) => `${whole(value)} ${value === 1 ? "byte" : "bytes"}`;
const some = (value, name) => `${whole(value)} ${name}${value === 1 ? "" : "s"}`;
const amount = ({ bytes: size, datagrams }) =>
  datagrams === undefined ? bytes(size) : `${bytes(size)} in ${some(datagrams, "datagram")}`;
const waiting = (value) => `${bytes(value)} ${value === 1 ? "waits" : "wait"}`;
const shortName = (callback) => callback.replace(/\.<(locals|lambda)>/g, "").split(".").slice(-2).join(".");

/* A duration or a time since the start, with three or four significant digits. */
function duration(seconds) {
  const size = Math.abs(seconds);
  if (size < 5e-7) return "0 ms";
  if (size < 1e-3) return `${Number((seconds * 1e6).toPrecision(3))} µs`;
  if (size < 1) return `${Number((seconds * 1e3).toPrecision(4))} ms`;
  return `${Number(seconds.toFixed(3)).toLocaleString("en", { maximumFractionDigits: 3 })} s`;
}

function list(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

const SENTENCES = new Map(Object.entries({
  turn(event, _, state) {
    const begins = `Turn ${whole(event.turn)} begins.`;
    if (event.sleep_s === null) {
      return `${begins} No call waits and no timer is set: select may block until a socket is ready.`;
    }
    if (event.sleep_s > 0) {
      return `${begins} A timer is due in ${duration(event.sleep_s)}: select may block until then.`;
    }
    const isDue = [...state.timers.values()].some((timer) => timer.due_t <= event.t);
    const why = event.calls ? `${some(event.calls, "queued call")} must run`
      : isDue ? "A timer is due already" : "The loop must stop";
    return `${begins} ${why}: select reports what is ready, and must not block.`;
  },
  select(event) {
    const after = event.slept_s < 5e-7 ? "at once" : `after ${duration(event.slept_s)}`;
    if (!event.ready.length) return `select returns ${after}: nothing is ready.`;
    const named = event.ready.slice(0, 4).map(([who, mask]) => `${who} for ${MASK_WORDS[mask]}`);
    if (event.ready.length > 4) named.push(`${whole(event.ready.length - 4)} more`);
    return `select returns ${after}. Ready: ${list(named)}.`;
  },
  dispatch: (event) =>
    `The loop calls ${event.who}.on_event(${MASK_WORDS[event.mask]}): what select returns is the handler itself.`,
  stale(event, handler, state) {
    const heir = [...state.handlers.values()].find((each) => !each.closed && each.fd === handler.fd);
    const reused = handler.fd !== null && heir ? ` Its descriptor ${handler.fd} belongs to ${heir.who} now.` : "";
    return `${event.who} was closed earlier in this batch. Its event is stale, and the loop skips it.${reused}`;
  },
  adopted(event) {
    const protocol = event.protocol && ` with ${event.protocol}`, where = event.where && `, at ${event.where}`;
    const what = `a ${event.what}${protocol}${where}, on descriptor ${event.fd}`;
    return `The loop registers ${event.who}: ${what}. Nothing is watched yet.`;
  },
  accepted: (event) => `accept(2) gives ${event.who} a client from its queue: ${event.peer}.`,
  received(event, handler) {
    if (handler.state === "LINGERING") {
      return `recv(2) gives ${event.who} ${amount(event)}, to be thrown away. It must still read: after a close with`
        + " bytes unread, the kernel sends RST, which destroys what is still on its way to the peer.";
    }
    const much = event.bytes === event.asked && handler.highWater !== null
      ? " That is all it asked for, so there may be more; but it gets one receive per readiness." : "";
    return `recv(2) gives ${event.who} ${amount(event)}${event.peer ? ` from ${event.peer}` : ""}.${much}`;
  },
  eof: (event) => `recv(2) gives ${event.who} nothing: the peer's FIN. The peer sends no more, but may still read.`,
  sent(event) {
    if (event.bytes < event.offered) {
      const part = `${whole(event.bytes)} of ${bytes(event.offered)}`, rest = whole(event.offered - event.bytes);
      return `The kernel takes ${part} from ${event.who}: a partial write. The other ${rest} must wait.`;
    }
    const all = event.bytes > 1 ? "all " : "", peer = event.peer ? ` for ${event.peer}` : "";
    return `The kernel takes ${all}${amount(event)} from ${event.who}${peer}.`;
  },
  blocked(event, handler) {
    if (event.call === "send") {
      const rest = bytes(event.offered ?? handler.buffer);
      return `send(2) says EAGAIN: the kernel has no room for ${event.who} now. That is normal; ${rest} must wait.`;
    }
    if (event.call === "accept") return `accept(2) says EAGAIN: no other client is in ${event.who}'s queue.`;
    return `${event.call}(2) says EAGAIN: there is nothing for ${event.who} now. That is normal: ready was a hint.`;
  },
  error: (event) => `${event.call}(2) fails for ${event.who}: ${event.errno}, “${event.text}”.`,
  interest: (event, handler) => interestSentence(event, handler),
  buffer(event, handler) {
    if (event.after === 0 && handler.state === "CLOSED") {
      return `${event.who} throws away ${bytes(event.before)} that waited in its send buffer.`;
    }
    if (event.after === 0) return `${event.who}'s send buffer is empty again: the kernel has taken everything.`;
    if (event.after < event.before) {
      return `What the kernel has taken leaves ${event.who}'s send buffer. Left in it: ${bytes(event.after)}.`;
    }
    const high = handler.highWater !== null && event.after > handler.highWater
      ? ` That is above the high-water mark of ${bytes(handler.highWater)}.` : "";
    return `${waiting(event.after)} in ${event.who}'s send buffer, until the kernel has room.${high}`;
  },
  state(event) {
    const why = {
      HALF_CLOSED: "it writes no more, but still reads",
      DRAINING: "it reads no more, and delivers what waits",
      LINGERING: "all is sent, and our FIN. A close before the peer's FIN could destroy what hasn't arrived there yet",
      CLOSED: "its socket is closed; connection_lost is still to come",
    }[event.after];
    return `${event.who} goes from ${event.before} to ${event.after}${why ? `: ${why}` : ""}.`;
  },
  paused: (event) => `The protocol pauses ${event.who}: no READ until it is resumed. TCP holds the peer back.`,
  resumed: (event) => `The protocol resumes ${event.who}.`,
  closed(event) {
    const why = event.error === null ? "in order" : `because of an error: ${event.error}`;
    return `${event.who} is torn down ${why}: unregistered, its socket closed. Its protocol is notified soon.`;
  },
  timer_set: (event) =>
    `${event.who} is set: ${shortName(event.callback)}${ownedBy(event)} in ${duration(event.delay_s)}.`,
  timer_fired(event) {
    const late = event.lag_s < 5e-7 ? "on time" : `${duration(event.lag_s)} after its time`;
    return `${event.who} fires, ${late}: ${shortName(event.callback)}${ownedBy(event)}.`;
  },
  timer_cancelled: (event) =>
    `${event.who} is cancelled (only marked): ${shortName(event.callback)}${ownedBy(event)} won't be called.`,
  call(event) {
    const why = event.error ? `, with the error: ${event.error}` : "";
    return `A queued call runs: ${shortName(event.callback)}${ownedBy(event)}${why}.`;
  },
  raised(event) {
    const cost = event.owner ? `It closes ${event.owner} only` : "The loop goes on";
    return `A callback raises ${event.error}. ${cost}.`;
  },
  dropped(event) {
    const peer = event.peer ? `; its peer is ${event.peer}` : "";
    return `${some(event.count ?? 1, "datagram")} without an answer from ${event.who}: ${event.reason}${peer}.`;
  },
  fault: (event) => `The simulated world injects a fault: ${faultWords(event.fault)}.`,
  ended: (event) => `The trace ends here: ${event.reason}.`,
}));

/* A fault's name, `call#number=kind:amount`, in words. */
function faultWords(fault) {
  const [, call, number, kind, amount] = /^(\w+)#(\d+)=(\w+):(\d+)$/.exec(fault) ?? [];
  if (!call) return fault;
  if (kind === "short") return `${call} number ${number} moves no more than ${bytes(Number(amount))}`;
  return `${call} number ${number}${kind.startsWith("E") ? ` fails with ${kind}` : `, ${kind} (${amount})`}`;
}

const ownedBy = (event) => (event.owner ? ` of ${event.owner}` : "");

function interestSentence(event, handler) {
  const { who, before, after } = event;
  if (event.resting) {
    const clients = handler.what === "Listener" ? " New clients wait in the kernel's queue." : "";
    return `${who} isn't watched for a while: a resource of the system is used up.${clients}`;
  }
  if (!after && handler.state === "CLOSED") {
    return `${who} is unregistered, the first step of its teardown: no event can reach it any more.`;
  }
  if (!after && handler.highWater === null) return `${who} isn't watched any more.`;
  const gains = (bit) => after.includes(bit) && !before.includes(bit);
  const loses = (bit) => before.includes(bit) && !after.includes(bit);
  const parts = [];
  if (gains("W")) {
    const why = handler.buffer ? `${waiting(handler.buffer)}, so ` : "";
    parts.push(`${why}${who} asks for WRITE`);
  }
  if (loses("W")) parts.push(`nothing waits any more, so ${who} stops asking for WRITE`);
  if (gains("R")) parts.push(before ? `${who} reads again` : `${who} asks for READ`);
  if (loses("R")) {
    const why = stopsReading(event, handler)
      ? `above its high-water mark, ${bytes(handler.highWater)}, ${who} doesn't read, and TCP stops its peer`
      : `${who} has nothing more to read`;
    parts.push(why);
  }
  const watched = after ? `Watched now: ${MASK_WORDS[after]}.` : "Nothing is watched now: it is unregistered.";
  const sentence = parts.join("; ");
  return `${sentence.charAt(0).toUpperCase()}${sentence.slice(1)}. ${watched}`;
}

/* The sentence of an event, given the state after it. */
function sentenceOf(event, state) {
  const say = SENTENCES.get(event.kind);
  const handler = state.handlers.get(event.who) ?? newHandler(event.who);
  return say ? say(event, handler, state) : `${event.who || "The loop"}: ${event.kind}.`;
}

/* An event in a few words. */
function briefly(event) {
  switch (event.kind) {
    case "received": return `received ${bytes(event.bytes)}`;
    case "sent": return event.bytes < event.offered
      ? `sent ${whole(event.bytes)} of ${bytes(event.offered)}` : `sent ${bytes(event.bytes)}`;
    case "blocked": return `${event.call}: EAGAIN`;
    case "error": return `${event.call}: ${event.errno}`;
    case "interest": return event.resting ? "rests" : `watched: ${MASK_WORDS[event.after]}`;
    case "buffer": return `buffer ${whole(event.before)} → ${whole(event.after)}`;
    case "state": return `${event.before} → ${event.after}`;
    case "dispatch": return `on_event(${MASK_WORDS[event.mask]})`;
    case "accepted": return `accepted ${event.peer}`;
    default: return event.kind.replace("_", " ");
  }
}
