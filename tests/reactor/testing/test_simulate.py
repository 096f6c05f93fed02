"""simulate: many worlds, and the smallest failure."""

from __future__ import annotations

import errno
import importlib
import logging
import socket
from collections.abc import Callable

import pytest

from reactor import Connection, Limits, Listener, StreamProtocol, listen_tcp, open_udp
from reactor.testing import FAULTS, Report, SimulatedNetwork, SimulationFailed, simulate
from reactor.testing.simulate import run_once
from tests.reactor.testing.programs import HERE, PORT, Echo, UdpEcho, go, stream

Scenario = Callable[[SimulatedNetwork], object]


def echo(network: SimulatedNetwork) -> None:
    """A correct program: it echoes two TCP clients and a UDP client."""
    reactor = network.reactor()
    reactor.add_signal_handler(10, lambda: None)
    network.signals.at_random = (10,)
    listen_tcp(reactor, (HERE, PORT), Echo, limits=Limits(linger_timeout_s=1.0))
    open_udp(reactor, ("0.0.0.0", PORT), UdpEcho())
    peers = [network.peer((HERE, PORT)) for _ in range(2)]
    asker = network.udp_peer()
    for peer in peers:
        peer.send(bytes(range(200)))
        peer.finish()
    for _ in range(3):
        asker.send(b"question", ("10.0.0.2", PORT))
    network.run(reactor)
    for peer in peers:
        assert peer.lost or peer.received == peer.sent[: len(peer.received)]


def careless(network: SimulatedNetwork) -> None:
    """A program with a bug: after three interrupted sends, it assumes that the next takes everything."""
    sock = stream(network)
    peer = network.peer_server(("192.0.2.1", 80))
    sock.connect_ex(peer.address)
    go(network)
    for _ in range(20):
        try:
            taken = sock.send(b"abcdef")
        except BlockingIOError:
            continue
        except InterruptedError:
            continue
        assert taken == 6, "a short write"
    sock.close()


def broken(network: SimulatedNetwork) -> None:
    """Fails in every world."""
    network.enter("anything")
    raise LookupError("always")


# ---------------------------------------------------------------- reports


def test_report_counts_runs_calls_and_faults() -> None:
    report = simulate(echo, seeds=3, script="recv#1=short:7 recv#2=EINTR packet#1=loss")
    assert report.runs == 3
    assert report.steps > 100
    assert report.injected == {"recv.short": 3, "recv.EINTR": 3, "packet.loss": 3}
    assert Report() == Report(0, 0, {})


def test_seeds_may_be_a_number_or_any_numbers() -> None:
    """A number n means the seeds 0 … n-1."""
    seen: list[float] = []

    def scenario(network: SimulatedNetwork) -> None:
        seen.append(network.random.random())

    assert simulate(scenario, seeds=4).runs == 4
    assert simulate(scenario, seeds=iter([3, 1])).runs == 2
    assert seen[4:] == [seen[3], seen[1]]
    assert simulate(scenario, seeds=[]).runs == 0


def test_without_faults_given_each_world_has_a_random_mix() -> None:
    assert len(simulate(echo, seeds=60).injected) > 40
    assert simulate(echo, seeds=20, faults={"recv.short": 0.5}).injected.keys() == {"recv.short"}
    assert simulate(echo, seeds=5, faults={}).injected == {}


def refused_sockets(network: SimulatedNetwork) -> None:
    """socket(2) is not tried again, so a scenario that plans its faults must expect them."""
    with pytest.raises(OSError, match=r"\[Errno"):
        network.socket(socket.AF_INET, socket.SOCK_STREAM)


def refused_pipe(network: SimulatedNetwork) -> None:
    with pytest.raises(OSError, match=r"\[Errno"):
        network.pipe()


def connecting(network: SimulatedNetwork) -> None:
    from reactor import connect_tcp

    network.peer_server(("192.0.2.1", 80))
    connect_tcp(network.reactor(), ("192.0.2.1", 80), StreamProtocol(), lambda error: None)
    network.run(network.reactors[0])


