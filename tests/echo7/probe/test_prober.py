"""A run in virtual time against a scripted echo: the result has the script's numbers."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from echo7.probe import prober as prober_module
from echo7.probe.measure import ledger as ledger_module
from echo7.probe.measure.words import Damage, Event, Harm, Word
from echo7.probe.plan import NS_PER_S
from echo7.probe.prober import BUSY, MISSED, NOTHING_LISTENS, CannotProbe, Prober
from echo7.probe.result import PathMtu, PingResult
from reactor import Reactor, open_udp
from reactor.testing import simulate
from tests.echo7.probe.world import (
    HERE,
    KEY,
    LATENCY_S,
    LOST,
    RTT_NS,
    TWICE,
    Answer,
    Script,
    ScriptedEcho,
    World,
    after,
    cut,
    flipped,
    grown,
    plan,
)  # fmt: skip


def counts(result: PingResult) -> dict[str, int]:
    """The counts above 0."""
    return {name: count for name, count in result.counts._asdict().items() if count}


# ---------------------------------------------------------------- a good network


def test_good_network_answers_every_probe() -> None:
    result = World(plan(10)).run()
    assert counts(result) == {"sent": 10, "replies": 10}
    assert result.rtt is not None
    assert (result.rtt.min_ns, result.rtt.max_ns, result.rtt.mean_ns, result.rtt.stddev_ns) == (RTT_NS,) * 3 + (0,)
    assert (result.jitter_ns, result.longest_loss, result.counts.loss) == (0, 0, 0.0)
    assert result.duration_ns == 9 * NS_PER_S + RTT_NS
    assert (result.lag_max_ns, result.skipped, result.verdict) == (0, {}, "replies")


def test_probes_are_sent_on_schedule_and_not_after_the_last_answer() -> None:
    """Issue: "Sends on schedule, not after the last answer (no coordinated omission)"."""
    world = World(plan(8, 0.25, 2.0), dict.fromkeys(range(1, 9), after(1.5)))
    result = world.run()
    rtt_ns = RTT_NS + 3 * NS_PER_S // 2
    assert [event.rtt_ns for event in world.events] == [rtt_ns] * 8
    start_ns = world.times_ns[0] - rtt_ns
    assert world.times_ns == [start_ns + number * NS_PER_S // 4 + rtt_ns for number in range(8)]
    assert counts(result) == {"sent": 8, "replies": 8}


# ---------------------------------------------------------------- a scripted network


def test_every_kind_of_trouble_is_reported_with_its_probe() -> None:
    """Issue: "tells lost, late, duplicate, reordered, truncated and *corrupted* … apart"."""
    script: Script = {
        2: LOST,
        3: after(2.5),  # late: more than 2 s
        4: TWICE,
        5: after(1.5),  # overtaken by 6
        7: flipped(20, 0x01),
        8: cut(40),
        9: grown(b"!!"),
        10: flipped(3, 0x80),  # in the header
        12: (Answer(change=lambda data: b"\x00" * len(data)),),
    }
    world = World(plan(13, 1.0, 2.0), script)
    result = world.run()
    assert counts(result) == {
        "sent": 13, "replies": 10, "lost": 2, "late": 1, "duplicates": 1, "reordered": 1, "truncated": 1,
        "lengthened": 1, "corrupted": 2, "foreign": 1,
    }  # fmt: skip
    by_number = {event.sequence: event for event in world.events if event.word is not Word.DUPLICATE}
    assert by_number[3].word is Word.LATE
    assert by_number[5].reordered
    assert by_number[7].damage == Damage(Harm.CORRUPTED, 20, 0x01, 1)
    assert by_number[8].damage == Damage(Harm.TRUNCATED, 40, 0, 0)
    assert by_number[9].damage == Damage(Harm.LENGTHENED, 56, 0, 0)
    assert by_number[10].damage == Damage(Harm.CORRUPTED, 3, 0x80, 1)
    assert (result.longest_loss, result.counts.loss) == (2, 3 / 13)


# 1.4 s isn't a multiple of any interval below, so no two replies arrive at the same moment.
FATES = st.sampled_from(["usual", "lost", "late", "twice", "slow", "flipped", "cut"])
DEEDS: Any = {
    "lost": LOST, "late": after(2.5), "twice": TWICE, "slow": after(1.4), "flipped": flipped(30, 4), "cut": cut(20)
}  # fmt: skip


@given(st.lists(FATES, min_size=1, max_size=15), st.sampled_from([0.25, 1.0]))
@example(["slow", "usual", "lost", "lost", "late", "cut"], 1.0)
@example(["slow", "lost", "lost", "lost", "lost", "lost", "usual"], 0.25)
def test_result_has_the_numbers_of_any_script(fates: list[str], interval_s: float) -> None:
    """Issue: "must report those very numbers", computed here from the script alone."""
    script = {number: DEEDS[fate] for number, fate in enumerate(fates, 1) if fate != "usual"}
    world = World(plan(len(fates), interval_s), script)
    result = world.run()
    in_time = [fate not in ("lost", "late") for fate in fates]
    came_s = [number * interval_s + (1.4 if fate == "slow" else 0) for number, fate in enumerate(fates)]
    reordered = sum(
        ok and any(then and came_s[later] < came_s[at] for later, then in enumerate(in_time) if later > at)
        for at, ok in enumerate(in_time)
    )
    burst = max(map(len, "".join("x" if not ok else " " for ok in in_time).split()), default=0)
    last_ns = max(world.times_ns)
    late = sum(
        fate == "late" and round((1000 + number * interval_s + 2.5 + 2 * LATENCY_S) * NS_PER_S) <= last_ns
        for number, fate in enumerate(fates)
    )
    found = result.counts
    assert (found.sent, found.replies, found.outstanding) == (len(fates), sum(in_time), 0)
    assert (found.late, found.lost) == (late, len(fates) - sum(in_time) - late)
    assert (found.reordered, found.duplicates) == (reordered, fates.count("twice"))
    assert (found.corrupted, found.truncated) == (fates.count("flipped"), fates.count("cut"))
    assert result.longest_loss == burst


def test_jitter_is_the_mean_difference_of_neighbours() -> None:
    """As in RFC 3393, but of round trips; probes 1 … 4 take 0, 500, 250 and 250 ms more."""
    result = World(plan(4), {2: after(0.5), 3: after(0.25), 4: after(0.25)}).run()
    assert result.jitter_ns == (500_000_000 + 250_000_000 + 0) // 3


# ---------------------------------------------------------------- no answers, and errors


def test_without_answers_all_probes_time_out_and_the_run_ends() -> None:
    """Issue: "never answering: bounded memory and time, a clear verdict"."""
    world = World(plan(5, 0.5, 1.0), usual=LOST)
    result = world.run()
    assert counts(result) == {"sent": 5, "lost": 5}
    assert (result.verdict, result.longest_loss, result.rtt, result.jitter_ns) == ("timed out", 5, None, None)
    assert [event.reason for event in world.events] == ["timed out"] * 5
    assert result.duration_ns == 3 * NS_PER_S


@pytest.mark.parametrize(
    ("kind", "word", "verdict"),
    [
        ("ECONNREFUSED", Word.REFUSED, "refused"),
        ("EHOSTUNREACH", Word.UNREACHABLE, "unreachable"),
        ("ENETUNREACH", Word.UNREACHABLE, "unreachable"),
    ],
)
def test_icmp_error_settles_the_oldest_outstanding_probe(kind: str, word: Word, verdict: str) -> None:
    """RFC 1122 §4.1.3.3; issue: "refused, unreachable and timed out are different words"."""
    world = World(plan(1), {1: (Answer(0.5, lambda data: b"wakes the socket"),)})
    # the echo calls recvmsg twice
    world.network.plan("recvmsg", kind, after=2)
    result = world.run()
    assert world.words()[0] == (1, word)
    assert counts(result) == {"sent": 1, word.value: 1, "foreign": 1}
    assert result.verdict == verdict


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("EPERM", Word.UNREACHABLE),  # a local firewall
        ("EACCES", Word.UNREACHABLE),
        ("ENETUNREACH", Word.UNREACHABLE),
        ("ECONNREFUSED", Word.REFUSED),
        ("EMSGSIZE", Word.TOO_BIG),
    ],
)
def test_error_of_send_settles_that_probe(kind: str, word: Word) -> None:
    world = World(plan(2))
    world.network.plan("sendmsg", kind)
    result = world.run()
    assert world.words() == [(1, word), (2, Word.REPLY)]
    assert world.events[0].reason
    assert result.verdict == "replies"


@pytest.mark.parametrize("kind", ["EAGAIN", "EINTR", "ENOBUFS", "ENOMEM"])
def test_probe_without_room_in_the_kernel_is_not_counted_as_sent(kind: str) -> None:
    """Specified: "EAGAIN on send: counted as not sent, never blocks"; a run with a count still ends."""
    world = World(plan(3))
    world.network.plan("sendmsg", kind)
    result = world.run()
    assert counts(result) == {"sent": 2, "replies": 2}
    assert result.skipped == {kind: 1}


def test_unknown_error_is_a_loss_with_its_reason() -> None:
    world = World(plan(1))
    world.reactor.call_later(LATENCY_S, lambda: world.prober.trouble(0, errno.EIO, b"", ""))
    result = world.run()
    assert (world.words(), world.events[0].reason, result.verdict) == (
        [(1, Word.LOST)],
        "Input/output error",
        "timed out",
    )


def test_error_without_outstanding_probes_is_ignored() -> None:
    world = World(plan(2))
    world.reactor.call_later(0.5, lambda: world.prober.trouble(0, errno.ECONNREFUSED, b"", ""))
    assert counts(world.run()) == {"sent": 2, "replies": 2}


def test_run_stopped_before_any_answer_is_undecided() -> None:
    world = World(plan(None), usual=LOST)
    world.reactor.call_later(0.5, world.prober.stop)
    result = world.run()
    assert (counts(result), result.verdict) == ({"sent": 1, "outstanding": 1}, "undecided")
    assert result.counts.loss == 0


# ---------------------------------------------------------------- schedule


def test_late_loop_sends_due_probes_at_once_and_reports_the_lag() -> None:
    """Issue: round trips count from the sending, and "how late our own sending was is reported"."""
    world = World(plan(5, 0.5))
    # the process stands still until 1.125 s
    world.reactor.call_later(0.375, world.network.clock.advance, 0.75)
    result = world.run()
    assert counts(result) == {"sent": 5, "replies": 5}
    assert result.rtt is not None
    assert result.rtt.max_ns == RTT_NS
    assert (result.lag_max_ns, result.lag_mean_ns) == (625_000_000, (625 + 125) * 1_000_000 // 5)


def test_probes_due_longer_ago_than_a_timeout_are_skipped() -> None:
    """After an hour of sleep a machine doesn't send what it missed."""
    world = World(plan(10, 1.0, 2.0))
    world.reactor.call_later(0.5, world.network.clock.advance, 3600.0)
    result = world.run()
    assert result.skipped == {MISSED: 3598}
    assert result.counts.sent == 10
    assert result.lag_max_ns <= 2 * NS_PER_S


