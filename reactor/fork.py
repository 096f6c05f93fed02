"""What a child of fork(2) must let go of, so that it can have a loop of its own and its parent keeps his.

Law: a child changes nothing that it shares. Its copy of an epoll descriptor is the same epoll instance: to unregister a
socket through it would take the socket away from the parent (epoll(7)). A copy of a socket is the same socket: shut
down, reset or given an option, it is so for both. So the child only closes its own copies. Signal handlers and the
wake-up descriptor are copies indeed, and are put back as they were.

    with signals_held() as mask:  # else a signal might find the child with its parent's handlers
        pid = os.fork()
        if pid == 0:
            disown(reactor)
            ...                   # set up the child's own, then signal.pthread_sigmask(signal.SIG_SETMASK, mask)

Fork outside of `run`, or what the loop was about to do is done twice.

Or it is the parent that lets go of everything, because it becomes another program (exec(2)): then the child calls
`take_over` in place of `disown`, and runs the same reactor. Until the parent has gone, the child must not run it.
"""

import contextlib
import os
import selectors
import signal
from collections.abc import Iterator

from reactor.fastpath.busypoll import busy_select
from reactor.loop import Reactor


@contextlib.contextmanager
def signals_held() -> Iterator[set[int]]:
    """Have the kernel hold every signal back meanwhile. Yield the mask before, which is set again at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield set(before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def disown(reactor: Reactor) -> None:
    """In a child: close this process's copies of all that the parent's reactor has, touching none of it.

    The reactor and its handlers are of no use here afterwards. Each handler's descriptor number stays taken, by
    /dev/null, until the object that owns the number is gone: it could else close somebody else's.
    """
    _end_trace(reactor)
    reactor.closed = True
    nothing = os.open(os.devnull, os.O_RDWR)
    for handler in reactor.handlers:
        handler.closed = True
        os.dup2(nothing, handler.fileno(), inheritable=False)
    os.close(nothing)
    reactor.handlers.clear()
    with contextlib.suppress(OSError):  # a kqueue isn't inherited (kqueue(2)), and its number is free already
        reactor._selector.close()
    reactor._waker.abort()


def take_over(reactor: Reactor, selector: selectors.BaseSelector, *, busy_poll_s: float = 0.0) -> None:
    """In a child: have the reactor watch all that it has through a selector of the child's own.

    The parent's goes on to report to the parent. Raise OSError when there is no room for it.
    """
    _end_trace(reactor)
    inherited, reactor._selector = reactor._selector, selector
    reactor._select = busy_select(selector.select, reactor.now, busy_poll_s)
    for handler in reactor.handlers:
        wanted, handler.interest = handler.interest, 0
        reactor.set_interest(handler, wanted)
    with contextlib.suppress(OSError):  # a kqueue, as above
        inherited.close()


def _end_trace(reactor: Reactor) -> None:
    """An observer is the parent's, and so is its file (see `sinks`: `leave` lets go of that)."""
    if reactor._trace is not None:
        reactor._trace.end()


def signals_waiting(reactor: Reactor) -> bool:
    """Tell whether a signal has come that the loop hasn't looked at: exec(2) would forget it. Ask with signals held."""
    return bool(reactor._waker._pending)