def backing_up(network: SimulatedNetwork) -> None:
    """Fill the buffers of a client that reads later, so that the server's interest changes."""
    network.send_buffer_bytes = network.receive_buffer_bytes = 10
    loop = network.reactor()
    listen_tcp(loop, ("10.0.0.1", 7), Echo)
    peer = network.peer(("10.0.0.1", 7))
    peer.pause()
    peer.send(bytes(100))
    network.run(loop)
    peer.resume()
    network.run(loop)
    assert peer.received == bytes(100)


@pytest.mark.parametrize("name", FAULTS)
def test_fault_planned_alone_happens_and_is_listed(name: str) -> None:
    """Every fault of the catalogue can happen to a program that handles it."""
    call, _, kind = name.partition(".")
    scenario = {"socket": refused_sockets, "connect": connecting, "pipe": refused_pipe, "modify": backing_up}.get(
        call, echo
    )
    networks: list[SimulatedNetwork] = []

    def planned(network: SimulatedNetwork) -> None:
        networks.append(network)
        for after in range(40):  # some calls have nothing that the fault could change
            network.plan(call, kind, 3, after=after)
        scenario(network)

    if call == "socket":
        planned = lambda network: (networks.append(network), network.plan(call, kind), scenario(network))  # type: ignore[assignment,func-returns-value] # noqa: E731
    report = simulate(planned, seeds=1, faults={})
    assert report.injected.keys() == {name}
    assert {(fault.call, fault.kind) for fault in networks[0].chance.injected} == {(call, kind)}


# ---------------------------------------------------------------- failures


def test_failure_names_its_seed_its_fewest_faults_and_the_last_calls() -> None:
    """Of all faults only the one that matters is left, and the journal shows the calls before it."""
    with pytest.raises(SimulationFailed) as caught:
        simulate(careless, faults={"send.short": 0.1, "send.EINTR": 0.4, "send.EAGAIN": 0.3})
    failure = caught.value
    assert isinstance(failure, AssertionError)
    assert isinstance(failure.__cause__, AssertionError)
    [word] = failure.script.split()
    assert word.startswith("send#")
    assert "=short:" in word
    text = str(failure)
    assert f"seed {failure.seed} fails: AssertionError: a short write" in text
    assert f"simulate(scenario, seeds=[{failure.seed}], script={failure.script!r})" in text
    assert f"-> {word}" in text


def test_long_script_is_counted_instead_of_shown() -> None:
    """The message stays readable; the error's `script` holds the whole script, and it repeats the failure."""

    def scenario(network: SimulatedNetwork) -> None:
        kinds = [network.inject(fault).kind for _ in range(500) if (fault := network.enter("send")) is not None]
        assert len(kinds) < 500

    with pytest.raises(SimulationFailed) as caught:
        simulate(scenario, faults={"send.EPIPE": 1.0}, shrinking_s=0.0)
    text = str(caught.value)
    assert "simulate(scenario, seeds=[0], script=…), 500 of them: this error's `script`\n" in text
    assert len(text) < 5_000
    with pytest.raises(SimulationFailed):
        simulate(scenario, seeds=[0], script=caught.value.script, shrinking_s=0.0)


def test_script_replays_the_failure_exactly() -> None:
    """Seed and script repeat the run call for call; without the script the scenario passes."""
    with pytest.raises(SimulationFailed) as first:
        simulate(careless, faults={"send.short": 0.1, "send.EINTR": 0.4})
    seed, script = first.value.seed, first.value.script
    with pytest.raises(SimulationFailed) as again:
        simulate(careless, seeds=[seed], script=script)
    assert str(again.value) == str(first.value)
    assert simulate(careless, seeds=[seed], script="").runs == 1


def test_two_faults_that_only_fail_together_are_both_kept() -> None:

    def scenario(network: SimulatedNetwork) -> None:
        seen = set()
        for _ in range(30):
            fault = network.enter("send")
            if fault is not None:
                seen.add(network.inject(fault).kind)
        assert not {"EPIPE", "ENOMEM"} <= seen

    with pytest.raises(SimulationFailed) as caught:
        simulate(scenario, faults={f"send.{kind}": 0.15 for kind in ("EPIPE", "ENOMEM", "EINTR", "short")})
    assert sorted(word.split("=")[1].split(":")[0] for word in caught.value.script.split()) == ["ENOMEM", "EPIPE"]