def test_turn_sends_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prober_module, "PROBES_PER_TURN", 2)
    world = World(plan(8, 0.125, 2.0))
    world.reactor.call_later(0.0625, world.network.clock.advance, 1.0)
    result = world.run()
    assert counts(result) == {"sent": 8, "replies": 8}


def test_turn_gives_up_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prober_module, "TIMEOUTS_PER_TURN", 16)
    world = World(plan(64, 0, 1.0), usual=LOST)
    assert counts(world.run()) == {"sent": 64, "lost": 64}


def test_stop_ends_at_once_and_outstanding_probes_are_no_loss() -> None:
    world = World(plan(None, 0.25, 2.0), {3: LOST})
    for _ in range(2):
        world.reactor.call_later(0.875, world.prober.stop)
    result = world.run()
    assert counts(result) == {"sent": 4, "replies": 2, "outstanding": 2}
    assert (result.counts.loss, result.longest_loss) == (0, 0)


def test_event_callback_may_stop_the_run() -> None:
    world = World(plan(None, 0.25))
    world.then = lambda event: world.prober.stop()
    assert counts(world.run()) == {"sent": 1, "replies": 1}


def test_event_callback_that_raises_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    world = World(plan(3))

    def raising(event: Event) -> None:
        raise RuntimeError("a user's mistake")

    world.then = raising
    assert counts(world.run()) == {"sent": 3, "replies": 3}
    assert "a user's mistake" in caplog.text


