"""Sockets that systemd hands in (sd_listen_fds(3)), with a test program in place of systemd."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from typing import Protocol

import pytest

from echo7.sockets.activation import inherited
from echo7.sockets.binding import BindError
from tests.support.basics import PATIENCE_S
from tests.support.clients import echo_and_close, receive_exactly, receive_to_end
from tests.support.daemon import EchoProcess

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="descriptors are inherited otherwise there")

# Moves the descriptors named in its first argument to 3, 4, …, as systemd does, and becomes the rest of its arguments.
HAND_IN = """
import fcntl, os, sys
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[1].split(",")]
for wanted, number in enumerate(high, 3):
    os.dup2(number, wanted)
    os.close(number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(high)), LISTEN_FDNAMES="first:second")
os.execv(sys.argv[2], sys.argv[2:])
"""


class HasNumber(Protocol):
    def fileno(self) -> int: ...


def activated(*given: HasNumber, options: tuple[str, ...] = ()) -> EchoProcess:
    numbers = [each.fileno() for each in given]
    prefix = [sys.executable, "-c", HAND_IN, ",".join(map(str, numbers))]
    return EchoProcess(*options, prefix=prefix, pass_fds=numbers, wait=False)


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    """A listening socket without our options."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(16)
        yield sock


@pytest.fixture
def udp(tcp: socket.socket) -> Iterator[socket.socket]:
    """A wildcard UDP socket without our options, on the same port number."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", tcp.getsockname()[1]))
        yield sock


def test_both_transports_are_served_without_binding_anything(tcp: socket.socket, udp: socket.socket) -> None:
    with activated(tcp, udp) as daemon:
        daemon.next_line("listening")
        assert echo_and_close(socket.create_connection(tcp.getsockname(), PATIENCE_S), b"handed in") == b"handed in"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE_S)
            client.connect(("127.0.0.5", udp.getsockname()[1]))
            client.send(b"")
            assert client.recv(10) == b""
        assert daemon.finish() == 0


def test_client_queued_before_the_start_is_served_like_any_other(tcp: socket.socket, udp: socket.socket) -> None:
    """Story: such a connection had inherited nothing, and its urgent byte was lost; an early datagram came without
    the address that it was sent to, and got no answer.
    """
    with socket.create_connection(tcp.getsockname(), PATIENCE_S) as client:
        client.sendall(b"abc")
        client.send(b"X", socket.MSG_OOB)
        client.sendall(b"def")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as early:
            early.settimeout(PATIENCE_S)
            early.connect(("127.0.0.5", udp.getsockname()[1]))
            early.send(b"early")
            with activated(tcp, udp):
                assert early.recv(10) == b"early"
                assert receive_exactly(client, 7) == b"abcXdef"
                client.shutdown(socket.SHUT_WR)
                assert receive_to_end(client) == b""


def test_transport_that_is_not_wanted_is_closed(tcp: socket.socket, udp: socket.socket) -> None:
    with activated(tcp, udp, options=("--no-udp",)) as daemon:
        daemon.next_line("listening")
        assert daemon.finish() == 0
        assert [line["transport"] for line in daemon.lines if line["event"] == "listening"] == ["tcp"]


def test_handed_in_sockets_of_unwanted_transports_give_one_line(udp: socket.socket) -> None:
    with activated(udp, options=("--no-udp",)) as daemon:
        assert "--no-udp" in daemon.next_line("bind_failed")["message"]
        assert daemon.process.wait(PATIENCE_S) == 1


@pytest.mark.parametrize("kind", ["file", "unix", "not listening"])
def test_wrong_kind_of_socket_is_refused_by_number_and_name(kind: str, udp: socket.socket) -> None:
    with contextlib.ExitStack() as stack:
        wrong: HasNumber
        if kind == "file":
            wrong = stack.enter_context(open(__file__))
        else:
            wrong = stack.enter_context(socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET))
        daemon = stack.enter_context(activated(udp, wrong))
        assert "descriptor 4 (second)" in daemon.next_line("bind_failed")["message"]
        assert daemon.process.wait(PATIENCE_S) == 1


def test_socket_that_is_handed_in_twice_is_served_once(tcp: socket.socket) -> None:
    with activated(tcp, tcp) as daemon:
        daemon.next_line("listening")
        assert echo_and_close(socket.create_connection(tcp.getsockname(), PATIENCE_S), b"once") == b"once"
        assert daemon.finish() == 0
        assert [line["event"] for line in daemon.lines].count("listening") == 1


def test_descriptor_that_is_closed_is_refused_by_number(tcp: socket.socket) -> None:
    prefix = [sys.executable, "-c", HAND_IN.replace("len(high)", "len(high) + 1"), str(tcp.fileno())]
    with EchoProcess(prefix=prefix, pass_fds=[tcp.fileno()], wait=False) as daemon:
        assert "descriptor 4 (second)" in daemon.next_line("bind_failed")["message"]
        assert daemon.process.wait(PATIENCE_S) == 1


def test_variables_for_another_process_are_left_alone() -> None:
    """LISTEN_PID: the sockets may be for a parent process."""
    environment = {"LISTEN_PID": str(os.getppid()), "LISTEN_FDS": "1"}
    assert inherited(environment) is None
    assert environment["LISTEN_FDS"] == "1"


@pytest.mark.parametrize("count", ["", "0", "00"])
def test_count_of_zero_means_no_activation(count: str) -> None:
    assert inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count}) is None


@pytest.mark.parametrize("count", ["x", "-1", "1.5", "²", "9" * 5000])
def test_count_that_is_not_a_number_gives_one_line(count: str) -> None:
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_PIDFDID": "1", "LISTEN_FDS": count, "LISTEN_FDNAMES": "a"}
    with pytest.raises(BindError, match="LISTEN_FDS"):
        inherited(environment)
    assert environment == {}, "a child must not take them for its own"


def test_buffers_of_handed_in_sockets_are_capped(tcp: socket.socket) -> None:
    """All processes that hold a socket share its options."""
    with activated(tcp, options=("--socket-buffer", "8192")) as daemon:
        daemon.next_line("listening")
        sizes = [tcp.getsockopt(socket.SOL_SOCKET, name) for name in (socket.SO_RCVBUF, socket.SO_SNDBUF)]
        assert max(sizes) <= 2 * 8192
        assert daemon.finish() == 0
