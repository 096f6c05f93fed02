"""The checker must name exactly the fault of each server that is wrong in one way."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Collection

import pytest

from echo7.checker import CASES, NORMAL, Checker, Fault, Report, Verdict
from echo7.checker.checker import chosen
from echo7.checker.effort import Effort
from echo7.checker.verdict import score as score_for
from reactor import Connection, Datagram, DatagramProtocol, Listener, Reactor, StreamProtocol, listen_tcp, open_udp
from reactor.sockets.addresses import Address
from reactor.testing import SimulatedNetwork

HOST, ELSEWHERE, PORT = "10.0.0.1", "10.0.0.2", 7
TIMEOUT_S = 3.0
SMALL = NORMAL._replace(rounds=1, clients=20, connections=20, resets=1, exchanges=20, datagrams=60, stream_mib=1)
TCP, UDP = ({case.name for case in CASES if case.transport == transport} for transport in ("tcp", "udp"))
UDP_CASES = [*UDP, "tcp-answers"]
# These ask many things at once, so that many faults fail them. The others name one fault each.
LOAD = set(
    "tcp-chunks tcp-late-reader tcp-count tcp-many tcp-slow-reader tcp-stuck-peer tcp-16m tcp-stream tcp-again "
    "tcp-reset tcp-idle tcp-alive udp-one-answer udp-clients udp-count udp-alive".split()
)
WITH_DATA = TCP - {"tcp-silence", "tcp-0"}
LINE_ENDS = {"tcp-runs", "tcp-random", "tcp-text", "tcp-telnet"}  # the cases with a CR LF in them

MORE_THAN_1000 = (
    WITH_DATA
    - set("tcp-answers tcp-1 tcp-all-bytes tcp-text tcp-telnet tcp-byte-by-byte".split())
    - set("tcp-no-more tcp-caller-ends tcp-many tcp-urgent".split())
)
DOUBLED_IAC = {"tcp-runs", "tcp-random", "tcp-telnet"}  # the cases with two bytes of 255 in a row


class EchoDatagrams(DatagramProtocol):
    """A right echo, with a loop guard."""

    def datagram_received(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        if source[1] != 19:
            self.answer(endpoint, data, source, path)

    def answer(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        endpoint.send(data, source, path)


class RightEcho(StreamProtocol):
    """A right echo."""

    def data_received(self, connection: Connection, data: bytes) -> None:
        connection.write(data)


class Changed(StreamProtocol):
    """Answers with changed bytes."""

    def __init__(self, change: Callable[[bytes], bytes]) -> None:
        self.change = change

    def data_received(self, connection: Connection, data: bytes) -> None:
        connection.write(self.change(data))


class ChangedDatagrams(EchoDatagrams):
    """Answers with changed datagrams."""

    def __init__(self, change: Callable[[bytes], list[bytes]]) -> None:
        self.change = change

    def answer(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
        for answer in self.change(data):
            endpoint.send(answer, source, path)


class Greets(RightEcho):
    """Sends a greeting first, as mail servers do."""

    def connection_made(self, connection: Connection) -> None:
        connection.write(b"220 ready\r\n")


class LosesUrgent(RightEcho):
    """Leaves SO_OOBINLINE off, as most servers do."""

    def connection_made(self, connection: Connection) -> None:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 0)


class ResetsOnHalfClose(RightEcho):
    """Resets when the client sends FIN."""

    def eof_received(self, connection: Connection) -> None:
        connection.abort()


class NeverCloses(RightEcho):
    """Ignores FIN."""

    def eof_received(self, connection: Connection) -> bool:
        return True


class HangsUpInTheMiddle(StreamProtocol):
    """Echoes a thousand bytes, and closes."""

    def data_received(self, connection: Connection, data: bytes) -> None:
        connection.write(data[: 1000 - connection.bytes_sent])
        if connection.bytes_sent >= 1000:
            connection.close()


class OneAtATime(RightEcho):
    """Serves one client to the end before the next."""

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
    """Closes after the first line."""

    def data_received(self, connection: Connection, data: bytes) -> None:
        connection.write(data)
        if data.endswith(b"\n"):
            connection.close()


class WaitsForALine(StreamProtocol):
    """Sends back whole lines, and the rest at the end."""

    def __init__(self) -> None:
        self.held: dict[Connection, bytes] = {}

    def data_received(self, connection: Connection, data: bytes) -> None:
        lines, newline, rest = (self.held.get(connection, b"") + data).rpartition(b"\n")
        self.held[connection] = rest
        connection.write(lines + newline)

    def eof_received(self, connection: Connection) -> None:
        connection.write(self.held.get(connection, b""))


class FlushesWithoutLooking(StreamProtocol):
    """Loses what the kernel doesn't take at once."""

    def data_received(self, connection: Connection, data: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            connection.socket.send(data)


class Discards(StreamProtocol):
    """RFC 863."""


class ClosesAtOnce(StreamProtocol):
    """Accepts, and closes."""

    def connection_made(self, connection: Connection) -> None:
        connection.close()


class NeverEnds(StreamProtocol):
    """Sends without end (RFC 864)."""

    def connection_made(self, connection: Connection) -> None:
        connection.write(b"ring around the rosie " * 10_000)

    drained = connection_made


class Silent(DatagramProtocol):
    """Never answers."""


def swap_halves(data: bytes) -> bytes:
    """Put the second half before the first."""
    return data[len(data) // 2 :] + data[: len(data) // 2]


def twice(data: bytes) -> bytes:
    return data + data


def report_on(
    network: SimulatedNetwork,
    loop: Reactor,
    *,
    port: int = PORT,
    transports: Collection[str] = ("tcp", "udp"),
    only: Collection[str] = (),
    effort: Effort = SMALL,
) -> Report:
    """Run the checker in the simulation, where time-outs take no time."""
    reports: list[Report] = []
    Checker(
        loop,
        "server.test",
        [(HOST, port)],
        chosen(transports, only),
        timeout_s=TIMEOUT_S,
        done=reports.append,
        effort=effort,
        seed=862,
    ).start()
    network.run(loop, until=lambda: reports)
    assert len(reports) == 1
    return reports[0]


def report_for(
    tcp: Callable[[], StreamProtocol] | None = RightEcho,
    udp: DatagramProtocol | None = None,
    port: int = PORT,
    only: Collection[str] = (),
    effort: Effort = SMALL,
) -> Report:
    """Check a server of these parts; by default each is right. `tcp` is called once: all connections share it."""
    network = SimulatedNetwork(862)
    with network.reactor() as loop:
        serve(loop, tcp, udp or EchoDatagrams(), port)
        report = report_on(network, loop, port=port, only=only, effort=effort)
    network.check()
    return report


def udp_report(change: Callable[[bytes], list[bytes]]) -> Report:
    """Check a server that changes datagrams, without most of the TCP cases."""
    return report_for(udp=ChangedDatagrams(change), only=UDP_CASES)


def score_of(report: Report) -> str:
    return score_for(report.port, report.findings).text


def serve(loop: Reactor, tcp: Callable[[], StreamProtocol] | None, udp: DatagramProtocol, port: int) -> Listener | None:
    open_udp(loop, (HOST, port), udp)
    if tcp is None:
        return None
    protocol = tcp()
    return listen_tcp(loop, (HOST, port), lambda: protocol)


def failed(report: Report) -> set[str]:
    """Return the failed cases that name one fault each."""
    return {finding.case.name for finding in report.findings if finding.verdict is Verdict.FAIL} - LOAD


def test_right_server_passes_every_case_and_scores_1() -> None:
    report = report_for(effort=SMALL._replace(rounds=2))
    assert failed(report) == set()
    assert {finding.case.name for finding in report.findings} == TCP | UDP
    assert (report.status, score_of(report)) == (0, "×1")


@pytest.mark.long
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
        (ResetsOnHalfClose, {"tcp-0", "tcp-half-close"}, "×4"),
        (lambda: Changed(swap_halves), WITH_DATA - {"tcp-1", "tcp-byte-by-byte"}, "×4"),
        (NeverCloses, {"tcp-0", "tcp-half-close"}, "×4"),
        (HangsUpInTheMiddle, MORE_THAN_1000, "×4"),
        (OneAtATime, {"tcp-many", "tcp-stuck-peer"}, "?"),
        (ClosesAfterAnswer, {"tcp-caller-ends"}, "×4"),
        (FlushesWithoutLooking, {"tcp-slow-reader", "tcp-stuck-peer"}, "×4"),
    ],
    ids=[
        "drops the last byte", "swaps CR LF", "makes LF of CR LF", "undoubles IAC", "loses the urgent byte", "greets",
        "echoes twice", "resets on half-close", "wrong order", "never closes", "hangs up in the middle",
            "one at a time", "closes after its answer",
        "hopes that send won't block",
    ],
)  # fmt: skip
def test_wrong_tcp_server_fails_exactly_its_own_cases(
    server: Callable[[], StreamProtocol], faults: set[str], score: str
) -> None:
    report = report_for(tcp=server)
    assert failed(report) == faults - LOAD
    assert score_of(report) == score
    assert report.status == (1 if faults - {"tcp-urgent"} else 0)


