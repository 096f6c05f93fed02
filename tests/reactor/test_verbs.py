"""The four functions of `verbs`: what they refuse, and that a failure leaves nothing."""

import errno
import sys
from collections.abc import Callable

import pytest

from reactor import Reactor, connect_tcp, connect_udp, listen_tcp, open_udp
from reactor.limits import SHORTAGE_RETRY_S, Limits
from reactor.sockets.errors import os_error
from tests.support.basics import has_ipv6, open_descriptors
from tests.support.echo import EchoThread
from tests.support.faults import FlakySockets
from tests.support.loops import DatagramRecorder, ManualClock, Recorder, RecordingSelector, turn_idle, turn_until


def test_the_default_bound_of_a_connection_is_128_kib() -> None:
    """Promise 5: "default ≤ 128 KiB, by assertion"."""
    assert Limits().bound_bytes <= 128 * 1024


Verb = Callable[[Reactor, str], object]
LISTEN: Verb = lambda reactor, host: listen_tcp(reactor, (host, 0), Recorder)  # noqa: E731
UDP: Verb = lambda reactor, host: open_udp(reactor, (host, 0), DatagramRecorder())  # noqa: E731
CONNECT: Verb = lambda reactor, host: connect_tcp(reactor, (host, 9), Recorder(), lambda error: None)  # noqa: E731


@pytest.mark.parametrize(
    ("verb", "step"), [(LISTEN, "socket"), (LISTEN, "bind"), (LISTEN, "listen"), (UDP, "socket"), (UDP, "bind")]
)
def test_function_that_fails_at_any_step_leaves_nothing(verb: Verb, step: str) -> None:
    sockets = FlakySockets()
    with Reactor(sockets=sockets) as reactor:
        before = open_descriptors()
        sockets.faults.add(step, os_error(errno.EADDRINUSE))
        with pytest.raises(OSError, match="in use"):
            verb(reactor, "127.0.0.1")
        assert open_descriptors() == before
        assert len(reactor.handlers) == 1  # the waker


@pytest.mark.parametrize("verb", [LISTEN, UDP])
def test_temporary_selector_refusal_only_delays(verb: Verb) -> None:
    """The last step, epoll_ctl(2), may fail with ENOSPC. The loop tries it again."""
    selector, clock = RecordingSelector(), ManualClock()
    with Reactor(selector=selector, clock=clock) as reactor:
        selector.failures.append(os_error(errno.ENOSPC))
        verb(reactor, "127.0.0.1")
        assert len(selector.get_map()) == 1
        clock.advance(SHORTAGE_RETRY_S)
        turn_idle(reactor)
        assert len(selector.get_map()) == len(reactor.handlers) == 2


@pytest.mark.parametrize("verb", [LISTEN, CONNECT, UDP])
def test_closed_reactor_refuses_handlers_and_leaves_no_descriptor(verb: Verb) -> None:
    """`register` raises RuntimeError: a closed loop would never close the socket."""
    reactor = Reactor()
    reactor.close()
    before = open_descriptors()
    with pytest.raises(RuntimeError, match="closed"):
        verb(reactor, "127.0.0.1")
    assert open_descriptors() == before
    assert not reactor.handlers


@pytest.mark.parametrize("verb", [LISTEN, UDP])
def test_a_name_is_refused(verb: Verb) -> None:
    """Promise 22: "names are resolved before the loop runs or in a thread"."""
    with Reactor() as reactor, pytest.raises(ValueError, match="numeric"):
        verb(reactor, "localhost")


@pytest.mark.skipif(sys.platform == "win32", reason="addresses are shared differently there")
def test_a_second_socket_on_a_udp_port_is_refused() -> None:
    """Promise 13: "Binding a second daemon to a UDP port in use is refused"."""
    with Reactor() as reactor:
        first = open_udp(reactor, ("127.0.0.1", 0), DatagramRecorder())
        with pytest.raises(OSError, match="in use"):
            open_udp(reactor, first.address, DatagramRecorder())


def test_port_0_gives_a_free_port_in_the_address() -> None:
    """`address` has the port that the kernel chose."""
    with Reactor() as reactor:
        assert listen_tcp(reactor, ("127.0.0.1", 0), Recorder).address[1] > 0
        assert open_udp(reactor, ("127.0.0.1", 0), DatagramRecorder()).address[1] > 0


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6")
def test_ipv4_mapped_address_can_be_connected_to() -> None:
    """Story: all IPv6 sockets were for IPv6 only, and the kernel refused ::ffff:127.0.0.1."""
    with EchoThread() as server, Reactor() as reactor:
        stream, datagrams, failed = Recorder(), DatagramRecorder(), list[OSError]()
        connect_tcp(reactor, ("::ffff:127.0.0.1", server.port), stream, failed.append)
        endpoint = connect_udp(reactor, ("::ffff:127.0.0.1", server.port), datagrams)
        endpoint.send(b"mapped")
        turn_until(reactor, lambda: failed or (stream.connections and endpoint.datagrams_received))
        assert failed == []
