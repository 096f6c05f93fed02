"""The programs of the lessons, checked by their promises."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

from reactor.lessons.promises import Promise, Verdict, judge
from reactor.lessons.subject import Program

AT_ONCE = 8  # a check mostly waits
TRIES = 3


def check_together(pairs: Iterable[tuple[Promise, Program]]) -> list[Verdict]:
    """Check programs by promises, several at a time. Repeat alone what a busy machine couldn't measure.

    Each process examines one program at a time, because it adopts the orphans of that program.
    """
    every = list(pairs)
    with ProcessPoolExecutor(AT_ONCE, multiprocessing.get_context("spawn")) as pool:
        verdicts = list(pool.map(judge, *zip(*every, strict=True)))
    for i, pair in enumerate(every):
        for _ in range(TRIES):
            if verdicts[i].kept is None:
                verdicts[i] = judge(*pair)
    return verdicts