# ---------------------------------------------------------------- below 16 bytes


@pytest.mark.parametrize("size", [0, 1, 8, 15])
def test_below_16_bytes_a_probe_waits_for_the_one_before(size: int) -> None:
    """Issue: "one probe is outstanding per flow"; slots that fall due meanwhile are skipped, and counted."""
    world = World(plan(3, 0.25, 2.0, sizes=(size,)), dict.fromkeys((1, 2, 3), after(0.375)))
    result = world.run()
    assert counts(result) == {"sent": 3, "replies": 3}
    assert result.skipped == {BUSY: 4}


def test_below_16_bytes_a_loss_holds_the_flow_until_it_times_out() -> None:
    world = World(plan(3, 0.5, 1.0, sizes=(8,)), {1: LOST})
    result = world.run()
    assert counts(result) == {"sent": 3, "replies": 2, "lost": 1}
    assert result.skipped == {BUSY: 1}


def test_below_16_bytes_an_ambiguous_answer_is_unknown() -> None:
    """An empty answer after a loss may be a late one to the first probe, or one to the second."""
    world = World(plan(2, 1.0, 1.0, sizes=(0,)), {1: after(1.5)})
    result = world.run()
    assert counts(result) == {"sent": 2, "lost": 1, "unknown": 2} or counts(result) == {
        "sent": 2, "lost": 1, "unknown": 1
    }  # fmt: skip
    assert result.verdict == "timed out"


