"""One call: `ping(host)` → PingResult. To share a loop with other work, use `Prober`."""

from __future__ import annotations

import os
import selectors
import signal
import socket
from collections.abc import Callable, Sequence

from echo7.probe.measure.words import Event
from echo7.probe.plan import DEFAULT_SIZE_BYTES, misfit, plan_in_seconds
from echo7.probe.prober import CannotProbe, Prober
from echo7.probe.result import PingResult, result_of
from echo7.sockets.resolve import resolve
from reactor.loop import Reactor

SELECT_DESCRIPTORS = 1000  # select(2) takes numbers up to 1,023; the loop needs a few
SELECT_FLOWS = 64  # select(2) looks at every descriptor, so epoll(7) is better for more
ENDING_SIGNALS = [signal.SIGINT, signal.SIGTERM]
SUMMARY_SIGNALS = [signal.SIGQUIT] if hasattr(signal, "SIGQUIT") else []  # Windows has none


def new_reactor(flows: int) -> Reactor:
    """Return a loop that wakes when a probe is due. Raise CannotProbe if there are too few descriptors.

    select(2) sleeps to the microsecond, epoll_wait(2) and poll(2) to the next millisecond.
    """
    try:
        lowest_free, other = os.pipe()
        os.close(lowest_free)
        os.close(other)
        if flows <= SELECT_FLOWS and lowest_free + flows < SELECT_DESCRIPTORS:
            return Reactor(selector=selectors.SelectSelector())
        return Reactor()
    except OSError as error:
        raise CannotProbe(f"cannot start: {error.strerror}; raise 'ulimit -n'") from None


def handle_signals(reactor: Reactor, end: Callable[[], object], print_summary: Callable[[], object]) -> None:
    """Call `end` at SIGINT and SIGTERM, and `print_summary` at SIGQUIT."""
    for signum in ENDING_SIGNALS:
        reactor.add_signal_handler(signum, end)
    for signum in SUMMARY_SIGNALS:
        reactor.add_signal_handler(signum, print_summary)


def ping(
    host: str,
    port: int = 7,
    *,
    tcp: bool = False,
    count: int = 5,
    interval_s: float = 1.0,
    size_bytes: int | Sequence[int] = DEFAULT_SIZE_BYTES,
    timeout_s: float = 2.0,
    family: int = socket.AF_UNSPEC,
    flows: int = 1,
    source_port: int = 0,
    df: bool = False,
    told: Callable[[Event], object] = lambda event: None,
) -> PingResult:
    """Send `count` probes to an echo server and return the result. Blocks.

    Several sizes are sent in turn. `told` is called with each Event. An interval of 0 sends as fast as answers come.
    Raise UnresolvedName for the host, ValueError for parameters that make no sense, CannotProbe without a socket.
    """
    sizes = (size_bytes,) if isinstance(size_bytes, int) else tuple(size_bytes)
    plan = plan_in_seconds(
        interval_s, timeout_s, tcp=tcp, probes=count, sizes=sizes, flows=flows, source_port=source_port, df=df
    )
    address = resolve(host, port, family)[0]
    if problem := misfit(plan, str(address[0])):
        raise ValueError(problem)
    with new_reactor(flows) as reactor:
        prober = Prober(reactor, address, plan, told=told, ended=reactor.stop)
        prober.start()
        reactor.run()
        return result_of(prober, host)
