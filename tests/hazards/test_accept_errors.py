"""The errors of accept(2).

accept(2) fails for many reasons that aren't the service's fault: the client has already left, a firewall objects, the
client's network is down (Linux reports pending network errors of the new connection from accept), or the system is
short of memory or descriptors. A naive server exits on the first error that it doesn't know. A slightly better one
ignores every error, and spins for ever on a listening socket that is really broken.

What prevents it: each errno belongs to one of three kinds. An error of one client: skip that client, accept the next at
once. A shortage: pause, then retry. A broken listening socket: close it, log one line, and exit with status 1 if it was
the last socket.
"""

import errno
import functools
import logging
import os
import resource
import selectors
import signal
import socket
from collections.abc import Iterator

import pytest

import echo7.assembly
import echo7.cli
import echo7.process.service
from echo7.server import EchoServer
from reactor import Connection, Listener, Reactor
from reactor.sockets.errors import os_error
from tests.support.basics import PATIENCE_S
from tests.support.clients import receive_exactly
from tests.support.faults import FlakySocket, FlakySockets
from tests.support.loops import SELECTORS, ManualClock, turn_idle, turn_until, wait_readable


def numbers(names: str) -> list[int]:
    """The errnos of these names that this platform has."""
    return [getattr(errno, name) for name in names.split() if hasattr(errno, name)]


# accept(2) on Linux, under "Error handling" and ERRORS; POSIX adds EOPNOTSUPP and EPROTO.
NOT_AN_ERROR = numbers("EAGAIN EINTR")
ONE_CLIENT = numbers(
    "ECONNABORTED EPROTO EPERM ENETDOWN ENOPROTOOPT EHOSTDOWN ENONET EHOSTUNREACH EOPNOTSUPP ENETUNREACH "
    "ESOCKTNOSUPPORT EPROTONOSUPPORT ETIMEDOUT ECONNRESET"
)
SHORTAGES = numbers("EMFILE ENFILE ENOBUFS ENOMEM ENOSR EFAULT")
BROKEN = numbers("EBADF EINVAL ENOTSOCK")


def name_of(code: int) -> str:
    return errno.errorcode[code]


class Service:
    """An EchoServer with scripted accept errors, on a loop turned by hand. `failures` counts its calls of `failed`."""

    def __init__(self, *, hosts: tuple[str, ...] = ("127.0.0.1",), udp: bool = False) -> None:
        self.clock, self.sockets = ManualClock(), FlakySockets()
        self.faults = self.sockets.faults
        self.reactor = Reactor(clock=self.clock, sockets=self.sockets)
        self.failures = 0
        self.server = EchoServer(hosts, 0, udp=udp, failed=self._failed)
        self.server.start(self.reactor)
        self.address = self.server.addresses[0][1:3]
        self.listener = next(h for h in self.reactor.handlers if isinstance(h, Listener))

    def _failed(self) -> None:
        self.failures += 1

    def client(self) -> socket.socket:
        """Return a client that has sent its ping and waits in the kernel's queue."""
        client = socket.create_connection(self.address, PATIENCE_S)
        client.sendall(b"ping")
        if not self.listener.closed:
            wait_readable(self.listener)
        return client

    def assert_echoes(self, client: socket.socket) -> None:
        before = self.server.counters.tcp_bytes_sent
        turn_until(self.reactor, lambda: self.server.counters.tcp_bytes_sent >= before + 4)
        assert receive_exactly(client, 4) == b"ping"


@pytest.fixture
def service() -> Iterator[Service]:
    running = Service()
    with running.reactor:
        yield running


@pytest.mark.parametrize("code", ONE_CLIENT, ids=name_of)
def test_accept_error_of_one_client_is_skipped_and_the_next_is_accepted(service: Service, code: int) -> None:
    """'Those of one client are skipped' (promise 16): the next is accepted in the same turn, before the clock moves."""
    service.faults.add("accept", os_error(code), os_error(code))
    with service.client() as client:
        turn_idle(service.reactor, 1)
        assert service.server.counters.connections == 1
        assert service.server.counters.drops == {"accept_" + name_of(code): 2}
        service.assert_echoes(client)
    assert service.failures == 0


@pytest.mark.parametrize("code", NOT_AN_ERROR, ids=name_of)
def test_accept_that_finds_no_client_is_no_error(service: Service, code: int, caplog: pytest.LogCaptureFixture) -> None:
    """EAGAIN and EINTR mean "try again later": nothing is counted or logged."""
    service.faults.add("accept", os_error(code))
    with service.client() as client:
        service.assert_echoes(client)
    assert service.server.counters.drops == {}
    assert caplog.records == []