def test_failure_without_faults_has_an_empty_script() -> None:
    """A scenario that fails without faults has an empty script, even if it was found in a bad world."""
    for faults in ({}, {"step.signal": 1.0}):
        with pytest.raises(SimulationFailed, match="LookupError: always") as caught:
            simulate(broken, faults=faults)
        assert (caught.value.seed, caught.value.script) == (0, "")


def test_shrinking_keeps_the_same_error() -> None:

    def scenario(network: SimulatedNetwork) -> None:
        kinds = {network.inject(fault).kind for _ in range(20) if (fault := network.enter("send")) is not None}
        if "EPIPE" in kinds:
            raise LookupError("with EPIPE")
        raise ValueError("without")

    with pytest.raises(SimulationFailed, match="LookupError: with EPIPE") as caught:
        simulate(scenario, script="send#2=EINTR send#5=EPIPE")
    assert caught.value.script == "send#5=EPIPE:1"


def test_shrinking_takes_a_bounded_number_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("reactor.testing.simulate"), "MOST_RERUNS", 3)
    with pytest.raises(SimulationFailed) as caught:
        simulate(careless, script="send#1=EINTR send#2=EINTR send#3=EINTR send#4=EINTR send#5=short")
    assert "send#5=short:1" in caught.value.script


def test_long_journal_is_cut_to_its_end() -> None:

    def scenario(network: SimulatedNetwork) -> None:
        for number in range(1000):
            network.enter(f"call-{number}")
        raise LookupError

    with pytest.raises(SimulationFailed) as caught:
        simulate(scenario, faults={})
    assert "call-999" in str(caught.value)
    assert "call-900" not in str(caught.value)


# ---------------------------------------------------------------- other causes of failure


def test_open_descriptor_fails_the_scenario() -> None:

    def leaks(network: SimulatedNetwork) -> None:
        stream(network)

    with pytest.raises(SimulationFailed, match=r"descriptors left open: \[3\]"):
        simulate(leaks, faults={})


def test_open_reactors_are_closed_after_the_scenario() -> None:
    made = []

    def scenario(network: SimulatedNetwork) -> None:
        made.append(network.reactor())
        listen_tcp(made[-1], (HERE, PORT), Echo)

    simulate(scenario, seeds=2, faults={})
    assert [reactor.closed for reactor in made] == [True, True]


class Raises(StreamProtocol):
    def data_received(self, connection: Connection, data: bytes) -> None:
        raise LookupError("in a callback")


def test_raising_callback_fails_the_scenario() -> None:

    def scenario(network: SimulatedNetwork) -> None:
        listen_tcp(network.reactor(), (HERE, PORT), Raises)
        network.peer((HERE, PORT)).send(b"x")
        network.run(network.reactors[0])

    with pytest.raises(SimulationFailed, match="in a callback"):
        simulate(scenario, faults={})


def test_other_log_line_is_no_failure() -> None:
    handlers = list(logging.getLogger("reactor").handlers)

    def scenario(network: SimulatedNetwork) -> None:
        logging.getLogger("reactor").error("something else", extra={"event": "something_else"})
        listener: list[Listener] = []
        network.plan("accept", "EMFILE")
        listener.append(listen_tcp(network.reactor(), (HERE, PORT), Echo))
        network.peer((HERE, PORT)).finish()
        network.run(network.reactors[0])
        assert listener[0].errors == {"EMFILE": 1}

    simulate(scenario, faults={}, seeds=1)
    assert logging.getLogger("reactor").handlers == handlers


def test_base_exception_is_a_failure_but_an_interrupt_is_not() -> None:
    """pytest.fail raises a BaseException, and its failure is shrunk too. Ctrl-C isn't."""

    def scenario(network: SimulatedNetwork) -> None:
        pytest.fail("so it is")

    with pytest.raises(SimulationFailed, match="so it is"):
        simulate(scenario, seeds=1)

    def interrupted(network: SimulatedNetwork) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(interrupted, seeds=1)


def test_violation_after_the_last_run_fails_the_scenario() -> None:

    def scenario(network: SimulatedNetwork) -> None:
        sock = stream(network)
        sock.close()
        with pytest.raises(OSError, match=str(errno.EBADF)):
            sock.recv(1)

    failure = run_once(scenario, SimulatedNetwork())
    assert isinstance(failure, AssertionError)
    assert str(failure) == "recv on a closed socket (seed 0, 0 faults)"
