"""Which flows differ from the others, and which differ only by chance."""

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


def test_slower_flow_differs() -> None:
    """Issue: "reports each that differs": one path of four adds five milliseconds."""
    flows = [tally([20_000_000 + number * 1000 for number in range(20)]) for _ in range(8)]
    flows[2] = flows[6] = tally([25_000_000 + number * 1000 for number in range(20)])
    assert differences(flows) == ["", "", "rtt", "", "", "", "rtt", ""]


def test_flow_that_loses_more_or_all_differs() -> None:
    flows = [tally([1000] * 50) for _ in range(8)]
    flows[1], flows[3] = tally([1000] * 40, 10), tally([], 50)
    assert differences(flows) == ["", "loss", "", "loss", "", "", "", ""]


def test_flow_may_differ_in_both() -> None:
    flows = [tally([1000] * 50) for _ in range(7)] + [tally([9000] * 25, 25)]
    assert differences(flows)[7] == "loss rtt"


def test_chance_alone_makes_no_difference() -> None:
    """Sixteen flows on one path that loses one in fifty and jitters, with seeds 0 to 49."""
    found = 0
    for seed in range(50):
        chance = random.Random(seed)
        flows = []
        for _ in range(16):
            lost = sum(chance.random() < 0.02 for _ in range(50))
            flows.append(tally([round(chance.gauss(20e6, 1e6)) for _ in range(50 - lost)], lost))
        found += sum(map(bool, differences(flows)))
    assert found <= 16


def test_two_flows_never_differ() -> None:
    assert differences([tally([1000] * 9), tally([], 9)]) == ["", ""]
    assert differences([]) == []


def test_flow_without_replies_does_not_differ_in_time() -> None:
    assert differences([tally([], 9), tally([1000]), tally([9000])]) == ["loss", "", ""]
    assert differences([tally([]), tally([]), tally([])]) == ["", "", ""]


def test_flow_with_few_replies_does_not_differ_in_time() -> None:
    """Story: by the median of three round trips, thirteen of three hundred flows on one path seemed slow."""
    flows = [tally([1000, 1001, 1002, 1003, 1004]) for _ in range(4)] + [tally([9000] * 4)]
    assert differences(flows) == [""] * 5
    assert differences([*flows[:4], tally([9000] * 5)])[4] == "rtt"


def test_single_loss_is_no_difference() -> None:
    assert differences([tally([1000] * 9), tally([1000] * 9), tally([1000] * 8, 1)]) == ["", "", ""]
