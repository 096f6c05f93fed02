"""Chance: every decision of a simulated world, from one seed, and the script that replays it.

Law: the same seed and the same program give the same run. Faults have their own random stream, separate from the one
that scenarios use, and those of callbacks one more, so that they don't shift the others. So a run can be repeated with
*some* of its faults: that is how a failure gets small.

A fault has a name, `call.kind`: with `send.short`, send(2) takes only a part; at `recv.EINTR`, recv(2) is interrupted.
Each kind of system call is numbered from 1, and a script names the faults of single calls: `send#3=short:1
accept#1=EMFILE`. The number after the colon is an amount: bytes, milliseconds, or which peer.
"""

from __future__ import annotations

import collections
import errno
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from reactor.sockets.errors import os_error

# What accept(2) returns when one client's connection has failed: a network error, or a firewall's refusal.
ONE_PEER = tuple(
    "ECONNABORTED EPROTO ENOPROTOOPT EOPNOTSUPP EPERM ETIMEDOUT ENETDOWN ENETUNREACH ENONET EHOSTDOWN "
    "EHOSTUNREACH".split()
)
UNREACHABLE = "ENETUNREACH EHOSTUNREACH ENETDOWN"

# The faults of each call. `step` stands for any system call: what the world does during it. `callback` stands for the
# end of any callback: what the program itself does (`callbacks.py`).
CATALOGUE: dict[str, tuple[str, ...]] = {
    call: tuple(kind for kind in kinds.split() if not kind.startswith("E") or hasattr(errno, kind))
    for call, kinds in {
        "recv": "short EAGAIN EINTR ECONNRESET ETIMEDOUT ENOBUFS ENOMEM",
        "send": "short EAGAIN EINTR ECONNRESET EPIPE ETIMEDOUT ENOBUFS ENOMEM",
        "accept": f"EAGAIN EINTR {' '.join(ONE_PEER)} EACCES EMFILE ENFILE ENOBUFS ENOMEM",
        "connect": f"ECONNREFUSED ETIMEDOUT EADDRNOTAVAIL EPERM {UNREACHABLE}",
        "recvmsg": f"EAGAIN EINTR ECONNREFUSED ENOBUFS ENOMEM EACCES {UNREACHABLE}",
        "sendmsg": f"EAGAIN EINTR ENOBUFS ENOMEM EPERM EMSGSIZE ECONNREFUSED EACCES {UNREACHABLE}",
        "socket": "EMFILE ENFILE ENOBUFS ENOMEM",
        "register": "ENOMEM ENOSPC",
        "modify": "ENOMEM ENOSPC",
        "select": "spurious shuffle fewer early late",
        "segment": "delay",
        "packet": "loss duplicate delay",
        "step": "fin reset partition signal",
        "pipe": "EMFILE ENFILE EPERM",
        "callback": "KeyboardInterrupt SystemExit GeneratorExit close abort lost",
    }.items()
}
FAULTS = tuple(f"{call}.{kind}" for call, kinds in CATALOGUE.items() for kind in kinds)

# What the program's own code, or other code in its process, may do. Few scenarios expect that their handlers are
# closed.
CALLBACK_FAULTS = tuple(name for name in FAULTS if name.startswith("callback."))

# Without the faults of callbacks and of socket(2): after the latter a program has no second try, so most scenarios
# can't even begin.
USUAL_FAULTS = tuple(name for name in FAULTS if not name.startswith(("socket.", "callback.")))


class Fault(NamedTuple):
    """A fault of one call."""

    call: str
    number: int  # which call of its kind, from 1
    kind: str  # an errno's name, or a word of CATALOGUE
    amount: int  # its meaning depends on the kind

    def __str__(self) -> str:
        """Return the fault as a script names it."""
        return f"{self.call}#{self.number}={self.kind}:{self.amount}"

    def error(self) -> OSError:
        """Return the error, for a kind that is an errno's name."""
        return os_error(getattr(errno, self.kind))


def parse_script(text: str) -> list[Fault]:
    """Read faults as `Fault.__str__` writes them, separated by spaces; `:amount` is optional. Raise ValueError."""
    found = []
    for word in text.split():
        call, _, rest = word.partition("#")
        number, _, rest = rest.partition("=")
        kind, _, amount = rest.partition(":")
        if kind not in CATALOGUE.get(call, ()) or not number.isdecimal() or not (amount or "1").isdecimal():
            raise ValueError(f"{word!r} is no fault: write call#number=kind or call#number=kind:amount")
        found.append(Fault(call, int(number), kind, int(amount or 1)))
    return found


def everything(probability: float) -> dict[str, float]:
    """Return a mix in which every fault but those of callbacks has this probability."""
    return dict.fromkeys((name for name in FAULTS if name not in CALLBACK_FAULTS), probability)


def random_mix(source: random.Random, among: Iterable[str] = USUAL_FAULTS) -> dict[str, float]:
    """Return a random subset of faults, each with its own probability, from rare to frequent.

    All faults at once would hide what a few faults do alone, so each run has a few of its own.
    """
    share, base = source.choice((0.1, 0.3, 0.6)), source.getrandbits(64)
    # each fault has a stream of its own, so a new kind of fault doesn't change what the others do
    streams = {name: random.Random(f"{base} {name}") for name in among}  # noqa: S311 - must be repeatable
    return {name: 10 ** -own.uniform(0.7, 2.5) for name, own in streams.items() if own.random() < share}