# ---------------------------------------------------------------- flood


def test_without_interval_a_window_is_kept_full() -> None:
    """Issue: "Flood (-i 0) keeps a bounded window"."""
    world = World(plan(1000, 0))
    most = 0

    def look(event: Event) -> None:
        nonlocal most
        most = max(most, world.prober.ledger.outstanding)

    world.then = look
    result = world.run()
    assert counts(result) == {"sent": 1000, "replies": 1000}
    assert most == 63  # the answer has just made room
    assert result.duration_ns == -(-1000 // 64) * RTT_NS
    assert result.lag_max_ns == 0


def test_flood_below_16_bytes_has_a_window_of_one() -> None:
    result = World(plan(10, 0, sizes=(8,))).run()
    assert counts(result) == {"sent": 10, "replies": 10}
    assert result.duration_ns == 10 * RTT_NS


def test_flood_fills_the_window_of_each_flow() -> None:
    world = World(plan(256, 0, flows=2))
    result = world.run()
    assert [flow.counts.replies for flow in result.flows] == [128, 128]
    assert result.duration_ns == 2 * RTT_NS


def test_flood_without_answers_waits_for_timeouts() -> None:
    world = World(plan(130, 0, 1.0), usual=LOST)
    result = world.run()
    assert counts(result) == {"sent": 130, "lost": 130}
    assert result.duration_ns >= 3 * NS_PER_S


def test_flood_that_is_refused_pauses() -> None:
    world = World(plan(4, 0))
    for number in range(2):
        world.network.plan("sendmsg", "ECONNREFUSED", after=number)
    result = world.run()
    assert counts(result) == {"sent": 4, "replies": 2, "refused": 2}
    assert result.duration_ns >= 20_000_000


def test_answer_ends_the_pause_of_a_flood() -> None:
    world = World(plan(4, 0))
    world.network.latency_s = 0.001
    world.network.plan("sendmsg", "ECONNREFUSED", after=1)
    result = world.run()
    assert counts(result) == {"sent": 4, "replies": 3, "refused": 1}
    assert result.duration_ns < 10_000_000


def test_flood_without_room_in_the_kernel_tries_again() -> None:
    world = World(plan(4, 0))
    world.network.plan("sendmsg", "EAGAIN")
    assert counts(world.run()) == {"sent": 3, "replies": 3}


# ---------------------------------------------------------------- flows and sizes


def test_flows_have_source_ports_of_their_own_and_take_turns() -> None:
    """Issue: "`--flows N` spreads over N source ports (ECMP/LAG paths)"."""
    world = World(plan(8, 0.25, flows=4))
    result = world.run()
    ports = [flow.source_port for flow in result.flows]
    assert len(set(ports)) == 4
    assert [source[1] for source in world.echo.sources] == ports * 2
    assert [flow.counts.sent for flow in result.flows] == [2] * 4


def test_source_ports_follow_the_first() -> None:
    world = World(plan(3, flows=3, source_port=5000))
    assert [flow.source_port for flow in world.run().flows] == [5000, 5001, 5002]


def test_flow_that_differs_is_named() -> None:
    """Issue: "reports each that differs": every fourth probe, that is, one flow, is lost."""
    result = World(plan(40, 0.125, 0.5, flows=4), dict.fromkeys(range(3, 41, 4), LOST)).run()
    assert [flow.differs for flow in result.flows] == ["", "", "loss", ""]
    assert [flow.longest_loss for flow in result.flows] == [0, 0, 10, 0]
    assert result.longest_loss == 1


def test_sizes_come_in_turn_and_each_flow_has_its_own_turn() -> None:
    world = World(plan(6, sizes=(20, 30, 40), flows=2))
    result = world.run()
    assert [len(request) for request in world.echo.requests] == [20, 20, 30, 30, 40, 40]
    assert [(size.size_bytes, size.counts.replies) for size in result.sizes] == [(20, 2), (30, 2), (40, 2)]


@pytest.mark.parametrize("size", [0, 16, 65_507])
def test_least_and_largest_size(size: int) -> None:
    assert counts(World(plan(2, sizes=(size,), flows=2)).run()) == {"sent": 2, "replies": 2}


def test_memory_is_bounded_when_nothing_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a thousand a second with a long time-out, no more are outstanding than are remembered."""
    monkeypatch.setattr(ledger_module, "REMEMBERED", 100)
    world = World(plan(None, 1 / 1024, 3600.0), usual=LOST)
    world.reactor.call_later(0.5, world.prober.stop)
    result = world.run()
    assert result.counts.sent == result.counts.outstanding == 100
    assert result.skipped[BUSY] > 300


# ---------------------------------------------------------------- the path MTU


class Small:
    """A flow with a path MTU of 1,000, which a simulated socket doesn't have."""

    def __init__(self, world: World, *, knows: bool) -> None:
        self._world, self._knows = world, knows
        self._flow = flow = world.prober.flows[0]
        self.index, self.source_port = flow.index, flow.source_port
        self.has_room, self.close = flow.has_room, flow.close
        world.prober.flows[0] = self

    def send(self, sequence: int, payload: bytes) -> tuple[int, int]:
        if self._knows and len(payload) > 972:
            return errno.EMSGSIZE, self._world.clock_ns()
        return self._flow.send(sequence, payload)

    def path_mtu_bytes(self) -> int | None:
        return 1000


def test_sizes_find_the_path_mtu() -> None:
    """Issue: "`-s MIN:MAX:STEP --df` finds the path MTU" (RFC 1191)."""
    world = World(plan(4, sizes=(971, 972, 973, 974), df=True))
    world.prober.start()
    Small(world, knows=True)
    world.network.run(world.reactor)
    assert world.result.path_mtu == PathMtu(1000, 972, 973)
    assert counts(world.result) == {"sent": 4, "replies": 2, "too_big": 2}
    assert world.events[2].reason == "the path MTU is 1000"
    assert world.result.counts.loss == 0


def test_late_icmp_error_settles_all_probes_that_are_too_large() -> None:
    """RFC 1191 §3: "fragmentation needed" comes back for one, and applies to all."""
    world = World(plan(3, 0.125, sizes=(500, 973, 974), df=True), dict.fromkeys(range(1, 4), after(0.75)))
    world.prober.start()
    Small(world, knows=False)
    world.network.run(world.reactor, until=lambda: world.prober.ledger.outstanding == 3)
    world.prober.trouble(0, errno.EMSGSIZE, b"", "")
    assert world.words() == [(2, Word.TOO_BIG), (3, Word.TOO_BIG)]
    world.network.run(world.reactor)
    assert counts(world.result) == {"sent": 3, "replies": 1, "too_big": 2}


# ---------------------------------------------------------------- runs that can't begin


def test_taken_source_port_is_an_error_that_leaves_nothing_open() -> None:
    world = World(plan(1, flows=3, source_port=5000))
    taken = world.network.socket(socket.AF_INET, socket.SOCK_DGRAM)
    taken.bind(("0.0.0.0", 5001))
    before = len(world.network.descriptors.open)
    with pytest.raises(CannotProbe, match=r"cannot send from udp port 5001: .*; choose another source port"):
        world.prober.start()
    assert len(world.network.descriptors.open) == before
    taken.close()


def test_too_few_descriptors_are_an_error() -> None:
    world = World(plan(1))
    world.network.plan("socket", "EMFILE")
    with pytest.raises(CannotProbe, match=r"cannot open a socket: .*'ulimit -n'") as refused:
        world.prober.start()
    assert not refused.value.unreachable


def test_machine_without_that_version_of_ip_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(plan(1))

    def no_such_family(*_: Any) -> None:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(world.network, "socket", no_such_family)
    with pytest.raises(CannotProbe, match="unreachable: Address family not supported") as refused:
        world.prober.start()
    assert refused.value.unreachable


def test_df_on_a_system_without_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prober_module, "can_forbid_fragments", lambda family: False)
    world = World(plan(1, df=True))
    with pytest.raises(CannotProbe, match="this system can't forbid fragments; leave out --df"):
        world.prober.start()


