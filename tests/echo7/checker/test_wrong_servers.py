"""Who judges the judge? Servers that are wrong in one way each: it must name their very faults, and no other."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Collection

import pytest

from echo7.checker import CASES, Checker, Fault, Report, Verdict
from echo7.checker.checker import PATIENCES_IN_ALL, chosen
from reactor import Connection, Datagram, DatagramProtocol, Listener, Reactor, StreamProtocol, listen_tcp, open_udp
from reactor.sockets.addresses import Address
from reactor.testing import SimulatedNetwork

HOST, ELSEWHERE, PORT = "10.0.0.1", "10.0.0.2", 7
TIMEOUT_S = 3.0
TCP, UDP = ({case.name for case in CASES if case.transport == transport} for transport in ("tcp", "udp"))
WITH_DATA = TCP - {"tcp-silence", "tcp-0"}
LINE_ENDS = {"tcp-runs", "tcp-random", "tcp-text", "tcp-telnet"}  # the cases with a CR LF in them

MORE_THAN_1000 = (
    WITH_DATA
    - set("tcp-answers tcp-1 tcp-all-bytes tcp-text tcp-telnet tcp-byte-by-byte".split())
    - set("tcp-no-more tcp-caller-ends tcp-many tcp-urgent".split())
)
DOUBLED_IAC = {"tcp-runs", "tcp-random", "tcp-telnet"}  # the cases with two bytes of 255 in a row


class EchoDatagrams(DatagramProtocol):
    """A right echo, but for the loop guard."""

    def datagram_received(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        if source[1] != 19:
            self.answer(endpoint, data, source, path)

    def answer(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        endpoint.send(data, source, path)


class RightEcho(StreamProtocol):
    """What is right, in a line."""

    def data_received(self, connection: Connection, data: bytes) -> None:
        connection.write(data)


class Changed(StreamProtocol):
    """Answers with something else than it was sent."""

    def __init__(self, change: Callable[[bytes], bytes]) -> None:
        self.change = change

    def data_received(self, connection: Connection, data: bytes) -> None:
        connection.write(self.change(data))


class ChangedDatagrams(EchoDatagrams):
    """Answers with something else than it was sent, or with other datagrams."""

    def __init__(self, change: Callable[[bytes], list[bytes]]) -> None:
        self.change = change

    def answer(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        for answer in self.change(data):
            endpoint.send(answer, source, path)


class Greets(RightEcho):
    """Says hello first, as mail servers do."""

    def connection_made(self, connection: Connection) -> None:
        connection.write(b"220 ready\r\n")


class LosesUrgent(RightEcho):
    """Leaves SO_OOBINLINE off, as servers do that don't know of it."""

    def connection_made(self, connection: Connection) -> None:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 0)


class ResetsOnHalfClose(RightEcho):
    """Takes the caller's FIN for the end of everything."""

    def eof_received(self, connection: Connection) -> None:
        connection.abort()


class NeverCloses(RightEcho):
    """Has no idea what a FIN is."""

    def eof_received(self, connection: Connection) -> bool:
        return True


class HangsUpInTheMiddle(StreamProtocol):
    """Echoes a thousand bytes, and has had enough."""

    def data_received(self, connection: Connection, data: bytes) -> None:
        connection.write(data[: 1000 - connection.bytes_sent])
        if connection.bytes_sent >= 1000:
            connection.close()


class OneAtATime(RightEcho):
    """Serves a caller to the end before it looks at the next."""

    def __init__(self) -> None:
        self.waiting: list[Connection] = []

    def connection_made(self, connection: Connection) -> None:
        if self.waiting:
            connection.pause_reading()
        self.waiting.append(connection)

    def connection_lost(self, connection: Connection, error: Exception | None) -> None:
        self.waiting.remove(connection)
        if self.waiting:
            self.waiting[0].resume_reading()


class ClosesAfterAnswer(RightEcho):
    """One answer to a caller, and good-bye."""

    def data_received(self, connection: Connection, data: bytes) -> None:
        connection.write(data)
        if data.endswith(b"\n"):
            connection.close()


class WaitsForALine(StreamProtocol):
    """Gives back whole lines, and the rest at the end."""

    def __init__(self) -> None:
        self.held: dict[Connection, bytes] = {}

    def data_received(self, connection: Connection, data: bytes) -> None:
        lines, newline, rest = (self.held.get(connection, b"") + data).rpartition(b"\n")
        self.held[connection] = rest
        connection.write(lines + newline)

    def eof_received(self, connection: Connection) -> None:
        connection.write(self.held.get(connection, b""))