@pytest.mark.parametrize(
    ("change", "faults", "score"),
    [
        (lambda data: [data[:2048]], {"udp-8193", "udp-largest"}, "×4"),
        (lambda data: [data] if data else [], {"udp-0"}, "×4"),
        (lambda data: [data, data], UDP - {"udp-largest", "udp-loop-guard"}, "ω"),
        (lambda data: [data + b"!"], UDP - {"udp-loop-guard"}, "ω"),
        (lambda data: [data.replace(b"\xff", b"")], {"udp-all-bytes"}, "×4"),
        (lambda data: [data] if len(data) < 1473 else [], {"udp-1473", "udp-8193", "udp-largest"}, "×4"),
    ],
    ids=["truncates at 2,048", "swallows empty ones", "answers twice", "adds a byte", "eats a byte", "drops fragments"],
)
def test_wrong_udp_server_fails_exactly_its_own_cases(
    change: Callable[[bytes], list[bytes]], faults: set[str], score: str
) -> None:
    report = udp_report(change)
    assert failed(report) == faults - LOAD
    assert (score_of(report), report.status) == (score, 1)


def test_answer_from_another_address_is_reported_and_does_not_change_the_score() -> None:
    """RFC 1122 §4.1.3.5 is "beyond": nine of nine servers get it wrong on a wildcard bind."""

    class Sideways(EchoDatagrams):
        def answer(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
            aside.send(data, source)

    network = SimulatedNetwork(1)
    with network.reactor() as loop:
        aside = open_udp(loop, (ELSEWHERE, PORT), Silent())
        serve(loop, RightEcho, Sideways(), PORT)
        report = report_on(network, loop, only=UDP_CASES)
    assert failed(report) == {"udp-reply-address"}
    assert [f.seen for f in report.findings if f.case.name == "udp-reply-address"] == [
        f"sent to {HOST}:{PORT}, answered by {ELSEWHERE}:{PORT}"
    ]
    assert (score_of(report), report.status) == ("×1", 0)


def test_missing_loop_guard_is_reported_and_does_not_change_the_score() -> None:
    class Naive(EchoDatagrams):
        def datagram_received(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
            endpoint.send(data, source, path)

    report = report_for(udp=Naive(), only=UDP_CASES)
    assert failed(report) == {"udp-loop-guard"}
    assert (score_of(report), report.status) == ("×1", 0)


def test_server_that_waits_for_a_line_fails_cases_without_one() -> None:
    report = report_for(tcp=WaitsForALine, only=["tcp-1", "tcp-byte-by-byte", "tcp-64k"])
    verdicts = {finding.case.name: finding.verdict for finding in report.findings}
    assert verdicts["tcp-answers"] is Verdict.PASS
    assert {verdicts[name] for name in ("tcp-1", "tcp-byte-by-byte", "tcp-64k")} == {Verdict.FAIL}


@pytest.mark.parametrize(
    ("tcp", "udp", "score", "faults"),
    [
        (RightEcho, Silent(), "×2", {"udp-answers": "timed out"}),
        (None, EchoDatagrams(), "×2", {"tcp-answers": "refused"}),
        (Discards, EchoDatagrams(), "×2", {"tcp-answers": "nothing within 6 s"}),
        (ClosesAtOnce, EchoDatagrams(), "×2", {"tcp-answers": "the server closed"}),
        (Discards, Silent(), "ω", {"tcp-answers": "no echo", "udp-answers": "timed out"}),
    ],
    ids=["TCP alone", "UDP alone", "discard and UDP", "closes at once and UDP", "neither echoes"],
)
def test_missing_transport_doubles_the_score_and_skips_its_other_cases(
    tcp: Callable[[], StreamProtocol] | None, udp: DatagramProtocol, score: str, faults: dict[str, str]
) -> None:
    report = report_for(tcp=tcp, udp=udp)
    bad = [finding for finding in report.findings if finding.verdict is not Verdict.PASS]
    assert {finding.case.name for finding in bad} == set(faults)
    for finding in bad:
        assert faults[finding.case.name] in finding.seen
        others = [f for f in report.findings if f.case.transport == finding.case.transport]
        assert others == [finding]
    assert (score_of(report), report.status) == (score, 1)


def test_another_port_quadruples_the_score_and_both_faults_make_eight() -> None:
    """The old rules: "doubled if TCP or UDP is missing, quadrupled if the port isn't 7 or bytes are dropped"."""
    assert score_of(report_for(port=7007)) == "×4"
    alone = score_for(7007, report_for(tcp=None, port=7007).findings)
    assert (alone.text, alone.factor) == ("×8", 8)
    assert alone.reasons == ("only UDP works", "the port is 7007, not 7")


def test_no_answer_at_all_gives_no_score_and_status_3() -> None:
    network = SimulatedNetwork(2)
    with network.reactor() as loop:
        report = report_on(network, loop)
    assert [finding.seen.partition(":")[0] for finding in report.findings] == ["refused", "refused"]
    assert (report.answered, report.score, report.status) == (False, None, 3)


def test_server_behind_a_broken_path_times_out_soon() -> None:
    network = SimulatedNetwork(3)
    with network.reactor() as loop:
        serve(loop, RightEcho, EchoDatagrams(), PORT)
        network.partition(HOST)
        start_s = network.clock()
        report = report_on(network, loop)
    assert [finding.seen.partition(":")[0] for finding in report.findings] == ["timed out", "timed out"]
    assert report.status == 3
    assert network.clock() - start_s < 10 * TIMEOUT_S


# ---------------------------------------------------------------- hostile servers


def test_endless_data_is_cut_off_and_scores_omega() -> None:
    report = report_for(tcp=NeverEnds)
    assert failed(report) == TCP - LOAD
    assert score_of(report) == "ω"


def test_server_that_dribbles_takes_bounded_time() -> None:
    """The server sends a byte just before every time-out: each case still ends, and so does the run."""

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
        report = report_on(network, loop)
    words = {finding.case.name: finding for finding in report.findings}
    assert words["tcp-1"].verdict is Verdict.PASS
    assert words["tcp-64k"].verdict is Verdict.UNKNOWN
    assert words["tcp-urgent"].seen == "not tried: the time for this address is used up"
    assert network.clock() - start_s <= (SMALL.patience + 2 * SMALL.case_patience) * TIMEOUT_S
    assert score_of(report) == "?"


def test_flood_of_datagrams_costs_bounded_memory() -> None:
    report = report_for(udp=ChangedDatagrams(lambda data: [data] * 500), only=["udp-0", "udp-1"])
    assert failed(report) >= {"udp-0", "udp-1"}
    assert score_of(report) == "ω"


@pytest.fixture
def across_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the checker believe that datagrams may be lost or doubled on the way."""
    monkeypatch.setattr("echo7.checker.checker.is_here", lambda reactor, address: False)


def one_in(number: int, answer: Callable[[bytes], list[bytes]]) -> Callable[[bytes], list[bytes]]:
    """Return a change that answers one datagram in `number` differently."""
    seen: list[int] = []

    def change(data: bytes) -> list[bytes]:
        seen.append(len(data))
        return [data] if len(seen) % number else answer(data)

    return change


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda data: [data, data], "came twice: the network may have done that"),
        (lambda data: [], "got no answer: lost by the network, or dropped"),
    ],
)
@pytest.mark.usefixtures("across_a_network")
def test_network_may_have_lost_or_doubled_some(answer: Callable[[bytes], list[bytes]], said: str) -> None:
    """What can't be decided never passes, and never fails."""
    report = report_for(udp=ChangedDatagrams(one_in(40, answer)), only=["udp-count"])
    (finding,) = [f for f in report.findings if f.verdict is not Verdict.PASS]
    assert (finding.case.name, finding.verdict) == ("udp-count", Verdict.UNKNOWN), finding.seen
    assert said in finding.seen
    assert (report.status, score_of(report)) == (4, "?")


def test_single_double_over_loopback_is_excess() -> None:
    """Nothing can double it but the server."""
    report = report_for(udp=ChangedDatagrams(one_in(40, lambda data: [data, data])), only=["udp-count"])
    assert {f.fault for f in report.findings if f.case.name == "udp-count"} == {Fault.EXCESS}
    assert score_of(report) == "ω"


@pytest.mark.parametrize("lost", [1, 5, 6])
@pytest.mark.usefixtures("across_a_network")
def test_datagram_counts_as_dropped_after_six_losses_while_others_are_answered(lost: int) -> None:
    asked: list[bytes] = []

    def lossy(data: bytes) -> list[bytes]:
        if len(data) != 512:
            return [data]
        asked.append(data)
        return [data] if len(asked) > lost else []

    report = report_for(udp=ChangedDatagrams(lossy), only=["udp-512"])
    (finding,) = [f for f in report.findings if f.case.name == "udp-512"]
    if lost < 6:
        assert (finding.verdict, finding.seen) == (Verdict.PASS, f"came back; {lost} lost before")
    else:
        assert finding.verdict is Verdict.FAIL
        assert finding.seen == "no answer to 6 of 512 bytes, while others are answered at once"


@pytest.mark.usefixtures("across_a_network")
def test_first_datagram_may_be_lost_by_a_network() -> None:
    asked: list[bytes] = []

    def first(data: bytes) -> list[bytes]:
        asked.append(data)
        return [data] if len(asked) > 1 else []

    report = report_for(udp=ChangedDatagrams(first), only=["udp-1"])
    assert [f.seen for f in report.findings if f.case.is_first and f.case.transport == "udp"] == [
        "came back; 1 lost before"
    ]


def test_first_datagram_that_is_lost_on_loopback_was_dropped() -> None:
    asked: list[bytes] = []

    def all_but_the_first(data: bytes) -> list[bytes]:
        asked.append(data)
        return [data] if len(asked) > 1 else []

    report = report_for(udp=ChangedDatagrams(all_but_the_first), only=["udp-1"])
    (finding,) = [f for f in report.findings if f.verdict is Verdict.FAIL]
    assert (finding.case.name, finding.seen) == ("udp-answers", "1 of 2 datagrams got no answer")


@pytest.mark.usefixtures("across_a_network")
def test_answer_that_comes_after_it_was_given_up_is_no_double() -> None:
    """A network may delay the first answers by two seconds, and a stranger may send to our port."""

    class Late(EchoDatagrams):
        count = 0

        def answer(self, endpoint: Datagram, data: bytes, source: Address, path: bytes) -> None:
            self.count += 1
            loop.call_later(2.0 if 2 <= self.count < 20 else 0.0, endpoint.send, data, source)
            stranger.send(b"buy", source)

    network = SimulatedNetwork(9)
    with network.reactor() as loop:
        stranger = open_udp(loop, (ELSEWHERE, 4000), Silent())
        serve(loop, RightEcho, Late(), PORT)
        report = report_on(network, loop, only=["udp-count"])
    (finding,) = [f for f in report.findings if f.verdict is not Verdict.PASS]
    assert finding.verdict is Verdict.UNKNOWN
    assert finding.seen.endswith("got no answer: lost by the network, or dropped")


class Ignores(RightEcho):
    """Answers all connections but one."""

    def __init__(self) -> None:
        self.made: list[Connection] = []

    def connection_made(self, connection: Connection) -> None:
        self.made.append(connection)

    def data_received(self, connection: Connection, data: bytes) -> None:
        if connection is not self.made[5 % len(self.made)] or len(self.made) < 6:
            connection.write(data)


@pytest.mark.parametrize(
    ("is_taken", "verdict", "said"),
    [
        (None, Verdict.FAIL, "19 of 20 clients at once got an answer, while others are served at once"),
        (
            False,
            Verdict.UNKNOWN,
            "19 of 20 clients at once got an answer in time, the others aren't connected yet: it may only be slow",
        ),
    ],
)
def test_client_that_waits_among_many_counts_unless_tcp_itself_still_tries(
    monkeypatch: pytest.MonkeyPatch, is_taken: bool | None, verdict: Verdict, said: str
) -> None:
    if is_taken is not None:
        monkeypatch.setattr("echo7.checker.tcp_client.TcpClient.is_taken", is_taken)
    report = report_for(tcp=Ignores, only=["tcp-many"])
    (finding,) = [f for f in report.findings if f.case.name == "tcp-many"]
    assert (finding.verdict, finding.seen) == (verdict, said)


@pytest.mark.parametrize(("case", "served"), [("tcp-0", 1), ("tcp-many", 10), ("tcp-stuck-peer", 2)])
def test_server_that_serves_only_the_first_clients_cannot_be_told_from_a_slow_one_until_the_end(
    case: str, served: int
) -> None:
    class First(RightEcho):
        def __init__(self) -> None:
            self.made: list[Connection] = []

        def connection_made(self, connection: Connection) -> None:
            self.made.append(connection)

        def data_received(self, connection: Connection, data: bytes) -> None:
            if connection in self.made[:served]:
                connection.write(data)

        def eof_received(self, connection: Connection) -> bool:
            return connection not in self.made[:served]

    words = {finding.case.name: finding for finding in report_for(tcp=First, only=[case]).findings}
    assert words[case].verdict is Verdict.UNKNOWN
    assert words["tcp-alive"].fault is Fault.STOPPED


def test_connection_that_hangs_while_others_are_served_is_lossy() -> None:
    class Hangs(Ignores):
        def eof_received(self, connection: Connection) -> bool:
            return connection is self.made[1]

        def data_received(self, connection: Connection, data: bytes) -> None:
            if len(self.made) == 1 or connection is not self.made[1]:
                connection.write(data)

    (finding,) = [f for f in report_for(tcp=Hangs, only=["tcp-1"]).findings if f.case.name == "tcp-1"]
    assert finding.seen == "0 of 1 bytes came back and then nothing for 6 s, while others are served at once"


def test_server_that_stops_while_a_client_is_stuck_is_named_at_the_end() -> None:
    """It serves no client any more: the cases can't be decided, and at the end it is reported as stopped."""

    class Stops(RightEcho):
        received_bytes = 0

        def data_received(self, connection: Connection, data: bytes) -> None:
            self.received_bytes += len(data)
            if self.received_bytes < 2_000_000:
                connection.write(data)

        def eof_received(self, connection: Connection) -> bool:
            return self.received_bytes >= 2_000_000

    report = report_for(tcp=Stops, only=["tcp-stuck-peer", "tcp-0", "tcp-16m"])
    words = {finding.case.name: finding for finding in report.findings}
    assert words["tcp-alive"].fault is Fault.STOPPED
    assert score_of(report).startswith("ω")


@pytest.mark.usefixtures("across_a_network")
def test_lossy_network_is_not_called_a_dropping_server() -> None:
    """Two of three datagrams are lost, whatever is in them."""
    seen: list[bytes] = []

    def lossy(data: bytes) -> list[bytes]:
        seen.append(data)
        return [data] if len(seen) % 3 == 1 else []

    cases = ["udp-1", "udp-one-answer", "udp-count"]
    report = report_for(udp=ChangedDatagrams(lossy), only=cases, effort=SMALL._replace(datagrams=600))
    assert Verdict.FAIL not in {finding.verdict for finding in report.findings}
    assert report.status == 4


def test_case_that_this_machine_cannot_try_is_unknown() -> None:
    """Port 19 is taken, and our own kernel refuses to send a datagram: neither is the server's fault."""
    network = SimulatedNetwork(5)
    with network.reactor() as loop:
        serve(loop, RightEcho, EchoDatagrams(), PORT)
        open_udp(loop, ("0.0.0.0", 19), Silent())
        # after `udp-answers` and its answer comes `udp-0`
        network.plan("sendmsg", "EMSGSIZE", after=2)
        report = report_on(network, loop, transports=["udp"])
    unknown = {f.case.name: f.seen for f in report.findings if f.verdict is Verdict.UNKNOWN}
    assert unknown == {
        "udp-0": "this machine cannot send 0 bytes in one datagram: Message too long",
        "udp-loop-guard": "this machine cannot bind source port 19: Address already in use",
    }
    assert report.status == 4


def test_server_that_drops_a_burst_fails_one_answer() -> None:
    report = udp_report(lambda data: [] if len(data) == 100 else [data])
    assert [f.seen for f in report.findings if f.case.name == "udp-one-answer"] == [
        "32 of 32 got no answer, while others are answered at once"
    ]


def test_refused_clients_are_counted() -> None:
    """A server that serves only the first ten fails, and the report says how many were served."""

    class Few(RightEcho):
        def connection_made(self, connection: Connection) -> None:
            made.append(connection)
            if len(made) == 10:
                listener.close()

    network = SimulatedNetwork(6)
    made: list[Connection] = []
    with network.reactor() as loop:
        few = Few()
        listener = listen_tcp(loop, (HOST, PORT), lambda: few, backlog=5)
        report = report_on(network, loop, transports=["tcp"], only=["tcp-many"])
    (finding,) = [f for f in report.findings if f.case.name == "tcp-many"]
    assert (finding.verdict, finding.fault) == (Verdict.FAIL, Fault.CONDUCT)
    assert finding.seen.endswith("of 20 clients at once got an answer; the server refused or closed others")


def test_finished_check_leaves_no_socket() -> None:
    network = SimulatedNetwork(7)
    with network.reactor() as loop:
        serve(loop, RightEcho, EchoDatagrams(), PORT)
        before = set(loop.handlers)
        report_on(network, loop)
        network.run(loop)
        assert set(loop.handlers) == before


def test_merged_datagrams_are_lossy_and_not_excess() -> None:
    """Two datagrams come back as one, as from a program behind a pipe."""
    held: list[bytes] = []

    def run_together(data: bytes) -> list[bytes]:
        if len(data) != 100:
            return [data]
        held.append(data)
        return [b"".join(held[-2:])] if len(held) % 2 == 0 else []

    report = udp_report(run_together)
    (finding,) = [f for f in report.findings if f.case.name == "udp-one-answer"]
    assert (finding.seen, finding.fault) == ("an answer of 200 bytes matches none of 32 datagrams", Fault.LOSSY)


def test_too_few_descriptors_make_one_case_unknown_and_leave_the_others() -> None:
    """Story: with a limit of 20 descriptors the report never came."""
    network = SimulatedNetwork(8, descriptor_limit=20)
    with network.reactor() as loop:
        serve(loop, RightEcho, EchoDatagrams(), PORT)
        report = report_on(network, loop)
    seen = {finding.case.name: finding.seen for finding in report.findings}
    assert seen["tcp-many"] == "this machine cannot try: Too many open files"
    assert {finding.verdict for finding in report.findings} <= {Verdict.PASS, Verdict.UNKNOWN}
    assert set(seen) == (TCP | UDP) - {"tcp-idle"}
