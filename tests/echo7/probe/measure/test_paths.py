"""Which flows differ from the others, and which only by chance."""

from __future__ import annotations

import random

from echo7.probe.measure.paths import differences
from echo7.probe.measure.tally import Tally
from echo7.probe.measure.words import Event, Word


def tally(replies: list[int], lost: int = 0) -> Tally:
    flow = Tally()
    for rtt_ns in replies:
        flow.send()
        flow.count(Event(Word.REPLY, 0, 1, rtt_ns=rtt_ns), Word.OUTSTANDING)
    for _ in range(lost):
        flow.send()
        flow.count(Event(Word.LOST, 0, 1), Word.OUTSTANDING)
    return flow


def test_a_flow_that_takes_longer_is_told() -> None:
    """Issue: "reports each that differs": one way of four adds five milliseconds."""
    flows = [tally([20_000_000 + number * 1000 for number in range(20)]) for _ in range(8)]
    flows[2] = flows[6] = tally([25_000_000 + number * 1000 for number in range(20)])
    assert differences(flows) == ["", "", "rtt", "", "", "", "rtt", ""]


def test_a_flow_that_loses_more_is_told_and_one_that_loses_all() -> None:
    flows = [tally([1000] * 50) for _ in range(8)]
    flows[1], flows[3] = tally([1000] * 40, 10), tally([], 50)
    assert differences(flows) == ["", "loss", "", "loss", "", "", "", ""]


def test_a_flow_may_differ_in_both() -> None:
    flows = [tally([1000] * 50) for _ in range(7)] + [tally([9000] * 25, 25)]
    assert differences(flows)[7] == "loss rtt"


def test_chance_alone_makes_no_difference() -> None:
    """Sixteen flows on one way that loses one in fifty and jitters: seeds 0 to 49 give no more than two odd ones."""
    told = 0
    for seed in range(50):
        chance = random.Random(seed)
        flows = []
        for _ in range(16):
            lost = sum(chance.random() < 0.02 for _ in range(50))
            flows.append(tally([round(chance.gauss(20e6, 1e6)) for _ in range(50 - lost)], lost))
        told += sum(map(bool, differences(flows)))
    assert told <= 16


def test_of_two_flows_nobody_can_say_which_is_odd() -> None:
    assert differences([tally([1000] * 9), tally([], 9)]) == ["", ""]
    assert differences([]) == []


def test_flows_without_answers_do_not_speak_of_time() -> None:
    assert differences([tally([], 9), tally([1000]), tally([9000])]) == ["loss", "", ""]
    assert differences([tally([]), tally([]), tally([])]) == ["", "", ""]


def test_a_few_replies_say_nothing_of_time() -> None:
    """Three round trips are no median: on one and the same way, thirteen of three hundred flows seemed slow."""
    flows = [tally([1000, 1001, 1002, 1003, 1004]) for _ in range(4)] + [tally([9000] * 4)]
    assert differences(flows) == [""] * 5
    assert differences([*flows[:4], tally([9000] * 5)])[4] == "rtt"


def test_a_single_loss_is_no_difference() -> None:
    assert differences([tally([1000] * 9), tally([1000] * 9), tally([1000] * 8, 1)]) == ["", "", ""]