class FlushesWithoutLooking(StreamProtocol):
    """Hopes that send won't block: what the kernel doesn't take at once is lost."""

    def data_received(self, connection: Connection, data: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            connection.socket.send(data)


class Discards(StreamProtocol):
    """RFC 863."""


class ClosesAtOnce(StreamProtocol):
    """Accepts, and hangs up."""

    def connection_made(self, connection: Connection) -> None:
        connection.close()


class NeverEnds(StreamProtocol):
    """RFC 864, without being asked."""

    def connection_made(self, connection: Connection) -> None:
        connection.write(b"ring around the rosie " * 10_000)

    drained = connection_made


class NothingEver(DatagramProtocol):
    """Keeps what it gets."""


def swap_halves(data: bytes) -> bytes:
    """The second half overtakes the first."""
    return data[len(data) // 2 :] + data[: len(data) // 2]


def twice(data: bytes) -> bytes:
    return data + data


def judge(
    network: SimulatedNetwork,
    loop: Reactor,
    *,
    port: int = PORT,
    transports: Collection[str] = ("tcp", "udp"),
    only: Collection[str] = (),
) -> Report:
    """Run a whole judgement in the simulation, where time-outs cost nothing."""
    reports: list[Report] = []
    Checker(
        loop, "server.test", [(HOST, port)], chosen(transports, only), timeout_s=TIMEOUT_S, done=reports.append
    ).start()
    network.run(loop, until=lambda: reports)
    assert len(reports) == 1
    return reports[0]


def judged(
    tcp: Callable[[], StreamProtocol] | None = RightEcho, udp: DatagramProtocol | None = None, port: int = PORT
) -> Report:
    """Judge a server of these parts; by default each is right. `tcp` is called once: all connections share it."""
    network = SimulatedNetwork(862)
    with network.reactor() as loop:
        serve(loop, tcp, udp or EchoDatagrams(), port)
        report = judge(network, loop, port=port)
    network.check()
    return report


def serve(loop: Reactor, tcp: Callable[[], StreamProtocol] | None, udp: DatagramProtocol, port: int) -> Listener | None:
    open_udp(loop, (HOST, port), udp)
    if tcp is None:
        return None
    protocol = tcp()
    return listen_tcp(loop, (HOST, port), lambda: protocol)


def failed(report: Report) -> set[str]:
    assert {f.verdict for f in report.findings} <= {Verdict.PASS, Verdict.FAIL}
    return {finding.case.name for finding in report.findings if finding.verdict is Verdict.FAIL}


def test_a_right_server_passes_every_case_and_scores_1() -> None:
    report = judged()
    assert failed(report) == set()
    assert {finding.case.name for finding in report.findings} == TCP | UDP
    assert (report.status, report.score and report.score.factor) == (0, 1)


@pytest.mark.parametrize(
    ("server", "faults", "score"),
    [
        (lambda: Changed(lambda data: data[:-1]), WITH_DATA, "×4"),
        (lambda: Changed(lambda data: data.replace(b"\r\n", b"\n\r")), LINE_ENDS, "×4"),
        (lambda: Changed(lambda data: data.replace(b"\r\n", b"\n")), LINE_ENDS, "×4"),
        (lambda: Changed(lambda data: data.replace(b"\xff\xff", b"\xff")), DOUBLED_IAC, "×4"),
        (LosesUrgent, {"tcp-urgent"}, "×1"),
        (Greets, TCP, "ω"),
        (lambda: Changed(twice), WITH_DATA, "ω"),
        (ResetsOnHalfClose, {"tcp-half-close"}, "×1"),
        (lambda: Changed(swap_halves), WITH_DATA - {"tcp-1", "tcp-byte-by-byte"}, "×4"),
        (NeverCloses, {"tcp-0", "tcp-half-close"}, "×1"),
        (HangsUpInTheMiddle, MORE_THAN_1000, "×4"),
        (OneAtATime, {"tcp-many", "tcp-stuck-peer"}, "×1"),
        (ClosesAfterAnswer, {"tcp-caller-ends"}, "×1"),
        (FlushesWithoutLooking, {"tcp-slow-reader", "tcp-stuck-peer"}, "×4"),
    ],
    ids=[
        "drops the last byte", "swaps CR LF", "makes LF of CR LF", "undoubles IAC", "loses the urgent byte", "greets",
        "echoes twice", "resets on half-close", "wrong order", "never closes", "hangs up in the middle",
            "one at a time", "closes after its answer",
        "hopes that send won't block",
    ],
)  # fmt: skip
def test_each_wrong_tcp_server_fails_exactly_its_own_cases(
    server: Callable[[], StreamProtocol], faults: set[str], score: str
) -> None:
    report = judged(tcp=server)
    assert failed(report) == faults
    assert report.score is not None
    assert report.score.text == score
    assert report.status == (1 if faults - {"tcp-urgent"} else 0)


@pytest.mark.parametrize(
    ("change", "faults", "score"),
    [
        (lambda data: [data[:2048]], {"udp-8193", "udp-largest"}, "×4"),
        (lambda data: [data] if data else [], {"udp-0"}, "×1"),
        (lambda data: [data, data], {"udp-one-answer"}, "ω"),
        (lambda data: [data + b"!"], UDP - {"udp-loop-guard"}, "ω"),
        (lambda data: [data.replace(b"\xff", b"")], {"udp-all-bytes"}, "×4"),
        (lambda data: [data] if len(data) < 1473 else [], {"udp-1473", "udp-8193", "udp-largest"}, "×4"),
    ],
    ids=["truncates at 2,048", "swallows empty ones", "answers twice", "adds a byte", "eats a byte", "drops fragments"],
)
def test_each_wrong_udp_server_fails_exactly_its_own_cases(
    change: Callable[[bytes], list[bytes]], faults: set[str], score: str
) -> None:
    report = judged(udp=ChangedDatagrams(change))
    assert failed(report) == faults
    assert report.score is not None
    assert (report.score.text, report.status) == (score, 1)


def test_an_answer_from_another_address_is_told_and_not_held_against_the_score() -> None:
    """RFC 1122 §4.1.3.5 is "beyond": nine of nine servers get it wrong on a wildcard bind."""

    class Sideways(EchoDatagrams):
        def answer(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
            aside.send(data, source)

    network = SimulatedNetwork(1)
    with network.reactor() as loop:
        aside = open_udp(loop, (ELSEWHERE, PORT), NothingEver())
        serve(loop, RightEcho, Sideways(), PORT)
        report = judge(network, loop)
    assert failed(report) == {"udp-reply-address"}
    assert [f.seen for f in report.findings if f.case.name == "udp-reply-address"] == [
        f"asked {HOST}:{PORT}, answered by {ELSEWHERE}:{PORT}"
    ]
    assert (report.score and report.score.text, report.status) == ("×1", 0)


def test_a_server_that_answers_other_servers_is_told_and_not_held_against_the_score() -> None:
    class Naive(EchoDatagrams):
        def datagram_received(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
            endpoint.send(data, source, path)

    report = judged(udp=Naive())
    assert failed(report) == {"udp-loop-guard"}
    assert (report.score and report.score.text, report.status) == ("×1", 0)


def test_waiting_for_a_line_fails_whatever_does_not_end_in_one() -> None:
    report = judged(tcp=WaitsForALine)
    verdicts = {finding.case.name: finding.verdict for finding in report.findings}
    assert verdicts["tcp-answers"] is Verdict.PASS
    assert {verdicts[name] for name in ("tcp-1", "tcp-byte-by-byte", "tcp-64k")} == {Verdict.FAIL}


@pytest.mark.parametrize(
    ("tcp", "udp", "score", "faults"),
    [
        (RightEcho, NothingEver(), "×2", {"udp-answers": "timed out"}),
        (None, EchoDatagrams(), "×2", {"tcp-answers": "refused"}),
        (Discards, EchoDatagrams(), "×2", {"tcp-answers": "nothing within 3 s"}),
        (ClosesAtOnce, EchoDatagrams(), "×2", {"tcp-answers": "the server closed"}),
        (Discards, NothingEver(), "ω", {"tcp-answers": "no echo", "udp-answers": "timed out"}),
    ],
    ids=["TCP alone", "UDP alone", "discard and UDP", "closes at once and UDP", "neither echoes"],
)
def test_a_transport_that_is_not_there_doubles_the_score_and_its_other_cases_are_not_asked(
    tcp: Callable[[], StreamProtocol] | None, udp: DatagramProtocol, score: str, faults: dict[str, str]
) -> None:
    report = judged(tcp=tcp, udp=udp)
    bad = [finding for finding in report.findings if finding.verdict is not Verdict.PASS]
    assert {finding.case.name for finding in bad} == set(faults)
    for finding in bad:
        assert faults[finding.case.name] in finding.seen
        others = [f for f in report.findings if f.case.transport == finding.case.transport]
        assert others == [finding]
    assert (report.score and report.score.text, report.status) == (score, 1)


def test_another_port_quadruples_the_score_and_both_faults_stack_to_eight() -> None:
    """The old rules: "doubled if TCP or UDP is missing, quadrupled if the port isn't 7 or bytes are dropped"."""
    assert (judged(port=7007).score or ("", 0))[:2] == ("×4", 4)
    alone = judged(tcp=None, port=7007).score
    assert alone is not None
    assert (alone.text, alone.factor) == ("×8", 8)
    assert alone.reasons == ("only UDP works", "the port is 7007, not 7")


def test_where_nothing_answers_there_is_no_score_and_another_status() -> None:
    network = SimulatedNetwork(2)
    with network.reactor() as loop:
        report = judge(network, loop)
    assert [finding.seen.partition(":")[0] for finding in report.findings] == ["refused", "refused"]
    assert (report.answered, report.score, report.status) == (False, None, 3)


def test_a_server_behind_a_broken_path_times_out_and_does_so_soon() -> None:
    network = SimulatedNetwork(3)
    with network.reactor() as loop:
        serve(loop, RightEcho, EchoDatagrams(), PORT)
        network.partition(HOST)
        start_s = network.clock()
        report = judge(network, loop)
    assert [finding.seen.partition(":")[0] for finding in report.findings] == ["timed out", "timed out"]
    assert report.status == 3
    assert network.clock() - start_s < 10 * TIMEOUT_S


# ---------------------------------------------------------------- hostile servers


def test_endless_data_is_cut_off_at_once_and_scores_omega() -> None:
    report = judged(tcp=NeverEnds)
    assert failed(report) == TCP
    assert report.score is not None
    assert report.score.text == "ω"


def test_a_server_that_dribbles_for_ever_is_left_in_bounded_time() -> None:
    """A byte just before every time-out: each case has its end all the same, and so has the whole."""

    class Dribbles(StreamProtocol):
        def data_received(self, connection: Connection, data: bytes) -> None:
            self.dribble(connection, data, 0)

        def dribble(self, connection: Connection, data: bytes, at: int) -> None:
            if at < len(data):
                connection.write(data[at : at + 1])
                loop.call_later(0.9 * TIMEOUT_S, self.dribble, connection, data, at + 1)

    network = SimulatedNetwork(4)
    with network.reactor() as loop:
        serve(loop, Dribbles, EchoDatagrams(), PORT)
        start_s = network.clock()
        report = judge(network, loop)
    words = {finding.case.name: finding for finding in report.findings}
    assert words["tcp-1"].verdict is Verdict.PASS
    assert words["tcp-64k"].verdict is Verdict.UNKNOWN
    assert words["tcp-urgent"].seen == "not asked: the judgement has had its time"
    assert network.clock() - start_s <= (PATIENCES_IN_ALL + 10) * TIMEOUT_S


def test_a_flood_of_datagrams_costs_bounded_memory() -> None:
    report = judged(udp=ChangedDatagrams(lambda data: [data] * 500))
    assert failed(report) == {"udp-one-answer"}
    assert report.score is not None
    assert report.score.text == "ω"


def test_a_network_that_doubles_a_datagram_is_not_the_servers_fault() -> None:
    seen = []

    def sometimes(data: bytes) -> list[bytes]:
        seen.append(data)
        return [data, data] if len(data) == 100 and data[0] == 2 else [data]

    report = judged(udp=ChangedDatagrams(sometimes))
    (finding,) = [f for f in report.findings if f.verdict is not Verdict.PASS]
    assert (finding.case.name, finding.verdict) == ("udp-one-answer", Verdict.UNKNOWN)
    assert "may be the network" in finding.seen
    assert report.status == 0


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_what_the_network_loses_is_told_apart_from_what_the_server_changes(lost: int) -> None:
    """Each question is asked three times before a datagram counts as dropped."""
    asked: list[bytes] = []

    def lossy(data: bytes) -> list[bytes]:
        if len(data) != 512:
            return [data]
        asked.append(data)
        return [data] if len(asked) > lost else []

    report = judged(udp=ChangedDatagrams(lossy))
    (finding,) = [f for f in report.findings if f.case.name == "udp-512"]
    if lost < 3:
        assert (finding.verdict, finding.seen) == (Verdict.PASS, f"answered; {lost} lost before")
    else:
        assert finding.verdict is Verdict.FAIL
        assert "lost on the way, or dropped" in finding.seen


def test_what_this_machine_cannot_try_stands_against_nobody() -> None:
    """Port 19 taken, and a datagram that our own kernel won't send: neither is the server's fault."""
    network = SimulatedNetwork(5)
    with network.reactor() as loop:
        serve(loop, RightEcho, EchoDatagrams(), PORT)
        open_udp(loop, ("0.0.0.0", 19), NothingEver())
        network.plan("sendmsg", "EMSGSIZE", after=2)  # the question of `udp-answers`, its answer, and then `udp-0`
        report = judge(network, loop, transports=["udp"])
    unknown = {f.case.name: f.seen for f in report.findings if f.verdict is Verdict.UNKNOWN}
    assert unknown == {
        "udp-0": "this machine can't send 0 bytes in one datagram: Message too long",
        "udp-loop-guard": "source port 19 can't be bound here: Address already in use",
    }
    assert report.status == 0


def test_a_server_that_swallows_a_burst_has_dropped_it() -> None:
    report = judged(udp=ChangedDatagrams(lambda data: [] if len(data) == 100 else [data]))
    assert failed(report) == {"udp-one-answer"}
    assert [f.seen for f in report.findings if f.verdict is Verdict.FAIL] == ["0 answers to 5 datagrams"]


def test_callers_who_are_refused_are_counted() -> None:
    """A server with a limit of its own: the first comers are served, and the others are told how many were not."""

    class Few(RightEcho):
        def connection_made(self, connection: Connection) -> None:
            made.append(connection)
            if len(made) == 20:
                listener.close()

    network = SimulatedNetwork(6)
    made: list[Connection] = []
    with network.reactor() as loop:
        few = Few()
        listener = listen_tcp(loop, (HOST, PORT), lambda: few, backlog=5)
        report = judge(network, loop, transports=["tcp"], only=["tcp-many"])
    (finding,) = [f for f in report.findings if f.case.name == "tcp-many"]
    assert (finding.verdict, finding.fault) == (Verdict.FAIL, Fault.CONDUCT)
    assert finding.seen.endswith("of 50 callers who were there at once got an answer")


def test_a_judgement_leaves_no_socket_and_no_timer() -> None:
    network = SimulatedNetwork(7)
    with network.reactor() as loop:
        serve(loop, RightEcho, EchoDatagrams(), PORT)
        before = set(loop.handlers)
        judge(network, loop)
        network.run(loop)
        assert set(loop.handlers) == before


def test_a_server_that_runs_datagrams_together_has_changed_them_and_not_sent_more() -> None:
    """As a pipe between the socket and a program does: two datagrams come back as one of both."""
    held: list[bytes] = []

    def run_together(data: bytes) -> list[bytes]:
        if len(data) != 100:
            return [data]
        held.append(data)
        return [b"".join(held[-2:])] if len(held) % 2 == 0 else []

    report = judged(udp=ChangedDatagrams(run_together))
    (finding,) = [f for f in report.findings if f.verdict is Verdict.FAIL]
    assert finding.seen == "an answer of 200 bytes that is none of 5 datagrams of 100"
    assert (finding.case.name, finding.fault) == ("udp-one-answer", Fault.LOSSY)


def test_without_descriptors_for_many_callers_the_case_cannot_be_judged_and_the_others_are() -> None:
    """Story: a limit of 20 descriptors ended in a judgement that never came."""
    network = SimulatedNetwork(8, descriptor_limit=20)
    with network.reactor() as loop:
        serve(loop, RightEcho, EchoDatagrams(), PORT)
        report = judge(network, loop)
    seen = {finding.case.name: finding.seen for finding in report.findings}
    assert seen["tcp-many"] == "this machine couldn't try: Too many open files"
    assert {finding.verdict for finding in report.findings} <= {Verdict.PASS, Verdict.UNKNOWN}
    assert set(seen) == TCP | UDP
