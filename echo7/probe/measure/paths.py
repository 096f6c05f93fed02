"""Which flows differ from the others.

Flows with different source ports may take different paths (ECMP, LAG), and a mean hides one bad path of eight.

Law: a flow differs only if chance hardly explains it. In loss: its loss is more than three standard deviations, and at
least two probes, from what the median flow would lose in as many probes. In time: its median is further from the median
of all flows' medians than the median flow spreads from its 10th to its 90th percentile, and at least a twentieth away.
A flow with fewer than five replies never differs in time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from echo7.probe.measure.tally import Tally
from echo7.probe.measure.words import Word

DEVIATIONS = 3
LEAST_PROBES = 2
LEAST_PART = 20  # a twentieth
LEAST_REPLIES = 5
LEAST_FLOWS = 3  # of two, either could be the odd one


def differences(flows: Sequence[Tally]) -> list[str]:
    """Return how each flow differs: `loss`, `rtt`, `loss rtt`, or an empty string."""
    if len(flows) < LEAST_FLOWS:
        return [""] * len(flows)
    return [" ".join(filter(None, words)) for words in zip(_by_loss(flows), _by_time(flows), strict=True)]


def _by_loss(flows: Sequence[Tally]) -> list[str]:
    rates = sorted(flow.unanswered / max(1, flow.decided) for flow in flows)
    usual = rates[len(rates) // 2]
    found = []
    for flow in flows:
        # never 0 or 1: so few probes prove neither
        rate = (usual * flow.decided + 1) / (flow.decided + 2)
        expected = flow.decided * rate
        deviation = abs(flow.unanswered - expected)
        is_odd = deviation >= LEAST_PROBES and deviation > DEVIATIONS * math.sqrt(expected * (1 - rate))
        found.append("loss" if is_odd else "")
    return found


def _by_time(flows: Sequence[Tally]) -> list[str]:
    answered = [flow.rtts for flow in flows if flow.words[Word.REPLY] >= LEAST_REPLIES]
    medians = sorted(rtts.percentile(5_000) for rtts in answered)
    spreads = sorted(rtts.percentile(9_000) - rtts.percentile(1_000) for rtts in answered)
    if len(answered) < LEAST_FLOWS:
        return [""] * len(flows)
    usual, spread = medians[len(medians) // 2], spreads[len(spreads) // 2]
    found = []
    for flow in flows:
        distance = abs(flow.rtts.percentile(5_000) - usual)
        is_odd = flow.words[Word.REPLY] >= LEAST_REPLIES and distance > spread and distance * LEAST_PART > usual
        found.append("rtt" if is_odd else "")
    return found
