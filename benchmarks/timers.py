"""The only workload without a network: the CPU time of a timer on the reactor, on asyncio and on uvloop.

    python3 -m benchmarks.timers reactor|asyncio|uvloop cancel|fire COUNT

`cancel`: each turn of the loop sets a thousand timers for much later and cancels them, as happens to most time-outs.
`fire`: all timers are set for the next second, and the loop runs until the last has fired. Prints the seconds of CPU
time, so waiting for a deadline costs nothing.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

from reactor import Reactor

EACH_TURN = 1_000
LATER_S = 60.0
SPREAD = 1_000  # different deadlines of timers that fire, a millisecond apart

Schedule = Callable[..., Any]


def main() -> int:
    """Measure one loop and print the seconds."""
    name, what, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    measured = cancelled if what == "cancel" else fired
    if name == "reactor":
        with Reactor() as loop:
            print(measured(loop.call_later, loop.call_soon, loop.run, loop.stop, count))
        return 0
    other = new_loop(name)
    print(measured(other.call_later, other.call_soon, other.run_forever, other.stop, count))
    other.close()
    return 0


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    """Return a loop of asyncio or uvloop."""
    if name == "uvloop":
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return loop
    return asyncio.new_event_loop()


def cancelled(call_later: Schedule, call_soon: Schedule, run: Schedule, stop: Schedule, count: int) -> float:
    """Set and cancel `count` timers, a thousand in a turn; return the seconds."""
    left = count

    def turn() -> None:
        nonlocal left
        some = min(left, EACH_TURN)
        for timer in [call_later(LATER_S, int) for _ in range(some)]:
            timer.cancel()
        left -= some
        call_soon(turn if left else stop)

    call_soon(turn)
    start_s = time.process_time()
    run()
    return time.process_time() - start_s


def fired(call_later: Schedule, call_soon: Schedule, run: Schedule, stop: Schedule, count: int) -> float:
    """Set `count` timers and run until all have fired; return the seconds."""
    left = count

    def fire() -> None:
        nonlocal left
        left -= 1
        if not left:
            stop()

    start_s = time.process_time()
    for number in range(count):
        call_later(number % SPREAD * 1e-3, fire)
    run()
    return time.process_time() - start_s


if __name__ == "__main__":
    sys.exit(main())