def test_plan_that_makes_no_sense_is_refused() -> None:
    with Reactor() as reactor, pytest.raises(ValueError, match="0 flows"):
        Prober(reactor, HERE, plan(1, flows=0))


# ---------------------------------------------------------------- simulated faults


@pytest.mark.long
def test_run_ends_and_adds_up_under_any_faults() -> None:
    """Two hundred seeds with faults at any system call: a run with a count ends, and every probe has an outcome."""

    def scenario(network: Any) -> None:
        loop = network.reactor()
        open_udp(loop, HERE, ScriptedEcho(loop))
        events: list[Event] = []
        ended = 0

        def end() -> None:
            nonlocal ended
            ended += 1
            loop.stop()

        prober = Prober(
            loop, HERE, plan(20, 0.125, 1.0, flows=2), told=events.append, ended=end, key=KEY,
            clock_ns=lambda: round(network.clock() * NS_PER_S),
        )  # fmt: skip
        prober.start()
        network.run(loop)
        words, total = prober.ledger.total.words, prober.ledger.total
        assert ended == 1
        assert words[Word.OUTSTANDING] == 0
        assert total.decided + words[Word.TOO_BIG] + words[Word.UNKNOWN] >= total.sent
        assert total.sent + sum(prober.skipped.values()) >= 20
        assert all(event.reason != NOTHING_LISTENS or event.word is Word.REFUSED for event in events)

    simulate(scenario, seeds=200)