@pytest.mark.parametrize("code", SHORTAGES, ids=name_of)
def test_shortage_pauses_the_listener_until_it_is_over(
    service: Service, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """'Those of resources pause the listener' (promise 16): accept isn't called again until the pause is over."""
    service.faults.always["accept"] = os_error(code)
    with service.client() as client:
        turn_idle(service.reactor, 100)
        assert service.faults.calls["accept"] == 1
        assert len(caplog.records) == 1
        service.clock.advance(1.0)
        turn_idle(service.reactor, 100)
        assert service.faults.calls["accept"] == 2
        assert len(caplog.records) == 1, "a pause is logged once, not at every retry"
        del service.faults.always["accept"]
        service.clock.advance(1.0)
        service.assert_echoes(client)
    assert service.server.counters.drops == {"accept_" + name_of(code): 2}
    assert service.failures == 0


@pytest.mark.parametrize("code", SHORTAGES, ids=name_of)
def test_shortage_in_the_middle_of_a_queue_loses_no_client(service: Service, code: int) -> None:
    """Clients accepted before the shortage are served. The others wait in the queue."""
    service.faults.add("accept", None, os_error(code))
    with service.client() as first, service.client() as second:
        turn_idle(service.reactor, 3)
        assert service.server.counters.connections == 1
        assert receive_exactly(first, 4) == b"ping"
        service.clock.advance(1.0)
        service.assert_echoes(second)


def errors_logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("code", BROKEN, ids=name_of)
def test_broken_listener_is_closed_with_one_log_line(
    service: Service, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """'EBADF, EINVAL, ENOTSOCK close it with one line' (promise 16), and `failed` is called once."""
    with service.client() as first:
        service.assert_echoes(first)
        service.faults.always["accept"] = os_error(code)
        with service.client():
            turn_until(service.reactor, lambda: service.failures)
        turn_idle(service.reactor)
        assert service.faults.calls["accept"] <= 3
        assert service.listener.closed
        assert service.failures == 1
        assert len(errors_logged(caplog)) == 1
        assert os.strerror(code) in errors_logged(caplog)[0]
        first.sendall(b"ping")  # open connections don't depend on the listener
        service.assert_echoes(first)


@pytest.mark.parametrize("code", BROKEN, ids=name_of)
def test_broken_listener_leaves_other_sockets_serving(code: int) -> None:
    """'Exit 1 if it was the last': here UDP and a second listener are left, so the service goes on."""
    service = Service(hosts=("127.0.0.1", "127.0.0.2"), udp=True)
    with service.reactor, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp_client:
        service.faults.add("accept", os_error(code))
        with service.client():
            turn_until(service.reactor, lambda: service.listener.closed)
        turn_idle(service.reactor)
        assert service.failures == 0
        assert [(a.transport, a.host) for a in service.server.addresses] == [
            ("tcp", "127.0.0.2"), ("udp", "127.0.0.1"), ("udp", "127.0.0.2"),
        ]  # fmt: skip
        udp_client.settimeout(PATIENCE_S)
        udp_client.connect(service.address)
        udp_client.send(b"still there?")
        turn_until(service.reactor, lambda: service.server.counters.datagrams_sent)
        assert udp_client.recv(100) == b"still there?"
        service.address = ("127.0.0.2", service.address[1])
        with socket.create_connection(service.address, PATIENCE_S) as client:
            client.sendall(b"ping")
            service.assert_echoes(client)


@pytest.mark.parametrize("selector_class", SELECTORS)
def test_listener_shut_down_from_outside_is_closed(
    selector_class: type[selectors.BaseSelector], caplog: pytest.LogCaptureFixture
) -> None:
    """With the real kernel: another process shuts the shared socket down, and accept(2) says EINVAL from then on."""
    failures: list[str] = []
    with Reactor(selector=selector_class()) as reactor:
        server = EchoServer(("127.0.0.1",), 0, udp=False, failed=lambda: failures.append("failed"))
        server.start(reactor)
        listener = next(h for h in reactor.handlers if isinstance(h, Listener))
        with socket.socket(fileno=os.dup(listener.fileno())) as shared:
            shared.shutdown(socket.SHUT_RDWR)
            turn_until(reactor, lambda: failures)
            turn_idle(reactor)
        assert failures == ["failed"]
        assert len(errors_logged(caplog)) == 1
        assert not any(isinstance(handler, Connection) for handler in reactor.handlers)


class CalledAtOnce(FlakySocket):
    """A socket that gets its first client as soon as it listens."""

    def listen(self, *args: int) -> None:
        super().listen(*args)
        self.client = socket.create_connection(self.getsockname(), PATIENCE_S)

    def close(self) -> None:
        if hasattr(self, "client"):
            self.client.close()
        super().close()


class CalledAtOnceSockets(FlakySockets):
    def socket(self, family: int, type: int) -> socket.socket:
        sock = CalledAtOnce(family, type)
        sock.faults = self.faults
        return sock


@pytest.fixture
def as_before() -> Iterator[None]:
    """Restore the descriptor limit and the signal handlers that `echo7 serve` changes in this process."""
    soft_and_hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    dispositions = {signum: signal.getsignal(signum) for signum in echo7.process.service.SIGNALS}
    yield
    for signum, disposition in dispositions.items():
        signal.signal(signum, disposition)
    resource.setrlimit(resource.RLIMIT_NOFILE, soft_and_hard)


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("code", BROKEN, ids=name_of)
def test_last_socket_breaks_and_process_exits_with_status_1(
    code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """'Exit 1 if it was the last' (promise 16), through the whole command: one log line, no traceback."""
    sockets = CalledAtOnceSockets()
    sockets.faults.always["accept"] = os_error(code)
    monkeypatch.setattr(echo7.assembly, "Reactor", functools.partial(Reactor, sockets=sockets))
    assert echo7.cli.main(["serve", "--host", "127.0.0.1", "--port", "0", "--no-udp", "--sandbox", "off"]) == 1
    log = capfd.readouterr().err
    assert "broken and closed: " + os.strerror(code) in log
    assert "the last serving socket is broken" in log
    assert "Traceback" not in log
