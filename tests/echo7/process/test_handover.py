"""What one generation hands to the next, as text and as sockets."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo7.process.child import Children
from echo7.process.handover import VARIABLE, Handover, open_sockets, prepared, received
from echo7.process.previous import PreviousGenerations
from echo7.process.restart import changed, described
from echo7.sockets.adoption import HandedIn
from echo7.sockets.binding import BindError, Bound, bind_all
from tests.support.daemon import serve_config

NUMBERS = st.lists(st.integers(0, 2**31)).map(tuple)


@given(st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 256)), min_size=1).map(tuple), NUMBERS, NUMBERS)
def test_handover_through_environment_arrives_once(
    sockets: tuple[tuple[int, int], ...], previous: tuple[int], watches: tuple[int]
) -> None:
    given = Handover(os.getpid(), sockets, previous, watches)
    environment = {VARIABLE: str(given), "HOME": "/"}
    assert received(environment) == given
    assert environment == {"HOME": "/"}, "a child must not take it for its own"
    assert received(environment) is None


def test_handover_for_another_process_is_not_taken() -> None:
    assert received({VARIABLE: str(Handover(os.getppid(), ((3, 1),), (), ()))}) is None


def test_sockets_of_each_worker_come_back_as_its_set() -> None:
    before = [bind_all(socket, ["127.0.0.1"], 0) for _ in range(2)]
    ports = [[sock.getsockname() for sock in bound.tcp + bound.udp] for bound in before]
    given = prepared(before, [], [])
    for sock in [sock for bound in before for sock in bound.tcp + bound.udp]:
        os.set_inheritable(sock.fileno(), True)
        sock.detach()
    after = given.sets(2)
    assert [[sock.getsockname() for sock in bound.tcp + bound.udp] for bound in after] == ports
    for bound in after:
        assert [sock.type for sock in bound.tcp] == [socket.SOCK_STREAM]
        assert not any(sock.get_inheritable() or sock.getblocking() for sock in bound.tcp + bound.udp)
        bound.close()


def test_sockets_from_systemd_stay_shared_and_handed_in() -> None:
    """Connections queued before the first generation have inherited nothing from the listener."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        bound = Bound(tcp=[HandedIn(fileno=os.dup(listener.fileno()))])
        given = prepared([bound, bound], [], [])
        bound.tcp[0].detach()
        after = given.sets(2)
        assert after[0] is after[1]
        assert isinstance(after[0].tcp[0], HandedIn)
        after[0].close()


def test_changed_number_of_workers_is_refused() -> None:
    with pytest.raises(BindError, match="the number of workers has changed"):
        Handover(1, ((3, 1), (4, 2)), (), ()).sets(3)


def test_descriptor_that_is_not_a_socket_is_refused_by_number() -> None:
    number = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(BindError, match=f"descriptor {number} in ECHO7_HANDOVER is no socket"):
        Handover(1, ((number, 1),), (), ()).sets(1)
    os.close(number)


def test_changed_setting_is_named_with_both_values() -> None:
    before = {"--host": "", "--port": "7", "--user": ""}
    assert changed(described(before), before) is None
    assert changed("", before) is None, "there was nothing before"
    assert changed(described(before), before | {"--port": "8"}) == (
        "--port was 7 and is now 8: that needs a restart, SIGHUP can't change it"
    )
    text = changed(described(before), before | {"--host": "127.0.0.1"})
    assert text is not None
    assert text.startswith("--host was the default and is now 127.0.0.1: ")
    assert changed(described(before | {"--of-another-version": "1"}), before) is None


def test_previous_generation_that_is_not_our_child_is_forgotten() -> None:
    children = Children()
    generations = PreviousGenerations(children)
    generations.take_over([os.getppid()], [])
    children.reap()
    assert generations.pids == []


def test_sockets_from_systemd_for_another_process_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent's LISTEN_FDS may still be in the environment (sd_listen_fds(3))."""
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", "1")
    sets, bound_here = open_sockets(serve_config("--port", "0", "--host", "127.0.0.1"), socket, None)
    assert bound_here
    assert len(sets[0].sockets) == 2
    sets[0].close()