def mix_of(seed: int) -> dict[str, float]:
    """Return the mix that `simulate` gives to a seed."""
    return random_mix(random.Random(f"{seed} mix"))  # noqa: S311 - must be repeatable


@dataclass(slots=True)
class _Table:
    """One call's faults: from `begins` on, a number in [0, 1) stands for a fault."""

    begins: float
    kinds: list[tuple[float, str]]  # (upper limit, kind), ascending

    def __init__(self, entries: list[tuple[str, float]]) -> None:
        total = sum(probability for _, probability in entries)
        limit = self.begins = max(0.0, 1.0 - total)
        self.kinds = []
        for kind, probability in entries:
            limit += probability if total <= 1.0 else probability / total
            self.kinds.append((limit, kind))

    def at(self, where: float) -> str:
        return next((kind for limit, kind in self.kinds if where < limit), self.kinds[-1][1])


class Chance:
    """Decides which faults happen. `injected` lists those that did, in order: joined by spaces, it is the script."""

    __slots__ = ("_calls", "_of_callbacks", "_script", "_source", "_tables", "injected")

    def __init__(
        self, source: random.Random, mix: Mapping[str, float], script: str, of_callbacks: random.Random
    ) -> None:
        self._source, self._of_callbacks = source, of_callbacks
        self._tables = _tables(mix)
        self._script = {(fault.call, fault.number): fault for fault in parse_script(script)}
        self._calls: dict[str, int] = {}
        self.injected: list[Fault] = []

    def plan(self, call: str, kind: str, amount: int = 1, *, after: int = 0) -> None:
        """Plan a fault of the next `call`, or of a later one after `after` others. Raise ValueError."""
        number = self._calls.get(call, 0) + 1 + after
        [fault] = parse_script(f"{call}#{number}={kind}:{amount}")
        self._script[call, number] = fault

    def draw(self, call: str) -> Fault | None:
        """Count one call, and return its fault or None. A fault counts as injected only after `inject`."""
        number = self._calls[call] = self._calls.get(call, 0) + 1
        if self._script and (fault := self._script.pop((call, number), None)) is not None:
            return fault
        table = self._tables.get(call)
        if table is None:
            return None
        source = self._of_callbacks if call == "callback" else self._source
        where = source.random()
        if where < table.begins:  # faults are at the upper end: a source that shrinks towards 0 gives none
            return None
        return Fault(call, number, table.at(where), int(2 ** (16 * source.random())))

    def inject(self, fault: Fault) -> Fault:
        """Record that a fault has had its effect, and return it."""
        self.injected.append(fault)
        return fault

    def counts(self) -> dict[str, int]:
        """Return how often each fault was injected, by name."""
        return dict(collections.Counter(f"{fault.call}.{fault.kind}" for fault in self.injected))

    def script(self) -> str:
        """Return the script that replays this run's faults."""
        return " ".join(str(fault) for fault in self.injected)


def _tables(mix: Mapping[str, float]) -> dict[str, _Table]:
    entries: dict[str, list[tuple[str, float]]] = {}
    for name, probability in mix.items():
        call, _, kind = name.partition(".")
        if kind not in CATALOGUE.get(call, ()):
            raise ValueError(f"{name!r} is no fault; reactor.testing.FAULTS lists them all")
        if not 0 <= probability <= 1:
            raise ValueError(f"the probability of {name} must be from 0 to 1, not {probability!r}")
        if probability:
            entries.setdefault(call, []).append((kind, probability))
    return {call: _Table(found) for call, found in entries.items()}


def source_of(seed: int | random.Random | Any) -> random.Random:
    """Return the random stream of a seed. A `random.Random` is its own stream; hypothesis's `data` draws one."""
    if isinstance(seed, random.Random):
        return seed
    if hasattr(seed, "draw"):
        from hypothesis import strategies  # a `data` object means that hypothesis is installed

        drawn: random.Random = seed.draw(strategies.randoms(use_true_random=False))
        return drawn
    return random.Random(seed)  # noqa: S311 - a simulation must repeat itself


def source_apart(seed: int | random.Random | Any, drawn: random.Random, about: str) -> random.Random:
    """Return one more stream for the same seed. For a number, `about` names the stream.

    Draws from one don't shift the others.
    """
    if hasattr(seed, "draw"):
        return source_of(seed)
    return random.Random(f"{seed} {about}" if isinstance(seed, int) else drawn.getrandbits(64))  # noqa: S311


def subsets(faults: list[Fault]) -> Iterator[list[Fault]]:
    """Yield `faults` without some of them: without all, without each half, then without smaller and smaller pieces."""
    size = len(faults)
    if faults:
        yield []
    while size > 1:
        size = (size + 1) // 2
        for start in range(0, len(faults), size):
            yield faults[:start] + faults[start + size :]
